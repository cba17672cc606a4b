"""Transformers by Hugging Face Optimum (`optimum-cli export onnx`).

    pip install -r benchmarks/frameworks/requirements-optimum.txt
    python benchmarks/frameworks/export_optimum.py FOLDER

Weights are random: trained ones can't be had offline.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import exporting
import torch
import transformers
from optimum.exporters.onnx import main_export
from transformers import PretrainedConfig, PreTrainedModel

Build = Callable[[PretrainedConfig], PreTrainedModel]
Configure = Callable[[bool], PretrainedConfig]


def distilbert(small: bool) -> PretrainedConfig:
    sizes = {"vocab_size": 100, "max_position_embeddings": 64, "dim": 32, "hidden_dim": 64,
             "n_heads": 4, "n_layers": 2}  # fmt: skip
    return transformers.DistilBertConfig(**sizes if small else {})


def gpt2(small: bool) -> PretrainedConfig:
    sizes = {"vocab_size": 100, "n_positions": 64, "n_embd": 32, "n_head": 4, "n_layer": 2}
    return transformers.GPT2Config(**sizes if small else {"n_layer": 6})  # of DistilGPT2


def t5(small: bool) -> PretrainedConfig:
    sizes = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
             "num_heads": 4}  # fmt: skip
    return transformers.T5Config(decoder_start_token_id=0, **sizes if small else {})


def vit(small: bool) -> PretrainedConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 64, "image_size": 32, "patch_size": 8}  # fmt: skip
    tiny = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    return transformers.ViTConfig(**sizes if small else tiny)


def export(
    configure: Configure, build: Build, task: str, path: Path, small: bool,
    file: str = "model.onnx", merge: bool = True,
) -> None:  # fmt: skip
    """Save a model as its users do, and export it from there.

    Args:
        file: which of the files that Optimum writes.
        merge: whether it makes one file of a decoder with and without caches, by an If.
    """
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        saved, exported = Path(folder) / "saved", Path(folder) / "exported"
        build(configure(small)).eval().save_pretrained(saved)
        main_export(str(saved), exported, task, local_files_only=True, no_post_process=not merge)
        shutil.move(exported / file, path)


NETWORKS: dict[str, exporting.Export] = {
    "optimum-distilbert": partial(
        export, distilbert, transformers.DistilBertForSequenceClassification, "text-classification"
    ),
    "optimum-vit-tiny": partial(
        export, vit, transformers.ViTForImageClassification, "image-classification"
    ),
    "optimum-gpt2": partial(export, gpt2, transformers.GPT2LMHeadModel, "text-generation"),
    "optimum-gpt2-with-past": partial(
        export, gpt2, transformers.GPT2LMHeadModel, "text-generation-with-past"
    ),
    "optimum-t5-encoder": partial(
        export, t5, transformers.T5ForConditionalGeneration, "text2text-generation-with-past",
        file="encoder_model.onnx",
    ),
    "optimum-t5-decoder": partial(
        export, t5, transformers.T5ForConditionalGeneration, "text2text-generation-with-past",
        file="decoder_model_merged.onnx",
    ),
    "optimum-t5-decoder-with-past": partial(
        export, t5, transformers.T5ForConditionalGeneration, "text2text-generation-with-past",
        file="decoder_with_past_model.onnx", merge=False,
    ),
}  # fmt: skip

if __name__ == "__main__":
    exporting.main(
        "Hugging Face Optimum", NETWORKS, ["optimum-onnx", "transformers", "torch", "onnx"]
    )
