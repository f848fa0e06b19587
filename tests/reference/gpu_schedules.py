"""Random schedules for GPUs, legal by construction, for several ops at small sizes."""

from __future__ import annotations

from hypothesis import assume, note, strategies as st

from tcomp.dsl.ast import Level, MapLoops, Module, Num, Op, Order, Schedule, Stage
from tcomp.dsl.check import infer
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.format import print_item
from tcomp.machine.gpu import H100
from tcomp.schedule.lower import LoweredOp, lower

OPS: dict[str, dict[str, tuple[int, int]]] = {
    "matmul": {"M": (1, 20), "N": (1, 40), "K": (1, 30)},
    "linear_gelu": {"M": (1, 9), "N": (1, 30), "K": (1, 30)},
    "layernorm": {"M": (1, 9), "C": (1, 50)},
    "attention": {"B": (1, 2), "T": (1, 23), "H": (1, 3), "D": (1, 9)},
    "attention.backward": {"B": (1, 2), "T": (1, 19), "H": (1, 2), "D": (1, 9)},
    "crossentropy": {"M": (1, 6), "P": (60, 70), "V": (1, 60)},
}
GRIDS = {
    "matmul": "mn",
    "linear_gelu": "mn",
    "layernorm": "m",
    "attention": "bhq",
    "attention.backward": "bh",
    "crossentropy": "m",
}
STAGES = {"matmul": [("W", "k"), ("X", "k"), ("X", "m")], "attention": [("QKV.1", "k"), ("QKV.2", "k"), ("QKV.0", "q")]}


@st.composite
def schedules(draw: st.DrawFn, op: Op, extents: dict[str, int]) -> Schedule:
    """Legal by construction: lanes and warps within a block's limits, blocks only over parallel loops."""
    indices = list(extents)
    wide = draw(st.sampled_from(["", *indices]))  # the loop along lane.y
    maps, tiled = [], []
    for i in indices:
        size, levels = extents[i], []
        if i in GRIDS[op.name] and draw(st.booleans()):
            size = draw(st.integers(1, size))
            levels.append(Level("grid", (Num(size),)))
        for kind in draw(st.sampled_from([(), ("seq",), ("pipe",), ("seq", "pipe")])):
            size = draw(st.integers(1, size))
            levels.append(Level(kind, (Num(size),) if kind == "seq" else (Num(size), Num(draw(st.integers(1, 3))))))
            tiled.append(i)
        if draw(st.booleans()):
            place = draw(st.sampled_from(["warp.x", "warp.y"]))
            levels.append(Level(place, (Num(draw(st.integers(1, size))), Num(draw(st.integers(1, 4))))))
        if i == wide:
            levels.append(Level("lane.y", (Num(draw(st.integers(max(1, size // 8), size))),)))
        elif draw(st.booleans()):
            levels.append(Level("lane"))
        levels.append(Level("vec", (Num(draw(st.sampled_from([1, 2, 4]))),)))
        maps.append(MapLoops((i,), (), tuple(levels)))
    order = Order(tuple(draw(st.permutations(tiled))))
    places = {t: at for t, at in STAGES.get(op.name, []) if at in tiled and draw(st.booleans())}  # one for each tensor
    stages = [Stage((t,), "shared", at) for t, at in places.items()]
    return Schedule(op.name, "gpu", (*maps, order, *stages), ())


def scheduled(data: st.DataObject, name: str, module: Module) -> tuple[Op, dict[str, int], LoweredOp]:
    """An op at drawn sizes, lowered for an H100 by a drawn schedule."""
    op = module.ops[name]
    dims = {d: data.draw(st.integers(*r), label=d) for d, r in OPS[name].items()}
    extents = {i: int(evaluate_dim(e, dims)) for i, e in infer(op, module).ranges.items()}
    schedule = data.draw(schedules(op, extents))
    note(print_item(schedule))
    try:
        return op, dims, lower(op, module, dims, H100, schedule=schedule)
    except TcError as e:
        assume("each thread would hold" not in str(e))
        raise
