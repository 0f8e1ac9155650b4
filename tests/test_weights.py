"""Trained weights as others write them: timm's files, folders of save_pretrained, checkpoints."""

import json
import socket

import pytest
import safetensors.torch
import timm
import torch
import transformers
from transformers import BertForMaskedLM, BertModel, GPT2LMHeadModel, LlamaForCausalLM

import lightning_ligo as ligo
from lightning_ligo.networks.description import build, merge
from lightning_ligo.networks.names import named
from lightning_ligo.networks.pretrained import untrained
from payload import RAN, Payload

VIT = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 32,
       "depth": 2, "num_heads": 2}  # fmt: skip
NAME = {"model_name": "vit_tiny_patch16_224", **VIT}
IMAGES = torch.randn(3, 1, 8, 8)
IDS = torch.randint(4, 90, (2, 12))
BERT = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 32}  # fmt: skip
GPT2 = {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
LLAMA = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "intermediate_size": 48}  # fmt: skip


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing is downloaded")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def vit(**settings):
    torch.manual_seed(7)
    return timm.create_model(**{**NAME, **settings}).eval()


def timm_file(folder, name="small.safetensors", **settings):
    network, path = vit(**settings), folder / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    return network, str(path)


def saved(folder, kind, config, **options):
    torch.manual_seed(7)
    network = kind(config).eval()
    network.save_pretrained(folder, **options)
    return network


def described(weights, **settings):
    return {"class_path": "timm.create_model", "init_args": {**NAME, **settings},
            "weights": weights}  # fmt: skip


def assert_same(one, other):
    """Two networks have the same names and the same numbers."""
    expected = one.state_dict()
    found = other.state_dict()
    assert found.keys() == expected.keys()
    assert all(
        torch.equal(tensor.float(), expected[name].float()) for name, tensor in found.items()
    )


# Sources ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small.safetensors", "small.pth", "small.pt", "small.bin"])
def test_a_file_of_timm(tmp_path, name):
    network, path = timm_file(tmp_path, name)
    assert_same(network, build(described(path)))
    assert torch.equal(network(IMAGES), build(described({"path": path})).eval()(IMAGES))


def test_timm_loads_its_own_checkpoint_path(tmp_path):
    network, path = timm_file(tmp_path, "small.pth")
    built = build(named("timm:vit_tiny_patch16_224", **VIT, checkpoint_path=path))
    assert_same(network, built)


@pytest.mark.parametrize("nested", ["state_dict", "model", "module"])
def test_a_state_dict_in_a_file_with_more(tmp_path, nested):
    network = vit()
    torch.save({nested: network.state_dict(), "epoch": 3, "args": {"lr": 0.1}}, tmp_path / "a.pth")
    assert_same(network, build(described(str(tmp_path / "a.pth"))))


def test_the_one_of_several_that_the_key_names(tmp_path):
    network, average = vit(), vit()
    torch.nn.init.zeros_(network.head.weight)
    both = {"state_dict": network.state_dict(), "state_dict_ema": average.state_dict()}
    torch.save(both, tmp_path / "a.pth")
    path = str(tmp_path / "a.pth")
    with pytest.raises(ValueError, match="2 state dicts; expected one of state_dict, state_dict_e"):
        build(described(path))
    assert_same(average, build(described({"path": path, "key": "state_dict_ema"})))
    with pytest.raises(ValueError, match="no state dict 'ema'"):
        build(described({"path": path, "key": "ema"}))


def test_a_lightning_checkpoint_by_the_attribute_of_its_network(tmp_path):
    network = vit()
    held = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": {**held, "metric.total": torch.ones(1)}}, tmp_path / "a.ckpt")
    assert_same(network, build(described(str(tmp_path / "a.ckpt"))))

    teacher = {name.replace("model.", "teacher."): tensor + 1 for name, tensor in held.items()}
    torch.save({"state_dict": {**held, **teacher}}, tmp_path / "b.ckpt")
    path = str(tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"under model\., teacher\.; give one as the prefix"):
        build(described(path))
    assert_same(network, build(described({"path": path, "prefix": "model."})))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (BertForMaskedLM, transformers.BertConfig(**BERT)),  # tied
        (BertForMaskedLM, transformers.BertConfig(**BERT, tie_word_embeddings=False)),
        (GPT2LMHeadModel, transformers.GPT2Config(**GPT2)),
        (LlamaForCausalLM, transformers.LlamaConfig(**LLAMA)),
        (LlamaForCausalLM, transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    ],
)
@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_of_save_pretrained(tmp_path, kind, config, shards):
    network = saved(tmp_path, kind, config, **({"max_shard_size": "20KB"} if shards else {}))
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    index = f"{tmp_path}/model.safetensors{'.index.json' if shards else ''}"
    for description in (
        named(f"hf:{tmp_path}"),
        {**untrained(named(f"hf:{tmp_path}")), "weights": index},
        {"class_path": f"transformers.{kind.__name__}.from_pretrained",
         "init_args": {"pretrained_model_name_or_path": str(tmp_path)}},
        {**untrained(named(f"hf:{tmp_path}")), "weights": str(tmp_path)},
    ):  # fmt: skip
        built = build(description).eval()
        assert_same(network, built)
        assert torch.equal(network(IDS).logits, built(IDS).logits)
        tied = built.get_output_embeddings().weight is built.get_input_embeddings().weight
        assert tied == config.tie_word_embeddings


def test_an_auto_model_is_the_class_that_it_chooses(tmp_path):
    saved(tmp_path, GPT2LMHeadModel, transformers.GPT2Config(**GPT2))
    loading = {
        "class_path": "transformers.AutoModelForCausalLM.from_pretrained",
        "init_args": {"pretrained_model_name_or_path": str(tmp_path), "n_head": 4},
    }
    plain = untrained(loading)
    assert plain["class_path"] == "transformers.GPT2LMHeadModel"
    assert plain["init_args"]["config"]["init_args"]["n_head"] == 4
    assert build(loading).config.n_head == 4


@pytest.mark.parametrize("shards", [False, True])
def test_bin_files_of_a_folder(tmp_path, shards):
    network = saved(tmp_path, GPT2LMHeadModel, transformers.GPT2Config(**GPT2))
    (tmp_path / "model.safetensors").unlink()
    held = {name: t for name, t in network.state_dict().items() if name != "lm_head.weight"}
    if shards:
        names = dict.fromkeys(list(held)[:9], "pytorch_model-00001-of-00002.bin")
        names = dict.fromkeys(held, "pytorch_model-00002-of-00002.bin") | names
        index = {"metadata": {"total_size": 1}, "weight_map": names}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        for file in set(names.values()):
            part = {name: tensor for name, tensor in held.items() if names[name] == file}
            torch.save(part, tmp_path / file)
    else:
        torch.save(held, tmp_path / "pytorch_model.bin")
    assert_same(network, build(named(f"hf:{tmp_path}")))


def test_names_of_older_versions_are_read_by_transformers(tmp_path):
    network = saved(tmp_path, BertForMaskedLM, transformers.BertConfig(**BERT))
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias",
        "LayerNorm.beta"): tensor
        for name, tensor in safetensors.torch.load_file(file).items()
    }  # fmt: skip
    safetensors.torch.save_file(old, file, {"format": "pt"})
    assert_same(network, build(named(f"hf:{tmp_path}")))


def test_a_head_is_left_out_where_the_user_says_so(tmp_path):
    network, path = timm_file(tmp_path)
    with pytest.raises(ValueError, match=r"2 of another shape: head.weight \(10x32 there, 7x32 h"):
        build(described(path, num_classes=7))
    built = build(described({"path": path, "leave_out": ["head.*"]}, num_classes=7))
    assert torch.equal(built.blocks[1].mlp.fc1.weight, network.blocks[1].mlp.fc1.weight)
    assert built.head.weight.shape == (7, 32)


def test_a_backbone_alone_lacks_the_head(tmp_path):
    torch.manual_seed(7)
    backbone = BertModel(transformers.BertConfig(**BERT), add_pooling_layer=False)
    backbone.save_pretrained(tmp_path)
    masked = {"class_path": "transformers.BertForMaskedLM.from_pretrained",
              "init_args": {"pretrained_model_name_or_path": str(tmp_path)}}  # fmt: skip
    with pytest.raises(ValueError, match=r"do not fit BertForMaskedLM.*\n.*missing: cls.pred"):
        build(masked)
    plain = build(untrained(masked))
    description = {**untrained(masked), "weights": {"path": str(tmp_path), "leave_out": "cls.*"}}
    built = build(description)
    assert_same(backbone, built.bert)
    assert type(plain) is type(built)


# Descriptions without weights ---------------------------------------------------------------------


def test_nothing_is_read_on_meta_or_for_the_large_network(tmp_path):
    _, path = timm_file(tmp_path)
    saved(tmp_path / "bert", BertForMaskedLM, transformers.BertConfig(**BERT))
    for description in (
        described(str(tmp_path / "gone.pth")),
        named("timm:vit_tiny_patch16_224", **VIT, pretrained=True),
        named("timm:vit_tiny_patch16_224", **VIT, checkpoint_path=str(tmp_path / "gone.pth")),
        {"class_path": "torchvision.models.resnet18", "init_args": {"weights": "DEFAULT"}},
    ):
        assert build(description, "meta") is not None
        assert build(untrained(description)) is not None
    wider = merge(untrained(described(path)), {"init_args": {"embed_dim": 64}})
    assert "weights" not in wider


@pytest.mark.parametrize(
    "to",
    [
        {"weights": "large.pth"},
        {"init_args": {"pretrained": True}},
        {"init_args": {"checkpoint_path": "large.pth"}},
    ],
)
def test_a_growth_to_trained_weights_is_refused(to):
    from lightning_ligo.trainer.checkpoint import sizes

    growth = ligo.Growth({**to, "init_args": {"depth": 4, **to.get("init_args", {})}}, step=0)
    with pytest.raises(ValueError, match=r"growth 1 is to .* which loads trained weights"):
        sizes(described("small.pth", pretrained=True), [growth])


def test_the_large_network_does_not_take_over_the_weights():
    from lightning_ligo.trainer.checkpoint import sizes

    small, large = sizes(
        described("small.pth", pretrained=True), [ligo.Growth({"init_args": {"depth": 4}}, step=0)]
    )
    assert small == {"class_path": "timm.create_model", "init_args": NAME}
    assert large == {"class_path": "timm.create_model", "init_args": {**NAME, "depth": 4}}


# Refusals -----------------------------------------------------------------------------------------


def test_weights_of_another_architecture_are_listed(tmp_path):
    network = timm.create_model("resnet10t", num_classes=10)
    torch.save(network.state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match="are they of another architecture") as refused:
        build(described(str(tmp_path / "resnet.pth")))
    assert "missing: cls_token, pos_embed" in str(refused.value)
    assert f"and {len(vit().state_dict()) - 6} more" in str(refused.value)
    assert "unexpected: conv1.0.weight" in str(refused.value)


def test_a_file_with_pickled_objects_is_refused_and_nothing_is_run(tmp_path):
    RAN.clear()
    torch.save({"state_dict": vit().state_dict(), "hook": Payload()}, tmp_path / "small.bin")
    with pytest.raises(ValueError, match="holds more than tensors and plain data"):
        build(described(str(tmp_path / "small.bin")))
    assert not RAN


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("gone.pth", "there are no weights at gone.pth"),
        (3, "weights are a path, or a dict with path .*; got 3"),
        ({"file": "a.pth"}, "weights are a path, or a dict"),
        ({"path": "."}, r"the folder \. has no weights; expected one of model.safetensors"),
    ],
)
def test_malformed_weights(weights, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        build(described(weights))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_cut_is_refused(tmp_path, suffix):
    _, path = timm_file(tmp_path, f"small{suffix}")
    whole = (tmp_path / f"small{suffix}").read_bytes()
    (tmp_path / f"small{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        build(described(path))


def test_a_folder_without_a_configuration(tmp_path):
    timm_file(tmp_path, "model.safetensors")
    with pytest.raises(ValueError, match=r"has no config.json, so the shape .* is not known"):
        named(f"hf:{tmp_path}")


def test_an_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds an adapter \(LoRA\).*merge_and_unload"):
        named(f"hf:{tmp_path}")
    with pytest.raises(ValueError, match="holds an adapter"):
        build(described(str(tmp_path)))
    lora = {"base_model.model.blocks.0.attn.qkv.lora_A.weight": torch.ones(2, 32)}
    torch.save(lora, tmp_path / "lora.pth")
    with pytest.raises(ValueError, match="holds an adapter"):
        build(described(str(tmp_path / "lora.pth")))


def test_quantised_weights_are_refused(tmp_path):
    network = saved(tmp_path, GPT2LMHeadModel, transformers.GPT2Config(**GPT2))
    del network
    config = json.loads((tmp_path / "config.json").read_text())
    quantised = {**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(ValueError, match="holds quantised weights"):
        build(named(f"hf:{tmp_path}"))
    held = {name: t.to(torch.int8) for name, t in vit().state_dict().items()}
    torch.save(held, tmp_path / "int8.pth")
    with pytest.raises(ValueError, match="holds quantised weights"):
        build(described(str(tmp_path / "int8.pth")))


def test_code_from_elsewhere_is_not_run(tmp_path):
    with pytest.raises(ValueError, match="from_pretrained is known of classes of transformers"):
        build({"class_path": "timm.create_model.from_pretrained", "init_args": {}})
    with pytest.raises(ValueError, match="no setting 'trust_remote_code'"):
        saved(tmp_path, GPT2LMHeadModel, transformers.GPT2Config(**GPT2))
        build({"class_path": "transformers.GPT2LMHeadModel.from_pretrained",
               "init_args": {"pretrained_model_name_or_path": str(tmp_path),
                             "trust_remote_code": True}})  # fmt: skip


def test_a_name_on_the_hub_is_read_from_the_cache(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--someone--gpt2-tiny" / "snapshots" / "abc"
    network = saved(snapshot, GPT2LMHeadModel, transformers.GPT2Config(**GPT2))
    (tmp_path / "models--someone--gpt2-tiny" / "refs").mkdir()
    (tmp_path / "models--someone--gpt2-tiny" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_same(network, build(named("hf:someone/gpt2-tiny")))
    with pytest.raises(ValueError, match="cannot be downloaded from the hub"):
        named("hf:someone/else")
