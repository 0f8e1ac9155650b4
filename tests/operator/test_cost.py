"""What is counted on the meta device is what a real run does and holds."""

import json
from itertools import repeat

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import lightning_ligo as ligo
from lightning_ligo.axes.calls import copied, without_values
from lightning_ligo.operator.cost import Uncounted, short
from lightning_ligo.operator.flops import flop_counter
from networks import IMAGES, TOKENS, gpt2, vit

EAGER = {"attn_implementation": "eager"}  # torch's counter knows no fused attention of CPUs
METHODS = ["ligo", "ligo-paper"]


def texts():
    return gpt2(64, 1, **EAGER).eval(), gpt2(128, 2, **EAGER).eval(), TOKENS


def images():
    return vit(64, 1).eval(), vit(128, 2).eval(), IMAGES


def loss(network, batch):
    out = network(**batch)
    return (out if isinstance(out, torch.Tensor) else out.logits).mean()


def learn(small, large, inputs, method, steps):
    operator = ligo.Operator(ligo.pair(small, large, **inputs), small, method)
    ligo.fit(operator, large, loss, repeat(inputs), steps=steps, learning_rate=1e-3)


def cost(small, large, inputs, **options):
    options = {"method": "ligo", **options}
    return ligo.estimate(ligo.pair(small, large, **inputs), small, large, **options, **inputs)


@pytest.mark.parametrize("method", METHODS)
def test_learning_costs_the_operations_that_a_real_fit_does(method):
    small, large, inputs = texts()
    estimated = cost(small, large, inputs, method=method, steps=3)
    operator = ligo.Operator(ligo.pair(small, large, **inputs), small, method)
    with FlopCounterMode(display=False) as real:
        ligo.fit(operator, large, loss, repeat(inputs), steps=3, learning_rate=1e-3)
    assert estimated.flops == real.get_total_flops()
    assert estimated.coefficients == operator.coefficients


def test_a_training_step_costs_the_operations_that_a_real_one_does():
    small, large, inputs = texts()
    with FlopCounterMode(display=False) as real:
        loss(large, inputs).backward()
    estimated = cost(small, large, inputs, steps=7)
    assert estimated.training_flops == real.get_total_flops()
    assert estimated.training_steps == 7 * estimated.learning_flops / real.get_total_flops()


def test_fused_attention_differs_by_the_one_product_that_its_backward_computes_again():
    small, large, inputs = images()
    batch, heads, positions, width, depth = 3, 8, 17, 16, 2
    with flop_counter() as real:
        loss(large, inputs).backward()
    again = depth * 2 * batch * heads * positions * positions * width
    assert real.get_total_flops() - cost(small, large, inputs).training_flops == again


def test_what_does_not_train_the_network_generates_its_weights():
    for batch in (1, 3):
        small, large, inputs = images()
        estimated = cost(small, large, {"x": inputs["x"][:batch]})
        learning, training = estimated.learning_flops, estimated.training_flops
        assert estimated.generating_flops == learning - training > 0


def most_bytes(run):
    """The most that torch's allocator handed out while ``run`` ran, at one time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in trace_of(profiler) if event["name"] == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


def trace_of(profiler):
    profiler.export_chrome_trace("trace.json")
    with open("trace.json") as file:
        return json.load(file)["traceEvents"]


def bytes_of(*networks):
    return sum(
        tensor.numel() * tensor.element_size()
        for network in networks
        for tensor in {*network.parameters(), *network.buffers()}
    )


@pytest.mark.parametrize(
    ("networks", "method"),
    [
        (texts, "ligo"),
        (texts, "ligo-paper"),
        (images, "ligo"),
        (images, "ligo-paper"),
    ],
)
def test_learning_holds_the_memory_that_a_real_fit_takes(networks, method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small, large, inputs = networks()
    taken = most_bytes(lambda: learn(small, large, inputs, method, steps=3))
    estimated = cost(small, large, inputs, method=method).learning_bytes
    assert estimated == pytest.approx(taken + bytes_of(small, large), rel=0.08)


@pytest.mark.parametrize("networks", [texts, images])
def test_training_holds_the_memory_that_real_steps_take(networks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small, large, inputs = networks()
    optimizer = torch.optim.AdamW(large.parameters())

    def train():
        for _ in range(3):
            optimizer.zero_grad()
            loss(large, inputs).backward()
            optimizer.step()

    taken = most_bytes(train)
    estimated = cost(small, large, inputs).training_bytes
    assert estimated == pytest.approx(taken + bytes_of(large), rel=0.08)


@pytest.mark.parametrize("options", [{"method": "lemon"}, {"steps": 0}])
def test_without_learning_only_the_weights_are_generated(options):
    small, large, inputs = images()
    estimated = cost(small, large, inputs, **options)
    assert (estimated.steps, estimated.flops, estimated.generating_flops) == (0, 0, 0)
    held = bytes_of(small, large) + bytes_of(small) + bytes_of(large)  # with copies and grown ones
    coefficients = 4 * sum(p.numel() for p in operator_of(small, large, inputs).parameters())
    assert estimated.learning_bytes >= held + coefficients
    assert "nothing is learned" in str(estimated)


def operator_of(small, large, inputs):
    return ligo.Operator(ligo.pair(small, large, **inputs), small, "lemon")


def test_the_networks_stay_as_they_are_and_may_be_on_the_meta_device():
    small, large, inputs = images()
    large.train()
    before = [p.detach().clone() for p in (*small.parameters(), *large.parameters())]
    plan = ligo.pair(small, large, **inputs)
    real = ligo.estimate(plan, small, large, **inputs)
    after = (*small.parameters(), *large.parameters())
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))
    assert large.training and not small.training
    on_meta = (copied(network, without_values) for network in (small, large))
    assert ligo.estimate(plan, *on_meta, **inputs) == real


def test_inputs_of_the_large_network_are_counted():
    small, large = vit(32), vit(64, img_size=16)
    inputs = {"x": torch.randn(3, 1, 16, 16)}
    plan = ligo.pair(small, large, large_inputs=inputs, **IMAGES)
    estimated = ligo.estimate(plan, small, large, large_inputs=inputs, **IMAGES)
    assert estimated.batch == ((3, 1, 16, 16),)


class Branches(nn.Module):
    """Reads a value of its input to decide how to go on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 4)

    def forward(self, x):
        x = self.last(self.first(x).relu()) if x.sum() > 0 else x
        return x


def test_what_a_network_reads_from_its_inputs_is_told():
    x = torch.ones(2, 4)
    small, large = Branches(8), Branches(16)
    estimated = cost(small, large, {"x": x})
    product = 2 * (2 * 4 * 16)
    assert estimated.training_flops == (2 + 3) * product  # the first needs no gradient of x


class Counts(Branches):
    """How long a tensor becomes depends on what another holds."""

    def forward(self, x):
        return super().forward(x)[torch.nonzero(x[:, 0])[:, 0]]


def test_what_cannot_run_on_the_meta_device_is_said_with_its_reason():
    small, large = Branches(8), Branches(16)
    plan = ligo.pair(small, large, torch.ones(2, 4))
    with pytest.raises(Uncounted, match=r"cannot be counted.*NotImplementedError.*nonzero"):
        ligo.estimate(plan, small, Counts(16), torch.ones(2, 4))


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="unknown method 'lego'"):
        cost(*images(), method="lego")


def test_it_prints_what_it_costs_and_of_which_batch():
    text = str(cost(*images()))
    assert "learned for 25 steps on batches of 3 x 1 x 8 x 8" in text
    assert "whatever the batch" in text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 "), (999, "999 "), (5.6e13, "56 T"), (2e18, "2e+03 P")]
)
def test_counts_are_short(count, text):
    assert short(count) == text


@pytest.mark.parametrize("method", ["ligo", "lemon"])
def test_a_network_that_no_loss_can_train_is_named(method):
    small, large = (nn.Linear(4, 3).requires_grad_(False) for _ in range(2))
    plan = ligo.pair(small, large, torch.randn(2, 4))
    with pytest.raises(Uncounted, match=r"^no output of the network depends on its par"):
        ligo.estimate(plan, small, large, torch.randn(2, 4), method=method)
