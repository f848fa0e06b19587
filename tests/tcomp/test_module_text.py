"""The text of a module, and what it leaves behind (`codegen/llvm/text.py`)."""

from __future__ import annotations

import gc
import weakref

from llvmlite import ir

from tcomp.codegen.llvm.text import line_of, text_of
from tcomp.codegen.llvm.types import F32, I1, I32, I64


def test_instructions_go_with_the_last_reference_to_their_module() -> None:
    module = ir.Module("m")
    function = ir.Function(module, ir.FunctionType(I64, [I64]), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    total = builder.add(function.args[0], function.args[0])
    builder.ret(total)
    found, written = weakref.ref(total), str(module)
    gc.disable()
    try:
        assert text_of(module) == written
        del module, function, builder, total
        assert found() is None
    finally:
        gc.enable()


def test_lines_are_llvmlites_own() -> None:
    """Of every class of instructions that is written here, with what may stand in it, and of others beside them."""
    module = ir.Module("m")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, I32, F32, ir.PointerType()]), "f")
    i, word, x, place = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    pair, mask = ir.VectorType(F32, 2), ir.Constant(ir.VectorType(I32, 2), [1, 0])
    b.sub(i, ir.Constant(I64, 1), flags=("nsw", "nuw"))
    b.fma(x, x, x)
    total = b.fadd(x, x, flags=("fast",), name='odd "name"')
    b.fcmp_ordered("<", x, total, flags=("nnan",))
    b.icmp_signed("<", b.sext(word, I64), i)
    b.load(place, typ=F32)
    b.load(place, typ=F32, align=4).set_metadata("nontemporal", module.add_metadata([I32(1)]))
    b.store(x, place)
    b.store(x, place, align=4)
    b.gep(place, [i], source_etype=F32)
    b.gep(place, [i, ir.Constant(I64, 3)], inbounds=True, source_etype=ir.ArrayType(F32, 4))
    vector = b.insert_element(ir.Constant(pair, ir.Undefined), x, ir.Constant(I32, 0))
    b.shuffle_vector(vector, vector, mask)
    b.extract_element(vector, ir.Constant(I32, 1))
    b.select(ir.Constant(I1, 1), x, total)
    plain = ir.Function(module, ir.FunctionType(F32, [F32, I32]), "g")
    nothing = ir.Function(module, ir.FunctionType(ir.VoidType(), []), "h")
    several = ir.Function(module, ir.FunctionType(I32, [I32], var_arg=True), "v")
    b.call(plain, [x, word])
    for beside in ({"tail": True}, {"fastmath": ("fast",)}, {"attrs": ("nounwind",)}, {"cconv": "fastcc"},
                   {"arg_attrs": {1: ("signext",)}}):  # fmt: skip
        b.call(plain, [x, word], **beside)
    b.call(nothing, [])
    b.call(several, [word, word])
    b.call(ir.InlineAsm(ir.FunctionType(I32, [I32]), "mov.u32 $0, $1;", "=r,r", side_effect=True), [word])
    before, inside, after = b.block, *(function.append_basic_block(n) for n in ("loop", "after"))
    b.branch(inside)
    b.position_at_end(inside)
    phi = b.phi(I64, "i")
    phi.add_incoming(i, before)
    phi.add_incoming(phi, inside)
    b.cbranch(ir.Constant(I1, 0), inside, after)
    b.position_at_end(after)
    b.ret_void()
    found = [n for block in function.blocks for n in block.instructions]
    assert [line_of(n) for n in found] == [str(n) for n in found] and len(found) >= 25
