"""A finished module as text."""

from __future__ import annotations

from llvmlite import ir


def text_of(module: ir.Module) -> str:
    """The module as text, which it gives once: its blocks are empty behind it.

    Functions, blocks and instructions name each other. Thousands of objects a kernel would stay in memory until Python
    next looks for circles; without these links they go with the last reference.
    """
    text = str(module)
    for function in module.functions:
        for block in function.blocks:
            block.instructions.clear()
            block.terminator = None
        function.blocks.clear()
    module.globals.clear()
    return text
