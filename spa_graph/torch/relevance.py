"""Layer-wise relevance propagation, as gradients of a network that computes the same.

The relevance of a value x is x df/dx, in a network whose operators are written so that this product
follows the rule of each (Montavon, Binder, Lapuschkin, Samek & Müller, "Layer-Wise Relevance
Propagation: An Overview", 2019, section 10.3.2): z * (y / z), with y / z a constant, gives y, and
shares the relevance of y out as z does.

* Linear operators: positive contributions only (LRP-alpha1-beta0, Bach et al., PLoS ONE 2015):
  z_j = the sum over i of (x_i w_ij)+. The relevance that a weight passes on is w df/dw.
* Operators of one operand, and BatchNormalization: all relevance passes.
* Normalisations: what they divide by, softmaxes and attention weights are constants (Ali et al.,
  "XAI for Transformers: Better Explanations through Conservative Propagation", ICML 2022).
* Products of two features: each gets half.
* All else (sums, pooling, reshapes) shares relevance out in proportion (LRP-0).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spa_graph.coupling.analysis import Coupling
from spa_graph.coupling.scope import Linear
from spa_graph.errors import OptionError
from spa_graph.graph import Operator
from spa_graph.torch.objective import is_pair, outputs, per_class
from spa_graph.torch.watching import Operands, Run, tensors

_PASSING = frozenset(
    {"BatchNormalization", "Celu", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish",
     "LeakyRelu", "Mish", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh",
     "prelu"}
)  # fmt: skip
_DIVIDING = frozenset(
    {"GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization",
     "SimplifiedLayerNormalization"}
)  # fmt: skip
_PRODUCTS = frozenset({"MatMul", "Mul", "Einsum"})


class Rules:
    """The rule of each operator; see `watching.Around`."""

    def __init__(self, coupling: Coupling) -> None:
        self._operators = coupling.graph.operators
        self._linears = {linear.operator: linear for linear in coupling.facts.linears}

    def __call__(self, index: int, operands: Operands, run: Run) -> Any:
        linear, op_type = self._linears.get(index), self._operators[index].op_type
        if linear is not None:
            return positive(linear, operands, run)
        if op_type == "Softmax":
            return run(operands).detach()
        if op_type == "Attention":
            return attention(operands, run)
        if op_type in _PASSING:
            return passed(operands, run)
        if op_type in _DIVIDING:
            return divided(self._operators[index], operands, run)
        if op_type in _PRODUCTS and len({id(each) for each in tensors(operands)}) == 2:
            return halved(operands, run)
        return run(operands)


def like(value: Tensor, shares: Tensor) -> Tensor:
    """The value, whose relevance is shared out as that of another: none where that is zero."""
    ratio = torch.where(shares == 0, 0, value / torch.where(shares == 0, 1, shares)).detach()
    return shares * ratio + (value - shares * ratio).detach()


def positive(linear: Linear, operands: Operands, run: Run) -> Tensor:
    """A linear operator: only positive contributions count; its bias takes none."""
    source, weight, bias = linear.slots
    given = list(operands)
    value = run(given)
    if bias is not None and bias < len(given) and given[bias] is not None:
        given[bias] = torch.zeros_like(given[bias])
    shares = 0
    for part in (torch.relu, lambda each: -torch.relu(-each)):
        given[source], given[weight] = part(operands[source]), part(operands[weight])
        shares = shares + run(given)
    assert isinstance(shares, Tensor)
    return like(value, shares)


def passed(operands: Operands, run: Run) -> Any:
    """All relevance of the result is that of the first operand."""
    value = run(operands)
    return like(value, operands[0]) if isinstance(value, Tensor) else value


def divided(operator: Operator, operands: Operands, run: Run) -> Any:
    """A normalisation: what it divides by is a constant, what it subtracts and adds is not."""
    source, *others = operands
    value = run(operands)
    if not isinstance(value, Tensor):
        return value
    offset = run([torch.zeros_like(source), *others])
    return like(value - offset, source - _middle(operator, source)) + offset


def _middle(operator: Operator, source: Tensor) -> Tensor | float:
    """What a normalisation subtracts from each element."""
    match operator.op_type:
        case "LayerNormalization":
            axes = range(operator.attributes.get("axis", -1) % source.ndim, source.ndim)
            return source.mean(tuple(axes), keepdim=True)
        case "InstanceNormalization":
            return source.mean(tuple(range(2, source.ndim)), keepdim=True)
        case "GroupNormalization":
            grouped = source.reshape(len(source), operator.attributes["num_groups"], -1)
            return grouped.mean(-1, keepdim=True).expand_as(grouped).reshape(source.shape)
    return 0.0  # root mean square


def attention(operands: Operands, run: Run) -> Any:
    """Scaled dot product attention: its weights are constants, relevance goes to the values."""
    query, key, value, *others = operands
    return run([query.detach(), key.detach(), value, *others])


def halved(operands: Operands, run: Run) -> Any:
    """A product of two features: each gets half of the relevance."""
    first, second = (place for place, each in enumerate(operands) if isinstance(each, Tensor))
    one, other = list(operands), list(operands)
    one[first], other[second] = operands[first].detach(), operands[second].detach()
    return (run(one) + run(other)) / 2


def explained(model: nn.Module, batch: Any) -> Tensor:
    """The output for the right class, on average over samples.

    Raises:
        OptionError: the targets are no classes.
    """
    targets = batch[1] if is_pair(batch) else None
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        raise OptionError(
            "criterion `relevance` explains the output for the right class: data must yield "
            "(inputs, targets) with the numbers of classes as targets"
        )
    found = per_class(outputs(model, batch), targets)
    return found.gather(1, targets.unsqueeze(1)).sum() / len(targets)
