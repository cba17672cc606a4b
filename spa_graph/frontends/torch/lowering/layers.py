"""Convolution, linear algebra, normalisation, pooling, attention, recurrent layers."""

from __future__ import annotations

from typing import Any

from spa_graph.frontends.torch.lowering.base import (
    LOWERINGS,
    AtenCall,
    Lowered,
    Lowering,
    lowers,
    renamed,
)

# --- linear algebra --------------------------------------------------------------------------

LOWERINGS["linear"] = renamed("linear", "input", "weight", "bias", domain="aten")
LOWERINGS["matmul"] = renamed("MatMul", "self", "other")
LOWERINGS["mm"] = LOWERINGS["bmm"] = renamed("MatMul", "self", "mat2")
LOWERINGS["mv"] = renamed("MatMul", "self", "vec")
LOWERINGS["dot"] = renamed("MatMul", "self", "tensor")


@lowers("addmm")
def addmm(call: AtenCall) -> Lowered:
    scales = {"alpha": float(call["alpha"]), "beta": float(call["beta"])}
    return Lowered("Gemm", [call["mat1"], call["mat2"], call["self"]], scales)


@lowers("baddbmm")
def baddbmm(call: AtenCall) -> Lowered:
    return Lowered("baddbmm", [call["batch1"], call["batch2"], call["self"]], domain="aten")


@lowers("einsum")
def einsum(call: AtenCall) -> Lowered:
    return Lowered("Einsum", list(call["tensors"]), {"equation": call["equation"]})


@lowers("embedding")
def embedding(call: AtenCall) -> Lowered:
    return Lowered("Gather", [call["weight"], call["indices"]], {"axis": 0})


# --- convolution and pooling -----------------------------------------------------------------


@lowers("conv1d", "conv2d", "conv3d")
def conv(call: AtenCall) -> Lowered:
    operands = [call["input"], call["weight"], call["bias"]]
    return Lowered("Conv", operands, {"group": call["groups"]}, arguments={"group": "groups"})


@lowers("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(call: AtenCall) -> Lowered:
    lowered = conv(call)
    return Lowered("ConvTranspose", lowered.slots, lowered.attributes, arguments=lowered.arguments)


@lowers("convolution")
def convolution(call: AtenCall) -> Lowered:
    return (conv_transpose if call["transposed"] else conv)(call)


def _pool(op_type: str, outputs: int | None = None) -> Lowering:
    def lower(call: AtenCall) -> Lowered | None:
        name = call.node.target._schema.name  # type: ignore[union-attr]
        if call.rank("self") != 2 + next(int(letter) for letter in name if letter.isdigit()):
            return None  # without a batch
        return Lowered(op_type, [call["self"]], outputs=outputs)

    return lower


for _n in "123":
    LOWERINGS[f"max_pool{_n}d"] = _pool("MaxPool")
    LOWERINGS[f"max_pool{_n}d_with_indices"] = _pool("MaxPool", outputs=2)
    LOWERINGS[f"avg_pool{_n}d"] = LOWERINGS[f"adaptive_avg_pool{_n}d"] = _pool("AveragePool")
    LOWERINGS[f"_adaptive_avg_pool{_n}d"] = _pool("AveragePool")
    LOWERINGS[f"adaptive_max_pool{_n}d"] = _pool("MaxPool", outputs=2)
for _name in (
    "nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d",
):  # fmt: skip
    LOWERINGS[f"upsample_{_name}"] = lambda call: Lowered(
        "Resize", [call.get("self", call.get("input"))]
    )
LOWERINGS["grid_sampler"] = LOWERINGS["grid_sampler_2d"] = renamed("GridSample", "input", "grid")


@lowers("pixel_shuffle")
def pixel_shuffle(call: AtenCall) -> Lowered:
    return Lowered(
        "DepthToSpace", [call["self"]], {"mode": "CRD", "blocksize": call["upscale_factor"]}
    )


# --- normalisation ---------------------------------------------------------------------------


@lowers("batch_norm", "_native_batch_norm_legit_no_training")
def batch_norm(call: AtenCall) -> Lowered | None:
    if call.get("training", False) or call["running_mean"] is None:
        return None  # with the statistics of the batch
    names = ("input", "weight", "bias", "running_mean", "running_var")
    outputs = 1 if isinstance(call.result, tuple | list) else None
    return Lowered("BatchNormalization", [call[name] for name in names], outputs=outputs)


@lowers("instance_norm")
def instance_norm(call: AtenCall) -> Lowered | None:
    if not call["use_input_stats"]:
        names = ("input", "weight", "bias", "running_mean", "running_var")
        return Lowered("BatchNormalization", [call[name] for name in names])
    return Lowered("InstanceNormalization", [call[name] for name in ("input", "weight", "bias")])


@lowers("layer_norm", "native_layer_norm")
def layer_norm(call: AtenCall) -> Lowered:
    return Lowered(
        "LayerNormalization",
        [call["input"], call["weight"], call["bias"]],
        {"axis": -len(call["normalized_shape"])},
        outputs=1 if isinstance(call.result, tuple | list) else None,
        inner="normalized_shape",
    )


@lowers("rms_norm")
def rms_norm(call: AtenCall) -> Lowered:
    axis = {"axis": -len(call["normalized_shape"])}
    operands = [call["input"], call["weight"]]
    return Lowered("RMSNormalization", operands, axis, inner="normalized_shape")


@lowers("group_norm")
def group_norm(call: AtenCall) -> Lowered:
    return Lowered(
        "GroupNormalization",
        [call["input"], call["weight"], call["bias"]],
        {"num_groups": call["num_groups"]},
        arguments={"num_groups": "num_groups"},
    )


@lowers("softmax", "_softmax", "log_softmax", "_log_softmax", "special_softmax", "_safe_softmax")
def softmax(call: AtenCall) -> Lowered:
    return Lowered("Softmax", [call["self"]], {"axis": call["dim"]})


# --- attention and recurrent layers ----------------------------------------------------------


@lowers("scaled_dot_product_attention")
def attention(call: AtenCall) -> Lowered | None:
    """Query, key, value (batch, heads, sequence, size)."""
    if call.rank("query") != 4:
        return None
    operands = [call[name] for name in ("query", "key", "value", "attn_mask")]
    return Lowered("Attention", operands, {"scale": call["scale"] or 0.0})


def _recurrent(kind: str, states: int) -> Lowering:
    def lower(call: AtenCall) -> Lowered | None:
        if "batch_sizes" in call.arguments:
            return None  # packed sequences
        hx: Any = call["hx"]
        given = list(hx) if isinstance(hx, list | tuple) else [hx]
        return Lowered(
            kind,
            [call["input"], *given, *call["params"]],
            {
                "states": states,
                "layers": call["num_layers"],
                "directions": 2 if call["bidirectional"] else 1,
                "biases": bool(call["has_biases"]),
                "batch_first": bool(call["batch_first"]),
            },
            domain="aten",
            outputs=states + 1,
        )

    return lower


for _name, _states in (("lstm", 2), ("gru", 1), ("rnn_tanh", 1), ("rnn_relu", 1)):
    LOWERINGS[_name] = _recurrent(_name, _states)
