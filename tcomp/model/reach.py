"""What a model's inputs pick must be there: subscripts are held against their axes for all values that inputs may have.

    input tokens: i32[B, T] below V     wte[tokens[b, t], c]     V - 1 is a row of wte
    input start: i32[] below W          wpe[start + t, c]        and W - 1 one of wpe

Data are held against the inputs' bounds before they come to the device, and memory behind a tensor's end is another's.
Judged are sums of inputs and indices, whatever tensor they are subscripts of. What is read under a condition is the
text's own affair, and so is what an equation makes of an input before it picks.
"""

from __future__ import annotations

from collections.abc import Mapping

from tcomp.dsl.ast import Access, Expr, Module, Name, accesses_in, bottom_up
from tcomp.dsl.check_points import places_of
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.extents import Polynomial, affine
from tcomp.dsl.format import print_expression
from tcomp.dsl.infer import infer
from tcomp.model.graph import Graph, Node

_INPUT = "@"
"""begins the name that an input's value has as an index"""


def check_reach(graph: Graph, module: Module) -> None:
    """TcError, at a call, where an input with a bound may pick what is beyond a tensor's end."""
    bounds = {t: graph.bounds[n] for n, t in graph.inputs.items() if graph.bounds[n]}
    at_once = int(graph.dims.get("T", 1)) if graph.caches else 1
    for node in graph.nodes:
        # (The position of a decoding form is the first of T, of which the last is below the bound.)
        given = {
            p.name: bounds[v.tensor] - (0 if p.shape else at_once - 1)
            for p in node.op.params
            if (v := node.operands[p.name]).tensor in bounds
        }
        if given:
            _check(node, given, module)


def _check(node: Node, given: Mapping[str, int], module: Module) -> None:
    """`given` are what the values of operands are below."""
    op = node.op
    ranges = infer(op, module).ranges
    for q in op.equations:
        for tensor, subscripts in places_of(q):
            operand = op.operand(tensor)
            for axis, s in enumerate(subscripts if operand is not None else ()):
                names = [a.tensor for a in accesses_in(s) if a.tensor in given]
                last = _last(s, given, ranges, node.dims) if names else None
                size = node.operands[tensor].shape[axis]
                if last is not None and last >= size:
                    own = node.operands[names[0]].tensor.name
                    message = f"input '{own}' of the model may pick {last} of '{tensor}', which has {size} there"
                    text = print_expression(Access(tensor, subscripts))
                    raise TcError(
                        message,
                        node.span,
                        f"bound '{own}' by what there is; or have the sizes fit, such as `require T <= S`, and take "
                        "shorter texts",
                        (f"'{op.name}' reads or writes {text}, and '{names[0]}' may be {given[names[0]] - 1}",),
                    )


def _last(s: Expr, given: Mapping[str, int], ranges: Mapping[str, Expr], dims: Mapping[str, int]) -> int | None:
    """The greatest value of a subscript; None where it is no sum of inputs and indices."""

    def index(e: Expr) -> Expr:
        return Name(f"{_INPUT}{print_expression(e)}") if isinstance(e, Access) and e.tensor in given else e

    ends = {f"{_INPUT}{print_expression(a)}": given[a.tensor] for a in accesses_in(s) if a.tensor in given}
    form = affine(bottom_up(s, index), [*ranges, *ends])
    if form is None:
        return None
    total = _value(form.constant, dims)
    for name, coefficient in form.terms.items():
        factor = _value(coefficient, dims)
        end = ends[name] if name in ends else int(evaluate_dim(ranges[name], dims))
        if total is None or factor is None:
            return None
        total += max(0, factor * (end - 1))
    return total


def _value(p: Polynomial, dims: Mapping[str, int]) -> int | None:
    """A polynomial of dimensions; None where it has a scalar operand."""
    total = 0
    for monomial, coefficient in p.items():
        product = coefficient
        for atom in monomial:
            if atom not in dims if isinstance(atom, str) else any(accesses_in(atom)):
                return None
            product *= dims[atom] if isinstance(atom, str) else int(evaluate_dim(atom, dims))
        total += int(product)
    return total
