"""Which thread holds which element of a matrix operand: layouts as tables of bits.

Every fragment layout of the tensor cores is linear in the bits of the thread's number and of the element's number
within the thread: each bit that is 1 adds a fixed step to the row and the column. So a layout is two lists of steps.

    D of mma.sync m16n8:  lane bits (0,2) (0,4) (1,0) (2,0) (4,0)    row = lane / 4, column = 2 (lane % 4)
                          element bits (0,1) (8,0)                   two neighbouring columns, then the row 8 below

Source: PTX ISA, "Matrix Fragments for mma" and "Register Fragments and Shared Memory Matrix Layouts" of wgmma.
"""

from __future__ import annotations

from dataclasses import dataclass

Step = tuple[int, int]
"""What a bit adds to (row, column)."""


def place(steps: tuple[Step, ...], number: int) -> Step:
    """The (row, column) that a number's bits add up to."""
    row = sum(r for i, (r, _) in enumerate(steps) if number >> i & 1)
    return row, sum(c for i, (_, c) in enumerate(steps) if number >> i & 1)


@dataclass(frozen=True)
class FragmentLayout:
    """A matrix of `shape` (rows, columns) over 2 ** len(threads) threads, 2 ** len(elements) elements each."""

    shape: tuple[int, int]
    threads: tuple[Step, ...]
    elements: tuple[Step, ...]

    def place(self, thread: int, element: int) -> Step:
        """The row and column of a thread's element."""
        (r, c), (dr, dc) = place(self.threads, thread), place(self.elements, element)
        return r + dr, c + dc

    @property
    def transposed(self) -> FragmentLayout:
        """The same registers, read as the transpose of the matrix."""

        def swap(steps: tuple[Step, ...]) -> tuple[Step, ...]:
            return tuple((c, r) for r, c in steps)

        return FragmentLayout(self.shape[::-1], swap(self.threads), swap(self.elements))


@dataclass(frozen=True)
class MatrixLoad:
    """How one ldmatrix.x4 fills a fragment from shared memory: `lanes` are the steps of the 16-byte row that each lane
    points at, in elements of (row, column) of the operand; with `transposed` the rows run along the operand's rows.

    Elements of other than 16 bits move as pairs (tf32: halves), so they cannot be transposed.
    """

    lanes: tuple[Step, ...]
    transposed: bool


def quad(grain: int) -> tuple[Step, ...]:
    """A warp whose lanes 4 g + t hold row g and columns from t * grain on."""
    return ((0, grain), (0, 2 * grain), (1, 0), (2, 0), (4, 0))


def accumulator(columns: int) -> FragmentLayout:
    """D of m16n8 (one warp): register pairs hold two neighbouring columns of rows g and g + 8."""
    wide = tuple((0, 8 << i) for i in range((columns // 8 - 1).bit_length()))
    return FragmentLayout((16, columns), quad(2), ((0, 1), (8, 0), *wide))


def rows_operand(bits: int) -> FragmentLayout:
    """A of m16: 32 bytes of k for 16 rows. 16-bit and 8-bit elements are packed in 32-bit registers, lowest first; a
    register's neighbour is the row 8 below, then come the second 16 bytes of k."""
    packed = 32 // bits
    inside = tuple((0, 1 << i) for i in range(packed.bit_length() - 1))
    return FragmentLayout((16, 8 * packed), quad(packed), (*inside, (8, 0), (0, 4 * packed)))


def columns_operand(bits: int) -> FragmentLayout:
    """B of n8, as (k, n): 32 bytes of k for 8 columns."""
    packed = 32 // bits
    inside = tuple((0, 1 << i) for i in range(packed.bit_length() - 1))
    return FragmentLayout((8, 8 * packed), quad(packed), (*inside, (0, 4 * packed))).transposed


def warpgroup(layout: FragmentLayout) -> FragmentLayout:
    """Four warps, 16 rows each."""
    rows, columns = layout.shape
    return FragmentLayout((4 * rows, columns), (*layout.threads, (rows, 0), (2 * rows, 0)), layout.elements)
