"""The recipes run by their commands, and reach the results that their README names."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from lightning_ligo.__main__ import main
from lightning_ligo.methods.catalog import DEFAULT, METHODS, method_named

RECIPES = Path(__file__).parent.parent / "recipes"


def run(recipe: str, folder: Path, *options: str) -> tuple[dict, list[dict[str, str]]]:
    """Run a recipe; return its report and its logged rows."""
    main(["fit", "--config", str(RECIPES / f"{recipe}.yaml"), *options,
          "--trainer.logger.init_args.save_dir", str(folder),
          "--trainer.enable_progress_bar", "false"])  # fmt: skip
    log = folder / recipe / "version_0"
    assert (log / "growth.png").stat().st_size > 1000 and (log / "growth_report.md").exists()
    with open(log / "metrics.csv") as file:
        return json.loads((log / "growth_report.json").read_text()), list(csv.DictReader(file))


def check(report: dict, rows: list[dict[str, str]], depths: list[int], width: list[int]) -> None:
    (growth,) = report["growths"]
    metric = growth["metric"]
    assert list(growth["stacks"].values()) == [depths]
    assert width in growth["axes"].values()
    assert growth["flops"]["small"] > 0 and growth["flops"]["large"] > 0
    assert metric["name"] == "val_loss"
    losses = [float(row["val_loss"]) for row in rows if row["val_loss"]]
    assert metric["final"] == pytest.approx(losses[-1]) and metric["final"] < metric["before"]
    checkpoint = torch.load(report["checkpoint"], weights_only=True)
    assert (
        sum(t.numel() for t in checkpoint["state_dict"].values()) >= growth["parameters"]["large"]
    )


@pytest.mark.filterwarnings("ignore")
def test_digits_ends_above_95_percent(tmp_path):
    report, rows = run("digits_vit", tmp_path)
    check(report, rows, [2, 4], [32, 64])
    (growth,) = report["growths"]
    assert growth["operator"]["steps"] == 25 and growth["operator"]["coefficients"] > 0
    assert growth["flops"]["operator"] > 0
    assert growth["metric"]["after"] <= 1.03 * growth["metric"]["before"]
    assert report["validation"]["val_acc"] >= 0.95
    accuracies = [float(row["val_acc"]) for row in rows if row["val_acc"]]
    assert report["validation"]["val_acc"] == pytest.approx(accuracies[-1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_python_gpt_grows_and_goes_on(tmp_path):
    report, rows = run("python_gpt", tmp_path)
    check(report, rows, [2, 4], [48, 64])
    bits = [float(row["val_bits_per_byte"]) for row in rows if row["val_bits_per_byte"]]
    assert report["validation"]["val_bits_per_byte"] == pytest.approx(bits[-1])


TEXT = ["--trainer.max_epochs", "3", "--trainer.limit_train_batches", "20",
        "--data.init_args.validation_windows", "32"]  # fmt: skip
SHORT = {"digits_vit": ["--trainer.max_epochs", "4"], "python_gpt": TEXT}
PAIRS = ["--trainer.max_epochs", "4", "--trainer.check_val_every_n_epoch", "2"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("recipe", "options", "width"),
    [
        ("python_gpt", TEXT, [48, 64]),
        ("python_bert", TEXT, [48, 64]),
        ("digit_pairs_vit", PAIRS, [32, 64]),
    ],
)
def test_a_short_run_of_a_recipe_grows(recipe, options, width, tmp_path):
    report, rows = run(recipe, tmp_path, *options)
    check(report, rows, [2, 4], width)


ROOM = {
    "digits_vit": ["--trainer.max_epochs", "10"],
    "python_gpt": ["--trainer.limit_train_batches", "150"],
}
SOME = [("digits_vit", "lemon")]
ALL = [(recipe, method) for recipe in SHORT for method in [*METHODS, DEFAULT]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("recipe", "method"),
    [each if each in SOME else pytest.param(*each, marks=pytest.mark.slow) for each in ALL],
)
def test_every_method_can_be_named_on_the_command_line(recipe, method, tmp_path):
    options = [*SHORT[recipe], "--trainer.callbacks.method", method]
    width, ramp = method_named(method).width, method_named(method).ramp
    if ramp:  # which needs room
        options += ROOM[recipe]
    if recipe == "python_gpt" and width is not None and width.whole:
        options = ["--config", str(RECIPES / "changes" / "python_gpt_from_32.yaml"), *options]
    report, rows = run(recipe, tmp_path, *options)
    assert report["growths"][0]["method"] == method
    assert math.isfinite(float([row["val_loss"] for row in rows if row["val_loss"]][-1]))
