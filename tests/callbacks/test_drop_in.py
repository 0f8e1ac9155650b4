"""A LightningModule that knows nothing of growth grows in the middle of a plain `fit`."""

import copy
import json
import logging
import pickle

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader

from lightning_ligo import METHODS, GrowthCallback
from lightning_ligo.callbacks.failure import GrowthFailedError
from lightning_ligo.networks.description import build
from lightning_ligo.schedule import Growth
from runs import (
    LARGE,
    MIDDLE,
    SMALL,
    STEPS_PER_EPOCH,
    Described,
    Net,
    Plain,
    fit,
    items,
    plain,
    train_loader,
    trainer,
    val_loader,
)


def growth(to=LARGE, method="ligo", steps=4, **when):
    when = when or {"step": 8}
    learning = {"steps": steps} if METHODS[method].learns else {}
    return GrowthCallback([Growth(to=to, **when)], method=method, **learning)


class Watch(Callback):
    """Outputs of the network on fixed inputs at the start of every batch, and what is going on."""

    def __init__(self):
        self.outputs, self.widths, self.rates, self.drawn = {}, {}, [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.global_step
        with torch.no_grad():
            x = items(3).tensors[0]
            self.outputs[step] = pl_module.network.eval()(x)
            pl_module.network.train()
        self.widths[step] = pl_module.network.head.in_features
        self.drawn.append(torch.get_rng_state().tolist())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def test_the_network_is_swapped_before_the_batch_at_which_it_is_due(tmp_path):
    watch, module = Watch(), plain()
    fit(module, tmp_path, growth(step=8), watch)
    assert [step for step, width in watch.widths.items() if width == 8] == list(range(8))
    assert [step for step, width in watch.widths.items() if width == 24] == list(range(8, 18))
    assert len(module.network.blocks) == 4


@pytest.mark.parametrize(("when", "step"), [({"epoch": 2}, 12), ({"fraction": 0.5}, 9)])
def test_it_grows_at_an_epoch_and_at_a_fraction(tmp_path, when, step):
    watch = Watch()
    fit(plain(), tmp_path, growth(**when), watch)
    assert min(s for s, width in watch.widths.items() if width == 24) == step


def test_a_lemon_growth_leaves_the_outputs_equal(tmp_path):
    class Before(Watch):
        """Stands before the growth in the list of callbacks."""

    before, after = Before(), Watch()
    fit(plain(), tmp_path, before, growth(method="lemon"), after)
    torch.testing.assert_close(after.outputs[8], before.outputs[8], rtol=0, atol=1e-5)
    assert after.widths[8] == 24 and before.widths[8] == 8


def test_data_order_random_numbers_and_learning_rates_are_those_of_a_run_without_growth(tmp_path):
    runs = []
    for callbacks in ([], [growth(method="lemon")], [growth()]):
        watch, module = Watch(), plain()
        run = fit(module, tmp_path, *callbacks, watch)
        runs.append((module.batches, module.calls, watch.drawn, watch.rates, run.global_step))
    assert runs[0] == runs[1] == runs[2]


def test_until_it_grows_a_run_is_the_run_without_growth(tmp_path):
    with_growth, without = Watch(), Watch()
    fit(plain(), tmp_path, with_growth, growth(step=8))
    fit(plain(), tmp_path, without)
    for step in range(9):
        assert torch.equal(with_growth.outputs[step], without.outputs[step])


def test_the_same_run_grows_to_the_same_weights_and_says_so_in_a_line(tmp_path, caplog):
    first, second = plain(), plain()
    with caplog.at_level(logging.INFO):
        fit(first, tmp_path, growth(steps=30))
    (line,) = [r.message for r in caplog.records if r.message.startswith("Growth 1 of 1")]
    fit(second, tmp_path, growth(steps=30))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "at step 8: " in line and "method ligo" in line and "30 steps, loss" in line
    assert "state: mapped for 30 of 30 parameters; learning rate" in line


def test_a_growth_that_learns_nothing_says_so(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        fit(plain(), tmp_path, growth(method="lemon", steps=None))
    (line,) = [r.message for r in caplog.records if r.message.startswith("Growth 1 of 1")]
    assert "method lemon (nothing learned); " in line


def test_another_seed_gives_another_growth(tmp_path):
    modules = [plain(), plain()]
    for seed, module in enumerate(modules):
        fit(
            module,
            tmp_path,
            GrowthCallback([Growth(LARGE, step=8)], method="ligo", steps=2, seed=seed),
        )
    assert not torch.equal(modules[0].network.embed.weight, modules[1].network.embed.weight)


def test_it_grows_twice(tmp_path):
    watch, module = Watch(), plain()
    growths = [Growth(MIDDLE, step=5), Growth(LARGE, step=11)]
    fit(module, tmp_path, GrowthCallback(growths, method="ligo", steps=2), watch)
    assert {s: w for s, w in watch.widths.items() if s in (4, 5, 10, 11)} == {
        4: 8, 5: 16, 10: 16, 11: 24,
    }  # fmt: skip
    report = json.loads((tmp_path / "growth_report.json").read_text())
    assert [g["parameters"]["large"] for g in report["growths"]] == [
        sum(p.numel() for p in build(to).parameters()) for to in (MIDDLE, LARGE)
    ]


def test_changes_are_laid_over_the_description_in_the_hyperparameters(tmp_path):
    module = Described(SMALL)
    changes = [
        Growth({"init_args": {"width": 16, "depth": 2}}, step=3),
        Growth({"init_args": {"depth": 3}}, step=6),
    ]
    fit(module, tmp_path, GrowthCallback(changes, method="ligo", steps=2), epochs=2)
    assert module.network.head.in_features == 16 and len(module.network.blocks) == 3
    assert module.hparams.network["init_args"] == {"width": 16, "depth": 3}
    assert SMALL["init_args"] == {"width": 8, "depth": 1}


def test_a_network_deep_in_the_module_grows(tmp_path):
    class Deep(Plain):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Flatten(), self.network)
            del self.network

        def loss(self, batch):
            logits = self.model(self.stem(batch[0]))
            return logits, nn.functional.cross_entropy(logits, batch[1])

    module = Deep()
    fit(
        module,
        tmp_path,
        GrowthCallback([Growth(LARGE, step=8)], attribute="model.1", method="ligo", steps=2),
    )
    assert module.model[1].head.in_features == 24


def test_it_waits_for_the_end_of_an_accumulation(tmp_path):
    class Batches(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if pl_module.network.head.in_features == 24:
                first.append((batch_idx, trainer.global_step))

    first: list[tuple[int, int]] = []
    fit(plain(), tmp_path, growth(step=3), Batches(), accumulate_grad_batches=4)
    # epochs of 6 batches have 2 steps: after batches 4 and 6
    assert first[0] == (4, 3)


def test_the_grown_network_is_a_plain_network(tmp_path):
    module = plain()
    fit(module, tmp_path, growth())
    fresh = build(LARGE)
    assert list(fresh.state_dict()) == list(module.network.state_dict())
    fresh.load_state_dict(module.network.state_dict())
    x = items(3).tensors[0]
    assert torch.equal(fresh(x), module.network(x))
    for mine, other in zip(module.network.modules(), fresh.modules(), strict=True):
        assert vars(mine).keys() == vars(other).keys()
        for name, value in vars(mine).items():
            if "hook" in name:
                assert not value, name


def test_after_the_run_module_and_trainer_have_no_patches_and_can_be_copied(tmp_path):
    module, callback = plain(), growth()
    run = fit(module, tmp_path, callback)
    assert pickle.loads(pickle.dumps(callback)).state_dict() == callback.state_dict()
    assert not {"load_checkpoint", "setup_optimizers"} & set(vars(run.strategy))
    module.trainer = None
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        checkpoint = {}
        twin.on_save_checkpoint(checkpoint)
        assert checkpoint["lightning_ligo"]["size"] == 1
        assert twin.on_save_checkpoint.args[0] is twin


def test_the_learning_rate_and_steps_are_the_methods_unless_given():
    default = GrowthCallback([Growth(LARGE, step=1)], method="ligo")
    given = growth(method="ligo", steps=7)
    assert (default.settings.method.steps, default.settings.method.learning_rate) == (
        METHODS["ligo"].steps, METHODS["ligo"].learning_rate,
    )  # fmt: skip
    assert given.settings.method.steps == 7


def test_a_loss_that_is_not_finite_leaves_the_run_as_it_was(tmp_path):
    class Breaks(Plain):
        def loss(self, batch):
            logits, loss = super().loss(batch)
            return logits, loss * float("nan") if self.network.head.in_features == 24 else loss

    class Keep(Watch):
        def on_exception(self, trainer, pl_module, exception):
            self.network = pl_module.network
            self.parameters = [p for g in trainer.optimizers[0].param_groups for p in g["params"]]
            self.last = self.outputs[max(self.outputs)]
            self.after = pl_module.network.eval()(items(3).tensors[0])

    module, keep = Breaks(), Keep()
    network = module.network
    with pytest.raises(GrowthFailedError, match="the loss is nan at step 1 of 4"):
        fit(module, tmp_path, keep, growth(step=8))
    assert module.network is network and keep.network is network
    assert set(keep.parameters) == set(module.parameters())
    assert torch.equal(keep.last, keep.after)
    assert module.calls == 8 and not (tmp_path / "growth_report.json").exists()


def test_fast_dev_run_checks_all_and_grows_nothing(tmp_path):
    module = plain()
    fit(module, tmp_path, growth(step=500), fast_dev_run=True)
    assert module.network.head.in_features == 8
    with pytest.raises(ValueError, match=r"growth 1 .* cannot be grown from Net"):
        fit(plain(), tmp_path, growth(to={**LARGE, "init_args": {"width": 4}}), fast_dev_run=True)


class FromCommandLine(Plain):
    """Has its optimizer made by LightningCLI."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Net()


FromCommandLine.configure_optimizers = Plain.__base__.configure_optimizers


def train_and_val():
    return {"train_dataloaders": train_loader(), "val_dataloaders": val_loader()}


def command_line(tmp_path, callback):
    return LightningCLI(
        FromCommandLine,
        trainer_defaults={
            "accelerator": "cpu", "max_epochs": 3, "logger": False, "num_sanity_val_steps": 0,
            "enable_progress_bar": False, "enable_model_summary": False, "callbacks": callback,
            "default_root_dir": str(tmp_path), "enable_checkpointing": False,
        },
        seed_everything_default=0,
        args=["--optimizer=AdamW", "--optimizer.lr=0.01",
              "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"],
        run=False, save_config_callback=None,
    )  # fmt: skip


def test_an_optimizer_made_by_the_command_line_trains_the_large_network(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["test"])

    class Held(Callback):
        def on_train_end(self, trainer, pl_module):
            self.state = [trainer.optimizers[0].state[p] for p in pl_module.parameters()]

    held = Held()
    cli = command_line(tmp_path, [growth(), held])
    cli.trainer.fit(cli.model, **train_and_val())
    assert all("exp_avg" in state for state in held.state)
    assert cli.model.network.head.in_features == 24


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_it_grows_in_the_precision_of_the_run(tmp_path, precision):
    module = plain()
    fit(module, tmp_path, growth(), precision=precision)
    dtype = {"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(precision, torch.float32)
    assert {weight.dtype for weight in module.network.parameters()} == {dtype}


def test_a_stream_of_unknown_length_grows_at_a_step_and_at_an_epoch(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(items())

    for when, first in ({"step": 7}, 7), ({"epoch": 2}, 2 * STEPS_PER_EPOCH):
        watch = Watch()
        run = trainer(tmp_path, growth(**when), watch)
        run.fit(plain(), DataLoader(Stream(), 8), val_loader())
        assert min(s for s, width in watch.widths.items() if width == 24) == first
