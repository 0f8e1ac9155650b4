"""Rules of recurrent networks, each followed as one operation on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_ligo.axes.factors import Dim, concatenate, pin, regroup, size, unite
from lightning_ligo.axes.graph import Graph, mark_nonlinear
from lightning_ligo.axes.rules.table import rule

RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu",
             "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")  # fmt: skip
GATES = "it is the gates of a recurrent layer"


@rule(*RECURRENT[:4])
def recurrent(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """All layers, and both directions, over a whole sequence: padded, or packed."""
    packed = isinstance(args[3], (list, tuple))  # the parameters stand behind the lengths
    hx, parameters, _, layers = args[2:6] if packed else args[1:5]
    states = [hx] if isinstance(hx, Tensor) else list(hx)
    graph.release(args[0])
    *lead, inputs = graph.dims(args[0])
    runs = layers * (1 + args[8 if packed else 7])
    each = len(parameters) // runs
    for layer in range(layers):
        written = []
        for run in range(layer * runs // layers, (layer + 1) * runs // layers):
            weights = parameters[run * each : (run + 1) * each]
            written.append(_step(graph, inputs, weights, states))
        inputs = concatenate([hidden for hidden, _ in written])
    first = graph.new(runs, pinned="it is the layers of a recurrent network")
    batch = graph.dims(states[0])[1]
    return [[*lead, inputs], *([first, batch, dim] for dim in written[-1][: len(states)])]


@rule(*RECURRENT[4:])
def cell(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """One step: ``cell(x, state, weight_ih, weight_hh, bias_ih, bias_hh)``."""
    x, hx, *weights = args
    states = [hx] if isinstance(hx, Tensor) else list(hx)
    graph.release(x)
    *lead, inputs = graph.dims(x)
    weights = [weight for weight in weights if weight is not None]
    written = _step(graph, inputs, weights, states)
    results = [[*lead, dim] for dim in written[: len(states)]]
    return results[0] if isinstance(out, Tensor) else results


def _step(
    graph: Graph, inputs: Dim, weights: Sequence[Tensor], states: Sequence[Tensor]
) -> tuple[Dim, Dim]:
    """Return the dimensions of a layer's output and of its cell: the same without a projection."""
    from_input, from_hidden, *others = weights
    projection = others.pop() if others and others[-1].dim() == 2 else None
    width = (from_hidden if projection is None else projection).shape[1]
    held: Dim = []
    slots: Dim = []
    for weight in (from_input, from_hidden, *others):
        rows = graph.dims(weight)[0]
        gates, hidden = regroup([rows], (size(rows) // width, width))
        pin(gates, GATES)
        held, slots = held or hidden, slots or gates
        unite(held, hidden)
        unite(slots, gates, flow=False)
        graph.record(weight, "produces", rows)
    mark_nonlinear([held])
    passed = held
    if projection is not None:
        passed = graph.dims(projection)[0]
        graph.record(projection, "produces", passed)
        graph.consume(graph.dims(projection)[1], held)
    graph.consume(graph.dims(from_input)[1], inputs)
    graph.consume(graph.dims(from_hidden)[1], passed)
    for state, dim in zip(states, (passed, held), strict=False):
        graph.record(state, "produces")
        unite(graph.dims(state)[-1], dim)
    return passed, held


@rule("_pack_padded_sequence")
def pack(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    first, second, *rest = graph.dims(args[0])
    pin([*first, *second], "it is packed by position")
    packed = graph.new(out[0].shape[0], pinned="it is packed by position")
    return [[packed, *rest], graph.unknown(out[1])]


@rule("_pad_packed_sequence")
def unpack(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    lead = [graph.new(length, pinned="it is packed by position") for length in out[0].shape[:2]]
    return [[*lead, *graph.dims(args[0])[1:]], graph.unknown(out[1])]
