"""Runs on two processes: what each of them does, and what it writes down for the tests.

Started by torchrun, once for all cases; every case is tried even where another failed.
"""

import functools
import json
import math
import os
import sys
import traceback
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from lightning_ligo import METHODS, Growth, GrowthCallback, Plateau
from runs import BATCH, CLASSES, FEATURES, ITEMS, LARGE, MIDDLE, Plain, items, trainer

RANKS = 2


class Even(Plain):
    """Without batch norm: the mean of the gradients of two half batches is that of the whole."""

    def __init__(self, rate: float = 1e-2) -> None:
        super().__init__()
        self.stem = nn.Identity()
        self.rate = rate

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch)[1], sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.rate, momentum=0.9)


def fit(folder, module=Even, *, ranks=RANKS, strategy=None, checkpoint=None, **options):
    """Train a network that grows, on one process or on all; the module and its Trainer."""
    seed_everything(0)
    module = module()
    settings = {name: options.pop(name) for name in ("method", "steps") if name in options}
    growths = options.pop("growths", [Growth(LARGE, step=4)])
    callback = GrowthCallback(growths, **settings)
    run = trainer(
        folder, callback, *options.pop("callbacks", []), epochs=options.pop("epochs", 2),
        devices=ranks,
        strategy="auto" if ranks == 1 else ddp(**(strategy or {})),
        **options,
    )  # fmt: skip
    run.fit(module, loader(0, BATCH, ranks), loader(1, ITEMS, ranks), ckpt_path=checkpoint)
    return module, run


def loader(seed, batch, ranks):
    """Batches in order, each shared by the ranks; Lightning's own sampler would shuffle them."""
    data, rank = items(seed), int(os.environ.get("RANK", 0))
    sampler = DistributedSampler(data, ranks, rank, shuffle=False)
    return DataLoader(data, batch // ranks, sampler=sampler)


def ddp(**options):
    return DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60), **options)


def weights(module):
    return {name: tensor.tolist() for name, tensor in module.state_dict().items()}


def grown(folder, **options):
    """The final weights, and what the growth said."""
    module, run = fit(folder, **options)
    (callback,) = (c for c in run.callbacks if isinstance(c, GrowthCallback))
    return {
        "weights": weights(module),
        "steps": run.global_step,
        "records": [{**record, "seconds": 0} for record in callback.state_dict()["records"]],
        "flops": callback.spending.training.totals,
    }


def resumed(folder):
    """A run that is cut off after its growth and goes on from its last checkpoint."""
    saved = ModelCheckpoint(folder / "kept", filename="end", save_on_train_epoch_end=True)
    options = {"method": "lemon", "enable_checkpointing": True, "callbacks": [saved]}
    fit(folder, epochs=2, growths=[Growth(LARGE, step=4)], **options)
    return grown(folder, epochs=3, method="lemon", checkpoint=folder / "kept" / "end.ckpt")


class Apart(Even):
    """Every rank logs a metric of its own; one process logs their mean: 3, 2.5, 3.5, 3."""

    def __init__(self):
        super().__init__()
        self.validations = 0

    def on_validation_epoch_end(self):
        each = [(4.0, 2.0), (3.0, 2.0), (2.0, 5.0), (1.0, 5.0)][min(self.validations, 3)]
        alone = self.trainer.world_size == 1
        value = sum(each) / 2 if alone else each[self.global_rank]
        self.log("apart", value, sync_dist=False)
        self.validations += 1


class Touch(Callback):
    """Makes a file after three steps."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3 and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "now").touch()


class Broken(Even):
    """Its loss is not a number on the last rank while the operator is learned."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        large = self.network.embed.out_features > 8
        return loss * math.nan if large and self.global_rank == RANKS - 1 else loss


def refused(folder, module=Even, **options):
    try:
        fit(folder, module, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


STEP = 2 * BATCH * (3 * (2 * 8 * 16 + 8 * CLASSES) + 2 * 8 * FEATURES)
"""FLOPs of the small network on all ranks; nothing goes back to the features."""
TWO = [Growth(MIDDLE, step=3), Growth(LARGE, step=7)]
CASES = {
    "lemon": functools.partial(grown, method="lemon"),
    "ligo": functools.partial(grown, method="ligo", steps=5),
    "two growths": functools.partial(grown, method="lemon", growths=TWO),
    "ramp": functools.partial(grown, method=replace(METHODS["msg"], ramp=5)),
    "plateau": functools.partial(
        grown, module=Apart, method="lemon", val_check_interval=2,
        growths=[Growth(LARGE, plateau=Plateau("apart", patience=1))]),
    "flops": functools.partial(
        grown, method="lemon", growths=[Growth(LARGE, flops=4 * STEP + 1)]),
    "file": functools.partial(
        grown, method="lemon", growths=[Growth(LARGE, file="now")], callbacks=[Touch()]),
    "accumulated": functools.partial(grown, method="lemon", accumulate_grad_batches=2),
    "unused": functools.partial(
        grown, method="ligo", steps=2, strategy={"find_unused_parameters": True}),
    "static": functools.partial(
        grown, method="ligo", steps=2, strategy={"static_graph": True}),
    "view": functools.partial(
        grown, method="ligo", steps=2, strategy={"gradient_as_bucket_view": True}),
    "bf16": functools.partial(grown, method="ligo", steps=2, precision="bf16-mixed"),
    "uninterrupted": functools.partial(grown, method="lemon", epochs=3),
    "resumed": resumed,
    "not a number": lambda folder: refused(folder, Broken, method="ligo", steps=3),
}  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for number, (name, case) in enumerate(CASES.items()):
        try:
            result = case(folder / str(number))
        except Exception:
            result = {"error": traceback.format_exc()}
        rank = torch.distributed.get_rank()
        (folder / f"{name}-{rank}.json").write_text(json.dumps(result))
