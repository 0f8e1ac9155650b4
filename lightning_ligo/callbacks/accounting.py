"""Count the FLOPs of a run, measure its validation metrics, and note them as a curve.

CurveCallback does so in a run that does not grow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import fmean
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from lightning_ligo.callbacks.averaging import averaged_validation
from lightning_ligo.operator.flops import StepFlops
from lightning_ligo.trainer.checkpoint import size_of
from lightning_ligo.trainer.lightning import callbacks_of, validation_names
from lightning_ligo.trainer.sandbox import sandboxed
from lightning_ligo.trainer.sharding import shares
from lightning_ligo.trainer.steps import evaluate, validation_metrics


class Point(NamedTuple):
    """A validation, and the FLOPs and seconds spent until then."""

    step: int  # of the optimizer
    metric: float | None
    training: int  # FLOPs of training, and of learning operators
    evaluation: int  # FLOPs of all validations, including this one
    seconds: float


class Window(NamedTuple):
    """Training steps in a row."""

    step: int  # of the optimizer, at their end
    loss: float | None  # mean training loss on this process; None if `training_step` returns none
    spent: int  # FLOPs of all that the run has done until then
    learning_rate: float  # largest of all groups, without the factors of growths


MOST_WINDOWS = 400
"""Windows of a run; when there are so many, two in a row become one."""


class Windows:
    """The training loss and the learning rate of a run, in windows of equally many batches."""

    def __init__(self) -> None:
        self.done: list[Window] = []
        self._length = 1  # batches
        self._losses: list[Tensor] = []  # of the present window
        self._batches = 0

    def note(self, trainer: Trainer, outputs: Any, spent: int) -> None:
        """Note what a training step has returned."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if isinstance(loss, Tensor):
            automatic = trainer.lightning_module.automatic_optimization
            parts = trainer.accumulate_grad_batches if automatic else 1  # Lightning has divided
            self._losses.append(loss.detach().float() * parts)
        self._batches += 1
        if self._batches >= self._length:
            self.end(trainer, spent)

    def end(self, trainer: Trainer, spent: int) -> None:
        """End the present window."""
        if not self._batches:
            return
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        loss = torch.stack(self._losses).mean().item() if self._losses else None
        rate = max((float(group["lr"]) for group in groups), default=0.0)
        self.done.append(Window(trainer.global_step, loss, spent, rate))
        self._losses, self._batches = [], 0
        if len(self.done) >= MOST_WINDOWS:
            evens, odds = self.done[::2], self.done[1::2]
            self.done = [_joined(*pair) for pair in zip(evens, odds, strict=True)]
            self._length *= 2

    def state_dict(self) -> dict[str, Any]:
        return {"done": [list(window) for window in self.done], "length": self._length}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done = [Window(*window) for window in state["done"]]
        self._length, self._losses, self._batches = state["length"], [], 0


def _joined(first: Window, second: Window) -> Window:
    losses = [window.loss for window in (first, second) if window.loss is not None]
    return second._replace(loss=fmean(losses) if losses else None)


class Accounting:
    """FLOPs that a run has spent on every size of its network, and its curves.

    `curve` is that of its validations, `windows` those of its training.
    """

    def __init__(self) -> None:
        self.training = StepFlops()
        self.evaluation = StepFlops()
        self.operator = 0  # FLOPs of learning
        self.grew_at: list[int] = []  # optimizer steps
        self.curve: list[Point] = []
        self.windows = Windows()
        self._began: float | None = None

    @property
    def total(self) -> int:
        """Total FLOPs: training, learning operators, and validations."""
        return sum(self.training.totals) + self.operator + sum(self.evaluation.totals)

    @property
    def seconds(self) -> float:
        """Seconds of training so far; a resumed run goes on from those at its last validation."""
        return time.monotonic() - self._began if self._began is not None else 0.0

    def begin(self, shares: int) -> None:
        """Start or resume training, where every batch has this many shares, one per rank."""
        self.training.ranks = self.evaluation.ranks = shares
        self._began = time.monotonic() - (self.curve[-1].seconds if self.curve else 0.0)

    def grew(self, trainer: Trainer) -> None:
        """Note a growth at the present optimizer step."""
        self.grew_at.append(trainer.global_step)
        self.windows.end(trainer, self.total)

    def note(self, trainer: Trainer, metric: float | None) -> None:
        """Note the metric of a validation at the present optimizer step."""
        training, evaluation = sum(self.training.totals), sum(self.evaluation.totals)
        self.curve.append(
            Point(trainer.global_step, metric, training + self.operator, evaluation, self.seconds)
        )

    def of_evaluation(self, size: int) -> Callback:
        """Return a callback that counts a validation of the network of this size."""
        return _OfSize(self, size)

    def abort(self) -> None:
        """Stop without counting, as the step has failed."""
        self.training.abort()
        self.evaluation.abort()

    def state_dict(self) -> dict[str, Any]:
        return {
            "training": self.training.state_dict(),
            "evaluation": self.evaluation.state_dict(),
            "operator": self.operator,
            "grew_at": list(self.grew_at),
            "curve": [list(point) for point in self.curve],
            "windows": self.windows.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.training.load_state_dict(state["training"])
        self.evaluation.load_state_dict(state["evaluation"])
        self.operator = state["operator"]
        self.grew_at = list(state["grew_at"])
        self.curve = [Point(*point[:5]) for point in state["curve"]]  # older ones have a rate
        if "windows" in state:
            self.windows.load_state_dict(state["windows"])


class Counting(Callback):
    """Counts the validations of a run, and the steps that a subclass starts."""

    accounting: Accounting

    def size(self, pl_module: LightningModule) -> int:
        """Return how many growths the network has been through."""
        return 0

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        if pl_module.automatic_optimization:  # else the step goes on after it
            self.accounting.training.stop()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any
    ) -> None:
        self.accounting.training.stop()
        self.accounting.windows.note(trainer, outputs, self.accounting.total)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any
    ) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.accounting.evaluation.start(batch, self.size(pl_module))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.accounting.evaluation.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, _: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.accounting.abort()


class CurveCallback(Counting):
    """Count FLOPs and note a validation metric, as GrowthCallback does in a run that grows.

    The metric is also measured at the end of training, if the last step was not validated.

    Args:
        monitor: the validation metric.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.accounting = Accounting()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.accounting.begin(shares(trainer))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.accounting.training.start(batch, 0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._note(trainer, validation_metrics(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        curve = self.accounting.curve
        if trainer.enable_validation and (not curve or curve[-1].step != trainer.global_step):
            with sandboxed(trainer, pl_module, 0):
                self._note(trainer, evaluate(trainer, self.accounting.of_evaluation(0)))

    def state_dict(self) -> dict[str, Any]:
        return self.accounting.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.accounting.load_state_dict(state_dict)

    def _note(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.accounting.note(trainer, metrics.get(self.monitor))


class _OfSize(Counting):
    def __init__(self, accounting: Accounting, size: int) -> None:
        self.accounting = accounting
        self._size = size

    def size(self, pl_module: LightningModule) -> int:
        return self._size


class Validations:
    """Measures and notes the validation metrics of a run.

    `monitor` is the metric to report; by default the one that a ModelCheckpoint or an EarlyStopping
    monitors, or the first that is logged.
    """

    def __init__(self, monitor: str | None, seed: int, accounting: Accounting) -> None:
        self._monitor = monitor
        self._seed = seed
        self._accounting = accounting
        self.last: tuple[int, dict[str, float]] | None = None  # optimizer step and metrics

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the last validation."""
        return self.last[1] if self.last else {}

    def is_current(self, trainer: Trainer) -> bool:
        """Whether the last validation was at the present optimizer step."""
        return self.last is not None and self.last[0] == trainer.global_step

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Return the metrics of the present network; validate it if that was not yet done."""
        if self.is_current(trainer):
            return self.metrics
        if not trainer.enable_validation:
            return {}
        counting = self._accounting.of_evaluation(size_of(pl_module))
        watching = [*averaged_validation(trainer), counting]  # before the sandbox hides callbacks
        with sandboxed(trainer, pl_module, self._seed):
            metrics = evaluate(trainer, *watching)
        self.note(trainer, metrics)
        return metrics

    def note(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Note metrics of the present step, for the curve of the report."""
        self.last = trainer.global_step, metrics
        value = metrics.get(self.reported(trainer, metrics) or "")
        self._accounting.note(trainer, value)

    def reported(self, trainer: Trainer, metrics: dict[str, float]) -> str | None:
        """Return the name of the metric to report."""
        monitored = [
            callback.monitor
            for callback in callbacks_of(trainer)
            if isinstance(callback, (ModelCheckpoint, EarlyStopping))
        ]
        names = [self._monitor] if self._monitor is not None else [*monitored, *metrics]
        return next((name for name in names if name in metrics), None)

    def check_logged(self, trainer: Trainer, asked: set[str]) -> None:
        """Raise ValueError if the first validation does not log the monitored metrics."""
        logged = validation_names(trainer)
        for name in sorted(asked | ({self._monitor} if self._monitor else set())):
            if name not in logged:
                raise ValueError(
                    f"the validation did not log the metric {name!r} that GrowthCallback "
                    f"monitors; it logged: {', '.join(logged) or 'nothing'}"
                )


def best_checkpoint(trainer: Trainer) -> str | None:
    """Return the path of the run's best checkpoint, or of its last."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            return callback.best_model_path or callback.last_model_path or None
    return None
