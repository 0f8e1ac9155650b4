import torch

from lightning_ligo.axes.dims import Sum, change_along, length, replaced, uses_of

FUSED = (3, Sum(((2, Sum(((5,), (1, 4)))), (5,))), 2)  # 3 x (2 x (5 + 1 x 4) + 5) x 2


def test_a_length_multiplies_factors_and_adds_segments():
    assert length(FUSED, int) == 3 * (2 * (5 + 4) + 5) * 2
    assert uses_of(replaced(FUSED, str)) == ["3", "2", "5", "1", "4", "5", "2"]


def test_a_change_reaches_every_place_of_a_leaf_and_no_other():
    tensor = torch.arange(length(FUSED, int))
    longer = change_along(
        tensor, 0, FUSED, int, {5: lambda x, dim: torch.cat([x, x.narrow(dim, 0, 1)], dim)}
    )
    assert len(longer) == 3 * (2 * (6 + 4) + 6) * 2
    first = tensor[: (2 * 9 + 5) * 2].view(-1, 2)
    expected = [*range(5), 0, *range(5, 14), 9, *range(14, 23), 18]
    assert torch.equal(longer[: len(longer) // 3].view(-1, 2), first[expected])
    assert change_along(tensor, 0, FUSED, int, {7: None}) is tensor
