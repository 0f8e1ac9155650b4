"""The README's Python runs as it stands there, and its list of files is the package's."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_drop_in_is_the_first_thing_and_short():
    assert "GrowthCallback" in BLOCKS[0]
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 20


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_its_python_runs(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"README block {number}", "exec"), {"__name__": "__main__"})
    if number == 0:
        assert list(tmp_path.rglob("growth_report.json"))
        assert "Growth report" in capsys.readouterr().out


def test_it_lists_every_file_of_the_package():
    tree = README.split("## The package")[1]
    listed = set(re.findall(r"^      (\w+(?:\.py|/)) ", tree, re.MULTILINE))
    package = ROOT / "lightning_ligo"
    files = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    folders = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    assert listed == files | folders
