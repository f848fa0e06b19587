"""How many parts a result is made in where the text leaves it open: `[chunks(0)]`.

    logits = matmul(h, head) [chunks(0)]                        -->    logits = matmul(h, head) [chunks(2)]
    losses, _ = crossentropy(logits, targets) [at_once(...)]

Parts of so many rows as let the weight be read again for each beside the multiplication, on machines where that is so,
and only where no multiplication comes with it: where each part's gradient is there at once (ahead.py). Else one part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tcomp.dsl.ast import Module
from tcomp.dsl.errors import TcError
from tcomp.machine.cpu import CpuMachine
from tcomp.machine.gpu import GpuMachine
from tcomp.model.autodiff import Variants
from tcomp.model.chunks import in_chunks
from tcomp.model.cost import part_rows
from tcomp.model.graph import Graph, Node
from tcomp.model.programs import build_programs


def with_parts(
    graph: Graph, module: Module, machine: CpuMachine | GpuMachine, variants: Variants | None = None
) -> Graph:
    """The graph with every number of chunks decided."""
    wanted = {n: _number(n, machine) for n in graph.nodes if n.chunks == 0}
    if any(count > 1 for count in wanted.values()):
        parts = _chunked(graph, wanted)
        if _free_of_cost(parts, module, machine, variants):
            return parts
    return _chunked(graph, dict.fromkeys(wanted, 1))


def _number(node: Node, machine: CpuMachine | GpuMachine) -> int:
    result = node.operands[node.op.outputs[0].name]
    rows = part_rows(machine, result.tensor.dtype.bytes)
    return max(1, result.shape[0] // rows) if rows and result.shape else 1


def _chunked(graph: Graph, numbers: Mapping[Node, int]) -> Graph:
    nodes = tuple(replace(n, chunks=numbers[n]) if n in numbers else n for n in graph.nodes)
    return replace(graph, nodes=nodes)


def _free_of_cost(graph: Graph, module: Module, machine: CpuMachine | GpuMachine, variants: Variants | None) -> bool:
    """Can the calls be split, and is the gradient of every part there at once?"""
    try:
        split = in_chunks(graph, module)
    except TcError:
        return False
    programs = build_programs(split, module, variants=variants, targets=machine.targets)
    readers = [n for n in programs.forward if n.part and not n.recompute and n not in programs.ahead]
    return bool(programs.ahead) and all(n.at_once and n.op.name == n.at_once for n in readers)
