"""Streams of the virtual GPU: work waits in a queue and runs only when something depends on it.

A real GPU runs work some time between the call and the next synchronisation. Here it runs as late as it may:
when a stream, event or context is synchronised or queried, when work of another stream waits for it, or when
more than QUEUE pieces are pending (the driver blocks then, too). So a host that reads a result before it
synchronised reads old bytes every time, not once in a thousand runs.

Times are virtual nanoseconds: a piece of work starts after its stream's and its dependencies' ends and after the
host's last synchronisation, and takes what its operation estimates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from tcomp.runtime.vgpu.shim.codes import CudaError

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.shim.capture import Branch
    from tcomp.runtime.vgpu.shim.context import Context

QUEUE = 1024


class Operation(Protocol):
    """What a stream or a graph node does. `kind` is the driver's graph node type."""

    kind: int

    def run(self) -> float:
        """Does it; gives its estimated nanoseconds. CudaError of a kernel is sticky."""
        ...


class Nothing:
    """Only a place in the order: an event's record or wait."""

    kind = 5

    def run(self) -> float:
        return 0.0


class Work:
    """One operation in a stream. `after`: work of other streams that comes first."""

    def __init__(self, stream: Stream, operation: Operation, after: Iterable[Work], submitted: float) -> None:
        self.stream, self.operation, self.submitted = stream, operation, submitted
        self.done: bool = False
        self.end: float = 0.0
        after = list(after)
        self.after = [w for w in after if not w.done]
        self.floor = max((w.end for w in after if w.done), default=0.0)


class Stream:
    """`blocking` streams keep order with the legacy default stream."""

    def __init__(self, context: Context, flags: int = 0, priority: int = 0, legacy: bool = False) -> None:
        self.context, self.flags, self.priority, self.legacy = context, flags, priority, legacy
        self.blocking = not flags & 1 and not legacy
        self.handle = 0
        self.number = context.driver.next_number()
        self.queue: deque[Work] = deque()
        self.end = 0.0
        self.abandoned = False  # destroyed while work was queued
        self.branch: Branch | None = None  # where a capture of this stream stands

    @property
    def last(self) -> Work | None:
        return self.queue[-1] if self.queue else None

    def submit(self, operation: Operation, after: Iterable[Work] = ()) -> Work:
        """Appends an operation, after the implicit dependencies of the legacy default stream."""
        first = list(after)
        if self.legacy:
            first += [s.last for s in self.context.streams() if s.blocking and s.last is not None]
        elif self.blocking and self.context.legacy.last is not None:
            first.append(self.context.legacy.last)
        work = Work(self, operation, first, self.context.host_time)
        self.queue.append(work)
        if self.context.driver.options.blocking:
            self.synchronise()
        elif len(self.queue) > QUEUE:
            finish(self.queue[0])
        return work

    def synchronise(self) -> None:
        if self.queue:
            finish(self.queue[-1])
        self.context.host_time = max(self.context.host_time, self.end)


def finish(work: Work) -> None:
    """Runs `work` and what must come before it, and nothing else."""
    wanted = [work]
    while wanted:
        top = wanted[-1]
        if top.done:
            wanted.pop()
            continue
        head = top.stream.queue[0]
        first = next((w for w in head.after if not w.done), None)
        if first is not None:
            wanted.append(first)
        else:
            _run(head)


def step(stream: Stream) -> bool:
    """Some progress on a polled stream; False when there was nothing left to do."""
    if not stream.queue:
        return False
    finish(stream.queue[0])
    return True


def _run(work: Work) -> None:
    context = work.stream.context
    start = max([work.stream.end, work.submitted, work.floor, *(w.end for w in work.after)])
    try:
        took = 0.0 if context.error else work.operation.run()
    except CudaError as e:
        context.lose(e)
        took = 0.0
    work.end = work.stream.end = start + took
    work.stream.queue.popleft()
    work.after = []
    work.done = True
    if work.stream.abandoned and not work.stream.queue:
        context.created.remove(work.stream)
