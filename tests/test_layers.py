"""Imports run one way: each file of the core uses only those before it, and only torch beside."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_ligo"
FUTURE = "from __future__ import annotations\n"
CORE = ["factors", "rules", "trace", "axes", "plan", "proof", "maps", "methods", "growth", "fit"]
ALLOWED = {
    "factors": set(),
    "axes": {"factors"},
    "rules": {"factors", "rules"},
    "trace": {"axes", "factors", "rules"},
    "plan": {"axes", "trace"},
    "proof": {"axes", "trace"},
    "maps": set(),
    "methods": {"maps"},
    "growth": {"axes", "methods", "plan"},
    "fit": {"growth", "plan"},
}


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_torch_only_and_never_back(name):
    files = [PACKAGE / f"{name}.py"]
    if not files[0].exists():
        files = sorted((PACKAGE / name).glob("*.py"))
    tree = ast.parse("\n".join(file.read_text().replace(FUTURE, "") for file in files))
    typing_only = {
        id(statement)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
    }
    imported = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    ours = {module.split(".")[1] for module in imported if module.startswith("lightning_ligo.")}
    foreign = {module.split(".")[0] for module in imported} - {"lightning_ligo"}
    assert ours <= ALLOWED[name]
    assert foreign <= {"torch", *sys.stdlib_module_names}
