"""The GPUs that the driver offers: which there are, which one is meant, and what is to be compiled for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cuda.bindings import driver as cu

from tcomp.errors import UserError
from tcomp.machine.gpu import MACHINES, GpuMachine
from tcomp.machine.targets import TARGETS
from tcomp.runtime.cuda.driver import call, start

_ATTRIBUTE = cu.CUdevice_attribute


@dataclass(frozen=True)
class Gpu:
    """A device of the driver's. `capability` is (9, 0) for sm_90."""

    index: int
    name: str
    capability: tuple[int, int]
    memory_bytes: int
    driver_version: int

    def attribute(self, name: str) -> int:
        """A device attribute by its name without CU_DEVICE_ATTRIBUTE_."""
        handle = call(cu.cuDeviceGet, self.index)
        return int(call(cu.cuDeviceGetAttribute, getattr(_ATTRIBUTE, f"CU_DEVICE_ATTRIBUTE_{name}"), handle))

    def uuid(self) -> str:
        """What tells it from all other GPUs, here and elsewhere."""
        return bytes(call(cu.cuDeviceGetUuid, call(cu.cuDeviceGet, self.index)).bytes).hex()


def gpus() -> list[Gpu]:
    """All GPUs, in the driver's order; UserError when there is none or no usable driver."""
    version = start()
    found = []
    for index in range(call(cu.cuDeviceGetCount)):
        handle = call(cu.cuDeviceGet, index)
        name = call(cu.cuDeviceGetName, 256, handle).split(b"\0")[0].decode(errors="replace").strip()
        major, minor = (
            int(call(cu.cuDeviceGetAttribute, a, handle))
            for a in (
                _ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                _ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        found.append(Gpu(index, name, (major, minor), int(call(cu.cuDeviceTotalMem, handle)), version))
    return found


def choose(which: str, found: list[Gpu]) -> Gpu:
    """The first of the GPUs that are `meant`."""
    return meant(which, found)[0]


def meant(which: str, found: list[Gpu]) -> list[Gpu]:
    """The GPU of that number, or those whose name has `which` in it; all for "". UserError with the list when there is
    none."""
    if not found:
        raise UserError("the NVIDIA driver lists no GPU", "look at CUDA_VISIBLE_DEVICES and nvidia-smi")
    if which.isdecimal():
        named = [g for g in found if g.index == int(which)]
    else:
        named = [g for g in found if which.lower() in g.name.lower()]
    if not named:
        listing = ", ".join(f"{g.index}: {g.name}" for g in found)
        raise UserError(f"there is no GPU {which}", f"the GPUs here are {listing}")
    return named


def target_of(gpu: Gpu) -> str:
    """The newest target whose code runs on the GPU: its own, else the nearest below it of the same generation, else
    the newest that every later GPU takes (as PTX, which the driver compiles). UserError below 8.0."""
    if gpu.capability < (8, 0):
        raise UserError(
            f"GPU {gpu.index}, {gpu.name}, has compute capability {_text(gpu.capability)}, which is too old",
            "a GPU of compute capability 8.0 (Ampere) or newer is needed, or use --device cpu",
        )
    fitting = [t for t in TARGETS.values() if runs_on(t.name, gpu.capability) != "no"]
    same = [t for t in fitting if runs_on(t.name, gpu.capability) == "code"]
    return max(same or fitting, key=lambda t: t.sm).name


def runs_on(target: str, capability: tuple[int, int]) -> str:
    """How code for a target runs on a GPU: as compiled ("code"), through the driver's compiler ("ptx"), or "no".

    Machine code for 8.0 runs on all 8.x from there; that of `a` targets on their own capability only, and so does
    their PTX. Other PTX runs on every newer GPU.
    """
    t = TARGETS[target]
    if target.endswith("a"):
        return "code" if t.capability == capability else "no"
    if t.capability > capability:
        return "no"
    return "code" if t.capability[0] == capability[0] else "ptx"


def check_target(target: str, gpu: Gpu) -> None:
    """UserError when code for the target cannot run on the GPU."""
    if runs_on(target, gpu.capability) == "no":
        raise UserError(
            f"the kernels are compiled for {target}, and GPU {gpu.index}, {gpu.name}, is "
            f"sm_{gpu.capability[0]}{gpu.capability[1]}",
            f"build the step for {target_of(gpu)}",
        )


def machine_of(gpu: Gpu) -> GpuMachine:
    """The description of a GPU to compile for: its own limits, and the rates of a known GPU of that name."""
    target = target_of(gpu)
    words = "".join(c for c in gpu.name.lower() if c.isalnum())
    known = [m for m in MACHINES.values() if m.name in words and m.capability == gpu.capability]
    base = known[0] if known else max((m for m in MACHINES.values() if m.target == target), key=lambda m: m.sms)
    bandwidth = 2e3 * gpu.attribute("MEMORY_CLOCK_RATE") * gpu.attribute("GLOBAL_MEMORY_BUS_WIDTH") / 8
    return replace(
        base,
        name=base.name if known else words,
        label=gpu.name,
        target=target,
        sms=gpu.attribute("MULTIPROCESSOR_COUNT"),
        shared_per_block=gpu.attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        shared_per_sm=gpu.attribute("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
        registers_per_sm=gpu.attribute("MAX_REGISTERS_PER_MULTIPROCESSOR"),
        threads_per_sm=gpu.attribute("MAX_THREADS_PER_MULTIPROCESSOR"),
        blocks_per_sm=gpu.attribute("MAX_BLOCKS_PER_MULTIPROCESSOR"),
        l2_bytes=gpu.attribute("L2_CACHE_SIZE"),
        memory_bytes=gpu.memory_bytes,
        memory_bandwidth=base.memory_bandwidth if known else bandwidth or base.memory_bandwidth,
    )


def _text(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
