"""`tcomp import`: weights from a Hugging Face folder or an llm.c checkpoint, as a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tcomp.cli import common, limits, options
from tcomp.cli.settings import TrainSettings, as_json
from tcomp.errors import UserError


def import_weights(
    from_hf: Annotated[Path | None, typer.Option(metavar="DIR", help="A folder that transformers saved.")] = None,
    from_llmc: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An llm.c checkpoint (.bin, v3 or v5).")
    ] = None,
    model: Annotated[str, typer.Option(help="The .tc file [default: found by config.json's model_type].")] = "",
    out: Annotated[Path | None, typer.Option(help="The run folder to make [default: runs/NAME].")] = None,
    dtype: options.StoredType = "",
) -> None:
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
    from tcomp.runtime.weights.transfer import common_kind, parameters

    source = from_hf or from_llmc
    if source is None or (from_hf is not None and from_llmc is not None):
        raise UserError("tell where the weights come from", "one of --from-hf DIR and --from-llmc FILE")
    kind = limits.storage_kind(dtype)
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
    name, overrides = fitting_config(chosen, numbers)
    graph = common.small_graph(module, chosen.name, name, overrides)
    if from_hf is not None:
        wanted = places(layout, graph)
        layers = max((p.layer + 1 for p in wanted if p.layer is not None), default=0)
        found = matched(entries, wanted, tied_names(layout, graph), layout, layers, source)
    else:
        wanted, found = llmc_entries(source, layout, graph, padded, held)
    own = common_kind(found.values())
    target = out or Path("runs") / source.stem
    library_name = common.library_name(file)
    settings = TrainSettings(
        model=library_name or str(file.resolve()), config=name, dims=dict(overrides), run=str(target), sample=0,
        length=int(min(graph.dims.get("S", 1024), 1024)),
    )  # fmt: skip
    with shown("importing", parameters(graph, wanted, found, kind or own)) as tensors:
        write_run(target, graph, {"weights_only": True, **as_json(settings)}, tensors, passed)
    count = sum(p.tensor.elements for p in graph.parameters)
    changed = "".join(f", {n} = {v}" for n, v in overrides.items())
    print(f"{chosen.name} {name}{changed}: {count / 1e6:.1f} M parameters, {len(wanted)} tensors, {kind or own}")
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
