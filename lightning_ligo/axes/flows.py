"""Which form of an axis's map each dimension of a parameter grows by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lightning_ligo.axes.factors import Dim, Factor, Flow, Item, Owner, ends, leaves, segments
from lightning_ligo.axes.graph import Graph
from lightning_ligo.axes.graph import Use as Noted
from lightning_ligo.axes.stacks import Stacks, pattern_of


class Use(NamedTuple):
    """What one dimension of a parameter does with one of its axes."""

    axis: str
    role: str  # produces | consumes | gain | shift | scales
    form: str  # "produces" or "consumes": which form of the axis's map it grows by
    power: int  # of the factor that keeps the variance under a norm (see maps.py)
    flow: str  # what it writes or reads, norms seen through: the tie of the paper's maps


def axis_leaves(items: Dim) -> Iterator[Item]:
    """The factors that are axes: a sum that cannot grow is one axis, of which nobody cares."""
    for leaf in leaves(items):
        if leaf.factor.segments and not all(end.factor.pinned for end in ends([leaf])):
            for segment in segments(leaf):
                yield from axis_leaves([segment])
        else:
            yield leaf


class Flows:
    """Which form of an axis's map each use takes, so that what is written is what is read.

    Writers of a flow grow by the producing form and readers by the consuming one. A table that is
    written and read (an embedding tied to the head) grows by one of them only, the producing one;
    so what it reads must be written in the consuming form: that flow is *flipped*, and the norm
    before the head carries the shares.
    """

    def __init__(self, graph: Graph, stacks: Stacks) -> None:
        self._uses: dict[tuple[str, int], list[Noted]] = {}
        for use in graph.uses:
            self._uses.setdefault((use.owner.name, use.owner.dim), []).append(use)
        own = [
            leaf
            for dims in graph.parameters.values()
            for items in dims
            for leaf in axis_leaves(items)
        ]
        self.own = own  # every axis of every dimension of every parameter
        in_stacks = {self.flow(leaf) for leaf in own if pattern_of(_owner(leaf).name, stacks)[1]}
        uses = {leaf: self._of(leaf) for leaf in own}
        self._after_norm = {
            self.flow(leaf) for leaf in own if any(use.role == "gain" for use in uses[leaf])
        }
        self.post_norm = {flow for flow in self._after_norm if flow.normed_into}
        self._gainless: set[Flow] = set()  # what comes out of norms without a gain
        self.nonlinear = {self.flow(leaf) for leaf in own if self._bent(leaf)}
        plain = {  # flows that pass as they are
            flow for leaf in own if not ((flow := self.flow(leaf)).nonlinear or flow.reduced)
        }
        together = [
            flows
            for leaf in own
            if len(flows := {use.reads.root() for use in uses[leaf] if use.reads is not None}) > 1
        ]
        written = {  # by parameters only, and read apart from others
            flow for flow in plain if not flow.normed_into and flow not in self._gainless
        } - in_stacks.union(*together)
        self.tied: set[Flow] = set()
        self._flipped: dict[Flow, int] = {}
        self._raised: set[Flow] = set()
        tables: dict[Flow, set[Flow]] = {}  # what is read by tables -> what these write
        for leaf in own:
            roles = {use.role for use in uses[leaf]} - {"consumes"}
            for use in uses[leaf] if roles else ():
                if use.role == "consumes" and use.reads is not None:
                    read = use.reads.root()
                    if roles == {"produces"} and read is not self.flow(leaf) and read in written:
                        tables.setdefault(read, set()).add(self.flow(leaf))
                    else:
                        self.tied.add(self.flow(leaf))
        self._flip(tables)
        self.post_norm |= self._level(together, plain)
        self._names = self._merge(own, stacks)
        self._written: dict[Factor, str] = {}  # by axis
        for leaf in own:
            if any(use.role == "produces" for use in uses[leaf]):
                self._written.setdefault(leaf.factor, self._names[self.flow(leaf)])

    def flow(self, leaf: Item) -> Flow:
        assert leaf.flow is not None
        return leaf.flow.root()

    def _bent(self, leaf: Item) -> bool:
        """Whether a function that is not linear stands where copies do not pass it as such."""
        flows, nonlinear = [self.flow(leaf)], False
        for flow in flows:
            bare = flow in self._gainless
            nonlinear |= flow.nonlinear and bool(
                flow.normed_into or flow.reduced or leaf.factor.contracted or bare
            )
            outs = {out.root() for out in flow.normed_into} - self._after_norm - {*flows}
            self._gainless |= outs
            flows += outs
        return nonlinear

    def _of(self, leaf: Item) -> list[Noted]:
        """What was seen of a factor of a parameter's dimension."""
        owner = _owner(leaf)
        inside = {end.factor for end in ends([leaf])}
        return [
            use
            for use in self._uses.get((owner.name, owner.dim), [])
            if _overlap(use.owner, owner)
            and any(end.factor in inside for end in ends([Item(use.factor, None)]))
        ]

    def _flip(self, tables: dict[Flow, set[Flow]]) -> None:
        """Flip what tables read, but by those that write what is flipped: the last ones first."""
        left = dict(tables)
        while left:
            ready = [read for read, own in left.items() if not own & left.keys()]
            for read in ready or list(left):
                own = left.pop(read)
                powers = {(flow in self._flipped, self._power(flow)) for flow in own}
                ((turned, power), *others) = powers
                if others or not ready or (turned and power != -self._power(read)):
                    self.tied |= own
                elif not turned:
                    self._flipped[read] = -power

    def _level(self, together: list[set[Flow]], plain: set[Flow]) -> set[Flow]:
        """Let flows that one weight reads have one power; those that cannot."""
        while True:
            apart = [flows for flows in together if len({*map(self._power, flows)}) > 1]
            lower = {flow for flows in apart for flow in flows if self._power(flow) == 0}
            if not lower & plain:
                return set().union(*apart)
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

    def _merge(self, own: list[Item], stacks: Stacks) -> dict[Flow, str]:
        """The first writer of each flow, after joining what comes out of norms to what goes in."""
        joined: dict[Flow, Flow] = {}

        def top(flow: Flow) -> Flow:
            flow = flow.root()
            while joined.get(flow, flow) is not flow:
                flow = joined[flow]
            return flow

        for leaf in own:
            for written in self.flow(leaf).normed_into:
                if top(written) is not top(self.flow(leaf)):
                    joined[top(written)] = top(self.flow(leaf))
        names: dict[Flow, str] = {}
        for leaf in own:
            owner = _owner(leaf)
            segment = "" if owner.length is None else f":{owner.start}"
            name = f"{pattern_of(owner.name, stacks)[0]}:{owner.dim}{segment}"
            names.setdefault(top(self.flow(leaf)), name)
        return {self.flow(leaf): names[top(self.flow(leaf))] for leaf in own}

    def use(self, axis: str, leaf: Item) -> Use:
        uses = self._of(leaf)
        roles = [use.role for use in uses]
        if "consumes" in roles and "produces" not in roles:
            reads = next(use.reads for use in uses if use.role == "consumes")
            unknown = self._written.get(leaf.factor, f"{axis}:input")
            if reads is None:  # the network's input, or what an operation without a rule puts out
                return Use(axis, "consumes", "consumes", 0, unknown)
            form = "produces" if reads.root() in self._flipped else "consumes"
            name = self._names.get(reads.root(), unknown)
            power = -1 if leaf.factor.contracted else -self._power(reads)
            return Use(axis, "consumes", form, power, name)
        own = self.flow(leaf)
        role = roles[0] if roles else "produces"
        role = "produces" if "produces" in roles else role
        form = "consumes" if own in self._flipped else "produces"
        power = 0 if role == "scales" else 1 if leaf.factor.contracted else self._power(own)
        if role == "gain" and uses[0].reads is not None:
            power -= self._power(uses[0].reads)
        return Use(axis, role, form, power, self._names[own])


def _owner(leaf: Item) -> Owner:
    (owner,) = leaf.owners
    return owner


def _overlap(first: Owner, second: Owner) -> bool:
    if first.length is None or second.length is None:
        return True
    return first.start < second.start + second.length and second.start < first.start + first.length
