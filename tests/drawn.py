"""Random small networks: what they compute is drawn, the widths of what is hidden are given.

A network is a list of steps. A step is a function of the network, a tensor and the options that
were drawn for it; it makes its modules when it first runs (`Drawn.layer`), so that the same steps
with other widths are the same architecture in another size. Tensors are vectors (batch, features),
sequences (batch, positions, features) or images (batch, channels, height, width).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 3
INPUTS = {"vectors": (4, 5), "sequences": (2, 3, 5), "images": (2, 3, 4, 4), "tokens": (2, 3)}


class Step(NamedTuple):
    function: Callable[..., Tensor]
    options: dict[str, Any]

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.function.__name__}({options})"


class Drawn(nn.Module):
    """The network of these steps, with a linear head of as many classes as all have.

    Args:
        listed: whether its modules stand in a list, where equal ones are taken for a stack.
    """

    def __init__(
        self, kind: str, steps: list[Step], widths: list[int], listed: bool, x: Tensor | None = None
    ) -> None:
        super().__init__()
        self.kind, self.steps, self.widths, self.listed = kind, steps, widths, listed
        self.layers = nn.ModuleList() if listed else nn.Module()
        self.eps = 1e-6  # of norms of its own
        self._made: list[nn.Module] | None = []
        x = inputs(kind) if x is None else x
        self(x.float() if x.is_floating_point() else x)
        self._made = None
        self.double().eval()

    def layer(self, make: Callable[[], nn.Module]) -> nn.Module:
        """The next module of the forward, which is made when the network is."""
        number, self._next = self._next, self._next + 1
        if self._made is not None:
            self._made.append(make())
            if self.listed:
                self.layers.append(self._made[-1])
            else:
                self.layers.add_module(f"layer{number}", self._made[-1])
        return self.layers[number] if self.listed else getattr(self.layers, f"layer{number}")

    def parameter(self, *shape: int) -> Tensor:
        return self.layer(lambda: nn.ParameterList([0.3 * torch.randn(shape)]))[0]

    def linear(self, x: Tensor, width: int, bias: bool = True) -> Tensor:
        return self.layer(lambda: nn.Linear(x.shape[-1], width, bias))(x)

    def conv(self, x: Tensor, width: int, kernel: int = 1, **options: Any) -> Tensor:
        make = options.pop("make", nn.Conv2d)
        return self.layer(lambda: make(x.shape[1], width, kernel, **options))(x)

    def project(self, x: Tensor, width: int, bias: bool = True) -> Tensor:
        """A linear layer over the features, or over the channels of an image."""
        return (self.conv if x.dim() == 4 else self.linear)(x, width, bias=bias)

    def run(self, steps: list[Step], x: Tensor) -> Tensor:
        for step in steps:
            x = step.function(self, x, **step.options)
        return x

    def forward(self, x: Tensor) -> Tensor:
        self._next = 0
        if self.kind == "tokens":
            x = self.layer(lambda: nn.Embedding(7, self.widths[0]))(x)
        return self.linear(self.run(self.steps, x).flatten(1), CLASSES)


class Block(Drawn):
    """A layer of a deep network: what its steps make of a tensor, as wide as that."""

    def forward(self, x: Tensor) -> Tensor:
        self._next = 0
        out = self.run(self.steps, x)
        kept = all(step.function in KEEPING for step in self.steps)
        return out if kept else self.project(out, x.shape[features(x)])


class Deep(nn.Module):
    """Blocks of the same steps, as many as the last of the widths says."""

    def __init__(self, kind: str, steps: list[Step], widths: list[int]) -> None:
        super().__init__()
        x, width, depth = inputs(kind), widths[0], widths[-1]
        if kind == "tokens":
            self.stem = nn.Embedding(7, width)
        elif kind == "images":
            self.stem = nn.Conv2d(x.shape[1], width, 1)
        else:
            self.stem = nn.Linear(x.shape[-1], width)
        x = self.stem(x.float() if x.is_floating_point() else x).detach()
        blocks = [Block(kind, steps, widths, False, x) for _ in range(depth)]
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(x[0].numel(), CLASSES)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).flatten(1))


def inputs(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "tokens":
        return torch.randint(7, INPUTS[kind], generator=generator)
    return torch.randn(INPUTS[kind], generator=generator, dtype=torch.float64)


def features(x: Tensor) -> int:
    """Where the features of a tensor are: in an image the channels."""
    return 1 if x.dim() == 4 else -1


# Steps of tensors of every kind ------------------------------------------------------------------

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh,
               "leaky": F.leaky_relu, "elu": F.elu, "square": torch.square}  # fmt: skip


def project(net: Drawn, x: Tensor, width: int, bias: bool) -> Tensor:
    return net.project(x, net.widths[width], bias)


def activate(net: Drawn, x: Tensor, name: str) -> Tensor:
    return ACTIVATIONS[name](x)


def norm(net: Drawn, x: Tensor, name: str, affine: bool) -> Tensor:
    """A norm over the features, of each position by itself."""
    make = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[name]
    x = x.movedim(1, -1) if x.dim() == 4 else x
    x = net.layer(lambda: make(x.shape[-1], elementwise_affine=affine))(x)
    return x.movedim(-1, 1) if x.dim() == 4 else x


def own_rms(net: Drawn, x: Tensor, gain: bool) -> Tensor:
    """As Hugging Face's Llama and T5 write it."""
    x = x.movedim(1, -1) if x.dim() == 4 else x
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + net.eps)
    x = x * net.parameter(x.shape[-1]) if gain else x
    return x.movedim(-1, 1) if x.dim() == 4 else x


def residual(net: Drawn, x: Tensor, inner: list[Step], scale: bool, norm_first: bool) -> Tensor:
    make = lambda: nn.LayerNorm(x.shape[-1])  # noqa: E731
    added = net.run(inner, net.layer(make)(x) if norm_first and x.dim() < 4 else x)
    added = net.project(added, x.shape[features(x)])
    if scale:
        gain = net.parameter(x.shape[features(x)])
        added = added * (gain.view(-1, 1, 1) if x.dim() == 4 else gain)
    if norm_first or x.dim() == 4:
        return x + added
    return net.layer(make)(x + added)


def concatenate(net: Drawn, x: Tensor, first: list[Step], second: list[Step]) -> Tensor:
    return torch.cat([net.run(first, x), net.run(second, x)], features(x))


def add(net: Drawn, x: Tensor, first: list[Step], second: list[Step], width: int) -> Tensor:
    one, two = (net.project(net.run(steps, x), net.widths[width]) for steps in (first, second))
    return one + two


def split(net: Drawn, x: Tensor, first: int, second: int, inner: list[Step], join: bool) -> Tensor:
    """Two widths of one projection; the first goes through layers of its own."""
    lengths = [net.widths[first], net.widths[second]]
    one, two = net.project(x, sum(lengths)).split(lengths, features(x))
    one = net.run(inner, one)
    if join:
        return torch.cat([two, one], features(x))
    return net.project(one, lengths[1]) * two


def gate(net: Drawn, x: Tensor, width: int, how: str, name: str) -> Tensor:
    """The product of two halves of a projection, or of two projections."""
    dim, width = features(x), net.widths[width]
    act = ACTIVATIONS[name]
    if how == "glu":
        return F.glu(net.project(x, 2 * width), dim)
    if how == "chunk":
        value, gate = net.project(x, 2 * width).chunk(2, dim)
    elif how == "narrow":
        both = net.project(x, 2 * width)
        value, gate = both.narrow(dim, 0, width), both.narrow(dim, width, width)
    else:
        value, gate = net.project(x, width), net.project(x, width, bias=False)
    return value * act(gate)


def twice(net: Drawn, x: Tensor, name: str) -> Tensor:
    """One layer at two places."""
    number = net._next
    x = ACTIVATIONS[name](net.project(x, x.shape[features(x)]))
    net._next, made = number, net._made
    net._made = None
    x = net.project(x, x.shape[features(x)])
    net._made = made
    return x


def affine(net: Drawn, x: Tensor, gain: bool) -> Tensor:
    """A gain or a bias of its own."""
    parameter = net.parameter(x.shape[features(x)])
    parameter = parameter.view(-1, 1, 1) if x.dim() == 4 else parameter
    return x * parameter if gain else x + parameter


def spread(net: Drawn, x: Tensor, width: int) -> Tensor:
    """One number times many, as a time by learned frequencies, and a phase for each."""
    shape = (-1, 1, 1) if x.dim() == 4 else (-1,)
    frequencies = net.parameter(net.widths[width]).view(shape)
    return net.project(x, 1) * frequencies + net.parameter(net.widths[width]).view(shape)


def scored(net: Drawn, x: Tensor) -> Tensor:
    """Scaled by what it is scored by."""
    x = x.movedim(1, -1) if x.dim() == 4 else x
    parameter = net.parameter(x.shape[-1])
    x = x * parameter + torch.tanh(x @ parameter).unsqueeze(-1)
    return x.movedim(-1, 1) if x.dim() == 4 else x


def centred(net: Drawn, x: Tensor) -> Tensor:
    return x - x.mean(features(x), keepdim=True)


def softmax(net: Drawn, x: Tensor) -> Tensor:
    return x.softmax(features(x))


def l2_normalised(net: Drawn, x: Tensor) -> Tensor:
    return F.normalize(x, dim=features(x))


# Steps of vectors and sequences ------------------------------------------------------------------


def heads(net: Drawn, x: Tensor, heads: int, width: int, how: str, group: int) -> Tensor:
    """Attention of a sequence over itself; a ``group`` of heads shares its keys and values."""
    count, width = net.widths[heads], net.widths[width]
    groups = (count * group, count, count)
    if how == "fused":
        qkv = net.linear(x, 3 * count * width).unflatten(-1, (3, count, width))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
    else:
        query, key, value = (
            net.linear(x, number * width).unflatten(-1, (number, width)).transpose(1, 2)
            for number in groups
        )
        key, value = (t.repeat_interleave(group, 1) if group > 1 else t for t in (key, value))
    if how == "own":
        weights = (query @ key.transpose(-2, -1) * width**-0.5).softmax(-1)
        out = weights @ value
    else:
        out = F.scaled_dot_product_attention(query, key, value)
    return out.transpose(1, 2).flatten(2)


def attention(net: Drawn, x: Tensor, heads: int, width: int) -> Tensor:
    """Torch's own module, in a stream of heads x width."""
    embed = net.widths[heads] * net.widths[width]
    x = net.linear(x, embed)
    make = lambda: nn.MultiheadAttention(embed, net.widths[heads], batch_first=True)  # noqa: E731
    return net.layer(make)(x, x, x, need_weights=False)[0]


def tied(net: Drawn, x: Tensor, width: int) -> Tensor:
    """An autoencoder whose decoder is its encoder, transposed."""
    weight = net.parameter(net.widths[width], x.shape[-1])
    return torch.tanh(x @ weight.T) @ weight


def grouped_norm(net: Drawn, x: Tensor, heads: int, width: int) -> Tensor:
    """A norm of each head by itself."""
    lengths = net.widths[heads], net.widths[width]
    x = net.linear(x, lengths[0] * lengths[1]).unflatten(-1, lengths)
    return net.layer(lambda: nn.LayerNorm(lengths[1]))(x).flatten(-2)


def interleaved(net: Drawn, x: Tensor, width: int) -> Tensor:
    x = net.linear(x, 2 * net.widths[width])
    return x[..., ::2] * x[..., 1::2].tanh()


def summed(net: Drawn, x: Tensor) -> Tensor:
    return x.cumsum(-1)


def mirrored(net: Drawn, x: Tensor) -> Tensor:
    return x + x.flip(-1)


def sorted_(net: Drawn, x: Tensor) -> Tensor:
    return x.sort(-1)[0]


def routed(net: Drawn, x: Tensor, width: int, table: bool) -> Tensor:
    """Added: what the expert makes of a position that it chooses, or the row of a table."""
    rows = x.flatten(0, -2)
    chosen, added = net.linear(rows, 3).argmax(-1), torch.zeros_like(rows)
    if table:
        return x + net.parameter(3, x.shape[-1])[chosen].view_as(x)
    for expert in range(3):
        at = torch.where(chosen == expert)[0]
        hidden = net.linear(rows[at], net.widths[width]).tanh()
        added.index_add_(0, at, net.linear(hidden, x.shape[-1]))
    return x + added.view_as(x)


def batch_norm(net: Drawn, x: Tensor, affine: bool) -> Tensor:
    make = nn.BatchNorm2d if x.dim() == 4 else nn.BatchNorm1d
    return net.layer(lambda: make(x.shape[1], affine=affine))(x)


# Steps of sequences ------------------------------------------------------------------------------


def positions(net: Drawn, x: Tensor) -> Tensor:
    return x + net.parameter(*x.shape[1:])


def class_token(net: Drawn, x: Tensor) -> Tensor:
    token = net.parameter(1, 1, x.shape[-1])
    return torch.cat([token.expand(len(x), -1, -1), x], 1)


def mix_positions(net: Drawn, x: Tensor, width: int) -> Tensor:
    hidden = F.gelu(net.linear(x.transpose(1, 2), net.widths[width]))
    return net.linear(hidden, x.shape[1]).transpose(1, 2)


def conv_positions(net: Drawn, x: Tensor, width: int, depthwise: bool) -> Tensor:
    """A convolution along the sequence."""
    x = x.transpose(1, 2)
    length = x.shape[1] if depthwise else net.widths[width]
    make = lambda: nn.Conv1d(  # noqa: E731
        x.shape[1], length, 3, padding=1, groups=length if depthwise else 1
    )
    return net.layer(make)(x).transpose(1, 2)


def pool_positions(net: Drawn, x: Tensor, how: str) -> Tensor:
    if how == "first":
        return x[:, 0]
    return x.flatten(1) if how == "flatten" else x.mean(1) if how == "mean" else x.amax(1)


# Steps of vectors --------------------------------------------------------------------------------


def to_sequence(net: Drawn, x: Tensor, positions: int, width: int) -> Tensor:
    """Positions that are made by a layer, as a Perceiver's latents."""
    shape = net.widths[positions], net.widths[width]
    return net.linear(x, shape[0] * shape[1]).unflatten(-1, shape)


def to_image(net: Drawn, x: Tensor, width: int) -> Tensor:
    return net.linear(x, 4 * net.widths[width]).unflatten(-1, (net.widths[width], 2, 2))


# Steps of images ---------------------------------------------------------------------------------


def convolve(net: Drawn, x: Tensor, width: int, kernel: int, bias: bool) -> Tensor:
    return net.conv(x, net.widths[width], kernel, padding=kernel // 2, bias=bias)


def depthwise(net: Drawn, x: Tensor, bias: bool) -> Tensor:
    return net.conv(x, x.shape[1], 3, padding=1, groups=x.shape[1], bias=bias)


def grouped(net: Drawn, x: Tensor, groups: int, inner: int, outer: int, up: bool) -> Tensor:
    """A grouped convolution, plain or transposed, of a projection."""
    count, lengths = net.widths[groups], (net.widths[inner], net.widths[outer])
    x = net.conv(x, count * lengths[0])
    if up:
        return net.conv(x, count * lengths[1], 2, stride=2, groups=count, make=nn.ConvTranspose2d)
    return net.conv(x, count * lengths[1], 3, padding=1, groups=count)


def multiplied(net: Drawn, x: Tensor, times: int) -> Tensor:
    """A depthwise convolution with several filters a channel."""
    return net.conv(x, times * x.shape[1], 3, padding=1, groups=x.shape[1])


def transposed(net: Drawn, x: Tensor, width: int) -> Tensor:
    return net.conv(x, net.widths[width], 2, stride=2, make=nn.ConvTranspose2d)


def group_norm(net: Drawn, x: Tensor, groups: int, width: int) -> Tensor:
    """As many groups in every size, or a group more for every ``width`` channels."""
    count, width = net.widths[groups], net.widths[width]
    x = net.conv(x, count * width)
    return net.layer(lambda: nn.GroupNorm(count, count * width))(x)


def instance_norm(net: Drawn, x: Tensor, affine: bool) -> Tensor:
    if x.shape[2:].numel() == 1:  # which torch refuses
        return x
    return net.layer(lambda: nn.InstanceNorm2d(x.shape[1], affine=affine))(x)


def shuffled(net: Drawn, x: Tensor, width: int) -> Tensor:
    """ShuffleNet's channel shuffle of two groups."""
    x = net.conv(x, 2 * net.widths[width])
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def squeezed(net: Drawn, x: Tensor, width: int) -> Tensor:
    """Squeeze and excitation."""
    pooled = F.relu(net.conv(x.mean((2, 3), keepdim=True), net.widths[width]))
    return x * net.conv(pooled, x.shape[1]).sigmoid()


def pixel_shuffled(net: Drawn, x: Tensor, width: int) -> Tensor:
    return F.pixel_shuffle(net.conv(x, 4 * net.widths[width]), 2)


def resized(net: Drawn, x: Tensor, how: str) -> Tensor:
    if how == "nearest" or x.shape[-1] < 2:
        return F.interpolate(x, scale_factor=2)
    return F.max_pool2d(x, 2) if how == "max" else F.avg_pool2d(x, 2)


def flattened(net: Drawn, x: Tensor, how: str) -> Tensor:
    if how == "pool":
        return F.adaptive_avg_pool2d(x, 1).flatten(1)
    return x.flatten(1) if how == "flatten" else x.amax((2, 3))


def patches(net: Drawn, x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


# What is drawn -----------------------------------------------------------------------------------

WIDTH, FLAG = "a width", st.booleans()
NAME = st.sampled_from(sorted(ACTIVATIONS))
INNER = "steps"  # of the same kind as what they are steps of

EVERY = {
    project: {"width": WIDTH, "bias": FLAG},
    activate: {"name": NAME},
    norm: {"name": st.sampled_from(["layer", "rms"]), "affine": FLAG},
    own_rms: {"gain": FLAG},
    residual: {"inner": INNER, "scale": FLAG, "norm_first": FLAG},
    concatenate: {"first": INNER, "second": INNER},
    add: {"first": INNER, "second": INNER, "width": WIDTH},
    split: {"first": WIDTH, "second": WIDTH, "inner": INNER, "join": FLAG},
    gate: {"width": WIDTH, "how": st.sampled_from(["glu", "chunk", "narrow", "two"]), "name": NAME},
    twice: {"name": NAME},
    affine: {"gain": FLAG},
    spread: {"width": WIDTH},
    scored: {},
    centred: {},
    softmax: {},
    l2_normalised: {},
}
FLAT = {
    tied: {"width": WIDTH},
    grouped_norm: {"heads": WIDTH, "width": WIDTH},
    interleaved: {"width": WIDTH},
    summed: {},
    mirrored: {},
    sorted_: {},
    routed: {"width": WIDTH, "table": FLAG},
}
SEQUENCES = {
    heads: {"heads": WIDTH, "width": WIDTH, "how": st.sampled_from(["fused", "own", "torch"]),
            "group": st.sampled_from([1, 1, 2])},
    attention: {"heads": WIDTH, "width": WIDTH},
    positions: {},
    class_token: {},
    mix_positions: {"width": WIDTH},
    conv_positions: {"width": WIDTH, "depthwise": FLAG},
}  # fmt: skip
IMAGES = {
    convolve: {"width": WIDTH, "kernel": st.sampled_from([1, 3]), "bias": FLAG},
    batch_norm: {"affine": FLAG},
    depthwise: {"bias": FLAG},
    grouped: {"groups": WIDTH, "inner": WIDTH, "outer": WIDTH, "up": FLAG},
    multiplied: {"times": st.sampled_from([1, 2])},
    transposed: {"width": WIDTH},
    group_norm: {"groups": WIDTH, "width": WIDTH},
    instance_norm: {"affine": FLAG},
    shuffled: {"width": WIDTH},
    squeezed: {"width": WIDTH},
    pixel_shuffled: {"width": WIDTH},
    resized: {"how": st.sampled_from(["nearest", "max", "mean"])},
}
STEPS = {
    "vectors": {**EVERY, **FLAT, batch_norm: {"affine": FLAG}},
    "sequences": {**EVERY, **FLAT, **SEQUENCES},
    "images": {**EVERY, **IMAGES},
}
MOVES = {  # from one kind to another
    "vectors": {to_sequence: ("sequences", {"positions": WIDTH, "width": WIDTH}),
                to_image: ("images", {"width": WIDTH})},
    "sequences": {pool_positions: ("vectors",
                                   {"how": st.sampled_from(["first", "mean", "max", "flatten"])})},
    "images": {flattened: ("vectors", {"how": st.sampled_from(["pool", "max", "flatten"])}),
               patches: ("sequences", {})},
}  # fmt: skip
KEEPING = {  # the width of what passes
    residual, activate, norm, own_rms, twice, affine, scored, centred, softmax, mirrored,
    l2_normalised, routed, positions, depthwise, batch_norm, squeezed,
}  # fmt: skip
RESHAPING = {class_token, transposed, grouped, pixel_shuffled, resized}  # not within a branch

WIDTHS = 6  # of a network, each of which several steps may have


@st.composite
def steps(draw: Any, kind: str, most: int, depth: int = 0) -> list[Step]:
    """Steps from a kind of tensors to the same one, in the same positions where ``depth > 0``."""
    known = STEPS[kind]
    known = {f: o for f, o in known.items() if not depth or f not in RESHAPING}
    known = {f: o for f, o in known.items() if depth < 2 or INNER not in o.values()}
    drawn = []
    for _ in range(draw(st.integers(0 if depth else 1, most))):
        function = draw(st.sampled_from(list(known)))
        drawn.append(Step(function, _options(draw, known[function], kind, depth)))
    return drawn


def _options(draw: Any, options: dict[str, Any], kind: str, depth: int = 0) -> dict[str, Any]:
    return {
        name: draw(st.integers(0, WIDTHS - 1)) if option is WIDTH
        else draw(steps(kind, 2, depth + 1)) if option is INNER
        else draw(option)
        for name, option in options.items()
    }  # fmt: skip


class Architecture(NamedTuple):
    kind: str
    steps: list[Step]
    listed: bool

    def build(self, widths: list[int]) -> Drawn:
        torch.manual_seed(0)
        return Drawn(*self[:2], widths, self.listed)


@st.composite
def architectures(draw: Any) -> Architecture:
    first = kind = draw(st.sampled_from(sorted(INPUTS)))
    kind = "sequences" if kind == "tokens" else kind
    drawn = draw(steps(kind, 4))
    for _ in range(draw(st.integers(0, 2))):
        move = draw(st.sampled_from(list(MOVES[kind])))
        after, options = MOVES[kind][move]
        drawn.append(Step(move, _options(draw, options, kind)))
        kind = after
        drawn += draw(steps(kind, 3))
    return Architecture(first, drawn, draw(FLAG))


class DeepArchitecture(NamedTuple):
    kind: str
    steps: list[Step]

    def build(self, widths: list[int]) -> Deep:
        torch.manual_seed(0)
        return Deep(*self, widths)


@st.composite
def deep_architectures(draw: Any) -> DeepArchitecture:
    """Blocks that begin with a residual step, on which others may follow."""
    first = draw(st.sampled_from(sorted(INPUTS)))
    kind = "sequences" if first == "tokens" else first
    begin = Step(residual, _options(draw, EVERY[residual], kind))
    return DeepArchitecture(first, [begin, *draw(steps(kind, 2, 1))])


def widths(least: int = 1, most: int = 6) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(least, most), min_size=WIDTHS, max_size=WIDTHS)
