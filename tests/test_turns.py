"""Cases in turns (tests/turns.py): each run has its part, again the same, and all runs have all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tests.turns import ALL, chosen, examples, in_turns, left_out


def test_a_turn_has_its_part_and_all_turns_have_all() -> None:
    turns = [chosen(9, 2, str(turn)) for turn in range(30)]
    assert {len(t) for t in turns} == {5} and turns == [chosen(9, 2, str(turn)) for turn in range(30)]
    assert set().union(*turns) == set(range(9)) == chosen(9, 2, ALL)


@pytest.mark.parametrize(("turn", "count"), [("1", 4), ("2", 4), (ALL, 8)])
def test_examples_are_others_in_each_turn(turn: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTS_TURN", turn)
    found: list[list[int]] = [[], []]

    def drawn(into: list[int]) -> None:
        @examples(8, 2, database=None)
        @given(st.integers(0, 10**9))
        def test(x: int) -> None:
            into.append(x)

        test()

    drawn(found[0])
    monkeypatch.setenv("TESTS_TURN", turn if turn == ALL else turn + "0")
    drawn(found[1])
    assert len(found[0]) == len(found[1]) == count and (found[0] == found[1]) == (turn == ALL)


def test_a_case_that_is_named_always_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTS_TURN", "7")

    def item(name: str, *marks: pytest.MarkDecorator) -> Any:
        return SimpleNamespace(nodeid=name, get_closest_marker={m.name: m.mark for m in marks}.get)

    slow = pytest.mark.slow
    marked = [item(f"a.py::test[{n}]", slow, in_turns(3)) for n in range(8)]
    items = [
        *marked,
        item("a.py::test[quick]", in_turns(3)),
        item("a.py::test[few]", slow),
        item("b.py::test[0]", slow, in_turns(2)),
    ]
    left = left_out(SimpleNamespace(args=["tests"]), items)  # type: ignore[arg-type]
    assert len(left) == 5 and all(x in marked for x in left), "one of b's one, and what is not marked or not slow, stay"
    assert left_out(SimpleNamespace(args=["a.py::test[3]"]), items) == []  # type: ignore[arg-type]
