"""EarlyStopping gives the large network its patience."""

import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping

from lightning_ligo import Growth, GrowthCallback
from runs import LARGE, Plain, fit


class Scripted(Plain):
    """Validations have these losses, and accuracies that are as much below zero."""

    losses = (3.0, 4.0, 5.0, 3.5, 3.5, 3.5, 3.5, 3.5)

    def validation_step(self, batch, batch_idx):
        loss = self.losses[self.trainer.current_epoch]
        self.log_dict({"val_loss": loss, "val_accuracy": -loss})


class Hold(Callback):
    """What EarlyStopping holds at the first batch after the growth."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.network.head.in_features == 24 and not hasattr(self, "wait_count"):
            stopping = trainer.early_stopping_callback
            self.wait_count, self.best = stopping.wait_count, float(stopping.best_score)


@pytest.mark.parametrize(
    ("what", "epochs", "wait_count", "best"),
    [
        ("keep", 4, 2, 3.0),  # 4, 5 and 3.5 are no better than 3
        ("patience", 6, 0, 3.0),  # three more, none of them better
        ("anew", 7, 0, float("inf")),  # 3.5 is the first of the large network, and three more
    ],
)
@pytest.mark.parametrize("metric", [("val_loss", "min", 1), ("val_accuracy", "max", -1)])
def test_how_long_it_waits_after_a_growth(tmp_path, what, epochs, wait_count, best, metric):
    """The growth is at the fourth epoch, after two validations that were no better."""
    name, mode, sign = metric
    hold = Hold()
    growth = GrowthCallback([Growth(LARGE, epoch=3)], method="lemon", early_stopping=what)
    stopping = EarlyStopping(name, patience=3, mode=mode)
    run = fit(Scripted(), tmp_path, growth, hold, stopping, epochs=8)
    assert (hold.wait_count, hold.best) == (wait_count, sign * best)
    assert run.current_epoch == epochs


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("keep", "EarlyStopping of val_loss has waited for 2 of 3 checks; the best is 3"),
        ("patience", "waited for 2 of 3 checks and restarts; the best is 3"),
        ("anew", "2 of 3 checks and restarts; the best was 3 and is forgotten"),
    ],
)
def test_a_line_says_what_became_of_it(tmp_path, caplog, what, line):
    growth = GrowthCallback([Growth(LARGE, epoch=3)], method="lemon", early_stopping=what)
    with caplog.at_level("INFO"):
        fit(Scripted(), tmp_path, growth, EarlyStopping("val_loss", patience=3), epochs=4)
    assert line in caplog.text
