"""The nodes of a decoding graph: those that logits need, and those that extend caches. Losses and targets fall away."""

from __future__ import annotations

from dataclasses import replace

from tcomp.model.graph import Graph, Node, Tensor


def for_logits(graph: Graph) -> Graph:
    """The graph without what neither logits nor caches depend on, its loss and unused inputs included."""
    assert graph.logits is not None
    wanted: set[Tensor] = {graph.logits.tensor}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        writes = {node.operands[o.name].tensor for o in node.op.operands if o.inout or o in node.op.outputs}
        if writes & wanted or any(t.kind == "cache" for t in writes):
            kept.append(node)
            wanted |= {v.tensor for v in node.operands.values()}
    inputs = {n: t for n, t in graph.inputs.items() if t in wanted}
    return replace(graph, nodes=tuple(reversed(kept)), loss=None, inputs=inputs)
