"""The command `lightning-ligo grow`: what a checkpoint holds grows between two runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping

from lightning_ligo.callbacks.averaging import AVERAGING
from lightning_ligo.callbacks.failure import GrowthFailedError
from lightning_ligo.callbacks.growth import GrowthCallback
from lightning_ligo.callbacks.offline import grow_checkpoint
from lightning_ligo.cli.plan import PlanCLI

USAGE = """\
lightning-ligo grow --config FILE --ckpt_path FILE --out FILE [options of lightning-ligo fit]"""

DESCRIPTION = """\
Write a checkpoint in which the network of another one has grown, between two runs.

  lightning-ligo grow --config recipes/digits_vit.yaml --out grown.ckpt \\
                      --ckpt_path runs/digits_vit/version_0/checkpoints/last.ckpt
  lightning-ligo fit --config recipes/digits_vit.yaml --ckpt_path grown.ckpt

It is the next growth of the run that the checkpoint is of, at once, whatever its moment. What a
growth takes along goes along: the optimizer's state, averages, the state of the schedulers. A run
that is resumed from it goes on where the checkpoint was: give one that has ended more epochs
(--trainer.max_epochs), and a schedule to fit.
"""

EPILOG = """\
One device of this machine is used, whatever the run's own strategy, so that runs under strategies
in which no network can be replaced (FSDP1, DeepSpeed) can grow as well: their checkpoint must be
one file, and the run that goes on needs no GrowthCallback, but the large network. Of the run's
callbacks those are kept that a growth changes (averages, EarlyStopping, fine-tuning); what others
have in the checkpoint stays in it. A method that learns an operator trains that, on the run's data.

It fails with the reason if the growth is not possible (exit status 1), and writes nothing then.
"""


def grow_command(words: Sequence[str]) -> None:
    """Run the command with what stands behind `lightning-ligo grow`."""
    parser = argparse.ArgumentParser(
        prog="lightning-ligo grow",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, what in (
        ("--config", "the configuration of the run, as for fit"),
        ("--ckpt_path", "its checkpoint"),
        ("--out", "the checkpoint that is to be, which must not be there"),
    ):
        action = "append" if name == "--config" else "store"
        parser.add_argument(name, metavar="FILE", action=action, required=True, help=what)
    options, rest = parser.parse_known_args(words)
    configs = [word for config in options.config for word in ("--config", config)]
    try:
        command = GrowCLI(["fit", *configs, "--ckpt_path", options.ckpt_path, *rest], options.out)
    except (ValueError, FileExistsError, GrowthFailedError, MisconfigurationException) as error:
        sys.exit(f"lightning-ligo grow: {error}")
    small, large = (command.record["parameters"][name] for name in ("small", "large"))
    print(f"{options.out}: {small:,} -> {large:,} parameters, at step {command.record['step']}")


class GrowCLI(PlanCLI):
    """Makes what a run is made of, but what writes or trains on many devices, and grows it."""

    kept = (GrowthCallback, *AVERAGING, EarlyStopping, BaseFinetuning)

    def __init__(self, args: list[str], out: str) -> None:
        self.out = out
        super().__init__(args)

    def fit(self, model: LightningModule, **options: Any) -> None:
        """In place of the Trainer's."""
        path = options.pop("ckpt_path")
        self.record = grow_checkpoint(self.trainer, model, path, self.out, **options)
