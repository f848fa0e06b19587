"""The text form of each stage of the compiler, as `tcomp show` prints and `tcomp build` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from tcomp.dsl.ast import Access, Binary, Call, Name, Num, Unary
from tcomp.dsl.printer import print_expression, print_item, print_op

if TYPE_CHECKING:
    from tcomp.dsl.ast import Module, Op, Schedule
    from tcomp.machine.cpu import CpuMachine
    from tcomp.machine.gpu import GpuMachine
    from tcomp.model.graph import Graph, Node, View
    from tcomp.model.step import Step


_EXPRESSIONS = (Access, Binary, Call, Name, Num, Unary)


def ast_text(node: Any) -> str:
    """A tree of AST nodes, one per line, children indented; spans are left out, expressions are as written."""
    return "\n".join(_ast(node, "", "")) + "\n"


def _ast(node: Any, label: str, pad: str) -> Iterator[str]:
    head = f"{pad}{label}: " if label else pad
    if isinstance(node, _EXPRESSIONS):
        yield f"{head}{_leaf(node)}"
    elif is_dataclass(node):
        shown = [f for f in fields(node) if f.compare and getattr(node, f.name) not in ((), None, "", False)]
        short = [f for f in shown if _is_leaf(getattr(node, f.name))]
        words = " ".join(f"{f.name}={_leaf(getattr(node, f.name))}" for f in short)
        yield f"{head}{type(node).__name__} {words}".rstrip()
        for f in shown:
            if f not in short:
                yield from _ast(getattr(node, f.name), f.name, pad + "  ")
    elif isinstance(node, tuple):
        yield f"{head}".rstrip() if label else f"{pad}-"
        for item in node:
            yield from _ast(item, "", pad + "  ")
    else:
        yield f"{head}{_leaf(node)}"


def _is_leaf(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(v, (str, int, float, *_EXPRESSIONS)) or _is_pair(v) for v in value)
    return isinstance(value, _EXPRESSIONS) or not is_dataclass(value)


def _is_pair(value: Any) -> bool:
    """A name and a value, such as a hyperparameter's."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and _is_leaf(value[1])


def _leaf(value: Any) -> str:
    if _is_pair(value) and not isinstance(value[1], str):
        return f"{value[0]} = {_leaf(value[1])}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_leaf, value)) + "]"
    if isinstance(value, _EXPRESSIONS):
        return print_expression(value)
    return str(value.value) if isinstance(value, Enum) else str(value)


def view_text(view: View) -> str:
    """`l0.h[1024, 128]`, with the element offset of a slice."""
    at = f" + {view.offset}" if view.offset else ""
    return f"{view.tensor.name}{at}[{', '.join(map(str, view.shape))}]"


def graph_text(graph: Graph, parts: dict[str, tuple[Node, ...]]) -> str:
    """Parameters, inputs, and the nodes of each part (forward, backward, update) in order."""
    lines = [f"model {graph.model.name} {graph.config}: " + ", ".join(f"{k} = {v}" for k, v in graph.dims.items())]
    lines += [
        f"  param {view_text(p.tensor.whole())} {'frozen' if p.decl.frozen else f'in {p.decl.group}'}"
        for p in graph.parameters
    ]
    lines += [f"  input {view_text(t.whole())}" for t in graph.inputs.values()]
    for name, nodes in parts.items():
        lines.append(f"  {name}:")
        for node in nodes:
            results = [n for n in node.operands if any(n == o.name for o in node.op.outputs)]
            given = [n for n in node.operands if n not in results]
            left = ", ".join(f"{n}={view_text(node.operands[n])}" for n in results)
            right = ", ".join(f"{n}={view_text(node.operands[n])}" for n in given)
            lines.append(f"    {left + ' <- ' if left else ''}{node.op.name}({right})")
    return "\n".join(lines) + "\n"


def grad_text(module: Module) -> str:
    """The backward of every op that has one: the op's own, else the derived."""
    from tcomp.dsl.errors import TcError
    from tcomp.grad import backward_of

    parts = []
    for name, op in module.ops.items():
        if op.backward_of is not None or any(p.inout for p in op.params):
            continue
        try:
            backward = backward_of(name, module)
        except TcError as e:
            parts.append(f"# {name}: {e.message}")
            continue
        if backward is not None:
            origin = "its own" if f"{name}.backward" in module.ops else "derived"
            parts.append(f"# backward of {name}: {origin}\n{print_op(backward).rstrip()}")
    return "\n\n".join(parts) + "\n"


def schedule_text(
    op: Op, module: Module, dims: dict[str, int], machine: CpuMachine | GpuMachine, carried: Schedule | None = None
) -> str:
    """The schedule that an op instance gets on this machine, and why not a more specific one: what its lockfile's entry
    carries, else the written one, else the default."""
    from tcomp.dsl.check import infer
    from tcomp.dsl.dims import evaluate_dim
    from tcomp.grad.early import is_early
    from tcomp.schedule.choose import choice_of, storage_of
    from tcomp.schedule.family import family_for
    from tcomp.schedule.normal import normalise

    if carried is not None:
        return f"# carried by the lockfile\n{print_item(carried).rstrip()}\n"
    family = family_for(machine, 1, storage_of(op).bytes, is_early(op))
    choice = choice_of(op, module, dims, family.targets)
    notes = "".join(f"# {r.schedule.span}: not on {r.schedule.target}: {r.reason}\n" for r in choice.refused)
    schedule, origin = choice.schedule, "none is written: the default"
    if schedule is None:
        extents = {i: int(evaluate_dim(e, dims)) for i, e in infer(op, module).ranges.items()}
        schedule = family.default(op, normalise(op, module, dims), extents)
    else:
        origin = str(schedule.span)
    return f"{notes}# {origin}\n{print_item(schedule).rstrip()}\n"


def launches_text(step: Step) -> str:
    """Every program's launches: kernel, operands with their addresses, label."""
    lines = []
    for name, launches in step.programs.items():
        lines.append(f"program {name}: {len(launches)} launches")
        for i, launch in enumerate(launches):
            kernel = step.kernels[launch.kernel]
            operands = ", ".join(f"{b.name}@{o}" for b, o in zip(kernel.operands, launch.offsets, strict=True))
            lines.append(f"  {i:4} {launch.kernel}({operands})  # {launch.label}")
    return "\n".join(lines) + "\n"
