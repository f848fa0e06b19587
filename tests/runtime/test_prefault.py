"""Pages made present ahead: all of them are, what is written meanwhile stays, it does without the system call, and huge
pages are taken as long as they come faster than small ones."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from tcomp.runtime.cpu import prefault
from tcomp.runtime.cpu.memory import Region
from tcomp.runtime.cpu.prefault import SMALLEST, Prefault

SIZE = 3 * SMALLEST + 4321  # no whole number of pages


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_page_is_there_and_holds_what_was_written() -> None:
    region = Region(SIZE, "test")
    array = np.frombuffer(region.buffer, np.uint8)
    array[[0, SIZE // 2, SIZE - 1]] = 1, 2, 3
    before = resident()
    ahead = Prefault(region.address, SIZE)
    array[100] = 4
    ahead.finish()
    assert resident() - before > SIZE * 0.8
    assert array[[0, 100, SIZE // 2, SIZE - 1]].tolist() == [1, 4, 2, 3] and array.sum() == 10


@pytest.mark.parametrize("size", [SIZE, 4096])
def test_without_the_system_call_and_in_small_memory_nothing_happens(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefault, "_POPULATE_WRITE", 12345)  # as an older kernel does: not known
    monkeypatch.setattr(Prefault, "_advise", lambda _: pytest.fail("page sizes chosen though nothing was timed"))
    region = Region(size, "test")
    ahead = Prefault(region.address, size)
    ahead.finish()
    ahead.finish()
    assert not np.frombuffer(region.buffer, np.uint8).any()


def test_where_no_thread_can_start_the_caller_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(prefault.Thread, "start", refuse)
    region, done = Region(SIZE, "test"), list[int]()
    before = resident()
    ahead = Prefault(region.address, SIZE, lambda: done.append(1))
    ahead.finish()
    assert done == [1] and resident() - before > SIZE * 0.8


def test_it_can_be_stopped() -> None:
    region = Region(SIZE, "test")
    ahead = Prefault(region.address, SIZE)
    ahead.stop()
    assert ahead._thread is not None and not ahead._thread.is_alive() and not ahead._chunks


def test_what_comes_before_is_done_by_then_and_its_error_is_raised() -> None:
    done: list[int] = []
    for size in (SIZE, 4096):  # by a thread, at once
        region = Region(size, "test", ahead=True)
        region.begin(lambda: done.append(1))
        region.complete()
    assert done == [1, 1]

    def failing() -> None:
        raise OSError("no such function")

    region = Region(SIZE, "test", ahead=True)
    region.begin(failing)
    region.stop()
    with pytest.raises(OSError, match="no such function"):
        region.complete()


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no huge pages here")
@pytest.mark.parametrize(
    ("tried", "chunk", "huge"),
    [(0.9, 1.9, True), (1.1, 1.0, False), (0.9, 2.1, False)],
    ids=["kept", "never", "given up"],
)
def test_huge_pages_stay_while_they_come_faster(tried: float, chunk: float, huge: bool) -> None:
    """The seconds that huge pages take, in those of small ones: of the first ones tried, and of each chunk."""
    advice: list[int] = []
    taken: list[float] = []

    class Slow(Prefault):
        def _populate(self, address: int, size: int) -> float:
            taken.append([1.0, tried, chunk][min(len(taken), 2)] * size)
            return taken[-1]

        def _advise(self) -> None:
            advice.append(mmap.MADV_HUGEPAGE if self.huge else mmap.MADV_NOHUGEPAGE)

    region = Region(SIZE, "test")
    ahead = Slow(region.address, SIZE)
    ahead.finish()
    assert ahead.huge is huge and advice[-1] == (mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    assert len(taken) == 2 + -(-SIZE // prefault._CHUNK) and len(advice) == (2 if (tried, huge) == (0.9, False) else 1)
