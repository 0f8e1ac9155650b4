"""The command `lightning-ligo grow`: grow the network of a checkpoint between two runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping

from lightning_ligo.callbacks.averaging import AVERAGING
from lightning_ligo.callbacks.failure import GrowthFailedError
from lightning_ligo.callbacks.growth import GrowthCallback
from lightning_ligo.callbacks.offline import grow_checkpoint
from lightning_ligo.cli.parser import CommandParser, fit_words
from lightning_ligo.cli.run import PlanCLI

USAGE = """\
lightning-ligo grow --config FILE --ckpt_path FILE --out FILE [options of lightning-ligo fit]"""

DESCRIPTION = """\
Grow the network of a checkpoint between two runs, and write a new checkpoint.

  lightning-ligo grow --config recipes/digits_vit.yaml --out grown.ckpt \\
                      --ckpt_path runs/digits_vit/version_0/checkpoints/last.ckpt
  lightning-ligo fit --config recipes/digits_vit.yaml --ckpt_path grown.ckpt

It performs the run's next growth now, regardless of its trigger. The optimizer's state, averages
and the schedulers' state grow along. The resumed run continues at the step of the checkpoint: give
a run that has ended more epochs (--trainer.max_epochs) and a schedule that covers them.
"""

EPILOG = """\
One device of this machine is used, whatever the strategy of the run. Averages, EarlyStopping and
fine-tuning callbacks are adapted; the state of all other callbacks is copied.

The exit status is 1 if the growth is not possible, with the reason; nothing is written then.
"""


def grow_command(words: Sequence[str]) -> None:
    """Run `lightning-ligo grow` with these arguments."""
    parser = CommandParser("grow", usage=USAGE, description=DESCRIPTION, epilog=EPILOG)
    parser.add_config("configuration of the run, as for fit", required=True)
    for name, what in (
        ("--ckpt_path", "checkpoint of the run"),
        ("--out", "path of the new checkpoint; must not exist yet"),
    ):
        parser.add_argument(name, metavar="FILE", required=True, help=what)
    options, rest = parser.parse_known_args(words)
    run = fit_words(options.config, ["--ckpt_path", options.ckpt_path, *rest])
    kinds = (ValueError, FileExistsError, GrowthFailedError, MisconfigurationException)
    with parser.refusing(kinds):
        command = GrowCLI(run, options.out)
    small, large = (command.record["parameters"][name] for name in ("small", "large"))
    print(f"{options.out}: {small:,} -> {large:,} parameters, at step {command.record['step']}")


class GrowCLI(PlanCLI):
    """Builds a run on one device, without loggers and most callbacks, and grows its checkpoint."""

    kept = (GrowthCallback, *AVERAGING, EarlyStopping, BaseFinetuning)

    def __init__(self, args: list[str], out: str) -> None:
        self.out = out
        super().__init__(args)

    def fit(self, model: LightningModule, **options: Any) -> None:
        """Grow instead of training."""
        path = options.pop("ckpt_path")
        self.record = grow_checkpoint(self.trainer, model, path, self.out, **options)
