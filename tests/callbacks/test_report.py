import base64
import html
import json
import os
import re

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_ligo import GrowthCallback, Operator, pair
from lightning_ligo.callbacks import accounting
from lightning_ligo.callbacks.accounting import Accounting, CurveCallback, Point, Window, Windows
from lightning_ligo.callbacks.document import write_whole
from lightning_ligo.callbacks.plot import heat_maps, plot
from lightning_ligo.callbacks.record import MOST, GrowthRecord, learned
from lightning_ligo.callbacks.report import (
    growth_report,
    html_page,
    markdown,
    rows,
    write_report,
)
from lightning_ligo.networks.description import build
from lightning_ligo.schedule import Growth
from runs import LARGE, MIDDLE, STEPS_PER_EPOCH, Plain, fit, plain

LEARNED = {
    "depth mix of blocks": {"shape": [4, 2], "values": [[1, 0], [0.5, 0.5], [0.1, 0.9], [0, 1]]},
    "map of embed (produces)": {"shape": [64, 32], "values": [[0.0, 0.0], [0.0, 0.0]]},
}
RECORDS = [
    {
        "step": 100 * number,
        "reason": f"step {100 * number}",
        "method": "ligo",
        "ramp": 0,
        "parameters": {"small": 1000 * number, "large": 4000 * number},
        "axes": {"embed": [32, 64]},
        "stacks": {"blocks": [2, 4]},
        "operator": {
            "coefficients": 123,
            "steps": 50,
            "learning_rate": 1e-3,
            "losses": [0.5, 0.25],
        },
        "moments": {"policy": "map", "carried": 55 * number, "parameters": 110},
        "rate": {"factor": 0.5, "rewarm": 0, "peak": 1.0},
        "metric": {"name": "val_loss", "before": 1.5 / number, "after": 1.4 / number},
        "flops": {"operator": 7},
        "change": {"change": 0.12 if number == 2 else 3e-7, "place": "a <norm>", "why": ""},
        "seconds": 2.0,
        "learned": LEARNED if number == 1 else {},
    }
    for number in (1, 2)
]
CURVE = [
    Point(50, 2.0, 5, 1, 0.1), Point(100, 1.5, 10, 2, 0.2),
    Point(100, 1.4, 17, 3, 0.3), Point(200, None, 40, 4, 0.4),
]  # fmt: skip
WINDOWS = [Window(100, 1.9, 12, 8.0), Window(101, 1.7, 20, 8.0), Window(201, 1.3, 44, 4.0)]
NETWORKS = [{"class_path": "a.Net", "init_args": {"width": 8}}, None]


def report_of(records, failed=None, training=(), validation=None, checkpoint=None):
    return growth_report(records, failed, {
        "networks": NETWORKS, "training": list(training), "validation": validation or {},
        "checkpoint": checkpoint, "module": "Plain",
        "seeds": {"run": "5", "growths": 3}, "seconds": 3661.4,
    })  # fmt: skip


def accounting_of(curve, windows):
    made = Accounting()
    made.curve, made.windows.done = curve, windows
    return made


def test_the_report_is_the_records_with_what_came_after():
    report = report_of(RECORDS, None, [10, 20, 30], {"val_loss": 0.5, "val_acc": 0.9}, "a.ckpt")
    first, second = report["growths"]
    assert first["metric"] == {"name": "val_loss", "before": 1.5, "after": 1.4, "final": 0.75}
    assert second["metric"] == {"name": "val_loss", "before": 0.75, "after": 0.7, "final": 0.5}
    assert first["flops"] == {"small": 10, "operator": 7, "large": 20}
    assert second["flops"] == {"small": 20, "operator": 7, "large": 30}
    assert report["checkpoint"] == "a.ckpt"
    assert report["validation"] == {"val_loss": 0.5, "val_acc": 0.9}
    assert set(report) == {
        "growths", "failed", "checkpoint", "module", "validation", "versions", "networks", "seeds",
        "seconds",
    }  # fmt: skip


def test_a_size_that_was_not_trained_cost_nothing():
    report = report_of(RECORDS, None, [10], {}, None)
    assert [g["flops"]["large"] for g in report["growths"]] == [0, 0]


def test_the_table_says_everything_for_every_growth():
    table = {row[0].strip(): row[1:] for row in rows(report_of(RECORDS))}
    assert table["parameters"] == ["1,000 → 4,000", "2,000 → 8,000"]
    assert table["depth of blocks"] == ["2 → 4"] * 2 and table["axis embed"] == ["32 → 64"] * 2
    assert table["operator"] == ["123 coefficients, 50 steps at 0.001, loss 0.5 → 0.25"] * 2
    assert table["the function"] == [
        "kept, to 3e-7, first at a <norm>",
        "changes by 12 %, first at a <norm>",
    ]
    assert table["learning rate"] == ["0.5 times the schedule's"] * 2
    assert table["optimizer state"] == [
        "mapped for 55 of 110 parameters, fresh for the others",
        "mapped for 110 of 110 parameters",
    ]
    assert table["before growth"] == ["1.5000", "0.7500"]
    assert table["at the end"] == ["0.7500", "none"]
    text = markdown(report_of(RECORDS))
    assert "| parameters | 1,000 → 4,000 | 2,000 → 8,000 |" in text


def test_the_plot_shows_the_metric_over_steps_and_flops_and_marks_the_growths():
    figure = plot(report_of(RECORDS), CURVE, WINDOWS)
    by_step, by_flops, rate = figure.axes
    assert by_step.lines[0].get_xydata().tolist() == [[50, 2.0], [100, 1.5], [100, 1.4]]
    assert by_flops.lines[0].get_xydata().tolist() == [[6, 2.0], [12, 1.5], [20, 1.4]]
    assert (by_flops.get_xscale(), by_step.get_yscale(), by_step.get_ylabel()) == (
        "log", "log", "val_loss"
    )  # fmt: skip
    rates = [[100, 8.0], [101, 0.5 * 8.0], [201, 0.25 * 4.0]]  # the schedule's, times the factors
    assert rate.lines[0].get_xydata().tolist() == rates
    ends = [line.get_xydata().tolist() for line in by_flops.lines if line.get_marker() == "o"]
    assert ends == [[[12, 1.5], [20, 1.4]], [[44, 0.75], [44, 0.7]]]  # before and after
    assert [line.get_xdata()[0] for line in rate.lines[1:]] == [100, 200]
    assert [text.get_text() for text in by_step.texts] == [
        "growth 1: 1 k → 4 k parameters\nthe function is kept, to 3e-7\nval_loss 1.5000 → 1.4000",
        "growth 2: 2 k → 8 k parameters\nthe function changes by 12 %\nval_loss 0.7500 → 0.7000",
    ]
    assert figure.get_suptitle() == "Net, grown by ligo"


def test_a_run_without_a_validation_draws_its_training_loss():
    unknown = {"name": None, "before": None, "after": None}
    records = [{**RECORDS[0], "metric": unknown}]
    by_step, by_flops, _ = plot(report_of(records), [Point(100, None, 12, 0, 0.1)], WINDOWS).axes
    assert by_step.get_ylabel() == "training loss"
    assert by_step.lines[0].get_xydata().tolist() == [[100, 1.9], [101, 1.7], [201, 1.3]]
    assert by_flops.lines[0].get_xydata().tolist() == [[12, 1.9], [20, 1.7], [44, 1.3]]
    assert by_flops.lines[1].get_xdata()[0] == 12  # the mark of the growth
    assert "metric" not in markdown(report_of(records)).replace("A metric at the end", "")


def test_a_metric_that_is_not_above_zero_has_a_linear_axis_and_no_curve_is_said():
    report = report_of(RECORDS)
    below = [CURVE[0], Point(60, -1.0, 6, 1, 0.1)]
    assert plot(report, below, []).axes[0].get_yscale() == "linear"
    for panel in plot(report, [], []).axes:
        assert panel.texts[0].get_text() == "not recorded"


def test_the_report_names_networks_seeds_and_the_time_that_it_took():
    text = markdown(report_of(RECORDS))
    assert "class_path: a.Net\ninit_args:\n  width: 8\n" in text and "not described" in text
    assert "Seed: 5; that of growths: 3." in text
    assert "Checkpoint: none." in text
    saved = markdown(report_of(RECORDS, checkpoint="a.ckpt"))
    assert "Checkpoint: a.ckpt; open it with lightning_ligo.load(Plain, path)." in saved
    assert "Training took 1:01:01 (hours, minutes, seconds)." in text
    assert "Growth 1 at step 100 (step 100) by ligo: 1,000 → 4,000 parameters" in text


def test_what_does_not_grow_is_no_row():
    records = [{**RECORDS[0], "stacks": {"blocks": [2, 4], "taps": [3, 3]}}]
    names = [row[0] for row in rows(report_of(records))]
    assert "depth of blocks" in names and "depth of taps" not in names


def test_windows_hold_the_mean_loss_and_stay_few(tmp_path):
    class Manual(Plain):
        """Returns no loss."""

        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    noting, module = CurveCallback("val_loss"), plain()
    fit(module, tmp_path, noting, epochs=2, accumulate_grad_batches=2)
    losses = [float(loss) for loss in module.outputs]
    windows = noting.accounting.windows.done
    assert [window.loss for window in windows] == pytest.approx(losses)
    assert [window.step for window in windows] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert windows[-1].spent < noting.accounting.total  # a validation follows
    assert windows[-1].learning_rate == pytest.approx(1e-2 * 0.95**6)

    noting = CurveCallback("val_loss")
    fit(Manual(), tmp_path, noting, epochs=1)
    assert [window.loss for window in noting.accounting.windows.done] == [None] * STEPS_PER_EPOCH


def test_two_windows_become_one_where_there_are_many(monkeypatch, tmp_path):
    monkeypatch.setattr(accounting, "MOST_WINDOWS", 4)
    noting, module = CurveCallback("val_loss"), plain()
    fit(module, tmp_path, noting, epochs=2)
    losses, windows = [float(loss) for loss in module.outputs], noting.accounting.windows
    assert [window.step for window in windows.done] == [4, 8, 12]
    means = [sum(losses[start : start + 4]) / 4 for start in (0, 4, 8)]
    assert [window.loss for window in windows.done] == pytest.approx(means)
    again = Windows()
    again.load_state_dict(json.loads(json.dumps(windows.state_dict())))
    assert again.done == windows.done


def test_the_page_holds_all_in_one_file():
    report = report_of(RECORDS, None, [10, 20, 30], {"val_loss": 0.5}, "a.ckpt")
    text = html_page(report, b"picture")
    tags = re.findall(r"<(?:script|link|img|iframe)[^>]*>", text)
    assert len(tags) == 2 and all('src="data:image/png;base64,' in tag for tag in tags)
    assert base64.b64encode(b"picture").decode() in tags[0]
    for row in rows(report):
        for cell in row:
            assert html.escape(cell) in text
    assert "Growth 1 at step 100 (step 100) by ligo: 1,000 → 4,000 parameters" in text
    assert "On the batch before which it grew, the function is kept, to 3e-7" in text
    assert (
        "On the batch before which it grew, the function changes by 12 %, first at a &lt;norm&gt;."
        in text
    )
    assert "What the operator learned" in text
    bare = html_page(report_of(RECORDS[1:]), b"")
    assert "What the operator learned" not in bare
    failed = {"growth": 1, "method": "ligo", "reason": "step 3", "step": 3, "why": "a reason"}
    assert "failed at step 3: a reason." in html_page(report_of([], failed, [], {}, None), b"")


def test_heat_maps_show_what_was_learned():
    figure = heat_maps(list(LEARNED.items()))
    mix, form = (axes for axes in figure.axes if axes.get_title())
    assert mix.get_title() == "depth mix of blocks" and mix.get_ylabel() == "large (4)"
    assert mix.images[0].get_array().tolist() == LEARNED["depth mix of blocks"]["values"]
    assert form.images[0].get_clim() == (-1, 1)


@pytest.mark.parametrize(
    ("method", "titles"),
    [
        ("ligo", ["depth mix of blocks", "map of blocks.*.mlp.hidden (produces)"]),
        ("ligo-low-rank", ["map of blocks.*.mlp.hidden (produces)"]),
        ("lemon", []),
    ],
)
def test_what_an_operator_learned_is_summed_up(method, titles):
    small = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 8, "patch_size": 4}
    networks = [
        build({"class_path": "timm.models.VisionTransformer", "init_args": {**small, **larger}})
        for larger in ({}, {"embed_dim": 32, "depth": 4, "num_heads": 4})
    ]
    plan = pair(*networks, torch.randn(2, 3, 8, 8))
    operator = Operator(plan, networks[0], method)
    found = learned(operator)
    assert list(found) == titles
    if "depth mix of blocks" in found:
        mixes = torch.stack(list(operator.depths.mixes.values()))
        values = torch.tensor(found["depth mix of blocks"]["values"])
        assert torch.allclose(values, mixes.mean(0), atol=1e-3)
    if titles:
        matrix = found[list(found)[-1]]
        assert matrix["shape"] == [128, 64]
        assert torch.tensor(matrix["values"]).shape == (MOST, MOST)
    assert json.loads(json.dumps(found)) == found


def test_a_record_of_an_older_checkpoint_has_nothing_learned():
    old = {key: value for key, value in RECORDS[0].items() if key != "learned"}
    assert GrowthRecord.from_dict(old).learned == {}
    assert GrowthRecord.from_dict(RECORDS[0]).to_dict() == RECORDS[0]


NAMES = ["growth_report.json", "growth_report.md", "growth_report.html", "growth.png"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("moment", ["in the middle of a file", "at the end of a file"])
def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch, name, moment):
    def written(folder, records):
        folder = write_report(report_of(records), accounting_of(CURVE, WINDOWS), tmp_path / folder)
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
        monkeypatch.setattr("lightning_ligo.callbacks.document.write_whole", write)
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
            "seconds", "change", "moments", "ramp", "rate", "reason",
        }  # fmt: skip
        small, large = counts[number], counts[number + 1]
        assert growth["parameters"] == {"small": small, "large": large}
        assert set(growth["operator"]) == {"coefficients", "steps", "learning_rate", "losses"}
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
