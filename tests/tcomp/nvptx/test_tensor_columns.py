"""Columns of tensor memory by liveness (`tensor_columns.py`): of hand-built loops, who lies where."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from tcomp.codegen.nvptx.products.tensor_columns import give_columns
from tcomp.dsl.ast import Expr, Num
from tcomp.ir.tile import Axis, Compute
from tests.tcomp.nvptx.support import at, loop, op

COLUMNS = Axis("n", Num(0), Num(128), 128)


def step(target: str, *reads: str, adds: bool = False) -> Compute:
    value: Expr = Num(1)
    for r in reads:
        value = op("*", value, at(r, "n"))
    return Compute(at(target, "n"), value, (COLUMNS,), accumulate=adds)


def piece(node: Compute, left: str, columns: int, packed: int = 0, groups: int = 1) -> Any:
    """What stands for a product with so many columns, and so many of its `left` operand."""
    match = SimpleNamespace(n=SimpleNamespace(block=columns), a=SimpleNamespace(buffer=SimpleNamespace(name=left)))
    return SimpleNamespace(node=node, match=match, packed=packed, groups=groups, first=-1, left_first=-1, stride=-1,
                           shares=None)  # fmt: skip


S, P, SUM, DP, Q = step("S", "Q", "K"), step("P", "S"), step("o", "P", "V", adds=True), step("dP", "P"), step("q", "dP")


def test_a_left_operand_lies_where_a_result_was_that_has_been_read() -> None:
    """And each warpgroup's columns behind those of the one before."""
    s, o = piece(S, "Q", 128, groups=2), piece(SUM, "P", 64, packed=64, groups=2)
    assert give_columns((loop("k", 4, 1, S, P, SUM),), [s, o], 32) == 2 * 192
    assert (s.first, o.left_first, o.first, o.stride, s.stride) == (32, 32, 160, 192, 192)
    assert s.shares == {id(SUM)} and o.shares == {id(S)}


def test_a_result_that_is_read_twice_is_in_registers_since_the_first_time() -> None:
    s, o = piece(S, "Q", 128), piece(SUM, "P", 64, packed=64)
    assert give_columns((loop("k", 4, 1, S, P, step("r", "S"), SUM),), [s, o], 0) == 192


def test_what_is_made_before_the_result_was_read_lies_elsewhere() -> None:
    """P from Q alone, while S is still wanted: both before the product of P."""
    early, late = step("P", "Q"), step("r", "S")
    s, o = piece(S, "Q", 128), piece(SUM, "P", 64, packed=64)
    assert give_columns((loop("k", 4, 1, S, early, late, SUM),), [s, o], 0) == 256
    assert len({s.first, o.first, o.left_first}) == 3 and s.shares == o.shares == set()


def test_a_left_operand_stays_until_the_turn_ends() -> None:
    """Nothing says when its product is over: dP, which comes after it, has columns of its own."""
    o, dp = piece(SUM, "P", 32, packed=64), piece(DP, "Q", 64)
    assert give_columns((loop("k", 4, 1, P, SUM, DP, Q),), [o, dp], 0) == 160
    s, dp = piece(S, "Q", 64), piece(DP, "Q", 64)  # (S has been read before dP is made)
    assert give_columns((loop("k", 4, 1, S, P, DP, Q),), [s, dp], 0) == 64


def test_all_stays_apart_that_loops_need_whose_order_is_not_known() -> None:
    s, dp = piece(S, "Q", 64), piece(DP, "Q", 64)
    assert give_columns((loop("k", 4, 1, S, P), loop("j", 4, 1, DP, Q)), [s, dp], 0) == 128


def test_turns_that_run_into_each_other_share_nothing() -> None:
    late = replace(SUM, late=True)
    s, o = piece(S, "Q", 128), piece(late, "P", 64, packed=64)
    assert give_columns((loop("k", 4, 1, S, P, late),), [s, o], 0) == 256


def test_sums_stay_where_they_are() -> None:
    """What is added up over turns is read in the last of them, or in each: nobody takes its columns."""
    s, o = piece(S, "Q", 64), piece(SUM, "P", 64)
    read = step("r", "o")
    assert give_columns((loop("k", 4, 1, S, P, SUM, read, DP, Q),), [s, o, piece(DP, "Q", 64)], 0) == 128


def test_of_places_that_add_no_columns_the_one_that_was_needed_last_is_taken() -> None:
    """dP comes where S has just been read, not where T was read before that."""
    t, u = step("T", "Q"), step("u", "T")
    pieces = [piece(t, "Q", 64), piece(S, "Q", 64), piece(SUM, "P", 64), piece(DP, "Q", 32)]
    give_columns((loop("k", 4, 1, S, t, u, P, SUM, DP, Q),), pieces, 0)
    assert pieces[3].shares == {id(S)} and pieces[1].first == pieces[3].first
