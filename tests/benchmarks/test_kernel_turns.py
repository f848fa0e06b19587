"""benchmarks/kernel_turns.py: programs of several variants run on one arena, and a wrong one is not timed."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_turns import (
    Made,
    Times,
    Turns,
    Variant,
    checked,
    code_of,
    compared,
    in_arenas,
    made_here,
    request_of,
    table,
    variant_of,
)

from tcomp.dsl.files import library
from tcomp.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")
STEP = Namespace(model="gpt2", config="tiny", batch=1, length=16, dim=["L=1", "C=16", "H=1", "V=64"], precision="f32")


@pytest.fixture(scope="module")
def made() -> dict[str, Made]:
    """The step as it is, and one whose products have smaller register tiles."""
    request = request_of(STEP)
    few = variant_of("few linear:MR=4")
    return {v.name: made_here(request, 1, v) for v in (Variant("here"), few)}


def test_variants_take_turns_on_one_arena(made: dict[str, Made]) -> None:
    turns = Turns(made, 1)
    checked(turns, ["here", "few"], "f32")
    times = compared(turns, ["here", "few"], "micro_first", 3)
    assert [len(t) for t in times.values()] == [3, 3]
    assert all(seconds > 0 for t in times.values() for row in t for seconds in row.values())
    here, few = (code_of(made[n], "micro_first") for n in ("here", "few"))
    assert [line for line in here if here[line] != few[line]] == ["linear qkv_w qkv_b"]
    lines = table([times], ["linear qkv_w qkv_b"]).splitlines()
    assert lines[2].startswith("| linear qkv_w qkv_b |") and lines[3].startswith("| the program |")
    turns.executor.close()


def test_turns_are_taken_in_several_arenas(made: dict[str, Made]) -> None:
    """Each is other memory than the one before."""
    places = []

    def taken(turns: Turns, number: int) -> Times:
        places.append((number, turns.executor.array("loss").ctypes.data))
        return compared(turns, ["here", "few"], "micro_first", 1)

    assert len(in_arenas(made, 1, 3, taken)) == 3
    (first, a), (second, b), (third, c) = places
    assert (first, second, third) == (0, 1, 2) and a != b != c


def test_a_ratio_of_several_arenas_is_the_mean_of_their_medians() -> None:
    """One odd turn of an arena says nothing; an odd arena shows."""
    first = {"here": [{"x": 1.0}] * 3, "other": [{"x": 0.9}, {"x": 0.9}, {"x": 5.0}]}
    second = {"here": [{"x": 2.0}] * 3, "other": [{"x": 2.2}, {"x": 2.2}, {"x": 2.2}]}
    head, _, line, _ = table([first, second], ["x"]).splitlines()
    assert "other, ratio (arenas), of least" in head
    assert line == "| x | 1500.000 | 1000.000 | 1.000 (0.900 .. 1.100), 1.000 |"
    assert "| 1.100 (1.100 .. 1.100), 1.100 |" in table([second], ["x"])


def test_a_wrong_variant_is_refused(made: dict[str, Made]) -> None:
    """Code of the program before it in place of a launch's own: its gradient is not there."""
    right = made["here"]
    launches = right.step.programs["micro_first"]
    at = next(i for i, x in enumerate(launches) if x.label.endswith("attention.backward"))
    without = launches[:at] + launches[at + 1 :]
    wrong = Made(replace(right.step, programs={"micro_first": without}), right.compiled)
    turns = Turns({"here": right, "wrong": wrong}, 1)
    for slot in turns.executor.step.slots.values():
        if slot.kind in ("activation", "workspace"):
            turns.executor.write(slot.name, np.zeros(slot.shape, np.float32))
    with pytest.raises(UserError, match="gradients of variant wrong differ"):
        checked(turns, ["wrong", "here"][::-1], "f32")
    turns.executor.close()


def test_a_gradient_that_a_variant_does_not_give_is_not_the_one_before_s(made: dict[str, Made]) -> None:
    right = made["here"]
    nothing = Made(
        replace(right.step, programs={"micro_first": right.step.programs["micro_first"][:1]}), right.compiled
    )
    turns = Turns({"here": right, "nothing": nothing}, 1)
    with pytest.raises(UserError, match="gradients of variant nothing differ"):
        checked(turns, ["here", "nothing"], "f32")
    turns.executor.close()


def test_what_a_variant_can_be(tmp_path: Path) -> None:
    text = tmp_path / "attention.tc"
    text.write_text((library() / "ops" / "attention.tc").read_text().replace("tune BK = 64", "tune BK = 32", 1))
    assert variant_of(f"other {text}") == Variant("other", {}, (text,))
    assert variant_of("kc matmul.backward:dX.KC=384 adam:x=0.5").values == {
        "matmul.backward": {"dX.KC": 384},
        "adam": {"x": 0.5},
    }
    with pytest.raises(UserError, match=r"nothing\.tc is no file"):
        variant_of("other nothing.tc")
    with pytest.raises(UserError, match="the step has no op attentions"):
        made_here(request_of(STEP), 1, variant_of("v attentions:BQ=16"))
    with pytest.raises(UserError, match=r"no schedule of linear has a parameter dX\.MR") as refused:
        made_here(request_of(STEP), 1, variant_of("v linear:MR=4 linear:dX.MR=4"))
    assert "MR" in refused.value.hint
