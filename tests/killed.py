"""A run with two growths, in a process of its own, that says where it is so that it can be killed.

It says one of `WORDS` at each step of training and of learning an operator, where a growth begins,
swaps and ends, and where a checkpoint begins to be written and is written.
"""

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils.data import DataLoader

import lightning_ligo.callbacks.grower
from lightning_ligo import Growth, GrowthCallback, Rate
from lightning_ligo.callbacks.document import write_whole
from runs import BATCH, ITEMS, LARGE, MIDDLE, EpochOrder, Plain, items, trainer, val_loader

WORDS = ("step", "growing", "operator", "swap", "grown", "write", "written")


class Loader:
    """Batches in an order of the epoch, from where a checkpoint left them."""

    def __init__(self) -> None:
        self.sampler, self.given, self.left_out = EpochOrder(), 0, 0

    def __len__(self):
        return ITEMS // BATCH

    def __iter__(self):
        order, data = list(self.sampler), items()
        first, self.left_out = self.left_out, 0
        for number in range(first, len(self)):
            self.given = number + 1
            yield data[order[number * BATCH : self.given * BATCH]]

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.left_out = state["given"] % len(self)


def telling(say: Callable[[str], None]) -> tuple[Plain, GrowthCallback, TorchCheckpointIO]:
    """A module, its growths and what writes its checkpoints, which say where they are."""

    class Module(Plain):
        def training_step(self, batch, batch_idx):
            say("operator" if growing.is_growing else "step")
            return super().training_step(batch, batch_idx)

        def on_save_checkpoint(self, checkpoint):
            checkpoint["ballast"] = torch.zeros(2**20)  # so that it takes a while to write

    class Grower(GrowthCallback):
        is_growing = False

        def _grow(self, *args):
            self.is_growing = True
            say("growing")
            super()._grow(*args)
            say("grown")
            self.is_growing = False

    class Writer(TorchCheckpointIO):
        def save_checkpoint(self, *args, **kwargs):
            say("write")
            super().save_checkpoint(*args, **kwargs)
            say("written")

    def swap(*args):
        say("swap")
        return swapped(*args)

    swapped = lightning_ligo.callbacks.grower.swap
    lightning_ligo.callbacks.grower.swap = swap
    growths = [Growth(MIDDLE, step=6), Growth(LARGE, step=14, rate=Rate(0.5, rewarm=4, peak=1.2))]
    growing = Grower(growths, method="ligo", steps=3)
    torch.manual_seed(0)
    return Module(), growing, Writer()


def run(folder: Path, within_epochs: bool, words: Connection) -> None:
    """Train to the end, from the newest checkpoint in the folder if there is one.

    With ``within_epochs`` checkpoints are written every five steps, of epochs of six: never at the
    last step of an epoch, as Lightning 2.6, without any growth, counts its epochs wrong in a run
    that goes on from there, and one that is resumed from that one trains too long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tempfile.tempdir = str(folder)  # what a killed process leaves is removed with the test's folder
    module, growing, writer = telling(words.send)
    often = {"every_n_train_steps": 5, "filename": "{step}"} if within_epochs else {}
    saves = ModelCheckpoint(folder, save_last=True, **often)
    fit = trainer(folder, growing, saves, epochs=4, plugins=[writer], enable_checkpointing=True)
    data = Loader() if within_epochs else DataLoader(items(), BATCH, sampler=EpochOrder())
    fit.fit(module, data, val_loader(), ckpt_path="last", weights_only=True)
    (optimizer,) = fit.optimizers
    rates = [group["lr"] for group in optimizer.param_groups]
    states = {name: optimizer.state[p] for name, p in module.named_parameters()}
    curve = [point[:4] for point in growing.accounting.curve]
    spent = [growing.accounting.total, curve, list(map(tuple, growing.accounting.windows.done))]
    end = [fit.global_step, rates, module.state_dict(), states, spent]
    write_whole(folder / "end.pt", lambda path: torch.save(end, path))
