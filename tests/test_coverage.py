"""The command that walks the registries, on two pairs."""

import json
import sys
from dataclasses import asdict

import pytest
import timm

from recipes import coverage
from recipes.coverage import Pair, Result, _one_word, main, run, summary, table

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
