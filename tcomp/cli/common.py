"""What several commands share: finding a model's file and what it declares, building a step for a device."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcomp.cli.limits import DEFAULT_GPU, parse_bytes, split_device
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.cli.settings import TrainSettings
    from tcomp.dsl.ast import Model, Module, Op
    from tcomp.dsl.dims import Number
    from tcomp.machine.cpu import CpuMachine
    from tcomp.machine.gpu import GpuMachine
    from tcomp.model.graph import Graph
    from tcomp.model.step import Step
    from tcomp.runtime.device import Device


DEVICE_HELP = "cpu, cuda (cuda:1, cuda:NAME) or virtual, a GPU simulator that checks what runs [default: cpu]."
LOCK_HELP = "The lockfile of tuned schedules, or none [default: MODEL.MACHINE.lock here or beside the model]."
GPU_HELP = "The GPU that --device virtual stands for: h100, a100, rtx4090 ... [default: h100]."
MEMORY_HELP = (
    "Fit the step into this much: 16GB. Activations are computed again where that is needed "
    "[default: on CPUs where it costs next to nothing; unlimited: nowhere]."
)
PRECISION_HELP = "f32, bf16, bf16_stochastic, fp8 or fp8_block [default: the model text's, else f32]."
DETERMINISTIC_HELP = "Refuse, or take, schedules by which two runs may differ (`combine ... by atomic`)."
GRAPH_HELP = "On a GPU, a whole program as one graph, or launch by launch (slow, names a failing launch)."


def find_file(name: str) -> Path:
    """A `.tc` file: a path as it is, else one of tcomp's own (`gpt2`, `models/gpt2.tc`, `ops/linear.tc`)."""
    from tcomp.dsl.files import library

    if not name:
        raise UserError("the file's name is empty", "name a .tc file, or one of tcomp's own, such as gpt2")
    path = Path(name)
    if path.is_file():
        return path
    base = library()
    inside = name.removeprefix("models/").removesuffix(".tc") + ".tc"
    for candidate in (base / inside, base / "ops" / inside):
        if candidate.is_file():
            return candidate
    known = sorted(p.relative_to(base).as_posix().removesuffix(".tc") for p in base.rglob("*.tc"))
    if path.is_dir():
        raise UserError(f"{name}: a folder, not a .tc file", f"tcomp's own files: {', '.join(known)}")
    near = closest(Path(name).stem, known)
    raise UserError(f"{name}: no such file", near or f"tcomp's own files: {', '.join(known)}")


def load_module(name: str, precision: str | None = None) -> Module:
    """Parse, resolve and check the file and what it imports; with a precision ("": the model's own) what that one
    needs."""
    from tcomp.dsl.load import load
    from tcomp.dsl.parse import keep_tables
    from tcomp.runtime.cache import cache_folder

    with suppress(UserError):  # where nothing can be kept, a command that must keep something says so
        keep_tables(cache_folder("grammar"))
    return load(find_file(name), precision)


def only_model(module: Module, name: str) -> Model:
    """The file's model; UserError when it has none or several."""
    models = list(module.models.values())
    if len(models) == 1:
        return models[0]
    if not models:
        raise UserError(f"{name}: the file declares no model", "name a model's file, such as gpt2")
    raise UserError(f"{name}: the file declares several models: {', '.join(module.models)}")


def find_op(module: Module, name: str) -> Op:
    if name in module.ops:
        return module.ops[name]
    raise UserError(f"there is no op {name!r}", closest(name, module.ops) or f"ops: {', '.join(module.ops)}")


def known_dims(op: Op, given: Mapping[str, Number]) -> None:
    """UserError where `--dim` gives what is no dimension of the op, or no whole number."""
    from tcomp.dsl.infer import dimensions

    known = dimensions(op)
    for d, value in given.items():
        if value != int(value):
            raise UserError(f"--dim {d}={value}: must be a whole number", f"write for example --dim {d}=64")
        if d not in known:
            raise UserError(f"op {op.name!r} has no dimension {d!r}", f"it has {', '.join(known)}")


def closest(word: str, known: Iterable[str]) -> str:
    """`did you mean ...?`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""


def memory_here() -> int | None:
    """Bytes this process could still take, where that is known."""
    from tcomp.runtime.device import memory_here

    return memory_here()


def device_for(name: str = "cpu", *, gpu: str = "", threads: int = 0, graph: bool = True) -> Device:
    """What `--device`, `--gpu`, `--threads` and `--no-graph` ask for.

    UserError where that device cannot be used.
    """
    from tcomp.runtime.device import device_named

    kind, which = split_device(name)
    return device_named(kind, which, gpu=gpu or DEFAULT_GPU, threads=threads, graph=graph)


@dataclass(frozen=True)
class Built:
    """A model file made ready to run: `name` is the model's name in the file."""

    name: str
    step: Step
    device: Device
    lock: Path | None = None
    tuned: int = 0
    """the lockfile in use, and how many op instances have their values from it"""

    @property
    def machine(self) -> CpuMachine | GpuMachine:
        return self.device.machine

    @property
    def threads(self) -> int:
        return self.device.threads


def build_step(
    file: str,
    config: str | None,
    batch: int,
    length: int,
    *,
    dims: Mapping[str, Number] | None = None,
    extra: Mapping[str, int] | None = None,
    precision: str = "",
    accumulation: int = 1,
    threads: int = 0,
    memory: str | None = None,
    free: bool = True,
    programs: tuple[str, ...] = ("train",),
    keep_logits: bool = False,
    prefill: Mapping[str, int] | None = None,
    module: Module | None = None,
    device: Device | None = None,
    lock: str = "",
    deterministic: bool = True,
    to_run: bool = False,
) -> Built:
    """Check, derive, schedule and plan `file` at batch B and length T for a device (this computer's processors).

    The plan is made to fit `memory`, by computing activations again where that is needed ("unlimited": nowhere).
    Without it, on CPUs those are computed again that cost next to nothing, and the plan must fit what is free on the
    device, unless `free` is False. `lock` is the lockfile whose choices the schedules get ("none": their own values);
    without it, the one that `find_lock` finds, if any. `deterministic` refuses sums in any order. The file is not read
    again with a `module`; without one, a step that was built before is taken from the user's cache. With `to_run` the
    device begins to compile kernels meanwhile: the step must be opened on it, or `device.abandon` called.
    """
    from tcomp.autotune.lockfile import find_lock

    found = find_file(file)
    device = device or device_for(threads=threads)
    path = find_lock(found, device.machine.name, lock or None)
    limit = parse_bytes(memory) if memory else device.free_memory() if free else None
    options: dict[str, Any] = {
        "overrides": dict(dims or {}), "precision": precision or None, "accumulation": accumulation,
        "machine": device.machine, "threads": device.threads, "recompute": bool(memory), "cheap": not memory,
        "programs": programs, "keep_logits": keep_logits, "prefill": prefill, "deterministic": deterministic,
    }  # fmt: skip
    sizes = {"B": batch, "T": length, **(extra or {})}
    if module is not None:
        return _build_step(file, module, config, sizes, device, path, limit, options, to_run)[0]
    from tcomp.cli.kept_steps import KeptStep, StepKey, keep_step, load_step, step_key

    def key_now() -> StepKey | None:
        return step_key(found, path, config=config, sizes=sizes, budget=limit if memory else None, **options)

    key = key_now()
    kept = load_step(key) if key is not None else None
    if kept is not None and (limit is None or kept.step.memory_bytes(device.threads) <= limit):
        return Built(kept.model, kept.step, device, path, kept.tuned)
    module = load_module(file, precision)
    built, warned = _build_step(file, module, config, sizes, device, path, limit, options, to_run)
    if key is not None and not warned and key_now() == key:  # what was read did not change in between
        keep_step(key, module, KeptStep(built.step, built.name, built.tuned))
    return built


def _build_step(
    file: str,
    module: Module,
    config: str | None,
    sizes: Mapping[str, int],
    device: Device,
    lock: Path | None,
    limit: int | None,
    options: Mapping[str, Any],
    to_run: bool,
) -> tuple[Built, bool]:
    """The step of a module, and whether there was anything to warn of."""
    from tcomp.autotune.apply import load_lock
    from tcomp.model.build import build_step as build

    model = only_model(module, file)
    sizes = declared(model, sizes)
    applied = load_lock(lock, module, device.machine, device.threads, options["deterministic"]) if lock else None
    lower = applied.lower if applied else None
    chosen = config or default_config(module, file)
    found = device.begin if to_run else None
    try:
        step = build(module, model.name, chosen, sizes, memory_limit=limit, lower=lower, found=found, **options)
    except BaseException as e:
        device.abandon()
        if not isinstance(e, OverflowError):
            raise
        raise UserError("a step of these sizes needs more memory than there are addresses", "use smaller sizes") from e
    warnings = applied.warnings(lock) if applied and lock else []
    for line in warnings:
        print(f"warning: {line}" if line.startswith(str(lock)) else line, file=sys.stderr)
    return Built(model.name, step, device, lock, len(applied.used) if applied else 0), bool(warnings)


def declared(model: Model, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes without -B and -T where the model has no such size: every command has values for both."""
    return {name: size for name, size in sizes.items() if name in model.dims or name not in ("B", "T")}


def copy_file(source: Path, to: Path) -> None:
    """Copy a file, whole or not at all."""
    from tcomp.runtime.cache import write_atomic

    data = source.read_bytes()
    write_atomic(to, lambda f: f.write(data))


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    from tcomp.runtime.cache import write_atomic

    try:
        write_atomic(path, lambda out: out.write(text.encode()))
    except OSError as e:
        raise UserError(f"{path}: cannot write there: {e.strerror or e}") from e


def layout_path(file: Path) -> Path:
    """The weights layout that belongs to a model's text: gpt2.hf.toml beside gpt2.tc."""
    return file.with_name(file.name.removesuffix(".tc") + ".hf.toml")


def library_name(file: Path) -> str:
    """`gpt2` for a model of tcomp's own library, nothing for other files."""
    from tcomp.dsl.files import library

    inside = library().resolve() in file.resolve().parents
    return file.resolve().relative_to(library().resolve()).as_posix().removesuffix(".tc") if inside else ""


def numbers_of(module: Module, settings: TrainSettings) -> dict[str, Number]:
    """All numbers of a run's model, the sizes at their smallest."""
    from tcomp.model.dimensions import model_dims

    model = only_model(module, settings.model)
    return model_dims(module, model, settings.config, dict.fromkeys(model.dims, 1), settings.dims)


def small_graph(module: Module, model: str, config: str, dims: Mapping[str, Number]) -> Graph:
    """The model's graph at the smallest sizes: its parameters do not depend on them."""
    from tcomp.model.unroll import build_graph

    return build_graph(module, model, config, dict.fromkeys(module.models[model].dims, 1), dims)


def default_config(module: Module, file: str) -> str:
    """`tiny` where the model has it, else its first configuration."""
    model = only_model(module, file)
    names = [c.name for c in model.configs]
    if not names:
        raise UserError(f"{file}: model {model.name} declares no configuration")
    return "tiny" if "tiny" in names else names[0]
