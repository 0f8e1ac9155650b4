"""Find the axes of a network by watching one forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.fx.experimental import _config as symbolic
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from lightning_ligo.axes.axes import Axes
from lightning_ligo.axes.calls import (
    Call,
    copied,
    evaluating,
    make,
    passed_on,
    tensors_in,
    with_tensors,
    without_values,
)
from lightning_ligo.axes.factors import CONSTANT, Misaligned
from lightning_ligo.axes.graph import Graph, mark_nonlinear
from lightning_ligo.axes.naming import name_axes
from lightning_ligo.axes.notation import match, split
from lightning_ligo.axes.override import Naming, Override, check
from lightning_ligo.axes.rules import lookup, norms, products, shape  # noqa: F401
from lightning_ligo.axes.rules.elementwise import pointwise
from lightning_ligo.axes.rules.recurrent import RECURRENT
from lightning_ligo.axes.rules.table import RULES, unread
from lightning_ligo.axes.rules.tried import tried
from lightning_ligo.axes.rules.writers import NORMS, PRODUCTS, writers

_ATTENTION, _LINEAR = functional.scaled_dot_product_attention, functional.linear
UNIFORM = ("zeros", "ones", "full", "empty", "scalar_tensor", "new_zeros", "new_ones", "new_full",
           "zeros_like", "ones_like", "full_like", "empty_like", "new_empty",
           "zero_", "fill_")  # fmt: skip


def trace(network: nn.Module, *args: Any, override: Override | None = None, **kwargs: Any) -> Axes:
    """Name every axis of every parameter of ``network`` by watching ``network(*args, **kwargs)``.

    The forward runs once, in evaluation mode and without gradients, on whatever device the network
    is on; on the meta device it costs neither memory nor time.

    Axes that tracing cannot follow are named in ``override``, in the notation in which axes are
    printed, with ``*`` for the layers of a stack: ``{"blocks.*.mlp.fc1.weight": "hidden embed"}``.
    Equal words are the same axis, ``(3 heads head_dim)`` is a product and ``(a + b)`` a
    concatenation. A number is a length that stays. A word may grow, even if tracing says otherwise.

    Raises:
        ValueError: if an operation without a rule, or a reshape that cuts across axes, touches axes
            of parameters that ``override`` does not name (the message shows what to name); if
            ``override`` does not fit the network.

    Example:
        >>> axes = trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
        ...              torch.randn(3, 4))
        >>> print(axes)
        0.weight  hidden 4
        0.bias    hidden
        2.weight  out hidden
        2.bias    out
    """
    check(override, network)
    return name_axes(watch(network, [Call(args, kwargs)], override=override).graph)[0]


def watch(
    network: nn.Module,
    calls: Sequence[Call],
    scalars_read: Sequence[Any] = (),
    override: Override | None = None,
) -> Tracer:
    """Make calls of a network under a `Tracer`, without values where the network allows it.

    ``scalars_read`` are the values that another network of the same architecture read from its
    tensors; a network on the meta device, which has no values, gets them in the same order.
    """
    try:
        return _watch(copied(network, without_values), calls, scalars_read, override)
    except Exception:  # such as a branch on a value
        return _watch(network, calls, scalars_read, override)


def _watch(
    network: nn.Module,
    calls: Sequence[Call],
    scalars_read: Sequence[Any],
    override: Override | None,
) -> Tracer:
    tracer = Tracer(network, scalars_read)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    calls = with_tensors(calls, lambda tensor: tensor.detach().to(device))
    for tensor in tensors_in(calls):
        tracer.graph.keep(tensor, tracer.graph.unknown(tensor, pinned="it is the network's input"))
    naming = Naming(override, tracer.graph)
    with _asking(tracer.graph):
        # without values a mask selects everything: all experts see all tokens
        everything = symbolic.patch(  # type: ignore[attr-defined]
            meta_nonzero_assume_all_nonzero=True
        )
        with evaluating(network), everything, tracer, _Whole(tracer):
            made = make(network, calls)
        tracer.outputs, inner = list(chain.from_iterable(made)), passed_on(calls)
        tracer.finals = [out for call, out in enumerate(made) if call not in inner]
        tracer.graph.use(tracer.outputs)
        naming.finish()
    tracer.graph.join_flows()
    tracer.graph.settle()
    tracer.graph.outputs = [tracer.graph.dims(out) for out in tracer.outputs]
    return tracer


@contextmanager
def _asking(graph: Graph) -> Iterator[None]:
    """Ask for the names of axes that cannot be followed, also if the forward then fails."""
    failure = None
    try:
        yield
    except Exception as error:
        if all(unread.named for unread in graph.unread):
            raise
        failure = error
    unnamed = [unread for unread in graph.unread if not unread.named]
    if not unnamed:
        return
    touched = graph.parameters_of(dim for unread in unnamed for dim in unread.inputs)
    few = touched if len(touched) <= 4 else [*touched[:4], f"{len(touched) - 4} more"]
    reached = graph.parameters_of(dim for unread in unnamed for dim in unread.outputs)
    lines = "".join(
        f'    "{pattern}": "{text}",\n'
        for pattern, text in name_axes(graph)[0].notation.items()
        if any(match(split(pattern), name) is not None for name in {*touched, *reached})
    )
    problems = "; ".join(dict.fromkeys(unread.problem for unread in unnamed))
    raise ValueError(
        f"tracing met {problems}; it touches the axes of {', '.join(few)}. Name these, and "
        "those of what reads its output: one word for one axis, a number for a length that stays. "
        f"If all dimensions stay where they are, that is\noverride={{\n{lines}}}\nOr leave these "
        "parameters out of the network that grows, or write the operation with others."
    ) from failure


class _Whole(TorchFunctionMode):
    """Follow attention and recurrent networks whole: every device decomposes them differently.

    Also keep the values of a list that indexes a tensor without values. A gradient has the axes of
    what it is taken of; how it is computed is not followed.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            known = (torch.tensor(i) if isinstance(i, list) and i else i for i in index)
            return func(args[0], tuple(known))
        if func is torch.autograd.grad:
            return self.gradient(func, args, kwargs or {})
        if any(map(_transformed, tree_leaves((args, kwargs)))):  # inside of vmap, jvp, ...
            return func(*args, **(kwargs or {}))
        if func is functional.multi_head_attention_forward:  # calls both past this mode
            with patch.multiple(
                functional, scaled_dot_product_attention=self.attention, linear=self.linear
            ):
                return func(*args, **(kwargs or {}))
        if func is functional.linear:
            return self.linear(*args, **(kwargs or {}))
        if func is functional.scaled_dot_product_attention:
            return self.attention(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in RECURRENT:
            return self.whole(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def linear(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Take the input for an activation, even if it is made of parameters."""
        self.tracer.graph.release(input)
        return _LINEAR(input, *args, **kwargs)

    def attention(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.whole(_ATTENTION, args, kwargs)

    def gradient(self, func: Any, args: Any, kwargs: Any) -> Any:
        graph, inputs = self.tracer.graph, args[1] if len(args) > 1 else kwargs["inputs"]
        with self.tracer.unwatched():
            out = func(*args, **kwargs)
        inputs = [inputs] if isinstance(inputs, Tensor) else inputs
        for gradient, of in zip(map(_plain, out), map(_plain, inputs), strict=True):
            if gradient is not None:
                many = gradient.shape[: gradient.dim() - of.dim()]  # those of several outputs
                dims = [*map(graph.new, many), *graph.dims(of)]
                graph.keep(gradient, dims, writers=graph.writers(of))
        return out

    def whole(self, func: Any, args: Any, kwargs: Any) -> Any:
        with _disable_current_modes():
            out = func(*args, **kwargs)
        self.tracer.follow(func.__name__, func, args, kwargs, out)
        return out


class Tracer(TorchDispatchMode):
    """Follow the factors of every dimension of every tensor through one forward."""

    supports_higher_order_operators = True

    def __init__(self, network: nn.Module, scalars_read: Sequence[Any] = ()) -> None:
        super().__init__()
        self.graph = Graph(network)
        self.scalars_read: list[Any] = []  # values that the network read from tensors
        self.outputs: list[Tensor] = []
        self.finals: list[list[Tensor]] = []  # of each call that no other takes
        self._told = list(scalars_read)
        self._watching = True

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Run operations without following them."""
        watching, self._watching = self._watching, False
        try:
            yield
        finally:
            self._watching = watching

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if name == "_local_scalar_dense":
            return self._read(func, args, kwargs)
        before = args
        if torch.Tag.inplace_view in getattr(func, "tags", ()):  # it reshapes its input in place
            before = (args[0].detach(), *args[1:])
        out = func(*args, **kwargs)
        if self._watching:
            self.follow(name, func, before, kwargs, out)
        return out

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        if args[0].device.type != "meta":
            answer = func(*args, **kwargs)
        elif self._told:
            answer = self._told.pop(0)
        else:
            raise ValueError(
                "the network reads a value of a tensor to decide how to go on, which a network on "
                "the meta device cannot do; trace it on a real device, or leave out the input "
                "that it reads (often an attention mask)."
            )
        self.scalars_read.append(answer)
        return answer

    def follow(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Apply the rule of the operation ``name``, which has run."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not outputs:
            return
        self.graph.use(inputs)
        for tensor in inputs:  # which are steps of a norm, followed by other steps
            if name != "mean" and self.graph.marked(tensor, "square"):
                mark_nonlinear(self.graph.dims(tensor))
            if name != "sub" and (mean := self.graph.marked(tensor, "mean")):
                mark_nonlinear(self.graph.dims(mean.of)[-1:])
        tags = getattr(func, "tags", ())
        drawn = torch.Tag.nondeterministic_seeded in tags
        uniform = name in UNIFORM or (drawn and (name[-1] == "_" or name.endswith("_like")))
        if uniform:  # it uses at most the shape of another tensor
            args, kwargs, inputs = (), {}, []
        static = all(self.graph.static(tensor) for tensor in inputs)
        rule = RULES.get(name) or RULES.get(name.rstrip("_"))
        noised = drawn and inputs and outputs[0].shape == inputs[0].shape
        elementwise = torch.Tag.pointwise in tags or noised
        rule = rule or (pointwise if elementwise else tried)
        written = writers(self.graph, name, args, kwargs, known=rule is not tried)
        if not inputs:
            reason = None if uniform or drawn else CONSTANT
            results = [self.graph.unknown(tensor, pinned=reason) for tensor in outputs]
        else:
            try:
                results = rule(self.graph, func, args, kwargs, out)
            except Misaligned:
                cuts = "which cuts across axes"
                results = unread(self.graph, func, args, kwargs, out, cuts)
            if isinstance(out, Tensor):
                results = [results]
        for tensor, dims in zip(outputs, results, strict=True):
            self.graph.keep(tensor, dims, static, written)
        by_parameters = any(map(self.graph.static, inputs))
        if name in {*PRODUCTS, *NORMS} and by_parameters and not static:
            self.graph.write_by(outputs[0])
        if name.rstrip("_") in ("mul", "div") and not static:
            self.graph.scale(outputs[0], inputs)


def _transformed(x: Any) -> bool:
    """Whether a tensor stands for another inside of `torch.func`."""
    return isinstance(x, Tensor) and is_functorch_wrapped_tensor(x)


def _plain(tensor: Any) -> Any:
    """The tensor that others stand for inside of `torch.func`."""
    while _transformed(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


def _name(func: Any) -> str:
    """The name of an operation, also of one of higher order."""
    schema = getattr(func, "_schema", None)
    return schema.name.removeprefix("aten::") if schema else func.name()
