import sys

import pytest
import timm
import torch
from transformers import BertForMaskedLM, GPT2LMHeadModel

import lightning_ligo as ligo
from lightning_ligo import DigitsDataModule, Growth, GrowthCallback, ImageClassifier
from lightning_ligo.networks.description import build, merge
from lightning_ligo.networks.inputs import inputs_of
from lightning_ligo.networks.names import named
from lightning_ligo.networks.pretrained import loads_weights, untrained
from recipes.benchmarks.families import FAMILIES
from runs import trainer

TINY = {"vocab_size": 20, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}


def test_a_timm_name_is_the_network_that_timm_creates():
    torch.manual_seed(0)
    built = build(named("timm:vit_tiny_patch16_224", depth=1, num_classes=3))
    torch.manual_seed(0)
    called = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3)
    assert type(built) is type(called)
    expected = called.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in built.state_dict().items())


def test_a_model_type_is_a_language_model_with_its_configuration():
    network = build(named("hf:gpt2", **TINY))
    assert isinstance(network, GPT2LMHeadModel)
    assert network.transformer.wte.weight.shape == (20, 8)


@pytest.mark.parametrize(
    ("model_type", "model"),
    [
        ("bert", "BertForMaskedLM"),
        ("bart", "BartForConditionalGeneration"),
        ("t5", "T5ForConditionalGeneration"),
        ("llama", "LlamaForCausalLM"),
        ("whisper", "WhisperForConditionalGeneration"),
        ("vit", "ViTForImageClassification"),
        ("wav2vec2", "Wav2Vec2ForCTC"),
        ("bros", "BrosModel"),
    ],
)
def test_the_model_of_a_type_is_the_one_for_its_main_task(model_type, model):
    assert named(f"hf:{model_type}")["class_path"] == f"transformers.{model}"


def test_a_setting_may_have_the_name_that_all_configurations_share():
    network = build(named("hf:gpt2", **{**TINY, "n_layer": 2, "num_hidden_layers": 3}))
    assert network.config.n_layer in (2, 3)
    assert build(named("hf:bert", num_hidden_layers=1), "meta").config.num_hidden_layers == 1


def test_what_it_describes_can_be_changed_and_grown_to():
    description = merge(named("timm:vit_tiny_patch16_224"), {"init_args": {"depth": 2}})
    assert len(build(description, "meta").blocks) == 2
    module = ligo.ImageClassifier(named("timm:test_vit", num_classes=4))
    assert module.network.num_classes == 4
    assert ligo.Growth(named("timm:test_vit", depth=3), step=1).to["init_args"]["depth"] == 3


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gpt2", {}, "'gpt2' is not the short name of a network; write timm:NAME, .* hf:gpt2"),
        ("timm:", {}, "'timm:' is not the short name"),
        ("hub:gpt2", {}, "'hub:gpt2' is not the short name"),
        ("timm:vit_tiny_patch16_244", {}, "did you mean vit_tiny_patch16_224 or"),
        ("timm:hf-hub:timm/resnet18", {}, "timm has no network 'hf-hub:timm/resnet18'"),
        ("hf:./nowhere", {}, "there is no folder ./nowhere"),
        ("hf:gtp2", {}, "no model type 'gtp2' .*; did you mean gpt2"),
        (
            "hf:bert-base-uncased",
            {},
            "hub without its owner.*; did you mean bert?",
        ),
        ("hf:gpt2", {"n_layers": 3}, "GPT2Config has no setting 'n_layers'; did you mean n_layer"),
    ],
)
def test_a_name_that_is_not_known_suggests_those_that_are_near(name, settings, message):
    with pytest.raises(ValueError, match=message):
        named(name, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("timm:vit_tiny_patch16_224", {"depht": 3}, "unexpected keyword argument 'depht'"),
        ("hf:gpt2", {"n_layer": "three"}, "'n_layer' expected int, got str"),
        ("hf:gpt2", {"n_embd": 100, "n_head": 3}, "`embed_dim` must be divisible by num_heads"),
    ],
)
def test_a_setting_that_cannot_be_built_is_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build(named(name, **settings), "meta")


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_a_missing_package_is_named_with_how_to_install_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    name = "timm:resnet18" if package == "timm" else "hf:gpt2"
    with pytest.raises(ValueError, match=f"which is not installed: pip install {package}"):
        named(name)


# Inputs -------------------------------------------------------------------------------------------


def test_images_are_as_large_as_the_network_was_made_for():
    for settings, shape in (
        ({}, (2, 3, 224, 224)),
        ({"img_size": 32, "in_chans": 1}, (2, 1, 32, 32)),
        ({"img_size": [32, 64]}, (2, 3, 32, 64)),
    ):
        description = named("timm:vit_tiny_patch16_224", depth=1, **settings)
        assert inputs_of(description, build(description, "meta"))["x"].shape == shape


@pytest.mark.parametrize("family", ["bert", "t5", "bart", "whisper", "vit", "wav2vec2", "mamba"])
def test_a_hugging_face_network_runs_with_its_inputs(family):
    settings = {**FAMILIES[family].settings, **FAMILIES[family].small}
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    for undeclared in ("bos_token_id", "decoder_start_token_id") if family == "t5" else ():
        del settings[undeclared]
    description = named(f"hf:{family}", **settings)
    network = build(description)
    inputs = inputs_of(description, network)
    assert ligo.trace(network, **inputs).axes
    assert {tensor.shape[0] for tensor in inputs.values()} == {2}


def test_images_and_texts_are_both_given_where_one_alone_fails():
    family = FAMILIES["clip"]
    network = family.build("small")
    description = {"class_path": f"transformers.{family.model}", "init_args": {}}
    assert inputs_of(description, network).keys() == {"input_ids", "pixel_values"}


def test_inputs_of_the_same_names_are_not_tried_out(monkeypatch):
    network = BertForMaskedLM(FAMILIES["bert"].build("small").config)
    monkeypatch.setattr(network, "forward", None)
    assert inputs_of({"class_path": "transformers.BertForMaskedLM"}, network, ["input_ids"])


def test_a_network_that_takes_what_is_not_known_is_refused():
    description = named("hf:bros", hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ValueError, match=r"BrosModel cannot be called: .*bbox.*plan a run of it"):
        inputs_of(description, build(description))


SIZE = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10, "depth": 2}


@pytest.mark.parametrize("device", [None, "meta"])
@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "hf:gpt2"])
def test_a_short_name_may_stand_for_the_class_path(name, device):
    settings = SIZE if name.startswith("timm") else {"n_layer": 1, "n_embd": 12, "vocab_size": 7}
    network = build({"class_path": name, "init_args": settings}, device)
    expected = build(named(name, **settings), "meta")
    assert type(network) is type(expected)
    shapes = {n: weight.shape for n, weight in expected.state_dict().items()}
    assert {n: weight.shape for n, weight in network.state_dict().items()} == shapes


@pytest.mark.parametrize("whole", [True, False])
def test_a_module_and_its_growth_take_short_names(tmp_path, whole):
    small = {"class_path": "timm:vit_tiny_patch16_224", "init_args": {**SIZE, "embed_dim": 12}}
    small["init_args"]["pretrained"] = False
    wider = {"embed_dim": 24, "num_heads": 3}
    to = {"init_args": wider}
    if whole:
        to = {"class_path": "timm:vit_small_patch16_224", "init_args": {**SIZE, **wider}}
    module = ImageClassifier(small)
    run = trainer(tmp_path, GrowthCallback([Growth(to, step=2)]), max_steps=4)
    run.fit(module, DigitsDataModule(batch_size=64))
    run.save_checkpoint(tmp_path / "a.ckpt")
    opened = ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert opened.network.embed_dim == 24 and opened.network.blocks[0].attn.num_heads == 3
    assert torch.equal(opened.network.head.weight, module.network.head.weight)


def test_weights_of_a_folder_belong_to_the_small_network_alone(tmp_path):
    build(named("hf:gpt2", n_layer=1, n_embd=12, n_head=1, vocab_size=7)).save_pretrained(tmp_path)
    short = {"class_path": f"hf:{tmp_path}"}
    trained = {name: weight.sum() for name, weight in build(short).named_parameters()}
    assert trained == {n: w.sum() for n, w in build(named(f"hf:{tmp_path}")).named_parameters()}
    assert loads_weights(short) == [f"hf:{tmp_path}"]
    assert untrained(short)["class_path"] == "transformers.GPT2LMHeadModel"
    assert loads_weights({"class_path": "timm:resnet18", "init_args": {"pretrained": True}})
