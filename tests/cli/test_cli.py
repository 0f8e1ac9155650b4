import subprocess
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from commands import RECIPES, RUN, VIT
from lightning_ligo.__main__ import COMMANDS, main
from lightning_ligo.callbacks.growth import GrowthCallback
from lightning_ligo.cli.base import SHORT_NAMES, GrowthCLI
from lightning_ligo.networks.description import build, merge
from lightning_ligo.schedule import Growth, Plateau, Rate, Slope
from lightning_ligo.tasks.digits import DigitsDataModule
from lightning_ligo.tasks.modules import ImageClassifier


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A configuration file in a folder that the run writes to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-ligo"])
    Path("run.yaml").write_text(yaml.safe_dump(RUN))
    return "run.yaml"


def printed(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main(list(args))
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_says_what_it_is_and_how_a_growth_is_configured(config, capsys):
    text = printed(capsys, "--help")
    assert "Train a network that grows while it trains" in text
    assert "        - class_path: GrowthCallback\n" in text
    lines = text.splitlines()
    for command in (*GrowthCLI.subcommands(), *COMMANDS):
        assert any(line.startswith(f"  {command} ") for line in lines), command
    assert all(known.__name__ in text for known in SHORT_NAMES)
    assert max(map(len, lines)) <= 100


def test_a_whole_description_with_a_class_in_its_arguments_is_plain_data(config):
    def gpt2(width):
        sizes = {"vocab_size": 256, "n_embd": width, "n_layer": 1, "n_head": 2}
        nested = {"class_path": "transformers.GPT2Config", "init_args": sizes}
        return {"class_path": "transformers.GPT2LMHeadModel", "init_args": {"config": nested}}

    growing = {"growths": [{"step": 1, "to": gpt2(32)}], "method": "lemon"}
    model = {"class_path": "LanguageModel", "init_args": {"network": gpt2(16)}}
    Path(config).write_text(yaml.safe_dump({
        "model": model, "trainer": {
            "accelerator": "cpu",
            "callbacks": [{"class_path": "GrowthCallback", "init_args": growing}],
        },
    }))  # fmt: skip
    cli = GrowthCLI(args=["--config", config], run=False)
    (callback,) = [each for each in cli.trainer.callbacks if isinstance(each, GrowthCallback)]
    assert callback.settings.growths[0].to == gpt2(32)


PAIR = "--small hf:gpt2 --small.n_layer 1 --small.n_embd 16 --small.n_head 2"
PAIR = f"{PAIR} --large hf:gpt2 --large.n_layer 1 --large.n_embd 32 --large.n_head 4"


@pytest.mark.parametrize("words", ["--help", "methods", "plan --help", f"plan {PAIR}"])
def test_what_needs_no_run_does_not_import_lightning(words):
    code = (
        "import contextlib, sys; from lightning_ligo.__main__ import main\n"
        f"with contextlib.suppress(SystemExit): main({words.split()})\n"
        "print('loaded:', *sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    out, _, modules = run.stdout.rpartition("loaded:")
    assert "lightning-ligo" in out or "hf:gpt2" in out or "lemon" in out
    loaded = {name.split(".")[0] for name in modules.split()}
    assert "lightning_ligo" in loaded
    assert not loaded & {"lightning", "lightning_fabric", "pytorch_lightning", "matplotlib"}


@pytest.mark.parametrize("where", ["model", "data"])
def test_a_class_path_of_an_earlier_version_is_refused_with_the_new_one(where, config, capsys):
    old = {"model": "modules.ImageClassifier", "data": "data.digits.DigitsDataModule"}[where]
    part = {**RUN[where], "class_path": f"lightning_ligo.{old}"}
    Path(config).write_text(yaml.safe_dump({**RUN, where: part}))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", config])
    assert stopped.value.code == 2
    new = old.rpartition(".")[2]
    assert f"lightning_ligo.{old} is now lightning_ligo.{new}\n" in capsys.readouterr().err


def test_a_class_path_that_can_be_imported_is_not_blamed(config, capsys):
    options = {"growths": [{"step": 3, "to": {}}], "optimizer_state": "nosuch"}
    path = "lightning_ligo.callbacks.growth.GrowthCallback"
    trainer = {**RUN["trainer"], "callbacks": [{"class_path": path, "init_args": options}]}
    Path(config).write_text(yaml.safe_dump({**RUN, "trainer": trainer}))
    with pytest.raises(SystemExit):
        main(["fit", "-c", config])
    assert "is now" not in capsys.readouterr().err


def test_the_arguments_of_the_process_are_no_reason_for_a_warning(config, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lightning-ligo", "fit", "-c", config])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="LightningCLI's args parameter")
        GrowthCLI(["-c", config], run=False)


def test_the_options_of_a_class_are_explained_by_its_short_name(config, capsys):
    text = printed(capsys, "fit", "--model.help", "ImageClassifier")
    assert "the share of a label that is spread over all classes" in " ".join(text.split())


def test_an_unknown_option_is_refused(config, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", config, "--model.width", "3"])
    assert stopped.value.code == 2
    assert "width" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_is_valid_and_grows_to_heads_of_the_same_size(recipe, config, capsys):
    settings = yaml.safe_load(printed(capsys, "fit", "-c", str(recipe), "--print_config"))
    assert settings["seed_everything"] == 0
    growth = next(
        callback["init_args"]["growths"][0]
        for callback in settings["trainer"]["callbacks"]
        if callback["class_path"].endswith("GrowthCallback")
    )
    small = settings["model"]["init_args"]["network"]
    sizes = [head_size(small), head_size(merge(small, growth["to"]))]
    assert sizes[0] == sizes[1]


def head_size(description):
    build(description, device="meta")
    arguments = description["init_args"]
    if "config" in arguments:
        arguments = arguments["config"]["init_args"]
    width, heads = (
        next(arguments[name] for name in names if name in arguments)
        for names in (
            ("embed_dim", "n_embd", "hidden_size"),
            ("num_heads", "n_head", "num_attention_heads"),
        )
    )
    return width / heads


def test_a_growth_is_configured_in_yaml_alone(config):
    growth = {"fraction": 0.5, "to": {"init_args": {"embed_dim": 16, "num_heads": 2}}}
    names = {"head.weight": "classes embed", "blocks.*.mlp.fc1.weight": "32 embed"}
    growth["rate"] = {"factor": 0.5, "rewarm": 4}
    arguments = {"growths": [growth], "override": names, "optimizer_state": "reset"}
    callback = {"class_path": "GrowthCallback", "init_args": arguments}
    settings = {**RUN, "trainer": {**RUN["trainer"], "callbacks": [callback]}}
    Path(config).write_text(yaml.safe_dump(settings))
    cli = GrowthCLI(["-c", config], run=False)
    (callback,) = [c for c in cli.trainer.callbacks if isinstance(c, GrowthCallback)]
    assert callback.settings.override == names
    assert callback.settings.optimizer_state == "reset"
    assert callback.settings.growths[0].rate == Rate(0.5, rewarm=4)
    assert isinstance(cli.model, ImageClassifier)
    assert isinstance(cli.datamodule, DigitsDataModule)
    assert cli.model.hparams["network"] == VIT


def test_the_former_name_of_an_option_is_refused_and_named(config, capsys):
    growth = {"fraction": 0.5, "to": {"init_args": {"embed_dim": 16, "num_heads": 2}}}
    callback = {"class_path": "GrowthCallback"}
    callback["init_args"] = {"growths": [growth], "moments": "reset"}
    settings = {**RUN, "trainer": {**RUN["trainer"], "callbacks": [callback]}}
    Path(config).write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as stopped:
        GrowthCLI(["-c", config], run=False)
    assert stopped.value.code == 2
    assert "moments" in capsys.readouterr().err
    callback["init_args"] = {"growths": [growth], "optimizer_state": "reset"}
    Path(config).write_text(yaml.safe_dump(settings))
    assert "moments" not in printed(capsys, "fit", "-c", config, "--print_config")


def test_a_constructor_that_refuses_its_arguments_is_said_in_one_line(config):
    growth = {"step": 3, "epoch": 2, "to": {"init_args": {"embed_dim": 16, "num_heads": 2}}}
    callback = {"class_path": "GrowthCallback", "init_args": {"growths": [growth]}}
    settings = {**RUN, "trainer": {**RUN["trainer"], "callbacks": [callback]}}
    Path(config).write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", config])
    (line,) = str(stopped.value.code).splitlines()
    assert line.startswith("lightning-ligo: a growth has one trigger, got step=3, epoch=2; give")


def test_an_unknown_command_is_refused_with_all_there_are(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["grown"])
    assert stopped.value.code == 2
    words = capsys.readouterr().err.replace(",", "").split()
    assert {*words} >= {*GrowthCLI.subcommands(), *COMMANDS}


def test_a_reader_that_leaves_early_is_no_error():
    code = "from lightning_ligo.__main__ import main; main(['methods'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True) as run:
        run.stdout.close()
        assert (run.stderr.read(), run.wait()) == ("", 0)


@pytest.mark.parametrize(
    ("when", "growth"),
    [
        (
            {"plateau": {"monitor": "val_acc", "patience": 2, "mode": "max"}},
            {"plateau": Plateau("val_acc", patience=2, mode="max")},
        ),
        (
            {"slope": {"monitor": "val_loss", "threshold": -0.0475}},
            {"slope": Slope("val_loss", -0.0475)},
        ),
        ({"flops": 2e17}, {"flops": 2e17}),
        ({"file": "grow.now"}, {"file": "grow.now"}),
    ],
)
def test_what_decides_a_growth_is_configured_in_yaml(config, when, growth):
    to = {"init_args": {"embed_dim": 16}}
    callback = {"class_path": "GrowthCallback", "init_args": {"growths": [{"to": to, **when}]}}
    settings = {**RUN, "trainer": {**RUN["trainer"], "callbacks": [callback]}}
    Path(config).write_text(yaml.safe_dump(settings))
    cli = GrowthCLI(["-c", config], run=False)
    (callback,) = [c for c in cli.trainer.callbacks if isinstance(c, GrowthCallback)]
    assert callback.settings.growths == [Growth(to, **growth)]


def test_a_run_writes_a_checkpoint_that_every_command_and_python_can_open(config, capsys):
    main(["fit", "-c", config])
    (checkpoint,) = Path("runs/vit/version_0/checkpoints").iterdir()
    loaded = ImageClassifier.load_from_checkpoint(checkpoint, weights_only=True)
    assert loaded.hparams["network"] == VIT
    for command in ("validate", "test", "predict"):
        main([command, "-c", config, "--ckpt_path", str(checkpoint)])
    printed = capsys.readouterr().out
    assert "val_acc" in printed
    assert "test_acc" in printed
    main(["fit", "-c", config, "--ckpt_path", str(checkpoint), "--trainer.max_epochs", "2"])
    (resumed,) = Path("runs/vit/version_4/checkpoints").iterdir()
    steps = [torch.load(path, weights_only=True)["global_step"] for path in (checkpoint, resumed)]
    assert steps == [6, 12]


def test_a_checkpoint_brings_its_own_network_whatever_the_configuration_says(config):
    larger = merge(VIT, {"init_args": {"embed_dim": 16, "depth": 2, "num_heads": 2}})
    for forgotten in ("class_token", "global_pool"):
        del larger["init_args"][forgotten]
    trainer = Trainer(accelerator="cpu", max_epochs=0, logger=False, enable_progress_bar=False)
    trainer.fit(ImageClassifier(larger), DigitsDataModule())
    trainer.save_checkpoint("larger.ckpt")
    cli = GrowthCLI(["validate", "-c", config, "--ckpt_path", "larger.ckpt"])
    assert cli.model.hparams["network"] == larger


def test_a_damaged_checkpoint_is_refused_by_name(config):
    Path("cut.ckpt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"the checkpoint cut\.ckpt is damaged: it is cut off"):
        main(["fit", "-c", config, "--ckpt_path", "cut.ckpt"])


def test_an_optimizer_of_the_configuration_takes_the_place_of_the_modules_own(config):
    with pytest.warns(UserWarning, match="configure_optimizers` will be overridden"):
        main(["fit", "-c", config, "--optimizer", "SGD", "--optimizer.lr", "0.25"])
    (checkpoint,) = Path("runs/vit/version_0/checkpoints").iterdir()
    (state,) = torch.load(checkpoint, weights_only=True)["optimizer_states"]
    assert [group["lr"] for group in state["param_groups"]] == [0.25]


def test_a_saved_configuration_in_the_way_is_renamed_and_kept(config):
    quiet = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false"]
    for rate in (0.1, 0.2, 0.3):
        main(["fit", "-c", config, *quiet, "--model.learning_rate", str(rate)])
    rates = [
        yaml.safe_load(Path(name).read_text())["model"]["init_args"]["learning_rate"]
        for name in ("config.0.yaml", "config.1.yaml", "config.yaml")
    ]
    assert rates == [0.1, 0.2, 0.3]


def test_a_run_without_a_seed_is_the_same_run_again(config):
    main(["fit", "-c", config])
    torch.manual_seed(123)
    main(["fit", "-c", config])
    first, second = (
        torch.load(next(Path(f"runs/vit/version_{n}/checkpoints").iterdir()), weights_only=True)
        for n in (0, 1)
    )
    weights = second["state_dict"]
    assert all(torch.equal(value, weights[key]) for key, value in first["state_dict"].items())


def test_the_installed_command_is_the_module():
    (command,) = entry_points(group="console_scripts", name="lightning-ligo")
    assert command.load() is main
