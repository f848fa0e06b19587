"""Pages made present ahead: all of them are, what is written meanwhile stays, and it does without the system call."""

from __future__ import annotations

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
    region = Region(size, "test")
    ahead = Prefault(region.address, size)
    ahead.finish()
    ahead.finish()
    assert not np.frombuffer(region.buffer, np.uint8).any()


def test_it_can_be_stopped() -> None:
    region = Region(SIZE, "test")
    ahead = Prefault(region.address, SIZE)
    ahead.stop()
    assert not ahead._thread.is_alive() and not ahead._chunks
