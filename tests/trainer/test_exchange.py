"""Ranks that have seen different calls know those of all, in one order."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from lightning_ligo.axes.calls import Call, Result
from lightning_ligo.trainer.exchange import of_all_ranks
from lightning_ligo.trainer.watch import Seen

X, LENGTHS = torch.randn(3, 4), torch.tensor([1, 2])
RANKS = 2


def on_ranks(*seen):
    """What each of two threads, as ranks, knows after the exchange, or its error."""
    barrier, values = threading.Barrier(RANKS, timeout=20), {}

    def rank(number):
        def broadcast(value, source):
            values[number] = value
            barrier.wait()
            received = values[source]
            barrier.wait()
            return received

        strategy = SimpleNamespace(broadcast=broadcast, root_device=torch.device("cpu"))
        trainer = SimpleNamespace(strategy=strategy, world_size=RANKS)
        try:
            return of_all_ranks(trainer, seen[number])
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(rank, range(RANKS)))


def head(name, argument=X):
    return Seen(Call((argument,), {}, name), {f"{name}.weight"}, {"linear"}, [X.shape])


def names(known):
    return [each.call.path or each.call.method for each in known]


def test_all_ranks_know_all_calls_in_the_order_of_the_ranks():
    both = on_ranks([head("b"), head("a")], [head("a"), head("c")])
    assert [names(known) for known in both] == [["b", "a", "c"]] * RANKS
    for mine, other in zip(*both, strict=True):
        assert torch.equal(mine.call.args[0], other.call.args[0])


def test_results_still_point_to_the_calls_that_returned_them():
    trunk = head("trunk")
    relu = Seen(Call((Result(0, 0),), {}, method=F.relu), set(), set(), [X.shape])
    last = head("last", Result(1, 0))
    for seen in on_ranks([head("other")], [trunk, relu, last]):
        calls = [each.call for each in seen]
        assert [call.path for call in calls] == ["other", "trunk", "", "last"]
        assert calls[2].method is F.relu
        assert [call.args[0] for call in calls[2:]] == [Result(1, 0), Result(2, 0)]


def test_calls_that_are_alike_are_not_sent():
    mine, other = head("a", lambda: 0), head("a", lambda: 1)
    (first,), (second,) = on_ranks([mine], [other])
    assert first is mine and second is other


def test_what_cannot_be_sent_is_named_on_all_ranks():
    first, second = on_ranks([head("a", lambda: 0)], [head("b", lambda: 0)])
    assert first == second
    assert "cannot be sent to the others (rank 0: " in first and "lambda" in first
