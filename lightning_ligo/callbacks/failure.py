"""Growths that fail on all ranks: out of memory, or with numbers that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from lightning.pytorch import Trainer

from lightning_ligo.schedule import Growth

OnFailure = Literal["stop", "continue"]

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class GrowthFailedError(RuntimeError):
    """A growth has failed; the network and its optimizers are restored."""


@contextmanager
def alike(trainer: Trainer) -> Iterator[None]:
    """Fail on all ranks if the code within runs out of memory or into infinite numbers on one.

    Other errors are not changed. If a rank fails while others wait in a reduction of the module's
    own step, they wait until the process group times out.

    Raises:
        GrowthFailedError: naming the cause.
    """
    error: Exception | None = None
    try:
        yield
    except (MemoryError, RuntimeError, FloatingPointError) as caught:
        if not isinstance(caught, FloatingPointError) and not is_out_of_memory(caught):
            raise
        error = caught
    short = error is not None and not isinstance(error, FloatingPointError)
    short_somewhere = trainer.strategy.reduce_boolean_decision(short, all=False)
    if trainer.strategy.reduce_boolean_decision(error is not None, all=False):
        if short_somewhere:
            where = str(error).strip() if short else "on another rank"
            raise GrowthFailedError(
                f"there was not enough memory ({where}); use smaller batches, a method that learns "
                "less (ligo-low-rank) or nothing (lemon), or a smaller network"
            ) from error
        raise GrowthFailedError(str(error or "another rank has failed; see its error")) from error


def stopping_error(number: int, growth: Growth, step: int, why: str) -> GrowthFailedError:
    """Return the error that ends a run after a failed growth."""
    return GrowthFailedError(
        f"growth {number} (at {growth.when}, to {growth.changes}) failed at step {step}: {why}. "
        "The network and the optimizers are restored; resume the run from its last checkpoint when "
        "the cause is removed, or with GrowthCallback(on_failure='continue') to train the small "
        "network"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error reports that a device or the host is out of memory.

    >>> is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    True
    >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    )
