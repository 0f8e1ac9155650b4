"""The comparison of learned starts: what its parts, its directions and its table are."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from lightning_ligo import grow
from recipes.benchmarks import learned_starts, starts
from recipes.benchmarks.gpu import loss
from recipes.benchmarks.learned_starts import REGIMES
from recipes.benchmarks.starts import Constants, Parts, Size

TINY = replace(REGIMES["mid-run"], small=Size(1, 1), large=Size(2, 2), steps=(20, 40))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    lines = [f"def f{n % 97}(x):\n    return x + {n % 89}\n" for n in range(5000)]
    text = torch.frombuffer(bytearray("".join(lines).encode()), dtype=torch.uint8)
    monkeypatch.setattr(starts, "read", lambda most: (text, text[:20_000]))
    return learned_starts.Bench(tmp_path)


@pytest.mark.parametrize(
    ("method", "constants"),
    [("stack+fresh", Constants()), ("stack+copy", Constants(writes=1, tables=1, queries=1))],
)
@pytest.mark.parametrize("post", [False, True])
def test_stack_fresh_is_a_point_of_the_constants_and_stack_copy_where_it_reads(
    method, constants, post
):
    small, large = TINY.small.build(post, 0), TINY.large.build(post, 1)
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter)
    made = Parts.of(small, large).compose(constants)
    expected = grow(small, large, torch.zeros(2, 64).long(), method=method).state_dict()
    for name, weight in expected.items():
        if starts.kind_of(name)[0] == "reads" or method == "stack+fresh":
            assert torch.allclose(made[name], weight, atol=1e-6), name


def test_new_units_go_along_the_gradient_that_the_old_ones_leave(bench):
    event = bench.event(TINY, 0)
    before = copy.deepcopy(event.large)
    starts.start(event)
    plain = copy.deepcopy(event.large)
    assert starts.gradients(event) == 4
    assert not torch.equal(event.large.blocks[0].fc1.weight, plain.blocks[0].fc1.weight)
    assert torch.equal(event.large.blocks[0].fc1.weight[:64], plain.blocks[0].fc1.weight[:64])
    windows = next(bench.data.windows(1, 64))
    assert loss(event.large, windows) < loss(plain, windows)
    assert all(torch.equal(a, b) for a, b in zip(before.buffers(), plain.buffers(), strict=True))


def test_every_way_ends_and_names_its_cost(bench):
    for way in (*starts.WAYS, *learned_starts.FOUND):
        record = bench.run(TINY, way, 0, Constants(factor=1.0))
        assert math.isfinite(record["loss"])
        assert (record["cost"] > 0) == (way not in ("start", *learned_starts.FOUND))


def test_differences_are_paired_with_the_start_of_the_same_seed():
    losses = {"start": [2.0, 3.0, 4.0], "ligo": [1.9, 3.1, 3.7]}
    records = [
        {"regime": "mid-run", "way": way, "seed": seed, "loss": value}
        for way, values in losses.items()
        for seed, value in enumerate(values)
    ]
    (_, way, seeds, mean, gap, error) = learned_starts.differences(records)[1]
    assert (way, seeds) == ("ligo", 3)
    assert mean == pytest.approx(2.9) and gap == pytest.approx(-0.1)
    assert error == pytest.approx(0.2 / math.sqrt(3))  # of -0.1, 0.1 and -0.3
