"""Stream capture and graphs: nodes with their dependencies, and the order in which a replay runs them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.user_objects import UserObject
from tcomp.runtime.vgpu.shim.work import Operation

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.shim.context import Context
    from tcomp.runtime.vgpu.shim.work import Stream


class Node:
    def __init__(self, graph: Graph, operation: Operation, after: list[Node]) -> None:
        self.graph, self.operation, self.after = graph, operation, after
        self.handle = graph.context.driver.new_handle(self)
        self.position = len(graph.nodes)
        self.original: Node | None = None  # of a node of a cloned graph


class Graph:
    """`kept`: user objects that live as long as the graph and what is instantiated from it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.nodes: list[Node] = []
        self.kept: list[UserObject] = []
        self.handle = context.driver.new_handle(self)

    def add(self, operation: Operation, after: Iterable[Node]) -> Node:
        node = Node(self, operation, list(dict.fromkeys(after)))
        if any(n.graph is not self for n in node.after):
            raise fail("INVALID_VALUE")
        self.nodes.append(node)
        return node

    def order(self) -> list[Node]:
        """Dependencies first; among the nodes that could run, the youngest, so that a missing dependency shows
        instead of being hidden by the order of capture. INVALID_VALUE for a cycle."""
        left = {n: len(n.after) for n in self.nodes}
        followers: dict[Node, list[Node]] = {n: [] for n in self.nodes}
        for n in self.nodes:
            for before in n.after:
                followers[before].append(n)
        ready = [n for n in self.nodes if not left[n]]
        out: list[Node] = []
        while ready:
            node = max(ready, key=lambda n: n.position)
            ready.remove(node)
            out.append(node)
            for n in followers[node]:
                left[n] -= 1
                if not left[n]:
                    ready.append(n)
        if len(out) < len(self.nodes):
            raise fail("INVALID_VALUE", "the graph has a cycle")
        return out

    def clone(self) -> Graph:
        copy = Graph(self.context)
        twins: dict[Node, Node] = {}
        for n in self.nodes:
            twins[n] = copy.add(n.operation, [])
            twins[n].original = n
        for n in self.nodes:
            twins[n].after = [twins[a] for a in n.after]
        copy.kept = list(self.kept)
        for item in copy.kept:
            item.retain()
        return copy

    def destroy(self) -> None:
        for n in self.nodes:
            self.context.driver.drop_handle(n.handle)
        self.context.driver.drop_handle(self.handle)
        kept, self.kept = self.kept, []
        for item in kept:
            item.release()


class GraphExec:
    """An instantiated graph: a copy, so that later changes of the graph do not reach it."""

    kind = 4

    def __init__(self, graph: Graph, flags: int) -> None:
        self.context, self.flags, self.source = graph.context, flags, graph
        self.kept = list(graph.kept)
        for item in self.kept:
            item.retain()
        self.order = graph.order()
        self.operations: dict[Node, Operation] = {n: n.operation for n in self.order}
        self.handle = graph.context.driver.new_handle(self)

    def run(self) -> float:
        return sum(self.operations[n].run() for n in self.order)

    def destroy(self) -> None:
        """Launches that are queued keep their operations; user objects go when those have run."""
        self.context.driver.drop_handle(self.handle)
        if self.kept and not self.context.destroyed:
            for s in [self.context.legacy, *self.context.streams()]:
                s.synchronise()
        kept, self.kept = self.kept, []
        for item in kept:
            item.release()


class Replay:
    """One launch of an executable graph, with the operations that it has at the call."""

    kind = 4

    def __init__(self, graph: GraphExec) -> None:
        self.operations = [graph.operations[n] for n in graph.order]

    def run(self) -> float:
        return sum(o.run() for o in self.operations)


class Capture:
    """A capture that is on. `mode`: 0 global, 1 thread-local, 2 relaxed."""

    def __init__(self, origin: Stream, mode: int, thread: int, graph: Graph | None = None) -> None:
        self.origin, self.mode, self.thread = origin, mode, thread
        self.graph = graph or Graph(origin.context)
        self.number = origin.context.driver.next_number()
        self.valid = True
        self.branches: list[Branch] = []
        self.kept: list[object] = []  # arrays handed to the caller

    def join(self, stream: Stream, tips: list[Node]) -> None:
        """`stream` is captured, too, from `tips` on."""
        stream.branch = Branch(self, tips)
        self.branches.append(stream.branch)

    def end(self) -> Graph:
        """The graph. Every branch must have come back to the origin (UNJOINED), nothing have gone wrong
        (INVALIDATED)."""
        origin = self.origin.branch
        context = self.origin.context
        for s in context.streams():
            if s.branch is not None and s.branch.capture is self:
                s.branch = None
        context.captures.remove(self)
        if not self.valid:
            raise fail("STREAM_CAPTURE_INVALIDATED")
        assert origin is not None
        reached = set(origin.tips)
        todo = list(origin.tips)
        while todo:
            for n in todo.pop().after:
                if n not in reached:
                    reached.add(n)
                    todo.append(n)
        for b in self.branches:
            if any(n not in reached for n in b.tips) and b is not origin:
                raise fail("STREAM_CAPTURE_UNJOINED")
        return self.graph


class Branch:
    """Where one captured stream stands: its next node follows `tips`."""

    def __init__(self, capture: Capture, tips: list[Node]) -> None:
        self.capture, self.tips = capture, list(tips)

    def require_valid(self) -> None:
        if not self.capture.valid:
            raise fail("STREAM_CAPTURE_INVALIDATED")

    def add(self, operation: Operation) -> None:
        self.require_valid()
        self.tips = [self.capture.graph.add(operation, self.tips)]

    def follow(self, nodes: Iterable[Node]) -> None:
        self.tips = list(dict.fromkeys([*self.tips, *nodes]))
