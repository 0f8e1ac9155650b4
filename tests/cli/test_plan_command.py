"""`lightning-ligo plan` as users call it."""

import json
import re
import socket
import sys
from pathlib import Path

import pytest
import torch
import yaml

import lightning_ligo.cli.planned
from commands import RECIPES, RUN, VIT
from lightning_ligo.__main__ import main
from lightning_ligo.cli.plan import EPILOG
from lightning_ligo.methods.catalog import DEFAULT
from lightning_ligo.networks.description import build
from lightning_ligo.operator.cost import Uncounted

SWIN = {"embed_dim": 16, "num_heads": [1, 2, 4, 8], "depths": [1, 1, 2, 1], "num_classes": 10}
GPT2 = ["--small.n_layer", "2", "--small.n_embd", "16", "--small.n_head", "2"]
SMALLER = ["--large.n_layer=3", "--large.n_embd=32", "--large.n_head=4"]
TINY = ["timm:vit_tiny_patch16_224", "--small.depth", "1", "--small.img_size", "32"]
SMALL = ["timm:vit_small_patch16_224", "--large.depth", "2", "--large.img_size", "32"]
DIGITS = RECIPES[0].with_name("digits_vit.yaml")
PAIR = ["--small", *TINY, "--large", *SMALL]
EXACT = [
    "--small timm:swin_tiny_patch4_window7_224 --large timm:swin_base_patch4_window7_224",
    "--small hf:gpt2 --small.n_layer 3 --small.n_embd 192 --small.n_head 3 --large hf:gpt2",
    f"--config {DIGITS}",
    "--small timm:vit_tiny_patch16_224 --small.depth 6 --large timm:vit_small_patch16_224 --json",
]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No network, no training, and a folder of its own."""

    def refuse(*_, **__):
        raise AssertionError("nothing is downloaded, and nothing trained")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torch.optim.AdamW, "step", refuse)
    monkeypatch.setattr(sys, "argv", ["lightning-ligo", "plan"])
    monkeypatch.chdir(tmp_path)


def printed(capsys, *words):
    main(["plan", *words])
    return capsys.readouterr().out


def planned(capsys, *words):
    return json.loads(printed(capsys, *words, "--json"))["growths"]


def refused(capsys, *words):
    """The exit status and the message of a plan that fails, which prints nothing else."""
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *words])
    captured = capsys.readouterr()
    assert captured.out == ""
    if isinstance(stopped.value.code, str):  # Python prints it and exits with 1
        return 1, stopped.value.code
    return stopped.value.code, captured.err


# Two networks -------------------------------------------------------------------------------------


def test_two_timm_networks_are_planned(capsys):
    settings = [f"--{which}.{name}={json.dumps(value)}" for which in ("small", "large")
                for name, value in SWIN.items()]  # fmt: skip
    text = printed(
        capsys, "--small", "timm:swin_tiny_patch4_window7_224", *settings,
        "--large", "timm:swin_base_patch4_window7_224", "--large.embed_dim", "32",
        "--large.num_heads", "[2, 4, 8, 16]", "--large.depths", "[1, 1, 4, 1]", "--method", "ligo",
    )  # fmt: skip
    head = "timm:swin_tiny_patch4_window7_224 -> timm:swin_base_patch4_window7_224\n"
    assert text.startswith(head)
    assert re.search(
        r"^layers\.2\.blocks\[0\]\.\*\.attn\.heads +4 +8  holds, to", text, re.MULTILINE
    )
    assert re.search(r"^layers\.2\.blocks\[0\] \(layers\) +1 +2$", text, re.MULTILINE)
    assert "on batches of 2 x 3 x 224 x 224" in text


def test_axes_of_two_networks_can_be_named_and_pinned(capsys):
    named = "{blocks.*.mlp.fc1.weight: mine embed}"
    assert planned(capsys, *PAIR, "--override", named)[0]["axes"]["blocks.*.mlp.mine"] == [
        768,
        1536,
    ]
    code, text = refused(capsys, *PAIR, "--override", "{blocks.*.mlp.fc1.weight: 768 embed}")
    assert code == 1 and "is 1536 long, and you said that it stays 768" in text
    code, text = refused(capsys, *PAIR, "--override", "{blocks.*.mlp.fc1.weight: mine (embed}")
    assert code == 1 and "override 'blocks.*.mlp.fc1.weight'" in text
    code, text = refused(capsys, *PAIR, "--override", "hidden")
    assert code == 1 and "override is 'hidden'; give a dict" in text
    assert refused(capsys, *PAIR, "--override", "{")[0] == 2


def test_two_hugging_face_networks_are_planned(capsys):
    sizes = ["--small.vocab_size=50", "--large.vocab_size=50"]
    (growth,) = planned(capsys, "--small", "hf:gpt2", *GPT2, "--large", "hf:gpt2", *SMALLER, *sizes)
    assert growth["axes"]["transformer.embed"] == [16, 32]
    assert growth["stacks"] == {"transformer.h": [2, 3]}
    for which in ("small", "large"):
        network = build(growth[which], "meta")
        assert sum(p.numel() for p in network.parameters()) == growth["parameters"][which]
    assert growth["cost"]["batch"] == [[2, 8]]


def test_json_has_the_keys_that_the_help_explains(capsys):
    (growth,) = planned(capsys, *PAIR, "--method", "ligo")
    keys = [*growth, *growth["cost"], *growth["cost"]["flops"], *growth["cost"]["bytes"]]
    assert [key for key in keys if not re.search(rf"\b{key}\b", EPILOG)] == []
    assert growth["axes"] == {
        "embed": [192, 384],
        "blocks.*.attn.heads": [3, 6],
        "blocks.*.mlp.hidden": [768, 1536],
    }
    assert growth["proofs"].keys() == growth["axes"].keys()
    assert all(0 <= change < 1e-6 for change in growth["proofs"].values())
    assert growth["fixed"]["head.out"] == {"length": 1000, "reason": "it is the network's output"}
    assert growth["change"]["change"] > 0.1 and growth["change"]["place"] == "norm"
    (kept,) = planned(capsys, *PAIR, "--method", "lemon")
    assert kept["change"]["change"] < 1e-6 and kept["change"]["place"] is None
    cost = growth["cost"]
    assert cost["training_steps"] * cost["flops"]["training_step"] == cost["flops"]["learning"]
    assert cost["steps"] * cost["flops"]["learning_step"] == cost["flops"]["learning"]
    assert cost["bytes"]["learning"] > cost["bytes"]["training"] > 0


def test_a_method_that_learns_nothing_costs_nothing(capsys):
    (growth,) = planned(capsys, *PAIR, "--method", "lemon")
    assert growth["cost"]["method"] == "lemon"
    assert growth["change"]["change"] < 1e-6
    assert growth["cost"]["flops"]["learning"] == growth["cost"]["coefficients"] == 0


def test_the_default_is_the_best_of_the_comparison_and_says_what_it_changes(capsys):
    (growth,) = planned(capsys, *PAIR)
    assert growth["cost"]["method"] == DEFAULT == "stack+copy"
    assert growth["change"]["change"] > 0.01 and growth["change"]["place"] == "blocks.0.norm1"
    assert re.search(r"function: changes by \d+ %, first at blocks.0.norm1", printed(capsys, *PAIR))


def test_images_may_become_larger(capsys):
    text = printed(capsys, *PAIR, "--large.img_size", "64", "--method", "ligo")
    assert re.search(r"positions +5 +17  not needed", text)
    assert "function: not measured: the large network is called with other inputs: " in text
    assert "on batches of 2 x 3 x 64 x 64" in text


def test_large_networks_are_planned_on_the_meta_device_and_not_proved(capsys, monkeypatch):
    monkeypatch.setattr(lightning_ligo.cli.planned, "REAL", 100_000)
    assert printed(capsys, *PAIR).count("not proved, the small network is on the meta device") == 3
    (growth,) = planned(capsys, *PAIR, "--method", "ligo")
    assert set(growth["proofs"].values()) == {None}
    assert growth["cost"]["flops"]["learning"] > 0


def test_what_cannot_be_counted_is_said_and_the_rest_is_planned(capsys, monkeypatch):
    def fails(*_, **__):
        raise Uncounted("the cost cannot be counted")

    monkeypatch.setattr(lightning_ligo.cli.planned, "estimate_calls", fails)
    (growth,) = planned(capsys, *PAIR)
    assert (growth["cost"], growth["uncounted"]) == (None, "the cost cannot be counted")
    assert printed(capsys, *PAIR).endswith("\n\nthe cost cannot be counted\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--small", SMALL[0], "--large", TINY[0]], "embed is 384 long in the small network and"),
        (["--small", "timm:vit_tiny", "--large", *SMALL], "did you mean vit_tiny_patch16_"),
        (["--small", *TINY, "--large", "hf:gpt2", *SMALLER], "cannot be grown from VisionTransf"),
        ([*PAIR, "--large.depht", "3"], "unexpected keyword argument 'depht'"),
        ([*PAIR, "--method", "lego"], "unknown method 'lego'; the methods are ligo"),
        ([*PAIR, "--small.num_classes=0", "--large.num_classes=0"], "its output would change"),
    ],
)
def test_a_pair_that_cannot_be_planned_fails_with_the_reason(words, message, capsys):
    code, text = refused(capsys, *words)
    assert code == 1
    assert text.startswith("lightning-ligo plan: ")
    assert message in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --small and --large, or --config"),
        (["--small", "hf:gpt2"], "give --large, or what is larger, such as --large.depth 12"),
        ([*PAIR, "--config", "run.yaml"], "--config brings the networks and the method"),
        ([*PAIR, "--lage.depth", "3"], "unrecognized argument: --lage.depth"),
        ([*PAIR, "depth"], "unrecognized argument: depth"),
        ([*PAIR, "--large.", "3"], "unrecognized argument: --large."),
        ([*PAIR, "--large.depth"], "--large.depth needs a value"),
        ([*PAIR, "--large.a=3", "--large.a.b=4"], "--large.a.b is within 3, which has no settings"),
        ([*PAIR, "--large.depth", "[2"], "--large.depth has a value that is not YAML, '[2'"),
        (["--config", "nowhere.yaml"], "File does not exist"),
    ],
)
def test_a_wrong_option_fails_with_what_is_right(words, message, capsys):
    code, text = refused(capsys, *words)
    assert code == 2
    assert message in text


def test_help_shows_both_ways_and_the_programs_own_help_lists_it(capsys, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for words in ("--large.depth 6", "--weights FILE", "--config FILE", "--json", "uncounted"):
        assert words in text
    monkeypatch.setattr(sys, "argv", ["lightning-ligo"])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "  plan " in capsys.readouterr().out


# A run --------------------------------------------------------------------------------------------


def run_yaml(*growths, **trainer):
    """The configuration of a run that would write logs and checkpoints."""
    growing = {"class_path": "GrowthCallback", "init_args": {"growths": list(growths)}}
    callbacks = [{"class_path": "ModelCheckpoint"}, growing]
    settings = {**RUN, "trainer": {**RUN["trainer"], "callbacks": callbacks, **trainer}}
    Path("run.yaml").write_text(yaml.safe_dump(settings))
    return "--config", "run.yaml"


def to(embed_dim, depth, **when):
    changes = {"embed_dim": embed_dim, "depth": depth, "num_heads": max(1, embed_dim // 8)}
    return {"to": {"init_args": changes}, **when}


def test_a_recipe_is_planned_on_its_own_batch_and_nothing_is_written(capsys, tmp_path):
    text = printed(capsys, "--config", str(DIGITS))
    assert text.startswith("Growth 1, at fraction 0.4 (step 456)\n")
    assert re.search(r"^embed +32 +64  holds, to", text, re.MULTILINE)
    assert "on batches of 64 x 1 x 8 x 8" in text
    assert list(tmp_path.iterdir()) == []


def test_all_growths_of_a_run_are_planned_in_order_and_proved(capsys, tmp_path):
    config = run_yaml(to(16, 2, step=0), to(32, 2, fraction=0.5))
    first, second = planned(capsys, *config)
    moments = [(each["number"], each["when"], each["step"]) for each in (first, second)]
    assert moments == [(1, "step 0", 0), (2, "fraction 0.5", 3)]
    assert first["axes"]["embed"] == [8, 16] and second["axes"]["embed"] == [16, 32]
    assert first["small"] == VIT and first["large"] == second["small"]
    for growth in (first, second):
        grown = {k for k, (short, _) in growth["axes"].items() if short > 1}
        assert {k for k, proof in growth["proofs"].items() if proof is not None} == grown
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_growth_that_the_run_decides_is_planned_without_a_step(capsys):
    rule = {"monitor": "val_loss", "patience": 2}
    config = run_yaml(to(16, 2, plateau=rule), to(32, 2, step=4))
    first, second = planned(capsys, *config)
    assert (first["when"], first["step"]) == ("a plateau of val_loss (patience 2)", None)
    assert second["step"] == 4
    text = printed(capsys, *config)
    assert text.startswith("Growth 1, at a plateau of val_loss (patience 2)\n")


def test_options_of_fit_change_the_run(capsys):
    config = run_yaml(to(16, 2, fraction=0.5))
    options = ["--trainer.callbacks.method", "lemon", "--data.batch_size", "100"]
    (growth,) = planned(capsys, *config, *options)
    assert growth["cost"]["method"] == "lemon"
    assert growth["cost"]["batch"] == [[100, 1, 8, 8]]


def test_axes_are_called_as_the_run_names_them(capsys):
    config = run_yaml(to(16, 2, fraction=0.5))
    settings = yaml.safe_load(Path("run.yaml").read_text())
    names = {"fc_norm.weight": "stream", "blocks.*.mlp.fc1.bias": "wide"}
    settings["trainer"]["callbacks"][1]["init_args"]["override"] = names
    Path("run.yaml").write_text(yaml.safe_dump(settings))
    (growth,) = planned(capsys, *config)
    assert growth["axes"]["stream"] == [8, 16]
    assert growth["axes"]["blocks.*.mlp.wide"] == [32, 64]


def test_a_configuration_that_a_run_has_saved_is_planned(capsys, monkeypatch):
    config = run_yaml(to(16, 2, fraction=0.5))
    monkeypatch.setattr(sys, "argv", ["lightning-ligo"])
    with pytest.raises(SystemExit):
        main(["fit", *config, "--print_config"])
    Path("saved.yaml").write_text(capsys.readouterr().out)
    assert planned(capsys, "--config", "saved.yaml") == planned(capsys, *config)


def test_a_run_for_many_devices_is_planned_on_one(capsys):
    config = run_yaml(to(16, 2, fraction=0.5), accelerator="gpu", devices=8, strategy="fsdp")
    assert len(planned(capsys, *config)) == 1


@pytest.mark.parametrize(
    ("growths", "options", "message"),
    [
        ([to(4, 1, step=1)], [], "growth 1 (at step 1, to {'init_args': {'depth': 1, 'emb"),
        ([to(16, 1, step=100)], [], "growth 1 is due at step 100, and the run has only 6 opt"),
        ([to(16, 1, step=1)], ["--trainer.max_epochs", "0"], "the run ends before its first batch"),
    ],
)
def test_what_the_fit_would_refuse_is_refused(growths, options, message, capsys):
    code, text = refused(capsys, *run_yaml(*growths), *options)
    assert code == 1
    assert message in text


def test_a_run_that_does_not_grow_is_refused(capsys):
    Path("run.yaml").write_text(yaml.safe_dump(RUN))
    assert refused(capsys, "--config", "run.yaml") == (
        1,
        "lightning-ligo plan: the run has no GrowthCallback among its callbacks, so nothing grows",
    )


# As they stand in the help ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("words", EXACT)
@pytest.mark.parametrize("method", [DEFAULT, "ligo"])
def test_the_commands_of_the_help_run(words, method, capsys):
    option = "--trainer.callbacks.method" if "--config" in words else "--method"
    text = printed(capsys, *words.split(), option, method)
    if "--json" in words:
        (growth,) = json.loads(text)["growths"]
        assert growth["proofs"].keys() == growth["axes"].keys()
        assert (growth["cost"]["coefficients"] > 0) == (method == "ligo")
    else:
        assert "  holds, to" in text and "fails, by" not in text
        assert re.search(r"\d coefficients" if method == "ligo" else "nothing is learned", text)
