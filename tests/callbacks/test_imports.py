"""`pytorch_lightning` has every class of `lightning` once more; both in a run are refused."""

import types

import lightning.pytorch as pl
import pytest

from lightning_ligo import Growth, GrowthCallback
from runs import LARGE, Plain, train_loader, trainer, val_loader

SENTENCE = "write `import lightning.pytorch as pl` for `import pytorch_lightning as pl`"


def growing() -> GrowthCallback:
    return GrowthCallback([Growth(LARGE, step=2)])


@pytest.fixture
def other():
    """A callback and a datamodule of a stand-in for pytorch_lightning."""
    names = {"__module__": "pytorch_lightning.callbacks.timer"}
    return types.SimpleNamespace(
        Timer=type("Timer", (pl.Callback,), names),
        Own=type("Own", (type("Data", (pl.LightningDataModule,), names),), {}),
    )


def test_a_callback_of_the_other_package_is_refused_by_name(tmp_path, other):
    with pytest.raises(ValueError, match="Timer is of the package pytorch_lightning") as error:
        trainer(tmp_path, other.Timer(), growing()).fit(Plain(), train_loader(), val_loader())
    assert SENTENCE in str(error.value)


def test_a_datamodule_of_the_other_package_is_refused(tmp_path, other):
    data = other.Own()
    data.train_dataloader, data.val_dataloader = train_loader, val_loader
    with pytest.raises(ValueError, match="Own is of the package pytorch_lightning"):
        trainer(tmp_path, growing()).fit(Plain(), datamodule=data)


def test_a_trainer_of_the_other_package_is_refused_at_once(tmp_path):
    theirs = pytest.importorskip("pytorch_lightning")
    module = pytest.importorskip("pytorch_lightning.demos.boring_classes").BoringModel()
    run = theirs.Trainer(
        default_root_dir=tmp_path, max_steps=4, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, callbacks=[growing()],
    )  # fmt: skip
    with pytest.raises(ValueError, match="Trainer is of the package pytorch_lightning") as error:
        run.fit(module)
    assert SENTENCE in str(error.value)
