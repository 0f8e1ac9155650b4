"""Describe a growth beside the weights that it made: `growth.json`, and a part of a model card."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning_ligo.networks.weights import Source, sha256_of
from lightning_ligo.operator.measure import Change

PACKAGES = ("lightning-ligo", "torch", "timm", "transformers")


def beside(out: Path) -> tuple[Path, Path]:
    """Return where a growth is described beside a file: as JSON, and as Markdown."""
    return out.with_name(f"{out.name}.growth.json"), out.with_name(f"{out.name}.growth.md")


def describe_growth(record: dict[str, Any], out: Path, is_folder: bool) -> None:
    """Write `growth.json` and a section of the model card, into a folder or beside a file."""
    plain, model_card = (out / "growth.json", out / "README.md") if is_folder else beside(out)
    plain.write_text(json.dumps(record, indent=2))
    before = Path(_source(record)) / "README.md"
    start = f"# {out.name}\n\n" if is_folder else ""
    if is_folder and before.is_file():
        start = before.read_text().rstrip() + "\n\n"
    model_card.write_text(start + card(record))


def _source(record: dict[str, Any]) -> str:
    weights = record["weights"]
    return str(weights if isinstance(weights, str) else weights["path"])


def card(record: dict[str, Any]) -> str:
    """Return a section of a model card that tells how a network was grown."""
    change, plan = Change.from_dict(record["change"]), record["plan"]
    grown = [
        f"- {name}: {small} to {large}"
        for name, (small, large) in {**plan["axes"], **plan["stacks"]}.items()
        if small != large
    ]
    learned = record["learned"]
    steps = f", its operator learned for {learned['steps']} steps" if learned else ""
    return "\n".join([
        "## Growth",
        "",
        f"This network was grown from {_source(record)} by "
        f"lightning-ligo {record['versions']['lightning-ligo']}, method {record['method']}, seed "
        f"{record['seed']}{steps}, on {record['date']}. It has not been trained since. "
        f"From {plan['parameters']['small']:,} to {plan['parameters']['large']:,} parameters:",
        "",
        *grown,
        "",
        f"After the growth {change.sentence}. `growth.json` has the whole plan.",
        "",
    ])  # fmt: skip


def sums(weights: object) -> dict[str, str]:
    """Return the SHA-256 of every file of trained weights, by its name."""
    return {file.name: sha256_of([file]) for file in Source.of(weights).files} if weights else {}


def versions() -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
