"""What several commands share: finding a model's file and what it declares, building a step for a device."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tcomp.cli.limits import DEFAULT_GPU, split_device
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.autotune.apply import Applied
    from tcomp.cli.kept_steps import KeptStep
    from tcomp.dsl.ast import Model, Module, Op
    from tcomp.dsl.dims import Number
    from tcomp.machine.cpu import CpuMachine
    from tcomp.machine.gpu import GpuMachine
    from tcomp.model.request import StepRequest
    from tcomp.model.step import Step
    from tcomp.runtime.device import Device


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection: trees, graphs and plans stay, and looking through them again and again finds little."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
    if path.exists():
        wrong = "a folder" if path.is_dir() else "a pipe or a device"
        raise UserError(f"{name}: {wrong}, not a .tc file", f"name one, or one of tcomp's own: {', '.join(known)}")
    near = closest(Path(name).stem, known)
    raise UserError(f"{name}: no such file", near or f"tcomp's own files: {', '.join(known)}")


@uncollected()
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
    raise UserError(f"{name}: the file declares several models: {', '.join(module.models)}", "keep one in each file")


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
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""


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
    request: StepRequest
    """as it was asked for, its files by their full paths"""
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


@uncollected()
def build_step(
    request: StepRequest, device: Device, *, module: Module | None = None, free: bool = True, to_run: bool = False
) -> Built:
    """Check, derive, schedule and plan the step that is asked for (`request.model` is a file) for a device.

    Without a memory limit the plan must fit what is free on the device, unless `free` is False. The file is not read
    again with a `module`; without one, a step that was built before is taken from the user's cache. With `to_run` the
    device begins to compile kernels meanwhile: the step must be opened on it, or `device.abandon` called.
    """
    from tcomp.autotune.lockfile import find_lock
    from tcomp.cli.kept_steps import keep_step, load_step, step_key

    file = find_file(request.model)
    lock = find_lock(file, device.machine.name, request.lock or None)
    limited = replace(request, memory_limit=device.free_memory()) if free and request.recompute == "cheap" else request
    limit = limited.memory_limit
    key = step_key(file, lock, request, device) if module is None else None
    made = load_step(key) if key is not None else None
    if made is None or (limit is not None and made.step.memory_bytes(device.threads) > limit):
        module = module or load_module(request.model, request.precision)
        made, warned = _build(limited, device, module, lock, to_run)
        if key is not None and not warned and step_key(file, lock, request, device) == key:
            keep_step(key, module, made)  # what was read did not change in between
    asked = replace(request, model=str(file.resolve()), lock=str(lock.resolve()) if lock else "none")
    return Built(made.model, asked, made.step, device, lock, made.tuned)


def _build(
    request: StepRequest, device: Device, module: Module, lock: Path | None, to_run: bool
) -> tuple[KeptStep, bool]:
    """The step of a module, and whether there was anything to warn of."""
    from tcomp.cli.kept_steps import KeptStep
    from tcomp.model.build import build_step as build

    applied: Applied | None = None
    if lock is not None:
        from tcomp.autotune.apply import load_lock

        applied = load_lock(lock, module, device.machine, device.threads, request.deterministic)
    lower, found = applied.lower if applied else None, device.begin if to_run else None
    request = resolved(request, module)
    try:
        step = build(module, request, device.machine, device.threads, lower=lower, found=found)
    except BaseException as e:
        device.abandon()
        if not isinstance(e, OverflowError):
            raise
        raise UserError("a step of these sizes needs more memory than there are addresses", "use smaller sizes") from e
    warned = tell_stale(lock, applied) if applied else False
    return KeptStep(step, request.model, len(applied.used) if applied else 0), warned


def applied_lock(
    request: StepRequest, module: Module, machine: CpuMachine | GpuMachine, threads: int
) -> tuple[Path | None, Applied]:
    """The lockfile that a build of the request would use, ready for lowering (without one: no entries)."""
    from tcomp.autotune.apply import Applied, load_lock
    from tcomp.autotune.lockfile import Lock, find_lock

    lock = find_lock(find_file(request.model), machine.name, request.lock or None)
    if lock is None:
        return None, Applied(Lock(request.model, machine.name), module, machine, threads, request.deterministic)
    return lock, load_lock(lock, module, machine, threads, request.deterministic)


def tell_stale(lock: Path | None, applied: Applied) -> bool:
    """Warn of the lockfile's stale entries; whether there were any."""
    lines = applied.warnings(lock) if lock else []
    if lines:
        warn("\n".join(lines))
    return bool(lines)


def resolved(request: StepRequest, module: Module) -> StepRequest:
    """A request for the model of a file in the module's own names: the model, its configuration, its sizes (every
    command has values for -B and -T, of which the model need have neither; others are given by --dim)."""
    model = only_model(module, request.model)
    own, dims = own_sizes(model, request.dims)
    sizes = {name: size for name, size in request.sizes.items() if name in model.dims or name not in ("B", "T")}
    for name in own:
        if name in sizes:
            raise UserError(f"--dim {name}={own[name]}: '{name}' is a size", f"give it by -{name} {own[name]}")
    config = request.config or default_config(module, request.model)
    return replace(request, model=model.name, config=config, sizes=sizes | own, dims=dims)


def own_sizes(model: Model, dims: Mapping[str, Number]) -> tuple[dict[str, int], dict[str, Number]]:
    """Of the values of `--dim` those of a model's sizes, and those of its configuration. UserError for a size that is
    no whole number."""
    sizes: dict[str, int] = {}
    for name in (name for name in dims if name in model.dims):
        if dims[name] != int(dims[name]):
            raise UserError(f"--dim {name}={dims[name]}: must be a whole number", f"write for example --dim {name}=8")
        sizes[name] = int(dims[name])
    return sizes, {name: n for name, n in dims.items() if name not in sizes}


def warn(text: str) -> None:
    """A warning, apart from the results."""
    print(f"warning: {text}", file=sys.stderr)


def note(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


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
        raise UserError(
            f"{path}: cannot write there: {e.strerror or e}", "name another place, or make room and permission there"
        ) from e


def declaring_file(name: str) -> Path:
    """The file that declares a file's only model: itself, or one that it imports and gives another optimizer."""
    return Path(only_model(load_module(name, ""), name).span.file).resolve()


def layout_path(file: Path) -> Path:
    """The weights layout that belongs to a model's text: gpt2.hf.toml beside gpt2.tc. A file that has none, and gives
    the model of another one an optimizer, has that one's."""
    own = file.with_name(file.name.removesuffix(".tc") + ".hf.toml")
    if not own.is_file():
        with suppress(UserError):
            declaring = declaring_file(str(file))
            if declaring != file.resolve():
                return layout_path(declaring)
    return own


def library_name(file: Path) -> str:
    """`gpt2` for a model of tcomp's own library, nothing for other files."""
    from tcomp.dsl.files import library

    inside = library().resolve() in file.resolve().parents
    return file.resolve().relative_to(library().resolve()).as_posix().removesuffix(".tc") if inside else ""


def default_config(module: Module, file: str) -> str:
    """`tiny` where the model has it, else its first configuration."""
    model = only_model(module, file)
    names = [c.name for c in model.configs]
    if not names:
        raise UserError(
            f"{file}: model {model.name} declares no configuration",
            "add one to the model, such as `config small: L = 2`",
        )
    return "tiny" if "tiny" in names else names[0]
