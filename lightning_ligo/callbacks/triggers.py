"""Whether the next growth of a run is due, where the run decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_ligo.schedule import Growth, Plateau, Validation, Verdict
from lightning_ligo.trainer.lightning import callbacks_of


class Triggers:
    """Decides, on all ranks alike, when the growth to come is due, and says so with the reason."""

    def __init__(self) -> None:
        self._folder = Path()
        self._forget()

    def _forget(self) -> None:
        """Begin to decide on a growth."""
        self.verdict = Verdict(False, "there was nothing to decide by yet")
        self._validations: list[Validation] = []  # since the growth before
        self._file: Path | None = None  # that is waited for

    def begin(self, trainer: Trainer) -> None:
        """At the start of training, on all ranks."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)

    def watch(self, trainer: Trainer, growth: Growth, value: float, flops: int) -> None:
        """A validation has ended; what decides is the mean over the ranks."""
        assert growth.monitored is not None
        self._validations.append(Validation(*_mean(trainer, value, flops)))
        if not self.verdict.due:
            self._decide(trainer, growth.monitored.verdict(self._validations))

    def is_due(self, trainer: Trainer, growth: Growth, spent: int) -> bool:
        """Whether to grow now; asked by all ranks at every step of the optimizer.

        Each rank has counted what it has spent itself, and the first one looks for the file: for
        these two one number goes around at every step, on one device none.
        """
        if growth.flops is not None:
            (flops,) = _mean(trainer, spent)
            why = f"{flops:.4g} of {growth.flops:g} FLOPs were spent"
            self._decide(trainer, Verdict(flops >= growth.flops, why))
        elif growth.file is not None:
            if self._file is None:
                self._file = self._folder / growth.file
                rank_zero_info(f"A growth waits for the file {self._file}: touch it to grow")
            here = trainer.is_global_zero and self._file.exists()
            found = trainer.strategy.reduce_boolean_decision(here, all=False)
            why = f"there was {'a' if found else 'no'} file {self._file}"
            self._decide(trainer, Verdict(found, why))
        return self.verdict.due

    def _decide(self, trainer: Trainer, verdict: Verdict) -> None:
        self.verdict = verdict
        if verdict.due:
            rank_zero_info(f"A growth is decided at step {trainer.global_step}: {verdict.why}")

    def grew(self, trainer: Trainer) -> None:
        """The network has grown; the file that asked for it is removed."""
        if self._file is not None and trainer.is_global_zero:
            self._file.unlink(missing_ok=True)
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        return {
            "validations": [list(seen) for seen in self._validations],
            "verdict": list(self.verdict),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._validations = [Validation(*seen) for seen in state["validations"]]
        self.verdict = Verdict(*state["verdict"])


def _mean(trainer: Trainer, *values: float) -> list[float]:
    """The mean of every value over the ranks, the same on all of them."""
    if trainer.world_size == 1:
        return list(values)
    here = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    means: list[float] = trainer.strategy.reduce(here, reduce_op="mean").tolist()
    return means


def check_decisions(trainer: Trainer, growths: Sequence[Growth], done: int) -> None:
    """Refuse growths that cannot be decided, or not before the run is ended.

    Raises:
        ValueError: for a run without validations, and for an EarlyStopping that is as impatient.
    """
    stopping = [
        callback for callback in callbacks_of(trainer) if isinstance(callback, EarlyStopping)
    ]
    for number, growth in enumerate(growths[done:], done + 1):
        if growth.monitored is None:
            continue
        if not trainer.enable_validation:
            raise ValueError(
                f"growth {number} is due at {growth.when}, and this run has no validation; give it "
                "a validation_step and data, or the growth a step"
            )
        if growth.plateau is not None:
            for callback in stopping:
                _check_patience(number, growth.plateau, callback)


def _check_patience(number: int, plateau: Plateau, stopping: EarlyStopping) -> None:
    watched = (stopping.monitor, stopping.mode) == (plateau.monitor, plateau.mode)
    as_strict = abs(stopping.min_delta) >= plateau.min_delta
    if watched and as_strict and stopping.patience <= plateau.patience:
        raise ValueError(
            f"growth {number} waits for {plateau}, and EarlyStopping would end the run with "
            f"patience {stopping.patience} of the same metric; give EarlyStopping more patience "
            "than the growth"
        )
