"""Triggers of growths: steps that are known before the run, and what the run decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_ligo.callbacks.averaging import extra_epochs
from lightning_ligo.schedule import Growth, Run, Validation, Verdict, resolve
from lightning_ligo.trainer.lightning import callbacks_of


class Triggers:
    """Tells when the next growth is due, equally on all ranks, and why."""

    def __init__(self, growths: Sequence[Growth]) -> None:
        self._growths = growths
        self._folder = Path()
        self.due: dict[int, int | None] = {}  # by the growths done before: the step, if known
        self._reset()

    def _reset(self) -> None:
        """Forget what was seen for the last growth."""
        self.verdict = Verdict(False, "there was nothing to decide by yet")
        self._validations: list[Validation] = []  # since the last growth
        self._file: Path | None = None  # the file to wait for

    def begin(self, trainer: Trainer, done: int) -> list[int | None]:
        """Resolve the growths after the first `done`; return their steps, where they are known.

        Called at the start of training, on all ranks; see `resolve` and `check_decisions`.
        """
        steps = resolve(self._growths, run_of(trainer), done)
        self.due = dict(enumerate(steps, done))
        check_decisions(trainer, self._growths, done)
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        return steps

    def watch(self, trainer: Trainer, size: int, metrics: Mapping[str, float], flops: int) -> None:
        """Decide by the metrics of a validation, averaged over the ranks, if the growth does so."""
        rule = self._growths[size].monitored if size in self.due else None
        if rule is None or rule.monitor not in metrics:
            return
        value, spent = _mean(trainer, metrics[rule.monitor], flops)
        self._validations.append(Validation(value, spent))
        if not self.verdict.due:
            self._decide(trainer, rule.verdict(self._validations))

    def is_due(self, trainer: Trainer, size: int, spent: int) -> bool:
        """Whether to grow now; called on all ranks at every optimizer step.

        With `flops` or `file` the ranks exchange one number per step: each counts its own FLOPs,
        and only rank 0 looks for the file.
        """
        growth, step = self._growths[size], self.due[size]
        if growth.epoch is not None:
            return trainer.current_epoch >= growth.epoch
        if not growth.is_decided:
            return step is not None and trainer.global_step >= step
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

    def reason(self, size: int) -> str:
        """Return why the network of this size grows now."""
        growth = self._growths[size]
        return self.verdict.why if growth.is_decided else growth.when

    def unreached(self, size: int) -> str | None:
        """Return a warning for a run that has ended before it decided the next growth."""
        if size not in self.due or not self._growths[size].is_decided:
            return None
        return (
            f"The run has ended before growth {size + 1} of {len(self._growths)}, at "
            f"{self._growths[size].when}: {self.verdict.why}"
            + (", after which no batch came" if self.verdict.due else "")
        )

    def end(self) -> None:
        """Trigger no more growths."""
        self.due = {}

    def grew(self, trainer: Trainer) -> None:
        """Prepare for the next growth; remove the file that has triggered this one."""
        if self._file is not None and trainer.is_global_zero:
            self._file.unlink(missing_ok=True)
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        return {
            "validations": [list(seen) for seen in self._validations],
            "verdict": list(self.verdict),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._validations = [Validation(*seen) for seen in state["validations"]]
        self.verdict = Verdict(*state["verdict"])


def run_of(trainer: Trainer) -> Run:
    """Return how long the run of a Trainer is."""
    steps: float
    epochs = trainer.max_epochs
    last = math.inf if epochs in (None, -1) else epochs - extra_epochs(trainer)
    if not trainer.lightning_module.automatic_optimization:  # any number of steps in a batch
        steps = trainer.max_steps
        return Run(math.inf if steps == -1 else steps, epochs=last, steps_per_epoch=math.inf)
    steps = trainer.estimated_stepping_batches
    steps_per_epoch = (
        math.inf
        if math.isinf(trainer.num_training_batches)
        else math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    )
    return Run(
        steps=min(math.inf if steps == -1 else steps, steps_per_epoch * last),
        epochs=last,
        steps_per_epoch=steps_per_epoch,
    )


def _mean(trainer: Trainer, *values: float) -> list[float]:
    """Return the mean of every value over all ranks."""
    if trainer.world_size == 1:
        return list(values)
    here = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    means: list[float] = trainer.strategy.reduce(here, reduce_op="mean").tolist()
    return means


def check_decisions(trainer: Trainer, growths: Sequence[Growth], done: int) -> None:
    """Raise ValueError for growths that need validations which the run has not, or ends before."""
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
        plateau = growth.plateau
        if plateau is None:
            continue
        for callback in stopping:
            patience = callback.patience
            watched = (callback.monitor, callback.mode) == (plateau.monitor, plateau.mode)
            as_strict = abs(callback.min_delta) >= plateau.min_delta
            if watched and as_strict and patience <= plateau.patience:
                raise ValueError(
                    f"growth {number} waits for {plateau}, and EarlyStopping would end the run "
                    f"with patience {patience} of the same metric; give EarlyStopping more "
                    "patience than the growth"
                )
