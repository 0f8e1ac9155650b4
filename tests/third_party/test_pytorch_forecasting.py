"""pytorch-forecasting: the LightningModule is the network, grown from its hyperparameters."""

import pytest

pytest.importorskip("pytorch_forecasting")

import numpy as np
import pandas as pd
from projects import check, growing, same, sizes
from pytorch_forecasting import DeepAR, NHiTS, TimeSeriesDataSet
from pytorch_forecasting.metrics import MAE, NormalDistributionLoss

from lightning_ligo import Growth

pytestmark = [pytest.mark.third_party, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def series() -> TimeSeriesDataSet:
    steps = np.arange(60)
    waves = [2 + np.sin(steps / length) for length in (2.0, 3.0, 5.0, 7.0)]
    frames = [
        pd.DataFrame({"step": steps, "value": wave, "group": str(number)})
        for number, wave in enumerate(waves)
    ]
    frame = pd.concat(frames, ignore_index=True)
    return TimeSeriesDataSet(
        frame, time_idx="step", target="value", group_ids=["group"], max_encoder_length=12,
        max_prediction_length=4, time_varying_unknown_reals=["value"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "small", "large"),
    [
        (NHiTS, {"hidden_size": 16, "loss": MAE()}, {"hidden_size": 32}),
        (NHiTS, {"hidden_size": 16, "loss": MAE()}, {"n_blocks": [2, 2, 2]}),
        (DeepAR, {"hidden_size": 8, "loss": NormalDistributionLoss()}, {"hidden_size": 16}),
        (DeepAR, {"rnn_layers": 2, "loss": NormalDistributionLoss()}, {"rnn_layers": 3}),
    ],
)
def test_it_grows_and_is_opened_and_predicts(tmp_path, series, kind, small, large):
    module = kind.from_dataset(series, learning_rate=1e-2, log_interval=-1, **small)
    loader = series.to_dataloader(batch_size=32, num_workers=0)
    run = growing(tmp_path, [Growth(hparams=large, fraction=0.4)])
    run.fit(module, loader, loader)
    fresh = kind.from_dataset(series, log_interval=-1, **{**small, **large})
    check(run, module, sizes(fresh))
    run.test(module, loader, ckpt_path="best", weights_only=False)  # it saves encoders
    best = kind.load_from_checkpoint(run.checkpoint_callback.best_model_path, weights_only=False)
    assert same(best, module) and large.items() <= best.hparams.items()
    assert best.predict(loader).shape[1] == 4
