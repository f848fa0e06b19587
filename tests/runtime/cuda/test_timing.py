"""The clock between events: what waits for the host does not count. A driver of two clocks, the host's and the GPU's,
stands in for one; then the virtual GPU's."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver as real

from tcomp.machine.gpu import H100
from tcomp.runtime.cuda import timing
from tcomp.runtime.cuda.timing import ColdClock

FILL, LAUNCH = 55.0, 2.0
"""us of the GPU"""


class TwoClocks:
    """Calls take the host `cost` us and give the GPU work, which it does in order when it is free."""

    CUresult = real.CUresult

    def __init__(self, cost: float) -> None:
        self.cost, self.host, self.gpu, self.fills = cost, 0.0, 0.0, 0
        self.events: dict[Any, float] = {}

    def work(self, us: float) -> None:
        self.host += self.cost
        self.gpu = max(self.gpu, self.host) + us

    def cuMemsetD8Async(self, *_: Any) -> Any:
        self.fills += 1
        self.work(FILL)
        return (real.CUresult.CUDA_SUCCESS,)

    def cuEventRecord(self, event: Any, _: Any) -> Any:
        self.work(0.0)
        self.events[event] = self.gpu
        return (real.CUresult.CUDA_SUCCESS,)

    def cuEventQuery(self, event: Any) -> Any:
        done = self.host >= self.events[event]
        return (real.CUresult.CUDA_SUCCESS if done else real.CUresult.CUDA_ERROR_NOT_READY,)

    def cuEventElapsedTime(self, start: Any, stop: Any) -> Any:
        return real.CUresult.CUDA_SUCCESS, (self.events[stop] - self.events[start]) / 1e3


@pytest.mark.parametrize(("cost", "launches"), [(2.0, 1), (30.0, 1), (30.0, 2), (70.0, 1), (20.0, 40)])
def test_waiting_for_the_host_does_not_count(monkeypatch: pytest.MonkeyPatch, cost: float, launches: int) -> None:
    driver = TwoClocks(cost)
    numbers = iter(range(1000))
    context = SimpleNamespace(memory=lambda _: 0, event=lambda timing: next(numbers), close=lambda: None)
    monkeypatch.setattr(timing, "cu", driver)
    monkeypatch.setattr(timing, "Context", lambda _: context)

    def wait() -> None:
        driver.host = max(driver.host, driver.gpu)

    def work() -> None:
        for _ in range(launches):
            driver.work(LAUNCH)

    executor: Any = SimpleNamespace(context=SimpleNamespace(compute=None), wait=wait)
    clock = ColdClock(None, H100)  # type: ignore[arg-type]  (the stand-in's)
    found = clock.milliseconds(executor, [work] * 20)
    if cost < FILL:  # (else fills do not put the host ahead, and there is an end to them)
        assert found == pytest.approx([launches * LAUNCH / 1e3] * 20)
    assert driver.fills <= 20 * 2 * timing.MOST_FILLS


def test_the_virtual_gpu_keeps_the_same_time(hand_made: Any) -> None:
    executor = hand_made()
    clock = ColdClock(executor.context.gpu, executor.machine)
    try:
        programs = ["update", "micro_first", "update"]
        first, other, again = clock.programs(executor, programs)
        assert 0 < first == pytest.approx(again) and other > first
        executor.write("w", np.zeros(executor.step.slots["w"].shape, np.float32))
        whole = timing.time_programs(executor, programs, 2)
        assert whole >= other
        clock.milliseconds(executor, [partial(executor.run, "update")])
    finally:
        clock.close()
