"""Lines of schedules that have no effect at any sizes: what they speak of is not in the schedule.

    tune BM = 64 from 32, 64      and no line reads BM
    fuse s, o at k                and k has no tile loop
    order m, n                    and neither has a tile loop within blocks or cores

A line that holds for several ops or targets has an effect where one of their schedules gives it one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tcomp.dsl import ast
from tcomp.dsl.ast import Expr, Schedule, Span, names_in
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import listing

_SHARED_OUT = ("core", "grid")
"""levels whose tile loops are outermost, whatever `order` says"""
_IN_TURN = ("seq", "pipe")


def without_effect(schedules: Iterable[Schedule]) -> list[TcError]:
    """An error for the first line without effect of each schedule's text."""
    errors: dict[Span, tuple[Span, TcError]] = {}
    effective: set[Span] = set()
    for s in schedules:
        for line, error in _lines(s):
            if error is None:
                effective.add(line)
            else:
                errors.setdefault(line, (s.span, error))
    first: dict[Span, TcError] = {}
    for line, (text, error) in errors.items():
        if line not in effective:
            first.setdefault(text, error)
    return list(first.values())


def _lines(s: Schedule) -> Iterator[tuple[Span, TcError | None]]:
    """The `tune`, `fuse` and `order` lines of a schedule, each with what is wrong if it has no effect in a kernel."""
    every = (*s.shared, *(d for k in s.kernels for d in k.directives))
    read = {n for d in every for e in _expressions(d) for n in names_in(e)}
    for d in every:
        if isinstance(d, ast.Tune):
            yield d.span, None if d.name in read else _unread(d)
    for own in [k.directives for k in s.kernels] or [()]:
        directives = (*s.shared, *own)
        levels = {loop: d.levels for d in directives if isinstance(d, ast.MapLoops) and not d.of for loop in d.loops}
        turns = {loop for loop, found in levels.items() if any(x.kind in _IN_TURN and x.args for x in found)}
        tiled = {loop for loop, found in levels.items() if any(_shared_out(x) for x in found)} | turns
        for d in directives:
            if isinstance(d, ast.Fuse):
                yield d.span, None if d.at in tiled else _not_tiled(d, tiled)
            elif isinstance(d, ast.Order):
                yield d.span, None if turns & set(d.loops) else _not_ordered(d, tiled)


def _shared_out(level: ast.Level) -> bool:
    return level.kind.partition(".")[0] in _SHARED_OUT


def _expressions(d: ast.Directive) -> Iterator[Expr]:
    """All numbers and conditions that a line gives."""
    match d:
        case ast.MapLoops(levels=levels, condition=condition):
            yield from (e for level in levels for e in level.args)
            yield from () if condition is None else (condition,)
        case ast.Combine(condition=condition):
            yield from () if condition is None else (condition,)
        case ast.Stage(options=levels):
            yield from (e for level in levels for e in level.args)
        case ast.Tune(default=default, choices=choices):
            yield from (default, *choices)
        case ast.Where(conditions=given) | ast.Flag(args=given):
            yield from given


def _unread(d: ast.Tune) -> TcError:
    hint = f"write {d.name} where it is meant, as in `seq({d.name})`, or remove the line"
    return TcError(f"no line of the schedule reads '{d.name}'", d.span, hint)


def _not_tiled(d: ast.Fuse, tiled: set[str]) -> TcError:
    hint = f"tile it, as in `{d.at} -> seq(64)`, or remove the line"
    if tiled:
        hint = f"loops with tiles are {listing(sorted(tiled))}: name one of them, or tile '{d.at}', or remove the line"
    return TcError(f"`fuse` at '{d.at}' means nothing: the schedule gives '{d.at}' no tile loop", d.span, hint)


def _not_ordered(d: ast.Order, tiled: set[str]) -> TcError:
    shared = [n for n in d.loops if n in tiled]
    if shared:
        why = f"tiles of {listing(shared)} are shared out among blocks or cores, whose loops are always outermost"
    else:
        why = f"the schedule gives {listing(dict.fromkeys(d.loops))} no tile loop"
    hint = f"remove the line, or tile a loop within them: {d.loops[-1]} -> ... / seq(64)"
    return TcError(f"`order` means nothing here: {why}", d.span, hint)
