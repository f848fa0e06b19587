"""The options that several commands have, each written once: its flags, its help, the numbers it makes sense with.

The records say which of them belong together, and make of them what the rest of tcomp takes: a `StepRequest`, a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tcomp.cli import limits
from tcomp.cli.command import Options
from tcomp.cli.limits import Range
from tcomp.errors import UserError
from tcomp.model.request import LARGEST_SIZE, Sharing, StepRequest

if TYPE_CHECKING:
    from tcomp.dsl.dims import Number
    from tcomp.machine.gpu import GpuMachine
    from tcomp.runtime.device import Device

MANY = (1 << 31) - 1
SEED = Range(0, (1 << 63) - 1)
TOLERANCES = Range(0, 1000)
SIZES, SIZES_OR_0 = Range(1, LARGEST_SIZE), Range(0, LARGEST_SIZE)
_CORES = Range(0, max(256, 4 * limits.cores()))

File = Annotated[str, typer.Argument(help="A .tc file, or one of tcomp's own models.")]
Config = Annotated[str, typer.Option(help="The model's configuration, such as 124M; without it tiny, or the first.")]
Batch = Annotated[int, typer.Option("--batch", "-B", help="Sequences per micro-batch."), SIZES]
Length = Annotated[int, typer.Option("--length", "-T", help="Tokens per sequence."), SIZES]
Accumulation = Annotated[int, typer.Option(help="Micro-batches per step."), SIZES]
Dim = Annotated[list[str], typer.Option(help="A configuration value: --dim L=2; may be repeated.")]
Precision = Annotated[
    str, typer.Option(help="f32, bf16, bf16_stochastic, fp8 or fp8_block [default: the model text's, else f32].")
]
Memory = Annotated[
    str,
    typer.Option(
        help="Fit the step into this much: 16GB. Activations are computed again where that is needed "
        "[default: on CPUs where it costs next to nothing; unlimited: nowhere]."
    ),
]
Lock = Annotated[
    str,
    typer.Option(
        help="The lockfile of tuned schedules, or none [default: MODEL.MACHINE.lock here or beside the model]."
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What the optimizer keeps under this name in the parameters' place, such as an average of them.",
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic/--nondeterministic",
        help="Refuse, or take, schedules by which two runs may differ (`combine ... by atomic`).",
    ),
]
DeviceName = Annotated[
    str, typer.Option(help="cpu, cuda (cuda:1, cuda:NAME) or virtual, a GPU simulator that checks what runs.")
]
VirtualGpu = Annotated[
    str, typer.Option(help="The GPU that --device virtual stands for: h100, a100, rtx4090 ... [default: h100].")
]
Graph = Annotated[
    bool,
    typer.Option(
        "--graph/--no-graph",
        help="On a GPU, a whole program as one graph, or launch by launch (slow, names a failing launch).",
    ),
]
Threads = Annotated[int, typer.Option(help="Cores to use; 0: all."), _CORES]
Workers = Annotated[int, typer.Option(help="Processes; 0: one per core."), _CORES]
Zero = Annotated[
    int, typer.Option(help="1: each rank keeps optimizer state and master copies of its share only (ZeRO-1)."),
    Range(0, 1),
]  # fmt: skip
Exchange = Annotated[
    str, typer.Option(help="How ranks on GPUs exchange: nccl, or gloo, through host memory [default: nccl, if there].")
]
Run = Annotated[Path, typer.Argument(help="A run's folder, trained or imported: runs/gpt2-tiny.")]
Data = Annotated[
    list[str],
    typer.Option(
        metavar="PATH...",
        help="Text files, folders, .bin token files, or .safetensors with tensors of the inputs' names.",
    ),
]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the figures into this file.")]
StoredType = Annotated[str, typer.Option(help="f32, bf16 or f16 [default: as in what is read].")]


def sharing_of(ranks: int, zero: int) -> Sharing:
    """How so many processes share a step; by itself a process keeps all."""
    return Sharing(ranks, zero if ranks > 1 else 0)


@dataclass(frozen=True)
class StepSettings:
    """What of a step can be set, by flag or in a run file."""

    config: Config = ""
    batch: Batch = 8
    length: Length = 128
    accumulation: Accumulation = 1
    precision: Precision = ""
    memory: Memory = ""
    lock: Lock = ""
    deterministic: Deterministic = True

    def step_of(self, file: str, dims: Mapping[str, Number]) -> StepRequest:
        """The step of a file's model that is asked for. UserError for a memory limit that is none."""
        memory_limit, recompute = limits.parse_memory(self.memory)
        return StepRequest(
            file,
            self.config,
            {"B": self.batch, "T": self.length},
            dims,
            self.precision,
            self.accumulation,
            memory_limit=memory_limit,
            recompute=recompute,
            deterministic=self.deterministic,
            lock=self.lock,
        )


@dataclass(frozen=True)
class StepOptions(StepSettings, Options):
    """Which step a command is about. UserError for what is no value of an option."""

    file: File = "gpt2"
    dim: Dim = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        limits.check_precision(self.precision)

    def request(self) -> StepRequest:
        return self.step_of(self.file, limits.parse_dims(self.dim))


@dataclass(frozen=True)
class DeviceOptions(Options):
    """Where a step is to run."""

    device: DeviceName = "cpu"
    gpu: VirtualGpu = ""
    threads: Threads = 0
    graph: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        limits.check_device(self.device, self.gpu)
        if self.kind != "cpu":
            limits.check_threads(self.threads, f"--device {self.device}")

    @property
    def kind(self) -> str:
        return limits.split_device(self.device)[0]

    def open(self) -> Device:
        """The device. UserError where it cannot be used."""
        from tcomp.cli.common import device_for

        return device_for(self.device, gpu=self.gpu, threads=self.threads, graph=self.graph)


@dataclass(frozen=True)
class RunOptions(DeviceOptions):
    """Where and how a step is to run."""

    graph: Graph = True


@dataclass(frozen=True)
class TargetOptions(Options):
    """The machine that code is made for; a GPU need not be here."""

    target: Annotated[str, typer.Option(help="cpu, or a GPU target such as sm_90a [default: cpu].")] = ""
    gpu: Annotated[str, typer.Option(help="The GPU of that target: h200 [default: h100 for sm_90a].")] = ""
    threads: Threads = 0

    def machine(self, default: str = "") -> GpuMachine | None:
        """What `--target` (without either, `default`) and `--gpu` name; None for the CPU. UserError where they
        contradict each other."""
        from tcomp.machine.gpu import machine_for_target, machine_named

        target = self.target or ("" if self.gpu else default)
        if self.gpu or target not in ("", "cpu"):
            limits.check_threads(self.threads, f"--gpu {self.gpu}" if self.gpu else f"--target {target}")
        if not self.gpu:
            return None if target in ("", "cpu") else machine_for_target(target)
        machine = machine_named(self.gpu)
        if target and target != machine.target:
            raise UserError(
                f"--gpu {self.gpu} is of target {machine.target}, not {target}", f"leave out --target {target}"
            )
        return machine

    def device(self, machine: GpuMachine | None) -> Device:
        """That machine, to build for."""
        from tcomp.cli.build_gpu import TargetDevice
        from tcomp.cli.common import device_for

        return TargetDevice(machine) if machine else device_for(threads=self.threads)
