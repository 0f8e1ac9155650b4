"""Validation metrics of a run that grows: measured at growths, and noted for the report."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_ligo.callbacks.accounting import Accounting
from lightning_ligo.callbacks.averaging import averaged_validation
from lightning_ligo.trainer.checkpoint import size_of
from lightning_ligo.trainer.lightning import callbacks_of, validation_names
from lightning_ligo.trainer.sandbox import sandboxed
from lightning_ligo.trainer.steps import evaluate


class Validations:
    """Measures and notes the validation metrics of a run.

    Args:
        monitor: metric to report; by default the one that a ModelCheckpoint or an EarlyStopping
            monitors, or the first that is logged.
        seed: seed of validations at growths.
        accounting: where FLOPs are counted and metrics are noted.
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
        """Check that the first validation logs the monitored metrics.

        Raises:
            ValueError: naming the metric that is missing.
        """
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
