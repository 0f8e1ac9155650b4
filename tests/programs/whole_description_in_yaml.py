"""`to` with a whole description in YAML, in which an argument has a class_path too, is taken.

It is what a run needs whose small network has no description: a module of one's own, or a function
around from_pretrained.
"""

import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import yaml

from judge import say
from lightning_ligo.__main__ import main
from training import LINES, told


def gpt2(width):
    sizes = {"vocab_size": 256, "n_positions": 128, "n_embd": width, "n_layer": 2, "n_head": 2}
    config = {"class_path": "transformers.GPT2Config"}
    config["init_args"] = sizes | {"bos_token_id": None, "eos_token_id": None}
    return {"class_path": "transformers.GPT2LMHeadModel", "init_args": {"config": config}}


RUN = {
    "model": {"class_path": "LanguageModel", "init_args": {"network": gpt2(32)}},
    "data": {
        "class_path": "PythonSourceDataModule",
        "init_args": {"window": 32, "batch_size": 2, "validation_windows": 2},
    },
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 2,
        "limit_val_batches": 1,
        "logger": False,
        "enable_checkpointing": False,
        "callbacks": [
            {
                "class_path": "GrowthCallback",
                "init_args": {"method": "lemon", "growths": [{"step": 0, "to": gpt2(64)}]},
            }
        ],
    },
}
with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
    path = Path(folder, "run.yaml")
    path.write_text(yaml.safe_dump(RUN))
    main(["fit", "--config", str(path)])
grew = "at its start the function is kept"
say(any(grew in line for line in LINES), "told:", told())
