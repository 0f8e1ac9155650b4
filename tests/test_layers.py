"""Imports run one way: each file of the core uses only those before it, and only torch beside."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_ligo"
CORE = ["factors", "rules", "trace", "axes", "plan", "proof", "maps", "methods", "growth", "fit"]
ALLOWED = {
    "factors": set(),
    "axes": {"factors"},
    "rules": {"factors"},
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
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
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
    assert foreign <= {"torch", "__future__", "collections", "copy", "contextlib", "dataclasses", "itertools", "math",
                       "re", "typing"}  # fmt: skip
