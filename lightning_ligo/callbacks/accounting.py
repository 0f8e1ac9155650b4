"""What a run spends, and how good its network is by then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_ligo.operator.flops import StepFlops


class Point(NamedTuple):
    """A validation, and what was spent until then."""

    step: int  # of the optimizer
    metric: float | None
    training: int  # FLOPs of training, and of learning operators
    evaluation: int  # FLOPs of all validations, this one too
    seconds: float


class Accounting:
    """What a run has spent on every size of its network, and its curve of validations."""

    def __init__(self) -> None:
        self.training = StepFlops()
        self.evaluation = StepFlops()
        self.operator = 0  # FLOPs of learning
        self.grew_at: list[int] = []  # optimizer steps
        self.curve: list[Point] = []
        self._began: float | None = None

    @property
    def total(self) -> int:
        """FLOPs of all that was done: training, learning operators, and validations."""
        return sum(self.training.totals) + self.operator + sum(self.evaluation.totals)

    def begin(self, shares: int) -> None:
        """At the start of training, or where it goes on; batches have this many parts, of ranks."""
        self.training.ranks = self.evaluation.ranks = shares
        self._began = time.monotonic() - (self.curve[-1].seconds if self.curve else 0.0)

    def grew(self, step: int) -> None:
        """The network has grown at this optimizer step."""
        self.grew_at.append(step)

    def note(self, step: int, metric: float | None) -> None:
        """A validation has ended, at this optimizer step."""
        seconds = time.monotonic() - self._began if self._began is not None else 0.0
        training = sum(self.training.totals) + self.operator
        self.curve.append(Point(step, metric, training, sum(self.evaluation.totals), seconds))

    def of_evaluation(self, size: int) -> Callback:
        """Counts, as a callback, a validation of the network of that size."""
        return _OfEvaluation(self.evaluation, size)

    def abort(self) -> None:
        """Stop without counting, as the step failed."""
        self.training.abort()
        self.evaluation.abort()

    def state_dict(self) -> dict[str, Any]:
        return {
            "training": self.training.state_dict(),
            "evaluation": self.evaluation.state_dict(),
            "operator": self.operator,
            "grew_at": list(self.grew_at),
            "curve": [list(point) for point in self.curve],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.training.load_state_dict(state["training"])
        self.evaluation.load_state_dict(state["evaluation"])
        self.operator = state["operator"]
        self.grew_at = list(state["grew_at"])
        self.curve = [Point(*point) for point in state["curve"]]


class Counting(Callback):
    """Counts the validations of a run, and its steps from where a subclass starts to."""

    spending: Accounting

    def size(self, pl_module: LightningModule) -> int:
        """The size that the network has, of those of the run."""
        return 0

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        if pl_module.automatic_optimization:  # else the step goes on after it
            self.spending.training.stop()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.spending.training.stop()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any
    ) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.spending.evaluation.start(batch, self.size(pl_module))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.spending.evaluation.stop()


class _OfEvaluation(Callback):
    def __init__(self, flops: StepFlops, size: int) -> None:
        self.flops = flops
        self.size = size

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any
    ) -> None:
        self.flops.start(batch, self.size)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.flops.stop()
