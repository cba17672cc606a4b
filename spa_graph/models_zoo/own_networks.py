"""The suite `own`: small networks of `torch_networks` and `torch_families`, a row per topology."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from spa_graph.models_zoo.architectures import SETTLE_BATCH, Built
from spa_graph.models_zoo.catalogue import Entry

if TYPE_CHECKING:
    import torch
    from torch import nn

WORDS = 500  # also in `torch_networks`, which needs torch
Make = Callable[[], "nn.Module"]
Shape = tuple[int, ...]


def _floats(*shape: int) -> torch.Tensor:
    import torch

    return torch.randn(SETTLE_BATCH, *shape)


def _integers(limit: int, *shape: int) -> torch.Tensor:
    import torch

    return torch.randint(0, limit, (SETTLE_BATCH, *shape))


def _edges(nodes: int) -> torch.Tensor:
    """Random symmetric adjacency with loops, as floats."""
    import torch

    edges = torch.rand(SETTLE_BATCH, nodes, nodes) < 0.3
    return (edges | edges.transpose(1, 2) | torch.eye(nodes, dtype=torch.bool)).float()


def _one(make: Make, **inputs: Callable[[], torch.Tensor]) -> Callable[[], Built]:
    """A builder: the network, and its inputs by name."""

    def build() -> Built:
        return make(), tuple(each() for each in inputs.values()), tuple(inputs)

    return build


def _image(make: Make, size: int) -> Callable[[], Built]:
    return _one(make, image=lambda: _floats(3, size, size))


def _text(make: Make) -> Callable[[], Built]:
    return _one(make, tokens=lambda: _integers(WORDS, 16))


def _first(name: str, size: int) -> Make:
    def make() -> nn.Module:
        from spa_graph.models_zoo.torch_networks import NETWORKS

        return NETWORKS[name](size)

    return make


def _family(name: str, *arguments: object) -> Make:
    def make() -> nn.Module:
        from spa_graph.models_zoo import torch_families

        return getattr(torch_families, name)(*arguments)  # type: ignore[no-any-return]

    return make


def _builders() -> dict[str, Callable[[], Built]]:
    recurrent = ("lstm", "lstm_forward", "gru", "gru_bidirectional", "rnn", "rnn_bidirectional")
    return {
        **{name: _text(_first(name, 16)) for name in (*recurrent, "gpt")},
        "unet": _image(_first("unet", 32), 32),
        "unet_groupnorm": _image(_first("unet_groupnorm", 32), 32),
        "yolo": _image(_first("yolo", 64), 64),
        "autoencoder": _image(_first("autoencoder", 32), 32),
        "fpn": _image(_family("PyramidDetector"), 64),
        "super_resolution": _image(_family("SuperResolution"), 16),
        "sub_pixel": _image(_family("SubPixel"), 16),
        "squeeze_excite": _image(_family("squeeze_excite"), 32),
        "video": _one(_family("video"), clip=lambda: _floats(3, 8, 32, 32)),
        "generator": _one(_family("generator"), noise=lambda: _floats(64)),
        "siamese": _one(
            _family("Siamese"), left=lambda: _floats(3, 32, 32), right=lambda: _floats(3, 32, 32)
        ),
        "temporal": _one(_family("temporal"), signal=lambda: _floats(8, 40)),
        "wavenet": _one(_family("WaveNet"), signal=lambda: _floats(1, 64)),
        "tasnet": _one(_family("TasNet"), mixture=lambda: _floats(1, 256)),
        "gat": _one(
            _family("GraphNetwork"), nodes=lambda: _floats(20, 16), edges=lambda: _edges(20)
        ),
        "dgcnn": _one(_family("DynamicGraph"), points=lambda: _floats(3, 40)),
        "pointnet": _one(_family("PointNet"), points=lambda: _floats(3, 40)),
        "diffusion": _one(
            _family("DiffusionUNet"),
            latent=lambda: _floats(4, 16, 16),
            step=lambda: _integers(1000).float(),
            context=lambda: _floats(7, 32),
        ),
        "dlrm": _one(
            _family("Recommender"), dense=lambda: _floats(13), sparse=lambda: _integers(100, 4)
        ),
        **{
            f"experts_{kind}": _one(_family("mixture", kind), x=lambda: _floats(10, 16))
            for kind in ("einsum", "matmul", "listed", "routed", "routed_listed")
        },
    }


def rows() -> Iterator[Entry]:
    """The suite `own`."""
    for name, builder in _builders().items():
        yield Entry("own", name, builder, weight=0.1)
