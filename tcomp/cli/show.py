"""`tcomp show`: the text form of each stage, from the parsed tree to machine code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tcomp.cli import common, limits
from tcomp.cli.command import Options, command
from tcomp.cli.options import StepOptions, TargetOptions
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.cli.show_code import Code
    from tcomp.dsl.ast import Module, Op
    from tcomp.dsl.dims import Number
    from tcomp.model.graph import Graph, Node
    from tcomp.model.request import StepRequest
    from tcomp.schedule.family import Machine

    Instance = tuple[Op, dict[str, int]]


@dataclass(frozen=True)
class ShownStep(StepOptions):
    """The step, or the op's dimensions."""

    file: Annotated[str, typer.Argument(help="A .tc file, or one of tcomp's own: gpt2, ops/linear.")] = "gpt2"
    dim: Annotated[
        list[str], typer.Option(help="A dimension of the op, or a configuration value: --dim M=64; may be repeated.")
    ] = field(default_factory=list)


@dataclass(frozen=True)
class ShowOptions(Options):
    """The stages to show."""

    op: Annotated[str | None, typer.Argument(help="Only this op (and not its backward: name that).")] = None
    ast: Annotated[bool, typer.Option("--ast", help="The parsed tree.")] = False
    graph: Annotated[bool, typer.Option("--graph", help="The model's op instances and tensors.")] = False
    grad: Annotated[bool, typer.Option("--grad", help="Each op's backward.")] = False
    schedule: Annotated[bool, typer.Option("--schedule", help="Schedules, default ones too.")] = False
    tile: Annotated[bool, typer.Option("--tile", help="Tile IR: loops over tiles, register tiles.")] = False
    llvm: Annotated[bool, typer.Option("--llvm", help="LLVM IR before optimisation.")] = False
    asm: Annotated[bool, typer.Option("--asm", help="Assembly for this machine.")] = False
    ptx: Annotated[bool, typer.Option("--ptx", help="PTX, for a GPU (sm_90a without --target).")] = False
    sass: Annotated[bool, typer.Option("--sass", help="A GPU's machine code, likewise; needs nvdisasm.")] = False
    plan: Annotated[bool, typer.Option("--plan", help="The memory plan.")] = False
    launches: Annotated[bool, typer.Option("--launches", help="Every launch of the step.")] = False

    @property
    def code(self) -> Code:
        from tcomp.cli.show_code import Code

        return Code(self.tile, self.llvm, self.asm, self.ptx, self.sass)

    @property
    def of_instances(self) -> bool:
        """Is there anything to show for which sizes must be known?"""
        return self.graph or self.schedule or self.plan or self.launches or self.code.any


@command
def show(step: ShownStep, own: ShowOptions, where: TargetOptions) -> None:
    """Print one or more stages of the compiler as text.

    An op of a file without a model (ops/linear) needs its dimensions for --schedule and what follows.

    Examples:

    - `tcomp show gpt2 --graph`

    - `tcomp show gpt2 linear_gelu --schedule --tile`

    - `tcomp show ops/linear linear --tile --asm --dim M=64 --dim N=128 --dim K=256`

    - `tcomp show gpt2 attention.backward --llvm --config 124M -B 4 -T 64`

    - `tcomp show gpt2 layernorm --tile --ptx --target sm_80`
    """
    from tcomp.machine.cpu import detect

    if not (own.ast or own.grad or own.of_instances):
        raise UserError(
            "tell what to show", "--ast --graph --grad --schedule --tile --llvm --asm --ptx --sass --plan or --launches"
        )
    _check_unused(step, own)
    gpu = where.machine("sm_90a" if own.ptx or own.sass else "")
    machine = gpu or detect()
    own.code.check(machine)
    request = step.request()
    module = common.load_module(request.model, None if own.ast or own.grad else request.precision)
    _print_text(module, own)
    if own.of_instances:
        _print_instances(module, request, own, machine, where.threads or limits.cores())
    if own.plan or own.launches:
        _print_step(common.build_step(request, where.device(gpu), module=module, free=False), own)


def _print_text(module: Module, own: ShowOptions) -> None:
    """What is shown of a file's text alone."""
    from tcomp.cli import stages

    if own.ast:
        for item in [common.find_op(module, own.op)] if own.op else items(module):
            print(stages.ast_text(item), end="")
    if own.grad:
        print(_grad_of(module, own.op) if own.op else stages.grad_text(module), end="")


def _print_instances(module: Module, request: StepRequest, own: ShowOptions, machine: Machine, threads: int) -> None:
    """The graph, and each op instance with its schedule and code, by the lockfile that a build would use."""
    from tcomp.autotune.instances import Instance as Tuned
    from tcomp.cli import stages

    instances = _instances(module, request, own, machine)
    if not (own.schedule or own.code.any):
        return
    lock, applied = common.applied_lock(request, module, machine, threads)
    for op, dims in instances:
        tuned = applied.choice(Tuned(op, dims))
        values = ", ".join(f"{name} = {value}" for name, value in tuned.values.items())
        print(f"# {op.name}: " + ", ".join(f"{name} = {extent}" for name, extent in dims.items()))
        print(f"# values of {lock}: {values}\n" if values else "", end="")
        if own.schedule:
            print(stages.schedule_text(op, module, dims, machine, tuned.schedule))
        if own.code.any:
            for text in own.code.texts(op, module, dims, machine, applied.lower):
                print(text)
    common.tell_stale(lock, applied)


def _instances(module: Module, request: StepRequest, own: ShowOptions, machine: Machine) -> list[Instance]:
    """Those that are asked for: a model's, whose graph is printed if that is asked for, or the one of an op alone."""
    from tcomp.cli import stages

    if module.models:
        graph, parts = nodes_of(module, common.resolved(request, module), machine)
        found = _named(distinct(parts), own.op)
        if own.graph:
            print(stages.graph_text(graph, parts), end="")
        return found
    if own.op is None or own.graph or own.plan or own.launches:
        raise UserError(
            f"{request.model}: the file declares no model", "name an op of it, with --dim NAME=NUMBER for its dims"
        )
    return [_alone(module, own.op, request)]


def _print_step(built: common.Built, own: ShowOptions) -> None:
    """The plan and the launches of a step."""
    from tcomp.cli import stages
    from tcomp.model.report import plan_text

    if own.plan:
        print(plan_text(built.step, built.threads), end="")
    if own.launches:
        print(stages.launches_text(built.step), end="")


def _check_unused(step: ShownStep, own: ShowOptions) -> None:
    """UserError for what says how a whole step is made, or how its ops are lowered, where none of that is shown."""
    whole = own.plan or own.launches
    given = {
        "--accumulation": step.accumulation != 1 and not whole, "--memory": step.memory and not whole,
        "--lock": step.lock and not (whole or own.schedule or own.code.any),
        "--nondeterministic": not (step.deterministic or whole or own.code.any),
    }  # fmt: skip
    if flag := next((name for name, unused in given.items() if unused), None):
        of_ops = ", --tile or another form of the code" if flag in ("--lock", "--nondeterministic") else ""
        raise UserError(f"{flag} is for the step as a whole", f"show --plan or --launches{of_ops}, or leave {flag} out")


def _named(instances: list[Instance], op: str | None) -> list[Instance]:
    """Those of an op; all without one. UserError for an op that the model does not use."""
    found = [i for i in instances if op in (None, i[0].name)]
    if op is not None and not found:
        known = list(dict.fromkeys(o.name for o, _ in instances))
        raise UserError(f"the model does not use an op {op!r}", common.closest(op, known) or ", ".join(known))
    return found


def _alone(module: Module, op: str, request: StepRequest) -> Instance:
    """An op at dimensions that are given."""
    from tcomp.dsl.recipes import RECIPES
    from tcomp.dsl.storage import bound

    storage = RECIPES[request.precision or "f32"].storage
    return bound(_op_or_backward(module, op), storage), _bound(module, op, request.dims)


def nodes_of(module: Module, request: StepRequest, machine: Machine) -> tuple[Graph, dict[str, tuple[Node, ...]]]:
    """The graph and its nodes on a machine by part: forward, backward, update."""
    from tcomp.model.programs import build_programs
    from tcomp.model.unroll import graph_of

    graph = graph_of(module, request)
    programs = build_programs(graph, module, targets=machine.targets)
    parts = {"forward": programs.forward, "backward": programs.backward}
    if programs.update is not None:
        parts["update"] = programs.update.nodes
    return graph, parts


def distinct(parts: dict[str, tuple[Node, ...]]) -> list[Instance]:
    """Each op with each set of dimensions once, in order of first use."""
    seen: dict[Any, Instance] = {}
    for nodes in parts.values():
        for node in nodes:
            seen.setdefault((node.op.name, tuple(node.dims.items()), node.op), (node.op, node.dims))
    return list(seen.values())


def items(module: Module) -> list[object]:
    """Everything that a module declares."""
    return [
        *module.functions.values(), *module.monoids.values(), *module.ops.values(),
        *module.schedules.values(), *module.updates.values(), *module.models.values(),
    ]  # fmt: skip


def _grad_of(module: Module, op: str) -> str:
    from tcomp.dsl.printer import print_op
    from tcomp.grad import backward_of

    common.find_op(module, op)
    backward = backward_of(op, module)
    if backward is None:
        raise UserError(
            f"op {op!r} has no backward", "name an op that a loss can depend on: one with a result of real numbers"
        )
    return print_op(backward).rstrip() + "\n"


def _op_or_backward(module: Module, name: str) -> Op:
    """An op of the module; `linear.backward` is derived where it is not written."""
    forward = name.removesuffix(".backward")
    if name not in module.ops and name != forward and forward in module.ops:
        from tcomp.grad import backward_of

        backward = backward_of(forward, module)
        if backward is not None:
            return backward
    return common.find_op(module, name)


def _bound(module: Module, name: str, numbers: Mapping[str, Number]) -> dict[str, int]:
    from tcomp.dsl.dims import bind, operand_shape
    from tcomp.dsl.infer import dimensions

    op = _op_or_backward(module, name)
    common.known_dims(op, numbers)
    given = {d: int(value) for d, value in numbers.items()}
    missing = [d for d in dimensions(op) if d not in given]
    if missing:
        raise UserError(
            f"op {name!r} needs its dimensions: {', '.join(missing)}",
            "give " + " ".join(f"--dim {d}=64" for d in missing),
        )
    return bind(op, {p.name: operand_shape(p, given) for p in op.params}, given)
