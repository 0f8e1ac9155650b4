"""Record the calls that a step makes of a network, of its parts, and of functions between them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from lightning_ligo.axes.calls import (
    Call,
    Result,
    found,
    make_one,
    mapped,
    outputs_of,
    passed_on,
    without_gradients,
)

OWN = {*dir(nn.Module), *dir(LightningModule)} - {"forward"}
"""Names of methods that compute nothing of a network's own."""


@dataclass
class Use:
    """What a call did.

    Args:
        parameters: names of the parameters that it computed with.
        operations: names of the functions that it called.
        shapes: of the tensors that it returned.
    """

    parameters: set[str] = field(default_factory=set)
    operations: set[str] = field(default_factory=set)
    shapes: list[torch.Size] = field(default_factory=list)

    def covers(self, other: Use) -> bool:
        return self.parameters >= other.parameters and self.operations >= other.operations


class Recorder(TorchFunctionMode):
    """Records the outermost calls of a network and of its parts, within `recording`.

    Functions on what the calls returned are recorded too, as they may lead to the next call.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[Call] = []
        self.uses: list[Use] = []
        self._names = {id(p): name for name, p in network.named_parameters()}
        self._dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
        self._depth = 0
        self._begun: tuple[Call, Use] | None = None
        self._places: dict[int, Result] = {}
        self._held: list[Any] = []  # so that no other tensor gets the id of one

    # The network ----------------------------------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls that are made within the context."""
        undo: list[Callable[[], object]] = []
        for path, module in self.network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks
                continue
            for name in _methods(module):
                before = vars(module).get(name)
                method = self._wrapped(path, name, getattr(module, name))
                vars(module)[name] = method
                undo.append(functools.partial(_put_back, module, name, before))
            before_call = functools.partial(self._before, path)
            undo += [
                module.register_forward_pre_hook(
                    before_call, prepend=True, with_kwargs=True
                ).remove,
                module.register_forward_hook(
                    self._after, with_kwargs=True, always_call=True
                ).remove,
            ]
        try:
            with self:
                yield
        finally:
            for each in reversed(undo):
                each()

    def _before(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._begin(path, "__call__", args, kwargs)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        self._end(out)

    def _wrapped(self, path: str, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            out = None
            self._begin(path, name, args, kwargs)
            try:
                out = method(*args, **kwargs)
            finally:
                self._end(out)
            return out

        return recorded

    def _begin(self, path: str, method: str, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth == 1:
            args, kwargs = self._given((args, kwargs))
            training = self.network.get_submodule(path).training
            self._begun = Call(args, kwargs, path, method, training), self._begin_use(path)

    def _begin_use(self, path: str) -> Use:
        """Begin with the parameters of scripted parts, of which no function is seen."""
        parts = self.network.get_submodule(path).modules()
        scripted = [part for part in parts if isinstance(part, torch.jit.ScriptModule)]
        return Use({self._names[id(p)] for part in scripted for p in part.parameters()})

    def _end(self, out: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and self._begun is not None:
            begun, self._begun = self._begun, None
            self._keep(*begun, out)

    def _keep(self, call: Call, use: Use, out: Any) -> None:
        """Remember a call, and the places of the tensors that it returned."""
        tensors = outputs_of(out)
        if not tensors and not use.parameters:
            return
        use.shapes = [tensor.shape for tensor in tensors]
        for leaf, tensor in enumerate(tensors):
            self._places[id(tensor)] = Result(len(self.calls), leaf)
        self._held.append(tensors)
        self.calls.append(call)
        self.uses.append(use)

    def _given(self, arguments: Any) -> Any:
        """Copy arguments, in the precision of the network; what a call returned is a `Result`."""

        def given(tensor: Tensor) -> Any:
            if id(tensor) in self._places:
                return self._places[id(tensor)]
            with torch.inference_mode(False):
                tensor = tensor.detach().clone()
                return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

        return mapped(arguments, Tensor, given)

    # Functions ------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ids = {id(tensor) for tensor in found((args, kwargs), Tensor)}
        if self._depth:
            out = func(*args, **kwargs)
            if out is None or found(out, Tensor):  # else it reads a shape
                self._use(ids, resolve_name(func) or str(func))
            return out
        if ids.isdisjoint(self._places):
            return func(*args, **kwargs)
        args_given, kwargs_given = self._given((args, kwargs))
        call = Call(args_given, kwargs_given, method=func)
        out = func(*args, **kwargs)
        self._keep(call, Use(), out)
        return out

    def _use(self, ids: set[int], operation: str) -> None:
        if self._begun is not None:
            _, use = self._begun
            use.parameters.update(self._names[each] for each in ids & self._names.keys())
            use.operations.add(operation)

    # Afterwards -----------------------------------------------------------------------------------

    def settled(self) -> tuple[list[Call], list[Use]]:
        """Return the calls that differ, and what they did.

        A call in training mode that uses the same parameters in evaluation mode, and returns as
        much, is made in evaluation mode, in which nothing is random and norms are fixed.
        """
        calls, uses, results = list(self.calls), list(self.uses), [list[Tensor]()] * len(self.calls)
        made = []
        for number in _chosen(calls, uses):
            for call in _in_modes(calls[number]):
                try:
                    results[number], use = self._made_again(call, results)
                except Exception:  # not in this mode
                    continue
                seen = uses[number]
                same = use.parameters >= seen.parameters and use.shapes == seen.shapes
                if same or call.training == calls[number].training:
                    calls[number], uses[number] = call, use
                    made.append(number)
                    break
        return _picked(calls, uses, _chosen(calls, uses, made))

    def _made_again(self, call: Call, results: list[list[Tensor]]) -> tuple[list[Tensor], Use]:
        """Make a call once more; return the tensors, and what it did."""
        use = self._begin_use(call.path)
        self._begun, self._depth = (call, use), 1
        try:
            with self:
                (made,) = without_gradients(lambda: [make_one(self.network, call, results)])
        finally:
            self._begun, self._depth = None, 0
        use.shapes = [tensor.shape for tensor in made]
        return made, use


def joined(seen: Sequence[tuple[list[Call], list[Use]]]) -> tuple[list[Call], list[Use]]:
    """Return the calls that differ among those that several recorders have settled."""
    calls, uses = list[Call](), list[Use]()
    for settled, did in seen:
        places = {number: len(calls) + number for number in range(len(settled))}
        calls += [_renumbered(call, places) for call in settled]
        uses += did
    return _picked(calls, uses, _chosen(calls, uses))


def _in_modes(call: Call) -> list[Call]:
    """Return a call in evaluation mode, and in training mode if it was made in that."""
    return [replace(call, training=False), call] if call.training else [call]


def _chosen(
    calls: Sequence[Call], uses: Sequence[Use], among: Sequence[int] | None = None
) -> list[int]:
    """Choose the calls that differ from all others, and those whose results they take."""
    chosen: list[int] = []
    for number in range(len(calls)) if among is None else among:
        if not uses[number].parameters:
            continue
        rivals = [each for each in chosen if are_alike(calls[each], calls[number])]
        if not any(uses[each].covers(uses[number]) for each in rivals):
            chosen = [c for c in chosen if c not in rivals or not uses[number].covers(uses[c])]
            chosen.append(number)
    needed, left = set(chosen), list(chosen)
    while left:
        for number in passed_on([calls[left.pop()]]) - needed:
            needed.add(number)
            left.append(number)
    return sorted(needed)


def _picked(
    calls: Sequence[Call], uses: Sequence[Use], chosen: Sequence[int]
) -> tuple[list[Call], list[Use]]:
    places = {number: place for place, number in enumerate(chosen)}
    return [_renumbered(calls[n], places) for n in chosen], [uses[n] for n in chosen]


def are_alike(call: Call, other: Call) -> bool:
    """Whether two calls are of one method and mode, with as many results of others."""
    linked = [len(found((each.args, each.kwargs), Result)) for each in (call, other)]
    return linked[0] == linked[1] and all(
        getattr(call, name) == getattr(other, name) for name in ("path", "method", "training")
    )


def _renumbered(call: Call, places: dict[int, int]) -> Call:
    def of(result: Result) -> Result:
        return result._replace(call=places[result.call])

    args, kwargs = mapped((call.args, call.kwargs), Result, of)
    return replace(call, args=args, kwargs=kwargs)


def _methods(module: nn.Module) -> list[str]:
    """List the methods of a module's own class that may compute something."""
    names = {
        name: member
        for kind in reversed(type(module).__mro__)
        if not kind.__module__.startswith(("torch.", "lightning.")) and kind is not object
        for name, member in vars(kind).items()
    }
    methods = [
        name
        for name, member in names.items()
        if inspect.isfunction(member)
        and not inspect.isgeneratorfunction(member)
        and name not in OWN
        and not name.startswith("__")
    ]
    return [*dict.fromkeys([*methods, "forward"])]


def _put_back(module: nn.Module, name: str, before: Any) -> None:
    if before is None:
        del vars(module)[name]
    else:
        vars(module)[name] = before
