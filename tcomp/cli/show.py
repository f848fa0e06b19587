"""`tcomp show`: the text form of each stage, from the parsed tree to machine code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tcomp.cli import common, limits
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.dsl.ast import Module, Op
    from tcomp.dsl.dims import Number
    from tcomp.machine.cpu import CpuMachine
    from tcomp.machine.gpu import GpuMachine
    from tcomp.model.graph import Graph, Node


def show(
    file: Annotated[str, typer.Argument(help="A .tc file, or one of tcomp's own: gpt2, ops/linear.")],
    op: Annotated[str | None, typer.Argument(help="Only this op (and not its backward: name that).")] = None,
    ast: Annotated[bool, typer.Option("--ast", help="The parsed tree.")] = False,
    graph: Annotated[bool, typer.Option("--graph", help="The model's op instances and tensors.")] = False,
    grad: Annotated[bool, typer.Option("--grad", help="Each op's backward.")] = False,
    schedule: Annotated[bool, typer.Option("--schedule", help="Schedules, default ones too.")] = False,
    tile: Annotated[bool, typer.Option("--tile", help="Tile IR: loops over tiles, register tiles.")] = False,
    llvm: Annotated[bool, typer.Option("--llvm", help="LLVM IR before optimisation.")] = False,
    asm: Annotated[bool, typer.Option("--asm", help="Assembly for this machine.")] = False,
    ptx: Annotated[bool, typer.Option("--ptx", help="PTX, for a GPU.")] = False,
    sass: Annotated[bool, typer.Option("--sass", help="A GPU's machine code; needs nvdisasm.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="The memory plan.")] = False,
    launches: Annotated[bool, typer.Option("--launches", help="Every launch of the step.")] = False,
    config: Annotated[str | None, typer.Option(help="The model's configuration.")] = None,
    batch: Annotated[int, typer.Option("--batch", "-B", help="Sequences per micro-batch.")] = 8,
    length: Annotated[int, typer.Option("--length", "-T", help="Tokens per sequence.")] = 128,
    dim: Annotated[
        list[str] | None, typer.Option(help="A dimension of the op, or a configuration value: --dim M=64.")
    ] = None,
    precision: Annotated[str, typer.Option(help=common.PRECISION_HELP)] = "",
    target: Annotated[
        str, typer.Option(help="cpu, or a GPU target such as sm_80 [default: cpu; sm_90a for --ptx and --sass].")
    ] = "",
    gpu: Annotated[str, typer.Option(help="The GPU of that target: h200 [default: h100 for sm_90a].")] = "",
    threads: Annotated[int, typer.Option(help="Cores to compile for; 0: all.")] = 0,
) -> None:
    """Print one or more stages of the compiler as text.

    An op of a file without a model (ops/linear) needs its dimensions for --schedule and what follows.

    Examples:

    - `tcomp show gpt2 --graph`

    - `tcomp show gpt2 linear_gelu --schedule --tile`

    - `tcomp show ops/linear linear --tile --asm --dim M=64 --dim N=128 --dim K=256`

    - `tcomp show gpt2 attention.backward --llvm --config 124M -B 4 -T 64`

    - `tcomp show gpt2 layernorm --tile --ptx --target sm_80`
    """
    from tcomp.cli import build_gpu, stages
    from tcomp.cli.show_code import Code
    from tcomp.dsl.recipes import RECIPES
    from tcomp.dsl.storage import bound as at_storage
    from tcomp.machine.cpu import CpuMachine, detect

    code = Code(tile, llvm, asm, ptx, sass)
    if not any((ast, graph, grad, schedule, plan, launches)) and not code.any:
        raise UserError(
            "tell what to show",
            "--ast --graph --grad --schedule --tile --llvm --asm --ptx --sass --plan or --launches",
        )
    machine = build_gpu.machine_of(target or ("sm_90a" if (ptx or sass) and not gpu else ""), gpu) or detect()
    code.check(machine)
    numbers = limits.parse_dims(dim or [])
    limits.check_numbers(batch=batch, length=length, threads=threads)
    limits.check_precision(precision)
    module = common.load_module(file, None if ast or grad else precision)
    cores = threads or limits.cores()
    if ast:
        for item in [common.find_op(module, op)] if op else _items(module):
            print(stages.ast_text(item), end="")
    if grad:
        print(_grad_of(module, op) if op else stages.grad_text(module), end="")
    if not any((graph, schedule, plan, launches)) and not code.any:
        return
    instances: list[tuple[Op, dict[str, int]]]
    if module.models:
        model = common.only_model(module, file)
        chosen = config or common.default_config(module, file)
        g, parts = nodes_of(module, model.name, chosen, batch, length, numbers, machine, precision)
        instances = distinct(parts)
        if op:
            known = list(dict.fromkeys(o.name for o, _ in instances))
            instances = [i for i in instances if i[0].name == op]
            if not instances:
                raise UserError(f"the model does not use an op {op!r}", common.closest(op, known) or ", ".join(known))
        if graph:
            print(stages.graph_text(g, parts), end="")
    elif op is None or graph or plan or launches:
        raise UserError(f"{file}: the file declares no model", "name an op of it, with --dim NAME=NUMBER for its dims")
    else:
        storage = RECIPES[precision or "f32"].storage
        instances = [(at_storage(_op_or_backward(module, op), storage), _bound(module, op, numbers))]
    for one, dims in instances:
        if schedule or code.any:
            print(f"# {one.name}: " + ", ".join(f"{k} = {v}" for k, v in dims.items()))
        if schedule:
            print(stages.schedule_text(one, module, dims, machine))
        if code.any:
            for text in code.texts(one, module, dims, machine, cores):
                print(text)
    if plan or launches:
        from tcomp.model.report import plan_text

        device = None if isinstance(machine, CpuMachine) else build_gpu.TargetDevice(machine)
        built = common.build_step(
            file, config, batch, length, dims=numbers, precision=precision, threads=cores, free=False,
            module=module, device=device,
        )  # fmt: skip
        if plan:
            print(plan_text(built.step, built.threads), end="")
        if launches:
            print(stages.launches_text(built.step), end="")


def nodes_of(
    module: Module,
    model: str,
    config: str,
    batch: int,
    length: int,
    dims: dict[str, Number],
    machine: CpuMachine | GpuMachine,
    precision: str = "",
) -> tuple[Graph, dict[str, tuple[Node, ...]]]:
    """The graph and its nodes on a machine by part: forward, backward, update."""
    from tcomp.model.programs import build_programs
    from tcomp.model.unroll import build_graph

    sizes = common.declared(module.models[model], {"B": batch, "T": length})
    graph = build_graph(module, model, config, sizes, dims, precision or None)
    programs = build_programs(graph, module, targets=machine.targets)
    parts = {"forward": programs.forward, "backward": programs.backward}
    if programs.update is not None:
        parts["update"] = programs.update.nodes
    return graph, parts


def distinct(parts: dict[str, tuple[Node, ...]]) -> list[tuple[Op, dict[str, int]]]:
    """Each op with each set of dimensions once, in order of first use."""
    seen: dict[Any, tuple[Op, dict[str, int]]] = {}
    for nodes in parts.values():
        for node in nodes:
            seen.setdefault((node.op.name, tuple(node.dims.items()), node.op), (node.op, node.dims))
    return list(seen.values())


def _items(module: Module) -> list[object]:
    return [
        *module.functions.values(), *module.monoids.values(), *module.ops.values(),
        *module.schedules.values(), *module.models.values(),
    ]  # fmt: skip


def _grad_of(module: Module, op: str) -> str:
    from tcomp.dsl.printer import print_op
    from tcomp.grad import backward_of

    common.find_op(module, op)
    backward = backward_of(op, module)
    if backward is None:
        raise UserError(f"op {op!r} has no backward")
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
