"""`lightning-ligo methods` as users call it."""

import re

import pytest

from lightning_ligo.__main__ import main
from lightning_ligo.methods.catalog import METHODS


def test_every_method_is_listed_with_what_it_does(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["methods"])
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines]
    rows = {row[0]: row[1:] for row in cells if row and row[0] in METHODS}
    assert rows.keys() == METHODS.keys()
    assert rows["ligo"][:4] == [
        "uneven copies", "interpolated, new layers zero output",
        "both forms of every map, depth mix", "yes",
    ]  # fmt: skip
    assert rows["stack"][:4] == ["uneven copies", "stacked", "", "no"]
    assert rows["lemon"][4] == "LEMON (ICLR 2024)"


@pytest.mark.parametrize("name", ["lemon", "stack+lemon"])
def test_a_name_shows_its_card(name, capsys):
    main(["methods", name])
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: ") and "  keeps the function" in out and "LEMON (ICLR" in out


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(SystemExit, match=r"methods: unknown method 'lemmon'; .*llama-pro"):
        main(["methods", "lemmon"])
