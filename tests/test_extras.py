"""The core needs torch alone; what needs the extra `lightning` says so in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from lightning_ligo import __main__
from lightning_ligo.networks.libraries import LIGHTNING, check_extra

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
BLOCKED = (*LIGHTNING, "lightning_utilities", "lightning_fabric", "pytorch_lightning")
REMEDY = 'which is not installed; run: pip install "lightning-ligo[lightning]"'

PLAIN = """
import sys, torch
from torch import nn
import lightning_ligo as ligo
from lightning_ligo.__main__ import main

def mlp(width):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

small, large, x = mlp(8), mlp(16), torch.randn(3, 4)
plan = ligo.pair(small, large, x)
assert ligo.measure(plan, small, large, [ligo.Call((x,))], None, ligo.METHODS["lemon"]).kept
ligo.grow(small, large, x, method="lemon")
assert torch.allclose(small(x), large(x), atol=1e-5)

networks = ["--small", "timm:test_vit", "--large.depth", "8"]
main(["methods", "lemon"])
main(["plan", *networks])
main(["grow", *networks, "--weights", "small.pth", "--out", "large.pth"])
"""


def test_networks_are_planned_and_grown_without_lightning(tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "small.pth")
    code = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED}))\n{PLAIN}"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "large.pth").is_file() and "blocks" in run.stdout


@pytest.mark.parametrize("lacking", LIGHTNING)
def test_a_name_says_which_extra_it_needs(lacking, monkeypatch):
    monkeypatch.setitem(sys.modules, lacking, None)
    monkeypatch.delitem(vars(sys.modules["lightning_ligo"]), "GrowthCallback", raising=False)
    with pytest.raises(ModuleNotFoundError) as error:
        from lightning_ligo import GrowthCallback  # noqa: F401
    assert str(error.value) == f"lightning_ligo.GrowthCallback needs {lacking}, {REMEDY}"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("fit", "this command"),
        ("--print_config", "this command"),
        ("compare", "this command"),
        ("plan --config run.yaml", "--config"),
        ("grow --config run.yaml --ckpt_path a.ckpt --out b.ckpt", "--config"),
        ("grow --small timm:test_vit --large.depth 8 --out b.pth --data text", "--data"),
    ],
)
def test_a_command_says_which_extra_it_needs(words, what, monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    with pytest.raises(SystemExit) as error:
        __main__.main(words.split())
    assert str(error.value) == f"lightning-ligo: {what} needs jsonargparse, {REMEDY}"


def test_what_is_installed_is_not_refused_and_other_modules_are_named_as_ever(monkeypatch):
    check_extra("this")
    monkeypatch.setitem(sys.modules, "lightning_ligo.cli.methods", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning_ligo\.cli\.methods"):
        __main__.main(["methods"])


def test_the_extra_is_what_is_looked_for_and_is_part_of_the_others():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11 and newer
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    names = {name.split(">")[0].split("[")[0] for name in extras["lightning"]}
    assert names == {*LIGHTNING, "lightning-utilities"}
    assert not names & {name.split(">")[0] for name in project["dependencies"]}
    assert all("lightning-ligo[lightning]" in extras[name] for name in ("recipes", "docs"))
    assert "lightning-ligo[recipes]" in extras["test"]
