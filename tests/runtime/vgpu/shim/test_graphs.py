"""Stream capture, replay, and the rules of capture."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tests.runtime.vgpu.shim.conftest import SCALE, code, download, function, kernel, launch, ok, pinned, upload

ADD_ONE = "ld.global.f32 %f0, [%rd0]; add.f32 %f0, %f0, 0f3F800000; st.global.f32 [%rd0], %f0;"


@pytest.fixture
def streams(cuda: Any) -> tuple[Any, Any]:
    return ok(cuda.cuStreamCreate(1)), ok(cuda.cuStreamCreate(1))


def begin(cuda: Any, stream: Any, mode: str = "THREAD_LOCAL") -> None:
    ok(cuda.cuStreamBeginCapture(stream, getattr(cuda.CUstreamCaptureMode, f"CU_STREAM_CAPTURE_MODE_{mode}")))


def double(cuda: Any, f: Any, a: Any, stream: Any) -> None:
    ok(launch(cuda, f, a, (2.0, ctypes.c_float), (64, ctypes.c_uint32), block=64, stream=stream))


def test_capture_and_replay(driver: VirtualDriver, cuda: Any, streams: Any) -> None:
    first, second = streams
    a, b = upload(cuda, np.ones(64, np.float32)), ok(cuda.cuMemAlloc(256))
    source_address, source = pinned(cuda, 64, 3.0)
    result_address, result = pinned(cuda, 64)
    f, event, back = function(cuda, SCALE, "scale"), ok(cuda.cuEventCreate(2)), ok(cuda.cuEventCreate(2))
    begin(cuda, first)
    ok(cuda.cuMemcpyHtoDAsync(a, source_address, 256, first))
    double(cuda, f, a, first)
    ok(cuda.cuEventRecord(event, first))
    ok(cuda.cuStreamWaitEvent(second, event, 0))
    assert int(ok(cuda.cuStreamIsCapturing(second))) == 1
    ok(cuda.cuMemcpyDtoDAsync(b, a, 256, second))
    double(cuda, f, b, second)
    ok(cuda.cuEventRecord(back, second))
    ok(cuda.cuMemsetD32Async(a, 0, 0, first))  # nothing to set: no node
    ok(cuda.cuStreamWaitEvent(first, back, 0))
    ok(cuda.cuMemcpyDtoHAsync(result_address, b, 256, first))
    graph = ok(cuda.cuStreamEndCapture(first))
    assert driver.reports == [] and not result.any()  # captured, not run
    assert ok(cuda.cuGraphGetNodes(graph))[1] == 5
    run = ok(cuda.cuGraphInstantiate(graph, 0))
    ok(cuda.cuGraphUpload(run, first))
    for value in (3.0, 5.0):
        source[:] = value
        ok(cuda.cuGraphLaunch(run, first))
        ok(cuda.cuStreamSynchronize(first))
        assert result.tolist() == [value * 4] * 64
    assert len(driver.reports) == 4
    ok(cuda.cuGraphDestroy(graph))
    ok(cuda.cuGraphLaunch(run, first))
    ok(cuda.cuStreamSynchronize(first))
    ok(cuda.cuGraphExecDestroy(run))
    assert code(cuda.cuGraphLaunch(run, first)) == "INVALID_HANDLE"


def test_a_missing_dependency_shows_in_the_replay(cuda: Any, streams: Any) -> None:
    """Two streams that fork from one event and are not ordered: the younger runs first."""
    first, second = streams
    a, b = upload(cuda, np.ones(64, np.float32)), ok(cuda.cuMemAlloc(256))
    f, event, back = function(cuda, SCALE, "scale"), ok(cuda.cuEventCreate(2)), ok(cuda.cuEventCreate(2))
    begin(cuda, first)
    ok(cuda.cuEventRecord(event, first))
    ok(cuda.cuStreamWaitEvent(second, event, 0))
    double(cuda, f, a, first)
    ok(cuda.cuMemcpyDtoDAsync(b, a, 256, second))  # should have waited for the kernel
    ok(cuda.cuEventRecord(back, second))
    ok(cuda.cuStreamWaitEvent(first, back, 0))
    run = ok(cuda.cuGraphInstantiate(ok(cuda.cuStreamEndCapture(first)), 0))
    ok(cuda.cuGraphLaunch(run, first))
    ok(cuda.cuStreamSynchronize(first))
    assert download(cuda, b, 64).tolist() == [1] * 64


def test_unjoined_streams(cuda: Any, streams: Any) -> None:
    first, second = streams
    a, event = ok(cuda.cuMemAlloc(64)), ok(cuda.cuEventCreate(2))
    begin(cuda, first)
    ok(cuda.cuEventRecord(event, first))
    ok(cuda.cuStreamWaitEvent(second, event, 0))
    ok(cuda.cuMemsetD32Async(a, 0, 4, second))
    assert code(cuda.cuStreamEndCapture(second)) == "STREAM_CAPTURE_UNMATCHED"
    assert code(cuda.cuStreamEndCapture(first)) == "STREAM_CAPTURE_INVALIDATED"
    assert int(ok(cuda.cuStreamIsCapturing(second))) == 0
    begin(cuda, first)
    ok(cuda.cuEventRecord(event, first))
    ok(cuda.cuStreamWaitEvent(second, event, 0))
    ok(cuda.cuMemsetD32Async(a, 0, 4, second))
    assert code(cuda.cuStreamEndCapture(first)) == "STREAM_CAPTURE_UNJOINED"


def test_synchronising_invalidates_a_capture(cuda: Any, streams: Any) -> None:
    first, _ = streams
    begin(cuda, first)
    assert code(cuda.cuStreamSynchronize(first)) == "STREAM_CAPTURE_UNSUPPORTED"
    assert int(ok(cuda.cuStreamIsCapturing(first))) == 2
    assert code(cuda.cuMemsetD32Async(ok(cuda.cuMemAllocAsync(4, 0)), 0, 1, first)) == "STREAM_CAPTURE_INVALIDATED"
    assert code(cuda.cuStreamEndCapture(first)) == "STREAM_CAPTURE_INVALIDATED"
    assert code(cuda.cuStreamEndCapture(first)) == "ILLEGAL_STATE"


def test_unsafe_calls_by_mode(cuda: Any, streams: Any) -> None:
    first, _ = streams
    for mode, allowed in (("GLOBAL", False), ("THREAD_LOCAL", False), ("RELAXED", True)):
        begin(cuda, first, mode)
        assert (code(cuda.cuMemAlloc(4)) == "CUDA_SUCCESS") is allowed
        assert (code(cuda.cuStreamEndCapture(first)) == "CUDA_SUCCESS") is allowed


def test_default_streams_and_capture(cuda: Any, streams: Any) -> None:
    assert code(cuda.cuStreamBeginCapture(0, cuda.CUstreamCaptureMode(0))) == "STREAM_CAPTURE_UNSUPPORTED"
    blocking, a = ok(cuda.cuStreamCreate(0)), ok(cuda.cuMemAlloc(4))
    begin(cuda, blocking)
    assert code(cuda.cuMemsetD32Async(a, 0, 1, 0)) == "STREAM_CAPTURE_IMPLICIT"
    assert code(cuda.cuStreamEndCapture(blocking)) == "STREAM_CAPTURE_INVALIDATED"
    begin(cuda, streams[0])
    ok(cuda.cuMemsetD32Async(a, 0, 1, 0))  # a non-blocking stream has nothing to do with it
    ok(cuda.cuStreamEndCapture(streams[0]))


def test_waiting_for_work_outside_the_capture(cuda: Any, streams: Any) -> None:
    first, second = streams
    event = ok(cuda.cuEventCreate(2))
    ok(cuda.cuEventRecord(event, second))
    begin(cuda, first)
    assert code(cuda.cuStreamWaitEvent(first, event, 0)) == "STREAM_CAPTURE_ISOLATION"
    assert code(cuda.cuStreamEndCapture(first)) == "STREAM_CAPTURE_INVALIDATED"
    begin(cuda, first)
    ok(cuda.cuEventRecord(event, first))
    assert code(cuda.cuEventSynchronize(event)) == "CAPTURED_EVENT"
    assert code(cuda.cuStreamEndCapture(first)) == "STREAM_CAPTURE_INVALIDATED"


def test_capture_info(cuda: Any, streams: Any) -> None:
    first, _ = streams
    begin(cuda, first)
    ok(cuda.cuMemsetD32Async(ok(cuda.cuMemAllocAsync(4, 0)), 0, 1, first))
    status, number, graph, nodes, *_ = ok(cuda.cuStreamGetCaptureInfo(first))
    assert int(status) == 1 and int(number) > 0 and len(nodes) == 1
    assert int(ok(cuda.cuStreamEndCapture(first))) == int(graph)


def test_a_fault_in_a_graph_is_sticky(cuda: Any, streams: Any) -> None:
    first, _ = streams
    f = function(cuda, kernel("trap;", params=""))
    begin(cuda, first)
    ok(launch(cuda, f, stream=first))
    run = ok(cuda.cuGraphInstantiate(ok(cuda.cuStreamEndCapture(first)), 0))
    ok(cuda.cuGraphLaunch(run, first))
    assert code(cuda.cuStreamSynchronize(first)) == "LAUNCH_FAILED"
    assert code(cuda.cuGraphLaunch(run, first)) == "LAUNCH_FAILED"


def test_graphs_made_by_hand(cuda: Any) -> None:
    a, f = upload(cuda, np.zeros(1, np.float32)), function(cuda, kernel(ADD_ONE))
    graph = ok(cuda.cuGraphCreate(0))
    p = cuda.CUDA_KERNEL_NODE_PARAMS()
    p.func, p.gridDimX, p.gridDimY, p.gridDimZ, p.blockDimX, p.blockDimY, p.blockDimZ = f, 1, 1, 1, 1, 1, 1
    p.kernelParams = ((int(a),), (ctypes.c_uint64,))
    one = ok(cuda.cuGraphAddKernelNode(graph, None, 0, p))
    two = ok(cuda.cuGraphAddKernelNode(graph, [one], 1, p))
    fill = cuda.CUDA_MEMSET_NODE_PARAMS()
    fill.dst, fill.elementSize, fill.width, fill.height, fill.value = a, 4, 1, 1, 0x41200000
    zero = ok(cuda.cuGraphAddMemsetNode(graph, None, 0, fill, ok(cuda.cuCtxGetCurrent())))
    ok(cuda.cuGraphAddDependencies(graph, [zero], [one], None, 1))
    assert int(ok(cuda.cuGraphNodeGetType(two))) == 0 and int(ok(cuda.cuGraphNodeGetType(zero))) == 2
    run = ok(cuda.cuGraphInstantiate(graph, 0))
    ok(cuda.cuGraphLaunch(run, 0))
    assert download(cuda, a, 1)[0] == 12
    b = upload(cuda, np.zeros(1, np.float32))
    p.kernelParams = ((int(b),), (ctypes.c_uint64,))
    ok(cuda.cuGraphExecKernelNodeSetParams(run, two, p))
    ok(cuda.cuGraphLaunch(run, 0))
    assert download(cuda, a, 1)[0] == 11 and download(cuda, b, 1)[0] == 1
    ok(cuda.cuGraphAddDependencies(graph, [two], [zero], None, 1))
    assert code(cuda.cuGraphInstantiate(graph, 0)) == "INVALID_VALUE"  # a cycle


def test_allocation_in_a_capture_is_refused_clearly(
    cuda: Any, streams: Any, capfd: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    begin(cuda, streams[0])
    assert code(cuda.cuMemAllocAsync(64, streams[0])) == "NOT_SUPPORTED"
    assert "allocate before the capture" in capfd.readouterr().err
    ok(cuda.cuStreamEndCapture(streams[0]))
