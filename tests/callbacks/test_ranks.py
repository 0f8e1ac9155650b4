"""Growth on two processes, alike or sharded: the oracle is one process with both batches."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything

from lightning_ligo import grow
from lightning_ligo.networks.description import build
from ranks import CASES, RANKS, STEP, UNEVEN, Even, grown, grown_anchor, launched, resumed
from runs import CLASSES, FEATURES


def ran(folder, *names):
    """What these cases left behind, by name, for every rank."""
    launched(Path(__file__).parents[1] / "ranks.py", folder, *names)
    return {
        name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(RANKS)]
        for name in names
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return ran(tmp_path_factory.mktemp("ranks"), *CASES)


def tensors(result):
    assert "error" not in result, result["error"]
    return {name: torch.tensor(values) for name, values in result["weights"].items()}


GROWN = [name for name, case in CASES.items() if getattr(case, "func", None) in (grown, resumed)]
RESUMED = {
    "resumed": "uninterrupted",
    "several, resumed": "several, uninterrupted",
    "several, sharded, resumed": "several, sharded, uninterrupted",
    "other data, resumed": "other data, uninterrupted",
    "sharded, resumed": "sharded, uninterrupted",
    "sharded, resumed from a file": "sharded, uninterrupted",
    "sharded, resumed between": "sharded, uninterrupted",
    "sharded, resumed between from a file": "sharded, uninterrupted",
    "split, resumed": "split, uninterrupted",
}


@pytest.mark.parametrize("name", GROWN)
def test_all_ranks_train_one_network(results, name):
    first, second = results[name]
    assert first == second
    assert first["records"]


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("lemon", []),
        ("unused", ["find_unused_parameters"]),
        ("static", ["static_graph"]),
        ("view", ["gradient_as_bucket_view"]),
        ("sharded", []),
    ],
)
def test_the_large_network_is_wrapped_as_the_small_one_was(results, name, flags):
    assert [result["flags"] for result in results[name]] == [flags, flags]


EQUAL = [name for name in GROWN if "bf16" not in name and "resumed" not in name]


@pytest.mark.parametrize("name", EQUAL)
def test_two_ranks_are_one_process_with_the_batches_of_both(results, name, tmp_path):
    options = {k: v for k, v in CASES[name].keywords.items() if k not in ("strategy", "shares")}
    alike(results[name][0], grown(tmp_path, ranks=1, **options))


def test_a_hook_that_compresses_gradients_begins_anew(results):
    first, second = results["compressed"]
    assert first == second and tensors(first)
    (record,) = first["records"]
    since = first["steps"] - record["step"]
    assert first["reduced"] == since > 2  # of which two are not compressed
    assert first["kept"] == 1


@pytest.mark.slow
def test_a_module_that_is_compiled_is_the_one_that_is_not(tmp_path):
    first, second = ran(tmp_path, "compiled")["compiled"]
    assert first == second
    alike(first, grown(tmp_path, ranks=1, method="ligo", steps=2))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="others count this memory in other units")
@pytest.mark.parametrize("method", ["lemon", "ligo"])
def test_a_growth_holds_whole_networks_besides_what_training_the_large_one_takes(method, tmp_path):
    """In float32: the weights of the large network and its two moments, whole."""
    name = f"memory, {method}"
    held, alone = ran(tmp_path, name)[name], ran(tmp_path, "memory, large alone")
    for mine, other in zip(held, alone["memory, large alone"], strict=True):
        whole = 4 * mine["parameters"]
        more = mine["bytes"] - other["bytes"]
        print(f"\n{method}: {more / whole:.2f} times the weights of the large network more")
        assert more <= 3 * whole


def alike(together, alone):
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


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_as_one_that_was_not_cut_off(results, name):
    for mine, whole in zip(results[name], results[RESUMED[name]], strict=True):
        assert tensors(mine).keys() == tensors(whole).keys()
        for key, weight in tensors(mine).items():
            assert torch.equal(weight, tensors(whole)[key]), key


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(results):
    for message in results["not a number"]:
        assert message.startswith("GrowthFailedError: growth 1 (at step 4")
        assert "failed at step 4: the loss is nan at step 1 of 3" in message


@pytest.mark.parametrize(
    ("name", "without", "why"),
    [
        ("out of memory", "without a growth", "not enough memory (out of memory)"),
        ("out of memory, swapping", "without a growth, stemmed", "not enough memory (out of"),
        ("not a number, sharded", "without a growth", "the loss is nan at step 1 of 3"),
    ],
)
def test_all_ranks_go_on_with_the_small_network_if_a_growth_fails(results, name, without, why):
    (first, second), (expected, _) = results[name], results[without]
    assert tensors(first).keys() == tensors(second).keys() == tensors(expected).keys()
    for key, weight in tensors(first).items():
        assert torch.equal(weight, tensors(second)[key]), key
        torch.testing.assert_close(weight, tensors(expected)[key])
    assert [result["failed"]["step"] for result in (first, second)] == [4, 4]
    assert why in second["failed"]["why"]
    told = second["failed"]["why"].replace("(out of memory)", "(on another rank)")
    assert first["failed"]["why"] == told


def test_a_metric_that_is_not_finite_on_one_rank_is_the_failure_of_all(results):
    (first, second), (expected, _) = results["infinite"], results["without a growth"]
    for key, weight in tensors(first).items():
        assert torch.equal(weight, tensors(second)[key]), key
        torch.testing.assert_close(weight, tensors(expected)[key])
    assert first["failed"]["why"] == "another rank has failed; see its error"
    assert second["failed"]["why"].startswith("val_loss is inf for the grown network, and was 1 fo")


def test_a_sharded_network_in_bf16_is_grown_in_float32_and_then_rounded(results):
    weights = tensors(results["sharded, bf16"][0])
    seed_everything(0)
    small, large = Even().network.to(torch.bfloat16).float(), build(UNEVEN)
    grow(small, large, torch.randn(4, FEATURES), method="lemon")
    assert weights.keys() == {f"network.{name}" for name in large.state_dict()}
    for name, weight in large.state_dict().items():
        assert torch.equal(weights[f"network.{name}"], weight.to(torch.bfloat16).float()), name


@pytest.mark.parametrize("name", ["tested", "tested from files"])
def test_checkpoints_of_both_sizes_are_tested_in_modules_of_either(results, name):
    for result in results[name]:
        assert "error" not in result, result["error"]
        assert [width for *_, width in result["pairs"]] == [8, 8, 24, 24]
        for validated, tested, _ in result["pairs"]:
            assert tested == pytest.approx(validated, rel=1e-6)


@pytest.mark.parametrize("name", ["a task a batch", "a task a rank", "called later on one"])
def test_ranks_that_call_other_heads_grow_all_heads_alike(results, name):
    for result in results[name]:
        assert tensors(result)["network.second.weight"].shape == (CLASSES, 20)
        before, after = torch.tensor(result["before"]), torch.tensor(result["after"])
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert results[name][0] == results[name][1]


@pytest.mark.parametrize("name", ["anchored", "sharded, anchored"])
def test_whole_weights_that_a_callback_keeps_by_name_grow_on_all_ranks(results, name, tmp_path):
    first, second = results[name]
    assert first == second
    alone = grown_anchor(tmp_path, ranks=1)
    assert tensors(first).keys() == tensors(alone).keys()
    for key, anchor in tensors(first).items():
        torch.testing.assert_close(anchor, tensors(alone)[key], msg=key)
    assert len(first["weights"]["network.head.weight"][0]) == 24


REFUSED = {
    "unrecorded": r"18 of the checkpoint's weights .* network\.blocks\.1\.fc1\.bias: \(16,\)",
    "unrecorded file": r"18 of the checkpoint's weights .* network\.blocks\.1\.fc1\.bias: \(16,\)",
    "unwatched": "the checkpoint holds a network 'network' of another size than the module's",
    "drifting": "the weights, or the state of their optimizers, of ranks 1 are not those of rank 0",
    "uneven": "after a growth the weights, .*, of ranks 1 are not those of rank 0",
    "damaged": r"cut\.ckpt is damaged: its file __0_0\.distcp is cut off; resume from another one",
    "renames": r"configure_model of Renames changes the names of parameters .*, such as head\.bias",
    "once": r"growth 1 .* 30 parameters of self\.network are not sharded, such as embed\.weight",
    "twice": r"growth 1 .* configure_model of Twice is called again .* and failed \(AssertionError",
    "around": "configure_model of FSDPWhole calls fully_shard on self, which holds the network",
    "late": r"self\.network was sharded before GrowthCallback saw it",
    "kept in parts": r"\bParts keeps a copy of weights of 'network' in its attribute 'anchor'",
    "masked": "method 'msg' masks parameters .* not supported under ModelParallelStrategy",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sharded_or_loaded_is_refused(results, name):
    for message in results[name]:
        assert re.search(f"(Value|Runtime)Error: .*{REFUSED[name]}", message), message
