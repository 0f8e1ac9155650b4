"""What stands on an axis decides whether its growth can keep the function."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lightning_ligo as ligo
from lightning_ligo.operator.measure import KEPT
from networks import TOKENS, TiedPostNorm, changed, measured


class Around(nn.Module):
    """A linear layer, a function of what it writes and a linear layer that reads that."""

    def __init__(self, function, width, *modules):
        super().__init__()
        self.one, self.two = nn.Linear(4, width), nn.Linear(width, 2)
        self.inside = nn.ModuleList(modules)
        self.function = function

    def forward(self, x):
        return self.two(self.function(self.one(x), *self.inside))


def applied(module, width):
    return lambda: Around(lambda x, inside: inside(x), width, module(width))


def grown(build, small, large):
    """How much the output changes by a growth, and where the measurement says that it does."""
    torch.manual_seed(0)
    inputs = {"x": torch.linspace(-1, 1, 3 * 4).sin().reshape(3, 4)}
    small, large = build(small), build(large)
    place = measured(ligo.pair(small, large, **inputs), small, large, inputs).place
    return changed(small, large, inputs)[0], place


def module(make):
    return lambda width: Around(lambda x, inside: inside(x), width, make(width))


def function(of):
    return lambda width: Around(of, width)


MULTIPLES = {  # kept where the width grows by a multiple, and only there
    "mean of activations": function(lambda x: x.relu() - x.relu().mean(-1, True)),
    "variance": function(lambda x: x / (1 + x.var(-1, correction=0, keepdim=True))),
    "mean of squares": function(lambda x: x * x.square().mean(-1, True)),
    "norms": function(lambda x: F.rms_norm(x, x.shape[-1:]) + F.layer_norm(x, x.shape[-1:])),
    "maximum": function(lambda x: F.layer_norm(x, x.shape[-1:]) * x.amax(-1, True)),
    "norm, activation": module(
        lambda n: nn.Sequential(nn.RMSNorm(n, elementwise_affine=False), nn.Tanh())
    ),
    "norm of a gate": lambda width: Around(
        lambda x, gate: F.layer_norm(x * gate(x), x.shape[-1:]), width, nn.Linear(width, width)
    ),
    "norm of a square": function(lambda x: F.layer_norm(x.square(), x.shape[-1:])),
}
COUNTED = {  # not kept
    "softmax": function(lambda x: x.softmax(-1)),
    "length": function(F.normalize),
    "sum": function(lambda x: x * x.sum(-1, True)),
}


class Applied(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, x):
        return self.of(x)


def scattered(x):
    return torch.zeros_like(x).scatter_reduce(2, torch.arange(4).expand_as(x) // 2, x, "amax")


ALONE = {  # what is done to each channel on its own, and is not linear, under a norm
    "instance norm without a gain": lambda width: nn.InstanceNorm1d(width, affine=False),
    "instance norm with one": lambda width: nn.InstanceNorm1d(width, affine=True),
    "maximum": lambda width: nn.MaxPool1d(2),
    "maximum so far": lambda width: Applied(lambda x: x.cummax(2)[0]),
    "product so far": lambda width: Applied(lambda x: x.cumprod(2)),
    "logarithm of sums so far": lambda width: Applied(lambda x: x.logcumsumexp(2)),
    "maximum by index": lambda width: Applied(scattered),
    "in order of size": lambda width: Applied(lambda x: x.sort(2)[0]),
    "largest": lambda width: Applied(lambda x: x.topk(2, 2)[0]),
}
PLAIN = {
    "mean": function(lambda x: x - x.mean(-1, keepdim=True)),
    "maximum": function(lambda x: x * x.amax(-1, keepdim=True)),
    "glu": lambda width: Around(lambda x, up: F.glu(up(x)), width, nn.Linear(width, 2 * width)),
    "layer norm without a gain": module(lambda n: nn.LayerNorm(n, elementwise_affine=False)),
    "rms norm without a gain": module(lambda n: nn.RMSNorm(n, elementwise_affine=False)),
    "norms without a gain": function(
        lambda x: F.rms_norm(F.rms_norm(x, x.shape[-1:]), x.shape[-1:])
    ),
    "written out": function(lambda x: x * torch.rsqrt(x.pow(2).mean(-1, True) + 1e-6)),
}


@pytest.mark.parametrize("build", MULTIPLES.values(), ids=MULTIPLES)
def test_what_averages_keeps_the_function_where_a_width_grows_by_a_multiple(build):
    error, place = grown(build, 3, 6)
    assert error < 1e-12 and place is None
    error, place = grown(build, 3, 5)
    assert error > KEPT and place == "two"


@pytest.mark.parametrize("build", COUNTED.values(), ids=COUNTED)
def test_what_counts_copies_is_said_to_be_changed(build):
    error, place = grown(build, 3, 6)
    assert error > KEPT and place == "two"


@pytest.mark.parametrize("large", [5, 6])
@pytest.mark.parametrize("build", PLAIN.values(), ids=PLAIN)
def test_what_sees_no_copies_keeps_the_function(build, large):
    error, place = grown(build, 3, large)
    assert error < 1e-12 and place is None


@pytest.mark.parametrize("make", ALONE.values(), ids=ALONE)
def test_a_norm_over_channels_that_are_changed_one_by_one_needs_a_multiple(make):
    class Channels(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Conv1d(1, width, 1), nn.Linear(width, 2)
            self.inside, self.norm = make(width), nn.LayerNorm(width)

        def forward(self, x):
            return self.two(self.norm(self.inside(self.one(x.unsqueeze(1))).transpose(1, 2)))

    assert grown(Channels, 3, 6) == (pytest.approx(0, abs=1e-12), None)
    assert grown(Channels, 3, 5)[1] == ("inside" if list(make(3).parameters()) else "norm")


class Spread(nn.Module):
    """One number times, or by, a parameter of many, as a time by its frequencies."""

    def __init__(self, width, divided=False):
        super().__init__()
        self.divided, self.by = divided, nn.Parameter(torch.ones(width))
        self.one, self.norm, self.two = nn.Linear(4, 1), nn.LayerNorm(width), nn.Linear(width, 2)

    def forward(self, x):
        x = self.one(x)
        return self.two(self.norm(x / self.by if self.divided else x * self.by))


def test_a_parameter_that_one_number_is_multiplied_by_is_written_like_any_other():
    assert grown(Spread, 3, 5) == (pytest.approx(0, abs=1e-12), None)
    error, place = grown(lambda width: Spread(width, divided=True), 3, 5)
    assert error > KEPT and place == "norm"


def test_a_parameter_that_scales_what_it_reads_is_said_to_change_it():
    class Scored(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Linear(4, width), nn.Linear(width, 2)
            self.by = nn.Parameter(torch.ones(width))

        def forward(self, x):
            x = self.one(x)
            return self.two(x * self.by) + (x @ self.by).unsqueeze(-1)

    error, place = grown(Scored, 3, 6)
    assert error > KEPT and place == "two"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_autoencoders_behind_each_other_keep_the_function(count):
    class Tables(nn.Module):
        """Each reads by its table, and writes by it what the next one reads."""

        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Linear(4, width), nn.Linear(width, 2)
            for number in range(count):
                setattr(self, f"table{number}", nn.Parameter(torch.randn(3, width)))

        def forward(self, x):
            x = self.one(x)
            for number in range(count):
                table = getattr(self, f"table{number}")
                x = torch.tanh(x @ table.T) @ table
            return self.two(x)

    assert grown(Tables, 3, 5) == (pytest.approx(0, abs=1e-12), None)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_over_what_was_joined_with_itself_needs_a_multiple(norm):
    build = module(lambda n: norm(2 * n))

    def doubled(width):
        network = build(width)
        network.function = lambda x, norm: norm(torch.cat([x, x.roll(1, 0)], -1))
        network.two = nn.Linear(2 * width, 2)
        return network

    assert grown(doubled, 3, 6) == (pytest.approx(0, abs=1e-12), None)
    error, place = grown(doubled, 3, 5)
    assert (place == "inside.0") == (error > KEPT)
    assert error > KEPT or norm is nn.RMSNorm  # which may change more where more is joined


class Centered(nn.Module):
    """A layer norm in steps, as of Cohere."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        return self.weight * ((x - mean) * torch.rsqrt(variance + 1e-5))


class GainFirst(Centered):
    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return self.weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


class UncenteredGainFirst(Centered):
    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


@pytest.mark.parametrize("width", [6, 5])
@pytest.mark.parametrize("norm", [Centered, GainFirst, UncenteredGainFirst])
@pytest.mark.parametrize("shared", [False, True])
def test_a_norm_in_steps_keeps_the_function_behind_a_tied_table(norm, shared, width):
    class Tied(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.table, self.inside = nn.Linear(4, width, bias=False), nn.Linear(width, width)
            self.two = norm(width)
            self.one = self.two if shared else norm(width)

        def forward(self, x):
            x = self.table(x)
            return self.two(x + self.inside(self.one(x))) @ self.table.weight

    assert grown(Tied, 3, width) == (pytest.approx(0, abs=1e-12), None)


STEPS = {
    "a mean that multiplies": lambda x, mean: x * mean,
    "another mean": lambda x, mean: x - x.relu().mean(-1, keepdim=True),
    "a mean that is subtracted elsewhere": lambda x, mean: x.relu() - mean,
    "an activation of what is centered": lambda x, mean: (x - mean).relu(),
}


@pytest.mark.parametrize("of", STEPS.values(), ids=STEPS.keys())
def test_a_mean_that_is_no_step_of_a_norm_is_read_as_before(of):
    around = function(lambda x: F.layer_norm(of(x, x.mean(-1, keepdim=True)), x.shape[-1:]))
    assert grown(around, 3, 6) == (pytest.approx(0, abs=1e-12), None)


def put(z, rows, values):
    z[rows] = values
    return z


def added(z, rows, values):
    z[rows] += values
    return z


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("into", [torch.zeros_like, torch.clone], ids=["zeros", "the stream"])
@pytest.mark.parametrize(
    "written",
    [put, added, lambda z, rows, values: z.index_add(0, rows, values)],
    ids=["put", "added", "index_add"],
)
def test_what_is_written_at_rows_is_read_by_the_norm_behind_them(written, into, norm):
    class Rows(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.inside = nn.Linear(4, width), nn.Linear(width, width)
            self.norm, self.two = norm(width), nn.Linear(width, 2)

        def forward(self, x):
            x, rows = self.one(x), torch.tensor([2, 0])
            return self.two(self.norm(x + written(into(x), rows, self.inside(x[rows]))))

    assert grown(Rows, 3, 5) == (pytest.approx(0, abs=1e-12), None)


def test_a_mean_over_heads_that_attend_needs_a_multiple():
    class Averaged(nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6 * heads), nn.Linear(2, 2)

        def forward(self, x):
            q, k, v = self.one(x).view(1, len(x), 3, -1, 2).permute(2, 0, 3, 1, 4)
            return self.two(F.scaled_dot_product_attention(q, k, v).mean(1))

    assert grown(Averaged, 2, 4) == (pytest.approx(0, abs=1e-12), None)
    error, place = grown(Averaged, 2, 3)
    assert error > KEPT and place == "two"


def test_a_mean_over_heads_that_are_normed_needs_a_multiple():
    class Heads(nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.heads, self.norm = heads, nn.LayerNorm(3)
            self.one, self.two = nn.Linear(4, 3 * heads), nn.Linear(3 * heads, 2)

        def forward(self, x):
            x = self.norm(self.one(x).unflatten(-1, (self.heads, 3))).flatten(-2)
            return self.two(x - x.mean(-1, True))

    change, place = grown(Heads, 2, 3)
    assert change > 1e-3 and place == "two"
    assert grown(Heads, 2, 4) == (pytest.approx(0, abs=1e-12), None)


def test_channels_that_are_one_group_in_the_small_network_only_are_normed_otherwise():
    class Groups(nn.Module):
        def __init__(self, groups):
            super().__init__()
            self.norm = nn.GroupNorm(groups, 2 * groups)
            self.one, self.two = nn.Linear(4, 2 * groups), nn.Linear(2 * groups, 2)

        def forward(self, x):
            return self.two(self.norm(self.one(x)))

    change, place = grown(Groups, 1, 2)
    assert change > 1e-3 and place == "norm"


def test_layers_of_a_list_that_do_unlike_things_are_no_stack():
    class Own(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.own = nn.Parameter(torch.ones(width))

    class Listed(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Linear(4, width), nn.Linear(width, 2)
            self.layers = nn.ModuleList([Own(width), Own(width)])

        def forward(self, x):
            return self.two(F.rms_norm(self.one(x), (len(self.one.bias),), self.layers[0].own)
                            + self.layers[1].own)  # fmt: skip

    assert ligo.trace(Listed(3), torch.randn(2, 4)).stacks == {}
    assert grown(Listed, 3, 5) == (pytest.approx(0, abs=1e-12), None)


def test_more_layers_of_a_list_that_do_unlike_things_are_said_to_change_the_function():
    class Listed(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(3, 2)
            self.layers = nn.ModuleList(nn.ParameterList([torch.ones(3)]) for _ in range(depth))

        def forward(self, x):
            first, *others = self.layers
            return self.two(F.rms_norm(self.one(x), (3,), first[0]) + sum(o[0] for o in others))

    error, place = grown(Listed, 2, 3)
    assert error > 1e-3 and place == "two"


def test_layers_of_two_kinds_that_come_in_another_order_are_said_to_change_the_function():
    class Block(nn.Module):
        def __init__(self, normed):
            super().__init__()
            self.inside = nn.Sequential(*([nn.LayerNorm(6)] if normed else []), nn.Linear(6, 6))

        def forward(self, x):
            return x + self.inside(x).tanh()

    class Net(nn.Module):
        def __init__(self, kinds):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)
            self.layers = nn.Sequential(*(Block(kind == "n") for kind in kinds))

        def forward(self, x):
            return self.two(self.layers(self.one(x)))

    assert grown(Net, "n-n-", "nn--nn--") == (pytest.approx(0, abs=1e-12), None)
    error, place = grown(Net, "n-n-", "nn---")
    assert error > 1e-3 and place == "layers.1.inside.0"


def test_layers_that_are_lost_are_counted():
    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Linear(4, width), nn.Linear(width, 2)
            self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(12 // width))

        def forward(self, x):
            x = self.one(x)
            for layer in self.layers:
                x = x + layer(x).tanh()
            return self.two(x)

    error, place = grown(Net, 3, 6)
    assert error > 1e-3 and place == "layers.1"


@pytest.mark.parametrize("shortcut", [3, 5])
def test_a_shortcut_of_one_width_only_is_said_to_change_the_function(shortcut):
    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Linear(4, width), nn.Linear(width, width)
            self.head, self.shortcut = nn.Linear(width, 2), width == shortcut

        def forward(self, x):
            x = self.one(x)
            written = self.two(x.relu())
            return self.head(x + written if self.shortcut else written)

    error, place = grown(Net, 3, 5)
    assert error > 1e-3 and place == "head"


def test_a_parameter_that_the_forward_does_not_use_stays_as_it_was_built():
    class Spare(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Linear(4, width), nn.Linear(width, 2)
            self.spare = nn.Parameter(torch.full((width,), float(width)))

        def forward(self, x):
            return self.two(self.one(x))

    small, large = Spare(3), Spare(5)
    plan = ligo.pair(small, large, torch.randn(2, 4))
    assert [row.pattern for row in plan.unused] == ["spare"]
    ligo.Operator(plan, small, "lemon").bake(large)
    assert large.spare.tolist() == [5] * 5
    assert grown(Spare, 3, 5) == (pytest.approx(0, abs=1e-12), None)


def test_a_norm_at_the_end_of_a_branch_writes_by_its_gain_and_its_shift():
    """As in Swin V2."""

    class Block(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.one, self.norm = nn.Linear(8, 8), norm

        def forward(self, x):
            return x + self.norm(self.one(x).mT).mT

    class Net(nn.Module):
        def __init__(self, norm, depth):
            super().__init__()
            self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
            self.blocks = nn.Sequential(*(Block(norm()) for _ in range(depth)))

        def forward(self, x):
            return self.head(self.blocks(self.stem(x)[:, None]))[:, 0]

    norms = (
        lambda: Last(nn.LayerNorm(8)), lambda: nn.BatchNorm1d(8), lambda: nn.GroupNorm(2, 8),
        lambda: Last(nn.RMSNorm(8)),
    )  # fmt: skip
    for norm in norms:
        change, place = grown(lambda depth, norm=norm: Net(norm, depth), 2, 5)
        assert change < 1e-10 and place is None, norm()


class Last(nn.Module):
    """A norm over channels that stand before positions."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.mT).mT


class Stream(nn.Module):
    """Blocks between a stem and a head."""

    def __init__(self, block, depth, width):
        super().__init__()
        self.stem, self.head = nn.Linear(4, width), nn.Linear(width, 2)
        self.blocks = nn.Sequential(*(block() for _ in range(depth)))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


def gated(x):
    return x * torch.sigmoid(x.mean(-1, keepdim=True))


FUNCTIONS = {"a product of activations": gated}


@pytest.mark.parametrize(
    "function", ["relu", "relu_", "silu", "elu_", "hardswish", "prelu", *FUNCTIONS]
)
def test_a_function_in_the_stream_is_applied_once_more_by_a_new_layer(function):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.prelu = nn.Linear(8, 8), nn.Linear(8, 8), nn.PReLU()

        def forward(self, x):
            apply = {"prelu": self.prelu, **FUNCTIONS}.get(function) or getattr(F, function)
            return apply(x + self.two(apply(self.one(x))))

    change, place = grown(lambda depth: Stream(Block, depth, 8), 2, 4)
    if function.startswith("relu"):
        assert change < 1e-10 and place is None
    else:
        assert change > 1e-3 and place == "blocks.2.one"


def test_a_norm_over_what_was_joined_needs_all_of_it_to_grow_alike():
    class Joined(nn.Module):
        def __init__(self, widths):
            super().__init__()
            self.one, self.two = nn.Linear(4, widths[0]), nn.Linear(4, widths[1])
            self.norm, self.out = nn.LayerNorm(sum(widths)), nn.Linear(sum(widths), 2)

        def forward(self, x):
            return self.out(self.norm(torch.cat([self.one(x), self.two(x)], -1)))

    assert grown(Joined, (2, 3), (4, 6)) == (pytest.approx(0, abs=1e-12), None)
    for small, large in (((2, 3), (4, 9)), ((2, 4), (3, 6))):
        error, place = grown(Joined, small, large)
        assert error > KEPT and place == "norm"


@pytest.mark.parametrize(
    ("between", "kept"),
    [
        (lambda q, k: q.tanh(), False),
        (lambda q, k: q.softmax(-1), False),
        (lambda q, k: q * k, False),
        (lambda q, k: F.normalize(q), True),
        (lambda q, k: q / q.shape[-1] ** 0.5, True),
        (lambda q, k: F.normalize(q, dim=-1) / q.shape[-1] ** 0.5, False),
    ],
)
def test_what_stands_before_a_product_of_activations_decides_whether_it_is_kept(between, kept):
    class Scored(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.query, self.key = nn.Linear(4, width), nn.Linear(4, width)

        def forward(self, x):
            query, key = self.query(x), self.key(x)
            return between(query, key) @ key.T

    error, place = grown(Scored, 3, 6)
    assert (error < 1e-12) == kept and place is None  # behind the last module


def test_a_gain_on_queries_is_said_to_change_them():
    class Scored(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.query, self.key = nn.Linear(4, width), nn.Linear(4, width)
            self.gain = nn.Parameter(torch.ones(width))

        def forward(self, x):
            return self.query(x) * self.gain @ self.key(x).T

    error, place = grown(Scored, 3, 6)
    assert error > KEPT and place is None  # behind the last module


def test_an_axis_whose_entries_are_taken_in_order_is_told_apart():
    network = Around(lambda x: x.cumsum(-1), 5)
    x = torch.randn(3, 4)
    assert ligo.trace(network, x).axes["in"].pinned == "it is summed up in order"
    assert ligo.prove(network, x)["in"] > 0.1


def test_an_axis_that_is_averaged_away_is_no_output():
    class Pooled(nn.Module):
        def __init__(self, tokens):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6 * tokens), nn.Linear(6, 2)

        def forward(self, x):
            return self.two(self.one(x).view(len(x), -1, 6).tanh().mean(1))

    axes = ligo.trace(Pooled(3), torch.randn(2, 4)).axes
    assert [axis.length for axis in axes.values() if axis.pinned is None] == [3, 6]
    assert grown(Pooled, 3, 6) == (pytest.approx(0, abs=1e-12), None)


def test_positions_that_are_shuffled_away_are_told_apart():
    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.conv, self.two = nn.Linear(4, 12), nn.Conv2d(3, 8, 1), nn.Linear(32, 2)

        def forward(self, x):
            return self.two(F.pixel_shuffle(self.conv(self.one(x).view(-1, 3, 2, 2)), 2).flatten(1))

    network, x = Shuffled(), torch.randn(2, 4)
    axes = ligo.trace(network, x).axes
    for name, error in ligo.prove(network, x).items():
        assert (error < 1e-12) == (axes[name].pinned is None), axes[name]


def test_what_follows_the_last_layer_computes_with_the_same_numbers():
    class Scaled(nn.Module):
        """Every layer reads the stream times a number, as does the head."""

        def __init__(self, *numbers):
            super().__init__()
            self.numbers = numbers
            self.stem, self.head = nn.Linear(4, 3), nn.Linear(3, 2)
            self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in numbers[1:])

        def forward(self, x):
            x = self.stem(x)
            for layer, number in zip(self.layers, self.numbers, strict=False):
                x = x + layer(x * number).tanh()
            return self.head(x * self.numbers[-1])

    kept = grown(lambda numbers: Scaled(*numbers), (2.0, 3.0), (2.0, 5.0, 3.0))
    error, place = grown(lambda numbers: Scaled(*numbers), (2.0, 3.0), (2.0, 3.0, 5.0))
    assert kept == (pytest.approx(0, abs=1e-12), None)
    assert error > 1e-3 and place == "head"


class Rest(nn.Module):
    """Begins with a residual layer."""

    def __init__(self, rest, width):
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
        self.own, self.rest = nn.Parameter(torch.ones(width)), rest

    def forward(self, x):
        return self.rest(self, x + self.one(x).tanh())


RESTS = {  # what follows in the block, and whether a new one passes on what it gets
    "nothing": (lambda block, x: x + block.own * block.two(x), True),
    "a bias": (lambda block, x: block.own + x + block.two(x), True),
    "a gain": (lambda block, x: (x + block.two(x)) * block.own, True),
    "relu": (lambda block, x: (x + block.two(x) * block.own).relu(), True),
    "gelu": (lambda block, x: F.gelu(x + block.two(x) * block.own), False),
    "a layer": (lambda block, x: block.two(x) * block.own, False),
    "rms norm": (lambda block, x: F.rms_norm(x + block.two(x), (6,), block.own), True),
    "itself": (lambda block, x: x + x.flip(0) + block.two(x) * block.own, False),
    "a mean": (lambda block, x: x.mean(0) + block.two(x) * block.own, False),
    "softmax": (lambda block, x: (x + block.two(x) * block.own).softmax(-1), False),
}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(("rest", "passes"), RESTS.values(), ids=RESTS)
def test_a_new_layer_passes_on_what_it_gets_or_is_said_not_to(rest, passes, depth):
    change, place = grown(lambda depth: Stream(lambda: Rest(rest, 6), depth, 6), depth, depth + 2)
    assert (change < 1e-12) == (place is None) == passes


def test_what_is_added_where_a_layer_is_called_need_not_be_returned_by_it():
    class Net(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(depth))

        def forward(self, x):
            x = self.stem(x)
            for layer in self.layers:
                x = x + layer(F.layer_norm(x, (6,))).tanh()
            return self.head(x)

    change, place = grown(Net, 1, 3)
    assert change < 1e-12 and place is None


@pytest.mark.parametrize(("width", "depth"), [(12, 2), (18, 3), (6, 4)])
def test_a_tied_table_that_reads_the_last_norm_of_a_stack_keeps_its_function(width, depth):
    assert changed(TiedPostNorm(6), TiedPostNorm(width, depth), TOKENS)[0] <= KEPT


def test_what_a_tied_table_does_not_read_alone_is_written_as_before():
    class Read(TiedPostNorm):
        def __init__(self, width):
            super().__init__(width)
            self.head = nn.Linear(width, 50)

        def forward(self, input_ids):
            x = self.table(input_ids)
            for layer in self.layers:
                x = layer["norm"](x + layer["inside"](x).tanh())
            return x @ self.table.weight.T + self.head(x)

    change, plan = changed(Read(6), Read(12), TOKENS)
    assert change > KEPT and not any(row.tied for row in plan.rows)
