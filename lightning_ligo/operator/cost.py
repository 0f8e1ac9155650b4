"""Count the cost of a growth, before anything is grown."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lightning_ligo.axes.calls import Call, copied, make, tensors_in, with_tensors, without_values
from lightning_ligo.methods.catalog import DEFAULT
from lightning_ligo.methods.method import Method
from lightning_ligo.operator.fit import Loss, loss_and_gradients
from lightning_ligo.operator.flops import flop_counter
from lightning_ligo.operator.operator import Operator
from lightning_ligo.plan.plan import Plan


class Uncounted(ValueError):
    """The networks do not run on the meta device, on which their operations are counted."""


@dataclass(frozen=True)
class Cost:
    """The cost of learning an operator, beside that of training the large network.

    Operations are floating point operations, forward and backward. Bytes are the most that all
    tensors hold at one time: weights, gradients, AdamW's two moments and the activations of one
    batch. The optimizer's step, memory inside kernels, and anything that a run holds beside its
    network are not counted.

    Args:
        method: its name.
        batch: the shapes of its tensors.
        coefficients: numbers that are learned.
        steps: of learning.
        learning_flops: of one step of learning.
        generating_flops: the part of these that generates weights, whatever the batch.
        training_flops: of one step of training the large network.
        learning_bytes: of learning, or of writing the weights if nothing is learned.
        training_bytes: of training the large network.
    """

    method: str
    batch: tuple[tuple[int, ...], ...]
    coefficients: int
    steps: int
    learning_flops: int
    generating_flops: int
    training_flops: int
    learning_bytes: int
    training_bytes: int

    @property
    def flops(self) -> int:
        """The operations of all steps of learning."""
        return self.steps * self.learning_flops

    @property
    def training_steps(self) -> float:
        """The cost of learning, in steps of training the large network."""
        return self.flops / self.training_flops if self.training_flops else 0.0

    def to_dict(self) -> dict[str, Any]:
        """List all figures as plain data, for JSON."""
        return {
            "method": self.method,
            "batch": [list(shape) for shape in self.batch],
            "coefficients": self.coefficients,
            "steps": self.steps,
            "flops": {
                "learning": self.flops,
                "learning_step": self.learning_flops,
                "generating_step": self.generating_flops,
                "training_step": self.training_flops,
            },
            "training_steps": self.training_steps,
            "bytes": {"learning": self.learning_bytes, "training": self.training_bytes},
        }

    def __str__(self) -> str:
        training = f"{short(self.training_bytes)}B while training the large network"
        if not self.steps:
            return (
                f"operator  {self.method}, nothing is learned\n"
                f"memory    {short(self.learning_bytes)}B while the weights are written, {training}"
            )
        batch = " and ".join(" x ".join(map(str, shape)) for shape in self.batch)
        return (
            f"operator  {self.method}, {self.coefficients:,} coefficients, learned for {self.steps}"
            f" steps on batches of {batch}\n"
            f"cost      {short(self.flops)}FLOPs, as much as {self.training_steps:,.0f} steps of "
            "training the large network\n"
            f"          {short(self.generating_flops)}FLOPs of every step generate weights, "
            "whatever the batch\n"
            f"memory    {short(self.learning_bytes)}B while learning, {training}"
        )


def estimate(
    plan: Plan,
    small: nn.Module,
    large: nn.Module,
    *args: Any,
    method: str | Method = DEFAULT,
    steps: int | None = None,
    large_inputs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Cost:
    """Count the cost of learning the operator of a plan, on the batch that the networks are given.

    One step of `fit` and one of plain training run on the meta device, in evaluation mode and with
    the mean of the first output as the loss. Nothing is computed, no memory is taken and both
    networks stay as they are. ``args``, ``kwargs`` and ``large_inputs`` are those of `pair`.

    Raises:
        Uncounted: if the networks cannot run on the meta device.
        ValueError: for an unknown method.

    Example:
        >>> from lightning_ligo.plan.pair import pair
        >>> small = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> large = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
        >>> batch = torch.randn(64, 4)
        >>> cost = estimate(pair(small, large, batch), small, large, batch)
        >>> cost.training_flops == 64 * 2 * (2 * 4 * 20 + 3 * 20 * 2)
        True
    """
    call = Call(args, kwargs) if large_inputs is None else Call(kwargs=dict(large_inputs))
    return estimate_calls(plan, small, large, [call], method, steps)


def estimate_calls(
    plan: Plan,
    small: nn.Module,
    large: nn.Module,
    calls: Sequence[Call],
    method: str | Method = DEFAULT,
    steps: int | None = None,
) -> Cost:
    """Count the cost of learning the operator on these calls of the large network, see `estimate`.

    Each call counts once; the loss is the mean over their first outputs.
    """
    batch = with_tensors(calls, without_values)
    small, large = copied(small, without_values), copied(large, without_values).eval()

    def loss(network: nn.Module, batch: Any) -> Tensor:
        with _Replay(plan.scalars_read):
            return _mean(make(network, batch))

    with _Held(small, large) as held:
        operator = Operator(plan, small, method)
        steps = operator.method.steps if steps is None else steps
        coefficients = [p for p in operator.parameters() if p.requires_grad and steps]
        with _counted(held, coefficients) as learning:
            if coefficients:
                loss_and_gradients(operator, large, loss, batch, coefficients)
            else:
                torch.no_grad()(operator)(large)
    training_flops, training_bytes = _training(large, loss, batch)
    return Cost(
        method=operator.method.name,
        batch=tuple(tuple(tensor.shape) for tensor in tensors_in(batch)),
        coefficients=operator.coefficients,
        steps=steps if coefficients else 0,
        learning_flops=learning.get_total_flops() if coefficients else 0,
        generating_flops=_generating(operator, large, coefficients) if coefficients else 0,
        training_flops=training_flops,
        learning_bytes=held.most,
        training_bytes=training_bytes,
    )


def _training(large: nn.Module, loss: Loss, batch: Any) -> tuple[int, int]:
    """Count the operations and the most bytes of one step of training the large network."""
    weights = [p for p in large.parameters() if p.requires_grad]
    with _Held(large) as held, _counted(held, weights) as flops:
        loss(large, batch).backward()
    return flops.get_total_flops(), held.most


def _mean(results: list[list[Tensor]]) -> Tensor:
    """Sum the means of the first outputs that depend on parameters."""
    means = [next((t.mean() for t in tensors if t.requires_grad), None) for tensors in results]
    found = [mean for mean in means if mean is not None]
    if found:
        return sum(found[1:], found[0])
    raise Uncounted("no output of the network depends on its parameters, so there is no loss")


def _generating(operator: Operator, large: nn.Module, coefficients: list[nn.Parameter]) -> int:
    """Count the operations of generating the weights and of the backward pass through that."""
    with flop_counter() as flops:
        grown = [tensor for tensor in operator(large).values() if tensor.requires_grad]
        torch.autograd.grad(grown, coefficients, grown, allow_unused=True)
    return flops.get_total_flops()


@contextmanager
def _counted(held: _Held, trained: list[nn.Parameter]) -> Iterator[FlopCounterMode]:
    """Count operations, and the most bytes, AdamW's moments included."""
    _moments = [torch.zeros_like(parameter) for parameter in (*trained, *trained)]
    held.most = held.now
    try:
        with flop_counter() as flops:
            yield flops
    except Uncounted:
        raise
    except Exception as error:  # anything that its code raises without values
        raise Uncounted(
            "the cost cannot be counted, as the network does not run on the meta device: "
            f"{type(error).__name__}: {error}"
        ) from error


class _Held(TorchDispatchMode):
    """Counts the bytes of the tensors of these networks, and of all that are made within."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = weakref.WeakSet[torch.UntypedStorage]()
        for network in networks:
            for tensor in (*network.parameters(), *network.buffers()):
                self._hold(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._hold(tensor.untyped_storage())
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.now -= size


class _Replay(TorchDispatchMode):
    """Answers a network that reads scalars from tensors, which are empty on the meta device."""

    def __init__(self, scalars_read: Sequence[Any]) -> None:
        super().__init__()
        self._scalars_read = list(scalars_read)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and self._scalars_read:
            return self._scalars_read.pop(0)
        return func(*args, **(kwargs or {}))


def short(count: float) -> str:
    """Write three digits and the letter of a unit.

    >>> short(1234), short(5.6e13)
    ('1.23 k', '56 T')
    """
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count:.3g} "
