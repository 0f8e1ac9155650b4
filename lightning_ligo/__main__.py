"""The command `lightning-ligo`, which is `python -m lightning_ligo` as well."""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "plan": "cli.plan:plan",
    "grow": "cli.grow:grow_command",
    "methods": "cli.methods:methods",
    "compare": "compare.command:compare",
}
"""Commands of our own; all others are those of LightningCLI."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line with `args`, those of the process by default."""
    words = list(sys.argv[1:] if args is None else args)
    if words and words[0] in COMMANDS:
        module, function = COMMANDS[words.pop(0)].split(":")
    else:
        module, function = "cli.base", "GrowthCLI"
    getattr(importlib.import_module(f"lightning_ligo.{module}"), function)(words)


if __name__ == "__main__":
    main()
