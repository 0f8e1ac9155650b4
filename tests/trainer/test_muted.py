"""Muted callbacks stay out of the way of LightningCLI."""

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_ligo.trainer.sandbox import _mute


def test_a_muted_callback_leaves_the_short_name_of_its_class_unambiguous():
    muted = _mute(ModelCheckpoint())
    assert type(muted).__name__ == "ModelCheckpoint"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    read = parser.parse_object({"callback": {"class_path": "ModelCheckpoint"}})
    assert isinstance(parser.instantiate_classes(read).callback, ModelCheckpoint)
