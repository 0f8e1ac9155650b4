import copy
import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_ligo.networks.description import build
from lightning_ligo.tasks.modules import ImageClassifier, LanguageModel

VIT = {
    "class_path": "timm.models.VisionTransformer",
    "init_args": {
        "img_size": 4,
        "patch_size": 2,
        "in_chans": 1,
        "num_classes": 3,
        "embed_dim": 8,
        "depth": 1,
        "num_heads": 2,
    },
}
GPT2 = {
    "class_path": "transformers.GPT2LMHeadModel",
    "init_args": {
        "config": {
            "class_path": "transformers.GPT2Config",
            "init_args": {
                "vocab_size": 11,
                "n_positions": 6,
                "n_embd": 8,
                "n_layer": 1,
                "n_head": 2,
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
            },
        }
    },
}
BERT = {
    "class_path": "transformers.BertForMaskedLM",
    "init_args": {
        "config": {
            "class_path": "transformers.BertConfig",
            "init_args": {
                "vocab_size": 11,
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
        }
    },
}


class NoClasses(nn.Module):
    pass


def images(count=5):
    torch.manual_seed(1)
    return [(torch.randn(1, 4, 4), torch.tensor(item % 3)) for item in range(count)]


def texts(count=5):
    torch.manual_seed(1)
    tokens = torch.randint(11, (count, 6))
    labels = tokens.clone()
    labels[0, 2:] = -100
    return [{"input_ids": tokens[item], "labels": labels[item]} for item in range(count)]


def trainer(folder, **options):
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
    }
    return Trainer(**(defaults | options))


@pytest.fixture
def loss_of(monkeypatch):
    """The loss of one training step outside a Trainer."""

    def loss_of(module, batch):
        monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
        return module.training_step(batch, 0)

    return loss_of


def test_an_image_classifier_logs_loss_and_accuracy_over_batches_of_unequal_size(tmp_path):
    module = ImageClassifier(VIT)
    run = trainer(tmp_path)
    run.validate(module, DataLoader(images(), batch_size=3), verbose=False)
    inputs, classes = (torch.stack(part) for part in zip(*images(), strict=True))
    with torch.no_grad():
        logits = module.eval()(inputs)
    share = (logits.argmax(1) == classes).float().mean()
    assert run.callback_metrics["val_acc"].item() == pytest.approx(share.item())
    loss = F.cross_entropy(logits, classes).item()
    assert run.callback_metrics["val_loss"].item() == pytest.approx(loss, rel=1e-5)
    (metrics,) = run.test(module, DataLoader(images(), batch_size=3), verbose=False)
    assert metrics == pytest.approx({"test_loss": loss, "test_acc": share.item()}, rel=1e-5)


def test_label_smoothing_is_for_training_only(loss_of):
    module = ImageClassifier(VIT, label_smoothing=0.3).eval()
    batch = tuple(torch.stack(part) for part in zip(*images(), strict=True))
    expected = F.cross_entropy(module(batch[0]), batch[1], label_smoothing=0.3)
    assert torch.equal(loss_of(module, batch), expected)


def test_an_image_classifier_predicts_probabilities(tmp_path):
    module = ImageClassifier(VIT)
    (first, second) = trainer(tmp_path).predict(module, DataLoader(images(), batch_size=3))
    assert first.shape == (3, 3)
    assert torch.allclose(torch.cat([first, second]).sum(1), torch.ones(5))


def test_a_network_that_does_not_tell_its_classes_is_refused():
    with pytest.raises(
        ValueError, match=r"needs a network with .*num_classes.* NoClasses has None"
    ):
        ImageClassifier({"class_path": f"{__name__}.NoClasses"})


def test_a_causal_model_predicts_each_token_from_those_before_it(tmp_path):
    module = LanguageModel(GPT2)
    run = trainer(tmp_path)
    run.validate(module, DataLoader(texts(), batch_size=2), verbose=False)
    nats, count = 0.0, 0
    network = module.network.eval()
    for text in texts():
        for position in range(1, 6):
            if text["labels"][position] != -100:
                with torch.no_grad():
                    logits = network(input_ids=text["input_ids"][None, :position]).logits[0, -1]
                nats -= logits.log_softmax(0)[text["labels"][position]].item()
                count += 1
    assert count == 21
    assert run.callback_metrics["val_loss"].item() == pytest.approx(nats / count, rel=1e-5)
    bits = nats / count / math.log(2)
    assert run.callback_metrics["val_bits_per_byte"].item() == pytest.approx(bits, rel=1e-5)


def test_the_training_loss_equals_the_networks_own_causal_loss(loss_of):
    module = LanguageModel(GPT2)
    batch = {key: torch.stack([text[key] for text in texts()]) for key in ("input_ids", "labels")}
    expected = module.network(**batch).loss
    assert loss_of(module, batch).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_masked_model_predicts_the_labelled_tokens_and_sees_the_attention_mask(loss_of):
    module = LanguageModel(BERT, objective="masked").eval()
    batch = {key: torch.stack([text[key] for text in texts()]) for key in ("input_ids", "labels")}
    batch["attention_mask"] = torch.ones(5, 6, dtype=torch.int64)
    batch["attention_mask"][1, 3:] = 0
    expected = module.network(**batch).loss
    assert loss_of(module, batch).item() == pytest.approx(expected.item(), rel=1e-6)
    del batch["attention_mask"]
    assert loss_of(module, batch).item() != pytest.approx(expected.item(), rel=1e-6)


def test_bits_per_byte_divides_by_the_length_of_a_token(tmp_path):
    run = trainer(tmp_path)
    module = LanguageModel(GPT2, bytes_per_token=4.0)
    (metrics,) = run.test(module, DataLoader(texts(), batch_size=2), verbose=False)
    expected = metrics["test_loss"] / math.log(2) / 4
    assert metrics["test_bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_bits_per_byte_of_tokens_equals_the_cross_entropy_in_bits_per_byte_of_text(tmp_path):
    module = LanguageModel(GPT2, bytes_per_token=4.0)
    (metrics,) = trainer(tmp_path).test(module, DataLoader(texts(), batch_size=2), verbose=False)
    batch = {key: torch.stack([text[key] for text in texts()]) for key in ("input_ids", "labels")}
    with torch.no_grad():
        logits = module.eval()(batch["input_ids"])[:, :-1]
    loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert metrics["test_bits_per_byte"] == pytest.approx(loss.item() / math.log(2) / 4, rel=1e-6)


def test_batches_count_by_their_bytes_and_the_next_evaluation_forgets_them(tmp_path):
    module, run = LanguageModel(GPT2), trainer(tmp_path)
    (whole,) = run.test(module, DataLoader(texts(), batch_size=5), verbose=False)
    for size in (1, 3):  # batches of unequal numbers of labels
        (parts,) = run.test(module, DataLoader(texts(), batch_size=size), verbose=False)
        assert parts == pytest.approx(whole, rel=1e-6)
    (some,) = run.test(module, DataLoader(texts()[:1]), verbose=False)
    assert some["test_bits_per_byte"] != pytest.approx(whole["test_bits_per_byte"], rel=1e-6)


def test_a_checkpoint_holds_nothing_of_the_metric():
    assert all(name.startswith("network.") for name in LanguageModel(GPT2).state_dict())


def test_a_language_model_predicts_logits(tmp_path):
    logits = trainer(tmp_path).predict(LanguageModel(GPT2), DataLoader(texts(), batch_size=5))
    assert logits[0].shape == (5, 6, 11)


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="objective must be 'causal' or 'masked', got 'both'"):
        LanguageModel(GPT2, objective="both")


@pytest.mark.parametrize(
    ("kind", "network", "data"),
    [(ImageClassifier, VIT, images), (LanguageModel, GPT2, texts)],
    ids=["image", "language"],
)
def test_a_checkpoint_opens_without_being_told_the_network(tmp_path, kind, network, data):
    module = kind(network, learning_rate=0.02)
    run = trainer(tmp_path)
    loader = DataLoader(data(), batch_size=2)
    run.fit(module, loader, loader)
    run.save_checkpoint(tmp_path / "run.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert loaded.hparams["network"] == network
    assert type(loaded.hparams["network"]) is dict
    assert loaded.hparams["learning_rate"] == 0.02
    weights = loaded.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in module.state_dict().items())
    assert all(key.startswith("network.") for key in weights)


def test_another_network_may_take_the_place_of_the_first(loss_of):
    module = LanguageModel(GPT2)
    wider = copy.deepcopy(GPT2)
    wider["init_args"]["config"]["init_args"]["n_embd"] = 16
    module.network = build(wider)
    batch = {key: torch.stack([text[key] for text in texts()]) for key in ("input_ids", "labels")}
    loss_of(module, batch).backward()
    assert module.network.transformer.wte.weight.grad.shape == (11, 16)


def test_biases_and_norms_are_not_decayed_and_every_weight_is_in_one_group(tmp_path):
    module = ImageClassifier(VIT, weight_decay=0.3)
    run = trainer(tmp_path)
    loader = DataLoader(images(), batch_size=2)
    run.fit(module, loader, loader)
    decayed, plain = run.optimizers[0].param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    named = dict(module.named_parameters())
    not_decayed = {name for name in named if name.endswith("bias") or ".norm" in name}
    assert {id(weight) for weight in plain["params"]} == {id(named[n]) for n in not_decayed}
    assert len(decayed["params"]) + len(plain["params"]) == len(named)


FALLING = {  # of 20 steps, after 4 of warm-up
    (None, "cosine"): [0.5 + 0.5 * math.cos(math.pi * step / 16) for step in range(16)],
    (0.4, "cosine"): [1.0] * 8 + [0.5 + 0.5 * math.cos(math.pi * step / 8) for step in range(8)],
    (0.0, "cosine"): [1.0] * 16,
    (None, "linear"): [1 - step / 16 for step in range(16)],
    (0.4, "linear"): [1.0] * 8 + [1 - step / 8 for step in range(8)],
}


@pytest.mark.parametrize(("decay", "shape"), FALLING)
def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_zero(decay, shape, tmp_path):
    rates = []

    class Recorded(ImageClassifier):
        def on_before_optimizer_step(self, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    module = Recorded(VIT, learning_rate=0.1, warmup=0.2, decay=decay, shape=shape)
    run = trainer(tmp_path, max_epochs=4, accumulate_grad_batches=2)
    loader = DataLoader(images(10), batch_size=1)
    run.fit(module, loader, loader)
    assert rates == pytest.approx(
        [0.02, 0.04, 0.06, 0.08, *(0.1 * each for each in FALLING[decay, shape])]
    )


def test_a_shape_that_is_not_known_is_refused(tmp_path):
    loader = DataLoader(images(), batch_size=2)
    with pytest.raises(ValueError, match="shape must be 'cosine' or 'linear', got 'step'"):
        trainer(tmp_path).fit(ImageClassifier(VIT, shape="step"), loader, loader)


@pytest.mark.parametrize(("warmup", "decay"), [(0.5, 0.6), (-0.1, 0.5), (0.1, -0.5)])
def test_a_schedule_that_is_longer_than_the_run_is_refused(warmup, decay, tmp_path):
    loader = DataLoader(images(), batch_size=2)
    module = ImageClassifier(VIT, warmup=warmup, decay=decay)
    with pytest.raises(
        ValueError, match=f"got warmup={warmup} and decay={decay}; both are shares of the run"
    ):
        trainer(tmp_path, max_epochs=1).fit(module, loader, loader)


def test_a_run_without_an_end_is_refused(tmp_path):
    run = trainer(tmp_path, max_epochs=-1)
    loader = DataLoader(images(), batch_size=2)
    with pytest.raises(ValueError, match="neither max_steps nor max_epochs; set one of them"):
        run.fit(ImageClassifier(VIT), loader, loader)
