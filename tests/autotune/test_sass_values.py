"""What integer instructions make of known values, and of some that are not known."""

from __future__ import annotations

from tcomp.autotune.sass_values import MASK, arithmetic, extreme, logic, product


def test_sums_and_products_wrap_at_32_bits() -> None:
    assert arithmetic("IADD3", "IADD3", [MASK, 2, 0]) == 1
    assert arithmetic("IMAD", "IMAD", [3, MASK, 5]) == 2
    assert arithmetic("IADD3", "IADD3.X", [1, 2, 3]) is None, "a carry is not followed"
    assert arithmetic("LEA", "LEA", [3, 100, 4]) == 148


def test_the_product_of_a_division_has_64_bits() -> None:
    operands = ("R0", "R1", "0x2", "RZ")
    assert product("IMAD.WIDE.U32", operands, [0xAAAAAAAB, 9, 0]) == 0xAAAAAAAB * 9
    assert product("IMAD.WIDE", operands, [MASK, 2, 0]) == (1 << 64) - 2, "signed: -1 times 2"
    assert product("IMAD.WIDE", (*operands[:3], "R2"), [1, 2, 3]) is None, "the addend is a pair of registers"


def test_comparisons_have_signs_unless_they_say_otherwise() -> None:
    assert extreme("IMNMX", "IMNMX", [MASK, 1], min) == MASK
    assert extreme("IMNMX", "IMNMX.U32", [MASK, 1], min) == 1


def test_a_zero_makes_an_unknown_factor_known() -> None:
    assert logic(None, 0, 7, 0xC0) == 0
    assert logic(None, 1, 7, 0xC0) is None
