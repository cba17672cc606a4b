"""Transformers: heads go as a whole, and the modules' own numbers are kept true."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import spa_graph.torch as spa  # noqa: E402
from spa_graph.errors import RewriteError  # noqa: E402
from spa_graph.frontends.torch.attention import PrunedMultiheadAttention  # noqa: E402
from spa_graph.models_zoo.architectures import import_torchvision  # noqa: E402
from tests.torch.torch_networks import Attention, Block, settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


class Own(nn.Module):
    """`nn.MultiheadAttention` as self-attention of a block."""

    def __init__(self, width: int, heads: int, **options: Any) -> None:
        super().__init__()
        options.setdefault("batch_first", True)
        self.inner = nn.MultiheadAttention(width, heads, **options)
        self.weights = options.pop("need_weights", False)

    def forward(self, x: Any) -> Any:
        return self.inner(x, x, x, need_weights=self.weights)[0]


def features(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_whole_heads_go() -> None:
    pruned = spa.prune(settled(Block()), features(2, 5, 32), ratio=0.5)
    rows = spa.plan_of(pruned).kept["attention.qkv.weight"][0]
    assert pruned.attention.num_heads == 2 and pruned.attention.head_dim == 8
    assert len({int(row) // 8 for row in rows}) == 6  # of 3 x 4 heads


def test_heads_can_be_kept() -> None:
    """Scores are scaled by the head size, so that stays too."""
    pruned = spa.prune(settled(Block()), features(2, 5, 32), ratio=0.5, attention="head-dim")
    assert (pruned.attention.num_heads, pruned.attention.head_dim) == (4, 8)
    assert pruned.mlp[0].out_features == 32


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_multihead_attention_loses_heads(batch_first: bool, need_weights: bool) -> None:
    def attention(width: int, heads: int) -> nn.Module:
        module = Own(width, heads, batch_first=batch_first)
        module.weights = need_weights
        return module

    pruned = spa.prune(settled(Block(attention=attention)), features(2, 5, 32), ratio=0.5)
    inner = pruned.attention.inner
    assert isinstance(inner, nn.MultiheadAttention) and type(inner) is PrunedMultiheadAttention
    assert inner.num_heads * inner.head_dim == 16 and inner.embed_dim == 32
    assert (inner.num_heads, inner.head_dim) == (2, 8)
    assert spa.report_of(pruned)["options"]["criterion"] == "l1"
    assert inner.in_proj_weight.shape == (48, 32) and inner.out_proj.in_features == 16


class Encoder(nn.Module):
    """PyTorch's own encoder, which has a fused form for evaluation without gradients."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        self.inner = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Any, padding: Any = None) -> Any:
        return self.inner(x, src_key_padding_mask=padding)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("share", [0.9, 0.8])
def test_encoders_whose_heads_went_take_padding(share: float, masked: bool) -> None:
    model, x = settled(Encoder()).eval(), features(2, 6, 32)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[0, 4:] = True
    inputs = (x, padding) if masked else x
    pruned = spa.prune(model, inputs, flops=share, scope=("heads",))
    assert type(pruned) is Encoder
    assert min(layer.self_attn.num_heads for layer in pruned.inner.layers) < 4
    with torch.no_grad():
        fused = pruned(x, padding)
    plain = pruned(x, padding)
    torch.testing.assert_close(fused[~padding], plain[~padding])


def test_other_widths_of_keys_and_values() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(16, 4, kdim=12, vdim=20, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, q: Any, k: Any, v: Any) -> Any:
            return self.head(self.inner(q, k, v)[0])

    inputs = features(2, 5, 16), features(2, 7, 12), features(2, 7, 20)
    pruned = spa.prune(settled(Cross()), inputs, ratio=0.5, scope="heads")
    assert (pruned.inner.num_heads, pruned.inner.kdim, pruned.inner.vdim) == (2, 12, 20)


def test_pruned_attention_takes_masks_as_torch_does() -> None:
    full = settled(nn.MultiheadAttention(16, 4, batch_first=True))
    small = settled(nn.MultiheadAttention(16, 4, batch_first=True))
    small.load_state_dict(full.state_dict())
    small.__class__ = PrunedMultiheadAttention
    x = features(2, 5, 16)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    per_head = features(8, 5, 5)
    for options in (
        {"attn_mask": causal},
        {"key_padding_mask": padding},
        {"attn_mask": causal, "key_padding_mask": padding, "average_attn_weights": False},
        {"attn_mask": per_head},
        {"need_weights": False, "attn_mask": causal, "is_causal": True},
    ):
        for got, want in zip(small(x, x, x, **options), full(x, x, x, **options), strict=True):
            if want is not None:
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class HardCoded(nn.Module):
    """Attention whose forward names its numbers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Any) -> Any:
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, 4, 8).permute(2, 0, 3, 1, 4)
        x = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


def test_hard_coded_sizes_give_a_graph_and_one_warning() -> None:
    model = settled(HardCoded())
    with pytest.warns(UserWarning, match="HardCoded.forward states sizes") as caught:
        graph = spa.prune(model, features(2, 5, 32), ratio=0.5)
    ours = [str(each.message) for each in caught if "GraphModule" in str(each.message)]
    assert len(ours) == 1 and isinstance(graph, torch.fx.GraphModule)
    assert "stays in evaluation mode" in ours[0]
    assert "test_attention.py" in ours[0] and "reshape(x.shape[0], -1, 3, 4, 8)" in ours[0]
    assert graph(features(3, 5, 32)).shape == (3, 5, 32)
    assert graph.get_parameter("qkv.weight").shape == (48, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        spa.prune(model, features(2, 5, 32), ratio=0.5, return_type="graph")
    with pytest.raises(RewriteError, match=r"can't be corrected .*graph"):
        spa.prune(model, features(2, 5, 32), ratio=0.5, return_type="module")


def test_an_unflatten_that_is_a_layer_follows() -> None:
    model = nn.Sequential(
        nn.Linear(6, 8 * 4), nn.Unflatten(1, (8, 2, 2)), nn.ReLU(), nn.Conv2d(8, 3, 1)
    )
    pruned = spa.prune(settled(model), features(2, 6), ratio=0.5)
    assert isinstance(pruned, nn.Sequential) and pruned[1].unflattened_size == (4, 2, 2)


def test_numbers_of_a_class_are_corrected_in_the_module_alone() -> None:
    class Heads(Attention):
        num_heads = 4

        def __init__(self, width: int, heads: int) -> None:
            super().__init__(width, heads)
            del self.num_heads

    pruned = spa.prune(settled(Block(attention=Heads)), features(2, 5, 32), ratio=0.5)
    assert pruned.attention.num_heads == 2 and Heads.num_heads == 4


def test_a_normalised_parameter() -> None:
    class Relative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Parameter(torch.randn(5, 16)), nn.LayerNorm(16)
            self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: Any) -> Any:
            return self.last(self.first(x) + self.norm(self.table))

    pruned = spa.prune(settled(Relative()), features(2, 5, 6), ratio=0.5)
    assert pruned.norm.normalized_shape == (8,) and pruned.table.shape == (5, 8)


# --- libraries --------------------------------------------------------------------------------

WIDTHS: dict[str, Any] = {"vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2}


def torchvision() -> Any:
    """torchvision, also where its compiled library doesn't fit torch's."""
    try:
        return import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed")


def transformers() -> Any:
    torchvision()  # which it imports
    return pytest.importorskip("transformers")


def tokens() -> Any:
    return torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))


def bert() -> nn.Module:
    library = transformers()
    config = library.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32, vocab_size=60,
    )  # fmt: skip
    return settled(library.BertModel(config))


def gpt2() -> nn.Module:
    library = transformers()
    config = library.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=32, use_cache=False, **WIDTHS
    )
    return settled(library.GPT2LMHeadModel(config))


def test_bert() -> None:
    model = bert()
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 8:] = 0
    pruned = spa.prune(model, {"input_ids": tokens(), "attention_mask": mask}, flops=0.5)
    assert type(pruned) is type(model)
    attention = pruned.encoder.layer[0].attention.self
    assert attention.all_head_size == attention.query.out_features < 32
    assert attention.num_attention_heads * attention.attention_head_size == attention.all_head_size
    assert pruned(input_ids=tokens()[:1, :7]).last_hidden_state.shape == (1, 7, 32)


def test_gpt2() -> None:
    model = gpt2()
    pruned = spa.prune(model, tokens(), flops=0.6)
    assert type(pruned) is type(model)
    assert pruned.lm_head.weight is pruned.transformer.wte.weight
    attention = pruned.transformer.h[0].attn
    assert attention.c_attn.nf == attention.c_attn.weight.shape[1] == 3 * attention.split_size
    assert attention.num_heads * attention.head_dim == attention.split_size < 32
    assert pruned.transformer.h[0].mlp.c_fc.nf == pruned.transformer.h[0].mlp.c_fc.weight.shape[1]


def test_timm_vit() -> None:
    torchvision()  # which it imports
    timm = pytest.importorskip("timm")
    model = settled(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5))
    pruned = spa.prune(model, features(2, 3, 32, 32), ratio=0.34)
    attention = pruned.blocks[0].attn
    assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (2, 64, 128)
    assert attention.qkv.out_features == 384 and type(pruned) is type(model)


class Wide(nn.Module):
    """Attention of three heads of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 5)

    def halve_ranks(self) -> None:
        """Each head's keys, and its values, become combinations of half of them."""
        generator = torch.Generator().manual_seed(1)
        for start in range(24, 72, 8):
            mix = torch.randn(8, 4, generator=generator) / 2
            for parameter in (self.qkv.weight, self.qkv.bias):
                parameter.data[start : start + 8] = mix @ parameter.data[start : start + 4]

    def forward(self, x: Any) -> Any:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)
        scores = functional.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1)
        return self.out((scores @ v).transpose(1, 2).reshape(batch, length, -1))


def test_smaller_heads_are_refitted_for_each_other() -> None:
    module = settled(Wide())
    module.halve_ranks()
    options = {"ratio": 0.5, "attention": "head-dim", "return_type": "graph"}
    options |= {"calibrate": [features(64, 7, 24)]}
    errors = []
    for reconstruct in ("none", "ls"):
        pruned = spa.prune(module, features(2, 7, 24), reconstruct=reconstruct, **options)
        assert spa.plan_of(pruned).kept["qkv.weight"][0].size == 36
        new = features(32, 7, 24).flip(0, 2)
        with torch.no_grad():
            errors.append(float((pruned(new) - module(new)).square().mean() / module(new).var()))
    assert errors[0] > 1e-2 and errors[1] < 1e-8
