"""LightningModules for image classification and language modelling, to use or to start from.

Both take their network as a description (see `describe`), so a checkpoint says which network it
holds. Neither knows that its network may be replaced by a larger one during `fit`.
"""

import inspect
import math
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from lightning_ligo.networks.description import build
from lightning_ligo.networks.pretrained import untrained

Shape = Literal["cosine", "linear"]


class _Task(LightningModule):
    """A module with hyperparameters `learning_rate`, `weight_decay`, `warmup`, `decay`, `shape`."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate("test", batch)

    def evaluate(self, stage: str, batch: Any) -> None:
        """Log the metrics of a batch under names that begin with the stage."""
        raise NotImplementedError

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with a linear warm-up and a decay to zero at the end.

        Weights of one dimension (biases and the gains of norms) are not decayed.

        Raises:
            ValueError: for a run of unknown length, and for shares that sum to more than 1.
        """
        warmup, decay = self.hparams["warmup"], self.hparams["decay"]
        decay = 1 - warmup if decay is None else decay
        if self.hparams["shape"] not in get_args(Shape):
            raise ValueError(f"shape must be 'cosine' or 'linear', got {self.hparams['shape']!r}")
        if not (warmup >= 0 and decay >= 0 and warmup + decay <= 1 + 1e-9):
            raise ValueError(
                f"got warmup={warmup} and decay={decay}; both are shares of the run: give 0 or "
                "more, and 1 at most in sum"
            )
        trainable = [weight for weight in self.parameters() if weight.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [weight for weight in trainable if weight.ndim > 1]},
            {"params": [weight for weight in trainable if weight.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.hparams["learning_rate"],
            betas=(0.9, 0.95),
            weight_decay=self.hparams["weight_decay"],
        )
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError(
                "the decay needs the length of the run, and this Trainer has neither max_steps nor "
                "max_epochs; set one of them"
            )
        warmup_steps, decay_steps = warmup * steps, decay * steps
        is_linear = self.hparams["shape"] == "linear"

        def scale(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / (warmup_steps + 1)
            decayed = max(0.0, step - (steps - decay_steps)) / max(1, decay_steps)
            return 1 - decayed if is_linear else 0.5 + 0.5 * math.cos(math.pi * decayed)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ImageClassifier(_Task):
    """Classifies images with any timm network.

    A batch is a pair: images (batch, channels, height, width) and classes (batch).
    Logs `train_loss` at every step and `val_loss`, `val_acc`, `test_loss`, `test_acc` (the share
    of images whose class is right) at the end of an evaluation. Predicts class probabilities.

    Args:
        network: a description of a network that maps images to logits (batch, classes) and has
            an attribute `num_classes`, as timm networks do.
        learning_rate: of AdamW, at its highest.
        weight_decay: of AdamW, for matrices only.
        warmup: the share of all optimizer steps in which the learning rate rises from zero.
        decay: the share at the end in which it falls to zero; by default all after the warm-up.
        shape: the curve by which it falls.
        label_smoothing: the share of a label that is spread over all classes, in training.
    """

    def __init__(
        self,
        network: dict,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        decay: float | None = None,
        shape: Shape = "cosine",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network: nn.Module = build(network)
        self.hparams["network"] = untrained(network)  # a checkpoint holds the weights
        classes = getattr(self.network, "num_classes", None)
        if not isinstance(classes, int):
            raise ValueError(
                f"ImageClassifier needs a network with an attribute num_classes, as in timm; "
                f"{type(self.network).__name__} has {classes!r}"
            )
        self.val_acc = MulticlassAccuracy(classes, average="micro")
        self.test_acc = MulticlassAccuracy(classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, classes = batch
        smoothing = self.hparams["label_smoothing"]
        loss = F.cross_entropy(self(images), classes, label_smoothing=smoothing)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self(batch[0]).softmax(dim=1)

    def evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        images, classes = batch
        logits, accuracy = self(images), self.val_acc if stage == "val" else self.test_acc
        accuracy.update(logits, classes)
        self.log(f"{stage}_loss", F.cross_entropy(logits, classes), batch_size=len(images))
        self.log(f"{stage}_acc", accuracy, batch_size=len(images), prog_bar=True)


class LanguageModel(_Task):
    """Models text with any Hugging Face network that has a language modelling head.

    A batch is a dict of `input_ids` and `labels` (batch, positions), and `attention_mask` (1 where
    there is text) where texts differ in length. A label of -100 is not predicted. A causal model
    predicts `labels[:, t]` from `input_ids[:, :t]`, a masked one from all of `input_ids`.
    Logs `train_loss` at every step and, at the end of an evaluation, `val_loss` and `test_loss`
    (nats per predicted token) and `val_bits_per_byte` and `test_bits_per_byte`. Predicts logits.

    Args:
        network: a description of a network whose forward takes `input_ids` and `attention_mask`
            and returns an object with `logits` (batch, positions, vocabulary).
        objective: what the network is trained to predict.
        learning_rate: of AdamW, at its highest.
        weight_decay: of AdamW, for matrices only.
        warmup: the share of all optimizer steps in which the learning rate rises from zero.
        decay: the share at the end in which it falls to zero; by default all after the warm-up.
        shape: the curve by which it falls.
        bytes_per_token: the average length of a token; 1 for the byte-level data of this package.
    """

    def __init__(
        self,
        network: dict,
        objective: Literal["causal", "masked"] = "causal",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        warmup: float = 0.05,
        decay: float | None = None,
        shape: Shape = "cosine",
        bytes_per_token: float = 1.0,
    ) -> None:
        super().__init__()
        if objective not in ("causal", "masked"):
            raise ValueError(f"objective must be 'causal' or 'masked', got {objective!r}")
        self.save_hyperparameters()
        self.network: nn.Module = build(network)
        self.hparams["network"] = untrained(network)  # a checkpoint holds the weights

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return logits_of(self.network, input_ids, attention_mask)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        nats, tokens = self._nats(batch)
        loss = nats / tokens
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self(batch["input_ids"], batch.get("attention_mask"))

    def _nats(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = self(batch["input_ids"], batch.get("attention_mask"))
        return language_loss(logits, batch["labels"], self.hparams["objective"])

    def evaluate(self, stage: str, batch: dict[str, Tensor]) -> None:
        nats, tokens = self._nats(batch)
        loss, count = nats / tokens, int(tokens)
        bits = loss / math.log(2) / self.hparams["bytes_per_token"]
        self.log(f"{stage}_loss", loss, batch_size=count)
        self.log(f"{stage}_bits_per_byte", bits, batch_size=count, prog_bar=True, sync_dist=True)


def language_loss(logits: Tensor, labels: Tensor, objective: str) -> tuple[Tensor, Tensor]:
    """Return the summed negative log-likelihood of the labels, and their number."""
    if objective == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    nats = F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    return nats, (labels != -100).sum().clamp(min=1)


def logits_of(
    network: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Call a network of transformers without keeping keys and values, and return its logits."""
    inputs: dict[str, Any] = {"input_ids": input_ids}
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask
    if "use_cache" in inspect.signature(network.forward).parameters:
        inputs["use_cache"] = False
    logits: Tensor = network(**inputs).logits
    return logits
