"""Calls that give what they are given, by the numbers that they are passed, are left out of a forward pass alone.

    y = dropout(x, 0.0, 3, batch_number)
    z = matmul(y, w)                        -->   z = matmul(x, w)

So what a model does in training only costs nothing where it is evaluated, or writes.
"""

from __future__ import annotations

from dataclasses import replace

from tcomp.dsl.ast import Access, Binary, Call, DType, Expr, Module, Name, Num, Reduction, bottom_up
from tcomp.dsl.check_numbers import BATCH_NUMBER
from tcomp.dsl.inline import inline_functions
from tcomp.model.graph import Graph, Node, Tensor, View
from tcomp.schedule.fold import fold


def without_identities(graph: Graph, module: Module) -> Graph:
    """The graph without such calls: what they are given stands in the place of their results."""
    constants = {t: v for t, v in graph.scalars.items() if t.name != BATCH_NUMBER}
    given: dict[Tensor, View] = {}

    def now(v: View) -> View:
        same = given.get(v.tensor)
        return v if same is None else View(same.tensor, same.offset + v.offset, v.shape)

    nodes = []
    for n in graph.nodes:
        n = replace(n, operands={name: now(v) for name, v in n.operands.items()})
        source = _passed_on(n, module, constants)
        if source is None:
            nodes.append(n)
        else:
            given[n.operands[n.op.outputs[0].name].tensor] = source
    loss, logits = (None if v is None else now(v) for v in (graph.loss, graph.logits))
    return replace(graph, nodes=tuple(nodes), loss=loss, logits=logits)


def _passed_on(node: Node, module: Module, constants: dict[Tensor, float]) -> View | None:
    """What the only result of a node is a copy of, where that is a result of another; else None."""
    op = node.op
    if len(op.outputs) != 1 or len(op.equations) != 1:
        return None
    (equation,), (output,) = op.equations, op.outputs
    indices = {s.id for s in equation.target.subscripts if isinstance(s, Name)}
    if equation.accumulate or isinstance(equation.value, Reduction) or len(indices) != len(output.shape):
        return None
    numbers: dict[str, Num] = {}
    for p in op.params:
        if (v := constants.get(node.operands[p.name].tensor)) is not None:
            numbers[p.name] = Num(int(v)) if p.dtype is DType.I32 else Num(v)
    value = bottom_up(inline_functions(equation.value, module), lambda e: _folded(e, numbers))
    if not isinstance(value, Access) or value.subscripts != equation.target.subscripts:
        return None
    source = next((p for p in op.params if p.name == value.tensor), None)
    if source is None or source.inout or (source.shape, source.dtype) != (output.shape, output.dtype):
        return None
    view = node.operands[source.name]
    return view if view.tensor.kind == "activation" else None


def _folded(e: Expr, numbers: dict[str, Num]) -> Expr:
    """A node of an expression whose operands are folded. (x + 0.0 stays: it is another zero for -0.0.)"""
    match e:
        case Access(name, ()) if name in numbers:
            return numbers[name]
        case Binary("<" | ">=" as op, Call("random", _), Num(v)) if v <= 0:
            return Num(int(op == ">="))
        case Call("select", (Num(v), a, b)):
            return a if v else b
        case Binary("*" | "/", x, Num(1)) | Binary("*", Num(1), x):
            return x
    return fold(e)
