"""The settings of the paper run: a few steps of each, with small networks and made data."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from lightning_ligo.__main__ import main
from lightning_ligo.networks.description import build

PAPER = Path(__file__).parent.parent / "recipes" / "paper"
IMAGES = ["deit_small_to_base", "cait_xs_to_s"]
SIZES = {  # of the large networks that the files name: width, layers, heads
    "deit_small_to_base": (768, 12, 12),
    "cait_xs_to_s": (384, 24, 8),
    "bert_small_to_base": (768, 12, 12),
    "bert_base_to_large": (1024, 24, 16),
    "roberta_small_to_base": (768, 12, 12),
    "gpt2_base_to_medium": (1024, 24, 16),
}
NAMES = {
    "gpt2_base_to_medium": ("n_embd", "n_layer", "n_head"),
    **dict.fromkeys(IMAGES, ("embed_dim", "depth", "num_heads")),
}
BERT = ("hidden_size", "num_hidden_layers", "num_attention_heads")


def read(name):
    return yaml.safe_load((PAPER / f"{name}.yaml").read_text())


def growth_of(recipe):
    return recipe["trainer"]["callbacks"][-1]["init_args"]["growths"][0]


def test_every_file_is_tried_here():
    assert {path.stem for path in PAPER.glob("*.yaml")} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_the_large_network_is_that_of_the_paper(name):
    recipe, (width, layers, heads) = read(name), SIZES[name]
    network, to = recipe["model"]["init_args"]["network"], growth_of(recipe)["to"]["init_args"]
    if name in IMAGES:
        network = {"class_path": "timm.create_model", "init_args": {**network["init_args"], **to}}
        large = build(network, device="meta")
        found = large.embed_dim, len(large.blocks), large.blocks[0].attn.num_heads
    else:
        found = tuple(to["config"]["init_args"][each] for each in NAMES.get(name, BERT))
    assert found == (width, layers, heads)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SIZES)
def test_it_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = read(name)
    (with_images if name in IMAGES else with_texts)(recipe, name)
    recipe["trainer"].update(accelerator="cpu", precision="32", devices=1, max_steps=3)
    recipe["trainer"].update(enable_progress_bar=False, val_check_interval=None, max_epochs=2)
    recipe["trainer"]["callbacks"][-1]["init_args"]["steps"] = 2
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe))
    main(["fit", "--config", "tiny.yaml"])
    (path,) = Path("runs", name).rglob("growth_report.json")
    (growth,) = json.loads(path.read_text())["growths"]
    assert growth["step"] == 0 and growth["method"] == "ligo-paper"
    assert growth["parameters"]["large"] > growth["parameters"]["small"]
    assert growth["operator"]["steps"] == 2
    assert [2, 4] in growth["stacks"].values() and [32, 48] in growth["axes"].values()


def with_images(recipe, name):
    """Make the networks of a recipe small, trained weights for it, and images."""
    from torchvision.utils import save_image

    torch.manual_seed(0)
    for part in ("train", "val"):
        for number in range(8):
            path = Path("images", part, str(number % 2), f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            save_image(torch.rand(3, 32, 32), path)
    network = recipe["model"]["init_args"]["network"]
    small = {"img_size": 32, "num_classes": 2, "embed_dim": 32, "depth": 2, "num_heads": 2}
    network["init_args"].update(small)
    growth_of(recipe)["to"]["init_args"].update(embed_dim=48, depth=4, num_heads=3)
    weights = network.pop("weights")
    torch.save(build(network).state_dict(), weights)
    network["weights"] = weights
    recipe["data"]["init_args"].update(folder="images", image_size=32, batch_size=4, num_workers=0)


def with_texts(recipe, name):
    """Make the networks of a recipe small, a trained one with its tokenizer, and texts."""
    import datasets
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    network, data = recipe["model"]["init_args"]["network"], recipe["data"]["init_args"]
    folder = network["init_args"]["pretrained_model_name_or_path"]
    words = {word: number for number, word in enumerate(["[UNK]", "[MASK]", "[PAD]", *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"mask_token": "[MASK]", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    names, cls = NAMES.get(name, BERT), network["class_path"].removesuffix(".from_pretrained")
    sizes = {"vocab_size": len(words), **dict(zip(names, (32, 2, 2), strict=True))}
    if names is BERT:
        sizes.update(max_position_embeddings=16, intermediate_size=64, pad_token_id=2)
    else:
        sizes.update(n_positions=16, bos_token_id=None, eos_token_id=None)
    kind = cls.replace("LMHeadModel", "Config").replace("ForMaskedLM", "Config")
    config = {"class_path": kind, "init_args": sizes}
    torch.manual_seed(0)
    build({"class_path": cls, "init_args": {"config": config}}).save_pretrained(folder)
    large = growth_of(recipe)["to"]["init_args"]["config"]["init_args"]
    assert large.keys() >= set(names)
    large.update(zip(names, (48, 4, 3), strict=True))
    if names is BERT:
        large["intermediate_size"] = 96
    texts = {"text": ["a b c d e f g h " * 3] * 60}
    datasets.Dataset.from_dict(texts).save_to_disk("texts")
    data.pop("name")
    data.update(dataset="texts", window=8, batch_size=4, num_workers=0, validation=0.1, test=0.1)
