"""Imports run one way: each file of the core uses only those before it, and only torch beside."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_ligo"
FUTURE = "from __future__ import annotations\n"
ALLOWED = {
    "notation": set(),
    "factors": set(),
    "ledger": {"factors"},
    "rules": {"factors", "ledger", "rules"},
    "stacks": set(),
    "flows": {"factors", "ledger", "stacks"},
    "axes": {"factors", "flows", "ledger", "notation", "stacks"},
    "naming": {"factors", "ledger", "notation"},
    "trace": {"axes", "factors", "ledger", "naming", "notation", "rules"},
    "plan": {"axes", "flows", "proof"},
    "streams": {"axes", "stacks"},
    "stretch": set(),
    "lengths": {"axes", "flows", "plan"},
    "problems": {"axes", "ledger", "lengths", "plan", "stretch"},
    "replaced": {"axes", "lengths", "problems"},
    "conditions": {"axes", "lengths", "plan", "proof", "stacks", "streams", "stretch", "trace"},
    "identity": {"axes", "plan", "proof", "trace"},
    "pairing": {
        "axes",
        "conditions",
        "identity",
        "lengths",
        "naming",
        "plan",
        "problems",
        "proof",
        "replaced",
        "stacks",
        "streams",
        "trace",
    },
    "proof": {"axes", "flows", "naming", "stacks", "trace"},
    "forms": set(),
    "maps": {"forms"},
    "mixes": set(),
    "method": {"maps", "mixes"},
    "methods": {"maps", "method", "mixes"},
    "depths": {"axes", "method", "mixes", "plan"},
    "widths": {"axes", "depths", "forms", "maps", "method", "plan", "stretch"},
    "limits": {"depths", "forms", "method", "mixes", "plan", "widths"},
    "growth": {"depths", "limits", "method", "methods", "plan", "widths"},
    "choice": set(),
    "moments": {"choice", "growth", "plan"},
    "ramp": {"axes", "growth", "plan"},
    "rate": set(),
    "fit": {"growth", "method", "methods", "naming", "pairing"},
    "flops": set(),
    "cost": {"fit", "flops", "growth", "method", "methods", "plan", "trace"},
}


@pytest.mark.parametrize("name", ALLOWED)
def test_the_core_imports_torch_only_and_never_back(name):
    files = [PACKAGE / f"{name}.py"]
    if not files[0].exists():
        files = sorted((PACKAGE / name).glob("*.py"))
    tree = ast.parse("\n".join(file.read_text().replace(FUTURE, "") for file in files))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    ours = {module.split(".")[1] for module in imported if module.startswith("lightning_ligo.")}
    foreign = {module.split(".")[0] for module in imported} - {"lightning_ligo"}
    assert ours <= ALLOWED[name]
    assert foreign <= {"torch", *sys.stdlib_module_names}
