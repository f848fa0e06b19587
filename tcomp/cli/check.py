"""`tcomp check`: a file's ops and its model's step, compiled for a device, against the oracle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import typer

from tcomp.cli import common, limits, options
from tcomp.cli.command import Options, command
from tcomp.cli.limits import Range
from tcomp.cli.options import MANY, RunOptions
from tcomp.errors import UserError
from tcomp.model.request import StepRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tcomp.dsl.ast import Module, Op
    from tcomp.dsl.dims import Number
    from tcomp.dsl.recipes import Recipe
    from tcomp.runtime.device import Device


@dataclass(frozen=True)
class CheckOptions(Options):
    """What to check, and how well."""

    file: options.File = "gpt2"
    op: Annotated[str | None, typer.Argument(help="Only this op and its backward, or this written backward.")] = None
    trials: Annotated[int, typer.Option(help="Random shapes per op."), Range(1, MANY)] = 2
    seed: Annotated[int, typer.Option(help="Of shapes and inputs."), options.SEED] = 0
    tolerance: Annotated[
        float,
        typer.Option(help="Largest relative L2 error allowed (more for 16-bit types, a millionth for f64)."),
        options.TOLERANCES,
    ] = 1e-4
    parse_only: Annotated[bool, typer.Option("--parse-only", help="Names, types and shapes only.")] = False
    dim: Annotated[
        list[str],
        typer.Option(
            help="In place of a random dimension of the op, or a small one of the step: --dim M=256; repeatable."
        ),
    ] = field(default_factory=list)
    precision: options.Precision = ""
    deterministic: options.Deterministic = True

    def __post_init__(self) -> None:
        super().__post_init__()
        limits.check_precision(self.precision)


@command
def check(own: CheckOptions, where: RunOptions) -> None:
    """Check a file: its text, then every op (forward and backward) and one whole training step on a device.

    Each op runs at random awkward sizes (primes, 1) and is compared with the oracle, which evaluates the
    equations in float64; where a schedule names a rounding (`cast`), with these, or with the same values rounded. The
    step runs at a small size, the model's gradients and updated parameters likewise.

    Examples:

    - `tcomp check gpt2`

    - `tcomp check mine.tc my_op --trials 10 --seed 3`

    - `tcomp check mine.tc my_op --dim M=256 --dim K=64 --device virtual`

    - `tcomp check mine.tc --dim C=64`, the step at this size

    - `tcomp check gpt2 --device virtual --gpu a100`
    """
    from tcomp.dsl.hints import count
    from tcomp.dsl.recipes import RECIPES
    from tcomp.dsl.storage import bound
    from tcomp.grad.schedules import check_derived_schedules

    file, op = own.file, own.op
    given = limits.parse_dims(own.dim)
    module = common.load_module(file)
    if op is not None:
        common.known_dims(common.find_op(module, op), given)
    elif given and not module.models:
        raise UserError("--dim is for one op", "name it: tcomp check FILE OP --dim M=256")
    check_derived_schedules(module)
    if own.parse_only:
        print(f"{file}: {len(module.ops)} ops, {len(module.schedules)} schedules, {len(module.models)} models: sound")
        return
    if not module.ops and not module.models:
        raise UserError(
            f"{file}: nothing to check: it declares neither an op nor a model",
            "write an op or a model in it, or check only its text: --parse-only",
        )
    step = _small_step(module, own, given) if op is None and module.models else None
    device = where.open()
    failed = refused = 0
    storage = RECIPES[own.precision or "f32"].storage
    sizes = {d: int(n) for d, n in given.items()} if op is not None else {}
    for one in _ops(module, op):
        right = _check_op(bound(one, storage), module, sizes, own, device)
        refused, failed = refused + (right is None), failed + (right is False)
        if one.backward_of is not None and one.name in module.ops:
            failed += not _check_own_backward(one, module, own.seed)
    if step is not None:
        failed += not _check_step(module, step, own, device)
    device.finish()
    if failed:
        raise UserError(
            f"{count(failed, 'check differs', 'checks differ')} from the oracle",
            "where an op rounds more than is allowed give a larger --tolerance; otherwise please report it",
        )
    if refused:
        hint = "mend the line that is shown, or choose sizes that it is for"
        raise UserError(f"{count(refused, 'op is', 'ops are')} refused", hint)


def _ops(module: Module, only: str | None) -> Iterator[Op]:
    """Ops in the order of the text, each followed by its backward, written or derived; `only` one of them, and its."""
    from tcomp.dsl.errors import TcError
    from tcomp.grad import backward_of

    for name, op in module.ops.items():
        if op.backward_of is not None and only == name:
            yield op
        if op.backward_of is not None or only not in (None, name):
            continue
        yield op
        if not any(p.inout for p in op.params):
            try:
                backward = backward_of(name, module)
            except TcError:
                continue  # nothing in it to differentiate
            if backward is not None:
                yield backward


def _check_op(op: Op, module: Module, given: dict[str, int], own: CheckOptions, device: Device) -> bool | None:
    """Is the op right? None where it is refused."""
    import numpy as np

    from tcomp.dsl.errors import TcError
    from tcomp.runtime.awkward import awkward_dims
    from tcomp.runtime.verify import fineness, rounding, verify_op

    random = np.random.default_rng([own.seed, len(op.name), *op.name.encode()])
    worst, at = 0.0, ""
    for trial in range(own.trials):
        dims = awkward_dims(op, module, random, given=given)
        if dims is None:
            print(f"{op.name:28} skipped: no small sizes satisfy its requirements")
            return True
        sizes = ", ".join(f"{k} = {v}" for k, v in dims.items())
        try:
            results = list(verify_op(op, module, dims, device, own.seed + trial, own.deterministic))
        except TcError as e:
            print(f"{op.name:28} REFUSED at {sizes}\n{e.render()}")
            if not given:
                print("  help: `tcomp check FILE OP --dim NAME=NUMBER` chooses sizes, if the schedule is for some only")
            return None
        for found in results:
            if not found.error <= worst:
                worst = found.error
                at = f"{found.what} at {sizes}"
    return _judged(op.name, worst, own.tolerance * fineness(op) + rounding(op), at)


def _check_own_backward(backward: Op, module: Module, seed: int) -> bool:
    """A written backward against the derivative of its op's equations, both in float64."""
    from tcomp.grad.check import compare_backward

    assert backward.backward_of is not None
    errors = compare_backward(backward.backward_of, module, seed=seed)
    name, worst = max(errors.items(), key=lambda item: item[1], default=("", 0.0))
    return _judged(f"{backward.backward_of}, own = derived", worst, 1e-9, name)


SMALL = {"L": 2, "H": 2, "C": 16, "V": 37, "S": 16}
"""values of a configuration at which a step is checked, where the model's `require` lines hold with them"""


def _small_step(module: Module, own: CheckOptions, given: Mapping[str, Number]) -> StepRequest:
    """The training step of the file's model at small sizes and configuration values, but for those that are given."""
    from tcomp.model.dimensions import failing

    model = common.only_model(module, own.file)
    configured = list(dict.fromkeys(name for c in model.configs for name, _ in c.values))
    for name in given:
        if name not in (known := [*model.dims, *configured]):
            raise UserError(f"model {model.name!r} has no dimension {name!r}", f"it has {', '.join(known)}")
    sizes, values = common.own_sizes(model, given)
    sizes = {name: {"B": 2, "T": 11}.get(name, 3) for name in model.dims} | sizes
    small = {name: n for name, n in SMALL.items() if name in configured and name not in values}
    dims = small | values
    larger = iter((12, 16, 32, 64, 128))
    while wrong := failing(model, common.default_config(module, own.file), sizes, dims):
        if wrong & small.keys():  # these are as the configuration has them
            dims = {name: n for name, n in dims.items() if name not in wrong & small.keys()}
            small = {name: n for name, n in small.items() if name not in wrong}
        elif (own_sizes := wrong & sizes.keys() - given.keys()) and (n := next(larger, 0)):
            sizes |= dict.fromkeys(own_sizes, n)
        else:
            break
    return StepRequest(own.file, "", sizes, dims, own.precision, recompute="cheap", deterministic=own.deterministic)


def _check_step(module: Module, request: StepRequest, own: CheckOptions, device: Device) -> bool:
    """One training step against the oracle."""
    import numpy as np

    from tcomp.model.unroll import recipe_of
    from tcomp.runtime.initialise import initialise
    from tcomp.runtime.scalars import set_scalars
    from tcomp.runtime.verify import floats, narrowest, verify_step

    model = common.only_model(module, own.file)
    built = common.build_step(request, device, module=module)
    executor = device.open(built.step)
    try:
        initialise(executor, 1, 1)
        random = np.random.default_rng(0)
        for parameter in built.step.parameters:  # no zero biases: a fault in them must show
            start = floats(executor, parameter.slot)
            executor.write(parameter.slot, start + random.normal(0, 0.1, start.shape))
        # A large epsilon: where the true gradient is 0, rounding is not to be scaled up to a whole update.
        easy = {"peak_lr": 0.1, "warmup": 1.0, "eps": 1e-3}
        set_scalars(executor, {k: v for k, v in easy.items() if f"hyper.{k}" in built.step.hyper})
        found = list(verify_step(executor, module, request.dims))
    finally:
        executor.close()
    recipe, casts = recipe_of(model, own.precision), _casts(module, device)
    recipe = replace(recipe, unit=max(recipe.unit, narrowest(built.step)))
    allowed = {c.what: own.tolerance + _step_rounding(c.what, recipe, casts) for c in found}
    worst = max(found, key=lambda c: c.error / allowed[c.what])
    return _judged(f"step of {model.name}", worst.error, allowed[worst.what], worst.what)


def _judged(what: str, error: float, allowed: float, at: str) -> bool:
    """Is the error allowed? Printed at once, with its place where it is not."""
    good = error <= allowed
    print(f"{what:28} {'ok  ' if good else 'WRONG'} {error:.1e}{'' if good else f'  {at}'}", flush=True)
    return good


def _step_rounding(what: str, recipe: Recipe, casts: bool) -> float:
    """How much of a step's error may be rounding. Where a schedule casts, it rounds gradients that the oracle does not:
    these move by a unit, a change of Adam's by several, and their squares by twice as much."""
    if not casts:
        return recipe.unit / 2
    if what.endswith("'s change") or what.startswith("state."):
        return max(8 * recipe.unit, 2 * recipe.copies)
    return max(2 * recipe.unit, recipe.copies if what.startswith("grad.") else 0.0)


def _casts(module: Module, device: Device) -> bool:
    """Does any schedule for the device name a rounding of its own?"""
    from tcomp.dsl.ast import Cast
    from tcomp.schedule.family import family_for

    targets = family_for(device.machine, device.threads).targets
    found = (s for (_, target), s in module.schedules.items() if target in targets)
    return any(isinstance(d, Cast) for s in found for d in (*s.shared, *(x for k in s.kernels for x in k.directives)))
