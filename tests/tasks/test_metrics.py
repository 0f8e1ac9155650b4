import math

import pytest
import torch
from torch.nn import functional as F

from lightning_ligo.tasks.metrics import BitsPerByte


def test_bits_per_byte_of_tokens_equals_the_cross_entropy_in_bits_per_byte_of_text():
    torch.manual_seed(0)
    metric = BitsPerByte()
    logits, labels = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    for batch in range(3):
        nats = F.cross_entropy(logits[batch], labels[batch], reduction="sum")
        metric.update(nats, bytes=5 * 4)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten()) / math.log(2) / 4
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-6)


def test_updates_count_by_their_bytes_and_a_reset_forgets_them():
    metric = BitsPerByte()
    metric.update(torch.tensor(90 * math.log(2)), 10)
    metric.update(torch.tensor(10 * math.log(2)), 90)
    assert metric.compute().item() == pytest.approx(1.0)
    metric.reset()
    metric.update(torch.tensor(3 * math.log(2)), 1)
    assert metric.compute().item() == pytest.approx(3.0)


def test_a_checkpoint_holds_nothing_of_the_metric():
    assert not BitsPerByte().state_dict()
