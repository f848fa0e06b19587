"""Entries that add nodes to a graph and change them."""

from __future__ import annotations

import ctypes

from tcomp.runtime.vgpu.shim.calls_copies import Memcpy3D, pitched
from tcomp.runtime.vgpu.shim.capture import Graph, GraphExec, Node
from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.context import Context
from tcomp.runtime.vgpu.shim.entries import entry, pointers, put_size
from tcomp.runtime.vgpu.shim.launch import HostCall, KernelLaunch, Shape, arguments
from tcomp.runtime.vgpu.shim.modules import function_of
from tcomp.runtime.vgpu.shim.transfers import Fill
from tcomp.runtime.vgpu.shim.work import Nothing, Operation


class KernelNode(ctypes.Structure):
    _fields_ = [
        ("function", ctypes.c_uint64), ("grid", ctypes.c_uint32 * 3), ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint32), ("parameters", ctypes.c_uint64), ("extra", ctypes.c_uint64),
        ("kernel", ctypes.c_uint64), ("context", ctypes.c_uint64),
    ]  # fmt: skip


class MemsetNode(ctypes.Structure):
    _fields_ = [
        ("to", ctypes.c_uint64), ("pitch", ctypes.c_uint64), ("value", ctypes.c_uint32), ("element", ctypes.c_uint32),
        ("width", ctypes.c_uint64), ("height", ctypes.c_uint64),
    ]  # fmt: skip


class HostNode(ctypes.Structure):
    _fields_ = [("function", ctypes.c_uint64), ("data", ctypes.c_uint64)]


def _add(context: Context, handle: int, graph: int, before: int, count: int, operation: Operation) -> None:
    one = context.driver.object(graph, Graph, "INVALID_VALUE")
    if not handle or (count and not before):
        raise fail("INVALID_VALUE")
    nodes = [context.driver.object(n, Node, "INVALID_VALUE") for n in pointers(before, count)]
    put_size(handle, one.add(operation, nodes).handle)


def _kernel(context: Context, parameters: int) -> KernelLaunch:
    if not parameters:
        raise fail("INVALID_VALUE")
    p = KernelNode.from_address(parameters)
    f = function_of(context, p.function or p.kernel)
    grid, block = tuple(p.grid), tuple(p.block)
    return KernelLaunch(f, Shape(grid, block, p.shared), arguments(f, p.parameters, p.extra))


@entry("cuGraphAddKernelNode_v2", "ppppp", 12000)
def cu_graph_add_kernel_node(context: Context, node: int, graph: int, before: int, count: int, params: int) -> None:
    _add(context, node, graph, before, count, _kernel(context, params))


@entry("cuGraphAddMemcpyNode", "pppppp", 10000)
def cu_graph_add_memcpy_node(
    context: Context, node: int, graph: int, before: int, count: int, params: int, owner: int
) -> None:
    if not params:
        raise fail("INVALID_VALUE")
    _add(context, node, graph, before, count, pitched(context, Memcpy3D.from_address(params)))


@entry("cuGraphAddMemsetNode", "pppppp", 10000)
def cu_graph_add_memset_node(
    context: Context, node: int, graph: int, before: int, count: int, params: int, owner: int
) -> None:
    if not params:
        raise fail("INVALID_VALUE")
    p = MemsetNode.from_address(params)
    if p.element not in (1, 2, 4):
        raise fail("INVALID_VALUE")
    value = p.value & ((1 << 8 * p.element) - 1)
    _add(context, node, graph, before, count,
         Fill(context.driver, p.to, p.element, value, p.width, p.height, p.pitch))  # fmt: skip


@entry("cuGraphAddHostNode", "ppppp", 10000)
def cu_graph_add_host_node(context: Context, node: int, graph: int, before: int, count: int, params: int) -> None:
    if not params:
        raise fail("INVALID_VALUE")
    p = HostNode.from_address(params)
    _add(context, node, graph, before, count, HostCall(p.function, p.data))


@entry("cuGraphAddEmptyNode", "pppp", 10000)
def cu_graph_add_empty_node(context: Context, node: int, graph: int, before: int, count: int) -> None:
    _add(context, node, graph, before, count, Nothing())


@entry("cuGraphAddChildGraphNode", "ppppp", 10000)
def cu_graph_add_child_graph_node(
    context: Context, node: int, graph: int, before: int, count: int, child: int
) -> None:  # fmt: skip
    operation = GraphExec(context.driver.object(child, Graph, "INVALID_VALUE").clone(), 0)
    context.driver.drop_handle(operation.handle)
    _add(context, node, graph, before, count, operation)


def _link(context: Context, graph: int, sources: int, targets: int, count: int) -> None:
    one = context.driver.object(graph, Graph, "INVALID_VALUE")
    for a, b in zip(pointers(sources, count), pointers(targets, count), strict=True):
        first, then = (context.driver.object(h, Node, "INVALID_VALUE") for h in (a, b))
        if first.graph is not one or then.graph is not one or first in then.after or first is then:
            raise fail("INVALID_VALUE")
        then.after.append(first)


def _link_v2(context: Context, graph: int, sources: int, targets: int, data: int, count: int) -> None:
    _link(context, graph, sources, targets, count)


entry("cuGraphAddDependencies", "pppp", 10000)(_link)
entry("cuGraphAddDependencies_v2", "ppppp", 12030)(_link_v2)


@entry("cuGraphExecKernelNodeSetParams_v2", "ppp", 12000)
def cu_graph_exec_kernel_node_set_params(context: Context, executable: int, node: int, parameters: int) -> None:
    one, old = context.driver.object(executable, GraphExec), context.driver.object(node, Node, "INVALID_VALUE")
    if not isinstance(one.operations.get(old), KernelLaunch):
        raise fail("INVALID_VALUE")
    one.operations[old] = _kernel(context, parameters)


@entry("cuGraphDestroyNode", "p", 10000)
def cu_graph_destroy_node(context: Context, node: int) -> None:
    one = context.driver.object(node, Node, "INVALID_VALUE")
    one.graph.nodes.remove(one)
    for n in one.graph.nodes:
        if one in n.after:
            n.after.remove(one)
    context.driver.drop_handle(node)
