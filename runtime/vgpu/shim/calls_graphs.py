"""Entries about whole graphs: making, instantiating, launching, what is in them."""

from __future__ import annotations

from tcomp.runtime.vgpu.shim.capture import Graph, GraphExec, Node, Replay
from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.context import Context
from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tcomp.runtime.vgpu.shim.entries import entry, pointers, put_int, put_size, string

_FLAGS = 0x1 | 0x2 | 0x8  # auto-free, upload, node priorities; device launch (4) is refused


@entry("cuGraphCreate", "pu", 10000)
def cu_graph_create(context: Context, graph: int, flags: int) -> None:
    if flags or not graph:
        raise fail("INVALID_VALUE")
    put_size(graph, Graph(context).handle)


@entry("cuGraphDestroy", "p", 10000, needs="driver")
def cu_graph_destroy(driver: VirtualDriver, graph: int) -> None:
    driver.object(graph, Graph, "INVALID_VALUE").destroy()


def _instantiate(context: Context, executable: int, graph: int, flags: int) -> None:
    if not executable or flags & ~(_FLAGS | 4):
        raise fail("INVALID_VALUE")
    if flags & 4:
        raise fail("NOT_SUPPORTED", "graphs that are launched from the device")
    put_size(executable, GraphExec(context.driver.object(graph, Graph, "INVALID_VALUE"), flags).handle)


entry("cuGraphInstantiateWithFlags", "ppp", 11040)(_instantiate)


@entry("cuGraphInstantiateWithParams", "ppp", 12000)
def cu_graph_instantiate_with_params(context: Context, executable: int, graph: int, parameters: int) -> None:
    """CUDA_GRAPH_INSTANTIATE_PARAMS: flags, upload stream, error node, result."""
    if not parameters:
        raise fail("INVALID_VALUE")
    flags = pointers(parameters, 1)[0]
    put_size(parameters + 16, 0)
    put_int(parameters + 24, 0)
    _instantiate(context, executable, graph, flags)


@entry("cuGraphExecGetFlags", "pp", 12000)
def cu_graph_exec_get_flags(context: Context, executable: int, flags: int) -> None:
    put_size(flags, context.driver.object(executable, GraphExec).flags)


@entry("cuGraphExecDestroy", "p", 10000, needs="driver")
def cu_graph_exec_destroy(driver: VirtualDriver, executable: int) -> None:
    driver.object(executable, GraphExec).destroy()


@entry("cuGraphUpload", "pp", 11010, stream=1)
def cu_graph_upload(context: Context, executable: int, stream: int) -> None:
    context.driver.object(executable, GraphExec)
    context.stream(stream)


@entry("cuGraphLaunch", "pp", 10000, stream=1)
def cu_graph_launch(context: Context, executable: int, stream: int) -> None:
    one = context.driver.object(executable, GraphExec)
    if one.context is not context:
        raise fail("INVALID_CONTEXT")
    context.enqueue(stream, Replay(one))


@entry("cuGraphExecUpdate_v2", "ppp", 12000)
def cu_graph_exec_update(context: Context, executable: int, graph: int, result: int) -> None:
    """Takes the operations of a graph of the same nodes, kinds and edges; GRAPH_EXEC_UPDATE_FAILURE otherwise."""
    one, new = context.driver.object(executable, GraphExec), context.driver.object(graph, Graph)
    order = new.order()
    if result:
        put_int(result, 0)
    same = len(order) == len(one.order) and all(
        a.operation.kind == b.operation.kind and [x.position for x in a.after] == [x.position for x in b.after]
        for a, b in zip(one.order, order, strict=True)
    )
    if not same:
        if result:
            put_int(result, 2)  # CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED
        raise fail("GRAPH_EXEC_UPDATE_FAILURE")
    for old, node in zip(one.order, order, strict=True):
        one.operations[old] = node.operation


# --- what is in a graph
def _list(array: int, count: int, handles: list[int]) -> None:
    """Handles into a caller's array of `*count`; `*count` becomes how many there are."""
    if not count:
        raise fail("INVALID_VALUE")
    room = pointers(count, 1)[0]
    if array:
        for n in range(room):
            put_size(array + 8 * n, handles[n] if n < len(handles) else 0)
    put_size(count, min(room, len(handles)) if array else len(handles))


def _graph(context: Context, handle: int) -> Graph:
    return context.driver.object(handle, Graph, "INVALID_VALUE")


@entry("cuGraphGetNodes", "ppp", 10000)
def cu_graph_get_nodes(context: Context, graph: int, nodes: int, count: int) -> None:
    _list(nodes, count, [n.handle for n in _graph(context, graph).nodes])


@entry("cuGraphGetRootNodes", "ppp", 10000)
def cu_graph_get_root_nodes(context: Context, graph: int, nodes: int, count: int) -> None:
    _list(nodes, count, [n.handle for n in _graph(context, graph).nodes if not n.after])


def _edges(context: Context, graph: int, source: int, to: int, count: int) -> None:
    pairs = [(a.handle, n.handle) for n in _graph(context, graph).nodes for a in n.after]
    room = pointers(count, 1)[0] if count else 0
    _list(source, count, [a for a, _ in pairs])
    if to:
        put_size(count, room)
        _list(to, count, [b for _, b in pairs])


def _edges_v2(context: Context, graph: int, source: int, to: int, data: int, count: int) -> None:
    _edges(context, graph, source, to, count)
    _clear_edge_data(data, count)


def _clear_edge_data(data: int, count: int) -> None:
    for n in range(pointers(count, 1)[0] if data else 0):
        put_size(data + 8 * n, 0)


entry("cuGraphGetEdges", "pppp", 10000)(_edges)
entry("cuGraphGetEdges_v2", "ppppp", 12030)(_edges_v2)


def _node(context: Context, handle: int) -> Node:
    return context.driver.object(handle, Node, "INVALID_VALUE")


def _before(context: Context, node: int, nodes: int, count: int) -> None:
    _list(nodes, count, [n.handle for n in _node(context, node).after])


def _before_v2(context: Context, node: int, nodes: int, data: int, count: int) -> None:
    _before(context, node, nodes, count)
    _clear_edge_data(data, count)


def _following(context: Context, node: int, nodes: int, count: int) -> None:
    one = _node(context, node)
    _list(nodes, count, [n.handle for n in one.graph.nodes if one in n.after])


def _following_v2(context: Context, node: int, nodes: int, data: int, count: int) -> None:
    _following(context, node, nodes, count)
    _clear_edge_data(data, count)


entry("cuGraphNodeGetDependencies", "ppp", 10000)(_before)
entry("cuGraphNodeGetDependencies_v2", "pppp", 12030)(_before_v2)
entry("cuGraphNodeGetDependentNodes", "ppp", 10000)(_following)
entry("cuGraphNodeGetDependentNodes_v2", "pppp", 12030)(_following_v2)


@entry("cuGraphNodeGetType", "pp", 10000)
def cu_graph_node_get_type(context: Context, node: int, kind: int) -> None:
    put_int(kind, _node(context, node).operation.kind)


@entry("cuGraphDebugDotPrint", "ppu", 11030)
def cu_graph_debug_dot_print(context: Context, graph: int, path: int, flags: int) -> None:
    one = _graph(context, graph)
    lines = ["digraph {"]
    for n in one.nodes:
        function = getattr(n.operation, "function", None)
        label = getattr(function, "name", type(n.operation).__name__)
        lines.append(f'  n{n.position} [label="{n.position}: {label}"];')
        lines += [f"  n{a.position} -> n{n.position};" for a in n.after]
    try:
        with open(string(path), "w") as out:
            out.write("\n".join([*lines, "}", ""]))
    except OSError as e:
        raise fail("OPERATING_SYSTEM", str(e)) from e
