"""Which PTX a cubin was assembled from: machine code cannot be run here, its PTX can.

`register_cubin` notes the pair in this process and, by the cubin's content, in the user's cache folder, so that
another process that loads the same cubin finds it, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import struct
from collections.abc import Callable

from tcomp.codegen.cache import ContentCache, default_folder

_known: dict[str, str] = {}
MAGIC = b"\x7fELF\x02"
_HEADER = struct.Struct("<QQIHHHHHH")  # from e_phoff on
_SECTION = struct.Struct("<IIQQQQII")
_CUDA_MACHINE = 190
_HAS_PAYLOAD, _REGISTER_COUNT = 0x04, 0x2F


def register_cubin(cubin: bytes, ptx: str) -> None:
    """`cubin` was assembled from `ptx`: the virtual driver runs that when it is given the cubin."""
    key = _key(cubin)
    if key in _known:
        return
    _known[key] = ptx
    cache = _cache()
    if not cache.path(key).exists():
        cache.store(key, ptx.encode())


def ptx_of(cubin: bytes) -> str | None:
    """The PTX of a cubin that was registered in this process or by way of the cache; None for another."""
    key = _key(cubin)
    if key not in _known:
        body = _cache().load(key)
        if body is None:
            return None
        _known[key] = body.decode()
    return _known[key]


def elf_at(address: int) -> bytes:
    """The ELF file in host memory at `address`; its own headers say how long it is. ValueError for no cubin."""
    return elf_bytes(lambda at, count: ctypes.string_at(address + at, count))


def elf_bytes(read: Callable[[int, int], bytes]) -> bytes:
    head = read(0, 64)
    if head[:5] != MAGIC or struct.unpack_from("<H", head, 18)[0] != _CUDA_MACHINE:
        raise ValueError("not a 64-bit CUDA ELF file")
    programs, sections, _, _, program_size, program_count, width, count, _ = _HEADER.unpack_from(head, 32)
    end = max(64, programs + program_size * program_count, sections + width * count)
    if width < _SECTION.size or count > 1 << 14:
        raise ValueError("its section headers make no sense")
    table = read(sections, width * count)
    for n in range(count):
        _, kind, _, _, offset, size, _, _ = _SECTION.unpack_from(table, n * width)
        if kind != 8:  # SHT_NOBITS takes no room in the file
            end = max(end, offset + size)
    return read(0, end)


def registers_of(cubin: bytes) -> dict[str, int]:
    """Registers per thread by kernel, from the register counts in the section .nv.info."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    width, count, names_at = struct.unpack_from("<HHH", cubin, 58)
    headers = [_SECTION.unpack_from(cubin, table + width * n) for n in range(count)]
    names = headers[names_at][4]
    sections = {_name(cubin, names + h[0]): h for h in headers}
    info, symbols = sections.get(".nv.info"), sections.get(".symtab")
    if info is None or symbols is None:
        return {}
    strings = headers[symbols[6]][4]  # a symbol table links to its strings
    found = {}
    at, end = info[4], info[4] + info[5]
    while at + 4 <= end:
        form, attribute, size = struct.unpack_from("<BBH", cubin, at)
        if (form, attribute) == (_HAS_PAYLOAD, _REGISTER_COUNT):
            symbol, registers = struct.unpack_from("<II", cubin, at + 4)
            (name_at,) = struct.unpack_from("<I", cubin, symbols[4] + 24 * symbol)
            found[_name(cubin, strings + name_at)] = registers
        at += 4 + (size if form == _HAS_PAYLOAD else 0)
    return found


def sm_of(cubin: bytes) -> int:
    """The compute capability that a cubin is for, 90 for sm_90a: in the ELF flags, where depends on their version."""
    (flags,) = struct.unpack_from("<I", cubin, 48)
    return int(flags >> 8 & 0xFF) if cubin[8] >= 8 else int(flags & 0xFF)


def _name(cubin: bytes, at: int) -> str:
    return cubin[at : cubin.find(b"\0", at)].decode(errors="replace")


def _key(cubin: bytes) -> str:
    with contextlib.suppress(ValueError, struct.error):
        cubin = elf_bytes(lambda at, count: cubin[at : at + count])
    return hashlib.sha256(cubin).hexdigest()[:40]


def _cache() -> ContentCache:
    return ContentCache(default_folder("cubin-sources"), kind="cubin-source-1", suffix=".ptx")
