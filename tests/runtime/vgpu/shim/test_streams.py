"""Streams and events: queries, virtual time, threads."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tests.runtime.vgpu.shim.conftest import SCALE, code, download, function, launch, ok, pinned, upload


def test_queries_make_progress(cuda: Any) -> None:
    stream, event = ok(cuda.cuStreamCreate(0)), ok(cuda.cuEventCreate(0))
    a = ok(cuda.cuMemAlloc(64))
    assert code(cuda.cuEventQuery(event)) == "CUDA_SUCCESS"  # never recorded
    ok(cuda.cuMemsetD32Async(a, 1, 16, stream))
    ok(cuda.cuEventRecord(event, stream))
    assert code(cuda.cuEventQuery(event)) == "NOT_READY"
    polls = 0
    while code(cuda.cuStreamQuery(stream)) == "NOT_READY":
        polls += 1
        assert polls < 10
    assert code(cuda.cuEventQuery(event)) == "CUDA_SUCCESS"
    assert download(cuda, a, 16, np.uint32).tolist() == [1] * 16


def test_event_times(cuda: Any) -> None:
    stream = ok(cuda.cuStreamCreate(0))
    start, end, untimed = (ok(cuda.cuEventCreate(flags)) for flags in (0, 0, 2))
    assert code(cuda.cuEventElapsedTime(start, end)) == "INVALID_HANDLE"
    ok(cuda.cuEventRecord(start, stream))
    a, f = upload(cuda, np.ones(256, np.float32)), function(cuda, SCALE, "scale")
    for _ in range(3):
        ok(launch(cuda, f, a, (1.0, ctypes.c_float), (256, ctypes.c_uint32), grid=2, block=128, stream=stream))
    ok(cuda.cuEventRecord(end, stream))
    assert code(cuda.cuEventElapsedTime(start, end)) == "NOT_READY"
    ok(cuda.cuEventSynchronize(end))
    took = ok(cuda.cuEventElapsedTime(start, end))
    assert 3 * 0.002 <= took < 0.1  # launch overheads, in milliseconds of virtual time
    ok(cuda.cuEventRecord(untimed, stream))
    ok(cuda.cuCtxSynchronize())
    assert code(cuda.cuEventElapsedTime(start, untimed)) == "INVALID_HANDLE"


def test_stream_properties(cuda: Any) -> None:
    least, greatest = ok(cuda.cuCtxGetStreamPriorityRange())
    assert (least, greatest) == (0, -5)
    stream = ok(cuda.cuStreamCreateWithPriority(1, -20))
    assert ok(cuda.cuStreamGetPriority(stream)) == -5 and ok(cuda.cuStreamGetFlags(stream)) == 1
    assert int(ok(cuda.cuStreamGetCtx(stream))[0] if isinstance(ok(cuda.cuStreamGetCtx(stream)), tuple) else ok(
        cuda.cuStreamGetCtx(stream))) == int(ok(cuda.cuCtxGetCurrent()))  # fmt: skip
    assert code(cuda.cuStreamCreate(8)) == "INVALID_VALUE"


def test_work_of_a_destroyed_stream_still_runs(cuda: Any) -> None:
    a, stream = upload(cuda, np.zeros(4, np.uint32)), ok(cuda.cuStreamCreate(1))
    ok(cuda.cuMemsetD32Async(a, 5, 4, stream))
    ok(cuda.cuStreamDestroy(stream))
    ok(cuda.cuCtxSynchronize())
    assert download(cuda, a, 4, np.uint32).tolist() == [5] * 4


def test_a_full_queue_runs_its_oldest_work(cuda: Any) -> None:
    a, stream = upload(cuda, np.zeros(4, np.float32)), ok(cuda.cuStreamCreate(1))
    address, seen = pinned(cuda, 4, 9.0)
    ok(cuda.cuMemcpyDtoHAsync(address, a, 16, stream))
    for _ in range(1023):
        ok(cuda.cuMemsetD32Async(a, 1, 4, stream))
    assert seen.tolist() == [9] * 4
    ok(cuda.cuMemsetD32Async(a, 1, 4, stream))
    assert seen.tolist() == [0] * 4


def test_host_functions_run_in_order(cuda: Any) -> None:
    stream, a = ok(cuda.cuStreamCreate(0)), upload(cuda, np.full(1, 4, np.float32))
    address, seen = pinned(cuda, 1)
    got: list[float] = []
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: got.append(float(seen[0])))
    ok(cuda.cuMemcpyDtoHAsync(address, a, 4, stream))
    ok(cuda.cuLaunchHostFunc(stream, cuda.CUhostFn(ctypes.cast(call, ctypes.c_void_p).value), 0))
    assert got == []
    ok(cuda.cuStreamSynchronize(stream))
    assert got == [4.0]


def test_each_thread_has_its_own_current_context(driver: VirtualDriver, cuda: Any) -> None:
    context, seen = ok(cuda.cuCtxGetCurrent()), []

    def other() -> None:
        seen.append(code(cuda.cuMemAlloc(4)))
        ok(cuda.cuCtxSetCurrent(context))
        seen.append(code(cuda.cuMemAlloc(4)))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == ["INVALID_CONTEXT", "CUDA_SUCCESS"]


def test_threads_may_work_at_the_same_time(driver: VirtualDriver, cuda: Any) -> None:
    context, f = ok(cuda.cuCtxGetCurrent()), function(cuda, SCALE, "scale")
    results: list[bool] = []

    def work(number: int) -> None:
        ok(cuda.cuCtxSetCurrent(context))
        stream, a = ok(cuda.cuStreamCreate(1)), upload(cuda, np.full(64, number, np.float32))
        for _ in range(5):
            ok(launch(cuda, f, a, (2.0, ctypes.c_float), (64, ctypes.c_uint32), block=64, stream=stream))
        ok(cuda.cuStreamSynchronize(stream))
        results.append(bool((download(cuda, a, 64) == 32 * number).all()))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [True] * 4 and len(driver.reports) == 20
