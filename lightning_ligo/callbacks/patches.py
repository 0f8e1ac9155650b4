"""Methods of the strategy that are wrapped while a run goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer


class Patches:
    """Wraps methods of a strategy, and restores them."""

    def __init__(self) -> None:
        self._patched: list[tuple[object, str]] = []

    def wrap(self, trainer: Trainer, name: str, wrapper: Callable[..., Any]) -> None:
        """Call `wrapper(original, trainer, ...)` in place of the strategy's method."""
        original = getattr(trainer.strategy, name)
        setattr(trainer.strategy, name, functools.partial(wrapper, original, trainer))
        self._patched.append((trainer.strategy, name))

    def undo(self) -> None:
        """Restore all methods."""
        while self._patched:
            owner, name = self._patched.pop()
            vars(owner).pop(name, None)
