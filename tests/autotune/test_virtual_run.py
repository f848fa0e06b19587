"""What a run on the virtual GPU counts: conflicts where they are asked for, and nothing that nobody reads."""

from __future__ import annotations

from typing import Any

import pytest

from tcomp.autotune import virtual_run
from tcomp.runtime.vgpu.machine import Options


@pytest.mark.parametrize(
    ("options", "counted"),
    [(None, False), (Options(order=3), False), (Options(conflicts=0), True), (Options(conflicts=1, order=3), True)],
)
def test_conflicts_are_counted_where_a_bound_makes_them_findings(
    options: Options | None, counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Options] = []

    def reported(op: Any, lowered: Any, inputs: Any, machine: Any, options: Options, codes: Any) -> tuple[Any, Any]:
        asked.append(options)
        return {}, []

    monkeypatch.setattr(virtual_run, "reported", reported)
    given: Any = None
    virtual_run.execute(given, given, {}, given, options)
    (own,) = asked
    assert own.profile is counted
    assert (own.conflicts, own.order) == ((options or Options()).conflicts, (options or Options()).order)
