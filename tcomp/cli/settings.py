"""A training run's settings: defaults, then the run file, then flags. `run.json` keeps the outcome."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tcomp.cli.common import closest
from tcomp.cli.limits import (
    check_device,
    check_dims,
    check_hyper,
    check_named,
    check_numbers,
    check_precision,
    check_prompt,
    parse_bytes,
)
from tcomp.dsl.dims import Number
from tcomp.errors import UserError
from tcomp.runtime.documents import parse_toml, read_small


@dataclass(frozen=True)
class TrainSettings:
    """What `tcomp train` can be told, by flag or in a run file under the same names (`-` written `_`)."""

    model: str = "gpt2"
    config: str = "tiny"
    batch: int = 8
    length: int = 128
    precision: str = ""
    accumulation: int = 1
    steps: int = 1500
    seed: int = 1
    data: list[str] = field(default_factory=list)
    run: str = ""
    init_from: str = ""
    device: str = "cpu"
    gpu: str = ""
    graph: bool = True
    deterministic: bool = True
    threads: int = 0
    memory: str = ""
    lock: str = ""
    eval_every: int = 250
    eval_batches: int = 20
    save_every: int = 250
    keep: int = 2
    sample: int = 300
    prompt: str = "def "
    hyper: dict[str, float] = field(default_factory=dict)
    dims: dict[str, Number] = field(default_factory=dict)

    def check(self) -> TrainSettings:
        """UserError for values that make no sense; the settings themselves when all do."""
        numbers = {f.name: getattr(self, f.name) for f in fields(self) if type(getattr(self, f.name)) is int}
        check_numbers(**numbers)
        check_device(self.device, self.gpu)
        check_precision(self.precision)
        check_dims(self.dims)
        check_named("--data", self.data)
        check_hyper(self.hyper)
        if self.memory:
            parse_bytes(self.memory)
        if self.sample:
            check_prompt(self.prompt)
        return self


def read_run_file(path: Path) -> dict[str, Any]:
    """The values of a TOML run file; UserError names the first key that is unknown or of a wrong type."""
    try:
        values = parse_toml(read_small(path, pipes=True))
    except OSError as e:
        raise UserError(f"{path}: cannot read the run file: {e.strerror or e}") from e
    except ValueError as e:
        raise UserError(f"{path}: not a TOML file: {e}", "write lines such as steps = 2000") from e
    return checked(values, str(path))


def checked(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The values with their types verified against TrainSettings."""
    known = {f.name: getattr(TrainSettings(), f.name) for f in fields(TrainSettings)}
    for name, value in values.items():
        if name not in known:
            hint = closest(name, known) or f"known settings: {', '.join(known)}"
            raise UserError(f"{where}: unknown setting {name!r}", hint)
        default = known[name]
        if name == "data" and isinstance(value, str):
            value = values[name] = [value]
        if not isinstance(value, type(default)) or (isinstance(value, bool) and not isinstance(default, bool)):
            kinds = {int: "a whole number", str: "a text", list: "a list", dict: "a table", bool: "true or false"}
            kind = kinds[type(default)]
            raise UserError(f"{where}: {name} must be {kind}, not {value!r}")
        if name in ("hyper", "dims"):
            wanted = (int, float)
            for key, number in value.items():
                if not isinstance(number, wanted) or isinstance(number, bool):
                    raise UserError(f"{where}: {name}.{key} must be a number, not {number!r}")
        if name == "data" and not all(isinstance(v, str) for v in value):
            raise UserError(f"{where}: data must be a list of paths")
    return values


def merged(base: TrainSettings, *layers: dict[str, Any]) -> TrainSettings:
    """`base` with each layer's values put over it, checked; tables (hyper, dims) are merged key by key."""
    return _merged(base, *layers).check()


def _merged(base: TrainSettings, *layers: dict[str, Any]) -> TrainSettings:
    for layer in layers:
        values = dict(layer)
        for table in ("hyper", "dims"):
            if table in values:
                values[table] = {**getattr(base, table), **values[table]}
        base = replace(base, **values)
    return base


def as_json(settings: TrainSettings) -> dict[str, Any]:
    return asdict(settings)


def from_json(values: dict[str, Any], where: str) -> TrainSettings:
    """A run.json's settings, of the right types. Not checked further: flags may replace what does not suit here."""
    known = {f.name for f in fields(TrainSettings)}
    return _merged(TrainSettings(), checked({k: v for k, v in values.items() if k in known}, where))
