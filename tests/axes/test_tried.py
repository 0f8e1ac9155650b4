"""Operations without a rule are asked by permuting their inputs.

The oracle is torch: an axis is pinned exactly where permuting it changes the output, and the grown
network computes what the small one does, unless it says that it does not.
"""

import re
import time

import pytest
import torch
from test_rules import SEQUENCES, Attention, Between, linear, square, vector
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import lightning_ligo as ligo
from lightning_ligo.axes.proof import TOLERANCE
from lightning_ligo.axes.trial import ENOUGH, Trial
from networks import measured, randomised
from operations import affine, fourier

X = SEQUENCES["x"].double()


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


@torch.library.custom_op("ligo_tests::linear", mutates_args=())
def strange(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight, bias)


def classes(width):
    return {"classes": nn.Linear(width, 7)}


def adjacency(x):
    edges = torch.tensor([[0, 1, 2, 3, 3], [1, 0, 3, 2, 0]])
    return torch.sparse_coo_tensor(
        edges, torch.ones(5, dtype=x.dtype), (4, 4), check_invariants=False
    )


def loss(function):
    return lambda m, x: x + function(x, x.flip(1))


KEPT = {
    "mse_loss": (loss(F.mse_loss), None),
    "huber_loss of entries": (
        lambda m, x: F.huber_loss(x, m.vector.expand_as(x), reduction="none"), vector),
    "binary_cross_entropy": (
        lambda m, x: x + F.binary_cross_entropy(x.sigmoid(), torch.full_like(x, 0.3)), None),
    "soft_margin_loss": (loss(lambda a, b: F.soft_margin_loss(a, b.detach().sign())), None),
    "multi_margin_loss": (
        lambda m, x: x + F.multi_margin_loss(m.classes(x)[:, 0], torch.tensor([0, 1, 2])), classes),
    "ctc_loss": (
        lambda m, x: x + F.ctc_loss(
            m.classes(x).transpose(0, 1).log_softmax(-1), torch.ones(3, 2, dtype=torch.long),
            (4, 4, 4), (2, 2, 2)), classes),
    "log_sigmoid": (lambda m, x: F.logsigmoid(x), None),
    "polar": (lambda m, x: torch.polar(x.abs(), x).real, None),
    "zero_": (lambda m, x: x + x.clone().zero_(), None),
    "aminmax": (lambda m, x: x + sum(torch.aminmax(x, dim=1, keepdim=True)), None),
    "median": (lambda m, x: x - x.median(1, keepdim=True)[0], None),
    "nansum": (lambda m, x: x - x.nansum(1, keepdim=True), None),
    "vdot": (lambda m, x: x * torch.vdot(x[0, 0], m.vector), vector),
    "addmv": (lambda m, x: x + torch.addmv(m.vector, m.square, x[0, 0]),
              lambda width: {**vector(width), **square(width)}),
    "sparse": (lambda m, x: (adjacency(x) @ x[0])[None], None),
    "sparse.mm": (lambda m, x: torch.sparse.mm(adjacency(x), x[0])[None], None),
    "fake quantisation": (
        lambda m, x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127), None),
    "per-sample vmap": (lambda m, x: torch.vmap(lambda y: m.linear(y).tanh())(x), linear),
    "jvp": (lambda m, x: torch.func.jvp(lambda y: m.linear(y).tanh(), (x,), (x,))[1], linear),
    "custom function": (lambda m, x: Cube.apply(x), None),
    "custom operation": (lambda m, x: strange(x, m.linear.weight, m.linear.bias), linear),
    "masked_scatter": (
        lambda m, x: x.masked_scatter(torch.arange(4)[None, :, None] > 2, m.linear(x)), linear),
}  # fmt: skip
TOLD = {
    "renorm": (lambda m, x: x.renorm(2, 0, 1.0), None),
    "trace": (lambda m, x: x * m.square.trace(), square),
    "matrix_exp": (lambda m, x: x @ torch.matrix_exp(m.square), square),
    "histc": (lambda m, x: x + torch.histc(x, 4)[0], None),
}


def networks(function, make):
    torch.manual_seed(0)
    small = randomised(Between(6, function, make, 0), torch.float64)
    return small, Between(12, function, make, 0).double().eval()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch.func.jvp
@pytest.mark.parametrize("name", [*KEPT, *TOLD])
def test_an_operation_without_a_rule_is_tried(name):
    small, large = networks(*(KEPT | TOLD)[name])
    axes = ligo.trace(small, X).axes
    for axis, error in ligo.prove(small, X).items():
        assert (error < TOLERANCE) == (axes[axis].pinned is None), (axes[axis], error)
    before = small(X)
    plan = ligo.pair(small, large, X)
    assert plan.axes
    told = measured(plan, small, large, {"x": X})
    ligo.Operator(plan, small, "lemon").bake(large)
    kept = bool((large(X) - before).norm() <= 1e-7 * before.norm())
    assert (kept, told.kept) == (name in KEPT, name in KEPT), told


def test_what_permuting_mixes_cannot_grow():
    for function, make in (
        (lambda m, x: x @ torch.linalg.qr(m.square)[0], square),
        (lambda m, x: x + x.masked_select(x > 0).sum(), None),
    ):
        with pytest.raises(ValueError, match=r"cannot grow: aten\.\w+.* tells its entries apart"):
            ligo.pair(*networks(function, make), X)


def test_an_output_that_is_not_used_pins_nothing():
    small, large = networks(lambda m, x: x - x.sort(1)[0], None)
    assert ligo.pair(small, large, X).axes
    values, places = (
        networks(lambda m, x, i=i: x + x.kthvalue(2, -1, keepdim=True)[i], None) for i in range(2)
    )
    assert ligo.pair(*values, X).axes == {"hidden": (6, 12)}
    with pytest.raises(ValueError, match="tells its entries apart"):
        ligo.pair(*places, X)


def test_the_plan_names_what_was_tried():
    plan = ligo.pair(*networks(*KEPT["mse_loss"]), X)
    assert plan.tried == ("aten.mse_loss.default",)
    assert "found by trial, not by a rule: aten.mse_loss.default" in str(plan)
    assert ligo.pair(*networks(lambda m, x: x.tanh(), None), X).tried == ()


def test_the_meta_device_tells_the_same_axes_by_trial():
    for name in ("mse_loss", "ctc_loss", "vdot", "median"):
        real, _ = networks(*KEPT[name])
        with torch.device("meta"):
            meta = Between(6, *KEPT[name], 0)
        assert ligo.trace(meta, X.float()) == ligo.trace(real.float(), X.float())


def test_the_same_operation_in_many_layers_is_tried_once(monkeypatch):
    asked = []
    ask = Trial.ask
    monkeypatch.setattr(Trial, "ask", lambda self: asked.append(1) or ask(self))

    class Deep(nn.Module):
        def __init__(self, width=6):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(12))

        def forward(self, x):
            for layer in self.layers:
                x = x + F.logsigmoid(layer(x))
            return x.mean(-1)

    assert ligo.trace(Deep(), torch.randn(3, 6)).stacks
    assert len(asked) == 1


def test_a_trial_of_large_inputs_is_short():
    small, large = (
        nn.Sequential(nn.Linear(3, width), nn.LogSigmoid(), nn.Linear(width, 2))
        for width in (4096, 8192)
    )
    x = torch.randn(4, 512, 3, device="meta")
    assert ENOUGH < 4 * 512 * 4096
    began = time.process_time()
    assert ligo.pair(small.to("meta"), large.to("meta"), x).axes == {"hidden": (4096, 8192)}
    assert time.process_time() - began < 5


def _offered(message: str) -> dict[str, str]:
    """The override that an error offers."""
    return dict(re.findall(r'^    "(.*)": "(.*)",$', message, re.MULTILINE))


@pytest.mark.parametrize(
    ("function", "make"),
    [
        (lambda m, x: fourier(x, 1), None),
        (lambda m, x: affine(x, m.linear.weight, m.linear.bias), linear),
        (lambda m, x: x.reshape(-1, 4, 3).reshape_as(x), None),
        (lambda m, x: x.flatten().reshape(5, -1).flatten().reshape_as(x), None),
    ],
    ids=["unknown", "unknown with parameters", "cut", "cut twice"],
)
def test_the_override_that_a_message_offers_works(function, make):
    sizes = (10, 20)
    small, large = (Between(width, function, make, 0).double().eval() for width in sizes)
    with pytest.raises(ValueError, match="tracing met") as raised:
        ligo.trace(small, X)
    offered = _offered(str(raised.value))
    assert offered
    named = ligo.trace(small, X, override=offered)
    assert {name: named.notation[name] for name in offered} == offered
    assert ligo.pair(small, large, X, override=offered).axes


# Modes, gradients, numbers ---------------------------------------------------------------------


class Forces(nn.Module):
    """An energy and, as its derivative, forces: (batch, 3) to (batch, 1) and (batch, 3)."""

    def __init__(self, width, functional):
        super().__init__()
        self.one, self.two = nn.Linear(3, width), nn.Linear(width, 1)
        self.functional = functional

    def energy(self, x):
        return self.two(self.one(x).tanh())

    def forward(self, x):
        if self.functional:
            return self.energy(x), -torch.func.grad(lambda x: self.energy(x).sum())(x)
        x = x.detach().requires_grad_()
        energy = self.energy(x)
        return energy, -torch.autograd.grad(energy.sum(), x, create_graph=self.training)[0]


@pytest.mark.parametrize("functional", [False, True])
def test_a_forward_that_differentiates_grows(functional):
    torch.manual_seed(0)
    x = torch.randn(5, 3).double()
    small, large = Forces(6, functional).double().eval(), Forces(15, functional).double().eval()
    before = [out.detach() for out in small(x)]
    ligo.grow(small, large, x, method="lemon")
    for one, other in zip(before, large(x), strict=True):
        torch.testing.assert_close(other.detach(), one)


@pytest.mark.parametrize("mask", [True, False])
def test_an_encoder_with_torch_s_defaults_grows_under_a_padding_mask(mask):
    class Encoder(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            layer = nn.TransformerEncoderLayer(width, heads, 2 * width, batch_first=True)
            self.embed, self.head = nn.Linear(3, width), nn.Linear(width, 2)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def forward(self, x, padding=None):
            return self.head(self.encoder(self.embed(x), src_key_padding_mask=padding)[:, 0])

    torch.manual_seed(0)
    x = torch.randn(3, 4, 3)
    padding = torch.arange(4) > torch.tensor([[3], [2], [1]]) if mask else None
    small, large = Encoder(8, 2).eval(), Encoder(16, 4).eval()
    before = small(x, padding).detach()
    ligo.grow(small, large, x, padding, method="lemon")
    torch.testing.assert_close(large(x, padding).detach(), before)
    assert torch.backends.mha.get_fastpath_enabled()


def _flex(m, scores, value):
    causal = create_block_mask(
        lambda b, h, q, k: q >= k, None, None, 4, 4, device=value.device.type
    )
    return flex_attention(value, value.flip(2), value, block_mask=causal)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("heads", "axes"), [(2, {"heads": (2, 4)}), (1, {})])
def test_flex_attention_is_followed(heads, axes):
    torch.manual_seed(0)
    small, large = (Attention(w, mix=_flex, heads=heads * w // 8).eval() for w in (8, 16))
    small.requires_grad_(False), large.requires_grad_(False)
    before = small(X.float())
    plan = ligo.pair(small, large, X.float())
    assert plan.axes.items() >= axes.items()
    ligo.Operator(plan, small, "lemon").bake(large)
    torch.testing.assert_close(large(X.float()), before)


def test_a_saved_mask_of_minus_infinity_does_not_hide_an_axis():
    class Masked(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.qkv, self.head = nn.Linear(3, 3 * width), nn.Linear(width, 2)
            self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.head((q @ k.mT / 2 + self.mask[:4, :4]).softmax(-1) @ v)

    assert (6, 9) in ligo.pair(Masked(6), Masked(9), X.float()).axes.values()


def test_a_shuffle_of_a_stream_with_itself_ends():
    class Shuffled(nn.Module):
        """The halves of a stream change places in every layer, as in ShuffleNet."""

        def __init__(self, width):
            super().__init__()
            self.embed, self.head = nn.Linear(3, width), nn.Linear(width, 2)
            self.layers = nn.ModuleList(nn.Linear(width // 2, width // 2) for _ in range(4))

        def forward(self, x):
            x = self.embed(x)
            for layer in self.layers:
                kept, changed = x.chunk(2, -1)
                x = torch.stack([kept, layer(changed)], -1).flatten(-2)
            return self.head(x)

    assert ligo.trace(Shuffled(8), X.float()).axes


def test_sines_of_the_width_are_no_reason_to_refuse():
    class Timed(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.width, self.mlp, self.out = width, nn.Linear(width, width), nn.Linear(width, 2)

        def forward(self, t):
            angles = t[:, None] * torch.exp(-torch.arange(self.width // 2) / self.width)
            return self.out(self.mlp(torch.cat([angles.sin(), angles.cos()], -1)).relu())

    plan = ligo.pair(Timed(8), Timed(16), torch.rand(5))
    assert (4, 8) in plan.axes.values()
    assert any("the large network has its own" in note for note in plan.notes)


def test_rotary_tables_still_pin_what_they_multiply():
    def rotate(m, q, k):
        angles = torch.arange(4)[:, None] / 10 ** torch.arange(q.shape[-1] // 2)
        cos, sin = (torch.cat([t, t], -1).to(q) for t in (angles.cos(), angles.sin()))

        def turn(x):
            a, b = x.chunk(2, -1)
            return x * cos + torch.cat([-b, a], -1) * sin

        return turn(q) @ turn(k).mT

    wider = [Attention(width, score=rotate, heads=2) for width in (8, 16)]
    with pytest.raises(ValueError, match=r"axis head_dim is 4 long .* cannot grow"):
        ligo.pair(*wider, X.float())
    more = [Attention(width, score=rotate) for width in (8, 16)]
    assert ligo.pair(*more, X.float()).axes["heads"] == (2, 4)


@pytest.mark.parametrize("method", ["lemon", "ligo", "stack+copy"])
def test_both_parts_of_complex_parameters_are_mapped(method):
    class Spectral(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.lift, self.project = nn.Linear(3, width), nn.Linear(width, 2)
            weight = torch.randn(width, width, 3, dtype=torch.cdouble) / width
            self.weight = nn.Parameter(weight)

        def forward(self, x):
            spectrum = torch.fft.rfft(self.lift(x), dim=1)
            return self.project(
                torch.fft.irfft(torch.einsum("btc,cdt->btd", spectrum, self.weight), n=4, dim=1)
            )

    torch.manual_seed(0)
    small, large = Spectral(6).double(), Spectral(12).double()
    before = small(X).detach()
    operator = ligo.Operator(ligo.pair(small, large, X), small, method)
    operator.bake(large)
    change = (large(X) - before).norm() / before.norm()
    assert method == "stack+copy" or change < 1e-9
    state = {"weight": {"exp_avg": small.weight.detach(), "step": torch.tensor(1.0)}}
    moments = ligo.grow_states(operator, state)["weight"]["exp_avg"]
    assert moments.shape == (12, 12, 3) and moments.imag.norm() > 0.1 * moments.norm()
