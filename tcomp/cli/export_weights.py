"""`tcomp export`: a run's newest weights as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tcomp.cli import common, limits, options
from tcomp.cli.run_model import graph_of
from tcomp.cli.settings import from_json

_TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
"""Types by PyTorch's names."""


def export_weights(
    run: options.Run,
    to_hf: Annotated[Path, typer.Option(metavar="DIR", help="The folder to make.")],
    dtype: options.StoredType = "",
    shard_size: Annotated[str, typer.Option(help="Most bytes of one file: 5GB.")] = "5GB",
    weights: options.Weights = "",
) -> None:
    """Write a run's weights as a folder that transformers loads: config.json, safetensors, tokenizer files.

    A run that was imported keeps its config.json and tokenizer.

    Example: `tcomp export runs/llama-tiny --to-hf out --dtype bf16`
    """
    from tcomp.cli.transfer_progress import shown
    from tcomp.model.dimensions import of_no_size
    from tcomp.runtime import checkpoint
    from tcomp.runtime.run_folder import PASSED, read_config
    from tcomp.runtime.weights.config import config_of, read_json
    from tcomp.runtime.weights.export import write_folder
    from tcomp.runtime.weights.layout import places, read_layout
    from tcomp.runtime.weights.run import passed_files
    from tcomp.runtime.weights.transfer import tensors

    kind = limits.storage_kind(dtype)
    shard_bytes = limits.parse_bytes(shard_size, "--shard-size") or 1 << 62
    settings = from_json(read_config(run), str(run / "run.json"))
    saved = checkpoint.newest(run, common.warn)
    file = common.find_file(settings.model)
    layout = read_layout(common.layout_path(file))
    module = common.load_module(settings.model)
    graph = graph_of(module, settings)
    dims = of_no_size(graph.model, graph.dims)
    checkpoint.check_same_model(saved, graph.model.name, graph.config, dims, saved.manifest.precision)
    held = saved.parameters((p.tensor.name for p in graph.parameters), kind)
    if weights:
        entries, kept = saved.tensors(), saved.kept([p.tensor.name for p in graph.trained], weights)
        held |= {name: entries[tensor] for name, tensor in kept.items()}
    wanted = places(layout, graph)
    prefixed = {layout.prefixes[0] + n: t for n, t in tensors(wanted, held, kind).items()}
    kept = read_json(run / PASSED / "config.json") if (run / PASSED / "config.json").is_file() else {}
    config = config_of(layout, graph.dims, kept)
    kinds = {t.kind for t in prefixed.values()}
    if len(kinds) == 1:
        config["torch_dtype"] = _TORCH_NAMES[kinds.pop()]
        config.pop("dtype", None)
    with shown("exporting", prefixed) as watched:
        write_folder(to_hf, config, watched, passed_files(run / PASSED), shard_bytes)
    print(f"{len(prefixed)} tensors in {to_hf}")
