import json
import os

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_ligo import GrowthCallback
from lightning_ligo.callbacks.accounting import Point
from lightning_ligo.callbacks.report import (
    growth_report,
    markdown,
    plot,
    rows,
    write_report,
    write_whole,
)
from lightning_ligo.networks import build
from lightning_ligo.schedule import Growth
from runs import LARGE, MIDDLE, fit, plain

RECORDS = [
    {
        "step": 100 * number,
        "reason": f"step {100 * number}",
        "method": "ligo",
        "ramp": 0,
        "parameters": {"small": 1000 * number, "large": 4000 * number},
        "axes": {"embed": [32, 64]},
        "stacks": {"blocks": [2, 4]},
        "operator": {"coefficients": 123, "steps": 50, "learning_rate": 1e-3},
        "moments": {"policy": "map", "carried": 55 * number, "parameters": 110},
        "rate": {"factor": 0.5, "rewarm": 0, "peak": 1.0},
        "metric": {"name": "val_loss", "before": 1.5 / number, "after": 1.4 / number},
        "flops": {"operator": 7},
        "seconds": 2.0,
    }
    for number in (1, 2)
]
CURVE = [
    Point(50, 2.0, 5, 1, 0.1), Point(100, 1.5, 10, 2, 0.2), Point(100, 1.4, 17, 3, 0.3),
    Point(200, None, 40, 4, 0.4),
]  # fmt: skip


def test_the_report_is_the_records_with_what_came_after():
    report = growth_report(RECORDS, None, [10, 20, 30], {"val_loss": 0.5, "val_acc": 0.9}, "a.ckpt")
    first, second = report["growths"]
    assert first["metric"] == {"name": "val_loss", "before": 1.5, "after": 1.4, "final": 0.75}
    assert second["metric"] == {"name": "val_loss", "before": 0.75, "after": 0.7, "final": 0.5}
    assert first["flops"] == {"small": 10, "operator": 7, "large": 20}
    assert second["flops"] == {"small": 20, "operator": 7, "large": 30}
    assert report["checkpoint"] == "a.ckpt"
    assert report["validation"] == {"val_loss": 0.5, "val_acc": 0.9}
    assert set(report) == {"growths", "failed", "checkpoint", "validation", "versions"}


def test_a_size_that_was_not_trained_cost_nothing():
    report = growth_report(RECORDS, None, [10], {}, None)
    assert [g["flops"]["large"] for g in report["growths"]] == [0, 0]


def test_the_table_says_everything_for_every_growth():
    table = {row[0].strip(): row[1:] for row in rows(growth_report(RECORDS, None, [], {}, None))}
    assert table["parameters"] == ["1,000 → 4,000", "2,000 → 8,000"]
    assert table["depth of blocks"] == ["2 → 4"] * 2 and table["axis embed"] == ["32 → 64"] * 2
    assert table["operator"] == ["123 coefficients, 50 steps at 0.001"] * 2
    assert table["learning rate"] == ["0.5 times the schedule's"] * 2
    assert table["optimizer state"] == [
        "mapped for 55 of 110 parameters, fresh for the others",
        "mapped for 110 of 110 parameters",
    ]
    assert table["before growth"] == ["1.5000", "0.7500"]
    assert table["at the end"] == ["0.7500", "none"]
    text = markdown(growth_report(RECORDS, None, [], {}, None))
    assert "| parameters | 1,000 → 4,000 | 2,000 → 8,000 |" in text


def test_the_plot_marks_the_growths():
    figure = plot(growth_report(RECORDS, None, [], {}, None), CURVE)
    above, below = figure.axes
    assert above.lines[0].get_xydata().tolist() == [[50, 2.0], [100, 1.5], [100, 1.4]]
    assert below.lines[0].get_xydata().tolist() == [[50, 5], [100, 10], [100, 17], [200, 40]]
    assert [line.get_xdata()[0] for line in above.lines[1:]] == [100, 200]
    assert [text.get_text() for text in above.texts] == [
        "growth 1: 1k → 4k", "growth 2: 2k → 8k",
    ]  # fmt: skip
    assert above.get_ylabel() == "val_loss"


NAMES = ["growth_report.json", "growth_report.md", "growth.png"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("moment", ["in the middle of a file", "at the end of a file"])
def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch, name, moment):
    def written(folder, records):
        folder = write_report(growth_report(records, None, [], {}, None), CURVE, tmp_path / folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def write(path, write):
        def half(part):
            write(part)
            os.truncate(part, part.stat().st_size // 2)
            raise OSError("disk full")

        write_whole(path, half if path.name == name else write)

    def replace(part, path):
        if path.name == name:
            raise OSError("disk full")
        move(part, path)

    move, older, newer = os.replace, written("a", RECORDS), written("b", RECORDS[:1])
    assert set(older) == set(newer) == set(NAMES)
    assert older["growth.png"].startswith(b"\x89PNG")
    if moment == "at the end of a file":
        monkeypatch.setattr(os, "replace", replace)
    else:
        monkeypatch.setattr("lightning_ligo.callbacks.report.write_whole", write)
    with pytest.raises(OSError, match="disk full"):
        written("a", RECORDS[:1])
    found = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    first = NAMES.index(name)
    assert found == {each: (newer if NAMES.index(each) < first else older)[each] for each in NAMES}


def test_a_run_reports_itself_where_it_logs(tmp_path, capsys):
    growths = [Growth(MIDDLE, step=5), Growth(LARGE, step=11)]
    saves = ModelCheckpoint(tmp_path / "saved", monitor="val_loss")
    run = fit(
        plain(), tmp_path, GrowthCallback(growths, method="ligo", steps=2), saves,
        logger=CSVLogger(tmp_path, name="run", version=0), enable_checkpointing=True,
        log_every_n_steps=1,
    )  # fmt: skip
    report = json.loads((tmp_path / "run/version_0/growth_report.json").read_text())
    counts = [sum(p.numel() for p in plain().network.parameters())]
    counts += [sum(p.numel() for p in build(to).parameters()) for to in (MIDDLE, LARGE)]
    for number, growth in enumerate(report["growths"]):
        assert set(growth) == {
            "step", "method", "parameters", "axes", "stacks", "operator", "metric", "flops",
            "seconds", "inexact", "moments", "ramp", "rate", "reason",
        }  # fmt: skip
        small, large = counts[number], counts[number + 1]
        assert growth["parameters"] == {"small": small, "large": large}
        assert set(growth["operator"]) == {"coefficients", "steps", "learning_rate"}
        assert set(growth["metric"]) == {"name", "before", "after", "final"}
        assert set(growth["flops"]) == {"small", "operator", "large"}
        assert all(value > 0 for value in growth["flops"].values())
        assert growth["seconds"] > 0
    assert [growth["step"] for growth in report["growths"]] == [5, 11]
    assert report["growths"][0]["axes"]["embed"] == [8, 16]
    assert report["growths"][1]["stacks"] == {"blocks": [2, 4]}
    assert report["checkpoint"] == saves.best_model_path
    assert report["validation"]["val_loss"] == pytest.approx(
        float(run.callback_metrics["val_loss"])
    )
    assert "Growth report" in capsys.readouterr().out
