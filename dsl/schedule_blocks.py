"""A schedule's text for several ops and targets, told apart: the schedule of each op on each target.

schedule f, g on gpu, sm_80:                     schedule g on sm_80:
  tune B = 64 from 32, 64                          tune B = 64 from 32, 64
  for g:                                           inline P
    inline P                                       kernel Y:
  on gpu:                              -->           tune S = 4
    kernel Y:                                        m -> grid(B)
      m -> grid(B)                                   k -> pipe(32, S) / mma
  on sm_80:
    tune S = 4
    kernel Y:
      m -> grid(B)
      k -> pipe(32, S) / mma

What stands in a `for` or `on` block holds for the ops or targets that it names. Lines before the `kernel` lines of a
block hold for each of these kernels, as those of the whole schedule do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tcomp.dsl.ast import Directive, Expr, KernelSchedule, Schedule, Span, Tune, substitute
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import listing

FOR, ON = "for", "on"


@dataclass(frozen=True)
class Named:
    """A name and its place in the text."""

    name: str
    span: Span


@dataclass(frozen=True)
class Block:
    """`for OPS:` or `on TARGETS:` and the lines below it."""

    word: str
    names: tuple[Named, ...]
    lines: tuple[Line, ...]
    span: Span

    @property
    def has_kernels(self) -> bool:
        return any(map(_has_kernels, self.lines))


@dataclass(frozen=True)
class KernelLines:
    """`kernel OUTPUTS:` and the lines below it, blocks but no kernels among them."""

    outputs: tuple[str, ...]
    lines: tuple[Line, ...]
    span: Span


Line = Directive | KernelLines | Block


def told_apart(
    ops: Sequence[Named], targets: Sequence[Named], lines: Sequence[Line], span: Span, text: str
) -> list[Schedule]:
    """The schedules of one text, of every op on every target. TcError for a block that names neither, for lines after
    the kernels that they would hold for, and where nothing is said of one of them."""
    _check(lines, {FOR: [n.name for n in ops], ON: [n.name for n in targets]}, text)
    out = []
    for target in targets:
        for op in ops:
            shared, kernels = _taken(lines, {FOR: op.name, ON: target.name})
            if not shared and not kernels:
                hint = "give it lines of its own, or leave it out of the first line"
                raise TcError(f"this schedule says nothing of {op.name} on {target.name}", op.span, hint, text=text)
            if not kernels:
                kernels, shared = (KernelSchedule((), shared, span),), ()
            out.append(Schedule(op.name, target.name, shared, kernels, op.span))
    return out


def _check(lines: Sequence[Line], known: dict[str, list[str]], text: str) -> None:
    """`known` are the ops and targets for which these lines hold."""
    kernels = False
    for line in lines:
        if kernels and not _has_kernels(line):
            hint = "directives for all kernels come before the first `kernel` line"
            raise TcError("a directive after a kernel block", line.span, hint, text=text)
        kernels = kernels or _has_kernels(line)
        if isinstance(line, Block):
            for n in line.names:
                if n.name not in known[line.word]:
                    hint = f"they hold {line.word} {listing(known[line.word])}"
                    message = f"`{line.word}` names '{n.name}', for which the lines around it do not hold"
                    raise TcError(message, n.span, hint, text=text)
            _check(line.lines, {**known, line.word: [n.name for n in line.names]}, text)
        elif isinstance(line, KernelLines):
            _check(line.lines, known, text)


def _has_kernels(line: Line) -> bool:
    return isinstance(line, KernelLines) or (isinstance(line, Block) and line.has_kernels)


def _taken(lines: Sequence[Line], at: dict[str, str]) -> tuple[tuple[Directive, ...], tuple[KernelSchedule, ...]]:
    """The lines that hold there: those for every kernel, and the kernels."""
    shared: list[Directive] = []
    kernels: list[KernelSchedule] = []
    for line in lines:
        if isinstance(line, KernelLines):
            kernels.append(KernelSchedule(line.outputs, _taken(line.lines, at)[0], line.span))
        elif not isinstance(line, Block):
            shared.append(line)
        elif at[line.word] in [n.name for n in line.names]:
            above, inner = _taken(line.lines, at)
            if line.has_kernels:
                kernels += [replace(k, directives=own_lines(above, k.directives)) for k in inner]
            else:
                shared += above
    return tuple(shared), tuple(kernels)


def own_lines(shared: tuple[Directive, ...], kernel: tuple[Directive, ...]) -> tuple[Directive, ...]:
    """A kernel's directives: a tune line of its own stands in place of the shared one, whose default only the shared
    tune lines below it still mean."""
    own = {d.name for d in kernel if isinstance(d, Tune)}
    defaults: dict[str, Expr] = {}
    out: list[Directive] = []
    for d in shared:
        if isinstance(d, Tune):
            choices = tuple(substitute(c, defaults) for c in d.choices)
            d = replace(d, default=substitute(d.default, defaults), choices=choices)
        if isinstance(d, Tune) and d.name in own:
            defaults[d.name] = d.default
        else:
            out.append(d)
    return (*out, *kernel)
