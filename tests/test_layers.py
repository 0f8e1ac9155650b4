"""Imports run one way: a folder uses only those below it, and the lower ones only torch beside."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_ligo"
ALLOWED = {  # from the lowest up; a name is a folder, or a file at the top
    "axes": set(),
    "methods": set(),
    "schedule": set(),
    "networks": {"axes"},
    "plan": {"axes"},
    "operator": {"axes", "methods", "plan"},
    "tasks": {"networks"},
    "trainer": {"axes", "networks", "schedule"},
    "callbacks": {"axes", "methods", "networks", "operator", "plan", "schedule", "trainer"},
}
ALLOWED["cli"] = {*ALLOWED, "callbacks"}
ALLOWED["compare"] = {*ALLOWED, "cli"}
PRIVATE = PACKAGE / "trainer" / "lightning.py"  # the one file for private parts of Lightning
OF_OTHERS = {  # of torch, Hugging Face and named tuples
    "_orig_mod", "_compiled_call_impl", "_call_impl", "_iterator", "_replace",
    "_gradient_checkpointing_func",
}  # fmt: skip
TORCH_ONLY = ("axes", "methods", "schedule", "networks", "plan", "operator")


def files(room: str) -> list[Path]:
    single = PACKAGE / f"{room}.py"
    return [single] if single.exists() else sorted((PACKAGE / room).rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Every module that a file imports, at its top or later."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            modules.add(node.module)
            folder = PACKAGE.parent / node.module.replace(".", "/")
            names = (alias.name for alias in node.names)
            modules |= {
                f"{node.module}.{each}" for each in names if (folder / f"{each}.py").exists()
            }
    return modules


def ours(file: Path) -> set[str]:
    start = "lightning_ligo."
    return {name.removeprefix(start) for name in imported(file) if name.startswith(start)}


def private(file: Path) -> set[str]:
    """The names with an underscore that a file takes from Lightning, or reads of other objects."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("lightning"):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "super()"):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            found |= {each.value for each in node.args if isinstance(each, ast.Constant)}
    names = {name for name in found if isinstance(name, str) and name.startswith("_")}
    return {name for name in names if not name.startswith("__")} - OF_OTHERS


def test_one_file_touches_the_private_parts_of_lightning():
    rooms = ("tasks", "trainer", "callbacks", "cli", "compare")
    users = {file: names for room in rooms for file in files(room) if (names := private(file))}
    assert users.keys() == {PRIVATE}, users


def test_every_file_is_in_a_room():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__pycache__", "py"} == {*ALLOWED, "__init__", "__main__"}


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_those_below_it(room):
    found = {name.split(".")[0] for file in files(room) for name in ours(file)}
    assert found - {room} <= ALLOWED[room]


def test_no_file_imports_itself_by_way_of_others():
    graph = {}
    for file in PACKAGE.rglob("*.py"):
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        name = name.removesuffix(".__init__")
        graph[name] = ours(file) - {name}  # a folder imports its own files by its own name
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("room", TORCH_ONLY)
def test_the_lower_rooms_import_torch_only(room):
    found = {name.split(".")[0] for file in files(room) for name in imported(file)}
    assert found - {"lightning_ligo", "__future__"} <= {"torch", *sys.stdlib_module_names}


@pytest.mark.parametrize("code", ["import lightning_ligo", "from lightning_ligo import grow, pair"])
def test_plain_pytorch_loads_neither_lightning_nor_what_draws(code):
    loads = f"import sys; {code}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert not loaded & {"lightning", "lightning_fabric", "pytorch_lightning", "matplotlib", "rich"}


def parameters(function: ast.FunctionDef) -> int:
    found = function.args
    names = [arg.arg for arg in (*found.posonlyargs, *found.args, *found.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


MANY = {
    "GrowthCallback.__init__",
    "LanguageModel.__init__",
    "TextDataModule.__init__",
    "fit",
    "grow",
}
"""Public functions whose options are what a user writes."""


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.stem)
def test_a_file_fits_into_the_head(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 450
    tree = ast.parse(text)
    owners = {child: node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
              for child in node.body}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            name = f"{owners[node]}.{node.name}" if node in owners else node.name
            start = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            assert node.end_lineno - start < 60, f"{name} is longer than 60 lines"
            assert parameters(node) <= 7 or name in MANY, f"{name} has more than 7 parameters"


def test_the_type_checker_is_silenced_twelve_times_at_most():
    assert sum(file.read_text().count("type: ignore") for file in PACKAGE.rglob("*.py")) <= 12


def test_a_folder_that_needs_lightning_is_an_attribute_like_the_others():
    code = "import lightning_ligo; print(lightning_ligo.callbacks.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "lightning_ligo.callbacks\n"
