"""The command `lightning-ligo plan`: show a growth without training."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence

from lightning_ligo.cli.parser import CommandParser, fit_words, show
from lightning_ligo.cli.planned import REAL, Planned, plan_pair
from lightning_ligo.cli.sources import NETWORKS, add_networks, described, read_settings
from lightning_ligo.methods.catalog import DEFAULT
from lightning_ligo.networks.libraries import check_extra

USAGE = """\
lightning-ligo plan --small NAME [--small.SETTING VALUE] [--weights FILE]
                           [--large NAME] [--large.SETTING VALUE]
                           [--method METHOD] [--override YAML] [--json]
       lightning-ligo plan --config FILE [options of lightning-ligo fit] [--json]"""

DESCRIPTION = """\
Show a growth without training: the axes and stacks that grow, those that stay and why, the reasons
why the function changes, and the cost of learning the operator. Nothing is written.

  lightning-ligo plan --small timm:swin_tiny_patch4_window7_224 \\
                      --large timm:swin_base_patch4_window7_224
  lightning-ligo plan --small hf:gpt2 --small.n_layer 3 --small.n_embd 192 --small.n_head 3 \\
                      --large hf:gpt2
  lightning-ligo plan --small hf:./bert-small --large.num_hidden_layers 12
  lightning-ligo plan --config recipes/digits_vit.yaml
"""

EPILOG = f"""\
{NETWORKS}

With --config all growths of the run are planned in order, on its own module and the first batch of
its own data. One device of this machine is used; loggers and other callbacks are left out. If the
setup of the data downloads something, it does so here too.

FLOPs are of matrix products and convolutions, forward and backward, for the batch that is shown.
Memory is the peak of weights, gradients, AdamW's state and activations.

Networks of more than {REAL // 10**6} million parameters are planned on the meta device: it takes
no memory, and no axis is proved.

--json prints {{"growths": [...]}}. Each growth has:
  small, large    descriptions of the networks (class_path, init_args), or the hyperparameters that
                  change (hparams); small may be null
  number, when    which growth of the run, and its trigger; null for two networks
  step            the optimizer step of the growth; null if the run decides it
  axes, stacks    axes that grow, and all stacks: name -> [small, large] length or depth
  parameters      small, large: number of parameters
  shared          heads of keys and values that were shared -> how many each becomes
  proofs          axis -> relative change of the output when it is permuted; null if not proved or
                  no proof is needed
  fixed           axis that cannot grow -> its length and the reason
  change          change: largest relative change of an output by the growth of a copy with noise
                  on its weights, or of the trained weights, if there are any; "inf" if it is not
                  finite, null if it was not measured; place: the first module whose
                  output differs; why: why it, or an output, was not measured
  notes           what may have changed it
  tried           operations without a rule, which were tried by permuting their inputs
  cost            coefficients, steps and method of the operator; batch: shapes of its tensors;
                  flops: learning (in all), learning_step, generating_step (its part that makes the
                  weights), training_step (of the large network); training_steps: learning in
                  training steps of the large network; bytes: learning, training; or null
  uncounted       why cost is null

The exit status is 1 if a growth is not possible, with the reason, and 2 for a wrong option.
"""


def plan(words: Sequence[str]) -> None:
    """Run `lightning-ligo plan` with these arguments."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    own = ("small", "large", "weights", "method", "override")
    if options.config and any(getattr(options, name) for name in own):
        parser.error("--config brings the networks and the method; leave the other options out, or "
                     "use options of fit, such as --trainer.callbacks.method")  # fmt: skip
    if not options.config and not options.small:
        parser.error("give --small and --large, or --config")
    with parser.refusing(), contextlib.redirect_stdout(sys.stderr):  # only the plan goes to stdout
        if options.config:
            check_extra("--config")
            from lightning_ligo.cli.run import plan_configuration

            planned = plan_configuration(fit_words(options.config, rest))
        else:
            settings = read_settings(parser, rest, ("small", "large", "weights"))
            if not options.large and not settings["large"]:
                parser.error("give --large, or what is larger, such as --large.depth 12")
            small, large = described(options, settings)
            planned = [plan_pair(small, large, options.method or DEFAULT, options.override)]
    if options.json:
        show(json.dumps({"growths": [each.to_dict() for each in planned]}, indent=2))
    else:
        pair = f"{options.small} -> {options.large or 'the same, larger'}"
        show("\n\n".join(f"{_title(each) or pair}\n\n{each}" for each in planned))


def _parser() -> CommandParser:
    parser = CommandParser("plan", usage=USAGE, description=DESCRIPTION, epilog=EPILOG)
    add_networks(parser)
    parser.add_config("configuration of a run, as for fit")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    return parser


def _title(planned: Planned) -> str | None:
    """Return which growth of a run it is, and when."""
    if planned.number is None:
        return None
    known = planned.step is not None and planned.when != f"step {planned.step}"
    step = f" (step {planned.step})" if known else ""
    return f"Growth {planned.number}, at {planned.when}{step}"
