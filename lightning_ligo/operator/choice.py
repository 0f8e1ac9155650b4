"""Refuse a word that is none of those there are."""

from __future__ import annotations

from collections.abc import Sequence


def check_choice(name: str, choice: str, choices: Sequence[str], what: str) -> None:
    """Refuse an unknown choice of the argument ``name``; ``what`` says what can be chosen.

    Raises:
        ValueError: listing those there are.
    """
    if choice not in choices:
        raise ValueError(f"unknown {name}={choice!r}; {what}: {', '.join(choices)}")
