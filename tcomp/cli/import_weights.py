"""`tcomp import`: weights from a Hugging Face folder or an llm.c checkpoint, as a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tcomp.cli import common, limits, options
from tcomp.cli.command import Options, command
from tcomp.cli.run_model import graph_of
from tcomp.cli.settings import TrainSettings, as_json
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.dsl.ast import Model, Module
    from tcomp.dsl.dims import Number


@dataclass(frozen=True)
class ImportOptions(Options):
    """Where weights come from, which model they are of, and where they go."""

    from_hf: Annotated[Path | None, typer.Option(metavar="DIR", help="A folder that transformers saved.")] = None
    from_llmc: Annotated[Path | None, typer.Option(metavar="FILE", help="An llm.c checkpoint (.bin, v3 or v5).")] = None
    model: Annotated[str, typer.Option(help="The .tc file [default: found by config.json's model_type].")] = ""
    out: Annotated[Path | None, typer.Option(help="The run folder to make [default: runs/NAME].")] = None
    dtype: options.StoredType = ""
    dim: Annotated[list[str], typer.Option(help="A size that parameters depend on: --dim T=64; may be repeated.")] = (
        field(default_factory=list)
    )


@command
def import_weights(own: ImportOptions) -> None:
    """Bring weights in: the outcome is a run folder for `generate`, `eval`, `export` and `train --init-from`.

    Tensors are read one by one from safetensors files; nothing in the folder is executed, and pickles are refused.
    What maps names and layouts is a table beside the model's text (models/llama.hf.toml).

    Examples:

    - `tcomp import --from-hf SmolLM2-135M --out runs/smollm`

    - `tcomp import --from-llmc gpt2_124M.bin --out runs/gpt2`
    """
    from tcomp.cli.transfer_progress import shown
    from tcomp.runtime.weights.config import fitting_config, numbers_of, read_json
    from tcomp.runtime.weights.folder import matched, open_folder
    from tcomp.runtime.weights.layout import places, read_layout, tied_names
    from tcomp.runtime.weights.llmc import llmc_entries, read_llmc
    from tcomp.runtime.weights.run import TOKENIZER_FILES, passed_files, write_run
    from tcomp.runtime.weights.transfer import parameters

    from_hf, from_llmc, model = own.from_hf, own.from_llmc, own.model
    source = from_hf or from_llmc
    if source is None or (from_hf is not None and from_llmc is not None):
        raise UserError("tell where the weights come from", "one of --from-hf DIR and --from-llmc FILE")
    kind = limits.storage_kind(own.dtype)
    given = limits.parse_dims(own.dim)
    passed: dict[str, Path] = {}
    if from_hf is not None:
        config = read_json(from_hf / "config.json")
        file = common.find_file(model) if model else _file_of(config.get("model_type"), from_hf)
        layout = read_layout(common.layout_path(file))
        numbers = numbers_of(config, layout, from_hf / "config.json")
        entries = open_folder(from_hf)
        passed = passed_files(from_hf, ("config.json", *TOKENIZER_FILES))
    else:
        file = common.find_file(model or "gpt2")
        layout = read_layout(common.layout_path(file))
        numbers, held = read_llmc(source, layout)
        padded = int(numbers.pop("P"))
    module = common.load_module(str(file))
    chosen = common.only_model(module, str(file))
    sizes = _sizes(chosen, given, module)
    name, overrides = fitting_config(chosen, numbers)
    apart = {n: size for n, size in sizes.items() if n not in ("B", "T")}
    target = own.out or Path("runs") / source.stem
    settings = TrainSettings(
        model=common.library_name(file) or str(file.resolve()), config=name, dims={**overrides, **apart},
        batch=sizes.get("B", 1), length=sizes.get("T", 1), run=str(target), sample=0,
    )  # fmt: skip
    graph = graph_of(module, settings)
    if from_hf is not None:
        wanted = places(layout, graph)
        layers = max((p.layer + 1 for p in wanted if p.layer is not None), default=0)
        found = matched(entries, wanted, tied_names(layout, graph), layout, layers, source)
    else:
        wanted, found = llmc_entries(source, layout, graph, padded, held)
    if "T" not in sizes:
        settings = replace(settings, length=int(min(graph.dims.get("S", 1024), 1024)))
    stored = parameters(graph, wanted, found, kind)
    with shown("importing", stored) as tensors:
        write_run(target, graph, {"weights_only": True, **as_json(settings)}, tensors, passed)
    count = sum(p.tensor.elements for p in graph.parameters)
    kinds = " and ".join(sorted({t.kind for t in stored.values()}))
    changed = "".join(f", {n} = {v}" for n, v in overrides.items())
    print(f"{chosen.name} {name}{changed}: {count / 1e6:.1f} M parameters, {len(wanted)} tensors, {kinds}")
    print(f"run folder {target}: try `tcomp generate {target}`, `tcomp train --init-from {target}`")


def _file_of(model_type: object, folder: Path) -> Path:
    """The library's model whose layout is of this model_type."""
    from tcomp.dsl.files import library
    from tcomp.runtime.weights.layout import read_layout

    known = {}
    for path in sorted(library().glob("*.hf.toml")):
        known[read_layout(path).fixed.get("model_type")] = path.with_name(path.name.removesuffix(".hf.toml") + ".tc")
    if model_type in known:
        return known[model_type]
    raise UserError(
        f"{folder / 'config.json'}: model_type is {model_type!r}; known are {', '.join(map(str, known))}",
        "for another architecture write its .tc and .hf.toml (docs/models.md), and give --model FILE",
    )


def _sizes(model: Model, given: Mapping[str, Number], module: Module) -> dict[str, int]:
    """The sizes of the model that `--dim` gives. UserError for other names, TcError for a parameter whose shape depends
    on a size that is not given: it would be taken as 1."""
    from tcomp.dsl.errors import TcError
    from tcomp.dsl.expressions import names_in

    sizes, others = common.own_sizes(model, given)
    for name in others:
        raise UserError(
            f"--dim {name}={others[name]}: '{name}' is no size of model '{model.name}'",
            f"its sizes are {', '.join(model.dims)}; other numbers come with the weights",
        )
    missing = {n: n for n in model.dims if n not in sizes}
    for name, value in model.lets:
        if found := names_in(value) & missing.keys():
            missing[name] = missing[min(found)]
    for p in model.params:
        for extent in p.shape:
            if found := names_in(extent) & missing.keys():
                size = missing[min(found)]
                text = module.sources.get(p.span.file, "")
                message = f"the shape of '{p.name}' depends on the size '{size}', which does not come with the weights"
                raise TcError(message, p.span, f"give it: --dim {size}=NUMBER", text=text)
    return sizes
