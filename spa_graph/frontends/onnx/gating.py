"""Gates: what nodes read, multiplied by numbers that are inputs of the network.

With a gate on every channel, one session runs any sub-network, and any mixture of them.
"""

from __future__ import annotations

import onnx_ir as ir

from spa_graph.frontends.onnx.names import fresh_name


def insert_gate(model: ir.Model, node: ir.Node, slot: int) -> str:
    """Multiply an input of a node by a new value, which broadcasts; returns the value's name."""
    source = node.inputs[slot]
    assert source is not None
    gate = ir.Value(name=fresh_name(model, f"{source.name}.gate"))
    label = fresh_name(model, f"{source.name}.gated")
    product = ir.Node("", "Mul", [source, gate], name=label)
    product.outputs[0].name = label
    model.graph.insert_before(node, product)
    node.replace_input_with(slot, product.outputs[0])
    return str(gate.name)
