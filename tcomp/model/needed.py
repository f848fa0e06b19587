"""The nodes of a decoding graph: those that extend caches, and those that logits need unless only caches are wanted
(the beginning of a text). Losses and targets fall away."""

from __future__ import annotations

from dataclasses import replace

from tcomp.model.graph import Graph, Node, Tensor, tensors_of


def needed(graph: Graph, logits: bool = True) -> Graph:
    """The graph without what neither caches nor (with `logits`) logits depend on, its loss and unused inputs
    included."""
    assert graph.logits is not None
    wanted: set[Tensor] = {graph.logits.tensor} if logits else set()
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        writes = tensors_of(node.writes)
        if writes & wanted or any(t.kind == "cache" for t in writes):
            kept.append(node)
            wanted |= tensors_of(node.operands)
    inputs = {n: t for n, t in graph.inputs.items() if t in wanted}
    kept.reverse()
    return replace(graph, nodes=tuple(kept), loss=None, logits=graph.logits if logits else None, inputs=inputs)
