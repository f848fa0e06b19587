"""A run folder that holds weights only: run.json, one checkpoint without optimizer state, and in hf/ the files of the
folder they came from that are passed through (config.json, the tokenizer).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tcomp
from tcomp.dsl.ast import DType
from tcomp.errors import UserError
from tcomp.model.graph import Graph
from tcomp.runtime import checkpoint
from tcomp.runtime.run_folder import CONFIG, PASSED
from tcomp.runtime.safetensors_file import Stored
from tcomp.runtime.weights.whole_folder import whole_folder

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_LARGEST_PASSED = 1 << 28


def write_run(
    out: Path, graph: Graph, settings: Mapping[str, Any], tensors: Mapping[str, Stored], passed: Mapping[str, Path]
) -> None:
    """UserError where the folder is taken or cannot be written."""
    real = [p.tensor.name for p in graph.parameters if p.decl.dtype is DType.REAL]
    narrow = {tensors[name].kind for name in real or tensors} == {"BF16"}
    manifest = checkpoint.Manifest(
        0, graph.model.name, graph.config, dict(graph.dims), {}, 0, (0, 0), "", {}, tcomp.__version__,
        "bf16" if narrow else "f32",
    )  # fmt: skip
    with whole_folder(out, "--out") as folder:
        (folder / PASSED).mkdir()
        copy_files(passed, folder / PASSED)
        checkpoint.save(folder, manifest, tensors)
        write_flushed(folder / CONFIG, json.dumps(dict(settings), indent=2, default=str).encode() + b"\n")


def write_flushed(path: Path, data: bytes) -> None:
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def copy_files(files: Mapping[str, Path], to: Path) -> None:
    """Copy files of modest size, as they are."""
    for name, path in files.items():
        if path.stat().st_size > _LARGEST_PASSED:
            raise UserError(
                f"{path}: larger than {_LARGEST_PASSED} bytes, which no such file is", "remove the file from the folder"
            )
        write_flushed(to / name, path.read_bytes())


def passed_files(folder: Path, names: tuple[str, ...] = TOKENIZER_FILES) -> dict[str, Path]:
    """Those of the named files that the folder has."""
    return {name: folder / name for name in names if (folder / name).is_file()}
