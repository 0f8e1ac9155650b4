"""Measure by how much a growth changes what a network computes, and where."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ligo.axes.axes import Output
from lightning_ligo.axes.calls import (
    Call,
    Steady,
    copied,
    make_steadily,
    passed_on,
    tensors_in,
    with_tensors,
)
from lightning_ligo.axes.proof import prepared, relative
from lightning_ligo.methods.catalog import DEFAULT, method_named
from lightning_ligo.methods.method import Method
from lightning_ligo.operator.operator import Operator
from lightning_ligo.operator.ramp import Ramp
from lightning_ligo.operator.reading import (
    Unreadable,
    first_change,
    places_of,
    read_output,
    recording,
)
from lightning_ligo.plan.plan import Plan

KEPT = 1e-4
"""A relative change up to which a function is kept.

Deep networks with noise on their weights enlarge the rounding of float32 to 1e-5; the smallest
difference that is no rounding, such as an unbiased variance over more entries, is about 1e-3.
"""
HIDDEN = 1e-3  # up to here modules may change where no output does: norms add their epsilon
ROUNDING = 1e-2  # up to here a change in float32 may be rounding, and float64 tells
LONGEST = 20_000_000  # parameters of a network that is tried with longer texts on the CPU


@dataclass(frozen=True)
class Change:
    """By how much a growth changes what a network computes; ``str`` says it in a few words.

    Args:
        change: the largest relative change of an output, infinite if one is not finite; None if it
            was not measured. Where no output changes, but what a module computes does, as in front
            of a choice that comes out the same on these inputs, it is that of the module.
        place: the first module of the large network whose output differs, if one is found.
        why: why it, or some output, was not measured.
    """

    change: float | None
    place: str | None = None
    why: str = ""

    @property
    def kept(self) -> bool:
        """Whether the function was measured and is kept, to rounding."""
        return self.change is not None and self.change <= KEPT

    @property
    def is_finite(self) -> bool:
        """Whether no output is known not to be finite."""
        return self.change is None or math.isfinite(self.change)

    @property
    def sentence(self) -> str:
        """What has become of the function, as a sentence."""
        verb = "" if self.is_finite and not self.kept and self.change is not None else "is "
        return f"the function {verb}{self}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data; a change that is not finite is the word for it."""
        change = self.change if self.is_finite else str(self.change)
        return {"change": change, "place": self.place, "why": self.why}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Change:
        """Read what `to_dict` has returned."""
        change = plain["change"]
        return cls(None if change is None else float(change), plain["place"], plain["why"])

    def __str__(self) -> str:
        if self.change is None:
            return f"not measured: {self.why}"
        text = f"changes by {_percent(self.change)}"
        if self.kept:
            text = f"kept, to {f'{self.change:.0e}'.replace('e-0', 'e-') if self.change else 0}"
        elif not self.is_finite:
            text = "not finite"
        place = f", first at {self.place}" if self.place else ""
        return f"{text}{place}{f' ({self.why})' if self.why else ''}"


def measure(
    plan: Plan,
    small: nn.Module,
    large: nn.Module,
    calls: Sequence[Call],
    large_calls: Sequence[Call] | None = None,
    method: str | Method = DEFAULT,
    seed: int = 0,
) -> Change:
    """Grow a copy of the small network, with noise on all its tensors, and compare outputs.

    What the method leaves fresh is as ``large`` was built. Copies of both make all calls with the
    same random numbers, then on other inputs of the same kind, and on texts of twice the length.
    Where no output changes, what the modules of both compute is compared.

    Args:
        plan, small, large: the networks, and the plan of both.
        calls: those for which the plan was made.
        large_calls: those of the large network, if it is called otherwise; it may take both.
        method: a name of `METHODS`, two joined by a plus, or a `Method`.
        seed: of the random part of the method.

    Example:
        >>> from lightning_ligo.plan.pair import pair
        >>> small = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> large = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
        >>> x = torch.randn(3, 4)
        >>> measure(pair(small, large, x), small, large, [Call((x,))], method="lemon").kept
        True
        >>> measure(pair(small, large, x), small, large, [Call((x,))], method="random").why
        'nothing is taken from the small network'
    """
    method = method_named(method) if isinstance(method, str) else method
    if (reason := _reason(small, large, method)) is not None:
        return Change(None, why=reason)

    def grown(dtype: torch.dtype = torch.float32, noise: bool = True) -> tuple[_Pair, Change]:
        copy, given = prepared(small, calls, dtype)
        if not noise:
            copy = copied(small, _cast(dtype))
        pair = _grown(Operator(plan, copy, method, seed), copy, large, given, dtype)
        return pair, pair.compared()

    try:
        pair, change = grown()
        if change.change is None:  # by the noise, outputs may not be finite
            pair, change = grown(noise=False)
        if change.change is not None and KEPT < change.change < ROUNDING:
            del pair
            with suppress(Exception):  # an operation or a device without float64
                pair, change = grown(torch.float64)
        for more in (_others, _longer):
            if change.kept and (calls := more(pair)):
                change = max(change, pair.on(calls), key=lambda each: each.change or 0.0)
    except (torch.OutOfMemoryError, MemoryError):
        return Change(None, why="there is not enough memory")
    except Exception as error:
        other = "the large network is called with other inputs: " if large_calls else ""
        return Change(None, why=f"{other}{type(error).__name__}: {_line(error)}")
    return change


def _grown(
    operator: Operator,
    small: nn.Module,
    large: nn.Module,
    calls: Sequence[Call],
    dtype: torch.dtype,
) -> _Pair:
    """Grow a copy of the large network."""
    large = copied(large, _cast(dtype, next(small.parameters()).device))
    operator.bake(large)
    return _Pair(operator, small, large, calls)


def told(change: Change, method: Method) -> str:
    """Return the line that says how a method changes the function, before it is grown.

    Warns if the method promises to keep the function and does not.

    Raises:
        ValueError: if the large network would return what is not finite.
    """
    if not change.is_finite:
        raise ValueError(
            f"grown by {method.name!r}, the large network returns what is {change}; grow it by "
            "another method, or change what computes it there"
        )
    if method.keeps_function and change.change is not None and not change.kept:
        warnings.warn(
            f"method {method.name!r} promises to keep the function, and it {change}", stacklevel=2
        )
    return f"{change.sentence}, by a copy with noise on its weights"


@torch.no_grad()
def compare(
    operator: Operator, small: nn.Module, large: nn.Module, calls: Sequence[Call]
) -> Change:
    """Compare a network with the one that an operator has grown from it, with their own weights.

    Copies of both make the calls, with the same random numbers. Those of networks in half precision
    are grown and compared in float32, in which a change is no rounding.
    """
    if (reason := _reason(small, large, operator.method)) is not None:
        return Change(None, why=reason)
    is_half = any(p.dtype in (torch.float16, torch.bfloat16) for p in small.parameters())
    cast = _cast(torch.float32) if is_half else Tensor.clone
    try:
        small, large = copied(small, cast), copied(large, cast)
        if is_half:
            operator = operator.of(small)
            operator.bake(large)
        return _Pair(operator, small, large, with_tensors(calls, cast)).compared()
    except (torch.OutOfMemoryError, MemoryError):
        return Change(None, why="there is not enough memory")
    except Exception as error:
        return Change(None, why=f"{type(error).__name__}: {_line(error)}")


@torch.no_grad()
def compare_in_turn(
    operator: Operator,
    small: Callable[[], nn.Module],
    large: Callable[[], nn.Module],
    calls: Sequence[Call],
) -> Change:
    """Compare a network with the one grown from it; only one of them is in memory at a time.

    Weights in half precision stay so, and are computed with in float32. The place of a change is
    not looked for.
    """
    steady = Steady()

    def outputs(build: Callable[[], nn.Module]) -> list[list[Tensor]]:
        network = build().eval()
        with _in_float32(network):
            return make_steadily(network, calls, steady)

    try:
        change, why = _largest(operator, calls, outputs(small), outputs(large))
    except (torch.OutOfMemoryError, MemoryError):
        return Change(None, why="there is not enough memory")
    except RuntimeError as error:
        return Change(None, why=f"it does not compute in float32: {_line(error)}")
    return Change(change, why=why)


@contextmanager
def _in_float32(network: nn.Module) -> Iterator[None]:
    """Have every module compute in float32; its own tensors are converted only while it runs."""
    halves: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def convert(module: nn.Module, _: Any) -> None:
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        half = [(t, t.data) for t in own if t.dtype in (torch.float16, torch.bfloat16)]
        halves.setdefault(module, []).extend(half)
        for tensor, data in half:
            tensor.data = data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for tensor, data in halves.pop(module, []):
            tensor.data = data

    with ExitStack() as stack:
        for module in network.modules():
            stack.callback(module.register_forward_pre_hook(convert).remove)
            stack.callback(module.register_forward_hook(restore, always_call=True).remove)
        yield


def _reason(small: nn.Module, large: nn.Module, method: Method) -> str | None:
    """Say why a growth cannot be measured, if it cannot."""
    if method.takes_nothing:
        return "nothing is taken from the small network"
    for which, network in (("small", small), ("large", large)):
        if any(tensor.is_meta for tensor in network.parameters()):
            return f"the {which} network is on the meta device"
    return None


class _Pair:
    """A small network and the large one that was grown from it, and their calls."""

    def __init__(
        self, operator: Operator, small: nn.Module, large: nn.Module, calls: Sequence[Call]
    ) -> None:
        self.operator, self.small, self.large, self.calls = operator, small, large, calls
        self._steady = Steady()
        if operator.method.ramp:
            Ramp(operator, large)

    def compared(self) -> Change:
        """Compare the outputs of all calls, and look for the place where they begin to differ.

        Signs, choices and saturated layers hide a change that other inputs would show; what the
        modules in front of them compute tells it.
        """
        places = places_of(self.operator, self.large)
        with recording(self.small, {place.small for place in places.values()}) as before:
            small = self._made(self.small)
        with recording(self.large, places) as after:
            large = self._made(self.large)
        change, why = _largest(self.operator, self.calls, small, large)
        if change is None:
            return Change(None, why=why)
        hidden = change <= KEPT
        first = first_change(self.operator, places, before, after, HIDDEN if hidden else KEPT)
        if first is None or (hidden and math.isinf(first[1])):
            return Change(change, why=why)
        return Change(first[1] if hidden else change, first[0], why)

    def on(self, calls: Sequence[Call]) -> Change:
        """Compare on other inputs; nothing has changed if a network does not take them."""
        before, self.calls = self.calls, calls
        try:
            return self.compared()
        except Exception:  # such as a text that is longer than the table of positions
            return Change(0.0)
        finally:
            self.calls = before

    def _made(self, network: nn.Module) -> list[list[Tensor]]:
        return make_steadily(network, self.calls, self._steady)


def _largest(
    operator: Operator,
    calls: Sequence[Call],
    small: list[list[Tensor]],
    large: list[list[Tensor]],
) -> tuple[float | None, str]:
    """Return the largest change of an output, and what could not be compared.

    What a function returns for others, such as the transpose of a weight, is no output.
    """
    dims = iter(operator.plan.outputs)
    inner = {number for number in passed_on(calls) if calls[number].is_function}
    changes, left_out = [], []
    for call, (before, after) in enumerate(zip(small, large, strict=True)):
        of_call = [next(dims, Output()) for _ in after]
        if call in inner:
            continue
        pairs = list(zip(before, after, of_call, strict=False))
        if len(before) != len(after):  # as with the states of all layers
            pairs = _first(pairs)
            left_out.append(f"all but the first of {len(before)} and {len(after)} outputs")
        for leaf, (one, other, read) in enumerate(pairs):
            try:
                changes.append(relative(one, read_output(operator, one, other, read)))
            except Unreadable as error:
                left_out.append(f"output {leaf} of call {call}: {error}")
    finite = [change for change in changes if not math.isnan(change)]
    why = "; ".join(dict.fromkeys(left_out))
    why = f"not compared: {why}" if why and finite else why
    if not finite:
        return None, why or "the outputs of the small network are not finite"
    return max(finite), why


def _first(pairs: list[tuple[Tensor, Tensor, Any]]) -> list[tuple[Tensor, Tensor, Any]]:
    """Keep the losses, and the first output that is none: the rest need not be in one order."""
    first = next((n for n, (one, _, _) in enumerate(pairs) if one.dim()), len(pairs))
    return pairs[: first + 1]


# Other inputs -----------------------------------------------------------------------------------


def _others(pair: _Pair) -> list[Call]:
    """Make other inputs of the same kind: entries come from other samples, with some noise.

    Whole numbers stay within what stood in their place, and masks are kept.
    """
    generator = torch.Generator().manual_seed(1)

    def other(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or not tensor.numel() or _is_mask(tensor):
            return tensor
        order = torch.rand(tensor.shape, generator=generator).argsort(0).to(tensor.device)
        shuffled = tensor.gather(0, order)
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            return shuffled
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        return shuffled + 0.3 * tensor.std(correction=0) * noise

    return with_tensors(pair.calls, other)


def _is_mask(tensor: Tensor) -> bool:
    if tensor.is_complex() or tensor.dtype == torch.bool or not bool(tensor.isfinite().all()):
        return True
    return bool(((tensor == 0) | (tensor == 1)).all())


def _longer(pair: _Pair) -> list[Call]:
    """Make texts of twice the length, if there are texts; on the CPU, where a miss is harmless."""
    tensors = tensors_in(pair.calls)
    texts = [tensor for tensor in tensors if _is_text(tensor)]
    if not texts or any(tensor.is_floating_point() for tensor in tensors):
        return []
    cpu = torch.device("cpu")
    if texts[0].device != cpu:
        if sum(parameter.numel() for parameter in pair.large.parameters()) > LONGEST:
            return []
        pair.small.to(cpu), pair.large.to(cpu), pair.operator.to(cpu)
    batch, length = texts[0].shape[0], texts[0].shape[-1]
    generator = torch.Generator().manual_seed(2)

    def longer(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().to(cpu)
        if tensor.dim() and tensor.shape[-1] == length and (tensor.dim() > 1 or batch != length):
            order = torch.randperm(length, generator=generator)
            tensor = torch.cat([tensor, tensor[..., order]], -1)
        return tensor

    return with_tensors(pair.calls, longer)


def _is_text(tensor: Tensor) -> bool:
    whole = not tensor.is_floating_point() and not tensor.is_complex()
    return whole and tensor.dtype != torch.bool and tensor.dim() == 2 and tensor.shape[-1] > 1


def _cast(dtype: torch.dtype, device: torch.device | None = None) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.detach().to(
        device or tensor.device, dtype if tensor.is_floating_point() else tensor.dtype, copy=True
    )


def _percent(change: float) -> str:
    percent = 100 * change
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
