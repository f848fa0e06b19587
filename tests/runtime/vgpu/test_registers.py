"""setmaxnreg and its pool, elect.sync, griddepcontrol."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcomp.runtime.vgpu.errors import PtxError
from tests.runtime.vgpu.hopper import init, launch

OUT = np.zeros(512, np.uint32)
SPLIT = "setp.lt.u32 %p1, %r3, 4; @%p1 bra PRODUCER; "
KERNEL = SPLIT + (
    "setmaxnreg.inc.sync.aligned.u32 {inc}; bra END; PRODUCER: {first} setmaxnreg.dec.sync.aligned.u32 {dec}; END:\n"
)


def run(body: str, block: int = 384, directives: str = ".reqntid 384, 1, 1", **options: Any) -> Any:
    return launch(body, OUT, block=block, directives=directives, **options)


@pytest.mark.parametrize(("inc", "dec"), [(240, 24), (232, 40), (168, 168)])
def test_consumers_get_what_the_producer_gave_up(inc: int, dec: int) -> None:
    report, _ = run(KERNEL.format(inc=inc, dec=dec, first=""))
    assert report.ok, report


def test_an_increase_waits_for_the_pool() -> None:
    """The consumers come first; the producer gives its registers up after a long way."""
    first = "mov.u32 %r9, 0; L: add.u32 %r9, %r9, 1; setp.lt.u32 %p2, %r9, 50; @%p2 bra L;"
    assert run(KERNEL.format(inc=240, dec=24, first=first))[0].ok


def test_more_than_the_block_has_is_a_deadlock_that_says_so() -> None:
    report, _ = run(KERNEL.format(inc=248, dec=24, first=""))
    assert "deadlock" in report.kinds()
    assert "setmaxnreg.inc.sync.aligned.u32 248` for the rest of its warpgroup, or for registers" in str(report)


@pytest.mark.parametrize(("body", "text"), [
    ("setmaxnreg.dec.sync.aligned.u32 200;", "fewer than it would keep"),
    ("setmaxnreg.inc.sync.aligned.u32 64;", "more than it asks for"),
])  # fmt: skip
def test_the_wrong_direction_is_found(body: str, text: str) -> None:
    report, _ = run(body)
    assert [f for f in report.findings if f.kind == "setmaxnreg misuse" and text in f.message]


def test_part_of_a_warpgroup_is_a_deadlock() -> None:
    report, _ = run("setp.ne.u32 %p1, %r3, 0; @%p1 bra END; setmaxnreg.dec.sync.aligned.u32 24; END: bar.sync 0;\n")
    assert "deadlock" in report.kinds() and "warpgroup" in str(report)


@pytest.mark.parametrize("count", [20, 100, 264])
def test_bad_counts_are_refused(count: int) -> None:
    with pytest.raises(PtxError, match="multiple of 8 from 24 to 256"):
        run(f"setmaxnreg.dec.sync.aligned.u32 {count};")


def test_without_a_known_register_count_the_hint_does_nothing() -> None:
    assert run(KERNEL.format(inc=248, dec=24, first=""), directives="")[0].ok


def test_the_launch_may_say_how_many_registers_there_are() -> None:
    body = KERNEL.format(inc=152, dec=56, first="")
    assert run(body, directives="", registers=120)[0].ok
    assert "deadlock" in run(body, directives="", registers=112)[0].kinds()
    assert run(body, directives=".maxnreg 120")[0].ok


def test_elect_names_one_lane_of_each_warp() -> None:
    body = """
      elect.sync %r5|%p1, 0xffffffff; selp.u32 %r6, 100, 0, %p1; add.u32 %r6, %r6, %r5;
      mul.wide.u32 %rd8, %r0, 4; add.s64 %rd9, %rd0, %rd8; st.global.u32 [%rd9], %r6;
    """
    report, arrays = launch(body, OUT, block=128)
    assert report.ok
    assert (arrays[0][:128].reshape(4, 32) == np.where(np.arange(32) == 0, 100, 0)).all()


def test_grid_dependencies_are_accepted() -> None:
    assert run("griddepcontrol.wait; griddepcontrol.launch_dependents;" + init(1))[0].ok
