"""Which of a slow test's cases a run has, where each takes many seconds: some of them, others with each commit.

A whole step that is held to the same law in each precision, or with each optimizer, finds as much in the long run when
each run has some of the cases, and costs a part: what breaks it breaks it in most cases, and what breaks a few shows
some commits later. What several cases have in common (a target, an op, a precision) each run has a case of. What takes
a second or two, or holds what a document says, is in every run: a failure that shows commits later is nobody's.
TESTS_TURN chooses: by itself it is the commit's hash (0 where there is no git), so that the same commit has the same
cases again; any other word is another choice, and `all` (in CI) all of them. A run's last lines say which it was. Cases
that are named, or asked for by -k, always run.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

ALL = "all"


def turn() -> str:
    """What this run's choice follows from."""
    return os.environ.get("TESTS_TURN") or _commit()


def _commit() -> str:
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return "0"
    return found.stdout.strip() or "0"


def in_turns(parts: int) -> pytest.MarkDecorator:
    """Of a test's slow cases that have this mark, a run has one in `parts`."""
    return pytest.mark.in_turns(parts)


def chosen(count: int, parts: int, of: str, kinds: Sequence[frozenset[str]] = ()) -> set[int]:
    """The numbers of the cases, of `count`, that the run `of` has: one in `parts`, and of each kind that several cases
    are of at least one. `kinds`: those of each case."""
    if of == ALL:
        return set(range(count))
    order = random.Random(of).sample(range(count), count)
    missing = {kind for kind, n in Counter(kind for case in kinds for kind in case).items() if n > 1}
    kept: list[int] = []
    while missing:
        kept.append(max(order, key=lambda n: len(kinds[n] & missing)))
        missing -= kinds[kept[-1]]
    rest = [n for n in order if n not in kept]
    return {*kept, *rest[: max(0, -(-count // parts) - len(kept))]}


def examples(count: int, parts: int, **more: Any) -> Callable[[Any], Any]:
    """For a test of hypothesis: one in `parts` of `count` examples, others in each turn."""
    of = turn()
    limits = hypothesis.settings(max_examples=count if of == ALL else -(-count // parts), deadline=None, **more)
    return lambda test: hypothesis.seed(of)(limits(test))


def left_out(config: pytest.Config, items: list[pytest.Item]) -> list[pytest.Item]:
    """Those of the collected tests that other runs have."""
    if config.option.keyword or any("::" in argument for argument in config.args):
        return []
    tests: dict[str, list[tuple[pytest.Item, int]]] = {}
    for item in items:
        mark = item.get_closest_marker("in_turns")
        if mark is not None and item.get_closest_marker("slow") is not None:
            tests.setdefault(item.nodeid.partition("[")[0], []).append((item, mark.args[0]))
    found = []
    for name, cases in tests.items():
        of = turn() if turn() == ALL else f"{turn()} {name}"  # (else tests with as many cases would have the same ones)
        kept = chosen(len(cases), cases[0][1], of, [_kinds(item) for item, _ in cases])
        found += [item for n, (item, _) in enumerate(cases) if n not in kept]
    return found


def _kinds(item: pytest.Item) -> frozenset[str]:
    """A case's parameters, but for what seeds a random one; of one that is a case of some op, the op."""
    call = getattr(item, "callspec", None)
    params = call.params.items() if call is not None else ()
    return frozenset(f"{name}={getattr(x, 'op', x)!r}" for name, x in params if name != "seed")
