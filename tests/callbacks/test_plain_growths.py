"""Growths may be given as they stand in a file: dicts, or the mappings and lists of OmegaConf."""

from collections import UserDict, UserList

import pytest
import torch

from lightning_ligo import Growth, GrowthCallback, Plateau, Rate
from runs import LARGE, MIDDLE, SMALL, Described, fit

GROWTHS = [
    {"to": MIDDLE, "step": 5},
    {"to": {"init_args": LARGE["init_args"]}, "step": 9, "rate": {"factor": 0.5}},
]


def strange(value):
    """The same data as mappings and sequences that are no dicts and no lists."""
    if isinstance(value, dict):
        return UserDict({key: strange(item) for key, item in value.items()})
    return UserList(map(strange, value)) if isinstance(value, list) else value


def of_omegaconf(growths):
    return pytest.importorskip("omegaconf").OmegaConf.create(growths)


def of_hydra(growths):
    """As hydra hands them over: it wraps the growths that it has made."""
    made = [{"_target_": "lightning_ligo.Growth", **growth} for growth in growths]
    return pytest.importorskip("hydra").utils.instantiate({"growths": made})["growths"]


@pytest.mark.parametrize("given", [list, strange, of_omegaconf, of_hydra])
def test_growths_as_plain_data_grow_a_network_that_is_saved_as_plain_data(tmp_path, given):
    module = Described(SMALL)
    growing = GrowthCallback(given(GROWTHS))
    run = fit(module, tmp_path, growing)
    assert module.network.embed.out_features == 24 and len(module.network.blocks) == 4
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["lightning_ligo"]["networks"] == [SMALL, MIDDLE, LARGE]
    assert [record["rate"]["factor"] for record in growing.state_dict()["records"]] == [1.0, 0.5]
    again = GrowthCallback([Growth(MIDDLE, step=5), Growth(LARGE, step=9, rate=Rate(0.5))])
    torch.manual_seed(0)
    fit(Described(SMALL), tmp_path, again, ckpt_path=tmp_path / "a.ckpt")


def test_the_rules_within_a_growth_may_be_dicts():
    rules = strange({"plateau": {"monitor": "val_loss", "patience": 2}, "rate": {"rewarm": 3}})
    growth = Growth(LARGE, **rules)
    assert growth == Growth(LARGE, plateau=Plateau("val_loss", 2), rate=Rate(rewarm=3))


def test_what_a_growth_does_not_have_is_refused():
    with pytest.raises(TypeError, match="fractoin"):
        GrowthCallback([{"to": LARGE, "fractoin": 0.4}])
    with pytest.raises(ValueError, match="patience must be >= 1"):
        GrowthCallback([{"to": LARGE, "plateau": {"monitor": "val_loss", "patience": 0}}])
