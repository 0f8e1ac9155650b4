"""Method ``ligo-paper`` against numbers of the released LiGO code (see golden/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.func import functional_call
from transformers import BertConfig, BertForMaskedLM

import lightning_ligo as ligo

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 2e-6},
}
MODULES = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
)  # fmt: skip
WIDTHS = {
    "attention.self.query": "fuse_width_query",
    "attention.self.key": "fuse_width_key",
    "attention.self.value": "fuse_width_value",
    "intermediate.dense": "fuse_width_ffn",
}


class Golden:
    """One case: the networks, the operator with the reference's coefficients, the numbers."""

    def __init__(self, case: str, dtype: torch.dtype) -> None:
        with safe_open(GOLDEN / f"{case}.safetensors", "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        self.dtype = dtype
        self.small, self.large = (
            BertForMaskedLM(
                BertConfig(**{**json.loads(metadata[size]), "tie_word_embeddings": False})
            )
            .to(dtype)
            .eval()
            for size in ("small_config", "large_config")
        )
        self.small.load_state_dict(self.under("small"), strict=False)
        self.batch = {
            "input_ids": self.tensors["batch/input_ids"],
            "attention_mask": self.tensors["batch/attention_mask"],
        }
        plan = ligo.pair(self.small, self.large, **self.batch)
        self.operator = ligo.Operator(plan, self.small, method="ligo-paper")
        self.layers = plan.stacks["bert.encoder.layer"][1]
        self.put("coef")

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        return {
            key.removeprefix(f"{prefix}/"): tensor.to(self.dtype)
            if tensor.is_floating_point()
            else tensor
            for key, tensor in self.tensors.items()
            if key.startswith(f"{prefix}/")
        }

    def views(self, gradient: bool = False) -> dict[str, torch.Tensor]:
        """Our coefficients (or their gradients) under the reference's names."""

        def take(parameter: nn.Parameter) -> torch.Tensor:
            return parameter.grad if gradient else parameter.data

        views = {}
        flow = {name.removesuffix(":produces"): p for name, p in self.operator.widths.maps.items()}
        stack = "bert/encoder/layer/*"
        for layer in range(self.layers):
            prefix = f"bert.encoder.layer.{layer}"
            for module in MODULES:
                for kind in ("weight", "bias"):
                    mix = self.operator.depths.mixes[f"{stack}/{module.replace('.', '/')}/{kind}"]
                    name = f"{prefix}.{module}.fuse_depth_coeffs.coeffs_{kind}"
                    views[name] = take(mix)[layer]
                key = f"{stack}/{module.replace('.', '/')}/weight:0"
                if module in WIDTHS and key in flow:
                    views[f"{prefix}.{WIDTHS[module]}.coeffs_weight"] = take(flow[key])[layer]
        for name, key in (
            ("bert.embeddings.fuse_width_emb", "bert/embeddings/word_embeddings/weight:1"),
            ("cls.predictions.fuse_width_cls", "cls/predictions/transform/dense/weight:0"),
        ):
            if key in flow:
                views[f"{name}.coeffs_weight"] = take(flow[key])
        return views

    def put(self, prefix: str) -> None:
        theirs, ours = self.under(prefix), self.views()
        assert theirs.keys() == ours.keys()
        assert sum(t.numel() for t in theirs.values()) == self.operator.coefficients
        for name, tensor in theirs.items():
            ours[name].copy_(tensor)

    def loss(self) -> torch.Tensor:
        logits = functional_call(self.large, self.operator(), (), self.batch).logits
        labels = self.tensors["batch/labels"]
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def close(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        torch.testing.assert_close(ours, theirs.to(ours.dtype), **TOLERANCES[self.dtype])


@pytest.fixture(params=["both", "depth", "width"])
def case(request):
    return request.param


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def golden(request, case):
    return Golden(case, request.param)


def test_small_network_is_the_reference_s(golden):
    with torch.no_grad():
        logits = golden.small(**golden.batch).logits
    labels = golden.tensors["batch/labels"].flatten()
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels)
    golden.close(loss, golden.tensors["out/loss_small"])


def test_large_weights_equal_the_reference(golden):
    grown = golden.operator()
    compared = 0
    for name, tensor in golden.under("large").items():
        if name in grown:
            golden.close(grown[name], tensor)
            compared += 1
    assert compared == len(grown) == len(list(golden.large.parameters()))


def test_baked_network_gives_the_reference_s_logits_and_loss(golden):
    golden.operator.bake(golden.large)
    with torch.no_grad():
        logits = golden.large(**golden.batch).logits
    golden.close(logits, golden.tensors["out/logits"])
    golden.close(golden.loss(), golden.tensors["out/loss_ligo"])


def test_gradient_of_every_coefficient_equals_the_reference(golden):
    golden.loss().backward()
    ours, theirs = golden.views(gradient=True), golden.under("grad")
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        golden.close(ours[name], gradient)


def test_five_steps_of_gradient_descent_equal_the_reference(golden):
    rate = float(golden.tensors["sgd5/lr"])
    optimizer = torch.optim.SGD(golden.operator.parameters(), lr=rate)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = golden.loss()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    losses.append(golden.loss().detach())
    golden.close(torch.stack(losses), golden.tensors["sgd5/loss"])
    ours = golden.views()
    for name, coefficient in golden.under("sgd5/coef").items():
        golden.close(ours[name], coefficient)
