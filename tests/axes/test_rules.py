"""One small network for every kind of operation: its axes are proved, and it grows as it was.

The oracle is torch: permuted entries of an axis must change the output exactly where tracing says
that the axis stays, and the grown network must compute what the small one does.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lightning_ligo as ligo
from lightning_ligo.axes.proof import TOLERANCE
from networks import cast, measured, output, randomised

SEQUENCES = {"x": torch.linspace(-1, 1, 36).sin().mul(7).cos().reshape(3, 4, 3)}
SIGNALS = {"x": torch.linspace(-1, 1, 2 * 3 * 8).sin().mul(99).cos().reshape(2, 3, 8)}
IMAGES = {"x": torch.linspace(-1, 1, 2 * 3 * 64).sin().mul(99).cos().reshape(2, 3, 8, 8)}
VOLUMES = {"x": torch.linspace(-1, 1, 3 * 256).sin().mul(99).cos().reshape(1, 3, 4, 8, 8)}


class Between(nn.Module):
    """A linear or a convolution, then what is tested, with modules of its own, then a linear.

    (batch, positions, 3) or (batch, 3, *space) to (batch, positions, 5) or (batch, 5).
    """

    def __init__(self, width, function, make, rank):
        super().__init__()
        self.embed = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank](
            3, width, *([3, 1, 1] if rank else [])
        )
        for name, made in (make(width) if make else {}).items():
            setattr(self, name, made if isinstance(made, nn.Module) else nn.Parameter(made))
        self.head = nn.Linear(width, 5)
        self.function, self.rank = function, rank

    def forward(self, x):
        x = self.function(self, self.embed(x))
        if self.rank:
            weights = torch.linspace(
                1, 2, x[0, 0].numel(), dtype=x.dtype
            )  # no position like another
            x = x.flatten(2) @ weights
        return self.head(x)


class Attention(nn.Module):
    """(batch, positions, 3) to (batch, positions, 5); ``score`` and ``mix`` are what is tested."""

    def __init__(self, width, score=None, mix=None, make=None, heads=None):
        super().__init__()
        self.heads = heads or width // 4
        self.embed, self.qkv = nn.Linear(3, width), nn.Linear(width, 3 * width)
        self.proj, self.head = nn.Linear(width, width), nn.Linear(width, 5)
        self.score, self.mix = score, mix
        for name, made in (make(self.heads) if make else {}).items():
            setattr(self, name, made if isinstance(made, nn.Module) else nn.Parameter(made))

    def forward(self, x):
        x = self.embed(x)
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)
        scores = self.score(self, q, k) if self.score else q @ k.mT / 2
        mixed = (self.mix or (lambda self, s, v: s.softmax(-1) @ v))(self, scores, v)
        return self.head(self.proj(mixed.transpose(1, 2).flatten(2)))


# What is tested --------------------------------------------------------------------------------


def two_layers(width):
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def experts(width):
    return {
        "router": nn.Linear(width, 4),
        "experts": nn.ModuleList(two_layers(width) for _ in range(4)),
    }


def routed_by_loop(m, x):
    tokens = x.flatten(0, 1)
    weights, chosen = m.router(tokens).softmax(-1).topk(2)
    weights = weights / weights.sum(-1, keepdim=True)
    out = torch.zeros_like(tokens)
    for number, expert in enumerate(m.experts):
        rows, slots = torch.where(chosen == number)
        out.index_add_(0, rows, expert(tokens[rows]) * weights[rows, slots, None])
    return x + out.reshape(x.shape)


def routed_by_index_put(m, x):
    tokens = x.flatten(0, 1)
    chosen = m.router(tokens).argmax(-1)
    out = torch.empty_like(tokens)
    for number, expert in enumerate(m.experts):
        out[chosen == number] = expert(tokens[chosen == number])
    return x + out.reshape(x.shape)


def routed_by_scatter(m, x):
    gates = m.router(x).softmax(-1)
    weights, chosen = gates.topk(2)
    mask = torch.zeros_like(gates).scatter(-1, chosen, weights)
    return x + (torch.stack([e(x) for e in m.experts], -1) * mask[..., None, :]).sum(-1)


def routed_by_one_hot(m, x):
    gates = m.router(x).softmax(-1)
    mask = F.one_hot(gates.argmax(-1), 4).to(x.dtype) * gates
    return x + torch.einsum("bte,bted->btd", mask, torch.stack([e(x) for e in m.experts], 2))


def rotary(m, x):
    angles = torch.arange(8.0, dtype=x.dtype).reshape(4, 2)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2, 2))) * torch.polar(
        torch.ones_like(angles), angles
    ).unsqueeze(1)
    return torch.view_as_real(turned).flatten(2)


def global_filter(m, x):
    return torch.fft.irfft(torch.fft.rfft(x, dim=1) * torch.view_as_complex(m.gain), n=4, dim=1)


def standardised(m, x):
    weight = F.batch_norm(m.weight.reshape(1, len(m.weight), -1), None, None, training=True)
    return F.conv2d(x, weight.reshape_as(m.weight))


def patched(m, x):
    columns = m.linear(F.unfold(x, 2, stride=2).mT).mT
    return F.fold(columns, 8, 2, stride=2)


def setitem(m, x):
    x = x.clone()
    x[:, 1] = m.linear(x[:, 1])
    return x


def along(x, *index):
    """An index for the positions, the same for all channels."""
    return torch.tensor(index)[None, :, None].expand(len(x), -1, x.shape[2])


def linear(width):
    return {"linear": nn.Linear(width, width)}


def vector(width):
    return {"vector": torch.randn(width)}


def square(width):
    return {"square": torch.randn(width, width)}


def positions(width):
    return {"between": torch.randn(4, 4)}


def distances(count):
    return (torch.arange(count)[None] - torch.arange(count)[:, None]).abs()


COUNTED = "which counts every copy"
NORMED = "what a weight is normed over"
UNEVEN = "no multiple, under"
SEQUENCE = {
    # linear algebra
    "einsum": (lambda m, x: torch.einsum("btc,cd->btd", x, m.square), square),
    "einsum over heads": (
        lambda m, x: torch.einsum("btc,hcd->bthd", x, m.heads).flatten(2),
        lambda width: {"heads": torch.randn(width // 4, width, 4)},
    ),
    "bmm": (lambda m, x: torch.bmm(m.between.expand(3, -1, -1), x), positions),
    "baddbmm": (lambda m, x: torch.baddbmm(m.vector, x, m.square.expand(3, -1, -1)),
                lambda width: {**vector(width), **square(width)}),
    "addbmm": (lambda m, x: x + torch.addbmm(m.vector, m.between.expand(3, -1, -1), x),
               lambda width: {**vector(width), **positions(width)}),
    "matmul from the left": (lambda m, x: m.between @ x, positions),
    "matmul with a vector": (lambda m, x: x * (x @ m.vector)[..., None], vector),
    "outer": (lambda m, x: x * torch.outer(m.four, m.vector),
              lambda width: {"four": torch.randn(4), **vector(width)}),
    "bilinear": (lambda m, x: m.bilinear(x, x),
                 lambda width: {"bilinear": nn.Bilinear(width, width, width)}),
    "triangle": (lambda m, x: m.between.tril().softmax(-1) @ x, positions),
    # routing, lookup and writing by index
    "experts, index_add": (routed_by_loop, experts),
    "experts, index_put": (routed_by_index_put, experts),
    "experts, scatter": (routed_by_scatter, experts),
    "experts, one_hot": (routed_by_one_hot, experts),
    "one_hot of a constant": (
        lambda m, x: x + F.one_hot(torch.arange(4) % 3, 3).to(x.dtype) @ m.table,
        lambda width: {"table": torch.randn(3, width)},
    ),
    "embedding_bag": (lambda m, x: x + m.bag(torch.tensor([[1, 2], [3, 4], [0, 1]]))[:, None],
                      lambda width: {"bag": nn.EmbeddingBag(6, width)}),
    "index_put, accumulating": (
        lambda m, x: x.index_put((torch.tensor([0]),), m.token, accumulate=True),
        lambda width: {"token": torch.randn(4, width)},
    ),
    "index_copy": (lambda m, x: x.index_copy(1, torch.tensor([2, 0]), m.linear(x[:, :2])), linear),
    "setitem": (setitem, linear),
    "scatter": (lambda m, x: torch.zeros_like(x).scatter(1, along(x, 2, 0, 1, 3), x), None),
    "scatter_add": (lambda m, x: torch.zeros_like(x).scatter_add(1, along(x, 1, 0, 1, 0), x), None),
    "scatter_reduce": (
        lambda m, x: torch.zeros_like(x).scatter_reduce(1, along(x, 1, 0, 1, 0), x, "amax"), None),
    "gather": (lambda m, x: x.gather(1, along(x, 2, 0, 1)), None),
    "index_select": (lambda m, x: x.index_select(1, torch.tensor([2, 0])), None),
    # entry by entry, in place
    "in place": (lambda m, x: F.relu_(x.add_(1).mul_(m.vector).clamp_(-1, 1)), vector),
    "where": (lambda m, x: torch.where(x > 0, x, m.vector), vector),
    "masked_fill_": (lambda m, x: x.masked_fill_(torch.arange(4)[:, None] > 2, 0.3), None),
    "lerp": (lambda m, x: torch.lerp(x, m.linear(x), 0.3), linear),
    "addcmul": (lambda m, x: torch.addcmul(x, m.linear(x), m.vector),
                lambda width: {**linear(width), **vector(width)}),
    "prelu": (lambda m, x: m.prelu(x.mT).mT, lambda width: {"prelu": nn.PReLU(width)}),
    "prelu of one": (lambda m, x: m.prelu(x), lambda width: {"prelu": nn.PReLU()}),
    "glu": (lambda m, x: F.glu(m.gated(x)), lambda w: {"gated": nn.Linear(w, 2 * w)}),
    # moving
    "roll, flip, cumsum": (lambda m, x: x.roll(1, 1) + x.flip(1) + x.cumsum(1), None),
    "cumprod, cummax, logcumsumexp": (
        lambda m, x: x.cumprod(1) + x.cummax(1)[0] + x.logcumsumexp(1), None),
    "as_strided": (lambda m, x: m.linear(x.as_strided(x.size(), x.stride())), linear),
    "as_strided to another shape": (
        lambda m, x: x.as_strided((3, 2, x.shape[2]), (4 * x.shape[2], 2 * x.shape[2], 1)), None),
    "repeat": (lambda m, x: x.repeat(1, 2, 1).repeat_interleave(2, 1), None),
    "pad, narrow": (lambda m, x: F.pad(x, (0, 0, 1, 2)).narrow(1, 0, 5), None),
    "movedim, unflatten": (
        lambda m, x: x.unflatten(-1, (-1, 4)).movedim(2, 1).flatten(1, 2)
        .unflatten(1, (-1, 4)).movedim(1, 2).flatten(2), None),
    "tensor_split": (lambda m, x: torch.cat(x.tensor_split([1], 1)[::-1], 1), None),
    "stack": (lambda m, x: torch.stack([x, m.linear(x)]).mean(0), linear),
    # complex numbers
    "rotary of complex numbers": (rotary, None),
    "fft over positions": (lambda m, x: torch.fft.fft(x, dim=1).real, None),
    "global filter": (global_filter, lambda width: {"gain": torch.randn(3, width, 2)}),
    # losses, of which a part is added as a penalty would be
    "cross_entropy": (
        lambda m, x: x + F.cross_entropy(m.classes(x).flatten(0, 1), torch.arange(12) % 7),
        lambda width: {"classes": nn.Linear(width, 7)}),
    "nll_loss": (
        lambda m, x: x + F.nll_loss(m.classes(x).mT, torch.arange(12).view(3, 4) % 7,
                                    reduction="none")[..., None],
        lambda width: {"classes": nn.Linear(width, 7)}),
    # norms and reductions
    "extremes": (lambda m, x: x.max(1)[0] + x.amin(1) + x.logsumexp(1), None),
    "normalize": (lambda m, x: F.normalize(x, dim=-1), None, COUNTED),
    "cosine_similarity": (
        lambda m, x: x * F.cosine_similarity(x, m.vector, dim=-1)[..., None], vector,
        COUNTED, COUNTED),
    "standard deviation": (lambda m, x: (x - x.mean(-1, True)) / x.std(-1, keepdim=True), None,
                           UNEVEN),
    "weight_norm": (lambda m, x: m.linear(x), lambda width: {
        "linear": nn.utils.parametrizations.weight_norm(nn.Linear(width, width))}, NORMED),
}  # fmt: skip
SIGNAL = {
    "pooling of signals": (
        lambda m, x: F.avg_pool1d(F.max_pool1d(x, 2), 2) + F.adaptive_avg_pool1d(x, 2)
        + F.adaptive_max_pool1d(x, 2), None),
    "interpolation of signals": (
        lambda m, x: F.interpolate(x, size=16, mode="linear") + F.interpolate(x, size=16)
        + F.interpolate(x, size=16, mode="nearest-exact"), None),
    "padding of signals": (
        lambda m, x: F.pad(x, [1, 1], "reflect") + F.pad(x, [1, 1], "replicate")
        + F.pad(x, [1, 1], "circular"), None),
}  # fmt: skip
IMAGE = {
    "depthwise": (lambda m, x: m.conv(x),
                  lambda w: {"conv": nn.Conv2d(w, w, 3, padding=1, groups=w)}),
    "grouped": (lambda m, x: m.conv(x),
                lambda w: {"conv": nn.Conv2d(w, w, 3, padding=1, groups=w // 4)}),
    "transposed": (lambda m, x: m.conv(x), lambda w: {"conv": nn.ConvTranspose2d(w, w, 2, 2)}),
    "transposed, grouped": (lambda m, x: m.conv(x),
                            lambda w: {"conv": nn.ConvTranspose2d(w, w, 2, 2, groups=w // 4)}),
    "unfold and fold": (patched, lambda w: {"linear": nn.Linear(4 * w, 4 * w)}),
    "windows": (lambda m, x: x.unfold(2, 3, 1).mean(-1), None),
    "pixel_shuffle": (lambda m, x: F.pixel_shuffle(m.conv(x), 2),
                      lambda w: {"conv": nn.Conv2d(w, 4 * w, 1)}),
    "pixel_unshuffle": (lambda m, x: m.conv(F.pixel_unshuffle(x, 2)),
                        lambda w: {"conv": nn.Conv2d(4 * w, w, 1)}),
    "channel_shuffle": (lambda m, x: m.conv(F.channel_shuffle(x, 2)),
                        lambda w: {"conv": nn.Conv2d(w, w, 1)}),
    "interpolate": (
        lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear")
        + F.interpolate(x, size=(16, 16), mode="bicubic") + F.interpolate(x, scale_factor=2), None),
    "interpolate, antialias": (
        lambda m, x: F.interpolate(x, size=(4, 4), mode="bilinear", antialias=True)
        + F.interpolate(x, size=(4, 4), mode="bicubic", antialias=True)
        + F.interpolate(x, size=(4, 4), mode="nearest-exact"), None),
    "grid_sample": (
        lambda m, x: F.grid_sample(x, F.affine_grid(
            torch.tensor([[[0.9, 0.1, 0], [0, 0.8, 0.1]]], dtype=x.dtype).expand(2, -1, -1),
            x.shape, align_corners=False), align_corners=False), None),
    "pooling": (
        lambda m, x: F.max_pool2d(F.avg_pool2d(x, 3, 1, 1), 2) + F.adaptive_avg_pool2d(x, 4)
        + F.adaptive_max_pool2d(x, 4) + F.lp_pool2d(x.abs() + 1, 2, 2), None),
    "max_unpool": (
        lambda m, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), None),
    "padding": (lambda m, x: F.pad(x, [1] * 4, "reflect") + F.pad(x, [1] * 4, "replicate")
                + F.pad(x, [1] * 4, "circular"), None),
    "cross_entropy of pixels": (
        lambda m, x: x + F.cross_entropy(m.classes(x), torch.arange(128).view(2, 8, 8) % 7),
        lambda width: {"classes": nn.Conv2d(width, 7, 1)}),
    "instance norm": (lambda m, x: m.norm(x),
                      lambda w: {"norm": nn.InstanceNorm2d(w, affine=True)}),
    "standardised weights": (standardised, lambda w: {"weight": torch.randn(w, w, 1, 1)}, NORMED),
    "standardised weights, by hand": (
        lambda m, x: F.conv2d(x, m.weight / torch.std_mean(m.weight, (1, 2, 3), keepdim=True)[0]),
        lambda w: {"weight": torch.randn(w, w, 1, 1)}, UNEVEN),
}  # fmt: skip
VOLUME = {
    "pooling of volumes": (
        lambda m, x: F.max_pool3d(F.avg_pool3d(x, 3, 1, 1), 2) + F.adaptive_avg_pool3d(x, (2, 4, 4))
        + F.adaptive_max_pool3d(x, (2, 4, 4))
        + F.interpolate(x, size=(2, 4, 4), mode="trilinear"), None),
    "interpolation of volumes": (
        lambda m, x: F.interpolate(x, size=(2, 4, 4))
        + F.interpolate(x, size=(2, 4, 4), mode="nearest-exact"), None),
    "max_unpool of volumes": (
        lambda m, x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2), None),
    "padding of volumes": (
        lambda m, x: F.pad(x, [1] * 6, "reflect") + F.pad(x, [1] * 6, "replicate"), None),
    "grid_sample of volumes": (
        lambda m, x: F.grid_sample(x, F.affine_grid(
            torch.tensor([[[0.9, 0.1, 0, 0], [0, 0.8, 0.1, 0], [0.1, 0, 0.7, 0]]], dtype=x.dtype),
            x.shape, align_corners=False), align_corners=False), None),
    "convolution of volumes": (lambda m, x: m.conv(x), lambda w: {"conv": nn.Conv3d(w, w, 2, 2)}),
}  # fmt: skip
SCORES = {
    "scaled dot product": {"mix": lambda m, s, v: F.scaled_dot_product_attention(v, v, v)},
    "einsum": {"score": lambda m, q, k: torch.einsum("bhqd,bhkd->bhqk", q, k) / 2,
               "mix": lambda m, s, v: torch.einsum("bhqk,bhkd->bhqd", s.softmax(-1), v)},
    "talking heads": {
        "mix": lambda m, s, v: m.after(m.before(s.movedim(1, 3)).softmax(2)).movedim(3, 1) @ v,
        "make": lambda heads: {n: nn.Linear(heads, heads) for n in ("before", "after")}},
    "slopes of heads": {
        "score": lambda m, q, k: q @ k.mT - m.slopes[:, None, None] * distances(4),
        "make": lambda heads: {"slopes": torch.rand(heads)}},
    "cosine attention": {
        "score": lambda m, q, k: F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * m.scale,
        "make": lambda heads: {"scale": torch.rand(heads, 1, 1)}},
    "masked in place": {
        "score": lambda m, q, k: (q @ k.mT).mul_(0.5).masked_fill_(distances(4) > 2, -torch.inf)},
}  # fmt: skip


def cases():
    tables = (SEQUENCE, SEQUENCES), (SIGNAL, SIGNALS), (IMAGE, IMAGES), (VOLUME, VOLUMES)
    for rank, (table, inputs) in enumerate(tables):
        for name, (function, make, *reasons) in table.items():
            widths = (8, 12)
            yield pytest.param(
                *(lambda w=w, f=function, m=make, r=rank: Between(w, f, m, r) for w in widths),
                inputs, reasons, id=name,
            )  # fmt: skip
    for name, options in SCORES.items():
        for heads in (None, 2) if name != "cosine attention" else (None,):
            yield pytest.param(
                *(lambda w=w, o=options, h=heads: Attention(w, **o, heads=h) for w in (8, 12)),
                SEQUENCES, [], id=f"attention: {name}, {'wider' if heads else 'more'} heads",
            )  # fmt: skip


@pytest.mark.parametrize(("small", "large", "inputs", "reasons"), list(cases()))
def test_an_operation_is_followed(small, large, inputs, reasons):
    torch.manual_seed(0)
    inputs = cast(inputs, torch.float64)
    small, large = randomised(small(), torch.float64), large().double().eval()
    axes = ligo.trace(small, **inputs).axes
    for name, error in ligo.prove(small, **inputs).items():
        assert (error < TOLERANCE) == (axes[name].pinned is None), (axes[name], error)
    plan = ligo.pair(small, large, **inputs)
    told = measured(plan, small, large, inputs)
    assert plan.axes
    ligo.Operator(plan, small, "lemon").bake(large)
    before, after = output(small, inputs), output(large, inputs)
    assert ((after - before).norm() <= 1e-10 * before.norm()) != bool(reasons)
    assert told.kept != bool(reasons), told
