"""Every Hugging Face family of the coverage is paired, proved and grown."""

import pytest
import torch

import lightning_ligo as ligo
from lightning_ligo.axes.proof import TOLERANCE
from networks import DEVICES, cast, measured, output, randomised
from recipes.benchmarks.families import FAMILIES

CHANGED = {"gemma2", "t5", "wav2vec2"}  # by the growth of a width

SINGLE = {"llama", "mistral", "qwen3", "mixtral"}  # norms, or experts, that are float32 at most


@pytest.mark.filterwarnings("ignore")  # transformers' own advice about kernels
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_proved_and_keeps_its_function_or_says_why_not(name, device):
    family = FAMILIES[name]
    torch.manual_seed(0)
    dtype, bound = (torch.float32, 1e-5) if name in SINGLE else (torch.float64, 1e-10)
    small, large = randomised(family.build("small"), dtype), family.build("large").to(dtype)
    small, large = small.to(device), large.to(device)
    inputs = cast(family.inputs(), dtype, device)
    plan = ligo.pair(small, large, **inputs)
    assert plan.axes and max(plan.proofs.values()) < TOLERANCE
    told = measured(plan, small, large, inputs)
    ligo.Operator(plan, small, "lemon").bake(large)
    before, after = output(small, inputs), output(large, inputs)
    change = (after - before).norm() / before.norm()
    assert told.kept != (name in CHANGED)
    assert change > 1e-4 if name in CHANGED else change < bound


def test_the_layers_of_t5_are_stacks_without_the_first_which_holds_the_positions():
    family = FAMILIES["t5"]
    plan = ligo.pair(family.build("small"), family.build("large"), **family.inputs())
    assert plan.stacks == {"encoder.block[1]": (1, 3), "decoder.block[1]": (1, 2)}
    rows = {row.pattern: row for row in plan.rows}
    stacked = rows["encoder.block[1].*.layer.1.DenseReluDense.wo.weight"]
    assert stacked.large_names == tuple(
        f"encoder.block.{layer}.layer.1.DenseReluDense.wo.weight" for layer in (1, 2, 3)
    )
    assert (
        rows["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].stack is None
    )
