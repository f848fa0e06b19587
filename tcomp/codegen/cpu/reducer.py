"""A reduction's arithmetic on values in registers: its identity, two values as one, a register's lanes as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Emitter
from tcomp.codegen.llvm.types import I64, IrValue, constant, i32_lanes, kind_type
from tcomp.ir.reducers import identity


@dataclass(frozen=True)
class Reducer:
    """`sum`, `max` or `min` of values of one kind, written at the emitter's current place."""

    em: Emitter
    name: str
    kind: str

    def identity(self, lanes: int) -> IrValue:
        """What changes nothing; `lanes` 0 is a scalar."""
        return constant(kind_type(self.kind, lanes), identity(self.name, self.kind == "int"))

    def combine(self, a: IrValue, x: IrValue) -> IrValue:
        """The reducer on two values, emitted where the builder stands."""
        b = self.em.builder
        whole = self.kind == "int"
        match self.name:
            case "max":
                more = b.icmp_signed(">", x, a) if whole else b.fcmp_ordered(">", x, a)
                return b.select(more, x, a)
            case "min":
                less = b.icmp_signed("<", x, a) if whole else b.fcmp_ordered("<", x, a)
                return b.select(less, x, a)
        return b.add(a, x) if whole else b.fadd(a, x)

    def merge(self, parts: Sequence[IrValue]) -> IrValue:
        """Accumulators of one point as one, pairwise."""
        self.em.here()
        parts = list(parts)
        while len(parts) > 1:
            pairs = [self.combine(parts[i], parts[i + 1]) for i in range(0, len(parts) - 1, 2)]
            parts = pairs + parts[len(pairs) * 2 :]
        return parts[0]

    def across_lanes(self, value: IrValue, lanes: int) -> IrValue:
        """The reduction of a register's lanes: halves onto each other."""
        b = self.em.here()
        width = lanes
        while width > 1:
            width //= 2
            mask = i32_lanes(*(width + i if i < width else 0 for i in range(lanes)))
            upper = b.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)
            value = self.combine(value, upper)
        first = b.extract_element(value, self.em.i64(0))
        return b.sext(first, I64) if self.kind == "int" else first
