"""On random networks, tracing calls growable what the proof finds exchangeable, and nothing else.

The proof is the oracle: it permutes what tracing has named, and knows nothing of any rule.
"""

import hashlib
import os
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st

import lightning_ligo as ligo
from drawn import (
    WIDTHS,
    architectures,
    deep_architectures,
    inputs,
    widths,
)
from found import DAMPED, NORMED_TWICE, PAIRS, SATURATED, SIGNS
from lightning_ligo.axes.axes import UNUSED
from lightning_ligo.axes.graph import SELECTED, TABLE
from lightning_ligo.axes.proof import TOLERANCE, noisy, prepared
from lightning_ligo.axes.rules.table import SPACE

ALIKE = {  # why axes stay as they are, in some networks, although no order of theirs matters
    UNUSED: "nothing reads it",
    TABLE: "the output does not depend on which token it is",
    SELECTED: "joined with the one that is selected, for which they come in any order",
    SPACE: "pooled to a single position; images do not grow with the network",
    "it is the network's input": "averaged over all positions; they come with the data",
    "it is a position of a convolution's kernel": "pooled behind a transposed convolution",
    "it is shifted or mirrored": "of two entries the one is where the other was",
    "it is ranked": "sorting forgets an order, and makes another of as many entries",
}
MORE = st.lists(st.integers(0, 5), min_size=WIDTHS, max_size=WIDTHS)


def holds(check, count, *drawn):
    """Check a property on ``count`` networks: always the same ones where they are few."""
    options = {"derandomize": count < 1000, "database": None, "deadline": None}
    options["suppress_health_check"] = list(HealthCheck)
    settings(max_examples=count, **options)(given(*drawn)(check))()


def many(quick, slow):
    return pytest.mark.parametrize("count", [quick, pytest.param(slow, marks=pytest.mark.slow)])


def output(network, x):
    with torch.no_grad():
        return network(x)


def only_exchangeable_axes_are_growable(architecture, sizes):
    network, x = noisy(architecture.build(sizes)), inputs(architecture.kind)
    proved = prepared(network, [], torch.float64)[0]  # with more noise, which may saturate it
    assume(not torch.allclose(output(proved, x), output(proved, x.flip(0))))
    axes = ligo.trace(network, x).axes
    for name, error in ligo.prove(network, x).items():
        reason = axes[name].pinned
        assert (error < TOLERANCE) == (reason is None) or reason in ALIKE, (axes[name], error)


def growth_keeps_the_function_or_is_refused(architecture, sizes, more):
    larger = [size + grown for size, grown in zip(sizes, more, strict=True)]
    small, large = noisy(architecture.build(sizes)), architecture.build(larger)
    x = inputs(architecture.kind)
    try:
        plan = ligo.pair(small, large, x)
    except ValueError as error:
        assert "cannot be grown from" in str(error)
        if min(sizes) > 1:  # a single entry is no axis, and may be any of those of the large one
            lines = str(error).splitlines()[1:]
            for line in lines[:-1] if lines[-1].endswith("more problems") else lines:
                assert re.search(r"axis \S+ is \d+ long .* \d+ .*, and cannot grow: ", line)
        return
    told = ligo.measure(plan, small, large, [ligo.Call((x,))], method="lemon")
    ligo.Operator(plan, small, "lemon").bake(large)
    for module in (*small.modules(), *large.modules()):
        if hasattr(module, "eps"):  # by which a norm of a norm differs, on some inputs more
            module.eps = 1e-12
    before, after = output(small, x), output(large, x)
    assume(before.isfinite().all())
    bound = 1e-4 if told.kept and told.change > 1e-6 else 1e-5
    assert not told.kept or (after - before).norm() <= bound * before.norm(), (plan, told)


@pytest.mark.parametrize(
    ("check", "network"),
    [
        (only_exchangeable_axes_are_growable, SATURATED),
        (growth_keeps_the_function_or_is_refused, NORMED_TWICE),
    ],
    ids=["saturated", "normed twice"],
)
def test_what_is_no_fault_of_the_package_is_not_judged(check, network):
    drawn = given(*map(st.just, network))(check)
    settings(phases=[Phase.explicit], deadline=None)(example(*network)(drawn))()


@pytest.mark.parametrize("network", [DAMPED, SIGNS, PAIRS], ids=["damped", "signs", "pairs"])
def test_a_change_that_outputs_hide_is_told(network):
    architecture, sizes, more = network
    small = noisy(architecture.build(sizes))
    large = architecture.build([size + grown for size, grown in zip(sizes, more, strict=True)])
    x = inputs(architecture.kind)
    told = ligo.measure(ligo.pair(small, large, x), small, large, [ligo.Call((x,))], method="lemon")
    assert told.change > 1e-3 and told.place


@many(120, 5000)
def test_an_axis_of_a_random_network_is_growable_where_its_order_means_nothing(count):
    holds(only_exchangeable_axes_are_growable, count, architectures(), widths(3))


@many(120, 5000)
def test_a_random_network_keeps_its_function_as_it_grows_or_the_plan_says_why_not(count):
    holds(growth_keeps_the_function_or_is_refused, count, architectures(), widths(2), MORE)


@many(40, 2000)
def test_a_random_network_with_axes_of_one_entry_grows_rightly_or_is_refused(count):
    holds(growth_keeps_the_function_or_is_refused, count, architectures(), widths(), MORE)


@many(80, 3000)
def test_a_random_deep_network_keeps_its_function_as_it_grows_or_the_plan_says_why_not(count):
    holds(growth_keeps_the_function_or_is_refused, count, deep_architectures(), widths(2), MORE)


def plans(count):
    """What the plans of so many networks say, in few letters."""
    digest = hashlib.sha256()

    def planned(architecture, sizes, more):
        larger = [size + grown for size, grown in zip(sizes, more, strict=True)]
        x = inputs(architecture.kind)
        try:
            plan = ligo.pair(architecture.build(sizes), architecture.build(larger), x)
            digest.update(repr((plan.lengths, plan.rows, plan.notes)).encode())
        except ValueError as error:
            digest.update(str(error).encode())

    holds(planned, count, architectures(), widths(2), MORE)
    return digest.hexdigest()


@pytest.mark.slow
def test_processes_that_order_sets_otherwise_plan_the_same():
    """As the ranks of a run do."""
    command = [sys.executable, "-c", "import test_random_networks as t; print(t.plans(500))"]
    folders = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    printed = {
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": folders},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(printed) == 1 and len(printed.pop().strip()) == 64
