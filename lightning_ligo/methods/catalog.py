"""The named methods: every published way to grow, and our own, in one notation."""

from __future__ import annotations

from dataclasses import replace

from lightning_ligo.methods import maps, mixes
from lightning_ligo.methods.method import Depth, Method, Width, combined

_PRE_NORM = "in post-norm networks for whole multiples only"
_LEARNING = "100 steps (the paper); AdamW 0.9, 0.95, gradients clipped to 1, 10 steps of warmup; "

_LEMON = Width(maps.uneven_copies, maps.uneven_isometry)  # also of methods that are about depth
_FRESH = Width(maps.old_and_mean, maps.upper_left, rest="one-sided")
_ZERO_OUTPUT = Depth(mixes.interpolated, "zero_output")  # also of methods that are about width

_LIGO = Method(
    name="ligo",
    idea="both forms of every map and the depth mix learned from the start of stack+fresh",
    equation="W_large[g] = B (Σ_l w[g, l] W[l]) Aᵀ + R; B, A and w free, from [I; 0] and a stack; "
    "R, the fresh parts of fresh, stays",
    source="LiGO (ICLR 2023), equation 5, from another start and with fresh parts",
    keeps_function=False,
    conditions="stacked layers add to the stream again",
    breaks_symmetry="yes, nothing is copied but layers, which see other inputs",
    settings="25 steps, which end lower at equal FLOPs than the 100 of the paper; AdamW 0.9, 0.95, "
    "gradients clipped to 1, 10 steps of warmup; rate 1e-3",
    width=replace(_FRESH, learns="both"),
    depth=Depth(mixes.stacked, learned=True),
    steps=25,
    learning_rate=1e-3,
    warmup=10,
)
_HYPERCLONING = Method(
    name="hypercloning",
    idea="whole copies, all readers divide by their number",
    equation="W → [[W, W], [W, W]] / 2 for twice the length, n x n tiles of W / n in general",
    source="HyperCloning (2024)",
    keeps_function=True,
    conditions="lengths must be whole multiples, others are refused",
    breaks_symmetry="never without noise (see hypercloning-noisy): copies have equal gradients",
    settings="no noise, as its released code",
    width=Width(maps.tiles, maps.even_isometry, whole=True),
    depth=_ZERO_OUTPUT,
)
_STACK = Method(
    name="stack",
    idea="the layers again on top of themselves",
    equation="W_large[i] = W[i mod S]",
    source="StackBERT (ICML 2019)",
    keeps_function=False,
    conditions="stacked layers add to the stream again",
    breaks_symmetry="yes, copies of a layer see other inputs",
    width=_LEMON,
    depth=Depth(mixes.stacked),
)

_METHODS = (
    _LIGO,
    replace(
        _LIGO,
        name="ligo-low-rank",
        idea="a low-rank part of every map learned on top of lemon, for little more than training",
        equation="W_large[g] = B (Σ_l w[g, l] W[l]) Aᵀ, w fixed, B = B_lemon + U Vᵀ, "
        "A = A_lemon + X Yᵀ; U and X start at zero",
        source="LiGO (ICLR 2023), equation 5, from a function-preserving start",
        keeps_function=True,
        conditions=f"at the start, {_PRE_NORM}",
        breaks_symmetry="yes, by unequal shares, and by learning",
        settings=_LEARNING
        + "rate 1e-3, the highest that does not harm a lossless start in trials; "
        "rank 8, ours",
        steps=100,
        width=replace(_LEMON, learns="low-rank", rank=8),
        depth=_ZERO_OUTPUT,
    ),
    Method(
        name="ligo-paper",
        idea="tied maps and the depth mix learned from a random start",
        equation="W_large[g] = B (Σ_l w[g, l] W[l]) Aᵀ with B, A = [I; C] of what they write and "
        "read; C and w learned, C from rows of sum 1, w from a noisy stack",
        source="LiGO (ICLR 2023), as its released code defines it",
        keeps_function=False,
        conditions="Aᵀ B is not I, and layers are mixed",
        breaks_symmetry="yes, nothing is copied",
        settings=_LEARNING + "rate 3e-3, the best for starts that are not lossless in trials",
        width=Width(maps.random_rows, maps.random_rows, "lower", ties="flow", rescales=False),
        depth=Depth(mixes.noisy_stack, learned=True, always=True),
        steps=100,
        learning_rate=3e-3,
        warmup=10,
    ),
    Method(
        name="lemon",
        idea="copies that readers weigh unequally, new layers that add nothing",
        equation="B: entry i copies entry i mod S; A: shares a_i B, Σ a_i = 1 over the copies of "
        "an entry; other entries under a norm hold the mean of all; new layers write zero",
        source="LEMON (ICLR 2024)",
        keeps_function=True,
        conditions=_PRE_NORM,
        breaks_symmetry="yes, readers weigh copies unequally, so that their gradients differ",
        settings="shares of two copies from [1/3, 2/3] (ours); the paper goes on at its peak "
        "learning rate and decays faster",
        width=_LEMON,
        depth=_ZERO_OUTPUT,
    ),
    Method(
        name="net2net",
        idea="copies of random entries that readers divide by their number, identity layers",
        equation="B[i, g(i)] = 1, g(i) = i for i < S and random beyond; A = B / count, with noise "
        "that cancels; a new layer is the identity",
        source="Net2Net (ICLR 2016), Net2WiderNet and Net2DeeperNet",
        keeps_function=True,
        conditions=f"{_PRE_NORM}; under a norm all entries have equally many copies, and others "
        "hold their mean as in lemon (the paper has no such norm); a new layer of a sequential "
        "network is the identity only with idempotent activations, such as ReLU",
        breaks_symmetry="yes, by the noise; without it (noise=0) never",
        settings="noise 0.01 of the weights, as W + N and W - N for two copies; the paper adds a "
        "small noise that does not cancel",
        width=Width(maps.random_copies, maps.even_isometry, noise=0.01),
        depth=_ZERO_OUTPUT,
    ),
    Method(
        name="bert2bert",
        idea="Net2Net for transformers, heads copied whole, then stacked",
        equation="B[i, g(i)] = 1, g(i) = i for i < S and random beyond; A = B / count; "
        "layer i copies layer i mod S",
        source="bert2BERT (ACL 2022), function-preserving initialization (FPI), then stacked",
        keeps_function=False,
        conditions="stacked layers add to the stream again; width alone keeps it where no norm "
        "averages over the axis",
        breaks_symmetry="no: equal copies have equal gradients; dropout alone breaks it",
        width=Width(maps.fpi_copies, maps.even_isometry),
        depth=Depth(mixes.stacked),
    ),
    Method(
        name="bert2bert-aki",
        idea="as bert2bert, but new entries of a layer come from the next layer",
        equation="rows i < S of layer l are those of W[l] Aᵀ, rows beyond are rows g(i) of "
        "W[l + 1] Aᵀ; the last layer takes its own; norms as in bert2bert",
        source="bert2BERT (ACL 2022), advanced knowledge initialization (AKI), then stacked",
        keeps_function=False,
        conditions="new entries are those of another layer, and stacked layers add again",
        breaks_symmetry="yes inside layers, where new entries are no copies; no on the stream",
        width=Width(maps.fpi_copies, maps.even_isometry, from_next_layer=True),
        depth=Depth(mixes.stacked),
    ),
    _HYPERCLONING,
    replace(
        _HYPERCLONING,
        name="hypercloning-noisy",
        idea="hypercloning with noise that cancels between two copies",
        equation="W → [[W + N, W - N], [W + M, W - M]] / 2; of an odd number the last has none",
        source="HyperCloning (2024), its option for noise",
        breaks_symmetry="yes, by the noise",
        settings="noise 0.1 of the weights (20 dB); its released code leaves it to the user",
        width=Width(maps.tiles, maps.even_isometry, whole=True, noise=0.1),
    ),
    Method(
        name="staged",
        idea="networks side by side that share their output, identity layers",
        equation="W → [[W, 0], [0, W]], what only writes [W; W], what only reads [W, W] / 2; "
        "a new layer has matrices that are the identity and all else zero",
        source="Staged Training (ICML 2022)",
        keeps_function=True,
        conditions="all lengths must grow by one whole multiple, others are refused; new layers "
        "where a layer without biases and norm gains adds nothing to a stream",
        breaks_symmetry="no: the networks have equal gradients; dropout alone breaks it",
        settings="the paper goes on with Adam's first moment halved and the second quartered, as "
        "optimizer_state='map' does, and grows when the loss falls slowly",
        width=Width(maps.tiles, maps.even_isometry, whole=True, diagonal=True),
        depth=Depth(mixes.interpolated, "identity"),
    ),
    Method(
        name="sparkling",
        idea="copies, readers scaled so that what they write keeps its root mean square",
        equation="B: entry i copies entry i mod S; A = a B, a = sqrt(S / (3 L - 2 S)) for L up to "
        "2 S and S / L beyond",
        source="SPARKLING (ICML 2026), equation 17, copies on both sides",
        keeps_function=False,
        conditions="except for whole multiples, where a is 1 over their number",
        breaks_symmetry="no: in the paper Adam's moments do, kept for old entries and zero for new "
        "ones (optimizer_state='keep-old-zero-new'), and a rate that warms up again for new "
        "parameters (Rate)",
        settings="the paper's learning rate is Rate(rewarm=250, peak=1.3)",
        width=Width(maps.rms_copies, maps.even_isometry),
        depth=_ZERO_OUTPUT,
    ),
    _STACK,
    replace(
        _STACK,
        name="gstack",
        idea="the whole stack two to four times, once, after a short small phase",
        equation="W_large[i] = W[i mod S] for a whole multiple of S",
        source="G_stack (NeurIPS 2024), depthwise stacking",
        conditions="stacked layers add to the stream again; depths must be whole multiples",
        settings="the paper's growth factors are 2 to 4",
        depth=Depth(mixes.stacked, whole=True),
    ),
    replace(
        _STACK,
        name="interpolate",
        idea="every layer is followed by its copies",
        equation="W_large[i] = W[i S // L]",
        source="Chang et al. (ICLR 2018); LiGO (ICLR 2023), appendix A",
        conditions="copied layers add to the stream again",
        depth=Depth(mixes.interpolated),
    ),
    Method(
        name="llama-pro",
        idea="copied blocks with zero output projections after every group of blocks",
        equation="groups of S / (L - S) layers, each followed by its last layer with output "
        "projections of zero",
        source="LLaMA-Pro (ACL 2024), block expansion",
        keeps_function=True,
        conditions=_PRE_NORM,
        breaks_symmetry="yes, output projections learn first",
        settings="the paper trains the new blocks only; here all are, unless you freeze them",
        width=_LEMON,
        depth=Depth(mixes.after_groups, "zero_output"),
    ),
    Method(
        name="msg",
        idea="fresh new parts, masked, and let in over the first steps of training",
        equation="B = [I; R], R as built; readers see c x of new entries, norms weigh them by c, a "
        "new layer adds c F(x); c rises from 0 to 1",
        source="MSG, Masked Structural Growth (ICLR 2024)",
        keeps_function=True,
        conditions="while c is 0, whatever the new weights are; heads must keep their size, and a "
        "checkpoint that is tested by itself before c is 1 has all its new parts let in",
        breaks_symmetry="yes, nothing is copied but layers, which see other inputs",
        settings="a linear ramp of 100 steps (ours; the example of its released code: 5 of 100)",
        width=Width(maps.upper_left, maps.upper_left, rest="fresh", rescales=False),
        depth=Depth(mixes.stacked),
        ramp=100,
    ),
    Method(
        name="fresh",
        idea="fresh new parts on one side of every axis, zero on the other",
        equation="W_large = [[W, 0], [R, R]] writes a hidden axis and [V, 0] reads it; new entries "
        "of a stream hold the mean of the old ones, zero under an RMS norm, and are read by fresh "
        "columns; of queries and keys the queries are fresh; R as built; new layers write zero",
        source="ours",
        keeps_function=True,
        conditions="under pre-norm, to any length; norms in the stream itself only if they are RMS "
        "norms, and never under a group norm",
        breaks_symmetry="yes, nothing is copied but layers, which see other inputs",
        width=_FRESH,
        depth=_ZERO_OUTPUT,
    ),
    Method(
        name="zero",
        idea="the small network in the upper left block, zero elsewhere",
        equation="B = A = [I; 0], w = [I; 0]",
        source="zero padding, the plainest growth",
        keeps_function=False,
        conditions="except where no norm averages over the axes that grow",
        breaks_symmetry="no: new entries are zero and have no gradient, unless norms shift them",
        width=Width(maps.upper_left, maps.upper_left, rescales=False),
        depth=Depth(mixes.first_layers, "zero_output"),
    ),
    Method(
        name="copy",
        idea="the small network in the upper left block, fresh weights elsewhere",
        equation="B = A = [I; 0], w = [I; 0], the rest of W_large stays",
        source="DirectCopy, a baseline of bert2BERT (ACL 2022)",
        keeps_function=False,
        conditions="fresh weights add to everything",
        breaks_symmetry="yes, nothing is copied twice",
        width=Width(maps.upper_left, maps.upper_left, rest="fresh", rescales=False),
        depth=Depth(mixes.first_layers, "fresh"),
    ),
    Method(
        name="random",
        idea="the large network as it was built",
        equation="W_large stays",
        source="training from scratch",
        keeps_function=False,
        conditions="nothing is taken from the small network",
        breaks_symmetry="yes, nothing is copied",
    ),
)
METHODS = {method.name: method for method in _METHODS}
DEFAULT = "stack+copy"  # one of the two best at equal FLOPs: recipes/README.md


def method_named(name: str) -> Method:
    """Find a method by name; ``stack+lemon`` deepens by stack and widens by lemon.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    depth, plus, width = name.partition("+")
    for word in (depth, width) if plus else (name,):
        if word not in METHODS:
            raise ValueError(
                f"unknown method {word!r}; the methods are {', '.join(METHODS)}, and two of them "
                "with a plus between, the first for depth, the second for width: stack+lemon"
            )
    return combined(METHODS[depth], METHODS[width]) if plus else METHODS[name]
