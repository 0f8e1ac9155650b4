"""Strategies x precisions x accumulation x optimizers x compilation: a growth in every cell.

All pairs of values are in the table (`tests/table.py`) that can be; for the others it is tested who
refuses them. The oracle of learning rates is the schedule alone, of the loss scale its rule, and of
a resumed run the whole one. Every third cell is of the ordinary tests; all are run by
`pytest -m "slow or not slow" tests/callbacks/test_table.py`.
"""

import json
from itertools import product
from pathlib import Path

import pytest
from torch import nn

from ranks import launched
from runs import BATCH, ITEMS
from table import (
    CELLS,
    EPOCHS,
    IMPOSSIBLE,
    INTERVAL,
    RANKS,
    REFUSED,
    SCALE,
    VALUES,
    Cell,
    is_possible,
    optimizer_of,
    pairs,
    tried,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore:TensorFloat32 tensor cores",  # which inductor advises
)


def test_the_table_has_every_pair_of_values_that_can_be():
    possible = [cell for cell in map(Cell._make, product(*VALUES)) if is_possible(cell)]
    assert set().union(*map(pairs, CELLS)) == set().union(*map(pairs, possible))
    assert len(CELLS) == len(set(CELLS)) >= 30 and all(map(is_possible, CELLS))
    assert list(REFUSED.values()) == list(IMPOSSIBLE.values())


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """What every rank saw of every cell of several ranks."""
    folder = tmp_path_factory.mktemp("table")
    script = Path(__file__).parents[1] / "table.py"
    asked = [cell for cell in asked_for(request.session.items) if cell.strategy != "single"]
    launched(script, folder, *map(str, asked), ranks=RANKS)
    return {
        cell: [json.loads((folder / f"{cell}-{rank}.json").read_text()) for rank in range(RANKS)]
        for cell in asked
    }


def asked_for(items):
    """The cells of the tests that were not left out."""
    return dict.fromkeys(
        item.callspec.params["cell"] for item in items if item.path == Path(__file__)
        and hasattr(item, "callspec")
    )  # fmt: skip


@pytest.mark.parametrize(
    "cell",
    [pytest.param(c, marks=[] if n % 3 == 0 else pytest.mark.slow) for n, c in enumerate(CELLS)],
    ids=str,
)
def test_it_grows_trains_and_is_resumed(cell, request, tmp_path):
    if cell.strategy == "single":
        ends = tried(cell, tmp_path)
    else:
        ends, *others = request.getfixturevalue("results")[cell]
        assert others == [ends] * (RANKS - 1)  # all ranks, the hash of their weights too
    assert "error" not in ends, ends["trace"]
    in_epoch = ITEMS // BATCH // cell.accumulate
    rates = expected_rates(cell, in_epoch)
    dtype = "torch.bfloat16" if cell.precision == "bf16-true" else "torch.float32"
    for name, begun in {"whole": 0, "from 0": 1, "from 1": 2}.items():
        seen, batches = ends[name], ITEMS // BATCH
        widths = [8] * (EPOCHS * batches // 2) + [16] * (EPOCHS * batches // 2)
        assert seen["widths"] == widths[begun * batches :]
        assert seen["rates"] == rates[begun * in_epoch :]
        assert seen["steps"] == EPOCHS * in_epoch
        assert seen["without"] == [] and seen["still"] == []  # gradients; changes since the growth
        assert seen["weights"] == ends["whole"]["weights"]
        assert seen["dtypes"] == [dtype]
        if cell.precision == "16-mixed":
            doubled, since = divmod(EPOCHS * in_epoch, INTERVAL)
            assert seen["scale"]["scale"] == SCALE * 2**doubled
            assert seen["scale"]["_growth_tracker"] == since


def expected_rates(cell, in_epoch):
    """The rates of all steps by the schedule alone, which the command line steps in epochs."""
    optimizer, schedule = optimizer_of(nn.Linear(1, 1), cell.optimizer)
    rates = []
    for step in range(1, EPOCHS * in_epoch + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if cell.optimizer != "cli" or step % in_epoch == 0:
            schedule.step()
    return rates


@pytest.mark.parametrize("cell", REFUSED, ids=str)
def test_what_cannot_be_is_refused(cell, results):
    for result in results[cell]:
        assert result["error"].startswith(REFUSED[cell])
