"""Search spaces are what the schedule's own lines say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.autotune import storage
from tcomp.autotune.instances import op_hash, schedule_hash
from tcomp.autotune.judge import Job
from tcomp.autotune.kept_trials import values_of
from tcomp.autotune.space import Space, spaces_of
from tcomp.dsl.errors import TcError
from tcomp.machine.cpu import detect
from tcomp.schedule.lower import lower
from tests.autotune.support import SCALE, gpt2, module_of, scale

FACTS = {"l2": 100}


def space_of(*lines: str) -> Space:
    body = "\n".join(f"  {line}" for line in lines)
    module = module_of(f"op f(X: f32[M]) -> Y: f32[M]:\n  Y[m] = X[m]\n\nschedule f on cpu:\n{body}\n")
    (space,) = spaces_of(module.schedules["f", "cpu"], FACTS)
    return space


def points(space: Space) -> list[dict[str, float]]:
    return sorted(space.points(0), key=repr)


def test_every_combination_of_choices_is_a_point() -> None:
    _, _, space = scale()
    assert space.size == len(points(space)) == 12
    assert space.default == {"A": 8, "U": 2}
    assert {(p["A"], p["U"]) for p in points(space)} == {(a, u) for a in (4, 8, 16, 32) for u in (1, 2, 3)}


def test_a_condition_forbids_points() -> None:
    space = space_of(
        "tune A = 8 from 8, 16, 32", "tune B = 1 from 1, 4", "where A * B <= l2", "m -> seq(A) / unroll(B)"
    )
    assert [(p["A"], p["B"]) for p in points(space)] == [(16, 1), (16, 4), (32, 1), (8, 1), (8, 4)]
    assert space.problem({"A": 32, "B": 4}) == "where A * B <= l2 does not hold"
    assert "not among its choices 8, 16, 32" in space.problem({"A": 9, "B": 1})


def test_choices_may_depend_on_other_parameters() -> None:
    space = space_of("tune A = 8 from 8, 16", "tune B = A from A, 2 * A", "m -> seq(B) / unroll(A)")
    assert [(p["A"], p["B"]) for p in points(space)] == [(16, 16), (16, 32), (8, 16), (8, 8)]


CONDITIONAL = (
    "tune A = 8 from 8, 16",
    "tune B = 2 * A from 4, A",
    "tune C = B // 2 from B // 2, B",
    "m -> seq(B) / unroll(C)",
)


def test_defaults_and_choices_that_use_parameters_above_them_make_a_conditional_space() -> None:
    space = space_of(*CONDITIONAL)
    assert space.default == {"A": 8, "B": 16, "C": 8}
    assert space.filled({"A": 16}) == {"A": 16, "B": 32, "C": 16}, "defaults follow the values above them"
    assert space.own({"A": 16, "C": 32}) == {"A": 16, "B": 32, "C": 32}
    found = [(p["A"], p["B"], p["C"]) for p in points(space)]
    assert len(found) == len(set(found)) == space.size == 12
    assert set(found) == {(a, b, c) for a in (8, 16) for b in (4, a, 2 * a) for c in (b // 2, b)}
    assert space.problem({"A": 8, "B": 32, "C": 16}) == "B = 32 is not among its choices 4, 8, 16"


def test_every_draw_of_a_conditional_space_is_a_point(tmp_path: Path) -> None:
    """Also stored and read again: a trial's values are the study's parameters at its places."""
    text = SCALE.replace("tune U = 2 from 1, 2, 3", "tune U = A // 8 + 1 from 1, A // 8 + 1, A // 4 + 1")
    job = job_of(text)
    study = storage.open_study(storage.open_storage(tmp_path / "t.sqlite3"), job, "avx2", "measured", 0)
    storage.add_default(study, job.space, 1.0)
    seen = set()
    for _ in range(25):
        trial, values = storage.ask(study, job.space)
        assert not job.space.problem(values)
        assert storage.decoded_point(job.space, storage.encoded_point(job.space, values)) == values
        study.tell(trial, 1.0)
        seen.add((values["A"], values["U"]))
    assert len(seen) > 4


def test_lowering_takes_every_point_of_a_conditional_space_and_no_other() -> None:
    text = SCALE.replace("tune U = 2 from 1, 2, 3", "tune U = A // 8 + 1 from 1, A // 4 + 1")
    module, instance, space = scale(text=text)
    for values in space.points(0):
        lower(instance.op, module, dict(instance.dims), detect(), 1, space.chosen(values))
    with pytest.raises(TcError, match="not among its choices"):
        lower(instance.op, module, dict(instance.dims), detect(), 1, {"A": 8, "U": 9})


def test_a_condition_of_other_kernels_parameters_adds_none() -> None:
    module = module_of(
        """op f(X: f32[M]) -> Y: f32[M], Z: f32[M]:
  Y[m] = X[m]
  Z[m] = 2.0 * X[m]

schedule f on cpu:
  tune A = 8 from 8, 16
  tune B = 1 from 1, 2
  where A * B <= 16
  kernel Y:
    m -> seq(A) / unroll(B)
  kernel Z:
    tune D = 4 from 4, 8
    m -> seq(D)
"""
    )
    spaces = {s.kernel: s for s in spaces_of(module.schedules["f", "cpu"], FACTS)}
    assert {k: {p.name for p in s.parameters} for k, s in spaces.items()} == {"Y": {"A", "B"}, "Z": {"D"}}
    assert len(points(spaces["Y"])) == 3 and spaces["Z"].conditions == ()


def test_a_parameter_that_a_kernel_does_not_use_is_not_its_own() -> None:
    facts = {"registers": 16, "lanes": 8, "l1": 1 << 15, "l2": 1 << 19, "cores": 2, "M": 256}
    spaces = {s.kernel: s for s in spaces_of(gpt2().schedules["linear.backward", "cpu"], facts)}
    assert set(spaces) == {"dX", "dW"}
    assert {p.name for p in spaces["dX"].parameters} == {"MR", "NV", "MC", "NC", "KC"}
    assert spaces["dW"].chosen({"KC": 128}) == {"dW.KC": 128}


def test_the_order_of_points_follows_the_seed() -> None:
    _, _, space = scale()
    assert list(space.points(1)) == list(space.points(1)) != list(space.points(2))


@pytest.mark.parametrize(
    ("choices", "default", "kind"),
    [("4, 8, 16", 4, "log2"), ("48..192 step 48", 96, "step"), ("4, 6, 14", 4, "category"), ("2..6", 2, "step")],
)
def test_distributions_follow_the_choices(choices: str, default: int, kind: str) -> None:
    space = space_of(f"tune A = {default} from {choices}", "m -> seq(A)")
    (p,) = space.parameters
    label, distribution = storage.distribution_of(p)
    assert label.startswith("log2 ") == (kind == "log2")
    assert type(distribution).__name__ == ("CategoricalDistribution" if kind == "category" else "IntDistribution")
    for value in p.choices:
        stored = storage.encoded_point(space, {"A": value})[label]
        assert distribution._contains(distribution.to_internal_repr(stored))
        assert storage.decoded(p, stored) == value


def job_of(text: str) -> Job:
    module, instance, space = scale(text=text)
    schedule = module.schedules["scale", "cpu"]
    return Job(instance, instance.key, space, 0, op_hash(instance.op, module), schedule_hash(schedule), 1.0)


def test_adding_a_choice_keeps_what_was_tried(tmp_path: Path) -> None:
    kept = storage.open_storage(tmp_path / "t.sqlite3")
    old = job_of(SCALE)
    study = storage.open_study(kept, old, "avx2", "measured", 0)
    storage.add_default(study, old.space, 1.0)
    trial, values = storage.ask(study, old.space)
    study.tell(trial, 0.5)
    new = job_of(SCALE.replace("from 1, 2, 3", "from 1, 2, 3, 4"))
    assert new.key == old.key and new.schedule_hash == old.schedule_hash
    again = storage.open_study(kept, new, "avx2", "measured", 0)
    assert [values_of(t) for t in again.trials] == [old.space.default, values]
    assert again.best_value == 0.5
    reduced = job_of(SCALE.replace("from 4, 8, 16, 32", f"from 8, {64 if values['A'] != 64 else 128}"))
    third = storage.open_study(kept, reduced, "avx2", "measured", 0)
    assert len(third.trials) == (2 if values["A"] == 8 else 1)


def test_a_changed_op_or_loop_starts_anew() -> None:
    old = job_of(SCALE)
    assert job_of(SCALE.replace("* 2.0", "* 3.0")).op_hash != old.op_hash
    assert job_of(SCALE.replace("seq(A)", "seq(2 * A)")).schedule_hash != old.schedule_hash
    assert job_of("# a comment\n" + SCALE).op_hash == old.op_hash
    assert job_of(SCALE.replace("  n ->", "  on cpu:\n    n ->")).schedule_hash == old.schedule_hash


def test_a_kernels_own_line_stands_in_place_of_the_shared_one() -> None:
    module = module_of(
        "op f(X: f32[M]) -> Y: f32[M]:\n  Y[m] = X[m]\n\nschedule f on cpu:\n  tune A = 8 from 8, 16\n"
        "  tune B = 2 * A from 2 * A, 3 * A\n  kernel Y:\n    tune W = 4\n    tune A = W + 1 from 5, 6\n"
        "    m -> seq(B) / unroll(A)\n"
    )
    (space,) = spaces_of(module.schedules["f", "cpu"], FACTS)
    assert space.default == {"B": 16, "W": 4, "A": 5}
    assert {(p["A"], p["B"]) for p in points(space)} == {(a, b) for a in (5, 6) for b in (16, 24)}
