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


def test_what_cases_have_in_common_each_turn_has() -> None:
    cases = [frozenset({f"op={op}", f"target={target}"}) for op in "abc" for target in range(4)]
    lone = [*cases, frozenset({"op=d", "target=0"})]
    for turn in map(str, range(30)):
        kept = chosen(len(lone), 3, turn, lone)
        assert len(kept) == 5
        assert frozenset().union(*(lone[n] for n in kept)) >= frozenset().union(*cases), "each target, each op but d"
    assert len(chosen(12, 6, "1", cases)) == 4, "more than a part, if need be"


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

    def item(name: str, *marks: pytest.MarkDecorator, **params: str) -> Any:
        marked = {m.name: m.mark for m in marks}.get
        return SimpleNamespace(nodeid=name, get_closest_marker=marked, callspec=SimpleNamespace(params=params))

    def left(*args: str, keyword: str = "") -> list[Any]:
        return left_out(SimpleNamespace(args=args, option=SimpleNamespace(keyword=keyword)), items)  # type: ignore[arg-type]

    slow = pytest.mark.slow
    marked = [item(f"a.py::test[{n}]", slow, in_turns(3), target="sm_90" if n < 7 else "sm_80") for n in range(8)]
    targets = [item(f"c.py::test[{n}]", slow, in_turns(4), target=f"sm_{n // 2}") for n in range(8)]
    seeds = [item(f"d.py::test[{n}]", slow, in_turns(8), seed=str(n // 2)) for n in range(8)]
    items = [
        *marked,
        *targets,
        *seeds,
        item("a.py::test[quick]", in_turns(3)),
        item("a.py::test[few]", slow),
        item("b.py::test[0]", slow, in_turns(2)),
    ]
    assert len([x for x in left("tests") if x in marked]) == 5
    assert len([x for x in left("tests") if x in targets]) == 4, "one of each target"
    assert len([x for x in left("tests") if x in seeds]) == 7, "seeds are no kinds"
    assert len(left("tests")) == 16, "b's one, and what is not marked or not slow, stay"
    assert left("a.py::test[3]") == left("tests", keyword="test") == []
