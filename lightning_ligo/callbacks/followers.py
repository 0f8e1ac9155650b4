"""What else a run holds of its network grows with it: copies, averages, anchors, hooks."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, NoReturn

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_ligo.callbacks.accounting import Counting
from lightning_ligo.operator.operator import Operator
from lightning_ligo.operator.optimizer_state import POWERS, Policy, States, grow_states
from lightning_ligo.trainer.holders import (
    Held,
    Place,
    contents,
    held,
    holds_names,
    is_like,
    put_of,
    regrown,
    tensors_of,
)
from lightning_ligo.trainer.hooks import move_hooks
from lightning_ligo.trainer.lightning import callbacks_of, datamodule_of
from lightning_ligo.trainer.rehearsal import State
from lightning_ligo.trainer.sharding import is_sharded
from lightning_ligo.trainer.slot import Slot, listed
from lightning_ligo.trainer.swap import match


class Followers:
    """Grows whatever a run holds of its network, and puts it in the place of what it held.

    - A network of the same type and shapes that is a deep copy, or has been moved towards the
      network, grows by the same operator.
    - A dict of tensors by the names of parameters, and a list in the order of parameters, do too:
      by the operator if they are like the weights, as squares of gradients if none is negative,
      and as gradients otherwise. Parameters of the network in it are replaced.
    - Hooks on modules and parameters move to those of the same name. New layers have them if all
      old layers have the same.
    - A state that steps keep between batches (``hidden``) is what it was before the first step.

    Raises:
        ValueError: naming what cannot be followed.
    """

    def __init__(self, trainer: Trainer, slot: Slot, hidden: Sequence[State] = ()) -> None:
        roots = [slot.module, *others_of(trainer), *trainer.optimizers, datamodule_of(trainer)]
        self._small, self._starts, self._hidden = slot.network, list(slot.starts), hidden
        growing = [each for each in callbacks_of(trainer) if isinstance(each, Counting)]
        self._held = held(roots, slot, trainer.optimizers, growing)
        self._undo: list[Callable[[], object]] = []
        self._grown: list[tuple[Place, Any]] = []
        self._moved: list[str] = []
        check_held(self._held, trainer, slot)
        self._first = [(place, copy.copy(place.value)) for place, _ in self._held.named]

    def begin(self, plain: nn.Module, large: nn.Module) -> None:
        """Copy the large network, as it was built, for every copy; give it the hooks.

        ``plain`` is the small network, or a copy of it that is not sharded.
        """
        self._plain, self._large = plain, large
        parts = [
            [each for each in places if _part(self._small, each) is not _part(large, each)]
            for places in (self._held.references, self._held.copies)
        ]
        self._held = self._held._replace(references=parts[0], copies=parts[1])
        self._copies = [copy.deepcopy(_part(large, each)) for each in self._held.copies]
        self._moved = move_hooks(self._small, large)

    def grow(self, operator: Operator) -> None:
        """Grow all, with the operator as it is.

        An operator is affine and the weights of an average sum to 1, so the map of an average is
        the average of the mapped networks. Parameters without a small parent are those of the large
        network.
        """
        parents = operator.parents()
        by_name = ByName(operator, tensors_of(self._plain), tensors_of(self._large))
        self._grown = [(each, _part(self._large, each)) for each in self._held.references]
        for place, network in zip(self._held.copies, self._copies, strict=True):
            start = place.start
            by_name.fill(network, tensors_of(place.value), start)
            inner = {
                name.removeprefix(start): [parent.removeprefix(start) for parent in names]
                for name, names in parents.items()
                if name.startswith(start)
            }
            match(place.value, network, inner)
            device = next((p.device for p in place.value.parameters()), None)
            self._grown.append((place, network.to(device)))
        for place, names in self._held.named:
            self._grown.append((place, self._container(place, names, operator)))

    def _container(self, place: Place, names: Mapping[Any, str], operator: Operator) -> Any:
        """Return a container with the entries of the large network for those of the small one."""
        items = contents(place.value)
        inner = {key: name for key, name in names.items() if name}
        small, grown = tensors_of(self._small), tensors_of(self._large)
        is_named = holds_names(place.value)
        tensors = {name: small[name] if is_named else items[key] for key, name in inner.items()}
        first = {name: parent for name, (parent, *_) in operator.parents().items()}
        first |= {name: name for name, _ in self._large.named_buffers()}
        wanted = [name for name in grown if first.get(name) in tensors]
        if any(tensor is not small[name] for name, tensor in tensors.items()):
            grown = ByName(operator, tensors_of(self._plain), grown).grow(tensors)
        return regrown(place.value, inner, {name: grown[name] for name in wanted}, self._starts)

    def put(self) -> None:
        """Put what has grown into its places."""
        for place, value in self._grown:
            put, before = put_of(place), place.value
            if isinstance(before, (dict, list, set)):
                before = copy.copy(before)
            assert put is not None
            put(value)
            self._undo.append(functools.partial(put, before))
        self._undo += [state.put() for state in self._hidden]

    def back(self) -> None:
        """Put back what was there before `put`."""
        while self._undo:
            self._undo.pop()()

    def restore(self) -> None:
        """Put back what was there when the followers were found, whatever was put since."""
        self.back()
        named = [place for place, _ in self._first]
        for place in (*self._held.references, *self._held.copies, *named):
            if place.put is not None:
                with suppress(AttributeError):  # of a frozen dataclass
                    place.put(place.value)
        for place, contents_before in self._first:
            if (put := put_of(place)) is not None:
                put(contents_before)

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Put what has grown into its places inside the context."""
        try:
            self.put()
            yield
        finally:
            self.back()

    def tell(self) -> None:
        """Log what has followed the network."""
        places = [place for place, _ in self._grown]
        grown = [f"{place.path or 'a part'} of {place.owner}" for place in places]
        if grown:
            rank_zero_info(f"With the network grew {listed(grown)}")
        if self._moved:
            rank_zero_info(f"The hooks on {listed(self._moved)} were moved to the large network")
        dropped = [f"{state.name} of {state.owner}" for state in self._hidden]
        if dropped:
            rank_zero_info(
                f"Dropped {listed(dropped)}, which the steps keep between batches and which has "
                "the shape of the small network; it is what it was before the first step"
            )


def _part(network: nn.Module, place: Place) -> nn.Module:
    """Return the network, or the one of several that a place holds."""
    return network.get_submodule(place.start.removesuffix("."))


def others_of(trainer: Trainer) -> list[Callback]:
    """Return the callbacks that may hold a network, without the growth callback itself."""
    return [each for each in callbacks_of(trainer) if not isinstance(each, (Counting, ProgressBar))]


def check_held(found: Held, trainer: Trainer, slot: Slot) -> None:
    """Check that everything that holds the network can follow it.

    Raises:
        ValueError: naming what cannot, and what to do.
    """

    def refuse(place: Place, what: str, why: str) -> NoReturn:
        top = re.split(r"[.\[]", place.path)[0]
        raise ValueError(f"{place.owner} {what} {slot.attribute!r} in its attribute {top!r}{why}")

    for place in (*found.parts, *(each for each in found.references if each.put is None)):
        refuse(
            place, "holds a part of", ", and would keep the small network; access the network "
            f"through pl_module in its hooks, or through {slot.words} in the module",
        )  # fmt: skip
    named = [
        (place, [contents(place.value)[key] for key, name in names.items() if name])
        for place, names in found.named
        if not holds_names(place.value)
    ]
    whole = [(place, list[Tensor]()) for place in found.copies]
    for place, tensors in (*whole, *named):
        kept, strategy = "keeps a copy of weights of", type(trainer.strategy).__name__
        if is_sharded(trainer) and (not tensors or any(isinstance(t, DTensor) for t in tensors)):
            refuse(
                place, kept, f", which is not supported under {strategy}; train without it, or "
                "keep whole tensors by the names of the parameters",
            )  # fmt: skip
        if put_of(place) is None:
            refuse(
                place, kept, ", where it cannot be replaced; keep it in an attribute, a list or a "
                "dict",
            )  # fmt: skip
    for place, tensors in named:
        if all(bool(((tensor == 0) | (tensor == 1)).all()) for tensor in tensors) and any(
            bool((tensor == 0).any()) and bool(tensor.any()) for tensor in tensors
        ):
            refuse(
                place, "keeps zeros and ones by parameters of", ", and which entries of a large "
                "parameter it should mask is not known; train without it",
            )  # fmt: skip


# Tensors by name ----------------------------------------------------------------------------------


class ByName(NamedTuple):
    """Grows tensors that are held by the names of parameters."""

    operator: Operator
    small: Mapping[str, Tensor]  # the tensors of both networks
    large: Mapping[str, Tensor]

    def grow(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Grow weights, gradients or squares of gradients."""
        device = next(iter(tensors.values())).device
        if is_like(tensors, self.small):
            result = self.weights(tensors)
        else:
            negative = any(bool((tensor < 0).any()) for tensor in tensors.values())
            key = "exp_avg" if negative else "exp_avg_sq"
            here = {name: {key: t.to(self.small[name].device)} for name, t in tensors.items()}
            states = grow_states(self.operator, here)
            result = {
                name: states[name][key] if name in states else tensor.detach() * 0
                for name, tensor in self.large.items()
            }
        trained = any(tensor.requires_grad for tensor in tensors.values())
        return {name: tensor.to(device).requires_grad_(trained) for name, tensor in result.items()}

    def weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Grow by the operator of the weights; those that are missing are the network's own."""
        result = _Tensors({name: tensor.detach().clone() for name, tensor in self.large.items()})
        self.operator.of(_Tensors({**self.small, **tensors})).bake(result)
        return result.tensors

    @torch.no_grad()
    def fill(self, large: nn.Module, tensors: Mapping[str, Tensor], start: str) -> None:
        """Grow the tensors of a copy of a network, which may be one of several."""
        small = _Tensors({**self.small, **{f"{start}{name}": t for name, t in tensors.items()}})
        there = {f"{start}{name}": tensor for name, tensor in tensors_of(large).items()}
        for name, tensor in self.operator.of(small).tensors(_Tensors({**self.large, **there})):
            if name in there:
                there[name].copy_(tensor)

    def states(self, policy: Policy, states: States) -> dict[str, Any]:
        """Grow the state of an optimizer, also slow weights that it keeps as Lookahead does."""
        slow: dict[str, dict[str, Tensor]] = {}
        for key in {key for state in states.values() for key in state} - POWERS.keys():
            found = {name: state[key] for name, state in states.items() if key in state}
            fits = all(
                isinstance(t, Tensor) and t.shape == self.small[n].shape for n, t in found.items()
            )
            if fits and is_like(found, self.small):
                slow[key] = found
        fast = {
            name: {key: value for key, value in state.items() if key not in slow}
            for name, state in states.items()
        }
        grown = grow_states(self.operator, fast, policy)
        parents = self.operator.parents().items()
        for key, tensors in slow.items():
            weights = self.weights(tensors)
            alone = [name for name, (parent, *_) in parents if parent in tensors]
            for name in (
                grown if any(fast.values()) else alone
            ):  # else its step makes all of it anew
                grown.setdefault(name, {})[key] = weights[name]
        return grown


class _Tensors(nn.Module):
    """Stands for a network with these tensors."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.tensors = tensors

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        return iter(self.tensors.items())
