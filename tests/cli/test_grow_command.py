"""`lightning-ligo grow --small ... --out ...` as users call it: files in, files out."""

import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import transformers
from lightning.pytorch import Trainer
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

import lightning_ligo as ligo
import lightning_ligo.cli.growing
import lightning_ligo.cli.planned
import lightning_ligo.networks.saving
from lightning_ligo.__main__ import main
from payload import RAN, Payload
from test_weights import BERT, GPT2, IDS, IMAGES, LLAMA, NAME, VIT, saved, timm_file, vit

LARGE = {**VIT, "embed_dim": 64, "depth": 4, "num_heads": 4}
SMALL_VIT = [
    "--small",
    "timm:vit_tiny_patch16_224",
    *(word for name, value in VIT.items() for word in (f"--small.{name}", str(value))),
]
LARGER = ["--large.embed_dim", "64", "--large.depth", "4", "--large.num_heads", "4"]
DEEPER = ["--large.num_hidden_layers", "4"]
WIDER_BERT = [*DEEPER, "--large.hidden_size", "64", "--large.num_attention_heads", "4",
              "--large.intermediate_size", "128"]  # fmt: skip


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-ligo", "grow"])


def grow(capsys, *words):
    main(["grow", *map(str, words)])
    return capsys.readouterr().out


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main(["grow", *map(str, words)])
    text = capsys.readouterr().err + str(stopped.value.code)
    assert not list(Path.cwd().glob(".*.part"))
    return text


def bert(folder, **options):
    return saved(folder, transformers.BertForMaskedLM, transformers.BertConfig(**BERT), **options)


def gpt2(folder, **settings):
    return saved(folder, transformers.GPT2LMHeadModel, transformers.GPT2Config(**GPT2, **settings))


def tokenizer(folder, **special):
    words = {f"w{number}": number for number in range(90)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, mask_token="w1", **special)
    fast.save_pretrained(folder)


def corpus(folder):
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(" ".join(f"w{n * n % 90}" for n in range(400)))


# timm ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["small.safetensors", "small.pth"])
@pytest.mark.parametrize("out", ["large.safetensors", "large.pth"])
def test_a_file_of_timm_becomes_one_that_timm_loads(tmp_path, capsys, source, out):
    small, path = timm_file(tmp_path, source)
    text = grow(capsys, *SMALL_VIT, "--weights", path, *LARGER, "--out", out, "--method", "lemon")
    assert text.startswith(f"{out}: 26,538 -> 202,186 parameters by lemon, in float32; ")
    assert "the function is kept, to" in text
    large = timm.create_model(**{**NAME, **LARGE}, checkpoint_path=out).eval()
    torch.testing.assert_close(large(IMAGES), small(IMAGES), rtol=1e-4, atol=1e-5)
    expected = ligo.grow(small, timm.create_model(**{**NAME, **LARGE}), IMAGES, method="lemon")
    assert torch.equal(large(IMAGES), expected.eval()(IMAGES))


def test_another_network_of_timm_and_random_parts_by_the_seed(tmp_path, capsys):
    timm_file(tmp_path)
    words = [*SMALL_VIT, "--weights", "small.safetensors", "--large", "timm:vit_small_patch16_224"]
    words += [f"--large.{name}={value}" for name, value in LARGE.items()]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        grow(capsys, *words, "--out", f"{name}.safetensors", "--seed", seed)
    one, same, other = (Path(f"{name}.safetensors").read_bytes() for name in "abc")
    assert one == same != other


def test_a_head_that_is_left_out_is_as_it_was_built(tmp_path, capsys):
    small, path = timm_file(tmp_path)
    words = [*SMALL_VIT, "--small.num_classes=7", "--weights", path, *LARGER, "--out", "large.pth"]
    grow(capsys, *words, "--weights.leave_out", "[head.*]", "--method", "lemon")
    large = timm.create_model(**{**NAME, **LARGE, "num_classes": 7}, checkpoint_path="large.pth")
    expected = small.forward_features(IMAGES)[..., :32]
    assert torch.allclose(large.eval().forward_features(IMAGES)[..., :32], expected, atol=1e-4)
    assert "grown from" in Path("large.pth.growth.md").read_text()


def test_what_describes_another_growth_is_not_overwritten(tmp_path, capsys):
    _, path = timm_file(tmp_path)
    Path("large.pth.growth.json").write_text("mine")
    words = [*SMALL_VIT, "--weights", path, *LARGER, "--out", "large.pth"]
    assert "there is something at large.pth.growth.json" in refused(capsys, *words)
    assert Path("large.pth.growth.json").read_text() == "mine"
    assert not Path("large.pth").exists()


def test_the_growth_is_described_beside_a_file(tmp_path, capsys):
    _, path = timm_file(tmp_path)
    grow(capsys, *SMALL_VIT, "--weights", path, *LARGER, "--out", "large.pt", "--method", "lemon")
    record = json.loads(Path("large.pt.growth.json").read_text())
    assert record["method"] == "lemon"
    assert record["large"]["init_args"] == {**NAME, **LARGE}
    assert "weights" not in record["small"]
    assert record["plan"]["axes"]["embed"] == [32, 64]
    assert 0 <= record["change"]["change"] < 1e-4
    assert list(record["sha256"]) == ["small.safetensors"]
    card = Path("large.pt.growth.md").read_text()
    assert "grown from" in card
    assert "- blocks: 2 to 4" in card
    assert "the function is kept" in card


# Hugging Face -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_becomes_a_folder_that_auto_classes_load(
    tmp_path, capsys, monkeypatch, tied, shards
):
    config = transformers.BertConfig(**BERT, tie_word_embeddings=tied)
    options = {"max_shard_size": "20KB"} if shards else {}
    small = saved(tmp_path / "bert", transformers.BertForMaskedLM, config, **options)
    if shards:
        monkeypatch.setattr(lightning_ligo.networks.saving, "SHARD", "100KB")
    grow(capsys, "--small", "hf:./bert", *WIDER_BERT, "--out", "grown", "--method", "lemon")
    assert Path("grown/model.safetensors.index.json").exists() == shards
    large = AutoModelForMaskedLM.from_pretrained("grown").eval()
    assert large.config.hidden_size == 64
    assert large.config.num_hidden_layers == 4
    assert large.config.architectures == ["BertForMaskedLM"]
    torch.testing.assert_close(large(IDS).logits, small(IDS).logits, rtol=1e-4, atol=1e-5)
    head = large.get_output_embeddings().weight
    assert (head is large.get_input_embeddings().weight) == tied
    again = tmp_path / "again"
    large.save_pretrained(again)
    files = [folder for folder in (Path("grown"), again) if not shards]
    stored = [safetensors.torch.load_file(folder / "model.safetensors") for folder in files]
    assert not stored or stored[0].keys() == stored[1].keys()


def test_what_stands_beside_the_weights_comes_along(tmp_path, capsys):
    gpt2(tmp_path / "gpt2")
    tokenizer(tmp_path / "gpt2")
    generation = transformers.GenerationConfig(max_length=7, eos_token_id=2)
    generation.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "README.md").write_text("# GPT-2\n\nA small network.\n")
    grow(capsys, "--small", "hf:./gpt2", "--large.n_layer", "4", "--out", "grown")
    assert AutoTokenizer.from_pretrained("grown")("w5 w7")["input_ids"] == [5, 7]
    large = AutoModelForCausalLM.from_pretrained("grown")
    assert large.generation_config.max_length == 7
    assert large.config.n_layer == 4
    card = Path("grown/README.md").read_text()
    assert card.startswith("# GPT-2\n\nA small network.\n\n## Growth\n")
    assert json.loads(Path("grown/growth.json").read_text())["large"]["class_path"] == (
        "transformers.GPT2LMHeadModel"
    )


def test_a_network_in_half_precision_stays_so_unless_asked(tmp_path, capsys):
    small = gpt2(tmp_path / "float32").bfloat16()
    small.save_pretrained("gpt2")
    deeper = ["--small", "hf:./gpt2", "--large.n_layer", "4", "--method", "lemon"]
    grow(capsys, *deeper, "--out", "half")
    large = AutoModelForCausalLM.from_pretrained("half").eval()
    assert large.dtype == torch.bfloat16
    assert torch.equal(large(IDS).logits, small(IDS).logits)
    grow(capsys, *deeper, "--out", "whole", "--dtype", "float32")
    assert AutoModelForCausalLM.from_pretrained("whole").dtype == torch.float32


@pytest.mark.parametrize("method", ["lemon", "stack+copy", "stack+fresh", "random", "zero"])
def test_large_networks_are_written_without_being_built(tmp_path, capsys, monkeypatch, method):
    config = transformers.LlamaConfig(**LLAMA)
    saved(tmp_path / "llama", transformers.LlamaForCausalLM, config, max_shard_size="30KB")
    wider = ["--large.hidden_size", "48", "--large.num_attention_heads", "3",
             "--large.head_dim", "16", "--large.num_key_value_heads", "3"]  # fmt: skip
    words = ["--small", "hf:./llama", *DEEPER, *wider, "--method", method]
    grow(capsys, *words, "--out", "one")
    monkeypatch.setattr(lightning_ligo.cli.planned, "REAL", 0)
    text = grow(capsys, *words, "--out", "other")
    one, other = (Path(name, "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other
    assert ("the function is kept" in text) == (method == "lemon")


def test_weights_in_half_precision_are_compared_in_float32(tmp_path, capsys, monkeypatch):
    config = transformers.LlamaConfig(**LLAMA)
    small = saved(tmp_path / "float32", transformers.LlamaForCausalLM, config).bfloat16()
    small.save_pretrained("llama")
    monkeypatch.setattr(lightning_ligo.cli.planned, "REAL", 0)
    words = [*DEEPER, "--large.hidden_size", "48", "--large.num_attention_heads", "3",
             "--large.head_dim", "16", "--large.num_key_value_heads", "3"]  # fmt: skip
    grow(capsys, "--small", "hf:./llama", *words, "--out", "grown", "--method", "lemon")
    change = json.loads(Path("grown/growth.json").read_text())["change"]["change"]
    large = AutoModelForCausalLM.from_pretrained("grown").eval()
    assert large.dtype == torch.bfloat16
    ids = (4 + torch.arange(16).reshape(2, 8)) % 90
    with torch.no_grad():
        before, after = small.float()(ids).logits, large.float()(ids).logits
    expected = (after - before).square().mean().sqrt() / before.square().mean().sqrt()
    assert 0 < change < 2e-2
    assert change == pytest.approx(float(expected), rel=1e-2)


def test_what_cannot_be_in_memory_is_not_measured(tmp_path, capsys, monkeypatch):
    gpt2(tmp_path / "gpt2")
    monkeypatch.setattr(lightning_ligo.cli.planned, "REAL", 0)
    monkeypatch.setattr(lightning_ligo.cli.growing, "_available", lambda: 0)
    deeper = ["--small", "hf:./gpt2", "--large.n_layer", "4"]
    text = grow(capsys, *deeper, "--out", "grown")
    assert "the function is not measured: the large network needs 0.0 GiB of memory" in text
    assert AutoModelForCausalLM.from_pretrained("grown").config.n_layer == 4
    text = refused(capsys, *deeper, "--out", "other", "--method", "random")
    assert "'random' leaves parts of the large network as it was built, which takes" in text


# Lightning ----------------------------------------------------------------------------------------


def test_a_checkpoint_becomes_one_that_its_module_loads(tmp_path, capsys):
    described = {"class_path": "timm.create_model", "init_args": NAME}
    module = ligo.ImageClassifier(described, learning_rate=0.5)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint("small.ckpt", weights_only=True)
    grow(capsys, "--small", "small.ckpt", *LARGER, "--out", "grown.ckpt", "--method", "lemon")
    large = ligo.ImageClassifier.load_from_checkpoint("grown.ckpt", map_location="cpu")
    assert large.hparams["network"]["init_args"] == {**NAME, **LARGE}
    assert large.hparams["learning_rate"] == 0.5
    expected = module.eval()(IMAGES)
    torch.testing.assert_close(large.eval()(IMAGES), expected, rtol=1e-4, atol=1e-5)
    grow(capsys, "--small", "small.ckpt", *LARGER, "--out", "grown.pth", "--method", "lemon")
    network = timm.create_model(**{**NAME, **LARGE}, checkpoint_path="grown.pth").eval()
    torch.testing.assert_close(network(IMAGES), expected, rtol=1e-4, atol=1e-5)


# Learning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_an_operator_is_learned_on_texts_by_the_tokenizer_of_the_network(tmp_path, capsys, kind):
    {"bert": bert, "gpt2": gpt2}[kind](tmp_path / "small")
    tokenizer(tmp_path / "small")
    corpus(tmp_path / "corpus")
    words = [
        "--small",
        "hf:./small",
        *DEEPER,
        "--method",
        "ligo",
        "--data",
        "text",
        "--data.files",
        "corpus/*.txt",
        "--data.window",
        "16",
        "--data.batch_size",
        "4",
    ]
    grow(capsys, *words, "--steps", "8", "--learning_rate", "1e-3", "--out", "grown")
    record = json.loads(Path("grown/growth.json").read_text())
    first, last = record["learned"]["loss"]
    assert record["learned"]["steps"] == 8
    assert last < first
    grow(capsys, *words, "--steps", "0", "--out", "start")
    assert json.loads(Path("start/growth.json").read_text())["learned"] is None
    one, other = (Path(name, "model.safetensors").read_bytes() for name in ("grown", "start"))
    assert one != other


def test_an_operator_is_learned_on_images(tmp_path, capsys):
    for part in ("train", "val"):
        for number in range(2):
            folder = tmp_path / "images" / part / str(number)
            folder.mkdir(parents=True)
            for image in range(3):
                Image.new("RGB", (8, 8), (90 * number, 40 * image, 7)).save(folder / f"{image}.png")
    timm_file(tmp_path, in_chans=3, num_classes=2)
    words = [*SMALL_VIT, "--small.in_chans=3", "--small.num_classes=2", *LARGER, "--weights",
             "small.safetensors", "--method", "ligo", "--steps", "3", "--data", "images",
             "--data.folder", "images", "--data.image_size", "8", "--data.num_workers", "0",
             "--data.batch_size", "2"]  # fmt: skip
    grow(capsys, *words, "--out", "large.safetensors")
    record = json.loads(Path("large.safetensors.growth.json").read_text())
    assert record["learned"]["steps"] == 3


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --small, or --config and --ckpt_path"),
        (["--config", "a.yaml"], "give the checkpoint of the run: --ckpt_path FILE"),
        (["--small", "timm:resnet18", "--large", "timm:resnet34"], "has no trained weights; name"),
        (["--small", "hf:./gpt2"], "give --large, or what is larger"),
        (["--small", "hf:./gpt2", *DEEPER, "--out", "gpt2"], "there is something at gpt2"),
        (["--small", "hf:./gpt2", *DEEPER, "--out", "no/where"], "the folder no for where does no"),
        (["--small", "hf:./gpt2", *DEEPER, "--out", "a.onnx"], "cannot be saved as a.onnx: expec"),
        (["--small", "hf:./gpt2", *DEEPER, "--out", "a.ckpt"], "would be a Lightning checkpoint"),
        (["--small", "hf:./gpt2", *DEEPER, "--method", "msg"], "unmasks new parts while a run"),
        (["--small", "hf:./gpt2", *DEEPER, "--method", "ligo"], "learns its operator and needs da"),
        (["--small", "hf:./gpt2", "--large.n_layer=1"], "GPT2LMHeadModel cannot be grown from"),
        (["--small", "hf:./gpt2", "--large.layers=4"], "GPT2Config has no setting 'layers'"),
        (
            ["--small", "hf:./gpt2", *DEEPER, "--data", "sound"],
            "--data is one of text, images",
        ),
        (["--small", "hf:./gpt2", *DEEPER, "--data.files=a"], "--data is one of text, images"),
        (["--small", "hf:./gpt2", *DEEPER, "--data", "text"], "TextDataModule needs --data.files"),
        (
            ["--small", "hf:./gpt2", *DEEPER, "--data", "text", "--data.file=a"],
            "no option file; it",
        ),
        (["--small", "hf:./gpt2", *DEEPER, "--weights", "gpt2/config.json"], "cannot be read"),
        (["--small", "hf:./gpt2", *DEEPER, "--seeds", "3"], "unrecognized argument: --seeds"),
        (["--small", "small.ckpt", *DEEPER], "there is no file small.ckpt"),
    ],
)
def test_wrong_input_is_refused_and_nothing_is_written(tmp_path, capsys, words, message):
    gpt2(tmp_path / "gpt2")
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--out" in words else ["--out", "grown"]
    assert message in refused(capsys, *words, *out)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 7}, "2 of another shape: head.weight (10x32 there, 7x32 here)"),
        ({"depth": 3}, "12 missing: blocks.2"),
        ({"depth": 1}, "12 unexpected: blocks.1"),
    ],
)
def test_weights_that_do_not_fit_are_listed(tmp_path, capsys, settings, message):
    _, path = timm_file(tmp_path)
    words = [f"--small.{name}={value}" for name, value in {**VIT, **settings}.items()]
    small = ["--small", "timm:vit_tiny_patch16_224", *words, "--weights", path]
    assert message in refused(capsys, *small, *LARGER, "--out", "large.pth")
    assert {file.name for file in tmp_path.iterdir()} == {"small.safetensors"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"hook": Payload()}, "holds more than tensors and plain data (payload.run), and nothing"),
        ({"blocks.0.attn.qkv.lora_A.weight": torch.ones(2)}, "holds an adapter (LoRA)"),
        ({"blocks.0.attn.qkv.weight.absmax": torch.ones(2)}, "holds quantised weights"),
    ],
)
def test_weights_of_another_kind_are_refused(tmp_path, capsys, content, message):
    RAN.clear()
    torch.save({**vit().state_dict(), **content}, "small.bin")
    small = [*SMALL_VIT, "--weights", "small.bin", *LARGER]
    assert message in refused(capsys, *small, "--out", "large.pth")
    assert not RAN


def test_a_broken_promise_is_a_warning_with_the_promise_and_the_measurement(tmp_path, capsys):
    bert(tmp_path / "bert")
    wider = ["--large.hidden_size", "48", "--large.num_attention_heads", "3", "--method", "lemon"]
    with pytest.warns(UserWarning, match=r"'lemon' promises to keep the function, and the functi"):
        grow(capsys, "--small", "hf:./bert", *wider, "--out", "grown")
    change = json.loads(Path("grown/growth.json").read_text())["change"]
    assert change["change"] > 1e-3
    assert change["place"].startswith("bert.")


def test_too_little_room_on_the_disk_is_told_before_anything_is_written(
    tmp_path, capsys, monkeypatch
):
    gpt2(tmp_path / "gpt2")
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - 9, 9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    text = refused(capsys, "--small", "hf:./gpt2", *DEEPER, "--out", "grown")
    assert "needs 0.0 GiB on the disk, and . has 0.0 GiB; make room" in text
    assert not Path("grown").exists()


def test_a_growth_that_breaks_off_leaves_nothing(tmp_path, capsys, monkeypatch):
    gpt2(tmp_path / "gpt2")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lightning_ligo.networks.saving._Writer, "write", full)
    with pytest.raises(OSError, match="No space left"):
        main(["grow", "--small", "hf:./gpt2", *DEEPER, "--out", "grown"])
    assert {path.name for path in tmp_path.iterdir()} == {"gpt2"}


# Python -------------------------------------------------------------------------------------------


def test_save_writes_what_its_users_load(tmp_path):
    network, _ = timm_file(tmp_path)
    for name in ("a.safetensors", "a.pth"):
        ligo.save(network, tmp_path / name)
        loaded = timm.create_model(**NAME, checkpoint_path=str(tmp_path / name)).eval()
        assert torch.equal(loaded(IMAGES), network(IMAGES))
    masked = bert(tmp_path / "bert")
    ligo.save(masked, tmp_path / "saved")
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(loaded(IDS).logits, masked(IDS).logits)
    with pytest.raises(FileExistsError, match="there is something at"):
        ligo.save(network, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"VisionTransformer cannot be saved as .*folder"):
        ligo.save(network, tmp_path / "folder")
