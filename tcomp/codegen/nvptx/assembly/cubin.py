"""The static shared memory that a cubin itself states, in its ELF section headers.

The assembler's log cannot be used for it: it leaves out shared arrays of the whole module, and whether it counts what
the hardware keeps for itself differs from target to target.
"""

from __future__ import annotations

import struct

_RESERVED = 1024
"""From sm_90 on, a section of shared memory begins with what the hardware keeps for itself."""


def static_shared(cubin: bytes, sm: int) -> dict[str, int]:
    """Bytes of the sections `.nv.shared.KERNEL` by kernel. ValueError for what is no ELF."""
    if cubin[:5] != b"\x7fELF\x02" or len(cubin) < 64:
        raise ValueError("not a 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", cubin, 40)
    width, count, names_at = struct.unpack_from("<HHH", cubin, 58)
    if width < 64 or table + width * count > len(cubin) or names_at >= count:
        raise ValueError("its section headers are cut short")
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + width * i) for i in range(count)]
    names = headers[names_at][4]
    found = {}
    for name_at, _, _, _, _, size in headers:
        name = cubin[names + name_at : cubin.find(b"\0", names + name_at)].decode(errors="replace")
        if name.startswith(".nv.shared.") and not name.startswith(".nv.shared.reserved"):
            found[name.removeprefix(".nv.shared.")] = size - (min(size, _RESERVED) if sm >= 90 else 0)
    return found
