"""The measured change of a growth is what plain forwards of both networks show."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GemmaConfig, GemmaForCausalLM

import lightning_ligo as ligo
from lightning_ligo.axes.calls import Call
from lightning_ligo.operator.measure import KEPT, Change, compare, measure, told
from networks import IMAGES, TOKENS, gpt2, llama, randomised, vit


class Tower(nn.Module):
    """Residual blocks around `of`, which may depend on the number of the layer."""

    def __init__(self, width, depth=2, classes=5, of=lambda x, layer: x.tanh(), features=False):
        super().__init__()
        self.stem, self.of, self.features = nn.Linear(4, width), of, features
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x):
        x = self.stem(x)
        for layer, block in enumerate(self.blocks):
            x = x + self.of(block(x), layer)
        return (self.head(self.norm(x)), x) if self.features else self.head(self.norm(x))


class Text(nn.Module):
    """Layers that each mix the tokens in a window of their own, as those of Mistral."""

    def __init__(self, width, windows):
        super().__init__()
        self.table, self.windows = nn.Embedding(9, width), windows
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in windows)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 9)

    def forward(self, tokens):
        x, place = self.table(tokens), torch.arange(tokens.shape[1])
        for block, window in zip(self.blocks, self.windows, strict=True):
            far = (place[:, None] - place).abs() >= window
            x = x + block(F.softmax(torch.zeros_like(far).float() - 9.0 * far, -1) @ x)
        return self.head(self.norm(x))


X = torch.linspace(-1, 1, 12).sin().reshape(3, 4)


def measured(small, large, *args, method="lemon", **kwargs):
    call = Call(args, kwargs)
    return measure(ligo.pair(small, large, *args, **kwargs), small, large, [call], method=method)


@pytest.mark.parametrize(
    ("build", "inputs"),
    [(vit, IMAGES), (gpt2, TOKENS), (llama, TOKENS)],
    ids=["vit", "gpt2", "llama"],
)
def test_the_measured_change_is_that_of_plain_forwards(build, inputs):
    small, large = randomised(build(32, 2)), build(48, 4).eval()
    calls, plan = [Call((), inputs)], ligo.pair(small, large, **inputs)
    assert measure(plan, small, large, calls, method="lemon").kept
    for method in ("lemon", "stack", "copy"):
        operator = ligo.Operator(plan, small, method)
        operator.bake(large)
        with torch.no_grad():
            before, after = (network(**inputs) for network in (small, large))
        if build is not vit:
            before, after = before.logits, after.logits
        change = compare(operator, small, large, calls)
        assert change.change == pytest.approx(
            float((after - before).norm() / before.norm()), rel=1e-3, abs=1e-6
        )
        assert change.kept == (method == "lemon")


def test_zeros_hide_nothing_and_the_networks_are_left_as_they_are():
    small, large = Tower(4), Tower(8, depth=4)
    for network in (small, large):
        nn.init.zeros_(network.head.weight)
        nn.init.zeros_(network.head.bias)
    weights = [{n: t.clone() for n, t in net.state_dict().items()} for net in (small, large)]
    assert torch.equal(small(X), large(X))
    assert measured(small, large, X).kept
    assert measured(small, large, X, method="stack").change > 0.01
    for network, before in zip((small, large), weights, strict=True):
        assert network.training
        assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


@pytest.mark.parametrize("large", [8, 12])
def test_the_place_is_the_first_module_whose_output_differs(large):
    def scaled(layer_of_fault):
        return lambda x, layer: x.tanh() * (3 if layer == layer_of_fault else 1)

    for fault, place in ((0, "blocks.1"), (1, "blocks.2"), (2, "norm")):
        small, other = Tower(4, 3), Tower(large, 3, of=scaled(fault))
        change = measured(small, other, X)
        assert (change.kept, change.place) == (False, place)
    assert measured(Tower(4, 3), Tower(large, 3), X).place is None


def test_the_place_behind_new_layers_is_found_in_the_layers_that_stand_in_both_networks():
    change = measured(Tower(4, 2), Tower(8, 4), X, method="llama-pro")
    assert change.kept
    change = measured(Tower(4, 2), Tower(8, 4), X, method="interpolate")
    assert not change.kept and change.place == "blocks.2"  # blocks.1 is a copy of blocks.0


def test_outputs_that_carry_a_grown_axis_are_read_in_their_own_terms():
    kept = measured(Tower(4, features=True), Tower(8, 3, features=True), X)
    assert kept.kept and not kept.why
    changed = measured(Tower(4, features=True), Tower(8, 3, features=True), X, method="stack")
    assert not changed.kept


@pytest.mark.parametrize("build", [gpt2, llama])
def test_the_keys_and_values_of_every_layer_are_read_by_its_own_maps(build):
    options = {"n_head": 2} if build is gpt2 else {}  # Llama gets more heads
    small, large = randomised(build(32, **options)), build(64, **options)
    plan = ligo.pair(small, large, **TOKENS)
    change = measure(plan, small, large, [Call(kwargs=TOKENS)], method="lemon")
    assert change.kept and not change.why  # keys and values are outputs of the network


def test_a_norm_that_takes_the_factor_of_a_table_out_again_is_no_change():
    def gemma(width):
        return GemmaForCausalLM(GemmaConfig(
            vocab_size=50, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=width // 8, num_key_value_heads=width // 8, head_dim=8,
            max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0,
            use_cache=False,
        ))  # fmt: skip

    small, large = randomised(gemma(16)), gemma(32)
    plan = ligo.pair(small, large, **TOKENS)
    assert measure(plan, small, large, [Call(kwargs=TOKENS)], method="lemon").kept


def test_a_scale_that_depends_on_the_layer_is_measured():
    small, wide, deep = (
        gpt2(width, depth, n_head=2, scale_attn_by_inverse_layer_idx=True, use_cache=False)
        for width, depth in ((32, 2), (64, 2), (32, 4))
    )
    call = [Call(kwargs=TOKENS)]
    for large, kept in ((wide, True), (deep, False)):
        plan = ligo.pair(small, large, **TOKENS)
        assert measure(plan, small, large, call, method="lemon").kept == kept


def test_of_more_classes_the_old_ones_are_compared():
    assert measured(Tower(4), Tower(8, classes=9), X).kept


def test_outputs_of_other_shapes_are_said_not_to_be_compared():
    class Two(Tower):
        def forward(self, x):
            return super().forward(x), x.new_ones(len(self.stem.bias))

    change = measured(Two(4), Two(8), X)
    assert change.kept and change.why == "not compared: output 1 of call 0: got (4,) and (8,)"


def test_a_result_that_is_not_finite_is_not_kept():
    broken = lambda x, layer: x / 0 if layer > 1 else x.tanh()  # noqa: E731
    change = measured(Tower(4), Tower(8, 3, of=broken), X)
    assert change.change == math.inf and not change.is_finite and not change.kept
    assert str(change) == "not finite, first at norm"


def test_what_was_not_finite_before_must_only_stay_so():
    class Masked(Tower):
        def forward(self, x):
            return super().forward(x).masked_fill(torch.arange(5) > 2, -math.inf)

    assert measured(Masked(4), Masked(8), X).kept


def test_where_noise_leaves_nothing_finite_the_networks_are_measured_without_it():
    class Strict(Tower):
        def forward(self, x):
            return super().forward(x) + (math.nan if bool(self.head.bias.any()) else 0.0)

    small, large = Strict(4), Strict(4, 3)
    nn.init.zeros_(small.head.bias)
    for method, kept in (("lemon", True), ("stack", False)):
        change = measured(small, large, X, method=method)
        assert change.is_finite and change.kept == kept


@pytest.mark.parametrize("of", [torch.randn, torch.rand])
def test_random_numbers_in_evaluation_are_the_same_in_both(of):
    noise = lambda x, layer: x.tanh() + of(len(x), 1)  # noqa: E731
    assert measured(Tower(4, of=noise), Tower(8, of=noise), X).kept


def test_training_mode_is_that_of_the_call():
    class Dropping(Tower):
        def forward(self, x):
            return super().forward(x) * (2.0 if self.training and len(self.blocks) > 2 else 1.0)

    small, large = Dropping(4), Dropping(8, 3)
    plan = ligo.pair(small, large, X)
    calls = [[Call((X,), training=training)] for training in (False, True)]
    assert measure(plan, small, large, calls[0], method="lemon").kept
    change = measure(plan, small, large, calls[1], method="lemon")
    assert change.change == pytest.approx(1, rel=1e-4)


def test_a_longer_text_tells_windows_that_the_first_one_does_not_reach():
    tokens = torch.arange(12).reshape(2, 6) * 5 % 9
    assert measured(Text(4, (8, 99)), Text(8, (8, 99)), tokens).kept
    change = measured(Text(4, (8, 99)), Text(8, (99, 8)), tokens)
    assert change.change > KEPT


def test_other_inputs_tell_what_the_first_ones_do_not_reach():
    x = torch.linspace(0, 1, 24).reshape(6, 4)

    class Clipped(Tower):
        def forward(self, x):
            return super().forward(x) * (1.0 if bool(x[0, 0] == 0) else 100.0)

    small, large = Tower(4), Clipped(8)
    plan = ligo.pair(small, large, x)
    assert measure(plan, small, large, [Call((x,))], method="lemon").change > 1


def test_a_change_that_a_choice_hides_is_that_of_the_module_before_it():
    class Chosen(Tower):
        def forward(self, x):
            return super().forward(x).argmax(-1, keepdim=True).float()

    torch.manual_seed(0)
    small, kept, changed = Chosen(4), Chosen(8), Chosen(8, of=lambda x, _: 1.02 * x.tanh())
    assert measured(small, kept, X).kept
    outputs = []
    for large in (kept, changed):
        ligo.Operator(ligo.pair(small, large, X), small, "lemon").bake(large)
        outputs.append(large(X))
    assert torch.equal(*outputs)
    change = measured(small, changed, X)
    assert (change.kept, change.place) == (False, "blocks.1") and 1e-3 < change.change < 0.02


def test_what_cannot_be_measured_says_why():
    small, large = Tower(4), Tower(8)
    plan = ligo.pair(small, large, X)
    with torch.device("meta"):
        meta = Tower(8)
    change = measure(plan, small, meta, [Call((X,))])
    assert str(change) == "not measured: the large network is on the meta device"
    assert not change.kept and change.is_finite
    assert measure(plan, small, large, [Call((X,))], method="random").change is None
    images = torch.randn(3, 1, 12, 12)
    small, large = vit(32), vit(48, img_size=12)
    plan = ligo.pair(small, large, IMAGES["x"], large_inputs={"x": images})
    change = measure(plan, small, large, [Call((), IMAGES)], [Call((), {"x": images})])
    assert str(change).startswith("not measured: the large network is called with other inputs: ")


def test_lack_of_memory_is_no_error(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("lightning_ligo.operator.measure.prepared", full)
    assert str(measured(Tower(4), Tower(8), X)) == "not measured: there is not enough memory"


def test_a_broken_promise_is_a_warning_and_a_result_that_is_not_finite_a_refusal():
    lemon, stack = ligo.METHODS["lemon"], ligo.METHODS["stack"]
    by = "by a copy with noise on its weights"
    assert told(Change(1e-7), lemon) == f"the function is kept, to 1e-7, {by}"
    line = told(Change(0.5, "norm"), stack)
    assert line == f"the function changes by 50 %, first at norm, {by}"
    with pytest.warns(UserWarning, match="'lemon' promises to keep the function, and it changes"):
        told(Change(0.5, "norm"), lemon)
    for method in (lemon, stack):
        with pytest.raises(ValueError, match="returns what is not finite, first at norm"):
            told(Change(math.inf, "norm"), method)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (Change(0.0), "kept, to 0"),
        (Change(2.6e-7), "kept, to 3e-7"),
        (Change(0.1234, "blocks.2.norm1"), "changes by 12 %, first at blocks.2.norm1"),
        (Change(2e-3), "changes by 0.2 %"),
        (Change(12.0), "changes by 1200 %"),
        (Change(math.inf, "norm"), "not finite, first at norm"),
        (Change(None, why="it is too large"), "not measured: it is too large"),
    ],
)  # fmt: skip
def test_a_change_is_said_in_words_and_stands_in_plain_data(change, text):
    assert str(change) == text
    assert Change.from_dict(change.to_dict()) == change
