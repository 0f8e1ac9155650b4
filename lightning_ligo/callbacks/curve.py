"""CurveCallback: what a run that does not grow spends, and how good its network is by then."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_ligo.callbacks.accounting import Accounting, Counting
from lightning_ligo.trainer.sandbox import sandboxed
from lightning_ligo.trainer.sharding import shares
from lightning_ligo.trainer.steps import evaluate, validation_metrics


class CurveCallback(Counting):
    """Count FLOPs and note a validation metric, as GrowthCallback does in a run that grows.

    The metric is measured at the end of training too, if the last step was not validated.

    Args:
        monitor: the validation metric.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.spending = Accounting()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.spending.begin(shares(trainer))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.spending.training.start(batch, 0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._note(trainer, validation_metrics(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        curve = self.spending.curve
        if trainer.enable_validation and (not curve or curve[-1].step != trainer.global_step):
            with sandboxed(trainer, pl_module, 0):
                self._note(trainer, evaluate(trainer, self.spending.of_evaluation(0)))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, _: BaseException) -> None:
        self.spending.abort()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.spending.abort()

    def state_dict(self) -> dict[str, Any]:
        return self.spending.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.spending.load_state_dict(state_dict)

    def _note(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.spending.note(trainer.global_step, metrics.get(self.monitor))
