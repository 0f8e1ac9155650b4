"""Whatever can be known to fail is refused before the first optimizer step."""

import sys

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelPruning
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch import nn

from lightning_ligo import GrowthCallback
from lightning_ligo.networks.description import describe
from lightning_ligo.schedule import Growth
from runs import LARGE, SMALL, Described, Net, Plain, fit, net, plain, trainer, val_loader


def callback(to=LARGE, attribute="network", **when):
    growth = Growth(to, **(when or {"step": 8}))
    return GrowthCallback([growth], attribute=attribute, method="ligo")


class Conv(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, width, 3)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.conv(x[:, None]).mean(-1))


class Fails(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        raise RuntimeError(f"no {width} today")


def not_a_network(width: int) -> int:
    return width


def description(**changes):
    return {"class_path": "runs.Net", "init_args": changes}


@pytest.mark.parametrize(
    ("growth", "message"),
    [
        (lambda: callback(net(4, 1)), r"(?s)growth 1 \(at step 8, to .*'width': 4.*only 4 in the"),
        (lambda: callback(describe(Conv)), r"(?s)growth 1 .*Conv cannot be grown from Net.*lacks"),
        (lambda: callback(net(16, 2, classes=5)), r"(?s)growth 1 .*head.* is 3 .* and 5 .*give"),
        (lambda: callback(step=18), "growth 1 is due at step 18, and the run has only 18 opt"),
        (lambda: callback(epoch=3), "growth 1 is due at epoch 3, and the run has only 3 epochs"),
        (lambda: callback(attribute="net"), "Plain has no attribute 'net' to grow; its modules are:"
                                            " stem, network, accuracy, val_accuracy"),
        (lambda: callback(attribute="network.tail"), "Plain has no attribute 'network.tail' to"),
        (lambda: callback(attribute="calls"), "'calls' of Plain is int and not a submodule of its"),
        (lambda: callback({"class_path": "runs.Nut"}), r"growth 1 .*has no attribute 'Nut'"),
        (lambda: callback({"class_path": "nowhere.Net"}), "growth 1 .*no module named 'nowhere'"),
        (lambda: callback(description(size=3)), "growth 1 .*unexpected keyword argument 'size'"),
        (lambda: callback(describe(Fails, width=3)), "growth 1 .*cannot be built.*no 3 today"),
        (lambda: callback(describe(not_a_network, width=3)), "growth 1 .*a network is a subclass"),
        (lambda: callback({"init_args": {"width": 16}}), "growth 1 is to .* has no description in"),
        (lambda: callback(attribute="stem", to=LARGE), "growth 1 .*cannot be grown from BatchNorm"),
    ],
)  # fmt: skip
def test_a_growth_that_cannot_be(tmp_path, growth, message):
    module = plain()
    with pytest.raises(ValueError, match=message):
        fit(module, tmp_path, growth())
    assert module.calls == 0


def test_two_growths_at_one_step(tmp_path):
    growths = [Growth(net(16, 2), step=6), Growth(LARGE, epoch=1)]
    with pytest.raises(ValueError, match=r"growth 1 \(step 6\) and growth 2 \(epoch 1\) are both"):
        fit(plain(), tmp_path, GrowthCallback(growths))


def test_a_later_growth_is_checked_as_well(tmp_path):
    growths = [Growth(LARGE, step=6), Growth(net(16, 4), step=8)]
    with pytest.raises(
        ValueError, match=r"(?s)growth 2 .*24 long in the small network and only 16"
    ):
        fit(plain(), tmp_path, GrowthCallback(growths))


def test_a_growth_that_changes_nothing(tmp_path):
    with pytest.raises(
        ValueError, match=r"growth 1 is to .*, which the network before it is alread"
    ):
        fit(Described(SMALL), tmp_path, callback({"init_args": {"width": 8}}))


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown method 'lego'; .*ligo.*ligo-paper.*lemon"):
        GrowthCallback([Growth(LARGE, step=8)], method="lego")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"growths": []}, "GrowthCallback has no growths; give at least one"),
        ({"method": "lemon", "steps": 5}, "method 'lemon' learns nothing, got steps=5"),
        (
            {"optimizer_state": "keep"},
            "got optimizer_state='keep', .* 'map', 'keep-old-zero-new', 'reset'",
        ),
        ({"early_stopping": "reset"}, "got early_stopping='reset', .* 'patience', 'anew', 'keep'"),
        ({"on_failure": "skip"}, "got on_failure='skip', expected one of 'stop', 'continue'"),
        ({"method": "ligo", "steps": -1}, "needs 0 or more steps .* got steps=-1"),
        (
            {"method": "ligo", "learning_rate": 0.0},
            "needs 0 or more steps and a learning rate above 0, got .* learning_rate=0.0",
        ),
        (
            {"growths": [Growth(LARGE, epoch=1, data={"batch": 16})], "on_failure": "continue"},
            "on_failure='continue' trains the small network on the data of the large one if a gr",
        ),
        ({"override": {"head.weight": "(a b"}}, "'head.weight': '.a b' cannot be read: this paren"),
    ],
)
def test_settings_that_contradict(settings, message):
    with pytest.raises(ValueError, match=message):
        GrowthCallback(**{"growths": [Growth(LARGE, step=8)], **settings})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"hed.weight": "out embed"}, r"growth 1 .*'hed.weight': .* of Net; near are head.weight"),
        ({"head.weight": "3 8"}, "growth 1 .*dimension 1 of head.weight is 24 long, and you said"),
    ],
)
def test_an_override_that_does_not_fit(tmp_path, override, message):
    module = plain()
    with pytest.raises(ValueError, match=message):
        fit(module, tmp_path, GrowthCallback([Growth(LARGE, step=8)], override=override))
    assert module.calls == 0


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (FSDPStrategy, "growth under FSDPStrategy .*'ddp', with ModelParallelStrategy, or on one"),
        (DeepSpeedStrategy, "growth under DeepSpeedStrategy is not supported; train with"),
    ],
)
def test_a_strategy_that_is_not_supported(tmp_path, strategy, message):
    run = trainer(tmp_path, callback())
    run.strategy.__class__ = strategy  # Lightning makes a real one with a GPU, or with DeepSpeed
    offline = r"with the command lightning-ligo grow or with lightning_ligo\.grow_checkpoint"
    with pytest.raises(ValueError, match=f"{message}.* its checkpoint between two runs, {offline}"):
        run.callbacks[0].on_fit_start(run, plain())


@pytest.mark.parametrize(
    ("strategy", "made"), [("ddp_spawn", "spawn"), ("ddp_fork", "fork"), ("ddp_notebook", "fork")]
)
def test_a_strategy_whose_processes_leave_nothing_behind(tmp_path, strategy, made):
    run = trainer(tmp_path, callback(), strategy=strategy, devices=2)  # fit would make them
    with pytest.raises(ValueError, match=f"processes of the DDPStrategy are made by {made}, and t"):
        run.callbacks[0].on_fit_start(run, plain())


def test_ranks_that_are_averaged_now_and_then(tmp_path):
    run = trainer(tmp_path, callback(), strategy=DDPStrategy(model_averaging_period=2))
    with pytest.raises(ValueError, match="averages the weights of the ranks every 2 steps only"):
        run.callbacks[0].on_fit_start(run, plain())


def test_two_callbacks(tmp_path):
    class Another(GrowthCallback):
        state_key = "another"

    with pytest.raises(ValueError, match="2 callbacks of type GrowthCallback; give one"):
        fit(plain(), tmp_path, callback(), Another([Growth(LARGE, step=9)]))


class Holds(Callback):
    def setup(self, trainer, pl_module, stage):
        self.head = pl_module.network.head


class FinetuningScheduler(Callback):
    """As finetuning-scheduler's is called."""


class HoldsWeights(Callback):
    def setup(self, trainer, pl_module, stage):
        self.weights = {"head": pl_module.network.head.weight}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: ModelPruning("l1_unstructured", amount=0.5),
            "ModelPruning has chosen parameters of the small network to prune",
        ),
        (FinetuningScheduler, "FinetuningScheduler has a schedule of parameter names"),
        (Holds, "Holds holds a part of 'network' in its attribute 'head'"),
        (HoldsWeights, "HoldsWeights holds a part of 'network' in its attribute 'weights'"),
    ],
)
def test_callbacks_that_would_be_left_with_the_small_network(tmp_path, other, message):
    module = plain()
    with pytest.raises(ValueError, match=message):
        fit(module, tmp_path, callback(), other())
    assert module.calls == 0


def test_a_callback_may_hold_the_module_or_another_network(tmp_path):
    class Teacher(Callback):
        def setup(self, trainer, pl_module, stage):
            self.module, self.teacher = pl_module, plain(1).network

    module = plain()
    fit(module, tmp_path, callback(step=1), Teacher(), epochs=1)
    assert module.network.head.in_features == 24


def test_a_network_that_another_attribute_holds(tmp_path):
    module = plain()
    module.tail = module.network.head
    with pytest.raises(ValueError, match="tail of Plain is a module of 'network' too"):
        fit(module, tmp_path, callback())


def test_a_parameter_that_another_module_shares(tmp_path):
    module = plain()
    module.decoder = nn.Linear(8, 3)
    module.decoder.weight = module.network.head.weight
    with pytest.raises(
        ValueError, match=r"decoder.weight of Plain is a parameter of 'network' too"
    ):
        fit(module, tmp_path, callback())


class Forgets(Plain):
    def configure_optimizers(self):
        return torch.optim.AdamW([*self.stem.parameters(), *self.network.blocks.parameters()])


class Second(Plain):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class NeverCalls(Plain):
    def __init__(self):
        super().__init__()
        self.other = Net()

    def loss(self, batch):
        logits = self.other(self.stem(batch[0]))
        return logits, nn.functional.cross_entropy(logits, batch[1])


class NoLoss(Plain):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)


class Iterates(Plain):
    def training_step(self, dataloader_iter):
        return super().training_step(next(dataloader_iter)[0], 0)


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (
            Forgets,
            RuntimeError,
            "work.embed.weight is in 0 groups, network.embed.bias is in 0 groups",
        ),
        (Second, ValueError, "LBFGS keeps parameters in its own attribute"),
        (NoLoss, ValueError, "training_step returned NoneType without a loss"),
        (Iterates, ValueError, "training_step takes dataloader_iter"),
    ],
)
@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor:UserWarning")
def test_modules_that_cannot_grow(tmp_path, module, error, message):
    module = module()
    with pytest.raises(error, match=message):
        fit(module, tmp_path, callback())
    assert module.calls == 0


def test_a_network_that_nothing_has_called_when_it_is_to_grow(tmp_path):
    with pytest.raises(ValueError, match=r"growth 1 is due, and .* has never called self.network"):
        fit(NeverCalls(), tmp_path, callback())


def test_training_data_that_can_be_read_once(tmp_path):
    class Once:
        def __init__(self):
            self.batches = iter([(torch.zeros(8, 6), torch.zeros(8, dtype=torch.long))] * 18)

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.batches)

    run = trainer(tmp_path, callback())
    with pytest.raises(ValueError, match=r"an iterator \(Once\) that can be read only once"):
        run.fit(plain(), Once(), val_loader())


def test_training_data_that_is_empty_when_it_is_read_again(tmp_path):
    class Spent:
        read = False

        def __iter__(self):
            batches, self.read = 0 if self.read else 18, True
            for _ in range(batches):
                yield torch.zeros(8, 6), torch.zeros(8, dtype=torch.long)

    run = trainer(tmp_path, callback())
    with pytest.raises(ValueError, match="the training data has no batch to learn an operator on"):
        run.fit(plain(), Spent(), val_loader())


def test_a_metric_that_validation_does_not_log(tmp_path):
    growth = GrowthCallback([Growth(LARGE, step=8)], monitor="val_los")
    module = plain()
    with pytest.raises(ValueError, match=r"'val_los' .* it logged: val_loss, val_accuracy"):
        fit(module, tmp_path, growth, num_sanity_val_steps=1)
    assert module.calls == 0


def test_a_metric_of_a_validation_that_logs_nothing(tmp_path):
    class Quiet(Plain):
        def validation_step(self, batch, batch_idx):
            pass

    growth = GrowthCallback([Growth(LARGE, step=8)], monitor="val_loss")
    module = Quiet()
    with pytest.raises(ValueError, match=r"'val_loss' .* it logged: nothing$"):
        fit(module, tmp_path, growth, num_sanity_val_steps=1)
    assert module.calls == 0


class Around(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("place", ["the network", "an argument of the network"])
def test_a_network_that_only_the_script_has_warns_at_the_start(tmp_path, monkeypatch, place):
    script = type("Net", (Net,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Net", script, raising=False)
    large = {"class_path": "__main__.Net", "init_args": LARGE["init_args"]}
    if place != "the network":
        large = describe(Around, net=large)
    module = plain()
    module.network = script() if place == "the network" else Around(script())
    with pytest.warns(UserWarning, match=r"__main__.Net: only this script .* networks.py"):
        fit(module, tmp_path, GrowthCallback([Growth(large, step=2)]))
    assert sum(p.numel() for p in module.network.parameters()) > 1000
