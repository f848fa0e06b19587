"""Which of a slow test's many cases a run has: some of them, others with each commit.

A law that is held to a hundred random cases, or to each op at each size and target, finds as much in the long run when
each run has some of them, and costs a part: what breaks it breaks it in most cases, and what breaks a few shows some
commits later.
TESTS_TURN chooses: by itself it is the commit's hash, so that the same commit has the same cases again; any other word
is another choice, and `all` all of them. A run's last lines say which it was. A case that is named alone always runs.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
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


def chosen(count: int, parts: int, of: str) -> set[int]:
    """The numbers of the cases, of `count`, that the run `of` has."""
    if of == ALL:
        return set(range(count))
    return set(random.Random(of).sample(range(count), -(-count // parts)))


def examples(count: int, parts: int, **more: Any) -> Callable[[Any], Any]:
    """For a test of hypothesis: one in `parts` of `count` examples, others in each turn."""
    of = turn()
    limits = hypothesis.settings(max_examples=count if of == ALL else -(-count // parts), deadline=None, **more)
    return lambda test: hypothesis.seed(of)(limits(test))


def left_out(config: pytest.Config, items: list[pytest.Item]) -> list[pytest.Item]:
    """Those of the collected tests that other runs have."""
    tests: dict[str, list[tuple[pytest.Item, int]]] = {}
    for item in items:
        mark = item.get_closest_marker("in_turns")
        if mark is not None and item.get_closest_marker("slow") is not None:
            tests.setdefault(item.nodeid.partition("[")[0], []).append((item, mark.args[0]))
    if any("::" in argument for argument in config.args):
        return []
    found = []
    for cases in tests.values():
        kept = chosen(len(cases), cases[0][1], turn())
        found += [item for n, (item, _) in enumerate(cases) if n not in kept]
    return found
