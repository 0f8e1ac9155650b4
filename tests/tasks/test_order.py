import torch
from torch.utils.data import DataLoader

from lightning_ligo.tasks.order import EpochOrder, generator


def numbers(*key):
    return torch.rand(4, generator=generator(*key)).tolist()


def test_a_key_gives_the_same_numbers_and_no_other_key_does():
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**40, 7)]
    drawn = {tuple(numbers(*key)) for key in keys}
    assert len(drawn) == len(keys)
    assert numbers(3, 1, 2) == numbers(3, 1, 2)


def test_every_item_comes_once_in_an_order_of_seed_and_epoch():
    order = EpochOrder(range(50), seed=0)
    first = list(order)
    assert sorted(first) == [(item, 0) for item in range(50)]
    assert list(order) == first == list(EpochOrder(range(50), seed=0))
    assert list(EpochOrder(range(50), seed=1)) != first
    order.set_epoch(2)
    assert sorted(order) == [(item, 2) for item in range(50)]
    assert [item for item, _ in order] != [item for item, _ in first]


def test_the_order_neither_reads_nor_moves_the_global_random_state():
    state = torch.get_rng_state()
    first = list(EpochOrder(range(50), seed=0))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    assert list(EpochOrder(range(50), seed=0)) == first


def test_a_loader_has_as_many_batches_as_the_items_fill():
    loader = DataLoader(list(range(10)), batch_size=4, sampler=EpochOrder(range(10), seed=0))
    assert len(loader) == 3
