"""One op as a step of its own: takes a lowered op, gives a `Step` whose program "run" launches it once.

Every operand and workspace gets its own slot, so tests, benchmarks and tuning run an op through the same
executor as a model. With `guard`, that many unused bytes follow each slot under the name "guard.<slot>": a
kernel that writes past an operand shows there.
"""

from __future__ import annotations

from tcomp.dsl.ast import DType
from tcomp.ir.regions import SHARED, region_bytes
from tcomp.ir.tile import Buffer, Scope
from tcomp.model.placement import aligned
from tcomp.model.step import Launch, Slot, Step
from tcomp.schedule.lower import LoweredOp


def single_op_step(lowered: LoweredOp, dims: dict[str, int], guard: int = 0) -> Step:
    """A step with the program "run" and one slot per operand, named as in the op."""
    buffers: dict[str, Buffer] = {}
    for kernel in lowered.kernels:
        for operand in kernel.operands:
            buffers.setdefault(operand.name, operand)
    workspaces = {b.name for b in lowered.workspaces}
    last = len(lowered.kernels) - 1
    slots: dict[str, Slot] = {}
    offset = 0
    for name, buffer in buffers.items():
        kind = "workspace" if name in workspaces else "output"
        owner = lowered.kernels[0].op
        size = max(buffer.bytes, 1)
        slots[name] = Slot(name, kind, buffer.dtype, buffer.shape, offset, size, 0, last, owner)
        offset += aligned(size)
        if guard:
            # The guard begins at the operand's last byte, before the padding that alignment leaves.
            start = slots[name].offset + -(-size // 4) * 4
            stop = offset + guard
            shape = ((stop - start) // 4,)
            slots[f"guard.{name}"] = Slot(
                f"guard.{name}", "workspace", DType.I32, shape, start, stop - start, 0, last, "guard"
            )
            offset = aligned(stop)
    launches = tuple(
        Launch(kernel.name, tuple(slots[b.name].offset for b in kernel.operands), kernel.name)
        for kernel in lowered.kernels
    )
    return Step(
        model="",
        config="",
        dims=dims,
        slots=slots,
        arena_bytes=offset,
        lower_bound_bytes=offset,
        scratch_bytes=region_bytes(lowered.kernels, Scope.SCRATCH),
        team_bytes=region_bytes(lowered.kernels, *SHARED),
        kernels={k.name: k for k in lowered.kernels},
        programs={"run": launches},
        parameters=(),
    )
