"""Checks of schedules that need no machine: every loop, tensor and level named exists, for that target.

Whether a mapping is legal (no two blocks write the same element) is shown later, when sizes are known. The
loops of a derived backward op are not known here, so of its schedule only targets, levels and parameters
are checked.
"""

from __future__ import annotations

from collections.abc import Iterable

from tcomp.dsl import ast
from tcomp.dsl.ast import Access, Expr, Module, Num, Op, Reduction, Schedule, Span, named_tensor, names_in
from tcomp.dsl.check_values import compared, is_condition
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.directives import CONDITION
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import did_you_mean, listing
from tcomp.dsl.infer import infer, right_accesses
from tcomp.dsl.info import OpInfo
from tcomp.dsl.targets import CONDITIONAL, CPU, CPU_TARGETS, GPU, GPU_TARGETS, Family, family_of


def check_schedule(schedule: Schedule, module: Module, infos: dict[str, OpInfo] | None = None) -> None:
    """TcError at the first directive that names something unknown or unknown to its target. `infos`: what is known of
    the module's ops from other schedules' checks, to which it adds."""
    op = module.ops.get(schedule.op)
    forward = schedule.op.removesuffix(".backward")
    if op is None and not (schedule.op.endswith(".backward") and forward in module.ops):
        known = [*module.ops, *(f"{o}.backward" for o in module.ops if not o.endswith(".backward"))]
        hint = did_you_mean(schedule.op, known, "op")
        raise TcError(f"a schedule for an unknown op '{schedule.op}'", schedule.span, hint=hint)
    family = family_of(schedule.target)
    if family is None:
        hint = did_you_mean(schedule.target, (*CPU_TARGETS, *GPU_TARGETS), "target")
        hint = hint or f"targets are {', '.join((*CPU_TARGETS, *GPU_TARGETS))}"
        raise TcError(f"unknown target '{schedule.target}'", schedule.span, hint=hint)
    shapes = op if op is not None else module.ops[forward]
    dims = frozenset(shapes.dims) | {n for o in shapes.operands for e in o.shape for n in names_in(e)}
    infos = {} if infos is None else infos
    if op is not None and op.name not in infos:
        infos[op.name] = infer(op, module)
    names = _Names(schedule, op, infos[op.name] if op is not None else None, family, dims)
    names.check(schedule.shared, (), frozenset())
    shared = names.parameters(schedule.shared)
    covered: dict[str, Span] = {}
    for kernel in schedule.kernels:
        for output in kernel.outputs:
            if output in covered:
                hint = "put all its directives under one `kernel` line"
                raise TcError(f"'{output}' has two kernels", kernel.span, hint=hint)
            covered[output] = kernel.span
            names.output(output, kernel.span)
        names.check(kernel.directives, schedule.shared, shared)


class _Names:
    """What a schedule may name. `op` and `info` are None for a derived backward op; `dims` are those of its shapes."""

    def __init__(
        self, schedule: Schedule, op: Op | None, info: OpInfo | None, family: Family, dims: frozenset[str]
    ) -> None:
        self.schedule, self.op, self.info, self.family, self.dims = schedule, op, info, family, dims

    def parameters(self, directives: Iterable[ast.Directive]) -> frozenset[str]:
        return frozenset(d.name for d in directives if isinstance(d, ast.Tune))

    def check(
        self, directives: tuple[ast.Directive, ...], before: tuple[ast.Directive, ...], inherited: frozenset[str]
    ) -> None:
        """The directives of one block, after those `before` that hold for it too."""
        self.conditions: set[str] = set()
        """parameters that a condition gives, as `tune near = K <= 1024`"""
        for d in (*before, *directives):
            if isinstance(d, ast.Tune) and is_condition(d.default, self.conditions):
                self.conditions.add(d.name)
            elif isinstance(d, ast.Tune):
                self.conditions.discard(d.name)
        known = set(inherited)
        declared: set[str] = set()
        for d in directives:
            if isinstance(d, ast.Tune):
                if d.name in declared:
                    raise TcError(f"parameter '{d.name}' is declared twice", d.span, hint="keep one `tune` line")
                self.tune(d, known)
                declared.add(d.name)
                known.add(d.name)
        lines = (d for d in before if isinstance(d, ast.MapLoops))
        mapped = {(loop, d.of, d.condition) for d in lines for loop in d.loops}
        for d in directives:
            if isinstance(d, ast.MapLoops):
                for loop in d.loops:
                    self.loop(loop, d.span)
                    if (loop, d.of, d.condition) in mapped:
                        hint = f"put all levels on one line: {loop} -> ... / ..."
                        raise TcError(f"loop '{loop}' is mapped twice", d.span, hint=hint)
                    mapped.add((loop, d.of, d.condition))
            self.directive(d, known)

    def directive(self, d: ast.Directive, known: set[str]) -> None:
        match d:
            case ast.MapLoops(loops, of, levels, condition):
                if condition is not None:
                    self.condition(condition, known, d.span)
                    if not of:
                        hint = "name the equations: k of s -> unroll(4) when(T <= 64)"
                        raise TcError("only a mapping in some of the equations can have a condition", d.span, hint=hint)
                if of:
                    self.meaningful("of", d.span)
                for name in of:
                    self.output(name, d.span, "of")
                if of:
                    self.walked(loops, of, d.span)
                for level in levels:
                    self.level(level, known)
            case ast.Order(loops):
                for loop in loops:
                    self.loop(loop, d.span)
            case ast.Fuse(names, at):
                for name in names:
                    self.written(name, d.span, "fuse")
                self.loop(at, d.span)
            case ast.Stage():
                self.stage(d, known)
            case ast.Use(instruction, names):
                self.meaningful("use", d.span)
                self.one_of(instruction, self.family.instructions, d.span, "instruction")
                for name in names:
                    self.tensor(name, d.span, "use")
            case ast.Cast(what, _):
                self.meaningful("cast", d.span)
                self.tensor(what.split(".")[0], d.span, "cast")
            case ast.Combine(names, over, _, condition):
                for name in names:
                    self.output(name, d.span, "combine")
                self.loop(over, d.span)
                if condition is not None:
                    self.condition(condition, known, d.span)
            case ast.Where(conditions):
                for e in conditions:
                    self.condition(e, known, d.span)
            case ast.Flag():
                self.flag(d, known)

    def stage(self, d: ast.Stage, known: set[str]) -> None:
        family = self.family
        for name in d.tensors:
            self.staged(name, d.span)
        self.loop(d.at, d.span)
        self.one_of(d.space, family.spaces, d.span, "space")
        layouts = [o for o in d.options if o.kind != CONDITION]
        if layouts and not family.layouts:
            hint = "end the line before it: the layout of a packed tile follows from its readers"
            raise TcError(f"there is no choice of layouts on {family.name}", layouts[0].span, hint=hint)
        for o in d.options:
            if o.kind == CONDITION and len(o.args) != 1:
                hint = "write: when(K <= 1024)"
                raise TcError("`when` takes the condition under which to stage", o.span, hint=hint)
            check = self.condition if o.kind == CONDITION else self.expression
            for e in o.args:
                check(e, known, o.span)
        if d.by is not None:
            self.one_of(d.by, family.copies, d.span, "way to copy")

    def flag(self, d: ast.Flag, known: set[str]) -> None:
        family, name = self.family, d.name
        if name not in family.flags:
            other = GPU if family is CPU else CPU
            if name in other.flags:
                hint = f"remove it, or put it in a schedule on {other.name}"
                raise TcError(f"`{name}` means nothing on {family.name}", d.span, hint=hint)
            hint = did_you_mean(name, (*family.flags, *family.directives, "kernel"), "directive")
            raise TcError(f"unknown directive '{name}' on {family.name}", d.span, hint=hint)
        if name == "inline" and not (d.args and all(isinstance(a, ast.Name) for a in d.args)):
            raise TcError("`inline` takes the tensors that are computed again", d.span, hint="write: inline t")
        for a in d.args:
            if name in CONDITIONAL:
                self.condition(a, known, d.span)
            tensor = named_tensor(name, a)
            if tensor:
                self.tensor(tensor, a.span, name)
                self.written(tensor, a.span, name)
            if name == "inline" and isinstance(a, ast.Name):
                self.read(a.id, a.span)
            if name == "reverse" and isinstance(a, ast.Name):
                self.loop(a.id, a.span)

    def meaningful(self, directive: str, span: Span) -> None:
        if directive not in self.family.directives:
            hint = f"remove it; directives on {self.family.name} are {', '.join(self.family.directives)}, inline"
            raise TcError(f"`{directive}` means nothing on {self.family.name}", span, hint=hint)

    # ---------------------------------------------------------------------------------- what exists

    def loop(self, name: str, span: Span) -> None:
        if self.info is not None and name not in self.info.ranges:
            hint = f"its loops are: {', '.join(sorted(self.info.ranges))}"
            raise TcError(f"{self.schedule.op} has no loop '{name}'", span, hint=hint)

    def tensor(self, name: str, span: Span, directive: str) -> None:
        if self.op is None or self.info is None:
            return
        known = [*(o.name for o in self.op.operands), *self.info.temporaries]
        if name not in known:
            hint = did_you_mean(name, known, "tensor")
            raise TcError(f"{directive} names '{name}', which is no tensor of {self.op.name}", span, hint=hint)

    def output(self, name: str, span: Span, directive: str = "kernel") -> None:
        """`dW`, or `dQKV.1`: what is written to dQKV with 1 as its first constant subscript."""
        base, dot, part = name.partition(".")
        self.tensor(base, span, directive)
        if self.op is None:
            return
        if self.op.backward_of is None:  # (a backward that computes a part of another op's names what is that one's)
            self.written(base, span, directive)
        if not dot:
            return
        targets = [t for q in self.op.equations for t in q.targets if t.name == base]
        parts = [str(k.value) for t in targets if (k := next((s for s in t.subscripts if isinstance(s, Num)), None))]
        if part not in parts:
            hint = f"written here: {listing(f'{base}.{p}' for p in dict.fromkeys(parts))}" if parts else f"write {base}"
            raise TcError(f"nothing writes '{base}' with {part} as its first constant subscript", span, hint=hint)

    def written(self, name: str, span: Span, directive: str) -> None:
        if self.op is None:
            return
        known = list(dict.fromkeys(t.name for q in self.op.equations for t in q.targets))
        if name not in known:
            hint = f"it computes: {', '.join(known)}"
            raise TcError(f"{directive} names '{name}', which this kernel does not compute", span, hint=hint)

    def walked(self, loops: tuple[str, ...], of: tuple[str, ...], span: Span) -> None:
        """TcError where no equation of these has any of the loops."""
        if self.op is None or self.info is None or self.op.backward_of is not None:
            return
        bases = {name.partition(".")[0] for name in of}
        own: set[str] = set()
        for q, left in zip(self.op.equations, self.info.equation_indices, strict=True):
            if any(t.name in bases for t in q.targets):
                own |= {*left, *(q.value.indices if isinstance(q.value, Reduction) else ())}
        if not own & set(loops):
            hint = f"its loops are: {', '.join(sorted(own))}" if own else "remove the line"
            raise TcError(f"the equation of {listing(of)} has no loop {listing(loops)}", span, hint=hint)

    def read(self, name: str, span: Span) -> None:
        if self.op is None or any(a.tensor == name for q in self.op.equations for a in right_accesses(q)):
            return
        hint = f"remove '{name}' from the line: `inline` computes a tensor again where another equation reads it"
        raise TcError(f"inline names '{name}', which no equation reads", span, hint=hint)

    def staged(self, name: str, span: Span) -> None:
        """`W`, or `QKV.1`: the accesses of QKV (or its part that is written) whose first constant subscript is 1."""
        base, dot, part = name.partition(".")
        self.tensor(base, span, "stage")
        if not dot or self.op is None:
            return
        parts = []
        for q in self.op.equations:
            parts += [str(k.value) for t in q.targets if t.name == base for k in t.subscripts if isinstance(k, Num)][:1]
            for a in right_accesses(q):
                constants = [s.value for s in a.subscripts if isinstance(s, Num)]
                if isinstance(a, Access) and a.tensor == base and constants:
                    parts.append(str(constants[0]))
        if part not in parts:
            shown = listing(f"{base}.{p}" for p in dict.fromkeys(parts))
            hint = f"read here: {shown}" if parts else f"stage all of it: {base}"
            raise TcError(f"no access of '{base}' has {part} as its first constant subscript", span, hint=hint)

    # ------------------------------------------------------------------------- levels and parameters

    def level(self, level: ast.Level, known: set[str]) -> None:
        family = self.family
        if level.kind not in family.levels:
            hint = f"levels on {family.name}, outermost first: {', '.join(family.levels)}"
            raise TcError(f"level '{level.kind}' does not exist on {family.name}", level.span, hint=hint)
        for e in level.args:
            self.expression(e, known, level.span)

    def one_of(self, name: str, known: tuple[str, ...], span: Span, kind: str) -> None:
        if name not in known:
            hint = did_you_mean(name, known, kind)
            raise TcError(f"{kind} '{name}' does not exist on {self.family.name}", span, hint=hint)

    def tune(self, d: ast.Tune, known: set[str]) -> None:
        for e in (d.default, *d.choices):
            self.expression(e, known, d.span)
        if not d.choices or any(names_in(e) for e in (d.default, *d.choices)):
            return
        values = [evaluate_dim(e, {}) for e in d.choices]
        if evaluate_dim(d.default, {}) not in values:
            shown = ", ".join(map(str, values[:12])) + (", ..." if len(values) > 12 else "")
            raise TcError(
                f"the default of '{d.name}' is not among its choices", d.default.span, hint=f"they are {shown}"
            )

    def condition(self, e: Expr, known: set[str], span: Span) -> None:
        """TcError unless it is a condition: comparisons of numbers, or parameters given by some, joined by `and`, `or`,
        `not`."""
        self.expression(e, known, span)
        compared(e, span, self.conditions)

    def expression(self, e: Expr, known: set[str], span: Span) -> None:
        for n in ast.walk(e):
            if isinstance(n, Access):
                raise TcError(
                    f"'{n.tensor}' is a tensor; a schedule computes with numbers", n.span, hint="use a `tune` parameter"
                )
            if isinstance(n, ast.Name) and n.id not in known | self.dims and n.id not in self.family.facts:
                facts = self.family.facts
                hint = did_you_mean(n.id, [*sorted(known), *facts], "name")
                if not hint.startswith("did"):
                    hint = f"declare it: `tune {n.id} = 64 from 32, 64`; known of the machine: {', '.join(facts)}"
                raise TcError(f"unknown parameter '{n.id}'", n.span if n.span.line else span, hint=hint)
