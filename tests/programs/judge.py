"""Judge whether what is told of a growth is what a program measures itself.

A program prints a line that begins with OK or FAIL for each thing that it asks.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import lightning_ligo as ligo

torch.set_num_threads(1)
torch.manual_seed(0)  # of what a program makes before its growth
warnings.filterwarnings("ignore")


@dataclass
class Outcome:
    """What a growth has done to outputs of a network, and what was told of it."""

    told: str = ""
    before: Tensor | None = None
    after: Tensor | None = None
    error: Exception | None = None
    step: int = 0  # at which the run has ended
    control: str = ""  # how the run ends without its growth, if it failed
    module: Any = field(default=None, repr=False)

    @property
    def change(self) -> float:
        """Relative change of the outputs."""
        if self.before is None or self.after is None or self.before.shape != self.after.shape:
            return math.nan
        return float((self.after - self.before).norm() / self.before.norm())

    @property
    def grew(self) -> bool:
        return self.error is None and bool(self.told)

    @property
    def refused(self) -> bool:
        """Whether the run was refused at its start, and goes well without the growth."""
        return isinstance(self.error, ValueError) and self.step == 0 and self.control == "fine"

    def honest(self, bound: float = 1e-4) -> bool:
        """Whether "kept" is told if and only if the outputs are kept; NaN is no growth."""
        kept = self.told.startswith("the function is kept")
        return self.grew and math.isfinite(self.change) and kept == (self.change < bound)

    def kept(self, bound: float = 1e-4) -> bool:
        """Whether the outputs are kept, and told to be."""
        return self.honest(bound) and self.change < bound

    def __str__(self) -> str:
        if self.error is not None:
            words = f"{type(self.error).__name__} at step {self.step}: {str(self.error)[:700]}"
            return f"{words} | the same run without growth: {self.control or 'not tried'}"
        if not math.isfinite(self.change):
            return f"told: {self.told}"
        return f"changed by {self.change:.1e}; told: {self.told}"


def grown(
    small: nn.Module,
    large: nn.Module,
    *args: Any,
    method: str = "lemon",
    see: Callable | None = None,
    **kwargs: Any,
) -> Outcome:
    """Grow a network outside of a run; see the first output unless told what to see."""
    outcome, see = Outcome(), see or (lambda network: first(network(*args, **kwargs)))
    try:
        with torch.no_grad():
            outcome.before = see(small)
        plan = ligo.pair(small, large, *args, **kwargs)
        calls = [ligo.Call(args, kwargs)]
        outcome.told = ligo.measure(plan, small, large, calls, method=method).sentence
        ligo.grow(small, large, *args, method=method, **kwargs)
        with torch.no_grad():
            outcome.after = see(large)
    except Exception as error:
        outcome.error = error
    return outcome


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def noisy(network: nn.Module, scale: float) -> nn.Module:
    """The network with noise on its weights, so that no zero or one hides a fault."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += scale * torch.randn_like(parameter)
    return network


def say(ok: object, *words: object) -> None:
    print("OK" if ok else "FAIL", *words, flush=True)
