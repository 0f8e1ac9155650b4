"""`load` opens what a class that knows nothing of growth has saved, in the size of the file."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

import lightning_ligo
from lightning_ligo import Growth, GrowthCallback
from runs import LARGE, SMALL, Described, Net, Plain, fit


class Theirs(Plain):
    """A class of another package: it saves one hyperparameter, and needs another argument."""

    def __init__(self, scale: float = 1.0, note: object = None) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["note"])
        self.scale, self.note = scale, note
        self.opened: list[int] = []

    def on_load_checkpoint(self, checkpoint):
        self.opened.append(checkpoint["global_step"])
        self.width_when_opened = self.network.embed.out_features


def saved(folder, module: pl.LightningModule, step: int = 18) -> Path:
    """The file that a run which grows at step 8 of 18 has saved after some step."""

    def save(run, *_):
        if run.global_step == step:
            run.save_checkpoint(folder / "a.ckpt")

    saving = LambdaCallback(on_train_batch_end=save)
    fit(module, folder, GrowthCallback([Growth(LARGE, step=8)]), saving)
    return folder / "a.ckpt"


def same(one: pl.LightningModule, other: pl.LightningModule) -> bool:
    mine, its = one.state_dict(), other.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[n], its[n]) for n in mine)


def test_a_grown_file_opens_with_hyperparameters_of_the_file_and_of_the_caller(tmp_path):
    module = Theirs(scale=3.0)
    path = saved(tmp_path, module)
    with pytest.raises(RuntimeError, match=r"Unexpected key|size mismatch"):
        Theirs.load_from_checkpoint(path)
    opened = lightning_ligo.load(Theirs, path, note="given", map_location="cpu")
    assert type(opened) is Theirs and same(opened, module)
    assert (opened.scale, opened.note, opened.hparams["scale"]) == (3.0, "given", 3.0)
    assert opened.opened == [18] and opened.width_when_opened == 24
    x = torch.randn(4, 6)
    assert torch.equal(opened.eval().network(x), module.eval().network(x))


def test_the_class_is_as_it_was_afterwards_even_after_an_error(tmp_path):
    own = Theirs.on_load_checkpoint
    with pytest.raises(FileNotFoundError):
        lightning_ligo.load(Theirs, tmp_path / "none.ckpt")
    assert Theirs.on_load_checkpoint is own
    lightning_ligo.load(Plain, saved(tmp_path, Plain()))
    assert "on_load_checkpoint" not in vars(Plain)


def test_files_that_have_not_grown_open_too(tmp_path):
    before = saved(tmp_path, Theirs(), 4)
    opened = lightning_ligo.load(Theirs, before)
    held = torch.load(before, weights_only=True)["state_dict"]
    assert opened.network.embed.out_features == 8
    assert all(torch.equal(held[name], it) for name, it in opened.state_dict().items())
    module = Theirs()
    fit(module, tmp_path, epochs=1).save_checkpoint(tmp_path / "b.ckpt")
    assert same(lightning_ligo.load(Theirs, tmp_path / "b.ckpt"), module)


def test_what_is_loaded_knows_its_record_and_can_be_saved_and_opened_again(tmp_path):
    path = saved(tmp_path, Theirs())
    opened = lightning_ligo.load(Theirs, path)
    run = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, max_steps=0)
    run.strategy.connect(opened)
    run.save_checkpoint(tmp_path / "b.ckpt", weights_only=True)
    again = torch.load(tmp_path / "b.ckpt", weights_only=True)
    assert again["lightning_ligo"]["size"] == 1
    assert same(lightning_ligo.load(Theirs, tmp_path / "b.ckpt"), opened)


def test_a_class_that_rebuilds_by_itself_opens_as_well(tmp_path):
    module = Described(SMALL)
    assert same(lightning_ligo.load(Described, saved(tmp_path, module)), module)


def test_strict_is_that_of_lightning(tmp_path):
    path = saved(tmp_path, Theirs())
    held = torch.load(path, weights_only=True)
    held["state_dict"]["more"] = torch.zeros(1)
    torch.save(held, path)
    with pytest.raises(RuntimeError, match="more"):
        lightning_ligo.load(Theirs, path)
    with pytest.warns(UserWarning, match="not in the model state dict"):
        opened = lightning_ligo.load(Theirs, path, strict=False)
    assert isinstance(opened.network, Net) and opened.network.embed.out_features == 24


def test_a_class_of_pytorch_lightning(tmp_path):
    theirs = pytest.importorskip("pytorch_lightning")
    body = {"__init__": lambda self: (theirs.LightningModule.__init__(self), self._fill())[0]}
    body["_fill"] = lambda self: setattr(self, "network", Net())
    kind = type("Other", (theirs.LightningModule,), body)
    module = Plain()
    held = torch.load(saved(tmp_path, module), weights_only=True)
    weights = held["state_dict"]
    held["state_dict"] = {n: w for n, w in weights.items() if n.startswith("network.")}
    torch.save(held, tmp_path / "b.ckpt")
    opened = lightning_ligo.load(kind, tmp_path / "b.ckpt")
    assert torch.equal(opened.network.embed.weight, module.network.embed.weight)
