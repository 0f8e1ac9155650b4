"""Growth on two processes, which DDP keeps alike: the oracle is one process with both batches."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ranks import CASES, RANKS, STEP, grown


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What every case left behind, by name, for every rank."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).parents[1] / "ranks.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
    run = subprocess.run(
        [*command, "--standalone", str(script), str(folder)],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-5000:]
    return {
        name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(RANKS)]
        for name in CASES
    }


def tensors(result):
    assert "error" not in result, result["error"]
    return {name: torch.tensor(values) for name, values in result["weights"].items()}


GROWN = [name for name in CASES if name != "not a number"]


@pytest.mark.parametrize("name", GROWN)
def test_all_ranks_train_one_network_under_ddp(results, name):
    first, second = results[name]
    assert first == second
    assert first["records"]


@pytest.mark.parametrize("name", [name for name in GROWN if name not in ("bf16", "resumed")])
def test_two_ranks_are_one_process_with_the_batches_of_both(results, name, tmp_path):
    options = {k: v for k, v in CASES[name].keywords.items() if k != "strategy"}
    alone = grown(tmp_path, ranks=1, **options)
    together = results[name][0]
    assert together["steps"] == alone["steps"]
    assert together["flops"] == alone["flops"]
    expected = tensors(alone)
    assert tensors(together).keys() == expected.keys()
    for key, weight in tensors(together).items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize(
    ("name", "step", "reason"),
    [
        ("plateau", 6, "apart has not been below 2.5 for 1 of 1 validations"),
        ("flops", 5, f"{5 * STEP:.4g} of {4 * STEP + 1:g} FLOPs were spent"),
        ("file", 3, "there was a file"),
    ],
)
def test_all_ranks_decide_as_one(results, name, step, reason):
    """By the mean of a metric that is another on every rank, by what all spend, by one file."""
    for result in results[name]:
        (record,) = result["records"]
        assert record["step"] == step and record["reason"].startswith(reason)


def test_a_resumed_run_ends_as_one_that_was_not_cut_off(results):
    for resumed, whole in zip(results["resumed"], results["uninterrupted"], strict=True):
        assert tensors(resumed).keys() == tensors(whole).keys()
        for key, weight in tensors(resumed).items():
            assert torch.equal(weight, tensors(whole)[key]), key


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(results):
    for message in results["not a number"]:
        assert message.startswith("FloatingPointError: the loss is nan at step 1 of 3")
