"""The abstract syntax of `.tc` text: what the parser gives and every later stage reads.

Everything is a frozen dataclass. Source spans do not take part in equality or hashing, so two trees are
equal exactly when they say the same thing. Expressions are also the expressions of the tile IR: a tile
program is made of the same additions and accesses as the equation it came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open region of a source file; lines and columns count from 1."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


NO_SPAN = Span("<generated>", 0, 0, 0, 0)


def _span() -> Span:
    return field(default=NO_SPAN, compare=False, repr=False)


class DType(Enum):
    """Element types. `bytes` is the storage size of one element.

    REAL is `real` of a generic op: it has no size until the op is bound to a storage type (dsl/storage.py)."""

    F64 = "f64"
    F32 = "f32"
    BF16 = "bf16"
    F16 = "f16"
    E4M3 = "e4m3"
    E5M2 = "e5m2"
    I32 = "i32"
    REAL = "real"

    @property
    def bytes(self) -> int:
        assert self is not DType.REAL, "an op's `real` has no size before it is bound"
        return {"f64": 8, "f32": 4, "i32": 4, "bf16": 2, "f16": 2, "e4m3": 1, "e5m2": 1}[self.value]

    @property
    def is_float(self) -> bool:
        return self is not DType.I32

    def __str__(self) -> str:
        return self.value


# ---------------------------------------------------------------------------------------- expressions


@dataclass(frozen=True, slots=True, eq=False)
class Num:
    """A literal. An `int` value is an integer literal, a `float` value a real one; `2` and `2.0` differ."""

    value: int | float
    span: Span = _span()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Num):
            return NotImplemented
        return type(self.value) is type(other.value) and self.value == other.value

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))


@dataclass(frozen=True, slots=True)
class Name:
    """An index variable, a dimension, or (in a `fn`) a scalar argument."""

    id: str
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Access:
    """`tensor[subscripts]`; a scalar operand `lr: f32[]` is read as `lr` and parsed to no subscripts."""

    tensor: str
    subscripts: tuple[Expr, ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Unary:
    """`-x` or `not x`."""

    op: str
    operand: Expr
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Binary:
    """`+ - * / // % **` (arithmetic), `< <= > >= == !=` (comparison), `and or` (logic)."""

    op: str
    left: Expr
    right: Expr
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Call:
    """A builtin (see BUILTINS), a cast named by its dtype (`bf16(x)`), or a user `fn`."""

    function: str
    args: tuple[Expr, ...]
    span: Span = _span()


Expr = Num | Name | Access | Unary | Binary | Call

COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
LOGIC = ("and", "or")
BUILTINS: dict[str, int] = {
    "exp": 1, "log": 1, "tanh": 1, "sqrt": 1, "rsqrt": 1, "abs": 1, "sin": 1, "cos": 1, "floor": 1,
    "min": 2, "max": 2, "select": 3, "random": 2,
}  # fmt: skip
"""Builtin scalar functions and their number of arguments. `select(c, a, b)` is a where c else b.
`random(seed, counter)` is uniform in [0, 1): a counter-based generator (see docs/language.md)."""


# ------------------------------------------------------------------------------------------------ ops


@dataclass(frozen=True, slots=True)
class Target:
    """The left-hand side of an equation: `name[subscripts]`, with a dtype where it declares a temporary."""

    name: str
    subscripts: tuple[Expr, ...]
    dtype: DType | None = None
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Reduction:
    """`reducer indices where guard: value`, or for a monoid `... by key: values`.

    `sum k where k <= q: X[q, k]` has reducer "sum", indices ("k",), one value and no key.
    `expsum k where k <= q by s[q, k]: 1, V[k, e]` has reducer "expsum", the key and a value per carried
    field. A field not in the guard contributes the reducer's identity.
    """

    reducer: str
    indices: tuple[str, ...]
    guard: Expr | None
    key: Expr | None
    values: tuple[Expr, ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Equation:
    """`targets = value`, or `target += value` when accumulate.

    A monoid reduction has one target per field, the key field first. Plain index names on the left are
    parallel loops; a scatter `dE[ids[t], c] += g[t, c]` has an access on the left and must accumulate.
    Equations run in order, each over whole arrays.
    """

    targets: tuple[Target, ...]
    accumulate: bool
    value: Expr | Reduction
    span: Span = _span()

    @property
    def target(self) -> Target:
        return self.targets[0]


@dataclass(frozen=True, slots=True)
class Operand:
    """A parameter or result of an op. `shape` holds dimension expressions (names, numbers, arithmetic). Of a `state`
    operand the backward pass gives the next value, in the place of a gradient."""

    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    inout: bool = False
    span: Span = _span()
    state: bool = False


@dataclass(frozen=True, slots=True)
class Op:
    """`op name(params; dims) -> outputs:` with its equations.

    `backward_of` is set for `backward linear(...)`, whose name is then "linear.backward"; its parameters
    are named for the forward op's operands (`X`) and their gradients (`dX`).
    `dims` are extra static dimensions that no operand's shape gives (`; V`).
    `ranges` are explicit `index h: H` declarations. `requires` are conditions on dimensions.
    """

    name: str
    params: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    dims: tuple[str, ...]
    ranges: tuple[tuple[str, Expr], ...]
    requires: tuple[Expr, ...]
    equations: tuple[Equation, ...]
    backward_of: str | None = None
    doc: str = ""
    span: Span = _span()

    @property
    def operands(self) -> tuple[Operand, ...]:
        return self.params + self.outputs

    def operand(self, name: str) -> Operand | None:
        return next((o for o in self.operands if o.name == name), None)


@dataclass(frozen=True, slots=True)
class Function:
    """`fn gelu(x) = expression`: a scalar function, always inlined."""

    name: str
    params: tuple[str, ...]
    body: Expr
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Monoid:
    """`monoid expsum by m:` and one combining equation per field; `x` stands for every carried field.

    In the expressions, `Access("a", ...)` never occurs: the parser gives `a.m` as Name("a.m").
    `key` is the combining expression of the key field over a.<key>, b.<key>; `carried` that of the other
    fields over a.x, b.x, a.<key>, b.<key>, and the combined key (by its plain name).
    """

    name: str
    key_name: str
    key: Expr
    carried_name: str
    carried: Expr
    span: Span = _span()


# ------------------------------------------------------------------------------------------ schedules


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a loop's mapping: `core`, `seq(64)`, `unroll(8)`, `vec`, `grid.y(BM)`, `mma`, ..."""

    kind: str
    args: tuple[Expr, ...] = ()
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class MapLoops:
    """`b, h -> core` or `n of Y, P -> vec 128`: the levels of each named loop, outermost first."""

    loops: tuple[str, ...]
    of: tuple[str, ...]
    levels: tuple[Level, ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Order:
    """`order n, m, k`: the order of the loops' tile levels, outermost first. A loop with several tile
    levels may be named several times, once per level."""

    loops: tuple[str, ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Fuse:
    """`fuse s, m, l, o at k`: compute these equations in one loop over k."""

    names: tuple[str, ...]
    at: str
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Stage:
    """`stage W in packed at k by tma`: copy a tile of the tensor into a faster space inside loop `at`.

    `space` is shared | registers | packed | cache; `by` is copy | prefetch | widening | cp.async | tma;
    `options` such as swizzle, pad.
    """

    tensors: tuple[str, ...]
    space: str
    at: str
    by: str | None = None
    options: tuple[Level, ...] = ()
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Use:
    """`use wgmma for acc`: compute these equations with that instruction."""

    instruction: str
    names: tuple[str, ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Cast:
    """`cast o.weight to bf16`."""

    what: str
    dtype: DType
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Combine:
    """`combine dg over i by partials | sorted | atomic | turns | private`: how a reduction over blocks
    or tiles is joined."""

    names: tuple[str, ...]
    over: str
    by: str
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Tune:
    """`tune BM = 128 from 64, 128, 256`: a schedule parameter, its default and its choices.

    `choices` is empty when only the default is allowed; a range `64..512 step 64` is expanded.
    """

    name: str
    default: Expr
    choices: tuple[Expr, ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Where:
    """`where MC * KC * 4 <= l2`: a condition on the tuned parameters and machine facts."""

    conditions: tuple[Expr, ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Flag:
    """A directive of one word with arguments and no loop: `persistent`, `raster hilbert`, `perfect`."""

    name: str
    args: tuple[Expr, ...] = ()
    span: Span = _span()


Directive = MapLoops | Order | Fuse | Stage | Use | Cast | Combine | Tune | Where | Flag


@dataclass(frozen=True, slots=True)
class KernelSchedule:
    """The directives of one kernel: of the whole op when `outputs` is empty, else of `kernel dW, db:`."""

    outputs: tuple[str, ...]
    directives: tuple[Directive, ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Schedule:
    """`schedule linear on cpu:`. `shared` are directives before any `kernel` line and hold for all. A text for several
    ops or targets is a schedule for each (dsl/schedule_blocks.py), whose lines share their spans."""

    op: str
    target: str
    shared: tuple[Directive, ...]
    kernels: tuple[KernelSchedule, ...]
    span: Span = _span()


# --------------------------------------------------------------------------------------------- models


@dataclass(frozen=True, slots=True)
class Config:
    """`config tiny: L = 2, C = 64`: named values of a model's dimensions."""

    name: str
    values: tuple[tuple[str, Expr], ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class ParamDecl:
    """`param wte: f32[P, C] = normal(0.02)`, or under `layers`, one per layer (leading dimension added).

    `init` is zeros | ones | normal(std) | uniform(bound). `group` names the optimizer's parameter group.
    """

    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    init: Call
    group: str
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class StateDecl:
    """`state scales: f32[L, 3, 16] = zeros by history under fp8`: a tensor that lives from step to step and is no
    parameter. `op` gives its next value; `precision` is the only one that has it ("" for all)."""

    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    init: Call
    op: str
    precision: str
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Tie:
    """`tie head_w to wte where TIED == 1`: in configurations for which the condition holds (all without one), the
    first parameter is another name for the second."""

    name: str
    to: str
    where: Expr | None = None
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class InputDecl:
    """`input tokens: i32[B, T] below V`: a step's input; `below` bounds its values (checked by the loader)."""

    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    below: Expr | None
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor in a model's text: `x`, `w[l]` (a layer's slice), `x as [B * T, C]` (a reshaped view)."""

    name: str
    subscripts: tuple[Expr, ...] = ()
    shape: tuple[Expr, ...] | None = None
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class OpCall:
    """`y, _ = layernorm(x, w[l], b[l], V=V)`: outputs (`_` drops one), operands, static dims and scalars.

    `results` may carry a view (`y as [B, T, C]`), which reshapes the result that the name is bound to.
    An operand may be a TensorRef or, for a scalar operand `f32[]`, any expression of dims and hyperparameters.
    `annotations` follow the call in brackets: `[recompute]`.
    """

    results: tuple[TensorRef, ...]
    op: str
    args: tuple[TensorRef | Expr, ...]
    keywords: tuple[tuple[str, Expr], ...]
    annotations: tuple[Call, ...] = ()
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class ForLayers:
    """`for l in L:` a block repeated with l = 0 .. L-1; names bound in it carry from one turn to the next."""

    index: str
    extent: Expr
    body: tuple[ModelStatement, ...]
    span: Span = _span()


ModelStatement = OpCall | ForLayers


@dataclass(frozen=True, slots=True)
class Cache:
    """`cache keys: real[L, B, W, G, D]`: a tensor that decoding keeps from step to step; it starts as zeros."""

    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Replacement:
    """`attention -> attention_at with keys[l], values[l], start`: in decoding, calls of the one op are calls of the
    other, which takes the same operands and these behind them. Results correspond by their names."""

    op: str
    by: str
    args: tuple[TensorRef | Expr, ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Decode:
    """`decode(W):` how `forward` goes on from position to position: sizes and inputs of its own, caches, and the ops
    that take the place of others."""

    dims: tuple[str, ...]
    inputs: tuple[InputDecl, ...]
    caches: tuple[Cache, ...]
    replacements: tuple[Replacement, ...]
    requires: tuple[Expr, ...] = ()
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Group:
    """`group matrices: weight_decay = 0.1`: hyperparameters of one parameter group."""

    name: str
    values: tuple[tuple[str, Expr], ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Optimizer:
    """`optimizer adamw:` what runs after the last micro-batch's backward.

    `hyper` are scalar defaults a run may override; `groups` override some per parameter group.
    `state` names the op's inout operands that persist per parameter (m, v). `update` is the op called once
    per group over its flat parameters; `schedule` computes `lr`; `norm` and `clip` are op names.
    `variants` are the ops that take the place of `op` under other precisions: `under bf16_stochastic by ...`.
    """

    op: str
    hyper: tuple[tuple[str, Expr], ...]
    groups: tuple[Group, ...]
    schedule: str | None
    norm: str | None
    variants: tuple[tuple[str, str], ...] = ()
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Model:
    """`model gpt2(B, T):` sizes given at build time, configurations, derived dims, tensors, program."""

    name: str
    dims: tuple[str, ...]
    configs: tuple[Config, ...]
    lets: tuple[tuple[str, Expr], ...]
    requires: tuple[Expr, ...]
    params: tuple[ParamDecl, ...]
    inputs: tuple[InputDecl, ...]
    forward: tuple[ModelStatement, ...]
    loss: str
    logits: str | None
    optimizer: Optimizer | None
    precision: str = "f32"
    ties: tuple[Tie, ...] = ()
    states: tuple[StateDecl, ...] = ()
    decode: Decode | None = None
    caches: tuple[Cache, ...] = ()
    """only in a model's decoding form (dsl/decode.py)"""
    doc: str = ""
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Import:
    """`import ops.linear`: the file models/ops/linear.tc beside the importing file or in tcomp's library. With
    `under fp8` it is needed under that precision only."""

    path: str
    precision: str = ""
    span: Span = _span()


Item = Op | Function | Monoid | Schedule | Model | Import


@dataclass(frozen=True, slots=True)
class Source:
    """One parsed file: its items in order, and its text for diagnostics."""

    file: str
    text: str = field(compare=False, repr=False)
    items: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Module:
    """All items reachable from one file, by name. Given by `dsl.check.check` after all checks passed."""

    ops: dict[str, Op]
    functions: dict[str, Function]
    monoids: dict[str, Monoid]
    schedules: dict[tuple[str, str], Schedule]
    models: dict[str, Model]
    sources: dict[str, str]
    """file name -> text"""
    precision: str | None = None
    """the only precision whose imports were followed and whose variants were checked; None: all"""


# ------------------------------------------------------------------------------------------- traversal


def children(e: Expr) -> tuple[Expr, ...]:
    """The direct sub-expressions of an expression."""
    match e:
        case Access(_, subscripts):
            return subscripts
        case Unary(_, operand):
            return (operand,)
        case Binary(_, left, right):
            return (left, right)
        case Call(_, args):
            return args
        case _:
            return ()


def walk(e: Expr) -> Iterator[Expr]:
    """The expression and all its sub-expressions, outermost first."""
    yield e
    for c in children(e):
        yield from walk(c)


def conjuncts(e: Expr | None) -> list[Expr]:
    """`a and b` --> [a, b]; nothing for no condition."""
    if isinstance(e, Binary) and e.op == "and":
        return conjuncts(e.left) + conjuncts(e.right)
    return [] if e is None else [e]


def rebuild(e: Expr, new: tuple[Expr, ...]) -> Expr:
    """The same expression with other direct sub-expressions."""
    match e:
        case Access():
            return replace(e, subscripts=new)
        case Unary():
            return replace(e, operand=new[0])
        case Binary():
            return replace(e, left=new[0], right=new[1])
        case Call():
            return replace(e, args=new)
        case _:
            return e


def substitute(e: Expr, names: dict[str, Expr]) -> Expr:
    """Replace names by expressions: `substitute(x * k, {"k": j + 1})` is `x * (j + 1)`."""
    if isinstance(e, Name):
        return names.get(e.id, e)
    kids = children(e)
    if not kids:
        return e
    return rebuild(e, tuple(substitute(c, names) for c in kids))


def names_in(e: Expr) -> set[str]:
    """The ids of all `Name` nodes in an expression (subscripts included)."""
    return {n.id for n in walk(e) if isinstance(n, Name)}


def accesses_in(e: Expr) -> list[Access]:
    """All accesses in an expression, those inside subscripts included."""
    return [n for n in walk(e) if isinstance(n, Access)]


def named_tensor(flag: str, argument: Expr) -> str:
    """The tensor that an argument of `inline t`, `overlap o` or `promote acc(128)` names; "" where it names none."""
    match argument:
        case Name(name) if flag in ("inline", "overlap", "promote"):
            return name
        case Call(name, _) if flag in ("overlap", "promote"):
            return name
    return ""
