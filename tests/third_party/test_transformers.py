"""transformers: the GLUE template of Lightning's examples, with a linear schedule."""

import pytest

pytest.importorskip("transformers")

import torch
from lightning.pytorch import LightningModule
from projects import check, growing, opened, sizes
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    get_linear_schedule_with_warmup,
)

from lightning_ligo import Growth, describe

pytestmark = [pytest.mark.third_party, pytest.mark.filterwarnings("ignore")]


class Glue(LightningModule):
    """Fine-tunes a network that classifies texts; no decay for gains and biases."""

    def __init__(self, network: object, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network"])
        self.model = network

    def training_step(self, batch, batch_idx):
        loss = self.model(**batch).loss
        self.log("loss", loss)
        return loss

    validation_step = test_step = training_step

    def configure_optimizers(self):
        named, plain = list(self.model.named_parameters()), ("bias", "LayerNorm.weight")
        is_plain = {name: any(end in name for end in plain) for name, _ in named}
        groups = [
            {"params": [p for n, p in named if not is_plain[n]], "weight_decay": 0.01},
            {"params": [p for n, p in named if is_plain[n]], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.hparams.learning_rate)
        steps = self.trainer.estimated_stepping_batches
        schedule = get_linear_schedule_with_warmup(optimizer, 2, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


BERT = {"vocab_size": 60, "intermediate_size": 64, "max_position_embeddings": 16}
SMALL = {**BERT, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LARGE = {**BERT, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 60}
LARGER = {**DISTIL, "dim": 64, "n_layers": 4, "n_heads": 4}


def sentences() -> DataLoader:
    torch.manual_seed(0)
    words = torch.randint(60, (16, 10))
    items = [
        {"input_ids": w, "attention_mask": torch.ones_like(w), "labels": w[0] % 2} for w in words
    ]
    return DataLoader(items, 4)


@pytest.mark.parametrize("method", ["stack+copy", "lemon", "ligo"])
@pytest.mark.parametrize(
    ("kind", "config", "small", "large"),
    [
        (BertForSequenceClassification, BertConfig, SMALL, LARGE),
        (DistilBertForSequenceClassification, DistilBertConfig, DISTIL, LARGER),
    ],
)
def test_it_grows_and_is_opened_by_from_pretrained(tmp_path, kind, config, small, large, method):
    torch.manual_seed(0)
    module, data = Glue(kind(config(**small))), sentences()
    to = describe(kind, config=describe(config, **large))
    settings = {"steps": 3} if method == "ligo" else {}
    run = growing(
        tmp_path, [Growth(to, fraction=0.5)], attribute="model", method=method, **settings
    )
    run.fit(module, data, data)
    wanted = {f"model.{name}": shape for name, shape in sizes(kind(config(**large))).items()}
    check(run, module, wanted)
    run.test(module, data, ckpt_path="best")
    opened(module, run, network=kind(config(**small)))
    module.model.save_pretrained(tmp_path / "saved")
    again, batch = kind.from_pretrained(tmp_path / "saved").eval(), next(iter(data))
    assert torch.equal(again(**batch).logits, module.model.eval()(**batch).logits)
