"""A training run's settings: defaults, then the run file, then flags. `run.json` keeps the outcome."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tcomp.cli import limits, options
from tcomp.cli.command import check_ranges
from tcomp.cli.common import closest
from tcomp.cli.limits import Range
from tcomp.cli.options import MANY, StepSettings, sharing_of
from tcomp.errors import UserError
from tcomp.model.request import StepRequest


@dataclass(frozen=True)
class TrainSettings(StepSettings):
    """What `tcomp train` can be told, by flag or in a run file under the same names (`-` written `_`)."""

    model: options.File = "gpt2"
    config: Annotated[str, typer.Option(help="The model's configuration, such as 124M.")] = "tiny"
    data: options.Data = field(default_factory=list)
    steps: Annotated[int, typer.Option(help="Optimizer steps in all."), Range(1, MANY)] = 1500
    seed: Annotated[int, typer.Option(help="Of parameters, data order and sample."), options.SEED] = 1
    run: Annotated[
        str, typer.Option("--run", "--run-folder", help="The run's folder [default: runs/MODEL-CONFIG].")
    ] = ""  # torchrun takes --run for an abbreviation of its own
    init_from: Annotated[
        str, typer.Option(metavar="RUN", help="Start from the weights of this run folder, or imported one.")
    ] = ""
    weights: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="With --init-from: what that run's optimizer keeps under this name in the parameters' place.",
        ),
    ] = ""
    device: options.DeviceName = "cpu"
    gpu: options.VirtualGpu = ""
    graph: options.Graph = True
    threads: options.Threads = 0
    zero: options.Zero = 0
    exchange: options.Exchange = ""
    ranks: int = 1
    """how many processes train together, as the launcher says"""
    eval_every: Annotated[int, typer.Option(help="Steps between validations; 0: at the end."), Range(0, MANY)] = 250
    eval_batches: Annotated[int, typer.Option(help="Batches per validation."), Range(1, MANY)] = 20
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints; 0: at the end."), Range(0, MANY)] = 250
    keep: Annotated[int, typer.Option(help="How many checkpoints to keep."), Range(1, MANY)] = 2
    sample: Annotated[int, typer.Option(help="Tokens of sample text at the end."), Range(0, MANY)] = 300
    prompt: Annotated[str, typer.Option(help="What the sample begins with.")] = "def "
    hyper: dict[str, float] = field(default_factory=dict)
    dims: dict[str, int | float] = field(default_factory=dict)

    def check(self) -> TrainSettings:
        """UserError for values that make no sense; the settings themselves when all do."""
        check_ranges(self)
        limits.check_device(self.device, self.gpu)
        limits.check_exchange(self.exchange)
        limits.check_precision(self.precision)
        limits.check_dims(self.dims)
        limits.check_named("--data", self.data)
        limits.check_hyper(self.hyper)
        limits.parse_memory(self.memory)
        if self.weights and not self.init_from:
            raise UserError(
                f"--weights {self.weights} is about the run that another one starts from, and none is named",
                "name it, as in --init-from RUN, or leave --weights out",
            )
        if self.sample:
            limits.check_prompt(self.prompt)
        return self

    def request(self) -> StepRequest:
        """The step that is trained."""
        return replace(self.step_of(self.model, self.dims), sharing=sharing_of(self.ranks, self.zero))

    def forward(self, precision: str) -> StepRequest:
        """The forward pass of the trained model, with weights that were kept in a precision."""
        return StepRequest(
            self.model, self.config, {"B": self.batch, "T": self.length}, self.dims, precision, programs=("forward",),
            recompute="cheap", deterministic=self.deterministic,
        )  # fmt: skip


def read_run_file(path: Path) -> dict[str, Any]:
    """The values of a TOML run file; UserError names the first key that is unknown or of a wrong type."""
    from tcomp.runtime.documents import parse_toml, read_small

    try:
        values = parse_toml(read_small(path, pipes=True))
    except OSError as e:
        raise UserError(f"{path}: cannot read the run file: {e.strerror or e}", "name a TOML file") from e
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
            raise UserError(f"{where}: {name} must be {kind}, not {value!r}", f"as in {name} = {json.dumps(default)}")
        if name in ("hyper", "dims"):
            wanted = (int, float)
            for key, number in value.items():
                if not isinstance(number, wanted) or isinstance(number, bool):
                    raise UserError(f"{where}: {name}.{key} must be a number, not {number!r}", f"as in {key} = 2")
        if name == "data" and not all(isinstance(v, str) for v in value):
            raise UserError(f"{where}: data must be a list of paths", 'as in data = ["notes.txt"]')
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


KEPT = (
    "model", "config", "dims", "precision", "batch", "length", "accumulation", "data", "seed", "steps", "hyper",
)  # fmt: skip
"""What says which run a run is: no default may take the place of these in a run.json. (Settings that came later may be
missing in an older one.)"""


def from_json(values: dict[str, Any], where: str) -> TrainSettings:
    """A run.json's settings, all of `KEPT` and of the right types. Not checked further: flags may replace what does not
    suit here."""
    for name in KEPT:
        if name not in values:
            raise UserError(f"{where}: damaged: it has no {name!r}", "put back a copy of the file, or name another run")
    known = {f.name for f in fields(TrainSettings)}
    settings = _merged(TrainSettings(), checked({k: v for k, v in values.items() if k in known}, where))
    try:
        limits.check_dims(settings.dims)  # (no flag replaces those)
    except UserError as e:
        raise UserError(f"{where}: {e.message}", "put back a copy of the file, or name another run") from e
    return settings
