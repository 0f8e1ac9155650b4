"""Which form of an axis's map each dimension of a parameter grows by."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import chain

from lightning_ligo.axes.axes import Use
from lightning_ligo.axes.dims import Product, uses_of
from lightning_ligo.axes.factors import (
    Dim,
    Factor,
    Item,
    Owner,
    end_factors,
    fixed,
    product_of,
)
from lightning_ligo.axes.flow import Flow
from lightning_ligo.axes.graph import Graph, Observed
from lightning_ligo.axes.stacks import Stacks, pattern_of

NORM = {"gain", "shift"}  # the roles of what a norm writes by


def axes_of(items: Dim) -> Product[Item]:
    """Write a dimension as a product of its axes: a sum that cannot grow is a single axis."""
    return product_of(items, whole=lambda leaf: fixed([leaf]))


class Flows:
    """Which form of an axis's map each use takes, so that readers read what writers write.

    Writers of a flow grow by the producing form and readers by the consuming one. Where a norm
    reads the flow, writers also grow by a factor that keeps its variance, of ``power`` 1, and the
    gain by its inverse, since readers of its output expect no factor.

    >>> import torch
    >>> from torch import nn
    >>> from lightning_ligo.axes.trace import trace
    >>> def table(network, *args):
    ...     axes = trace(network, *args)
    ...     for name in axes.dims:
    ...         for axis, *use, _ in axes.uses(name):
    ...             print(name, *use) if axis == "hidden" else None
    ...     return axes
    >>> x = torch.zeros(2, 3)
    >>> axes = table(nn.Sequential(nn.Linear(3, 4, False), nn.RMSNorm(4), nn.Linear(4, 2)), x)
    0.weight produces produces 1
    1.weight gain produces -1
    2.weight consumes consumes 0

    Behind a **norm without a gain** the factor is left, and readers take it out.

    >>> axes = table(nn.Sequential(nn.Linear(3, 4, False), nn.RMSNorm(4, elementwise_affine=False),
    ...                            nn.Linear(4, 2)), x)
    0.weight produces produces 1
    2.weight consumes consumes -1

    A **tied head** writes and reads with one table, which grows by the producing form. So its input
    must be written in the consuming form: this flow is *flipped*, by the gain of the norm. Without
    a gain nothing can write it so.

    >>> class Tied(nn.Module):
    ...     def __init__(self, gain):
    ...         super().__init__()
    ...         self.table = nn.Embedding(9, 4)
    ...         self.norm = nn.RMSNorm(4, elementwise_affine=gain)
    ...     def forward(self, tokens):
    ...         return self.norm(self.table(tokens)) @ self.table.weight.T
    >>> axes = table(Tied(gain=True), torch.zeros(2, 3, dtype=torch.long))
    table.weight produces produces 1
    norm.weight gain consumes -2
    """

    def __init__(self, graph: Graph, stacks: Stacks) -> None:
        # 1. Every axis of every dimension of every parameter, and its observed roles.
        self._observed: dict[tuple[str, int], list[Observed]] = defaultdict(list)
        for use in graph.uses:
            self._observed[use.owner.name, use.owner.dim].append(use)
        self.own = [
            leaf
            for dims in graph.parameters.values()
            for items in dims
            for leaf in uses_of(axes_of(items))
        ]
        self._uses = {leaf: self._of(leaf) for leaf in self.own}
        # 2. The flows that come out of norms, with a gain and without.
        self._after_norm = {
            self.flow(leaf)
            for leaf, uses in self._uses.items()
            if any(use.role == "gain" for use in uses)
        }
        self._gainless: set[Flow] = set()
        for leaf in self.own:
            self._follow(self.flow(leaf))
        # 3. The flows that one weight reads together, and those that pass as they are.
        reads = [
            {use.reads.root() for use in self._uses[leaf] if use.reads is not None}
            for leaf in self.own
        ]
        together = [flows for flows in reads if len(flows) > 1]
        flows = {self.flow(leaf) for leaf in self.own}
        plain = {flow for flow in flows if not flow.nonlinear}
        # 4. Tied tables: flip what they read, where only parameters outside of stacks write it.
        self._flipped: dict[Flow, int] = {}  # with its power
        self._raised: set[Flow] = set()
        in_stacks = {
            self.flow(leaf) for leaf in self.own if pattern_of(_owner(leaf).name, stacks)[1]
        }
        writable = {flow for flow in plain - self._gainless if not flow.normed_into}
        self._flip(self._tables(writable - in_stacks.union(*together)))
        #    What they alone read of the last layer of a stack, which has the forms of all layers.
        self.closing = self._closing(self._tables(writable & in_stacks - set().union(*together)))
        # 5. One power for flows that one weight reads together.
        self._level(together, plain)
        # 6. The names of flows, and the flow that parameters write on every axis.
        self._names = self._merge(stacks)
        self._written: dict[Factor, str] = {}
        for leaf, uses in self._uses.items():
            if any(use.role == "produces" for use in uses):
                self._written.setdefault(leaf.factor, self._names[self.flow(leaf)])

    def _tables(self, writable: set[Flow]) -> dict[Flow, set[Flow]]:
        """The flows that tied tables read and that can be flipped, with those that they write."""
        tables: dict[Flow, set[Flow]] = defaultdict(set)
        for leaf, uses in self._uses.items():
            roles = {use.role for use in uses} - {"consumes"}
            for use in uses if roles else ():
                if use.role == "consumes" and use.reads is not None:
                    read = use.reads.root()
                    if roles == {"produces"} and read is not self.flow(leaf) and read in writable:
                        tables[read].add(self.flow(leaf))
        return tables

    def _closing(self, tables: Iterable[Flow]) -> frozenset[str]:
        """The parameters that write what tied tables read and nothing else does: of a last norm."""
        reads = Counter(
            use.reads.root() for uses in self._uses.values() for use in uses
            if use.role == "consumes" and use.reads is not None
        )  # fmt: skip
        writers: dict[Flow, dict[str, set[str]]] = {flow: {} for flow in tables if reads[flow] == 1}
        for leaf, uses in self._uses.items():
            if (flow := self.flow(leaf)) in writers:
                writers[flow][_owner(leaf).name] = {use.role for use in uses}
        norms = (each for each in writers.values() if set().union(*each.values()) <= NORM)
        return frozenset(chain(*norms))

    def flow(self, leaf: Item) -> Flow:
        assert leaf.flow is not None
        return leaf.flow.root()

    def _follow(self, flow: Flow) -> None:
        """Follow norms without a gain: their output is the same flow for a reader."""
        followed = [flow]
        for flow in followed:  # which grows
            bare = {out.root() for out in flow.normed_into} - self._after_norm - {*followed}
            self._gainless |= bare
            followed += bare

    def _of(self, leaf: Item) -> list[Observed]:
        """The observed roles of a factor of a parameter's dimension."""
        owner, inside = _owner(leaf), {*end_factors([leaf])}
        return [
            use
            for use in self._observed[owner.name, owner.dim]
            if _overlap(use.owner, owner)
            and not inside.isdisjoint(end_factors([Item(use.factor, None)]))
        ]

    def _flip(self, tables: dict[Flow, set[Flow]]) -> None:
        """Flip what tables read, starting at the tables whose own flow is not read by another."""
        left = dict(tables)
        while left:
            ready = [read for read, own in left.items() if not own & left.keys()]
            for read in ready or list(left):
                own = left.pop(read)
                powers = {(flow in self._flipped, self._power(flow)) for flow in own}
                ((turned, power), *others) = powers
                if ready and not others and not turned:
                    self._flipped[read] = -power

    def _level(self, together: list[set[Flow]], plain: set[Flow]) -> None:
        """Raise flows that one weight reads to one power, where they can be."""
        while True:
            apart = [flows for flows in together if len({*map(self._power, flows)}) > 1]
            lower = {flow for flows in apart for flow in flows if self._power(flow) == 0}
            if not lower & plain:
                return
            self._raised |= lower & plain

    def _power(self, flow: Flow) -> int:
        """1 where a norm reads a flow that no norm wrote: there the variance can be kept."""
        flow = flow.root()
        if flow in self._flipped:
            return self._flipped[flow]
        if flow in self._raised:
            return 1
        if flow in self._after_norm:
            return 0
        return int(bool(flow.normed_into or flow in self._gainless))

    def _merge(self, stacks: Stacks) -> dict[Flow, str]:
        """Name each flow by its first writer, after joining the output of norms to their input."""
        joined: dict[Flow, Flow] = {}

        def top(flow: Flow) -> Flow:
            flow = flow.root()
            while joined.get(flow, flow) is not flow:
                flow = joined[flow]
            return flow

        for leaf in self.own:
            for written in self.flow(leaf).normed_into:
                if top(written) is not top(self.flow(leaf)):
                    joined[top(written)] = top(self.flow(leaf))
        names: dict[Flow, str] = {}
        for leaf in self.own:
            owner = _owner(leaf)
            segment = "" if owner.length is None else f":{owner.start}"
            name = f"{pattern_of(owner.name, stacks)[0]}:{owner.dim}{segment}"
            names.setdefault(top(self.flow(leaf)), name)
        return {self.flow(leaf): names[top(self.flow(leaf))] for leaf in self.own}

    def use(self, axis: str, leaf: Item) -> Use:
        """The role of a parameter's factor, and the form of the map of its axis."""
        uses = self._of(leaf)
        roles = [use.role for use in uses]
        if "consumes" in roles and "produces" not in roles:
            reads = next(use.reads for use in uses if use.role == "consumes")
            return self.reading(axis, leaf, reads)
        own = self.flow(leaf)
        role = roles[0] if roles else "produces"
        role = "produces" if "produces" in roles else role
        form = "consumes" if own in self._flipped else "produces"
        power = 0 if role == "scales" else 1 if leaf.factor.facts.contracted else self._power(own)
        if role == "gain" and uses[0].reads is not None:
            power -= self._power(uses[0].reads)
        return Use(axis, role, form, power, self._names[own])

    def reading(self, axis: str, leaf: Item, reads: Flow | None) -> Use:
        """The use of a factor that reads a flow."""
        unknown = self._written.get(leaf.factor, f"{axis}:input")
        if reads is None:  # the network's input, or the output of an operation without a rule
            return Use(axis, "consumes", "consumes", 0, unknown)
        form = "produces" if reads.root() in self._flipped else "consumes"
        name = self._names.get(reads.root(), unknown)
        power = -1 if leaf.factor.facts.contracted else -self._power(reads)
        return Use(axis, "consumes", form, power, name)


def _owner(leaf: Item) -> Owner:
    (owner,) = leaf.owners
    return owner


def _overlap(first: Owner, second: Owner) -> bool:
    if first.length is None or second.length is None:
        return True
    return first.start < second.start + second.length and second.start < first.start + first.length
