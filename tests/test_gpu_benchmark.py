"""The benchmark for one GPU runs on a CPU, at a hundredth of the size and of the time."""

import json

import pytest

from recipes.benchmarks import gpu


def test_the_flops_from_scratch_are_read_between_budgets():
    frontier = [(1e15, 2.0), (4e15, 1.5)]
    sign, flops = gpu.needed(frontier, 1.75)
    assert sign == "" and flops == pytest.approx(2e15)
    assert gpu.needed(frontier, 2.5) == ("<", 1e15) and gpu.needed(frontier, 1.4) == (">", 4e15)
    assert gpu.needed(frontier, float("nan")) == ("<", 1e15)


@pytest.mark.slow
def test_the_benchmark_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    options = ["gpu", "--out", str(tmp_path), "--device", "cpu", "--scale", "0.001"]
    names = ["scratch", "small", "stack+fresh", "ligo-paper", "small only"]
    runs = [run for run in gpu.runs() if run.kind in names and run.factor < 2]
    monkeypatch.setattr(gpu, "runs", lambda: runs)
    for minutes, done in (("0", 0), ("5", len(runs)), ("5", len(runs))):
        monkeypatch.setattr("sys.argv", [*options, "--minutes", minutes])
        gpu.main()
        lines = tmp_path / "runs.jsonl"
        records = [json.loads(line) for line in lines.read_text().splitlines()] if done else []
        assert len(records) == done
    assert all(2 < record["loss"] < 6 for record in records)
    assert any(record["operator"] for record in records)
    assert "stack+fresh" in capsys.readouterr().out
