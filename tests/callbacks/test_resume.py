"""Checkpoints of a run that grows: resume, test and load them, from before and after a growth."""

import copy
import json

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

import lightning_ligo as ligo
from lightning_ligo import GrowthCallback
from lightning_ligo.schedule import Growth, Plateau
from lightning_ligo.trainer.checkpoint import rebuild
from runs import (
    BATCH,
    LARGE,
    MIDDLE,
    SMALL,
    Described,
    EpochOrder,
    Plain,
    items,
    plain,
    trainer,
    val_loader,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning"),
]


class Rebuilt(Plain):
    """Builds its small network itself, and one line opens any checkpoint of it."""

    def on_load_checkpoint(self, checkpoint):
        rebuild(self, checkpoint)


class States(Callback):
    """The optimizer state by parameter name, and the learning rate, at the end."""

    def on_train_end(self, trainer, pl_module):
        state = trainer.optimizers[0].state
        self.state = {
            name: {key: value.clone() for key, value in state[p].items()}
            for name, p in pl_module.named_parameters()
        }
        self.rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self.step = trainer.global_step


def growths(step=8):
    return GrowthCallback([Growth(LARGE, step=step)], method="ligo", steps=3)


def twice():
    return GrowthCallback([Growth(MIDDLE, step=5), Growth(LARGE, step=14)], method="ligo", steps=3)


def decided():
    """After the third epoch, as no loss is lower by ten than the first."""
    plateau = Plateau("val_loss", patience=2, min_delta=10.0)
    return GrowthCallback([Growth(LARGE, plateau=plateau)], method="ligo", steps=3)


def spent():
    return GrowthCallback(
        [Growth(MIDDLE, flops=1.5e5), Growth(LARGE, flops=8e5)], method="ligo", steps=3
    )


def fit(module, folder, callback, *more, epochs=4, ckpt_path=None, **options):
    saves = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, **options)
    run = trainer(folder, callback, saves, *more, epochs=epochs, enable_checkpointing=True)
    loader = DataLoader(items(), BATCH, sampler=EpochOrder())
    run.fit(module, loader, val_loader(), ckpt_path=ckpt_path, weights_only=True)
    return run


def assert_equal(module, other):
    weights = other if isinstance(other, dict) else other.state_dict()
    for (name, mine), theirs in zip(module.state_dict().items(), weights.values(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("callback", [growths, twice, decided, spent])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, callback, epoch):
    whole, resumed = plain(), plain(1)
    first, second = States(), States()
    fit(whole, tmp_path, callback(), first)
    assert (tmp_path / "growth_report.json").exists()
    checkpoint = tmp_path / f"epoch={epoch}.ckpt"
    fit(resumed, tmp_path / "again", callback(), second, ckpt_path=checkpoint)
    assert_equal(resumed, whole)
    assert second.rates == first.rates and second.step == first.step == 24
    assert second.state.keys() == first.state.keys()
    for name, state in first.state.items():
        for key, value in state.items():
            assert torch.equal(value, second.state[name][key]), (name, key)


def test_a_resumed_run_reports_the_whole_run(tmp_path):
    fit(plain(), tmp_path, growths())
    fit(plain(), tmp_path / "again", growths(), ckpt_path=tmp_path / "epoch=2.ckpt")
    first, second = (
        json.loads((folder / "growth_report.json").read_text())
        for folder in (tmp_path, tmp_path / "again")
    )
    for key in ("checkpoint", "seconds"):
        assert first.pop(key) is not None and second.pop(key) is not None
    assert first == second


def test_a_run_of_described_networks_resumes_in_a_module_of_any_size(tmp_path):
    fit(Described(SMALL), tmp_path, growths())
    for number, size in enumerate((SMALL, LARGE)):
        states, module = States(), Described(size)
        fit(module, tmp_path / str(number), growths(), states,
            ckpt_path=tmp_path / "epoch=2.ckpt")  # fmt: skip
        assert module.network.head.in_features == 24 and module.hparams.network == LARGE
        assert all("exp_avg" in state for state in states.state.values())


def test_optimizer_state_is_found_by_name_whatever_order_the_module_gives(tmp_path):
    class Backwards(Plain):
        """A group for every layer, and the parameters in an order of their own."""

        def configure_optimizers(self):
            layers = [self.network.head, *reversed(self.network.blocks), self.network.embed]
            rest = [*self.stem.parameters(), *self.network.norm.parameters()]
            groups = [{"params": list(reversed(list(layer.parameters())))} for layer in layers]
            for number, group in enumerate(groups):
                group["lr"] = 1e-2 * 0.5**number
            return torch.optim.AdamW([*groups, {"params": rest}], lr=1e-3)

    torch.manual_seed(0)
    whole, resumed, first, second = Backwards(), Backwards(), States(), States()
    fit(whole, tmp_path, growths(), first)
    fit(resumed, tmp_path / "again", growths(), second, ckpt_path=tmp_path / "epoch=2.ckpt")
    assert_equal(resumed, whole)
    assert second.rates == first.rates
    for name, state in first.state.items():
        assert torch.equal(state["exp_avg"], second.state[name]["exp_avg"])


def test_what_is_frozen_stays_frozen_in_a_resumed_run(tmp_path):
    class Frozen(Plain):
        def __init__(self):
            super().__init__()
            self.network.embed.requires_grad_(False)

        def configure_optimizers(self):
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad])

    torch.manual_seed(0)
    whole, resumed = Frozen(), Frozen()
    fit(whole, tmp_path, growths())
    fit(resumed, tmp_path / "again", growths(), ckpt_path=tmp_path / "epoch=2.ckpt")
    assert_equal(resumed, whole)
    assert not resumed.network.embed.weight.requires_grad


class CommandLine(pl.LightningModule):
    training_step, loss = Plain.training_step, Plain.loss

    def __init__(self):
        super().__init__()
        plain = Plain()
        self.stem, self.network, self.accuracy = plain.stem, plain.network, plain.accuracy
        self.calls, self.outputs, self.seen, self.batches = 0, [], {"batches": []}, []

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch)[1])


def test_an_optimizer_made_by_the_command_line_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["test"])
    states = []
    for folder, checkpoint in (("whole", None), ("again", tmp_path / "whole/epoch=2.ckpt")):
        keep, saves = States(), ModelCheckpoint(tmp_path / folder, "{epoch}", save_top_k=-1)
        cli = LightningCLI(
            CommandLine,
            trainer_defaults={
                "accelerator": "cpu", "max_epochs": 4, "logger": False,
                "enable_progress_bar": False, "enable_model_summary": False,
                "num_sanity_val_steps": 0, "default_root_dir": str(tmp_path),
                "callbacks": [growths(), keep, saves],
            },
            seed_everything_default=0, run=False, save_config_callback=None,
            args=["--optimizer=AdamW", "--optimizer.lr=0.01"],
        )  # fmt: skip
        loader = DataLoader(items(), BATCH, sampler=EpochOrder())
        cli.trainer.fit(cli.model, loader, val_loader(), ckpt_path=checkpoint, weights_only=True)
        states.append(keep.state)
    assert len(states[0]) == 2 + sum(1 for _ in cli.model.network.parameters())
    for name, state in states[0].items():
        for key, value in state.items():
            assert torch.equal(value, states[1][name][key]), (name, key)


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("module", [plain, lambda: Described(SMALL), Rebuilt])
def test_test_opens_checkpoints_from_before_and_after_in_any_order(tmp_path, module, weights_only):
    model = module()
    run = fit(model, tmp_path, growths(), save_weights_only=weights_only)
    widths = {0: 8, 1: 24, 3: 24}
    results: dict[int, list] = {}
    for epoch in (0, 3, 1, 0, 3):
        path = tmp_path / f"epoch={epoch}.ckpt"
        result = run.test(model, DataLoader(items(2), BATCH), ckpt_path=path, weights_only=True)
        assert model.network.head.in_features == widths[epoch]
        assert results.setdefault(epoch, result) == result
    other = trainer(tmp_path, growths())
    fresh = module()
    for epoch in (3, 0):
        path = tmp_path / f"epoch={epoch}.ckpt"
        loader = DataLoader(items(2), BATCH)
        assert other.test(fresh, loader, ckpt_path=path, weights_only=True) == results[epoch]


def test_test_of_the_best_one_shrinks_a_grown_network(tmp_path):
    class Worse(Plain):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", float(self.network.head.in_features))

    model = Worse()
    run = fit(model, tmp_path, growths(), monitor="val_loss")
    assert model.network.head.in_features == 24
    run.test(model, DataLoader(items(2), BATCH), ckpt_path="best", weights_only=True)
    assert model.network.head.in_features == 8


@pytest.mark.parametrize("save_weights_only", [False, True])
@pytest.mark.parametrize("module", [Rebuilt, Described])
def test_load_from_checkpoint_opens_both(tmp_path, module, save_weights_only):
    model = module(SMALL) if module is Described else module()
    run = fit(model, tmp_path, growths(), save_weights_only=save_weights_only)
    for epoch, width in ((0, 8), (3, 24)):
        path = tmp_path / f"epoch={epoch}.ckpt"
        loaded = module.load_from_checkpoint(path, weights_only=True)
        assert loaded.network.head.in_features == width
    assert_equal(loaded, model)
    run.save_checkpoint(tmp_path / "after.ckpt", weights_only=save_weights_only)
    assert_equal(module.load_from_checkpoint(tmp_path / "after.ckpt", weights_only=True), model)


def test_rebuilding_is_public():
    assert ligo.rebuild is rebuild and ligo.GrowthCallback is GrowthCallback
    assert ligo.Growth is Growth


def test_a_second_fit_goes_on_with_the_large_network(tmp_path):
    model, callback = plain(), growths()
    run = fit(model, tmp_path, callback)
    network = model.network
    run.fit_loop.max_epochs = 6
    run.fit(model, DataLoader(items(), BATCH, sampler=EpochOrder()), val_loader())
    assert model.network is network and run.global_step == 36


def test_a_growth_to_come_can_be_added_when_a_run_is_resumed(tmp_path):
    fit(
        plain(),
        tmp_path,
        GrowthCallback([Growth(MIDDLE, step=5)], method="ligo", steps=3),
        epochs=2,
    )
    model = plain()
    fit(model, tmp_path / "again", twice(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert model.network.head.in_features == 24


def test_a_checkpoint_of_another_plan_is_refused(tmp_path):
    fit(plain(), tmp_path, twice())
    path = tmp_path / "epoch=3.ckpt"
    other = Growth({**LARGE, "init_args": {"width": 32, "depth": 4}}, step=14)
    for callback, message in (
        (growths(), "after 2 growths, and this GrowthCallback has only 1"),
        (GrowthCallback([Growth(MIDDLE, step=5), other]), "growth 2 made to .*'width': 24"),
        (GrowthCallback([Growth(LARGE, step=5)], attribute="stem"),
         "grows 'network', this one grows 'stem'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            fit(plain(), tmp_path / "again", callback, ckpt_path=path)


def test_a_checkpoint_of_another_small_network_is_refused(tmp_path):
    fit(Described(SMALL), tmp_path, growths())
    other = Described({**SMALL, "init_args": {"width": 4, "depth": 1}})
    with pytest.raises(ValueError, match="which is no size of the run that wrote the checkpoint"):
        fit(other, tmp_path / "again", growths(), ckpt_path=tmp_path / "epoch=3.ckpt")


RAN: list[str] = []


def run(word):
    RAN.append(word)


class Payload:
    def __reduce__(self):
        return run, ("was run",)


def test_a_checkpoint_that_is_damaged_or_missing_is_refused(tmp_path):
    run = fit(plain(), tmp_path, growths())
    whole = (tmp_path / "epoch=3.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    weight = torch.load(tmp_path / "epoch=3.ckpt")["state_dict"]["network.head.weight"]
    place = whole.index(weight.numpy().tobytes())
    changed = whole[:place] + bytes(4) + whole[place + 4 :]
    (tmp_path / "changed.ckpt").write_bytes(changed)
    module = plain()
    before = copy.deepcopy(module.state_dict())
    for name, message in (
        ("cut", r"cut\.ckpt is damaged: it is cut off, .*; resume from another one"),
        ("changed", r"changed\.ckpt is damaged: .* is not as it was written; resume"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(module, tmp_path / "again", growths(), ckpt_path=tmp_path / f"{name}.ckpt")
        with pytest.raises(ValueError, match=message):
            run.test(module, val_loader(), ckpt_path=tmp_path / f"{name}.ckpt")
    assert_equal(module, before)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        fit(module, tmp_path / "again", growths(), ckpt_path=tmp_path / "none.ckpt")


def test_a_payload_is_run_only_where_the_user_says_so(tmp_path):
    fit(plain(), tmp_path, growths(), epochs=2)
    held = torch.load(tmp_path / "epoch=1.ckpt") | {"more": Payload()}
    path = tmp_path / "more.ckpt"
    torch.save(held, path)
    RAN.clear()
    for weights_only in (True, None):
        with pytest.raises(ValueError, match=r"more\.ckpt holds more than tensors and plain data"):
            resume(path, weights_only)
    assert RAN == []
    resume(path, weights_only=False)
    assert RAN == ["was run"]


def resume(path, weights_only):
    run = trainer(path.parent, growths(), epochs=3)
    loader = DataLoader(items(), BATCH, sampler=EpochOrder())
    run.fit(plain(), loader, val_loader(), ckpt_path=path, weights_only=weights_only)


def test_optimizers_of_other_groups_than_the_checkpoint_has_are_refused(tmp_path):
    class OneGroup(Plain):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    fit(plain(), tmp_path, growths(), epochs=2)
    message = r"optimizers of \[2\] parameter groups, configure_optimizers makes \[1\]; resume with"
    with pytest.raises(ValueError, match=message):
        fit(OneGroup(), tmp_path / "again", growths(), ckpt_path=tmp_path / "epoch=1.ckpt")


def test_a_large_checkpoint_that_knows_no_growth_is_not_loaded_into_the_small_network(tmp_path):
    run = trainer(tmp_path, epochs=1)
    run.fit(Described(LARGE), DataLoader(items(), BATCH), val_loader())
    run.save_checkpoint(tmp_path / "large.ckpt")
    with pytest.raises(RuntimeError, match=r"size mismatch for network\.embed\.weight"):
        fit(plain(), tmp_path / "again", growths(), ckpt_path=tmp_path / "large.ckpt")


def test_a_checkpoint_without_a_record_is_of_the_small_network(tmp_path):
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    run = trainer(tmp_path, saves, epochs=1, enable_checkpointing=True)
    run.fit(plain(), DataLoader(items(), BATCH), val_loader())
    path = tmp_path / "epoch=0.ckpt"
    assert "lightning_ligo" not in torch.load(path, weights_only=True)
    for module in (plain(), Described(SMALL)):
        run = fit(module, tmp_path / "again", growths())
        run.test(module, DataLoader(items(2), BATCH), ckpt_path=path, weights_only=True)
        assert module.network.head.in_features == 8


def test_a_growth_after_which_the_run_was_killed_is_grown_again_to_the_same(tmp_path):
    class Kill(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 10:
                raise KeyboardInterrupt

    whole, model = plain(), plain()
    fit(whole, tmp_path, growths())
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        fit(plain(), tmp_path / "killed", growths(), Kill())
    fit(model, tmp_path / "again", growths(), ckpt_path=tmp_path / "killed/epoch=0.ckpt")
    assert_equal(model, whole)
