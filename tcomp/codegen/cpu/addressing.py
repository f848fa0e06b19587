"""From accesses to addresses: strides for affine subscripts, panels, gathers.

A `Place` is an access taken apart: element strides per axis counter and loop variable, a constant, and what
does not fit (gathered subscripts, the panel index). Its pointer is built along the loop nest, one addition in
each frame, so the innermost loop keeps a single address per buffer and constant displacements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tcomp.codegen.llvm.domain import AxisState, Domain, Point
from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.expressions import Graph, Node
from tcomp.codegen.llvm.integers import Affine, affine_form
from tcomp.codegen.llvm.types import I64, IrValue, stored_type
from tcomp.dsl.ast import Access, Expr
from tcomp.ir.tile import Buffer, Panels

if TYPE_CHECKING:
    from tcomp.codegen.cpu.evaluation import Evaluator


@dataclass(frozen=True, eq=False)
class PanelIndex:
    """The subscript along the panel axis: affine, or a node where it is not."""

    form: Affine | None
    node: Node | None
    width: int
    stride: int
    """elements from one panel to the next"""

    def alone(self) -> str | None:
        """The axis whose counter plus a constant is the whole subscript."""
        if self.form is None or len(self.form.terms) != 1:
            return None
        name, c = self.form.terms[0]
        return name[:-1] if c == 1 and name.endswith("'") and self.form.constant >= 0 else None


@dataclass(frozen=True, eq=False)
class Place:
    """An access as strides: constant + sum(strides of counters and variables) + gathered + panel part."""

    buffer: Buffer
    counters: tuple[tuple[str, int], ...]
    variables: tuple[tuple[str, int], ...]
    constant: int
    gathered: tuple[tuple[Node, int], ...]
    panel: PanelIndex | None
    in_bounds: bool
    deps: frozenset[str]


@dataclass(frozen=True, slots=True)
class Term:
    """One addend of an address, computed once in the frame `level`."""

    level: int
    key: object
    emit: Callable[[], Int]


class Addressing:
    """Places and their pointers within one Compute's domain."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.evaluator: Evaluator | None = None
        self._places: dict[Access, Place] = {}

    # ------------------------------------------------------------------------------------------ places

    def load_node(self, access: Access, graph: Graph) -> Node:
        place = self.place(access, graph)
        node = graph.load(place, place.buffer.dtype, place.deps)
        node.unsafe = not place.in_bounds
        return node

    def place(self, access: Access, graph: Graph) -> Place:
        """The access taken apart."""
        found = self._places.get(access)
        if found is None:
            found = self._places[access] = self._place(access, graph)
        return found

    def _place(self, access: Access, graph: Graph) -> Place:
        buffer = self.domain.scope.buffers[access.tensor]
        strides, panel_axis = _strides(buffer)
        total = Affine()
        gathered: list[tuple[Node, int]] = []
        panel: PanelIndex | None = None
        deps: set[str] = set()
        in_bounds = True
        for i, (subscript, stride) in enumerate(zip(access.subscripts, strides, strict=True)):
            form = affine_form(subscript, self.domain.forms)
            node = graph.build(subscript) if form is None else None
            in_bounds &= self._inside(subscript, form, buffer.shape[i])
            if form is not None:
                deps.update(n[:-1] for n, _ in form.terms if n.endswith("'"))
            if node is not None:
                deps |= node.deps
            if i == panel_axis:
                assert isinstance(buffer.layout, Panels)
                panel = PanelIndex(form, node, buffer.layout.width, stride)
            elif form is not None:
                total = total + form.scaled(stride)
            else:
                assert node is not None
                gathered.append((node, stride))
        counters = tuple((n[:-1], c) for n, c in total.terms if n.endswith("'"))
        variables = tuple((n, c) for n, c in total.terms if not n.endswith("'"))
        return Place(buffer, counters, variables, total.constant, tuple(gathered), panel, in_bounds, frozenset(deps))

    def _inside(self, subscript: Expr, form: Affine | None, size: int) -> bool:
        """True when the subscript surely lies in 0 .. size-1. An index read from memory is trusted only where the
        access's guard holds: `select(ids[m] >= 0, X[ids[m]], 0.0)`."""
        known = self.domain.facts.of_affine(form) if form is not None else self.domain.facts.of(subscript)
        return known.lo is not None and known.hi is not None and known.lo >= 0 and known.hi < size

    # --------------------------------------------------------------------------------- the vector axis

    def lane_stride(self, place: Place, point: Point) -> int | None:
        """Elements between neighbouring lanes of this register; None when it is not the same for all."""
        vector = self.domain.vector
        if vector is None:
            return 0
        if any(vector in node.deps for node, _ in place.gathered):
            return None
        stride = dict(place.counters).get(vector, 0)
        if place.panel is None:
            return stride
        inner = self._panel_lane_stride(place.panel, point)
        return None if inner is None else stride + inner

    def _panel_lane_stride(self, panel: PanelIndex, point: Point) -> int | None:
        vector = self.domain.vector
        assert vector is not None
        if panel.node is not None:
            return None if vector in panel.node.deps else 0
        assert panel.form is not None
        if panel.form.coefficient(vector + "'") == 0:
            return 0
        if panel.alone() != vector:
            return None
        state = self.domain.states[vector]
        offset = point[vector] * state.lanes + panel.form.constant
        if state.divisible(panel.width):
            return 1 if offset % panel.width + state.lanes <= panel.width else None
        aligned = state.divisible(state.lanes) and offset % state.lanes == 0
        return 1 if aligned and panel.width % state.lanes == 0 else None

    # ---------------------------------------------------------------------------------------- pointers

    def pointer(self, place: Place, point: Point, condition: Node | None = None) -> IrValue:
        """The address of the register's first element (lane 0). Indices from memory are read where `condition` holds;
        elsewhere the address may be any."""
        terms, constant = self._terms(place, point, condition, skip_lanes=False)
        return self._chain(place.buffer, terms, constant)

    def level_of(self, place: Place, condition: Node | None) -> int:
        """The frame in which addresses of the place's lanes are made."""
        guards = (condition for node, _ in place.gathered if node.unsafe and condition is not None)
        return self.domain.level_of(place.deps.union(*(g.deps for g in guards)))

    def lane_pointers(self, place: Place, point: Point, condition: Node | None = None) -> list[IrValue]:
        """One address per lane, for accesses whose lanes have no common stride."""
        domain = self.domain
        em = domain.emitter
        vector = domain.vector
        assert vector is not None and self.evaluator is not None
        stride = dict(place.counters).get(vector, 0)
        terms, constant = self._terms(place, point, condition, skip_lanes=True)
        base = self._chain(place.buffer, terms, constant)
        varying = [(self.evaluator.value(n, point, condition), s) for n, s in place.gathered if vector in n.deps]
        panel = place.panel
        indices: list[Int] | None = None
        if panel is not None and self._panel_lane_stride(panel, point) is None:
            indices = self._panel_lane_indices(panel, point)
        level = self.level_of(place, condition)
        b = em.at(level)
        pointers = []
        for lane in range(domain.lanes):
            offset: Int = stride * lane
            for value, s in varying:
                index = b.sext(b.extract_element(value, em.i64(lane)), I64)
                offset = em.add(offset, em.mul(index, s))
            if indices is not None and panel is not None:
                offset = em.add(offset, self._panel_offset(panel, indices[lane]))
            pointers.append(self._step(base, place.buffer, offset))
        return pointers

    def _chain(self, buffer: Buffer, terms: list[Term], constant: int) -> IrValue:
        """The buffer's base plus all terms, added frame by frame and shared between equal prefixes."""
        em = self.domain.emitter
        pointer = self.domain.scope.roots[buffer.name]
        key: tuple[object, ...] = ("pointer", self, buffer.name)
        level = self.domain.level
        for level in sorted({t.level for t in terms}):
            here = [t for t in terms if t.level == level]
            key = (*key, *(t.key for t in here))
            memo = em.frames[level].memo
            if key not in memo:
                values = [t.emit() for t in here]
                em.at(level)
                offset: Int = 0
                for v in values:
                    offset = em.add(offset, v)
                memo[key] = self._step(pointer, buffer, offset)
            pointer = memo[key]
        if constant == 0:
            return pointer
        key = (*key, constant)
        memo = em.frames[level].memo
        if key not in memo:
            em.at(level)
            memo[key] = self._step(pointer, buffer, constant)
        return memo[key]

    def _step(self, pointer: IrValue, buffer: Buffer, offset: Int) -> IrValue:
        if isinstance(offset, int) and offset == 0:
            return pointer
        em = self.domain.emitter
        return em.builder.gep(pointer, [em.i64(offset)], source_etype=stored_type(buffer.dtype))

    def _terms(self, place: Place, point: Point, condition: Node | None, skip_lanes: bool) -> tuple[list[Term], int]:
        """The addends of an address and its constant. `skip_lanes` leaves out what varies lane by lane."""
        domain = self.domain
        terms: list[Term] = []
        constant = place.constant
        for name, c in place.variables:
            value = domain.symbol(name)
            terms.append(Term(domain.level, (name, c), self._product(domain.level, value, c)))
        for axis, c in place.counters:
            state = domain.states[axis]
            constant += c * point[axis] * state.lanes
            if not (isinstance(state.base, int) and state.base == 0):
                terms.append(Term(state.level, (axis, c), self._product(state.level, state.base, c)))
        for node, stride in place.gathered:
            if domain.vector in node.deps and skip_lanes:
                continue
            guard = condition if node.unsafe else None
            deps = node.deps | guard.deps if guard is not None else node.deps
            key = (id(node), stride, domain.coordinates(deps, point), id(guard))
            level = domain.level_of(deps)
            terms.append(Term(level, key, self._scaled(node, stride, point, guard, level)))
        panel = place.panel
        if panel is not None:
            lanes_differ = domain.vector is not None and self._panel_lane_stride(panel, point) is None
            if not (skip_lanes and lanes_differ):
                more, k = self._panel_terms(panel, point)
                terms += more
                constant += k
        return terms, constant

    def _product(self, level: int, value: Int, factor: int) -> Callable[[], Int]:
        def emit() -> Int:
            self.domain.emitter.at(level)
            return self.domain.emitter.mul(value, factor)

        return emit

    def _scaled(self, node: Node, stride: int, point: Point, guard: Node | None, level: int) -> Callable[[], Int]:
        def emit() -> Int:
            assert self.evaluator is not None
            value = self.evaluator.value(node, point, guard)
            self.domain.emitter.at(level)
            return self.domain.emitter.mul(value, stride)

        return emit

    # ------------------------------------------------------------------------------------------ panels

    def _panel_terms(self, panel: PanelIndex, point: Point) -> tuple[list[Term], int]:
        domain = self.domain
        width = panel.width
        key: object
        axis = panel.alone()
        if axis is not None:
            assert panel.form is not None
            state = domain.states[axis]
            offset = point[axis] * state.lanes + panel.form.constant
            if state.divisible(width):
                # A whole number of panels to the tile's base: the rest is a constant.
                constant = offset // width * panel.stride + offset % width
                if isinstance(state.base, int):
                    return [], constant + state.base // width * panel.stride
                factor = panel.stride // width
                emit = self._product(state.level, state.base, factor)
                return [Term(state.level, (axis, "panels", factor), emit)], constant
            tile = state.unroll * state.lanes
            if panel.form.constant == 0 and width % tile == 0 and state.divisible(tile):
                # The register tile stays within one panel.
                key = (axis, "panel", panel.stride, width)
                return [Term(state.level, key, self._in_panels(panel, state, 0))], offset
            key = (axis, "panel", panel.stride, width, offset)
            return [Term(state.level, key, self._in_panels(panel, state, offset))], 0
        deps = self._panel_deps(panel)
        key = (id(panel), domain.coordinates(deps, point))
        level = domain.level_of(deps)

        def general() -> Int:
            index = self._panel_index(panel, point)
            domain.emitter.at(level)
            return self._panel_offset(panel, index)

        return [Term(level, key, general)], 0

    def _in_panels(self, panel: PanelIndex, state: AxisState, offset: int) -> Callable[[], Int]:
        def emit() -> Int:
            em = self.domain.emitter
            em.at(state.level)
            return self._panel_offset(panel, em.add(state.base, offset))

        return emit

    def _panel_deps(self, panel: PanelIndex) -> frozenset[str]:
        if panel.node is not None:
            return panel.node.deps
        assert panel.form is not None
        return frozenset(n[:-1] for n, _ in panel.form.terms if n.endswith("'"))

    def _panel_index(self, panel: PanelIndex, point: Point) -> Int:
        """The subscript's value at lane 0."""
        domain = self.domain
        em = domain.emitter
        if panel.node is not None:
            assert self.evaluator is not None
            return self.evaluator.value(panel.node, point)
        assert panel.form is not None
        em.at(domain.level_of(self._panel_deps(panel)))
        index: Int = panel.form.constant
        for name, c in panel.form.terms:
            if name.endswith("'"):
                state = domain.states[name[:-1]]
                value = em.add(state.base, point[name[:-1]] * state.lanes)
            else:
                value = domain.symbol(name)
            index = em.add(index, em.mul(value, c))
        return index

    def _panel_lane_indices(self, panel: PanelIndex, point: Point) -> list[Int]:
        domain = self.domain
        em = domain.emitter
        if panel.node is not None:
            assert self.evaluator is not None
            value = self.evaluator.value(panel.node, point)
            b = em.at(domain.level_of(panel.node.deps))
            return [b.sext(b.extract_element(value, em.i64(i)), I64) for i in range(domain.lanes)]
        assert panel.form is not None
        first = self._panel_index(panel, point)
        step = panel.form.coefficient(f"{domain.vector}'")
        return [em.add(first, step * lane) for lane in range(domain.lanes)]

    def _panel_offset(self, panel: PanelIndex, index: Int) -> Int:
        """index // width panels, and index % width elements in the panel; emitted where the builder stands."""
        if isinstance(index, int):
            return index // panel.width * panel.stride + index % panel.width
        em = self.domain.emitter
        width = em.i64(panel.width)
        quotient = em.builder.udiv(index, width)
        rest = em.builder.urem(index, width)
        return em.add(em.mul(quotient, panel.stride), rest)


def _strides(buffer: Buffer) -> tuple[list[int], int | None]:
    """Elements per step of each subscript, and which subscript counts panels (its stride is a panel's size)."""
    layout = buffer.layout
    if isinstance(layout, Panels):
        strides = [0] * len(buffer.shape)
        stride = layout.width
        for i in reversed(range(len(buffer.shape))):
            if i != layout.axis:
                strides[i] = stride
                stride *= buffer.shape[i]
        strides[layout.axis] = stride
        return strides, layout.axis
    strides = []
    stride = 1
    for size in reversed(buffer.shape):
        strides.append(stride)
        stride *= size
    return strides[::-1], None
