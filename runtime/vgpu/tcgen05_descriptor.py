"""The descriptors of tcgen05.mma (PTX ISA 9.7.16.4): 32 bits that say which product, 64 that say where an operand lies.

The shared memory descriptor is wgmma's but for the swizzle's code, one more bit of it, and three fixed bits; layouts
are the same (`wgmma_descriptor.chunk_offsets`).
"""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.runtime.vgpu.wgmma_descriptor import Layout

WIDTHS = {0: 0, 2: 128, 4: 64, 6: 32}
"""swizzle code -> bytes of the swizzle"""
ATOMS_OF_32 = 1
"""the code of 128-byte swizzling that moves 32 bytes at a time"""
_TYPES = {
    "f16": {0: "f16", 1: "bf16"},
    "tf32": {2: "tf32"},
    "f8f6f4": {0: "e4m3", 1: "e5m2", 3: "e2m3", 4: "e3m2", 5: "e2m1"},
}
EXECUTED = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32}
"""element types and the K of their products: 32 bytes"""


class Malformed(Exception):
    """What is wrong with a descriptor."""


class NotModelled(Exception):
    """What a legal descriptor asks for that is not executed."""


@dataclass(frozen=True)
class Product:
    """D (m x n, type d) += A (m x k, type a) B (k x n, type b), negated or not; in shared memory the operands' rows run
    along k, or across it where transposed."""

    m: int
    n: int
    d: str
    a: str
    b: str
    negative: bool
    transposed_a: bool
    transposed_b: bool

    @property
    def k(self) -> int:
        return EXECUTED[self.a]


def product_of(kind: str, bits: int, blocks: int = 1) -> Product:
    """The instruction descriptor of .kind::f16, tf32 or f8f6f4, for a product of so many blocks. Malformed,
    NotModelled."""
    if bits >> 2 & 1:
        raise NotModelled("sparse matrices")
    wrong = bits & (0b1001011 | 1 << 23 | 1 << 29 | 3 << 30)
    if wrong:
        raise Malformed(f"bits that must be zero are set: {wrong:#x}")
    d = {0: "f16", 1: "f32"}.get(bits >> 4 & 3)
    a, b = (_TYPES[kind].get(bits >> at & 7) for at in (7, 10))
    if a is None or b is None:
        raise Malformed(f"codes {bits >> 7 & 7} and {bits >> 10 & 7} are no types of A and B in .kind::{kind}")
    if a not in EXECUTED or b not in EXECUTED:
        raise NotModelled(f"operands of type {a if a not in EXECUTED else b}")
    if d is None or (d == "f16" and (kind == "tf32" or "bf16" in (a, b))):
        raise Malformed(f"code {bits >> 4 & 3} is no type of D for .{a} by .{b}")
    if kind == "f16" and a != b:
        raise Malformed(f"A is .{a} and B is .{b}")
    m, n = (bits >> 24 & 31) << 4, (bits >> 17 & 63) << 3
    transposed_a, transposed_b = bool(bits >> 15 & 1), bool(bits >> 16 & 1)
    step = (16 if transposed_b and kind == "f8f6f4" else 8) * blocks  # (tables 39, 52; for M = 128 CUTLASS takes 16)
    if m not in (64 * blocks, 128 * blocks):
        raise Malformed(f"M = {m}: it must be {64 * blocks} or {128 * blocks} with .cta_group::{blocks}")
    if m == 64 * blocks and blocks > 1:
        raise NotModelled("products of 128 rows of two blocks, of which each has all rows of half of the columns,")
    if not step <= n <= 256 or n % step:
        raise Malformed(f"N = {n}: it must be a multiple of {step} up to 256")
    if kind == "tf32" and (transposed_a or transposed_b):
        raise NotModelled("transposed tf32 operands, which need 128-byte swizzling with atoms of 32 bytes")
    return Product(m, n, d, a, b, bool((bits >> 13 ^ bits >> 14) & 1), transposed_a, transposed_b)


def layout_of(descriptor: int) -> Layout:
    """All of a shared memory descriptor but the start address. Malformed, NotModelled."""
    code = descriptor >> 61 & 7
    if code == ATOMS_OF_32:
        raise NotModelled("128-byte swizzling with atoms of 32 bytes")
    if code not in WIDTHS:
        raise Malformed(f"swizzle code {code}: it must be 0, 1, 2, 4 or 6")
    if descriptor >> 46 & 7 != 1:
        raise Malformed(f"bits 46 to 48 are {descriptor >> 46 & 7:#05b}: they must be 0b001")
    wrong = descriptor & (3 << 14 | 3 << 30 | 0x1FF << 52)
    if wrong:
        raise Malformed(f"bits that must be zero are set: {wrong:#x}")
    leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (16, 32))
    return Layout(leading, stride, descriptor >> 49 & 7, WIDTHS[code])
