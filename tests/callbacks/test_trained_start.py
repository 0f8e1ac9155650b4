"""A run in YAML that starts from trained weights and grows at step 0, before any training."""

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import transformers
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

import lightning_ligo as ligo
from commands import RUN
from lightning_ligo.cli.base import GrowthCLI
from lightning_ligo.networks.description import build, merge
from test_weights import GPT2, IDS, IMAGES, NAME, described, saved, timm_file, vit

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning"),
]
LARGE = {"embed_dim": 64, "depth": 4, "num_heads": 4}
LARGER_TEXT = {"init_args": {"config": {"init_args": {"n_embd": 64, "n_layer": 4, "n_head": 4}}}}


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-ligo"])


class Probe(Callback):
    """Keeps what the network computes when it has grown, before the first step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            network = pl_module.network
            with torch.no_grad():
                out = network.eval()(IDS if hasattr(network, "config") else IMAGES)
            network.train()
            Path("probed.json").write_text(json.dumps(getattr(out, "logits", out).tolist()))


def fit(network, to, *words, model="ImageClassifier", data=None, **trainer):
    """Write the configuration of a run of two steps, and run it."""
    growing = {"growths": [{"step": 0, "to": to}], "method": "lemon", "rehearse": False}
    callbacks = [
        {"class_path": "GrowthCallback", "init_args": growing},
        {"class_path": f"{__name__}.Probe"},
        {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "saved", "save_last": True}},
    ]
    settings = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, **trainer}
    run = {
        "model": {"class_path": model, "init_args": {"network": network}},
        "data": data or RUN["data"],
        "trainer": {**RUN["trainer"], **settings, "callbacks": callbacks},
    }
    Path("run.yaml").write_text(yaml.safe_dump(run))
    return GrowthCLI(["fit", "--config", "run.yaml", *words]).trainer


def probed():
    return torch.tensor(json.loads(Path("probed.json").read_text()))


def assert_grown_from(small, inputs):
    with torch.no_grad():
        out = small.eval()(inputs)
    torch.testing.assert_close(probed(), getattr(out, "logits", out), rtol=1e-4, atol=1e-5)


def images(**settings):
    return {"class_path": "timm.create_model", "init_args": {**NAME, **settings}}


def texts(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_bytes(bytes(n * n % 89 for n in range(900)))
    options = {"files": str(tmp_path / "*.txt"), "window": 16, "batch_size": 4}
    return {"class_path": "TextDataModule", "init_args": options}


@pytest.mark.parametrize("source", ["safetensors", "pth", "checkpoint_path", "ckpt"])
def test_a_vision_transformer_from_a_file(tmp_path, source):
    small, path = timm_file(tmp_path, "small.pth" if source == "ckpt" else "small.safetensors")
    network = images()
    if source == "checkpoint_path":
        network = images(checkpoint_path=path)
    elif source == "ckpt":
        held = {f"model.{name}": tensor for name, tensor in small.state_dict().items()}
        torch.save({"state_dict": held}, "small.ckpt")
        network["weights"] = "small.ckpt"
    else:
        network["weights"] = timm_file(tmp_path, f"small.{source}")[1]
    fit(network, {"init_args": LARGE})
    assert_grown_from(small, IMAGES)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "AutoModelForCausalLM", None])
def test_a_language_model_from_a_folder(tmp_path, name):
    small = saved(tmp_path / "gpt2", transformers.GPT2LMHeadModel, transformers.GPT2Config(**GPT2))
    network = ligo.named("hf:./gpt2")
    if name is not None:
        network = {"class_path": f"transformers.{name}.from_pretrained",
                   "init_args": {"pretrained_model_name_or_path": "./gpt2"}}  # fmt: skip
    fit(network, LARGER_TEXT, model="LanguageModel", data=texts(tmp_path))
    assert_grown_from(small, IDS)


def test_pretrained_is_never_looked_for_by_the_large_network(monkeypatch):
    small, loaded = vit(), []

    def load_pretrained(model, **_):
        loaded.append(model.embed_dim)
        model.load_state_dict(small.state_dict())

    monkeypatch.setattr(timm.models._builder, "load_pretrained", load_pretrained)
    fit(images(pretrained=True), {"init_args": LARGE})
    assert loaded == [32]
    assert_grown_from(small, IMAGES)


@pytest.mark.parametrize("source", ["timm", "hf"])
def test_a_run_is_resumed_without_the_small_file(tmp_path, source):
    if source == "timm":
        _, path = timm_file(tmp_path, "small.safetensors")
        network, to, options = {**images(), "weights": path}, {"init_args": LARGE}, {}
    else:
        config = transformers.GPT2Config(**GPT2)
        saved(tmp_path / "gpt2", transformers.GPT2LMHeadModel, config)
        network = {"class_path": "transformers.GPT2LMHeadModel.from_pretrained",
                   "init_args": {"pretrained_model_name_or_path": "./gpt2"}}  # fmt: skip
        to, options = LARGER_TEXT, {"model": "LanguageModel", "data": texts(tmp_path)}
    fit(network, to, **options)
    for file in [*tmp_path.glob("small*"), *tmp_path.glob("gpt2/*")]:
        file.unlink()
    words = ("--ckpt_path", "saved/last.ckpt")
    trainer = fit(network, to, *words, max_epochs=2, **options)
    assert trainer.global_step == 4
    kind = ligo.ImageClassifier if source == "timm" else ligo.LanguageModel
    module = kind.load_from_checkpoint("saved/last.ckpt", map_location="cpu")
    grown = trainer.lightning_module.state_dict()
    assert all(torch.equal(grown[name], t) for name, t in module.state_dict().items())


def test_a_checkpoint_from_before_the_growth_holds_the_weights(tmp_path):
    """A run without a growth yet, whose file is gone when it is resumed."""
    _, path = timm_file(tmp_path)
    data = ligo.DigitsDataModule(batch_size=200)
    for epochs in (1, 2):
        module = ligo.ImageClassifier(merge({**images(), "weights": path}, {}))
        trainer = Trainer(max_epochs=epochs, accelerator="cpu", logger=False,
                          enable_progress_bar=False, enable_checkpointing=False)  # fmt: skip
        trainer.fit(module, data)
        trainer.save_checkpoint("last.ckpt")
    Path(path).unlink()
    module = ligo.ImageClassifier.load_from_checkpoint("last.ckpt", map_location="cpu")
    assert "weights" not in module.hparams["network"]
    assert torch.equal(module.network.head.weight, trainer.lightning_module.network.head.weight)


class Foreign(LightningModule):
    """A module of others that takes a description and keeps it."""

    def __init__(self, network: dict) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = build(network)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def test_the_checkpoint_of_a_foreign_module_needs_no_file_either(tmp_path):
    _, path = timm_file(tmp_path)
    growth = ligo.GrowthCallback(
        [ligo.Growth({"init_args": LARGE}, step=5)], method="lemon", rehearse=False
    )
    trainer = Trainer(max_steps=7, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_checkpointing=False, callbacks=[growth])  # fmt: skip
    trainer.fit(Foreign({**images(), "weights": path}), ligo.DigitsDataModule(batch_size=200))
    trainer.save_checkpoint("last.ckpt")
    Path(path).unlink()
    hparams = torch.load("last.ckpt", weights_only=True)["hyper_parameters"]
    assert hparams["network"] == images(**LARGE)
    loaded = Foreign.load_from_checkpoint("last.ckpt", map_location="cpu")
    assert torch.equal(loaded.network.norm.weight, trainer.lightning_module.network.norm.weight)


def test_weights_that_do_not_fit_end_the_run_before_it_starts(tmp_path):
    timm_file(tmp_path)
    with pytest.raises(ValueError, match=r"do not fit VisionTransformer(.|\n)*of another shape"):
        fit(described("small.safetensors", num_classes=7), {"init_args": LARGE})
    safetensors.torch.save_file({"a": torch.ones(1)}, "other.safetensors")
    with pytest.raises(ValueError, match="are they of another architecture"):
        fit(described("other.safetensors"), {"init_args": LARGE})
    assert not Path("saved").exists()
