"""`lightning-ligo methods` as users call it."""

from itertools import pairwise

import pytest

from lightning_ligo.__main__ import main
from lightning_ligo.cli.methods import WIDTHS
from lightning_ligo.methods.catalog import METHODS


def test_every_method_is_listed_with_what_it_does(capsys):
    main(["methods"])
    rows, name = {}, None
    for line in capsys.readouterr().out.splitlines()[2:-2]:
        starts = [sum(WIDTHS[:column]) + 2 * column for column in range(len(WIDTHS) + 1)]
        cells = [line[start : end - 2].strip() for start, end in pairwise(starts)]
        name = cells[0] or name
        parts = rows.setdefault(name, [[] for _ in WIDTHS[1:]])
        for part, cell in zip(parts, cells[1:], strict=True):
            part += cell.split()
    rows = {name: [" ".join(part) for part in parts] for name, parts in rows.items()}
    assert rows.keys() == METHODS.keys()
    assert rows["ligo"] == [
        "old and mean, rest one-sided", "stacked",
        "both forms of every map, depth mix", "no", "LiGO (ICLR 2023)",
    ]  # fmt: skip
    assert rows["stack"][:4] == ["uneven copies", "stacked", "", "no"]
    assert rows["lemon"][4] == "LEMON (ICLR 2024)"
    for method in METHODS.values():  # no word is cut
        assert rows[method.name][:2] == [str(method.width or ""), str(method.depth or "")]


def test_the_table_fits_a_terminal_of_80_columns(capsys):
    main(["methods"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("name", ["lemon", "stack+lemon"])
def test_a_name_shows_its_card(name, capsys):
    main(["methods", name])
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: ") and "  keeps the function" in out and "LEMON (ICLR" in out


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(SystemExit, match=r"methods: unknown method 'lemmon'; .*llama-pro"):
        main(["methods", "lemmon"])
