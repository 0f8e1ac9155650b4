import functools

import pytest
import torch

from lightning_ligo import GrowthCallback
from lightning_ligo.networks.description import build
from lightning_ligo.schedule import Growth
from lightning_ligo.trainer.checkpoint import check_record, rebuild, record_of, set_record, sizes
from lightning_ligo.trainer.slot import Slot
from runs import LARGE, MIDDLE, SMALL, Described, Plain, fit, net, plain

TO_LARGE = Growth(LARGE, step=1)


def checkpoint(size: int = 1, network: dict = LARGE, **changes) -> dict:
    module = plain()
    module.network = build(network)
    record = {"version": 1, "attribute": "network", "size": size, "networks": [None, LARGE]}
    record |= {"frozen": [], **changes}
    return {"state_dict": module.state_dict(), "lightning_ligo": record}


def plain_types(value) -> bool:
    if isinstance(value, dict):
        return type(value) is dict and all(map(plain_types, [*value, *value.values()]))
    if isinstance(value, list):
        return type(value) is list and all(map(plain_types, value))
    return type(value) in (str, int, float, bool, type(None))


def test_all_that_growth_writes_into_a_checkpoint_is_plain(tmp_path):
    run = fit(
        Described(SMALL), tmp_path, GrowthCallback([Growth(LARGE, step=8)], method="ligo", steps=2)
    )
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert plain_types(saved["lightning_ligo"]) and plain_types(saved["callbacks"])
    record = saved["lightning_ligo"]
    names = [name for name, _ in Described(LARGE).named_parameters()]
    (groups,) = record.pop("groups")
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert record == {
        "version": 1, "attribute": "network", "size": 1, "networks": [SMALL, LARGE], "frozen": [],
    }  # fmt: skip
    assert saved["hyper_parameters"] == {"network": LARGE}


def test_rebuilding_gives_the_module_the_network_of_the_checkpoint():
    module, held = plain(), checkpoint(frozen=["embed.weight"])
    torch.manual_seed(1)
    random = torch.get_rng_state()
    rebuild(module, held)
    assert torch.equal(random, torch.get_rng_state())
    module.load_state_dict(held["state_dict"])
    assert [n for n, p in module.network.named_parameters() if not p.requires_grad] == [
        "embed.weight"
    ]
    network = module.network
    rebuild(module, held)
    assert module.network is network


def test_what_is_rebuilt_has_the_precision_of_what_it_replaces():
    held = checkpoint()
    for tensor in held["state_dict"].values():
        tensor.data = tensor.data.double() / 3
    module = plain().double()
    rebuild(module, held)
    module.load_state_dict(held["state_dict"])
    weight = held["state_dict"]["network.embed.weight"]
    assert torch.equal(module.network.embed.weight, weight)


def test_a_checkpoint_without_a_record_changes_nothing():
    module = plain()
    network = module.network
    rebuild(module, {"state_dict": {}})
    assert module.network is network


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (lambda: checkpoint(version=2), "growth record of version 2, this package reads version"),
        (lambda: checkpoint(network=MIDDLE), "does not build the parameters that it holds; has"),
        (lambda: checkpoint(size=0, network=MIDDLE), "holds the small network 'network', from"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_rebuilt_from_is_refused(held, message):
    with pytest.raises(ValueError, match=message):
        rebuild(plain(), held())


def test_networks_of_equal_shapes_are_told_apart_by_their_descriptions():
    module = Described(SMALL)
    same = {**SMALL, "init_args": {**SMALL["init_args"], "classes": 3}}
    held = {"state_dict": module.state_dict(), **checkpoint(networks=[SMALL, same])}
    held["state_dict"] = module.state_dict()
    network = module.network
    rebuild(module, held)
    assert module.network is not network and module.hparams.network == same


def test_sizes_follow_from_one_another():
    growths = [Growth({"init_args": {"width": 16}}, step=1), Growth(LARGE, step=2)]
    assert sizes(SMALL, growths) == [SMALL, net(16, 1), LARGE]
    assert sizes(None, [TO_LARGE]) == [None, LARGE]


def test_a_record_is_of_this_plan():
    assert check_record({}, Slot(None, "network"), [TO_LARGE]) is None
    held = checkpoint()
    assert check_record(held, Slot(None, "network"), [TO_LARGE]) == held["lightning_ligo"]
    with pytest.raises(ValueError, match="grows 'network', this one grows 'net'"):
        check_record(held, Slot(None, "net"), [TO_LARGE])
    with pytest.raises(ValueError, match="after 1 growths, and this GrowthCallback has only 0"):
        check_record(held, Slot(None, "network"), [])
    with pytest.raises(ValueError, match=r"growth 1 made to .* and this GrowthCallback would make"):
        check_record(held, Slot(None, "network"), [Growth(MIDDLE, step=1)])


def test_a_record_is_written_after_the_modules_own_hook_and_only_once():
    class Hooked(Plain):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = checkpoint.get("mine", 0) + 1

    module = Hooked()
    assert record_of(module) is None
    for size in (0, 1):
        set_record(module, {"attribute": "network", "size": size, "networks": [None, LARGE]})
    assert record_of(module)["size"] == 1
    saved: dict = {"lightning_ligo": {"groups": []}}
    module.on_save_checkpoint(saved)
    assert saved["mine"] == 1 and saved["lightning_ligo"]["size"] == 1
    assert saved["lightning_ligo"]["groups"] == []
    assert not isinstance(module.on_save_checkpoint.args[2], functools.partial)
