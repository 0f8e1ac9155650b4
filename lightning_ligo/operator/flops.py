"""Count the floating point operations of training, with torch's own counter.

A matrix product of (a x b) and (b x c) is `2 a b c`. Only products and convolutions count, as is
usual. Fused attention counts as its products, with those that its backward computes again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from torch.utils.module_tracker import ModuleTracker

from lightning_ligo.axes.calls import uncompiled_flex

MAX_KINDS = 100
"""Kinds of batches that are counted for one network; further ones cost their average."""


def flop_counter() -> FlopCounterMode:
    """Make torch's counter, which counts attention on CPUs, too.

    >>> heads = torch.ones(2, 4, 8, 16)  # (batch, heads, positions, length of a head)
    >>> with flop_counter() as count:
    ...     out = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    >>> count.get_total_flops() == 2 * (2 * 2 * 4 * 8 * 8 * 16)
    True
    """
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(
            *shapes[:3]
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: (
            sdpa_backward_flop_count(*shapes[:4])
        ),
    }
    return _FlopCounter(display=False, custom_mapping=attention)


class _FlopCounter(FlopCounterMode):
    """Runs compiled modules eagerly, as compiled code does not run under a counter."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.mod_tracker = _NoModules()

    def __enter__(self) -> _FlopCounter:
        self._eager = ExitStack()
        self._eager.enter_context(torch.compiler.set_stance("force_eager"))
        self._eager.enter_context(uncompiled_flex())
        super().__enter__()
        self._eager.enter_context(_FlexAttention(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._eager.close()
        super().__exit__(*error)


class _FlexAttention(TorchDispatchMode):
    """Runs flex attention, for which torch's counter has a formula and no way to run it."""

    supports_higher_order_operators = True

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self._counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not func.__name__.startswith("flex_attention"):
            return func(*args, **kwargs)
        with _disable_current_modes():
            out = func(*args, **kwargs)
        return self._counter._count_flops(func, out, args, kwargs)


class _NoModules(ModuleTracker):
    """Tracks no modules: that takes hooks on all of them, which compiled ones warn about."""

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class StepFlops:
    """Counts the steps of training or evaluation for every size of a network.

    The first batch of a kind (its tree of shapes and dtypes) is counted while it is used; later
    ones of that kind cost the same. The optimizer is not counted.
    """

    def __init__(self) -> None:
        self.totals: list[int] = []  # for every size
        self._kinds: list[dict[str, int]] = []  # for every size: kind of batch -> operations
        self._running: tuple[FlopCounterMode, int, str] | None = None
        self.ranks = 1  # processes, each on its own batches

    def start(self, batch: Any, size: int) -> None:
        """Start counting, just before the network of that size uses a batch."""
        while len(self.totals) <= size:
            self.totals.append(0)
            self._kinds.append({})
        kinds, kind = self._kinds[size], kind_of(batch)
        if kind in kinds:
            self.totals[size] += self.ranks * kinds[kind]
        elif len(kinds) >= MAX_KINDS:
            self.totals[size] += self.ranks * sum(kinds.values()) // len(kinds)
        else:
            counter = flop_counter()
            counter.__enter__()
            self._running = counter, size, kind

    def stop(self) -> None:
        """Stop counting, after the step and its backward."""
        if self._running is not None:
            (counter, size, kind), self._running = self._running, None
            counter.__exit__(None, None, None)
            self._kinds[size][kind] = counter.get_total_flops()
            self.totals[size] += self.ranks * self._kinds[size][kind]

    def abort(self) -> None:
        """Stop without a result, as the step failed."""
        if self._running is not None:
            (counter, *_), self._running = self._running, None
            counter.__exit__(None, None, None)

    def state_dict(self) -> dict[str, Any]:
        return {"totals": list(self.totals), "kinds": [dict(kinds) for kinds in self._kinds]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.totals = list(state["totals"])
        self._kinds = [dict(kinds) for kinds in state["kinds"]]


def kind_of(batch: Any) -> str:
    """Write the structure of a batch with the shape and dtype of every tensor.

    >>> import torch
    >>> kind_of({"x": torch.zeros(2, 3)}) == kind_of({"x": torch.ones(2, 3)})
    True
    >>> kind_of({"x": torch.zeros(2, 3)}) == kind_of({"x": torch.zeros(2, 4)})
    False
    """
    leaves, structure = tree_flatten(batch)
    words = [
        f"{leaf.dtype}{list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
        for leaf in leaves
    ]
    return f"{structure} {' '.join(words)}"
