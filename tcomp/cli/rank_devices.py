"""Which GPU a rank has, and by what ranks exchange: NCCL, or gloo through host memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from tcomp.cli.limits import split_device
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.runtime.device import Device
    from tcomp.runtime.distributed.exchange import Exchange
    from tcomp.runtime.distributed.executor import Inner
    from tcomp.runtime.distributed.group import Group
    from tcomp.runtime.distributed.place import Place


def own_device(name: str, place: Place) -> str:
    """A rank's device where all are told the same: of the GPUs that `cuda` or `cuda:NAME` means, as many as ranks, its
    own; the only one, where it means one. UserError for fewer GPUs than ranks."""
    kind, which = split_device(name)
    if kind != "cuda":
        return name
    from tcomp.runtime.cuda.gpus import gpus, meant

    found = meant(which, gpus())
    if len(found) == 1:  # a launcher may show each rank its own; `check_apart` finds out
        return f"cuda:{found[0].index}"
    if place.local >= len(found):
        raise UserError(
            f"--device {name}: {place.beside} ranks on this machine, and {len(found)} GPUs",
            f"start as many as there are GPUs: torchrun --nproc-per-node {len(found)}",
        )
    return f"cuda:{found[place.local].index}"


def apart(group: Group, device: Device, name: str, exchange: str) -> Device:
    """The device, where each rank has its own GPU, or is asked to share it (`--device cuda:0 --exchange gloo`)."""
    from tcomp.runtime.cuda.device import CudaDevice

    gpu = device.gpu.uuid() if isinstance(device, CudaDevice) and device.kind == "cuda" else ""
    uuids = group.each(
        "gpu", gpu
    )  # (also of ranks that have none: `check_same` finds those, and nobody waits for them)
    if not isinstance(device, CudaDevice) or not gpu:
        return replace(device, beside=group.neighbours) if isinstance(device, CudaDevice) else device
    beside = [r for r, uuid in enumerate(uuids) if uuid == uuids[group.rank]]
    if len(beside) > 1 and not (exchange == "gloo" and split_device(name)[1]):
        raise UserError(
            f"--device {name}: ranks {', '.join(map(str, beside))} have the same GPU, "
            f"{device.gpu.index}: {device.gpu.name}",
            "start as many ranks as there are GPUs, with --device cuda (of several launchers on a machine each with "
            "GPUs of its own, CUDA_VISIBLE_DEVICES=1 torchrun ...); to let ranks share one, slowly: "
            f"--device cuda:{device.gpu.index} --exchange gloo",
        )
    return replace(device, shared_by=len(beside))


def way(exchange: str, device: Device, group: Group) -> str:
    """By what ranks exchange: nccl or gloo. UserError for NCCL where there is none."""
    nccl = device.kind == "cuda" and group.has_nccl
    if exchange == "nccl" and not nccl:
        raise UserError(
            "--exchange nccl: " + ("the installed torch has no NCCL, or finds no GPU" if device.kind == "cuda" else
                                   f"it is for --device cuda, not for {device.kind}"),
            "give --exchange gloo, which goes through host memory" + (", or install a torch for CUDA with this driver"
                                                                      if device.kind == "cuda" else ""),
        )  # fmt: skip
    return exchange or ("nccl" if nccl else "gloo")


def exchange_of(by: str, group: Group, inner: Inner) -> Exchange:
    """The exchange of a rank whose executor is `inner`; behind `Group.join`."""
    from tcomp.runtime.distributed.exchange import HostExchange
    from tcomp.runtime.executor import HostExecutor

    if isinstance(inner, HostExecutor):
        return HostExchange(group, inner.region)
    from tcomp.runtime.cuda.executor import CudaExecutor

    gpu = cast(CudaExecutor, inner)
    if by == "nccl":
        return group.nccl(gpu.context, gpu.arena, gpu.faults)
    from tcomp.runtime.cuda.pinned import PinnedExchange

    d = cast(Any, gpu.step.division)
    rows = [*(to for _, to in (*d.scattered, *d.joined)), *d.spread, *([d.sums] if d.sums is not None else [])]
    return PinnedExchange(group, gpu.context, gpu.arena, max(r.bytes for r in rows), gpu.faults)
