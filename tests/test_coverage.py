"""The benchmark that walks the registries, on two pairs."""

import json
import sys
from dataclasses import asdict

import pytest
import timm

from recipes.benchmarks import coverage
from recipes.benchmarks.coverage import Pair, Result, _one_word, main, run, summary, table

PAIRS = [
    Pair("timm", "mlp_mixer", "mixer_s32_224", "mixer_b32_224"),
    Pair("timm", "mobilenetv3", "lcnet_035", "lcnet_050"),
]


@pytest.mark.parametrize(
    ("first", "second", "sizes"),
    [
        ("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", True),
        ("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_384", False),
        ("hrnet_w18_ssld", "hrnet_w18", False),
    ],
)
def test_sizes_are_told_by_one_word_of_their_names(first, second, sizes):
    assert _one_word(first, second) == sizes


def test_a_smaller_network_or_one_with_other_kernels_is_no_larger_size():
    small, large, other = map(coverage._Kinds, ("resnet18", "resnet34", "convnext_atto"))
    assert large.grows_from(small)
    assert not small.grows_from(large) and not other.grows_from(small)


def test_a_run_goes_on_where_it_stopped_and_writes_a_table(tmp_path, monkeypatch, capsys):
    found = tmp_path / f"pairs-{timm.__version__}.json"
    found.write_text(json.dumps([asdict(pair) for pair in PAIRS]))
    words = ["coverage", "--out", str(tmp_path), "--only", "lcnet|hf:gpt2 "]
    monkeypatch.setattr(sys, "argv", words)
    main()
    first = (tmp_path / "results.jsonl").read_text()
    results = [Result(**json.loads(line)) for line in first.splitlines()]
    assert {result.key for result in results} == {
        "hf:gpt2 small->gpt2 large",
        "timm:lcnet_035->lcnet_050",
    }
    for result in results:
        assert result.reason == "" and result.proof < 1e-6 and result.kept < 1e-4
    main()
    assert (tmp_path / "results.jsonl").read_text() == first
    written = (tmp_path / "coverage.md").read_text()
    assert "| timm | 1 | 1 (100.0%) | 1 " in written and "lcnet_035->lcnet_050" in written


def test_a_pair_that_cannot_grow_has_its_reason_in_the_table():
    result = run(Pair("timm", "vgg", "vgg13", "vgg11"))
    assert not result.paired and "cannot be grown from" in result.reason
    assert "| timm | 1 | 0 (0.0%) | 0 " in summary([result])
    assert "does not shrink" in table([result])


def test_a_pair_that_changes_has_its_place_in_the_table():
    result = run(Pair("hf", "gemma2", "gemma2 small", "gemma2 large"))
    assert result.paired and result.told > 1e-4 and result.kept > 1e-4 and result.reason == ""
    assert result.place == "model.layers.0.self_attn.q_proj"
    (row,) = table([result]).splitlines()[2:]
    assert row.endswith(f"| {result.place} |")
    assert summary([result]).endswith(
        "| hf | 1 | 1 (100.0%) | 1 (and 0 with nothing to prove) | 1 | 0 | 0 |"
    )


def test_a_false_claim_is_counted():
    false, true = (Result(f"hf:{kept}", "", told=1e-7, kept=kept) for kept in (0.1, 1e-6))
    assert (false.is_false, true.is_false) == (True, False)
    assert summary([false, true]).endswith("| 2 | 2 | 1 |")


@pytest.fixture
def walk(tmp_path, monkeypatch):
    """Walk two pairs by the command's words; returns the pairs that were run, and the table."""
    found = tmp_path / f"pairs-{timm.__version__}.json"
    found.write_text(json.dumps([asdict(pair) for pair in PAIRS]))
    ran = []

    def run_all(pairs, jobs):
        ran.extend(pair.large for pair in pairs)
        return (Result(pair.key, pair.module, reason=f"run {len(ran)}") for pair in pairs)

    monkeypatch.setattr(coverage, "_run_all", run_all)

    def walked(*words):
        ran.clear()
        monkeypatch.setattr(sys, "argv", ["coverage", "--out", str(tmp_path), *words])
        main()
        return ran, (tmp_path / "coverage.md").read_text()

    return walked


def test_a_pair_with_a_result_is_run_again_only_where_that_is_asked_for(walk, tmp_path):
    assert walk("--only", "lcnet")[0] == ["lcnet_050"]
    assert walk("--only", "timm:")[0] == ["mixer_b32_224"]
    assert walk("--only", "timm:")[0] == []
    ran, written = walk("--only", "timm:", "--again")
    assert ran == ["mixer_b32_224", "lcnet_050"]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4
    assert "run 1" not in written and written.count("run 2") == 2  # the last result of each


def test_a_summary_is_printed_of_what_has_been_run_and_runs_nothing(walk, tmp_path, capsys):
    walk("--only", "lcnet")
    capsys.readouterr()
    (tmp_path / "coverage.md").unlink()
    ran, written = walk("--summary")
    assert ran == []
    printed = capsys.readouterr().out.strip()
    assert printed.endswith("| timm | 1 | 0 (0.0%) | 0 (and 0 with nothing to prove) | 0 | 0 | 0 |")
    assert written.startswith(printed) and "lcnet_035->lcnet_050" in written
