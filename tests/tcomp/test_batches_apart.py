"""Launches of a small kernel that may not be one, by what each touches (`model/batches.py`): written by hand."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest

from tcomp.dsl.load import load_text
from tcomp.machine.cpu import detect
from tcomp.model.batches import in_batches
from tcomp.model.graph import Tensor, View
from tcomp.model.lowering import PlannedLaunch
from tcomp.model.placement import ALIGNMENT
from tcomp.schedule.lower import lower
from tests.tcomp.test_batches import run, tensor

N = 4
TEXT = """
op twice(x: f32[N]) -> y: f32[N]:
  y[i] = x[i] * 2.0

op less(x: f32[N], y: f32[N]) -> z: f32[N]:
  z[i] = x[i] - y[i]

op both(x: f32[N]) -> y: f32[N], z: f32[N]:
  y[i] = x[i] + 1.0
  z[i] = x[i] + 2.0

op ends(x: f32[2]) -> y: f32[2]:
  y[i] = x[i] + 4.0
"""


def keys(launches: list[tuple[str, dict[str, View]]], persistent: Collection[Tensor] = ()) -> list[str]:
    """The kernels' names with what may be joined; the persistent tensors hold what they would without."""
    planned = []
    for name, views in launches:
        module = load_text(TEXT + f"schedule {name} on cpu:\n  i -> seq\n")
        (kernel,) = lower(module.ops[name], module, {"N": N}, detect()).kernels
        planned.append(PlannedLaunch(name, kernel, tuple(views[o.name] for o in kernel.operands), name))
    joined, _ = in_batches(planned, [True] * len(planned), set(persistent), 0, lambda kernel: kernel.name)
    numbers = np.random.default_rng(0)
    given = {t: numbers.random(t.elements).astype(np.float32) for t in persistent}
    wanted, found = run(planned, given), run(joined, given)
    for t in persistent:
        np.testing.assert_array_equal(found[t], wanted[t])
    assert all(x.views[0].tensor.elements * 4 % ALIGNMENT == 0 for x in joined if ".x" in x.views[0].tensor.name)
    return [x.key for x in joined]


def part(t: Tensor, at: int, elements: int = N) -> View:
    return View(t, at, (elements,))


def test_one_that_reads_what_the_one_before_wrote() -> None:
    t = tensor("t", 3 * N)
    assert keys([("twice", {"x": part(t, i * N), "y": part(t, (i + 1) * N)}) for i in range(2)], [t]) == 2 * ["twice"]


def test_two_that_read_the_same_tensors_the_other_way_round() -> None:
    """Each would be a row of two tensors."""
    t, a, b = tensor("t", N), tensor("a", N), tensor("b", N)
    c, d, out = tensor("c", N), tensor("d", N), tensor("out", N)
    made = [("both", {"x": t.whole(), "y": a.whole(), "z": b.whole()})]
    made += [("less", {"x": x.whole(), "y": y.whole(), "z": z.whole()}) for x, y, z in ((a, b, c), (b, a, d))]
    assert keys([*made, ("less", {"x": c.whole(), "y": d.whole(), "z": out.whole()})], [t, out]).count("less") == 3


def test_what_writes_rows_of_a_tensor_that_several_have_become() -> None:
    """The two that read them stay on their sides of the one that writes both."""
    t, out = tensor("t", 2 * N), tensor("out", 2 * N)
    rows = [tensor("a", N), tensor("b", N)]
    made = [("twice", {"x": part(t, i * N), "y": rows[i].whole()}) for i in range(2)]
    reads = [("less", {"x": rows[i].whole(), "y": rows[i].whole(), "z": part(out, i * N)}) for i in range(2)]
    writes = ("both", {"x": part(t, 0), "y": rows[0].whole(), "z": rows[1].whole()})
    assert keys([*made, reads[0], writes, reads[1]], [t, out]) == ["twice.x2", "less", "both", "less"]


def test_parts_of_a_tensor_that_has_become_a_row() -> None:
    t, out = tensor("t", 2 * N), tensor("out", 2)
    rows = [tensor("a", N), tensor("b", N)]
    made = [("twice", {"x": part(t, i * N), "y": rows[i].whole()}) for i in range(2)]
    assert keys([*made, ("ends", {"x": part(rows[1], 1, 2), "y": out.whole()})], [t, out]) == ["twice.x2", "ends"]


@pytest.mark.parametrize(("elements", "joined"), [(12, True), (10, False)])
def test_rows_that_would_end_behind_their_tensor(elements: int, joined: bool) -> None:
    """Parts of 4 that are 6 apart: two rows of 6."""
    t, out = tensor("t", elements), tensor("out", 2 * N)
    made = [("twice", {"x": part(t, i * 6), "y": part(out, i * N)}) for i in range(2)]
    assert keys(made, [t, out]) == (["twice.x2"] if joined else 2 * ["twice"])
