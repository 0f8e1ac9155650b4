"""The learning rate after a growth, under schedulers of every kind, and over a resume."""

import functools
import json

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader

import lightning_ligo as ligo
from lightning_ligo import GrowthCallback
from lightning_ligo.callbacks.after_growth import Rates, scaled
from lightning_ligo.schedule import Growth, Rate
from runs import LARGE, MIDDLE, SMALL, Described, Net, Plain, fit, items, plain, trainer, val_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning"),
]
AT = 8
SCHEDULES = {  # of an optimizer, and of how often the schedule is stepped
    "lambda": lambda o, n: LambdaLR(o, lambda step: 0.9**step),
    "multiplicative": lambda o, n: MultiplicativeLR(o, lambda step: 0.9 + step / 100),
    "step": lambda o, n: StepLR(o, 2, gamma=0.7),
    "multi step": lambda o, n: MultiStepLR(o, [n // 3, n - 2], gamma=0.5),
    "constant": lambda o, n: ConstantLR(o, 0.5, n - 2),
    "linear": lambda o, n: LinearLR(o, 0.1, total_iters=n - 2),
    "exponential": lambda o, n: ExponentialLR(o, 0.9),
    "cosine to a floor": lambda o, n: CosineAnnealingLR(o, n, eta_min=0.01),
    "warm restarts": lambda o, n: CosineAnnealingWarmRestarts(o, 5, eta_min=0.01),
    "cyclic": lambda o, n: CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "one cycle": lambda o, n: OneCycleLR(o, 0.1, total_steps=n),
    "polynomial": lambda o, n: PolynomialLR(o, n - 2, power=2.0),
    "sequential": lambda o, n: SequentialLR(
        o, [LinearLR(o, 0.1, total_iters=n - 3), CosineAnnealingLR(o, 3, 0.01)], [n - 3]
    ),
    "chained": lambda o, n: ChainedScheduler([ConstantLR(o, 0.5, n - 2), ExponentialLR(o, 0.9)]),
    "plateau": lambda o, n: ReduceLROnPlateau(o, factor=0.5, patience=1),
}
STEPPED = {  # what Lightning is told, what the run is told, how often the schedule is stepped
    "steps": ({"interval": "step"}, {}, 18),
    "epochs": ({"interval": "epoch"}, {"epochs": 9, "limit_train_batches": 2}, 9),
    "every other step": ({"interval": "step", "frequency": 2}, {}, 9),
}
PAIRS = [  # every schedule is in the ordinary tests, and so is every way to step it
    pytest.param(schedule, stepped, marks=[] if m % 3 == n else pytest.mark.slow)
    for m, schedule in enumerate(SCHEDULES)
    for n, stepped in enumerate(STEPPED)
]


def growth(rate, step=AT, to=LARGE, **settings):
    return GrowthCallback([Growth(to, step=step, rate=rate)], method="lemon", **settings)


class Scheduled(Plain):
    """Trains by a schedule; what a plateau is seen in never gets better."""

    def __init__(self, schedule, often=None):
        super().__init__()
        self.schedule, self.often = schedule, often or {"interval": "step"}

    def training_step(self, batch, batch_idx):
        self.log("worse", 1.0)
        return self.loss(batch)[1]

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = {"scheduler": self.schedule(optimizer), "monitor": "worse", **self.often}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Validation(Callback):
    """The rate that every step was made at, and all that stands in the groups between steps."""

    def __init__(self):
        self.used, self.standing = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.used.append([group["lr"] for group in optimizer.param_groups])

    def on_train_batch_end(self, trainer, *_):
        groups = trainer.optimizers[0].param_groups
        self.standing.append([{**group, "params": None} for group in groups])


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval'")
@pytest.mark.parametrize(("schedule", "stepped"), PAIRS)
def test_the_rate_of_every_step_is_that_of_a_run_without_growth_times_the_factor(
    tmp_path, schedule, stepped
):
    often, options, times = STEPPED[stepped]
    make = functools.partial(Scheduled, lambda o: SCHEDULES[schedule](o, times), often)
    grown, without = Validation(), Validation()
    fit(make(), tmp_path, without, limit_val_batches=0, **options)
    growing = growth(Rate(0.3), step=9, to=MIDDLE)
    fit(make(), tmp_path, growing, grown, limit_val_batches=0, **options)
    factors = [1] * 9 + [0.3] * 9
    assert grown.used == [
        [rate * factor for rate in rates]
        for rates, factor in zip(without.used, factors, strict=True)
    ]
    assert grown.standing == without.standing
    rates = [rate for (rate,) in without.used]
    assert rates[9:] != [rates[9]] * 9 and rates[9:] != rates[:9]  # a halt or a restart is seen


def test_a_run_ends_as_one_whose_schedule_has_the_factor(tmp_path):
    first = Scheduled(lambda o: LambdaLR(o, lambda step: 0.9**step))
    second = Scheduled(lambda o: LambdaLR(o, lambda step: 0.9**step / (4 if step >= AT else 1)))
    second.load_state_dict(first.state_dict())
    fit(first, tmp_path, growth(Rate(0.25)))
    fit(second, tmp_path, growth(Rate()))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_factors_of_several_growths_multiply_and_all_is_told(tmp_path, caplog):
    growths = [
        Growth(MIDDLE, step=4, rate=Rate(0.5)),
        Growth(LARGE, step=AT, rate=Rate(0.5, rewarm=3, peak=1.3)),
    ]
    seen = Validation()
    with caplog.at_level("INFO"):
        fit(plain(), tmp_path, GrowthCallback(growths, method="lemon"), seen)
    expected = [1e-2 * 0.95**step for step in range(18)]
    factors = [1] * 4 + [0.5] * 4 + [0.25] * 10
    for (rate, _), base, factor in zip(seen.used, expected, factors, strict=True):
        assert rate == pytest.approx(base * factor)
    first, second = (line for line in caplog.messages if line.startswith("Growth"))
    assert first.endswith("learning rate 0.00407 (0.5 times the schedule's)")
    assert second.endswith(
        "learning rate 0.00166 (0.25 times the schedule's, new entries re-warmed to 1.3 over 3 "
        "steps)"
    )
    report = json.loads((tmp_path / "growth_report.json").read_text())["growths"]
    assert report[1]["rate"] == {"factor": 0.5, "rewarm": 3, "peak": 1.3}


def test_a_rate_that_is_set_while_the_optimizer_steps_stays():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], 0.1)
    with scaled(optimizer, 0.5):
        assert optimizer.param_groups[0]["lr"] == 0.05
    assert optimizer.param_groups[0]["lr"] == 0.1
    with scaled(optimizer, 0.5):
        optimizer.param_groups[0]["lr"] = 0.7
    assert optimizer.param_groups[0]["lr"] == 0.7


def test_a_step_that_fails_leaves_the_rate_of_the_schedule(tmp_path):
    class Fails(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 10:
                raise RuntimeError("stop")

    seen = []

    class Last(Callback):
        def on_exception(self, trainer, pl_module, _):
            seen.extend(group["lr"] for group in trainer.optimizers[0].param_groups)

    with pytest.raises(RuntimeError, match="stop"):
        fit(plain(), tmp_path, growth(Rate(0.5)), Fails(), Last())
    assert seen == pytest.approx([1e-2 * 0.95**10] * 2)


# Re-warming new entries ---------------------------------------------------------------------------


class Steps:
    """What `Rates` asks of a Trainer."""

    global_step = AT


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.AdamW(groups, 0.01, weight_decay=0.1),
        lambda groups: torch.optim.SGD(groups, 0.01, momentum=0.9),
    ],
    ids=["adamw", "sgd"],
)
def test_new_entries_train_as_parameters_of_their_own_would(make):
    rate, x = Rate(0.5, rewarm=3, peak=1.5), items().tensors[0]
    small, large = Net(8, 1), Net(12, 2)
    operator = ligo.Operator(ligo.pair(small, large, x), small, "stack+lemon")
    operator.bake(large)
    new = operator.new_entries()
    start = {name: p.detach().clone() for name, p in large.named_parameters()}
    gradients = [{n: torch.randn_like(p) for n, p in start.items()} for _ in range(9)]

    optimizer, rates, run = make(large.parameters()), Rates(), Steps()
    rates.begin(rate, AT, large, operator)
    for step, gradient in enumerate(gradients):
        run.global_step = AT + step
        for name, p in large.named_parameters():
            p.grad = gradient[name]
        rates.step(lambda optimizer: optimizer.step(), run, optimizer)

    for name, p in large.named_parameters():
        groups = [{"params": [torch.nn.Parameter(start[name].clone())]} for _ in "ab"]
        reference = make(groups)
        for step, gradient in enumerate(gradients):
            for group, share in zip(reference.param_groups, (1, rate.of_new(step)), strict=True):
                group["params"][0].grad = gradient[name]
                group["lr"] = 0.01 * 0.5 * share
            reference.step()
        ours, theirs = (group["params"][0] for group in groups)
        assert torch.equal(p[~new[name]], ours[~new[name]]), name
        torch.testing.assert_close(p[new[name]], theirs[new[name]], msg=name)
        assert step == 8 and not rates._new


def test_the_small_network_s_own_entries_are_not_new():
    x = items().tensors[0]
    small, large = Net(8, 2), Net(12, 4)
    operator = ligo.Operator(ligo.pair(small, large, x), small, "lemon")
    new = operator.new_entries()
    own = torch.zeros(24, 12, dtype=torch.bool)
    own[:16, :8] = True
    assert torch.equal(new["blocks.0.fc1.weight"], ~own)
    assert torch.equal(new["blocks.2.fc1.weight"], ~own)
    assert new["blocks.1.fc1.weight"].all() and new["blocks.3.norm.bias"].all()
    assert not new["head.bias"].any() and not new["head.weight"][:, :8].any()


@pytest.mark.parametrize("module", [plain, lambda: Described(SMALL)])
@pytest.mark.parametrize("method", ["lemon", "ligo"])
def test_a_run_that_is_resumed_meanwhile_ends_with_the_same_weights(
    tmp_path, module, method, caplog
):
    growths = [Growth(LARGE, step=AT, rate=Rate(0.5, rewarm=6, peak=1.3))]

    def run(folder, ckpt_path=None):
        torch.manual_seed(0)
        saves = ModelCheckpoint(folder, every_n_train_steps=12, save_top_k=-1, filename="{step}")
        model = module()
        callback = GrowthCallback(growths, method=method, steps=2 if method == "ligo" else None)
        fitted = trainer(folder, callback, saves, enable_checkpointing=True)
        loader = DataLoader(items(), 8)
        fitted.fit(model, loader, val_loader(), ckpt_path=ckpt_path, weights_only=True)
        return model

    whole = run(tmp_path / "whole")
    with caplog.at_level("INFO"):
        caplog.clear()
        resumed = run(tmp_path / "resumed", tmp_path / "whole" / "step=12.ckpt")
    assert "The learning rate is 0.5 times the schedule's, as since the growth" in caplog.text
    for (name, ours), theirs in zip(
        resumed.state_dict().items(), whole.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
