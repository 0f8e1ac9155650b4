"""The command `lightning-ligo grow`: grow trained weights, or a checkpoint between two runs."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_ligo.cli.growing import Request, grow_weights
from lightning_ligo.cli.parser import CommandParser, fit_words
from lightning_ligo.cli.sources import NETWORKS, add_networks, described, read_settings
from lightning_ligo.methods.catalog import DEFAULT, method_named
from lightning_ligo.networks.libraries import check_extra
from lightning_ligo.operator.measure import Change

USAGE = """\
lightning-ligo grow --small NAME [--weights FILE] [--large NAME] [--large.SETTING VALUE]
                           --out FILE|FOLDER [--method METHOD] [--dtype DTYPE]
                           [--data text|images --data.OPTION VALUE] [--steps N]
       lightning-ligo grow --config FILE --ckpt_path FILE --out FILE [options of fit]"""

DESCRIPTION = """\
Grow the trained weights of a network into those of a larger one, which others load:

  lightning-ligo grow --small hf:./bert-small --large.num_hidden_layers 12 \\
                      --large.hidden_size 768 --out bert-grown
  lightning-ligo grow --small timm:deit_small_patch16_224 --weights deit_small.safetensors \\
                      --large timm:deit_base_patch16_224 --out deit_base.safetensors
  lightning-ligo grow --small hf:./gpt2 --large.n_layer 24 --method ligo \\
                      --data text --data.files 'corpus/**/*.txt' --steps 100 --out gpt2-grown

Or grow a checkpoint between two runs:

  lightning-ligo grow --config recipes/digits_vit.yaml --out grown.ckpt \\
                      --ckpt_path runs/digits_vit/version_0/checkpoints/last.ckpt
  lightning-ligo fit --config recipes/digits_vit.yaml --ckpt_path grown.ckpt
"""

EPILOG = f"""\
{NETWORKS}

What is written is told by the name of --out: .safetensors, .pt, .pth or .bin is a state dict, for
timm.create_model(checkpoint_path=...) and load_state_dict; a name without a suffix is a folder, for
from_pretrained of transformers, with the tokenizer of the small network; .ckpt is a weights-only
checkpoint of the module, for load_from_checkpoint, and is grown from one. The growth is described
in growth.json and in the model card, or in NAME.growth.json and NAME.growth.md beside a file.

Tensors are read and written one layer at a time. How much the outputs change is measured on the
first batch of --data, or on a small random one.

A method that learns needs --data: text (--data.files, --data.window, --data.batch_size, and the
other options of TextDataModule; the tokenizer beside the small network is used) or images
(--data.folder, and the other options of ImageFolderDataModule).

With --config and --ckpt_path the run's next growth is performed now, regardless of its trigger. The
optimizer's state, averages and the schedulers' state grow along, and the state of all other
callbacks is copied. The resumed run continues at the step of the checkpoint: give a run that has
ended more epochs (--trainer.max_epochs) and a schedule that covers them. One device is used.

The exit status is 1 if the growth is not possible, with the reason; nothing is written then.
"""

DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}


def grow_command(words: Sequence[str]) -> None:
    """Run `lightning-ligo grow` with these arguments."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    if bool(options.config) == bool(options.small):
        parser.error("give --small, or --config and --ckpt_path")
    if options.config and not options.ckpt_path:
        parser.error("give the checkpoint of the run: --ckpt_path FILE")
    if options.small:
        names = ("small", "large", "weights", "data")
        settings = read_settings(parser, rest, names)
        if not options.large and not settings["large"]:
            parser.error("give --large, or what is larger, such as --large.depth 12")
        with parser.refusing((ValueError, FileExistsError, FloatingPointError)):
            _grow_weights(options, settings)
        return
    check_extra("--config")
    from lightning_ligo.cli.run import grow_configuration

    rest += ["--data", options.data] if options.data else []
    run = fit_words(options.config, ["--ckpt_path", options.ckpt_path, *rest])
    with parser.refusing((ValueError, FileExistsError)):
        record = grow_configuration(run, str(options.out))
    small, large = (record["parameters"][name] for name in ("small", "large"))
    print(f"{options.out}: {small:,} -> {large:,} parameters, at step {record['step']}")


def _grow_weights(options: argparse.Namespace, settings: dict[str, dict[str, Any]]) -> None:
    method = method_named(options.method or DEFAULT)
    small, large = described(options, settings)
    data = None
    if options.data or settings["data"]:
        check_extra("--data")
        from lightning_ligo.cli.learning import learning

        given = settings["data"], small, method, options.steps, options.learning_rate
        data = learning(options.data, *given)
    with contextlib.redirect_stdout(sys.stderr):
        record = grow_weights(
            Request(
                small, large, options.out, method, DTYPES.get(options.dtype), options.seed,
                options.override, data,
                Path(options.small) if options.small.endswith(".ckpt") else None,
            )
        )  # fmt: skip
    count = record["plan"]["parameters"]
    change = Change.from_dict(record["change"])
    print(
        f"{options.out}: {count['small']:,} -> {count['large']:,} parameters by {method.name}, in "
        f"{record['dtype']}; {change.sentence}"
    )


def _parser() -> CommandParser:
    parser = CommandParser("grow", usage=USAGE, description=DESCRIPTION, epilog=EPILOG)
    add_networks(parser)
    parser.add_argument("--out", metavar="PATH", type=Path, required=True,
                        help="what is written; must not exist yet")  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="(default: that of the small weights)")
    parser.add_argument("--seed", metavar="N", type=int, default=0,
                        help="of random parts (default: 0)")  # fmt: skip
    parser.add_argument("--data", metavar="KIND", help="text or images, to learn and measure on")
    own = "of learning (default: the method's)"
    parser.add_argument("--steps", metavar="N", type=int, help=own)
    parser.add_argument("--learning_rate", metavar="RATE", type=float, help=own)
    parser.add_config("configuration of the run, as for fit")
    parser.add_argument("--ckpt_path", metavar="FILE", help="checkpoint of the run")
    return parser
