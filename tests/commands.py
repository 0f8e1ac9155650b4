"""Runs of the command line."""

from pathlib import Path

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


VIT = {
    "class_path": "timm.models.VisionTransformer",
    "init_args": {
        "img_size": 8,
        "patch_size": 4,
        "in_chans": 1,
        "num_classes": 10,
        "class_token": False,
        "global_pool": "avg",
        "embed_dim": 8,
        "depth": 1,
        "num_heads": 1,
    },
}


RUN = {
    "model": {"class_path": "ImageClassifier", "init_args": {"network": VIT}},
    "data": {"class_path": "DigitsDataModule", "init_args": {"batch_size": 200}},
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": "vit"}},
    },
}
