"""neuralforecast: its modules are of pytorch_lightning, which a run cannot grow."""

import pytest

pytest.importorskip("neuralforecast")

import numpy as np
import pandas as pd
from neuralforecast import NeuralForecast
from neuralforecast.models import NHITS, PatchTST

from lightning_ligo import Growth, GrowthCallback

pytestmark = [pytest.mark.third_party, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(
    ("kind", "sizes", "larger"),
    [
        (NHITS, {"mlp_units": [[16, 16]] * 3}, {"mlp_units": [[32, 32]] * 3}),
        (PatchTST, {"hidden_size": 16, "n_heads": 2, "encoder_layers": 1}, {"hidden_size": 32}),
    ],
)
def test_it_is_refused_at_the_start_with_the_import_to_change(tmp_path, kind, sizes, larger):
    growth = GrowthCallback([Growth(hparams=larger, step=2)])
    model = kind(
        h=4, input_size=12, max_steps=4, batch_size=4, **sizes, callbacks=[growth], logger=False,
        accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False,
    )  # fmt: skip
    frame = pd.DataFrame({
        "unique_id": "one",
        "ds": pd.date_range("2020-01-01", periods=60),
        "y": 2 + np.sin(np.arange(60) / 3),
    })  # fmt: skip
    with pytest.raises(ValueError, match="Trainer is of the package pytorch_lightning") as error:
        NeuralForecast([model], "D").fit(frame)
    assert "write `import lightning.pytorch as pl`" in str(error.value)
