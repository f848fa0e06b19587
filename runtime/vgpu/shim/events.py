"""Events: a place in a stream, or in a capture, and the virtual time at which it was reached."""

from __future__ import annotations

from tcomp.runtime.vgpu.shim.capture import Capture, Node
from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.context import Context
from tcomp.runtime.vgpu.shim.work import Nothing, Work, finish, step

NO_TIMING = 2


class Event:
    """`work`: the record that counts. `captured`: set instead where the record went into a capture."""

    def __init__(self, context: Context, flags: int) -> None:
        self.context, self.flags = context, flags
        self.handle = context.driver.new_handle(self)
        self.work: Work | None = None
        self.captured: tuple[Capture, list[Node]] | None = None

    def record(self, context: Context, stream: int) -> None:
        """INVALID_HANDLE when the stream is of another context than the event."""
        if self.context is not context:
            raise fail("INVALID_HANDLE")
        one = context.stream(stream)
        if one.branch is not None:
            one.branch.require_valid()
            self.captured = (one.branch.capture, list(one.branch.tips))
            return
        self.captured = None
        self.work = context.enqueue(stream, Nothing())

    def wait(self, context: Context, stream: int) -> None:
        """Later work of `stream` comes after the event. Waiting for a captured event captures the stream."""
        one = context.stream(stream)
        if self.captured is not None:
            capture, nodes = self.captured
            if capture not in self.context.captures:
                raise fail("CAPTURED_EVENT", "the event was recorded in a capture that has ended")
            if one.branch is None:
                if one.legacy:
                    raise fail("STREAM_CAPTURE_IMPLICIT")
                capture.join(one, nodes)
            elif one.branch.capture is not capture:
                one.branch.capture.valid = capture.valid = False
                raise fail("STREAM_CAPTURE_MERGE")
            else:
                one.branch.require_valid()
                one.branch.follow(nodes)
            return
        if one.branch is not None:
            one.branch.capture.valid = False
            raise fail("STREAM_CAPTURE_ISOLATION", "a captured stream cannot wait for work outside its capture")
        if self.work is not None and not self.work.done:
            if one.legacy:
                context.refuse_implicit()
            one.submit(Nothing(), [self.work])

    def query(self) -> bool:
        """Whether the event was reached; a poll lets the device make some progress."""
        self._refuse_captured()
        if self.work is None or self.work.done:
            return True
        step(self.work.stream)
        self.context.raise_sticky()
        return False

    def synchronise(self) -> None:
        self._refuse_captured()
        if self.work is not None:
            finish(self.work)
            self.context.host_time = max(self.context.host_time, self.work.end)
        self.context.raise_sticky()

    def milliseconds_since(self, start: Event) -> float:
        """INVALID_HANDLE when one was never recorded or keeps no time, NOT_READY when one was not reached yet."""
        ends = []
        for e in (start, self):
            e._refuse_captured()
            if e.work is None or e.flags & NO_TIMING or e.context is not self.context:
                raise fail("INVALID_HANDLE")
            ends.append(e.work)
        if not all(w.done for w in ends):
            raise fail("NOT_READY")
        return (ends[1].end - ends[0].end) / 1e6

    def _refuse_captured(self) -> None:
        if self.captured is not None:
            capture = self.captured[0]
            if capture in self.context.captures:
                capture.valid = False
            raise fail("CAPTURED_EVENT")
