"""The operator graph and the graph of Dims, for people: why channels go together."""

from __future__ import annotations

import networkx as nx
import pydot

from spa_graph.coupling.analysis import ChannelGroup, Coupling
from spa_graph.coupling.relations import IndexMap, Segment
from spa_graph.graph import Graph


def operator_graph(graph: Graph) -> nx.MultiDiGraph:
    """Operators as nodes (by index), an edge for every value that passes between two."""
    network = nx.MultiDiGraph()
    producer = {name: o.index for o in graph.operators for name in o.outputs if name}
    for operator in graph.operators:
        network.add_node(operator.index, name=operator.name, kind=operator.kind)
    for operator in graph.operators:
        for name in operator.inputs:
            if name in producer:
                network.add_edge(producer[name], operator.index, value=name)
    return network


def dim_graph(coupling: Coupling) -> nx.MultiGraph:
    """Dims that have channels as nodes, the relations between them as edges."""
    relations = coupling.relations
    network = nx.MultiGraph()
    for dim in coupling.channels.of_element:
        network.add_node(dim, label=relations.label(dim), size=coupling.size(dim), axes=[])
    for axis in range(relations.count):
        if relations.dim(axis) in network:
            network.nodes[relations.dim(axis)]["axes"].append(relations.label(axis))
    for item in relations.items:
        if isinstance(item, Segment):
            pairs = [(item.whole, item.part, f"from {item.offset}")]
        elif isinstance(item, IndexMap):
            pairs = [(item.out, item.source, "by index")]
        else:
            pairs = [(item.whole, factor, "factor") for factor in item.factors]
        for first, second, label in pairs:
            a, b = relations.dim(first), relations.dim(second)
            if a in network and b in network:
                network.add_edge(a, b, kind=type(item).__name__, label=label)
    return network


def group_dims(coupling: Coupling, group: ChannelGroup) -> set[int]:
    """The Dims that a group's channels run through."""
    return {
        dim
        for dim, channel in coupling.channels.of_element.items()
        if ((channel >= group.start) & (channel < group.stop)).any()
    }


def group_dot(coupling: Coupling, group: ChannelGroup) -> str:
    """A group in Graphviz' DOT language: the operators that its channels pass, their weights, and
    the Dims and relations that tie them."""
    dims = group_dims(coupling, group)
    drawing = pydot.Dot(graph_type="digraph", label=_quoted(group.name))
    operators = pydot.Subgraph("cluster_operators", label="operators and weights")
    _draw_operators(operators, coupling, group, dims)
    relations = pydot.Subgraph("cluster_dims", label="Dims and relations")
    _draw_dims(relations, dim_graph(coupling).subgraph(dims))
    drawing.add_subgraph(operators)
    drawing.add_subgraph(relations)
    return str(drawing.to_string())


def _draw_operators(
    drawing: pydot.Subgraph, coupling: Coupling, group: ChannelGroup, dims: set[int]
) -> None:
    graph, relations = coupling.graph, coupling.relations
    carrying = {
        name
        for name in graph.shapes
        if any(relations.dim(axis) in dims for axis in relations.value(name) or ())
    }
    touched = [o for o in graph.operators if carrying & {*o.inputs, *o.outputs}]
    network = operator_graph(graph).subgraph(operator.index for operator in touched)
    for index, data in network.nodes(data=True):
        text = _quoted(f"{data['kind']}\\n{data['name']}")
        drawing.add_node(pydot.Node(f"operator{index}", label=text, shape="box"))
    for producer, consumer, data in network.edges(data=True):
        if data["value"] in carrying:
            drawing.add_edge(pydot.Edge(f"operator{producer}", f"operator{consumer}"))
    for number, member in enumerate(group.members):
        text = _quoted(f"{member.parameter}\\naxis {member.axis}")
        drawing.add_node(pydot.Node(f"weight{number}", label=text, shape="ellipse"))
        drawing.add_node(pydot.Node(f"operator{member.operator}"))
        drawing.add_edge(
            pydot.Edge(f"weight{number}", f"operator{member.operator}", style="dashed")
        )


def _draw_dims(drawing: pydot.Subgraph, network: nx.MultiGraph) -> None:
    for dim, data in network.nodes(data=True):
        text = _quoted(f"{data['label']}\\n{data['size']} elements, {len(data['axes'])} axes")
        drawing.add_node(pydot.Node(f"dim{dim}", label=text, shape="hexagon"))
    for a, b, data in network.edges(data=True):
        label = _quoted(f"{data['kind']} {data['label']}")
        drawing.add_edge(pydot.Edge(f"dim{a}", f"dim{b}", label=label, dir="none"))


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "'") + '"'
