"""Small random transformers, as the transformers library builds them.

One row per kind of network: the configuration that the library's own classes take, cut down to two
or three layers of width 64, and what goes in. Weights are the library's own initial ones. Nothing
is downloaded; only building needs torch and transformers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spa_graph.models_zoo.architectures import SETTLE_BATCH, Built, import_torchvision
from spa_graph.models_zoo.catalogue import Entry

if TYPE_CHECKING:
    import torch
    from torch import nn

Inputs = Callable[[], "dict[str, torch.Tensor]"]

WORDS = 500  # vocabulary
LENGTH = 16  # tokens
IMAGE = 64  # pixels
SAMPLES = 800  # of audio

SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDTHS: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 160,
}
TEXT: dict[str, Any] = {**WIDTHS, "vocab_size": WORDS, "max_position_embeddings": 128, **SPECIAL}
SHARED: dict[str, Any] = {**TEXT, "num_key_value_heads": 2}  # query heads share keys and values
GROUPED: dict[str, Any] = {**SHARED, "head_dim": 16}
AUDIO: dict[str, Any] = {
    **WIDTHS,
    "conv_dim": (32, 32, 48),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 40,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}


def _import_transformers() -> Any:
    """Import transformers, also beside a torchvision whose compiled library doesn't load."""
    with contextlib.suppress(ImportError):
        import_torchvision()
    import transformers

    return transformers


def _tokens(name: str = "input_ids") -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.randint(3, WORDS, (SETTLE_BATCH, LENGTH))}


def _masked() -> dict[str, torch.Tensor]:
    """Tokens, and which of them are no padding."""
    import torch

    mask = torch.ones(SETTLE_BATCH, LENGTH, dtype=torch.int64)
    mask[1::2, LENGTH - 4 :] = 0
    return {**_tokens(), "attention_mask": mask}


def _pair() -> dict[str, torch.Tensor]:
    """What an encoder reads and what the decoder has said so far."""
    import torch

    return {**_masked(), "decoder_input_ids": torch.randint(3, WORDS, (SETTLE_BATCH, 12))}


def _image() -> dict[str, torch.Tensor]:
    import torch

    return {"pixel_values": torch.randn(SETTLE_BATCH, 3, IMAGE, IMAGE)}


def _image_and_text() -> dict[str, torch.Tensor]:
    return {**_masked(), **_image()}


def _audio() -> dict[str, torch.Tensor]:
    import torch

    return {"input_values": torch.randn(SETTLE_BATCH, SAMPLES)}


def _speech() -> dict[str, torch.Tensor]:
    """A spectrogram and what the decoder has said so far."""
    import torch

    decoder = torch.randint(3, WORDS, (SETTLE_BATCH, 12))
    return {
        "input_features": torch.randn(SETTLE_BATCH, 20, 100),
        "decoder_input_ids": decoder,
        "decoder_attention_mask": torch.ones_like(decoder),
    }


@dataclass(frozen=True)
class Transformer:
    """One network of the library.

    Attributes:
        model_type: how the library calls the configuration.
        model: the class of the network; for causal decoders the one with the language head.
        options: of the configuration.
        inputs: makes the example inputs by name.
        outputs: the fields of what the network returns that become outputs.
        attention: how attention is computed; None leaves it to the library, as most users do.
        experts: how the experts of a mixture are computed, likewise.
        fixed: further arguments of the forward call.
        parts: configurations inside the configuration.
    """

    name: str
    model_type: str
    model: str
    options: dict[str, Any]
    inputs: Inputs = _masked
    outputs: tuple[str, ...] = ("logits",)
    attention: str | None = None
    experts: str | None = None
    fixed: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def build(self) -> Built:
        """The network in eval mode, example inputs, and their names."""
        transformers = _import_transformers()
        parts = {key: transformers.AutoConfig.for_model(**own) for key, own in self.parts.items()}
        config = transformers.AutoConfig.for_model(self.model_type, **self.options, **parts)
        if self.attention:
            config._attn_implementation = self.attention
        if self.experts:
            config._experts_implementation = self.experts
        network = getattr(transformers, self.model)(config)
        inputs = self.inputs()
        module = _wrap(network, tuple(inputs), self.outputs, self.fixed)
        return module, tuple(inputs.values()), tuple(inputs)


def _wrap(
    network: nn.Module, names: tuple[str, ...], outputs: tuple[str, ...], fixed: dict[str, Any]
) -> nn.Module:
    """A module that takes tensors by position and returns tensors."""
    from torch import nn

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, first: Any, second: Any = None, third: Any = None) -> Any:
            given = dict(zip(names, (first, second, third), strict=False))
            found = self.network(**given, **fixed)
            results = tuple(found[name] for name in outputs)
            return results[0] if len(results) == 1 else results

    return Plain().eval()


def _encoder(name: str, model: str, model_type: str = "", **options: Any) -> Transformer:
    attention = options.pop("attention", None)
    head = {"num_labels": 5} if model.endswith("Classification") else {}
    chosen = {**TEXT, **head, **options}
    return Transformer(name, model_type or name, model, chosen, attention=attention)


def _decoder(name: str, model: str, model_type: str = "", **options: Any) -> Transformer:
    how = {key: options.pop(key, None) for key in ("attention", "experts")}
    fixed = {"use_cache": False}
    return Transformer(name, model_type or name, model, options, fixed=fixed, **how)


_ENCODERS = (
    _encoder("bert", "BertForMaskedLM"),
    _encoder("bert_eager", "BertForSequenceClassification", "bert", attention="eager"),
    _encoder("roberta", "RobertaForSequenceClassification"),
    _encoder(
        "deberta_v2", "DebertaV2ForSequenceClassification", "deberta-v2", attention="eager",
        relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8,
        norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False,
    ),
    _encoder("electra", "ElectraForSequenceClassification", embedding_size=32),
    _encoder("albert", "AlbertForMaskedLM", embedding_size=32),
    Transformer(
        "distilbert", "distilbert", "DistilBertForSequenceClassification",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 160, "vocab_size": WORDS},
    ),
)  # fmt: skip

_DECODERS = (
    _decoder(
        "gpt2", "GPT2LMHeadModel", n_embd=64, n_layer=2, n_head=4, n_inner=160, vocab_size=WORDS,
        n_positions=128, **SPECIAL,
    ),
    _decoder(
        "opt", "OPTForCausalLM", hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        ffn_dim=160, vocab_size=WORDS, max_position_embeddings=128, word_embed_proj_dim=48,
        **SPECIAL,
    ),
    _decoder("bloom", "BloomForCausalLM", hidden_size=64, n_layer=2, n_head=4, vocab_size=WORDS),
    _decoder("llama", "LlamaForCausalLM", **GROUPED),
    _decoder("llama_eager", "LlamaForCausalLM", "llama", attention="eager", **GROUPED),
    _decoder("mistral", "MistralForCausalLM", **GROUPED, sliding_window=8),
    _decoder("qwen2", "Qwen2ForCausalLM", **SHARED),
    _decoder("qwen3", "Qwen3ForCausalLM", **GROUPED),
    _decoder("gemma", "GemmaForCausalLM", **{**GROUPED, "num_key_value_heads": 1}),
    _decoder("gemma2", "Gemma2ForCausalLM", attention="eager", **GROUPED, sliding_window=8),
    _decoder("gemma3", "Gemma3ForCausalLM", "gemma3_text", **GROUPED, sliding_window=8),
    _decoder("phi", "PhiForCausalLM", **TEXT),
    _decoder("phi3", "Phi3ForCausalLM", **SHARED),
    _decoder(
        "falcon", "FalconForCausalLM", hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        ffn_hidden_size=160, vocab_size=WORDS, multi_query=True, parallel_attn=True, alibi=False,
        new_decoder_architecture=False, bias=False,
    ),
    _decoder("gpt_neox", "GPTNeoXForCausalLM", **TEXT),
    _decoder(
        "mpt", "MptForCausalLM", d_model=64, n_layers=2, n_heads=4, expansion_ratio=2,
        vocab_size=WORDS, max_seq_len=128,
    ),
    _decoder(
        "mixtral", "MixtralForCausalLM", **GROUPED, num_local_experts=4, num_experts_per_tok=2,
        experts="batched_mm",
    ),
    _decoder(
        "qwen2_moe", "Qwen2MoeForCausalLM", **SHARED, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=48, shared_expert_intermediate_size=96,
        experts="batched_mm",
    ),
    Transformer(
        "mamba", "mamba", "MambaForCausalLM",
        {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "vocab_size": WORDS},
        inputs=_tokens, fixed={"use_cache": False},
    ),
)  # fmt: skip

_TWO_TOWERS = (
    Transformer(
        "t5", "t5", "T5ForConditionalGeneration",
        {"d_model": 64, "d_kv": 16, "d_ff": 160, "num_layers": 2, "num_heads": 4,
         "vocab_size": WORDS, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        inputs=_pair, fixed={"use_cache": False},
    ),
    Transformer(
        "bart", "bart", "BartForConditionalGeneration",
        {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 160, "decoder_ffn_dim": 160,
         "vocab_size": WORDS, "max_position_embeddings": 128, **SPECIAL},
        inputs=_pair, fixed={"use_cache": False},
    ),
    Transformer(
        "whisper", "whisper", "WhisperForConditionalGeneration",
        {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 160, "decoder_ffn_dim": 160,
         "vocab_size": WORDS, "num_mel_bins": 20, "max_source_positions": 50,
         "max_target_positions": 64, "decoder_start_token_id": 1, **SPECIAL},
        inputs=_speech, fixed={"use_cache": False},
    ),
)  # fmt: skip

_TOWER: dict[str, Any] = {"projection_dim": 48, **WIDTHS}
_SENSES = (
    Transformer(
        "vit", "vit", "ViTForImageClassification",
        {**WIDTHS, "image_size": IMAGE, "patch_size": 16, "num_labels": 10}, inputs=_image,
    ),
    Transformer(
        "swin", "swin", "SwinForImageClassification",
        {"image_size": IMAGE, "patch_size": 4, "embed_dim": 32, "depths": [2, 2],
         "num_heads": [2, 4], "window_size": 4, "num_labels": 10}, inputs=_image,
        attention="eager",
    ),
    Transformer(
        "segformer", "segformer", "SegformerForSemanticSegmentation",
        {"depths": [1, 2, 1, 1], "hidden_sizes": [16, 32, 48, 64], "num_attention_heads":
         [1, 2, 3, 4], "decoder_hidden_size": 64, "num_labels": 10}, inputs=_image,
        attention="eager",
    ),
    Transformer(
        "detr", "detr", "DetrForObjectDetection",
        {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 160, "decoder_ffn_dim": 160,
         "num_queries": 10, "num_labels": 5, "use_timm_backbone": False,
         "use_pretrained_backbone": False, "backbone": None},
        inputs=_image, outputs=("logits", "pred_boxes"),
        parts={"backbone_config": {
            "model_type": "resnet", "embedding_size": 16, "hidden_sizes": [32, 64, 96],
            "depths": [1, 1, 1], "out_features": ["stage3"]}},
    ),
    Transformer("wav2vec2", "wav2vec2", "Wav2Vec2ForCTC", AUDIO, inputs=_audio),
    Transformer("hubert", "hubert", "HubertForCTC", AUDIO, inputs=_audio),
    Transformer(
        "clip", "clip", "CLIPModel",
        {"projection_dim": 48, "text_config": {**TEXT, "projection_dim": 48},
         "vision_config": {**_TOWER, "image_size": IMAGE, "patch_size": 16}},
        inputs=_image_and_text, outputs=("logits_per_image", "text_embeds", "image_embeds"),
    ),
)  # fmt: skip


def rows() -> Iterator[Entry]:
    """The suite `transformers`."""
    for network in (*_ENCODERS, *_DECODERS, *_TWO_TOWERS, *_SENSES):
        note = f"experts by {network.experts}: the default has no export" if network.experts else ""
        yield Entry("transformers", network.name, network.build, weight=0.5, note=note)
