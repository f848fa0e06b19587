"""Checks of scalar functions and monoids: names known, no recursion, no tensors."""

from __future__ import annotations

from tcomp.dsl.ast import BUILTINS, Function, Module, Monoid
from tcomp.dsl.check_ops import REDUCERS
from tcomp.dsl.check_values import Scope, check_number
from tcomp.dsl.dtypes import CASTS
from tcomp.dsl.errors import TcError
from tcomp.dsl.expansion import Sizes


def check_function(f: Function, module: Module) -> None:
    """Arguments used and known, no tensors, no recursion."""
    if f.name in BUILTINS or f.name in CASTS or f.name in REDUCERS:
        raise TcError(f"'{f.name}' is built in", f.span, hint="give the function another name")
    for n, p in enumerate(f.params):
        if p in f.params[:n]:
            raise TcError(f"argument '{p}' of fn '{f.name}' stands twice", f.span, hint="rename one of them")
    scope = Scope(frozenset(), frozenset(f.params), frozenset(f.params), {}, {}, module, argument=True)
    check_number(f.body, scope)
    Sizes(module).check_function(f)


def check_monoid(m: Monoid, module: Module) -> None:
    """Only the two partial results' fields, and in the carried line the combined key, may be read."""
    if m.name in REDUCERS:
        raise TcError(f"'{m.name}' is a built-in reducer", m.span, hint="give the monoid another name")
    key = {f"a.{m.key_name}", f"b.{m.key_name}"}
    carried = key | {f"a.{m.carried_name}", f"b.{m.carried_name}", m.key_name}
    for body, names in ((m.key, key), (m.carried, carried)):
        scope = Scope(frozenset(), frozenset(names), frozenset(names), {}, {}, module, argument=True)
        check_number(body, scope)
        Sizes(module).check(body)
