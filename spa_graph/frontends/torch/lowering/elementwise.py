"""Operators that work element by element, and those that only pass tensors on."""

from __future__ import annotations

from spa_graph.frontends.torch.lowering.base import (
    LOWERINGS,
    AtenCall,
    Lowered,
    is_tensor,
    lowers,
    renamed,
)

_ONE = {
    "abs": "Abs", "acos": "Acos", "asin": "Asin", "asinh": "Asinh", "atan": "Atan",
    "atanh": "Atanh", "bitwise_not": "BitwiseNot", "ceil": "Ceil", "celu": "Celu", "cos": "Cos",
    "cosh": "Cosh", "elu": "Elu", "erf": "Erf", "exp": "Exp", "floor": "Floor", "gelu": "Gelu",
    "hardsigmoid": "HardSigmoid", "hardswish": "HardSwish", "isinf": "IsInf", "isnan": "IsNaN",
    "leaky_relu": "LeakyRelu", "log": "Log", "logical_not": "Not", "mish": "Mish", "neg": "Neg",
    "reciprocal": "Reciprocal", "relu": "Relu", "round": "Round", "rsqrt": "Reciprocal",
    "selu": "Selu", "sgn": "Sign", "sigmoid": "Sigmoid", "sign": "Sign", "silu": "Swish",
    "sin": "Sin", "sinh": "Sinh", "softplus": "Softplus", "softsign": "Softsign", "sqrt": "Sqrt",
    "tan": "Tan", "tanh": "Tanh", "expm1": "Elu", "log1p": "Softsign", "log2": "Log",
    "log10": "Log", "square": "Abs", "trunc": "Floor", "log_sigmoid": "Sigmoid",
    "alias": "Identity", "clone": "Identity", "contiguous": "Identity", "detach": "Identity",
    "dropout": "Identity", "feature_dropout": "Identity", "alpha_dropout": "Identity",
    "lift_fresh_copy": "Identity", "to": "Cast", "_to_copy": "Cast", "type_as": "Cast",
    "zeros_like": "Cos", "ones_like": "Cos", "full_like": "Cos", "empty_like": "Cos",
    "rand_like": "Cos", "randn_like": "Cos",
}  # fmt: skip
"""Operators of one operand. Some go by one that treats axes and zeros in the same way."""
_TWO = {
    "add": "Add", "bitwise_and": "BitwiseAnd", "bitwise_or": "BitwiseOr",
    "bitwise_xor": "BitwiseXor", "div": "Div", "eq": "Equal", "fmod": "Mod", "ge": "GreaterOrEqual",
    "gt": "Greater", "le": "LessOrEqual", "logical_and": "And", "logical_or": "Or",
    "logical_xor": "Xor", "lt": "Less", "maximum": "Max", "minimum": "Min", "mul": "Mul",
    "ne": "Equal", "pow": "Pow", "remainder": "Mod", "sub": "Sub", "floor_divide": "Div",
    "true_divide": "Div", "__and__": "And", "__or__": "Or", "__xor__": "Xor",
}  # fmt: skip

for _name, _op_type in _ONE.items():
    LOWERINGS[_name] = renamed(_op_type, "self" if _name != "dropout" else "input")
for _name in ("feature_dropout", "alpha_dropout"):
    LOWERINGS[_name] = renamed("Identity", "input")


def _two(op_type: str) -> None:
    def lower(call: AtenCall) -> Lowered:
        operands = [call["self"], call["exponent" if "exponent" in call.arguments else "other"]]
        return Lowered(op_type, operands)

    for name, own in _TWO.items():
        if own == op_type:
            LOWERINGS[name] = lower


for _op_type in set(_TWO.values()):
    _two(_op_type)


@lowers("rsub")
def rsub(call: AtenCall) -> Lowered:
    return Lowered("Sub", [call["other"], call["self"]])


@lowers("clamp", "clip", "hardtanh", "clamp_min", "clamp_max", "relu6")
def clamp(call: AtenCall) -> Lowered | None:
    """Bounds are numbers, or tensors, which then are operands."""
    low, high = (call.get(name, call.get(f"{name}_val")) for name in ("min", "max"))
    if call.node.target._schema.name == "aten::relu6":  # type: ignore[union-attr]
        low, high = 0.0, 6.0
    if is_tensor(low) or is_tensor(high):
        return Lowered("Max", [call["self"], *(b for b in (low, high) if b is not None)])
    bounds = {"min": low, "max": high}
    return Lowered(
        "Clip", [call["self"]], {k: float(v) for k, v in bounds.items() if v is not None}
    )


@lowers("where")
def where(call: AtenCall) -> Lowered | None:
    if "other" not in call.arguments:
        return None  # positions of what is true
    return Lowered("Where", [call["condition"], call["self"], call["other"]])


@lowers("masked_fill")
def masked_fill(call: AtenCall) -> Lowered:
    return Lowered("Where", [call["mask"], call["value"], call["self"]])


@lowers("fill")
def fill(call: AtenCall) -> Lowered:
    """Every element becomes one value; of the operand only the shape matters."""
    return Lowered("Cos", [call["self"]])


@lowers("addcmul", "lerp")
def three(call: AtenCall) -> Lowered:
    """Zero where all operands are."""
    return Lowered("Sum", [v for v in call.arguments.values() if is_tensor(v)])


LOWERINGS["prelu"] = renamed("prelu", "self", "weight", domain="aten")
LOWERINGS["glu"] = lambda call: Lowered("glu", [call["self"]], {"dim": call["dim"]}, domain="aten")
