"""What calls of a model's text are given: names, slices and other shapes as views, numbers as constant scalars."""

from __future__ import annotations

from math import prod

from tcomp.dsl.ast import DType, Expr, Model, Name, OpCall, TensorRef
from tcomp.dsl.check_numbers import TRAINING
from tcomp.dsl.dims import Number, evaluate_dim, shape_text
from tcomp.dsl.errors import TcError
from tcomp.dsl.format import print_expression
from tcomp.model.dimensions import mentions
from tcomp.model.graph import Tensor, View

Constants = dict[tuple[float, float, DType], Tensor]
"""Value, value in evaluation and type -> the scalar that has them."""


class Operands:
    """The tensors and numbers that names of a model's text stand for, while its statements are walked. `scalars` are
    the values of constants; those that differ in evaluation have their values there in `evaluation`. Without `training`
    all are as in evaluation."""

    def __init__(self, model: Model, dims: dict[str, Number], training: bool) -> None:
        self.model, self.dims, self.training = model, dims, training
        self.environment: dict[str, View] = {}
        self.scalars: dict[Tensor, float] = {}
        self.evaluation: dict[Tensor, float] = {}
        self.constants: Constants = {}

    def operand(self, a: TensorRef | Expr, dtype: DType, scalar: bool, index: dict[str, int], c: OpCall) -> View:
        if isinstance(a, Name):
            a = TensorRef(a.id, span=a.span)
        if isinstance(a, TensorRef):
            if a.name in self.environment:
                view = self.view(a, index)
                if view.tensor.dtype is not dtype:
                    raise TcError(
                        f"'{a.name}' is {view.tensor.dtype}, '{c.op}' needs {dtype}",
                        a.span,
                        "pass a tensor of that type, or write the op for this one",
                    )
                return view
            if not scalar or a.subscripts or a.shape is not None:
                raise TcError(f"'{a.name}' is not a tensor of this model", a.span, "declare it, or compute it above")
            a = Name(a.name, a.span)
        if not scalar:
            raise TcError(
                f"'{c.op}' needs a tensor here, not the number {print_expression(a)}",
                a.span,
                "pass a parameter, an input or a result",
            )
        evaluated = float(self.evaluate(a, index))
        return self.constant(float(self.evaluate(a, index, 1)) if self.training else evaluated, evaluated, dtype)

    def constant(self, value: float, evaluated: float, dtype: DType) -> View:
        """A scalar of this value, and of another one in evaluation."""
        key = value, evaluated, dtype
        if key not in self.constants:
            name = f"constant.{_short(value)}" + (f".evaluated.{_short(evaluated)}" if evaluated != value else "")
            name += "" if dtype is DType.F32 else f".{dtype}"
            t = self.constants[key] = Tensor(name, dtype, (), "scalar", "model")
            self.scalars[t] = value
            if evaluated != value:
                self.evaluation[t] = evaluated
        return self.constants[key].whole()

    def view(self, r: TensorRef, index: dict[str, int]) -> View:
        v = self.environment[r.name]
        offset, shape = v.offset, v.shape
        if len(r.subscripts) > len(shape):
            raise TcError(f"'{r.name}' has shape {shape_text(shape)}: too many subscripts", r.span, "leave some out")
        for s in r.subscripts:
            i = self.integer(s, index)
            if not 0 <= i < shape[0]:
                raise TcError(
                    f"subscript {i} of '{r.name}' is outside 0 .. {shape[0] - 1}", s.span, "choose one within"
                )
            shape = shape[1:]
            offset += i * prod(shape)
        return self.reshaped(View(v.tensor, offset, shape), r, index)

    def reshaped(self, v: View, r: TensorRef, index: dict[str, int]) -> View:
        if r.shape is None:
            return v
        shape = tuple(self.integer(e, index) for e in r.shape)
        if prod(shape) != v.elements:
            raise TcError(
                f"'{r.name}' has shape {shape_text(v.shape)}, which is {v.elements} elements; "
                f"as {shape_text(shape)} it would be {prod(shape)}",
                r.span,
                "a view must have as many elements as what it views",
            )
        return View(v.tensor, v.offset, shape)

    def evaluate(self, e: Expr, index: dict[str, int], training: int = 0) -> int | float:
        values: dict[str, int | float] = {**self.dims, **index, TRAINING: training}
        if self.model.optimizer is not None:
            for name, value in self.model.optimizer.hyper:
                if name not in values and mentions(e, name):
                    values[name] = evaluate_dim(value, values)
        return evaluate_dim(e, values)

    def integer(self, e: Expr, index: dict[str, int]) -> int:
        return _int(evaluate_dim(e, {**self.dims, **index}), e)

    def shape(self, shape: tuple[Expr, ...], what: str) -> tuple[int, ...]:
        extents = tuple(self.integer(e, {}) for e in shape)
        if min(extents, default=1) < 1:
            raise TcError(f"{what} would have the shape {shape_text(extents)}", shape[0].span, "extents are at least 1")
        return extents


def _int(value: int | float, e: Expr) -> int:
    if value != int(value):
        raise TcError(
            f"a dimension must be a whole number, '{print_expression(e)}' is {value}",
            e.span,
            hint="choose sizes for which it is one, or divide by //",
        )
    return int(value)


def _short(value: float) -> str:
    """A number as it is written, as short as it can be."""
    short = f"{value:g}"
    return short if float(short) == value else str(value)
