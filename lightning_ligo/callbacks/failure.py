"""Growths that fail for want of memory or with numbers that are not finite, on all ranks alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from lightning.pytorch import Trainer

OnFailure = Literal["stop", "continue"]

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class GrowthFailedError(RuntimeError):
    """A growth has failed; the network and its optimizers are as they were before it."""


@contextmanager
def alike(trainer: Trainer) -> Iterator[None]:
    """Fail on all ranks if what is done within fails on one, for want of memory or by its numbers.

    Other errors pass as they are. A rank that fails while others wait for it, in a reduction that
    the module's own step makes, is waited for until the process group gives up.

    Raises:
        GrowthFailedError: saying why.
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
                "less, such as ligo-low-rank, or nothing, such as lemon, or a smaller network"
            ) from error
        raise GrowthFailedError(str(error or "another rank has failed, and says why")) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device, or the host, has no memory left.

    >>> is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    True
    >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    )
