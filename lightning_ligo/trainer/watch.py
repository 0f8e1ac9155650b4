"""Record the calls that a step makes of a network, of its parts, and of functions between them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from lightning_ligo.axes.calls import (
    Call,
    Held,
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
class Seen:
    """A call, and what it did."""

    call: Call
    parameters: set[str] = field(default_factory=set)  # names of those that it computed with
    operations: set[str] = field(default_factory=set)  # names of the functions that it called
    shapes: list[torch.Size] = field(default_factory=list)  # of the tensors that it returned

    def covers(self, other: Seen) -> bool:
        """Whether this call does all that another one does."""
        return (
            are_alike(self.call, other.call)
            and self.parameters >= other.parameters
            and self.operations >= other.operations
        )


class Recorder(TorchFunctionMode):
    """Records the outermost calls of a network and of its parts, within `recording`.

    Functions on what the calls returned, and on tensors of the network, are recorded too, as they
    may lead to the next call, or compute with a parameter themselves.

    Args:
        network: the network.
        called: what steps call to call it; default: the network.
    """

    def __init__(self, network: nn.Module, called: nn.Module | None = None) -> None:
        super().__init__()
        self.network, self._called = network, called or network
        self.seen: list[Seen] = []
        self._names = {id(p): name for name, p in network.named_parameters()}
        self._held_names = self._names | {id(b): name for name, b in network.named_buffers()}
        self._dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
        self._depth = 0
        self._begun: Seen | None = None
        self._places: dict[int, Result] = {}
        self._held: list[Any] = []  # so that no other tensor gets the id of one

    # The network ----------------------------------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls that are made within the context."""
        with ExitStack() as stack:
            for path, _ in self.network.named_modules():
                module = self._part(path)
                if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks
                    continue
                for name in _methods(module) if module is self.network or path else ["forward"]:
                    method = self._wrapped(path, name, getattr(module, name))
                    stack.enter_context(patch.object(module, name, method))
                before = functools.partial(self._before, path)
                for hook in (
                    module.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
                    module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
                ):
                    stack.callback(hook.remove)
            stack.enter_context(self)
            yield

    def _part(self, path: str) -> nn.Module:
        return self.network.get_submodule(path) if path else self._called

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
            training = self._part(path).training
            self._begun = self._of(Call(args, kwargs, path, method, training))

    def _of(self, call: Call) -> Seen:
        """Begin with the parameters in arguments, and those of scripted parts.

        An argument that a function has computed stands for the parameters of that function.
        """
        names = {each.name for each in found((call.args, call.kwargs), Held)}
        names &= set(self._names.values())
        for number in passed_on([call]):
            if self.seen[number].call.is_function:
                names |= self.seen[number].parameters
        parts = self.network.get_submodule(call.path).modules() if not call.is_function else ()
        scripted = [part for part in parts if isinstance(part, torch.jit.ScriptModule)]
        return Seen(call, names | {self._names[id(p)] for s in scripted for p in s.parameters()})

    def _end(self, out: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and self._begun is not None:
            begun, self._begun = self._begun, None
            self._keep(begun, out)

    def _keep(self, seen: Seen, out: Any) -> None:
        """Remember a call, and the places of the tensors that it returned."""
        tensors = outputs_of(out)
        if tensors or seen.parameters:
            seen.shapes = [tensor.shape for tensor in tensors]
            for leaf, tensor in enumerate(tensors):
                self._places[id(tensor)] = Result(len(self.seen), leaf)
            self._held.append(tensors)
            self.seen.append(seen)

    def _given(self, arguments: Any) -> Any:
        """Copy arguments, in the precision of the network.

        What a call returned is a `Result`, and what the network has is `Held`.
        """

        def given(tensor: Tensor) -> Any:
            if id(tensor) in self._places:
                return self._places[id(tensor)]
            if id(tensor) in self._held_names:
                return Held(self._held_names[id(tensor)])
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
            out = func(*args, **kwargs)
            if ids.isdisjoint(self._held_names) or not self._leads_on(func, ids, out):
                return out
            given = self._given((args, kwargs))
        else:
            given = self._given((args, kwargs))  # before the function changes them in place
            out = func(*args, **kwargs)
        seen = self._of(Call(given[0], given[1], method=func))
        if not any(tensor.requires_grad for tensor in found(out, Tensor)):
            seen.parameters.clear()  # such as a prediction, or an average of weights
        self._keep(seen, out)
        return out

    def _leads_on(self, func: Any, ids: set[int], out: Any) -> bool:
        """Whether a step may compute on with what a function made of the network's own tensors."""
        if self._called.training and not ids.isdisjoint(self._names):
            return any(tensor.requires_grad for tensor in found(out, Tensor))
        name = getattr(func, "__name__", "")
        return not name.endswith("_") or name.endswith("__")  # it changes nothing in place

    def _use(self, ids: set[int], operation: str) -> None:
        if self._begun is not None:
            names = (self._names[each] for each in ids & self._names.keys())
            self._begun.parameters.update(names)
            self._begun.operations.add(operation)

    # Afterwards -----------------------------------------------------------------------------------

    def settled(self) -> list[Seen]:
        """Return the calls that differ, and what they did.

        A call in training mode that uses the same parameters in evaluation mode, and returns as
        much, is made in evaluation mode, in which nothing is random and norms are fixed.
        """
        seen, results, made = list(self.seen), [list[Tensor]()] * len(self.seen), []
        for number in _chosen(seen, range(len(seen))):
            before = seen[number]
            for training in sorted({False, before.call.training}):
                call = replace(before.call, training=training)
                try:
                    results[number], again = self._made_again(call, results)
                except Exception:  # not in this mode
                    continue
                same = again.parameters >= before.parameters and again.shapes == before.shapes
                if same or training == before.call.training:
                    seen[number] = before if call.is_function else again
                    made.append(number)
                    break
        return _picked(seen, made)

    def _made_again(self, call: Call, results: list[list[Tensor]]) -> tuple[list[Tensor], Seen]:
        """Make a call once more; return the tensors, and what it did."""
        begun = self._begun = self._of(call)
        self._depth = 1
        try:
            with self:
                (made,) = without_gradients(lambda: [make_one(self.network, call, results)])
        finally:
            self._begun, self._depth = None, 0
        begun.shapes = [tensor.shape for tensor in made]
        return made, begun


def joined(settled: Sequence[list[Seen]]) -> list[Seen]:
    """Return the calls that differ among those that several recorders have settled."""
    seen = list[Seen]()
    for each in settled:
        places = {number: len(seen) + number for number in range(len(each))}
        seen += [_renumbered(one, places) for one in each]
    return _picked(seen, range(len(seen)))


def _telling(seen: Sequence[Seen], among: Iterable[int]) -> list[int]:
    """Return the calls that use parameters.

    Of functions these are the last that bring a parameter together with what a call returned; a
    penalty of weights, or any other single number, is none of them.
    """
    of_calls: set[int] = set()  # those computed of what calls returned
    telling = list[int]()
    for number in among:
        each, is_function = seen[number], seen[number].call.is_function
        if is_function and passed_on([each.call]).isdisjoint(of_calls):
            continue
        of_calls.add(number)
        if each.parameters and (not is_function or any(each.shapes)):
            telling.append(number)
    inner = passed_on([seen[number].call for number in telling])
    return [n for n in telling if n not in inner or not seen[n].call.is_function]


def _chosen(seen: Sequence[Seen], among: Iterable[int]) -> list[int]:
    """Choose the calls that differ from all others, and those whose results they take."""
    chosen: list[int] = []
    for number in _telling(seen, among):
        if not any(seen[c].covers(seen[number]) for c in chosen):
            chosen = [*(c for c in chosen if not seen[number].covers(seen[c])), number]
    needed, left = set(chosen), list(chosen)
    while left:
        taken = passed_on([seen[left.pop()].call]) - needed
        needed |= taken
        left += taken
    return sorted(needed)


def _picked(seen: Sequence[Seen], among: Iterable[int]) -> list[Seen]:
    """Return the chosen calls, with the results of one another."""
    chosen = _chosen(seen, among)
    places = {number: place for place, number in enumerate(chosen)}
    return [_renumbered(seen[number], places) for number in chosen]


def are_alike(call: Call, other: Call) -> bool:
    """Whether two calls are of one method and mode, with as many results of others."""
    linked = [len(found((each.args, each.kwargs), Result)) for each in (call, other)]
    return linked[0] == linked[1] and all(
        getattr(call, name) == getattr(other, name) for name in ("path", "method", "training")
    )


def _renumbered(seen: Seen, places: dict[int, int]) -> Seen:
    def of(result: Result) -> Result:
        return result._replace(call=places[result.call])

    args, kwargs = mapped((seen.call.args, seen.call.kwargs), Result, of)
    return replace(seen, call=replace(seen.call, args=args, kwargs=kwargs))


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
