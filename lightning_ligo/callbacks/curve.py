"""CurveCallback: counts FLOPs and notes validations of a run that does not grow."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_ligo.callbacks.accounting import Accounting, Counting
from lightning_ligo.trainer.sandbox import evaluate, sandboxed, validation_metrics
from lightning_ligo.trainer.sharding import shares


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

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, _: BaseException) -> None:
        self.accounting.abort()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.accounting.abort()

    def state_dict(self) -> dict[str, Any]:
        return self.accounting.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.accounting.load_state_dict(state_dict)

    def _note(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.accounting.note(trainer, metrics.get(self.monitor))
