"""One vector instruction that sums over groups (`instructions/vector.py`): its intrinsic, or its meaning step by step.

Both give the same bits: the meaning is the declared fused multiply-adds in their order, subnormals flushed. On a CPU
without fused multiply-adds products are rounded, which for bf16 operands changes only those beyond f32's range.
"""

from __future__ import annotations

from llvmlite import ir

from tcomp.codegen.llvm.domain import Scope
from tcomp.codegen.llvm.emitter import Emitter
from tcomp.codegen.llvm.types import F32, I32, BFloat, IrValue, Type, constant, lanes_of, like
from tcomp.instructions.vector import VectorInstruction
from tcomp.instructions.vector_matching import vector_instruction

_SMALLEST_NORMAL = 2.0**-126
_SIGN = -(2**31)


def dot(em: Emitter, family: str, acc: IrValue, x: IrValue, y: IrValue, scope: Scope) -> IrValue:
    """acc + the products of the groups in the words x and y (i32 lanes, or one integer), where the builder stands."""
    instruction = vector_instruction(family)
    assert instruction is not None and instruction.word == 32
    lanes = lanes_of(acc.type)
    if not lanes:
        x, y = (em.builder.trunc(v, I32) for v in (x, y))
    intrinsic = instruction.intrinsics.get(lanes)
    if instruction.feature not in scope.features or intrinsic is None:
        return _meaning(em, instruction, acc, x, y, scope.fma)
    b = em.builder
    pairs = ir.VectorType(BFloat(), instruction.group * lanes)
    return em.intrinsic(intrinsic, acc.type, [acc, b.bitcast(x, pairs), b.bitcast(y, pairs)], [])


def _meaning(em: Emitter, instruction: VectorInstruction, acc: IrValue, x: IrValue, y: IrValue, fused: bool) -> IrValue:
    acc = _flushed(em, acc) if instruction.flushes else acc
    for element in instruction.order:
        a, c = (_element(em, instruction, v, element) for v in (x, y))
        if fused:
            acc = em.intrinsic("llvm.fma", acc.type, [a, c, acc], [acc.type])
        else:
            acc = em.builder.fadd(acc, em.builder.fmul(a, c))
        acc = _flushed(em, acc) if instruction.flushes else acc
    return acc


def _element(em: Emitter, instruction: VectorInstruction, word: IrValue, element: int) -> IrValue:
    """One bf16 value of each group, as f32."""
    b, t = em.builder, word.type
    bits = b.and_(word, constant(t, -65536)) if element else b.shl(word, constant(t, 16))
    value = b.bitcast(bits, like(t, F32))
    return _flushed(em, value) if instruction.flushes else value


def _flushed(em: Emitter, value: IrValue) -> IrValue:
    """Subnormals made zeros of their sign."""
    b = em.builder
    f: Type = value.type
    size = em.intrinsic("llvm.fabs", f, [value], [f])
    t: Type = like(f, I32)
    zero = b.bitcast(b.and_(b.bitcast(value, t), constant(t, _SIGN)), f)
    return b.select(b.fcmp_ordered("<", size, constant(f, _SMALLEST_NORMAL)), zero, value)
