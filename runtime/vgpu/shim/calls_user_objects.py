"""Entries about user objects, and the graph clones that cuda-core makes beside them."""

from __future__ import annotations

from tcomp.runtime.vgpu.shim.capture import Graph, GraphExec, Node
from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.context import Context
from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tcomp.runtime.vgpu.shim.entries import entry, put_size
from tcomp.runtime.vgpu.shim.user_objects import UserObject

_MOVE = 1


@entry("cuUserObjectCreate", "pppuu", 11030, needs="driver")
def cu_user_object_create(driver: VirtualDriver, handle: int, data: int, destroy: int, count: int, flags: int) -> None:
    if not handle or not destroy or not count or flags != 1:
        raise fail("INVALID_VALUE")
    put_size(handle, UserObject(driver, data, destroy, count).handle)


@entry("cuUserObjectRetain", "pu", 11030, needs="driver")
def cu_user_object_retain(driver: VirtualDriver, handle: int, count: int) -> None:
    driver.object(handle, UserObject, "INVALID_VALUE").retain(count)


@entry("cuUserObjectRelease", "pu", 11030, needs="driver")
def cu_user_object_release(driver: VirtualDriver, handle: int, count: int) -> None:
    driver.object(handle, UserObject, "INVALID_VALUE").release(count)


@entry("cuGraphRetainUserObject", "ppuu", 11030, needs="driver")
def cu_graph_retain_user_object(driver: VirtualDriver, graph: int, handle: int, count: int, flags: int) -> None:
    one, item = driver.object(graph, Graph, "INVALID_VALUE"), driver.object(handle, UserObject, "INVALID_VALUE")
    one.kept += [item] * count
    if not flags & _MOVE:
        item.retain(count)


@entry("cuGraphReleaseUserObject", "ppu", 11030, needs="driver")
def cu_graph_release_user_object(driver: VirtualDriver, graph: int, handle: int, count: int) -> None:
    one, item = driver.object(graph, Graph, "INVALID_VALUE"), driver.object(handle, UserObject, "INVALID_VALUE")
    if one.kept.count(item) < count:
        raise fail("INVALID_VALUE")
    for _ in range(count):
        one.kept.remove(item)
    item.release(count)


@entry("cuGraphClone", "pp", 10000)
def cu_graph_clone(context: Context, clone: int, graph: int) -> None:
    if not clone:
        raise fail("INVALID_VALUE")
    put_size(clone, context.driver.object(graph, Graph, "INVALID_VALUE").clone().handle)


@entry("cuGraphNodeFindInClone", "ppp", 10000)
def cu_graph_node_find_in_clone(context: Context, found: int, node: int, clone: int) -> None:
    original = context.driver.object(node, Node, "INVALID_VALUE")
    for n in context.driver.object(clone, Graph, "INVALID_VALUE").nodes:
        if n.original is original:
            put_size(found, n.handle)
            return
    raise fail("INVALID_VALUE")


@entry("cuGraphChildGraphNodeGetGraph", "pp", 10000)
def cu_graph_child_graph_node_get_graph(context: Context, node: int, graph: int) -> None:
    operation = context.driver.object(node, Node, "INVALID_VALUE").operation
    if not isinstance(operation, GraphExec):
        raise fail("INVALID_VALUE")
    put_size(graph, operation.source.handle)
