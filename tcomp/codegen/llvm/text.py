"""A finished module as text: as llvmlite writes it, the most frequent instructions in half of its time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from llvmlite.ir import instructions as ins


def text_of(module: ir.Module) -> str:
    """The module as text, which it gives once: its blocks are empty behind it.

    Functions, blocks and instructions name each other. Thousands of objects a kernel would stay in memory until Python
    next looks for circles; without these links they go with the last reference.
    """
    blocks = [block for function in module.functions for block in function.blocks]
    for block in blocks:
        block.instructions[:] = map(line_of, block.instructions)
    text = str(module)
    for block in blocks:
        block.instructions.clear()
        block.terminator = None
    for function in module.functions:
        function.blocks.clear()
    module.globals.clear()
    return text


def line_of(i: Any) -> str:
    """An instruction's line, without what it is indented by."""
    write = _WRITERS.get(type(i))
    return str(i) if write is None or i.metadata else write(i)


def _typed(values: Sequence[Any]) -> str:
    return ", ".join([f"{v.type!s} {v.get_reference()}" for v in values])


def _plain(i: Any) -> str:
    name = " ".join([i.opname, *i.flags]) if i.flags else i.opname
    return f"{i.get_reference()} = {name} {i.type!s} {', '.join([v.get_reference() for v in i.operands])}"


def _call(i: Any) -> str:
    callee = i.operands[0]
    result = callee.function_type.return_type
    if i.tail or i.cconv or i.attributes or i.fastmath or i.arg_attributes or callee.function_type.var_arg:
        return str(i)
    line = f"call {result!s} {callee.get_reference()}({_typed(i.operands[1:])})"
    return line if isinstance(result, ir.VoidType) else f"{i.get_reference()} = {line}"


def _compare(i: Any) -> str:
    a, b = i.operands
    flags = "".join([f" {flag}" for flag in i.flags])
    return f"{i.get_reference()} = {i.opname}{flags} {i.op} {a.type!s} {a.get_reference()}, {b.get_reference()}"


def _cast(i: Any) -> str:
    return f"{i.get_reference()} = {i.opname} {_typed(i.operands)} to {i.type!s}"


def _load(i: Any) -> str:
    return f"{i.get_reference()} = load {i.type!s}, {_typed(i.operands)}{_aligned(i)}"


def _store(i: Any) -> str:
    return f"store {_typed(i.operands)}{_aligned(i)}"


def _aligned(i: Any) -> str:
    return "" if i.align is None else f", align {i.align}"


def _element_pointer(i: Any) -> str:
    inbounds = " inbounds" if i.inbounds else ""
    return f"{i.get_reference()} = getelementptr{inbounds} {i.source_etype!s}, {_typed(i.operands)}"


def _phi(i: Any) -> str:
    incoming = ", ".join([f"[{v.get_reference()}, {b.get_reference()}]" for v, b in i.incomings])
    return f"{i.get_reference()} = phi {' '.join(i.flags)} {i.type!s} {incoming}"


def _of_vectors(i: Any) -> str:
    return f"{i.get_reference()} = {i.opname} {_typed(i.operands)}"


_WRITERS: dict[type, Callable[[Any], str]] = {
    ins.Instruction: _plain,
    ins.CallInstr: _call,
    ins.ICMPInstr: _compare,
    ins.FCMPInstr: _compare,
    ins.CastInstr: _cast,
    ins.LoadInstr: _load,
    ins.StoreInstr: _store,
    ins.GEPInstr: _element_pointer,
    ins.PhiInstr: _phi,
    ins.ExtractElement: _of_vectors,
    ins.InsertElement: _of_vectors,
    ins.ShuffleVector: _of_vectors,
}
"""How llvmlite writes these classes; it writes all others, and what has metadata, itself."""


def safe_name(name: str) -> str:
    """A name of tile IR as one of LLVM's and of PTX."""
    return "".join(c if c.isalnum() else "_" for c in name)
