"""What of a module is trained: everything, norms and biases, or low-rank additions.

Norms and biases: PERP (Zimmer et al., arXiv 2312.15230), well below 1% of most networks. Low-rank
additions: LoRA (Hu et al., arXiv 2106.09685), by the library peft, merged into the weights in the
end, so that the module has its own layers again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from torch import Tensor, nn

from spa_graph.errors import OptionError
from spa_graph.frontends.torch.reader import tied_names

Trained = Literal["all", "norms-and-biases", "lora"]


@contextmanager
def trainable(model: nn.Module, which: Trained, rank: int) -> Iterator[list[Tensor]]:
    """The parameters to train; afterwards `requires_grad` is as it was, and LoRA is merged.

    Raises:
        OptionError: there is no such choice or nothing to train, or peft is missing.
    """
    if which not in get_args(Trained):
        raise OptionError(f"train {which}: choose among {', '.join(get_args(Trained))}")
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        if which == "lora":
            with _lora(model, rank):
                yield _wanted(model, which)
        else:
            if which == "norms-and-biases":  # all vectors; in place of the names of layers
                for parameter in before:
                    parameter.requires_grad_(before[parameter] and parameter.ndim == 1)
            yield _wanted(model, which)
    finally:
        for parameter, own in before.items():
            parameter.requires_grad_(own)


def _wanted(model: nn.Module, which: Trained) -> list[Tensor]:
    found: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    if not found:
        raise OptionError(f"there is nothing to train ({which}): no such parameter requires_grad")
    return found


@contextmanager
def _lora(model: nn.Module, rank: int) -> Iterator[None]:
    """Low-rank additions to linear layers and 2-D convolutions, merged in the end."""
    if rank < 1:
        raise OptionError(f"rank must be at least 1, not {rank}")
    try:
        import peft
    except ModuleNotFoundError as error:
        raise OptionError("train lora needs peft: pip install 'spa-prune[lora]'") from error
    except ImportError as error:
        raise OptionError(f"train lora needs peft, which can't be imported: {error}") from error
    names = _layers(model)
    if not names:
        raise OptionError("train lora: there is no linear layer or 2-D convolution to add to")
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="|".join(map(re.escape, names))
    )
    tuner = peft.LoraModel(model, config, "default")
    try:
        yield
    finally:
        tuner.merge_and_unload()


def _layers(model: nn.Module) -> list[str]:
    """The layers that get additions: not those with tied weights, which are used otherwise too, nor
    those whose weights another module reads without calling them."""
    from transformers.pytorch_utils import Conv1D  # which peft needs anyway

    shared = {name for names in tied_names(model).values() if len(names) > 1 for name in names}
    read = {
        f"{name}.out_proj" if name else "out_proj"
        for name, module in model.named_modules()
        if type(module) is nn.MultiheadAttention
    }
    return [
        name
        for name, module in model.named_modules()
        if (
            isinstance(module, nn.Linear | Conv1D)
            or (isinstance(module, nn.Conv2d) and module.groups == 1)
        )
        and f"{name}.weight" not in shared
        and name not in read
    ]
