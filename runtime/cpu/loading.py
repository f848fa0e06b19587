"""Object code as functions of this process, by LLVM's JITLink.

It places an object's sections side by side. LLVM's other linker asks for memory section by section, and ends the
process where that lies further apart than the 2 GiB that code reaches.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm


class Loader:
    """Keeps what it has loaded for as long as it lives: the addresses that it gives are valid until then."""

    def __init__(self) -> None:
        self._jit: Any = llvm.create_lljit_compiler(use_jit_link=True)
        self._libraries: list[Any] = []

    def load(self, code: bytes, symbols: tuple[str, ...]) -> dict[str, int]:
        """Addresses of an object's functions. Objects do not see each other."""
        builder = llvm.JITLibraryBuilder().add_object_img(code)
        for s in symbols:
            builder = builder.export_symbol(s)
        library = builder.link(self._jit, f"library{len(self._libraries)}")
        self._libraries.append(library)
        return {s: library[s] for s in symbols}
