"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from spa_graph.cli.network import NetworkType
from spa_graph.cli.parameters import Bytes, Choices, InputShape, RoundTo
from spa_graph.coupling.structures import KINDS
from spa_graph.passes.importance import AGGREGATES, CRITERIA, NORMALIZERS
from spa_graph.passes.options import METHODS

LATENCY_SECONDS = 2.0
MOST_THREADS = 256


def together(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def a_file(_ctx: Any, _param: Any, incomplete: str) -> list[CompletionItem]:
    """What completes an option that may be a file, but needn't."""
    return [CompletionItem(incomplete, type="file")]


model = click.argument("model", type=NetworkType())
input_shape_option = click.option(
    "--input-shape", "input_shapes", multiple=True, type=InputShape(),
    help="Sizes for an input with dynamic axes, where the guess does not fit, or is not what the "
    "network is used at.",
)  # fmt: skip
answer_options = together(
    click.option("--json", "as_json", is_flag=True, help="Print everything as JSON."),
    click.option("--quiet", is_flag=True, help="No progress and no table."),
)  # fmt: skip
conditions_options = together(
    click.option("--provider", default="cpu", show_default=True,
                 help="What latency is measured on: an execution provider of the installed "
                 "onnxruntime: cpu, cuda, tensorrt, dml, coreml, openvino, ..."),
    click.option("--threads", type=click.IntRange(0, MOST_THREADS), default=0,
                 show_default="all cores", help="Of a session."),
    click.option("--batch", type=click.IntRange(1),
                 help="Samples per run, if the batch is dynamic."),
)  # fmt: skip
analysis_options = together(
    click.option("--exclude", multiple=True, metavar="PATTERN",
                 help="Leave weights alone: a glob of weight or operator names, or a type."),
    click.option("--exact", is_flag=True,
                 help="Prune only channels whose removal equals zeroing their weights."),
    input_shape_option,
)  # fmt: skip
block_options = together(
    click.option("--attention", type=click.Choice(["heads", "head-dim"]), default="heads",
                 show_default=True, help="Prune whole heads, or the same elements of each."),
    click.option("--groups", type=click.Choice(["groups", "within"]), default="groups",
                 show_default=True,
                 help="Prune whole groups of a convolution, or the same channels of each."),
)  # fmt: skip
data_options = together(
    click.option("--calibrate", metavar="DATA", shell_complete=a_file,
                 help="Refit the weights that are left on samples: a .npz or .npy file, a folder "
                 "of images, package.module:function, or `data-free` to make them up, or "
                 "`data-free:matched` to match BatchNormalizations (needs torch)."),
    click.option("--samples", type=click.IntRange(1),
                 help="Use at most so many.  [default: 256 to 1024, more for small networks]"),
    click.option("--preprocess", metavar="STEPS",
                 help="How images become inputs: imagenet, or resize=256,crop=224,scale=1/255,..."),
    click.option("--memory-limit", type=Bytes(), default=4 << 30, show_default="4GB",
                 help="Statistics and features beyond this wait on disk."),
)  # fmt: skip
calibration_options = together(
    data_options,
    click.option("--reconstruct", type=click.Choice(METHODS),
                 help="How to refit [default: ls with --calibrate, none by random tokens]: means "
                 "(bias), means and variances (bn), least squares (ls), the paper's sweep "
                 "(obspa)."),
)  # fmt: skip
gradient_options = together(
    click.option("--data", metavar="FILE", shell_complete=a_file,
                 help="For criteria that need gradients, and for --finetune of prune: a .npz with "
                 "an array for each input, by its name, and one more for the targets."),
    click.option("--loss", metavar="NAME",
                 help="Of the outputs and targets: cross-entropy (of logits), nll (of "
                 "probabilities), mse, l1, bce."),
)  # fmt: skip
finetune_options = together(
    click.option("--finetune", type=click.IntRange(1), metavar="EPOCHS",
                 help="Train the pruned network on --data, in torch: AdamW with a cosine; --loss "
                 "is cross-entropy by default."),
    click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=1e-3,
                 show_default=True, help="Of --finetune, at its beginning."),
    click.option("--teacher", is_flag=True,
                 help="Learn from the unpruned network's outputs as well (distillation)."),
)  # fmt: skip
seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="Of every random choice."
)
criterion_option = click.option(
    "--criterion", type=click.Choice(sorted(CRITERIA)),
    help="What makes a channel important [default: l1; with --calibrate obspa; with --data "
    "taylor].",
)  # fmt: skip
ranking_options = together(
    click.option(
        "--allocation",
        type=click.Choice(["global", "distortion"]),
        help="Rank the channels of all groups together, or distort the outputs least, as measured "
        "group by group [default: global; with --calibrate distortion].",
    ),
    click.option(
        "--aggregate",
        type=click.Choice(sorted(AGGREGATES)),
        default="mean",
        show_default=True,
        help="How a group's parameters become one importance.",
    ),
    click.option(
        "--normalize",
        type=click.Choice(sorted(NORMALIZERS)),
        default="mean",
        show_default=True,
        help="How groups are made comparable.",
    ),
    click.option(
        "--min-channels",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Keep at least this many channels in every group.",
    ),
    click.option(
        "--round-to",
        type=RoundTo(),
        default="auto",
        show_default=True,
        help="Kept channel counts are multiples of this; auto: of 8, less in small groups.",
    ),
    click.option(
        "--scope",
        type=Choices(KINDS),
        default=(),
        help="What to prune [default: all but the residual width of pre-norm transformers, "
        "unless the budget can't be met without it].",
    ),
    seed_option,
)
pruning_options = together(
    ranking_options, calibration_options, gradient_options, block_options, analysis_options
)
html_option = click.option(
    "--html", "html", type=click.Path(path_type=Path),
    help="Write what was done as a page with pictures; needs spa-prune[report].",
)  # fmt: skip
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace files that exist.")
picture_option = click.option(
    "--picture", type=click.Path(path_type=Path),
    help="Draw it, too: a .svg, .png or .pdf file.",
)  # fmt: skip
output_options = together(
    click.option("-o", "--output", type=click.Path(path_type=Path),
                 help="The file to write [default: MODEL.pruned.onnx beside the input]."),
    click.option("--report", "report_path", type=click.Path(path_type=Path),
                 help="Write what was done as JSON."),
    html_option,
    overwrite_option,
    click.option("--dry-run", is_flag=True, help="Do everything but write files."),
    answer_options,
    click.option("--latency-seconds", type=click.FloatRange(0), default=LATENCY_SECONDS,
                 show_default=True, help="How long to measure latency; 0 skips it."),
)  # fmt: skip
