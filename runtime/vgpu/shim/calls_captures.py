"""Entries about stream capture."""

from __future__ import annotations

import ctypes
import threading

from tcomp.runtime.vgpu.shim.capture import Branch, Capture, Graph, Node
from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.context import Context
from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tcomp.runtime.vgpu.shim.entries import entry, pointers, put_int, put_size


def _begin(context: Context, handle: int, mode: int, graph: Graph | None = None) -> Capture:
    stream = context.stream(handle)
    if mode not in (0, 1, 2):
        raise fail("INVALID_VALUE")
    if stream.legacy:
        raise fail("STREAM_CAPTURE_UNSUPPORTED", "the legacy default stream cannot be captured")
    if stream.branch is not None:
        raise fail("ILLEGAL_STATE")
    capture = Capture(stream, mode, threading.get_ident(), graph)
    capture.join(stream, [])
    context.captures.append(capture)
    return capture


@entry("cuStreamBeginCapture_v2", "pi", 10010, stream=0)
def cu_stream_begin_capture(context: Context, handle: int, mode: int) -> None:
    _begin(context, handle, mode)


@entry("cuStreamBeginCaptureToGraph", "pppppi", 12030, stream=0)
def cu_stream_begin_capture_to_graph(
    context: Context, handle: int, graph: int, nodes: int, edges: int, count: int, mode: int
) -> None:
    capture = _begin(context, handle, mode, context.driver.object(graph, Graph))
    assert capture.origin.branch is not None
    capture.origin.branch.follow(context.driver.object(n, Node) for n in pointers(nodes, count))


@entry("cuStreamEndCapture", "pp", 10000, stream=0)
def cu_stream_end_capture(context: Context, handle: int, graph: int) -> None:
    stream = context.stream(handle)
    if graph:
        put_size(graph, 0)
    if stream.branch is None:
        raise fail("ILLEGAL_STATE")
    capture = stream.branch.capture
    if capture.origin is not stream:
        capture.valid = False
        raise fail("STREAM_CAPTURE_UNMATCHED")
    if capture.mode != 2 and capture.thread != threading.get_ident():
        raise fail("STREAM_CAPTURE_WRONG_THREAD")
    put_size(graph, capture.end().handle)


def _status(context: Context, handle: int) -> tuple[int, Branch | None]:
    stream = context.stream(handle)
    if stream.legacy:
        context.refuse_implicit()
    if stream.branch is None:
        return 0, None
    return 1 if stream.branch.capture.valid else 2, stream.branch


@entry("cuStreamIsCapturing", "pp", 10000, stream=0)
def cu_stream_is_capturing(context: Context, handle: int, status: int) -> None:
    put_int(status, _status(context, handle)[0])


def _info(
    context: Context, handle: int, status: int, number: int = 0, graph: int = 0, nodes: int = 0, edges: int = 0,
    count: int = 0,
) -> None:  # fmt: skip
    state, branch = _status(context, handle)
    put_int(status, state)
    if branch is None:
        return
    tips = [n.handle for n in branch.tips]
    array = (ctypes.c_uint64 * max(1, len(tips)))(*tips)
    plain = (ctypes.c_uint64 * max(1, len(tips)))()  # edge data: every dependency is a full one
    branch.capture.kept += [array, plain]
    results = {
        number: branch.capture.number, graph: branch.capture.graph.handle, nodes: ctypes.addressof(array),
        edges: ctypes.addressof(plain), count: len(tips),
    }  # fmt: skip
    for place, value in results.items():
        if place:
            put_size(place, value)


def _info_v2(
    context: Context, handle: int, status: int, number: int, graph: int, nodes: int, count: int
) -> None:  # fmt: skip
    _info(context, handle, status, number, graph, nodes, 0, count)


entry("cuStreamGetCaptureInfo", "ppp", 10010, stream=0)(_info)
entry("cuStreamGetCaptureInfo_v2", "pppppp", 11030, stream=0)(_info_v2)
entry("cuStreamGetCaptureInfo_v3", "ppppppp", 12030, stream=0)(_info)


def _update(context: Context, handle: int, nodes: int, count: int, flags: int) -> None:
    branch = context.stream(handle).branch
    if branch is None:
        raise fail("ILLEGAL_STATE")
    given = [context.driver.object(n, Node, "INVALID_VALUE") for n in pointers(nodes, count)]
    if flags == 1:
        branch.tips = []
    branch.follow(given)


def _update_v2(context: Context, handle: int, nodes: int, edges: int, count: int, flags: int) -> None:
    _update(context, handle, nodes, count, flags)


entry("cuStreamUpdateCaptureDependencies", "pppu", 11030, stream=0)(_update)
entry("cuStreamUpdateCaptureDependencies_v2", "ppppu", 12030, stream=0)(_update_v2)


@entry("cuThreadExchangeStreamCaptureMode", "p", 10010, needs="driver")
def cu_thread_exchange_stream_capture_mode(driver: VirtualDriver, mode: int) -> None:
    if not mode:
        raise fail("INVALID_VALUE")
    place = ctypes.c_int32.from_address(mode)
    if place.value not in (0, 1, 2):
        raise fail("INVALID_VALUE")
    old, driver.capture_mode = driver.capture_mode, place.value
    place.value = old
