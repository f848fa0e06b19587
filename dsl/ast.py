"""The abstract syntax of `.tc` text: what the parser gives and every later stage reads.

Everything is a frozen dataclass. Source spans do not take part in equality or hashing, so two trees are equal exactly
when they say the same thing. Expressions (`expressions.py`) are also those of the tile IR: a tile program is made of
the same additions and accesses as the equation it came from. Schedules are in `directives.py`, calls of ops in
`statements.py`; the names of all are here too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tcomp.dsl.directives import (
    Cast as Cast,
    Combine as Combine,
    Directive as Directive,
    Flag as Flag,
    Fuse as Fuse,
    KernelSchedule as KernelSchedule,
    Level as Level,
    MapLoops as MapLoops,
    Order as Order,
    Schedule as Schedule,
    Stage as Stage,
    Tune as Tune,
    Use as Use,
    Where as Where,
    named_tensor as named_tensor,
)
from tcomp.dsl.expressions import (
    BUILTINS as BUILTINS,
    COMPARISONS as COMPARISONS,
    LOGIC as LOGIC,
    NO_SPAN as NO_SPAN,
    Access as Access,
    Binary as Binary,
    Call as Call,
    DType as DType,
    Expr as Expr,
    Name as Name,
    Num as Num,
    Places as Places,
    Span as Span,
    Unary as Unary,
    accesses_in as accesses_in,
    bottom_up as bottom_up,
    children as children,
    conjunction as conjunction,
    conjuncts as conjuncts,
    map_children as map_children,
    names_in as names_in,
    no_span as no_span,
    product_factors as product_factors,
    rebuild as rebuild,
    substitute as substitute,
    walk as walk,
)
from tcomp.dsl.statements import (
    Alias as Alias,
    ForLayers as ForLayers,
    ModelStatement as ModelStatement,
    OpCall as OpCall,
    TensorRef as TensorRef,
)

# ------------------------------------------------------------------------------------------------ ops


@dataclass(frozen=True, slots=True)
class Target:
    """The left-hand side of an equation: `name[subscripts]`, with a dtype where it declares a temporary."""

    name: str
    subscripts: tuple[Expr, ...]
    dtype: DType | None = None
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Reduction:
    """`reducer indices where guard: value`, or for a monoid `... by key: values`.

    `sum k where k <= q: X[q, k]` has reducer "sum", indices ("k",), one value and no key; `expsum k where k <= q by
    s[q, k]: 1, V[k, e]` has reducer "expsum", the key and a value per carried field.
    """

    reducer: str
    indices: tuple[str, ...]
    guard: Expr | None
    key: Expr | None
    values: tuple[Expr, ...]
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Equation:
    """`targets = value`, or `target += value` when accumulate.

    A monoid reduction has one target per field, the key field first. Plain index names on the left are parallel loops;
    a scatter `dE[ids[t], c] += g[t, c]` has an access on the left and must accumulate.
    """

    targets: tuple[Target, ...]
    accumulate: bool
    value: Expr | Reduction
    span: Span = no_span()

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
    span: Span = no_span()
    state: bool = False


@dataclass(frozen=True, slots=True)
class Op:
    """`op name(params; dims) -> outputs:` with its equations.

    `backward_of` is set for `backward linear(...)`, whose name is then "linear.backward"; its parameters are named for
    the forward op's operands (`X`) and their gradients (`dX`). `dims` are extra static dimensions that no operand's
    shape gives (`; V`), `ranges` explicit `index h: H` declarations, `requires` conditions on dimensions.
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
    span: Span = no_span()

    @property
    def operands(self) -> tuple[Operand, ...]:
        return self.params + self.outputs

    @property
    def written(self) -> tuple[Operand, ...]:
        """The operands that it changes, and its results."""
        return tuple(o for o in self.operands if o.inout or o in self.outputs)

    def operand(self, name: str) -> Operand | None:
        return next((o for o in self.operands if o.name == name), None)


@dataclass(frozen=True, slots=True)
class Function:
    """`fn gelu(x) = expression`: a scalar function, always inlined."""

    name: str
    params: tuple[str, ...]
    body: Expr
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Monoid:
    """`monoid expsum by m:` and one combining equation per field; `x` stands for every carried field.

    `key` is the combining expression of the key field over a.<key>, b.<key>, as Name("a.m"); `carried` that of the
    other fields over a.x, b.x, a.<key>, b.<key>, and the combined key (by its plain name).
    """

    name: str
    key_name: str
    key: Expr
    carried_name: str
    carried: Expr
    span: Span = no_span()


# --------------------------------------------------------------------------------------------- models


@dataclass(frozen=True, slots=True)
class Config:
    """`config tiny: L = 2, C = 64`: named values of a model's dimensions."""

    name: str
    values: tuple[tuple[str, Expr], ...]
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class ParamDecl:
    """`param wte: f32[P, C] = normal(0.02)`, or under `layers`, one per layer (leading dimension added).

    `init` is zeros | ones | normal(std) | uniform(bound). `group` names the optimizer's parameter group. One that is
    `frozen` is in none: it is not trained.
    """

    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    init: Call
    group: str
    span: Span = no_span()
    frozen: bool = False


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
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Tie:
    """`tie head_w to wte where TIED == 1`: in configurations for which the condition holds (all without one), the
    first parameter is another name for the second."""

    name: str
    to: str
    where: Expr | None = None
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class InputDecl:
    """`input tokens: i32[B, T] below V`: a step's input; `below` bounds its values (checked by the loader)."""

    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    below: Expr | None
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Cache:
    """`cache keys: real[L, B, W, G, D]`: a tensor that decoding keeps from step to step; it starts as zeros."""

    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Replacement:
    """`attention -> attention_at with keys[l], values[l], start`: in decoding, calls of the one op are calls of the
    other, which takes the same operands and these behind them. Results correspond by their names."""

    op: str
    by: str
    args: tuple[TensorRef | Expr, ...]
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Decode:
    """`decode(W):` how `forward` goes on from position to position: sizes and inputs of its own, caches, and the ops
    that take the place of others."""

    dims: tuple[str, ...]
    inputs: tuple[InputDecl, ...]
    caches: tuple[Cache, ...]
    replacements: tuple[Replacement, ...]
    requires: tuple[Expr, ...] = ()
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Group:
    """`group matrices of qkv_w, up_w by muon: weight_decay = 0.1`: hyperparameters of one parameter group.

    `params` come here from the groups that they are declared in; `op` names the op or update that trains the group
    ("": the optimizer's own), `variants` those that take its place under other precisions.
    """

    name: str
    values: tuple[tuple[str, Expr], ...]
    params: tuple[str, ...] = ()
    op: str = ""
    variants: tuple[tuple[str, str], ...] = ()
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Optimizer:
    """`optimizer adamw:` what runs after the last micro-batch's backward.

    `hyper` are scalar defaults a run may override; `groups` override some per parameter group.
    `op` trains each group that names none itself: an op over the group's flat parameters, or an op or `update` for each
    matrix. `schedule` computes `lr`; `norm` is an op's name, too. `variants` are the ops that take the place of `op`
    under other precisions: `under bf16_stochastic by ...`. `of` names the model whose optimizer it takes the place of
    (`optimizer adamw of gpt2:`, "" in a model).
    """

    op: str
    hyper: tuple[tuple[str, Expr], ...]
    groups: tuple[Group, ...]
    schedule: str | None
    norm: str | None
    variants: tuple[tuple[str, str], ...] = ()
    of: str = ""
    places: Places = field(default=(), compare=False, repr=False)
    """of `lr by`, of `norm by`, and of each hyperparameter"""
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Update:
    """`update muon(inout p: f32[R, C], ...) -> w: real[R, C]:` calls of ops, one behind the other, that train a matrix.

    `signature` is an op without equations: operands, results, requirements.
    """

    signature: Op
    body: tuple[ModelStatement, ...]
    span: Span = no_span()

    @property
    def name(self) -> str:
        return self.signature.name


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
    places: Places = field(default=(), compare=False, repr=False)
    """of the names behind `loss`, `logits` and `precision`"""
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Import:
    """`import ops.linear`: the file models/ops/linear.tc beside the importing file or in tcomp's library. With
    `under fp8` it is needed under that precision only."""

    path: str
    precision: str = ""
    span: Span = no_span()


Item = Op | Function | Monoid | Schedule | Update | Model | Optimizer | Import


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
    updates: dict[str, Update] = field(default_factory=dict)
