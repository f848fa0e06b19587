"""The text of a module, and what it leaves behind (`codegen/llvm/text.py`)."""

from __future__ import annotations

import gc
import weakref

from llvmlite import ir

from tcomp.codegen.llvm.text import text_of
from tcomp.codegen.llvm.types import I64


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
