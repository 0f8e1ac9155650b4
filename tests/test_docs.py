"""All code and commands of the README and the documentation run; all links lead somewhere."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import timm
import torch
import transformers
from jsonargparse import ArgumentParser
from yaml import safe_load

import lightning_ligo
from lightning_ligo import Growth, GrowthCallback
from lightning_ligo.__main__ import main
from lightning_ligo.methods.catalog import METHODS, method_named
from lightning_ligo.networks.description import build
from pages import KINDS, PAGES, ROOT, anchors, blocks, kinds, prose
from test_weights import BERT, GPT2

PROJECT = (ROOT / "pyproject.toml").read_text()
TOOLS = {"ruff", "mypy", "pre-commit", "sphinx-build"}  # run by .ci/run


def pages_with(kind: str) -> list[str]:
    return [page for page in PAGES if kinds(page, kind)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the recipes, to run in."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_run_or_shows_output(page):
    assert {block.kind for block in blocks(page)} <= set(KINDS)
    assert not any("$ lightning-ligo" in block.text for block in kinds(page, "text"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in pages_with("python") if page != "README.md"])
def test_the_python_of_a_page_runs_in_order(page, folder):  # that of the README: test_readme.py
    names: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(kinds(page, "python")):
        exec(compile(block.text, f"{page}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_the_yaml_of_a_page_makes_growths(page):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--growths", type=list[Growth])
    for block in kinds(page, "yaml"):
        options = safe_load(block.text)
        if "trainer" in options:
            (callback,) = options["trainer"]["callbacks"]
            assert callback["class_path"] == "GrowthCallback"
            options = callback["init_args"]
        read = parser.parse_object({"growths": options.pop("growths")})
        growths = parser.instantiate_classes(read).growths
        assert all(isinstance(growth, Growth) for growth in growths)
        GrowthCallback(growths, **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", pages_with("console"))
def test_the_commands_of_a_page_run(page, folder, capsys):
    for block in kinds(page, "console"):
        for command in block.commands:
            for words in (shlex.split(part) for part in command.split(" && ")):
                run(words, capsys)
        shown = capsys.readouterr().out.split()
        for line in filter(re.compile(r"\S.*? +[\d,]+ +[\d,]+").match, block.output):
            assert " ".join(line.split()[:3]) in " ".join(shown)


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command, a long one cut down; of tools that take the whole project see the options."""
    if words[0] == "lightning-ligo":
        {"fit": fit, "grow": grow, "plan": plan, "compare": compare}.get(words[1], main)(words[1:])
    elif words[:2] == ["python", "-m"]:
        script(words[2:], capsys)
    elif words[0] == "pytest":
        check_pytest(words[1:])
    elif words[:2] == ["pip", "install"]:
        extras = re.findall(r"[\w-]+", re.sub(r".*\[|\].*", "", words[-1]))
        assert all(f"\n{extra} = [\n" in PROJECT for extra in extras)
    else:
        assert words[0] in TOOLS


SHORT = ["--trainer.enable_progress_bar", "false", "--trainer.callbacks.steps", "2"]


def fit(words: list[str]) -> None:
    if "--print_config" in words:
        with pytest.raises(SystemExit, match="0"):
            main(words)
        return
    longer = "--trainer.max_epochs" in words  # goes on from a run that is shorter
    main([*words, *SHORT, "--trainer.max_epochs", "3" if longer else "2"])


def grow(words: list[str]) -> None:
    main([*words, *SHORT] if "--config" in words else small_sources(words))


def plan(words: list[str]) -> None:
    main(small_sources(words))


DEIT = {"depth": 2, "embed_dim": 32, "num_heads": 2}
SMALLER = {"12": "4", "24": "4", "768": "64", "3072": "128", "16": "4"}
"""Sizes of large networks, and what a test takes in their place."""


def small_sources(words: list[str]) -> list[str]:
    """Make small networks where a command has files, and have it grow to small ones."""
    for word in words:
        folder = Path(word.removeprefix("hf:"))
        if word == "hf:./bert-small" and not folder.exists():
            transformers.BertForMaskedLM(transformers.BertConfig(**BERT)).save_pretrained(folder)
        if word == "hf:./gpt2" and not folder.exists():
            transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).save_pretrained(folder)
        if word in ("deit_small.safetensors", "deit_s.pth") and not folder.exists():
            lightning_ligo.save(timm.create_model("deit_small_patch16_224", **DEIT), word)
            words = [*words, *(f"--small.{name}={size}" for name, size in DEIT.items())]
            words += [f"--large.{name}={2 * size}" for name, size in DEIT.items()]
    if "text" in words:
        Path("corpus").mkdir()
        for number in range(4):
            Path("corpus", f"{number}.txt").write_bytes(bytes(n % 89 for n in range(2000)))
        words = [*words, "--data.window=16"]
    changed = [word.startswith("--large") for word in ["", *words]]
    sized = [SMALLER.get(w, w) if big else w for big, w in zip(changed, words, strict=False)]
    return [
        "2" if before == "--steps" else w for before, w in zip(["", *words], sized, strict=False)
    ]


def compare(words: list[str]) -> None:
    """Have all options read, and refuse only the one that is added here."""
    if "--start" in words:  # from a network as it is built
        config = safe_load(Path(words[words.index("--config") + 1]).read_text())
        small = build(config["model"]["init_args"]["network"])
        torch.save(small.state_dict(), words[words.index("--start") + 1])
    methods = words[words.index("--methods") + 1]
    for name in methods.split(","):
        method_named(name)
    with pytest.raises(SystemExit, match="unknown method 'nothing'"):
        main([*words, "--methods", "nothing"])


def script(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="0"):
        patch.setattr(sys, "argv", [words[0], "--help"])
        importlib.import_module(words[0]).main()
    known = capsys.readouterr().out
    assert all(word in known for word in words[1:] if word.startswith("--"))


def check_pytest(words: list[str]) -> None:
    files = [ROOT / word for word in words if word.endswith(".py")]
    assert all(file.exists() for file in files)
    if "-m" in words:
        names = set(words[words.index("-m") + 1].split()) - {"or", "not"}
        assert all(f'"{name}: ' in PROJECT for name in names)  # a marker
    if "-k" in words:
        (file,) = files
        assert re.search(rf"def test_\w*{words[words.index('-k') + 1]}", file.read_text())


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            if path.name == "results.md":  # includes the README of the recipes
                path = ROOT / "recipes" / "README.md"
            linked = str(path.resolve().relative_to(ROOT))
            assert anchor in anchors(linked) | set(METHODS), f"{page} links to {target}"


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(
        r"^(\w+)$", "".join(b.text for b in kinds("docs/index.md", "{toctree}")), re.M
    )
    pages = {Path(page).stem for page in PAGES if page.startswith("docs/")}
    assert {*listed, "index"} == pages and len(listed) == len(set(listed))


def test_every_public_name_is_in_the_api():
    api = "".join(block.text for block in kinds("docs/api.md", "{eval-rst}"))
    listed = re.findall(r"^\.\. (?:auto\w+|data):: (\w+)$", api, re.MULTILINE)
    assert sorted([*listed, "__version__"]) == sorted(lightning_ligo.__all__)


def test_the_reading_path_is_at_most_3000_lines():
    files = re.findall(r"^\d+\. `(lightning_ligo/[\w/]+\.py)`", PAGES["docs/architecture.md"], re.M)
    assert len(files) >= 10
    assert sum(len((ROOT / file).read_text().splitlines()) for file in files) <= 3000


def test_every_message_of_the_troubleshooting_is_one_of_the_package():
    source = "".join(path.read_text() for path in (ROOT / "lightning_ligo").rglob("*.py"))
    joined = re.sub(r'"\s*f?"', "", source)  # messages are written over several lines
    quoted = re.findall(r"^\| `([^`]+)`", PAGES["docs/troubleshooting.md"], re.MULTILINE)
    assert [message for message in quoted if message not in joined] == []
