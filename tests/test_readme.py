"""The README is short, shows the drop-in first, and lists the folders of the package."""

import json
import re

import pytest

from lightning_ligo.methods.catalog import METHODS
from pages import PAGES, ROOT, kinds

README = PAGES["README.md"]


def test_it_is_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_the_drop_in_is_the_first_thing_and_short():
    first = kinds("README.md", "python")[0].text
    assert "GrowthCallback" in first
    assert len([line for line in first.splitlines() if line.strip()]) <= 20


@pytest.mark.filterwarnings("ignore")
def test_the_drop_in_prints_and_writes_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = kinds("README.md", "python")  # the whole Python of the README
    exec(compile(block.text, "README", "exec"), {"__name__": "__main__"})
    (report,) = tmp_path.rglob("growth_report.json")
    (grown,) = json.loads(report.read_text())["growths"]
    metric = grown["metric"]
    assert metric["name"] == "val_loss"
    assert all(metric[moment] > 0 for moment in ("before", "after", "final"))
    assert "Growth report" in capsys.readouterr().out


def test_the_log_that_it_shows_is_at_most_12_lines():
    log = kinds("README.md", "text")[0]
    assert log.text.startswith("Growth 1 of 1") and len(log.text.splitlines()) <= 12


def test_it_lists_every_file_and_folder_of_the_package():
    tree = kinds("README.md", "text")[-1].text
    assert len(tree.splitlines()) <= 12
    rows = re.findall(r"^  (\S.*?)  ", tree, re.MULTILINE)
    listed = {name for row in rows for name in row.split(", ")}
    package = ROOT / "lightning_ligo"
    files = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    folders = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    assert listed == files | folders


def test_it_counts_the_methods():
    assert f"{len(METHODS)}, as data" in README
