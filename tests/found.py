"""Networks, drawn by the random tests, for which something that is to hold of all once did not."""

from drawn import (
    Architecture,
    DeepArchitecture,
    Step,
    activate,
    add,
    affine,
    batch_norm,
    centred,
    concatenate,
    gate,
    grouped,
    l2_normalised,
    mix_positions,
    norm,
    own_rms,
    patches,
    pixel_shuffled,
    pool_positions,
    positions,
    project,
    residual,
    routed,
    scored,
    softmax,
    sorted_,
    split,
    spread,
    summed,
    tied,
    to_image,
    twice,
)


def _step(function, **options):
    return Step(function, options)


SATURATED = (  # no order shows, as sums of many entries drive a tanh to its ends
    Architecture(
        "images",
        [
            _step(grouped, groups=0, inner=2, outer=3, up=True),
            _step(patches),
            _step(tied, width=2),
            _step(add, first=[_step(positions)], second=[_step(softmax)], width=0),
            _step(pool_positions, how="flatten"),
            _step(summed),
            _step(centred),
            _step(tied, width=0),
        ],
        listed=False,
    ),
    [5, 3, 6, 4, 3, 3],
)
DAMPED = (  # layers behind it damp what a softmax changes, to what rounding may do
    Architecture(
        "sequences",
        [
            _step(activate, name="gelu"),
            _step(residual, inner=[_step(spread, width=1)], scale=False, norm_first=True),
            _step(
                split,
                first=3,
                second=1,
                inner=[
                    _step(gate, width=4, how="glu", name="elu"),
                    _step(concatenate, first=[], second=[_step(affine, gain=True), _step(softmax)]),
                ],
                join=True,
            ),
            _step(spread, width=0),
            _step(pool_positions, how="first"),
            _step(batch_norm, affine=True),
            _step(to_image, width=4),
            _step(twice, name="gelu"),
            _step(pixel_shuffled, width=1),
        ],
        listed=True,
    ),
    [3, 4, 3, 2, 3, 2],
    [3, 3, 1, 1, 1, 0],
)
SIGNS = (  # a norm over one channel leaves the signs, which hide what a norm over copies changes
    Architecture(
        "tokens",
        [
            _step(mix_positions, width=2),
            _step(split, first=0, second=0, inner=[], join=False),
            _step(project, width=0, bias=True),
            _step(pool_positions, how="first"),
            _step(
                concatenate,
                first=[
                    _step(
                        residual, inner=[_step(activate, name="elu")], scale=True, norm_first=True
                    )
                ],
                second=[_step(activate, name="elu")],
            ),
            _step(sorted_),
            _step(to_image, width=5),
            _step(pixel_shuffled, width=4),
            _step(affine, gain=False),
            _step(l2_normalised),
        ],
        listed=False,
    ),
    [4, 6, 2, 3, 1, 4],
    [2, 3, 4, 4, 0, 2],
)
PAIRS = (  # a norm over two entries leaves the order of the two, which hides what scores change
    DeepArchitecture(
        "tokens",
        [_step(residual, inner=[_step(scored), _step(scored)], scale=False, norm_first=False)],
    ),
    [2, 2, 2, 2, 2, 2],
    [2, 0, 0, 0, 0, 0],
)
NORMED_TWICE = (  # norms of norms of two entries, which their epsilons change by more than rounding
    DeepArchitecture(
        "sequences",
        [
            _step(
                residual,
                inner=[_step(routed, width=0, table=True), _step(softmax)],
                scale=False,
                norm_first=False,
            ),
            _step(
                split,
                first=0,
                second=0,
                inner=[_step(own_rms, gain=True), _step(norm, name="layer", affine=False)],
                join=False,
            ),
        ],
    ),
    [2, 2, 2, 2, 2, 2],
    [0, 0, 0, 0, 0, 1],
)
