"""The named methods: how maps and depth mixes start, and what is learned for how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_ligo.maps import (
    Mix,
    Start,
    interleaved_silent,
    isometric_copies,
    noisy_stack,
    random_rows,
    uneven_copies,
)


@dataclass(frozen=True)
class Method:
    """A way to grow, as data.

    ``learns`` is what the operator's coefficients are: nothing; the ``lower`` part C of maps
    ``B = A = [I; C]``, one for each flow; or ``both`` forms of the map of each axis, whole and
    free. Depth mixes are learned whenever maps are.
    """

    name: str
    idea: str
    source: str
    width: Start
    inner: Start  # of axes that queries and keys are contracted over
    depth: Mix
    learns: Literal["nothing", "lower", "both"]
    keeps_function: bool
    mixes_equal_depth: bool = False  # mix the layers of a stack that does not grow, too
    steps: int = 0
    learning_rate: float = 0.0
    warmup: int = 0


_METHODS = (
    Method(
        "ligo",
        "both forms of every map and the depth mix learned from the lossless start",
        "LiGO (ICLR 2023), equation 5, from a function-preserving start",
        uneven_copies,
        isometric_copies,
        interleaved_silent,
        learns="both",
        keeps_function=True,
        steps=100,
        learning_rate=1e-3,
        warmup=10,
    ),
    Method(
        "ligo-paper",
        "maps B = A = [I; C] and the depth mix learned from a random start",
        "LiGO (ICLR 2023), as its released code defines it",
        random_rows,
        random_rows,
        noisy_stack,
        learns="lower",
        keeps_function=False,
        mixes_equal_depth=True,
        steps=100,
        learning_rate=3e-3,
        warmup=10,
    ),
    Method(
        "lossless",
        "the start of ligo, not learned: copies with unequal shares, new layers that add nothing",
        "Net2Net (ICLR 2016), LEMON (ICLR 2024)",
        uneven_copies,
        isometric_copies,
        interleaved_silent,
        learns="nothing",
        keeps_function=True,
    ),
)
METHODS = {method.name: method for method in _METHODS}


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; the methods are {', '.join(METHODS)}")
    return METHODS[name]
