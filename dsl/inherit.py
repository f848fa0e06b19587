"""Schedules that begin from another of the same op: `like gpu` takes the kernels that a schedule does not name itself.

schedule f on gpu:      schedule f on sm_90a:           schedule f on sm_90a:
  tune B = 8              like gpu                        kernel Y:
  kernel Y:               kernel Y:               -->       m -> grid(64)
    m -> grid(B)            m -> grid(64)                 kernel Z:
  kernel Z:                                                 tune B = 8
    m -> grid(B)                                            m -> grid(B)

Kernels keep their order there, and the other schedule's shared lines go with its kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace

from tcomp.dsl.ast import Directive, Flag, KernelSchedule, Module, Name, Schedule, Span, Tune
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import listing
from tcomp.dsl.schedule_blocks import own_lines

LIKE = "like"


def inherit(module: Module) -> None:
    """Every schedule of the module written out."""
    for key in module.schedules:
        module.schedules[key] = _written_out(module.schedules[key], module, ())


def _written_out(s: Schedule, module: Module, active: tuple[str, ...]) -> Schedule:
    lines = [d for d in s.shared if isinstance(d, Flag) and d.name == LIKE]
    if not lines:
        return s
    line = lines[0]
    known = [target for op, target in module.schedules if op == s.op and target != s.target]
    hint = f"{s.op} has schedules on {listing(known)}" if known else f"write one for {s.op} on gpu"
    if len(lines) > 1:
        raise TcError("`like` is said twice", lines[1].span, hint="keep one line")
    match line.args:
        case (Name(target),) if target in known:
            pass
        case _:
            raise TcError("`like` takes the target of another schedule of the same op", line.span, hint=hint)
    if target in active:
        raise TcError(
            f"the schedules of {s.op} on {target} and {s.target} are each like the other", line.span, hint=hint
        )
    base = _written_out(module.schedules[s.op, target], module, (*active, s.target))
    own = {o: k for k in s.kernels for o in k.outputs}
    kernels: list[KernelSchedule] = []
    for k in base.kernels:
        mine = next((own[o] for o in k.outputs if o in own), None)
        if mine is None:
            kernels.append(replace(k, directives=_needed(base.shared, k.directives) + k.directives))
        elif set(mine.outputs) != set(k.outputs):
            message = f"kernel {', '.join(mine.outputs)} would replace kernel {', '.join(k.outputs)} of '{target}'"
            raise TcError(message, mine.span, hint="name the same outputs, or write all kernels out")
        else:
            kernels.append(replace(mine, directives=own_lines(_kept(s), mine.directives)))
    new = [k for k in s.kernels if k.outputs and not any(set(k.outputs) == set(b.outputs) for b in base.kernels)]
    if new or not all(k.outputs for k in (*s.kernels, *base.kernels)):
        span = new[0].span if new else line.span
        raise TcError(f"`like {target}` needs `kernel` lines that name kernels of that schedule", span, hint=hint)
    return replace(s, shared=(), kernels=tuple(kernels))


def _needed(shared: tuple[Directive, ...], own: tuple[Directive, ...]) -> tuple[Directive, ...]:
    """The shared lines, without parameters that neither the kernel nor another of these lines uses."""
    used = {n for d in (*shared, *own) for n in _names(d)}
    return tuple(d for d in shared if not isinstance(d, Tune) or d.name in used)


def _names(x: object) -> Iterator[str]:
    """Every name in the expressions of a directive."""
    if isinstance(x, Name):
        yield x.id
    elif isinstance(x, tuple):
        for item in x:
            yield from _names(item)
    elif is_dataclass(x) and not isinstance(x, Span):
        for f in fields(x):
            yield from _names(getattr(x, f.name))


def _kept(s: Schedule) -> tuple[Directive, ...]:
    return tuple(d for d in s.shared if not (isinstance(d, Flag) and d.name == LIKE))
