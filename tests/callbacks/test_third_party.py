"""A module of another project, GluonTS's PatchTST, grows as it is by the callback alone."""

import json

import pytest
import torch
from gluonts.torch.model.patch_tst.lightning_module import PatchTSTLightningModule
from gluonts.torch.model.patch_tst.module import PatchTSTModel
from torch.utils.data import DataLoader

from lightning_ligo import Growth, GrowthCallback, describe
from runs import trainer

CONTEXT, AHEAD = 16, 4
SHAPE = {
    "context_length": CONTEXT, "prediction_length": AHEAD, "patch_len": 4, "stride": 4,
    "padding_patch": "end", "num_feat_dynamic_real": 0, "scaling": "mean", "dropout": 0.1,
    "activation": "relu", "norm_first": False,
}  # fmt: skip
SMALL = {**SHAPE, "d_model": 16, "nhead": 2, "dim_feedforward": 32, "num_encoder_layers": 2}
LARGE = {**SHAPE, "d_model": 32, "nhead": 4, "dim_feedforward": 64, "num_encoder_layers": 4}


def series() -> DataLoader:
    """Sines of several lengths, cut where the forecast begins, as GluonTS batches them."""
    waves = 2 + torch.sin(torch.arange(CONTEXT + AHEAD) / torch.arange(2.0, 26.0)[:, None])
    items = [
        {
            "past_target": wave[:CONTEXT], "past_observed_values": torch.ones(CONTEXT),
            "future_target": wave[CONTEXT:], "future_observed_values": torch.ones(AHEAD),
        }
        for wave in waves
    ]  # fmt: skip
    return DataLoader(items, 8)


@pytest.mark.parametrize("method", ["ligo", "lemon"])
def test_it_grows_in_width_and_depth_and_learns_on(tmp_path, method):
    torch.manual_seed(0)
    module = PatchTSTLightningModule(SMALL, lr=1e-3)
    settings = {"steps": 5} if method == "ligo" else {}
    growth = GrowthCallback(
        [Growth(describe(PatchTSTModel, **LARGE), fraction=0.5)],
        attribute="model", method=method, **settings,
    )  # fmt: skip
    run = trainer(tmp_path, growth, epochs=8)
    run.fit(module, series(), series())
    fresh = PatchTSTModel(**LARGE)
    assert [(n, p.shape) for n, p in module.model.named_parameters()] == [
        (n, p.shape) for n, p in fresh.named_parameters()
    ]
    assert run.global_step == 24 and len(run.optimizers[0].param_groups[0]["params"]) == len(
        list(fresh.parameters())
    )
    (grown,) = json.loads((tmp_path / "growth_report.json").read_text())["growths"]
    assert grown["step"] == 12 and grown["axes"]["embed"] == [16, 32]
    assert grown["metric"]["final"] < grown["metric"]["after"]
