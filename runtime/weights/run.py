"""A run folder that holds weights only: run.json, one checkpoint without optimizer state, and in hf/ the files of the
folder they came from that are passed through (config.json, the tokenizer).

Written under a temporary name, flushed and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tcomp
from tcomp.errors import UserError
from tcomp.model.graph import Graph
from tcomp.runtime import checkpoint
from tcomp.runtime.cache import sync_folder
from tcomp.runtime.run_folder import CONFIG, PASSED, refuse_used
from tcomp.runtime.safetensors_file import Stored

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_LARGEST_PASSED = 1 << 28


def write_run(
    out: Path, graph: Graph, settings: Mapping[str, Any], tensors: Mapping[str, Stored], passed: Mapping[str, Path]
) -> None:
    """UserError where the folder is taken or cannot be written."""
    refuse_used(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: there is something of that name already", "give another --out, or remove it")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    narrow = {t.kind for t in tensors.values()} == {"BF16"}
    manifest = checkpoint.Manifest(
        0, graph.model.name, graph.config, dict(graph.dims), {}, 0, (0, 0), "", {}, tcomp.__version__,
        "bf16" if narrow else "f32",
    )  # fmt: skip
    try:
        partial.mkdir(parents=True)
        (partial / PASSED).mkdir()
        copy_files(passed, partial / PASSED)
        checkpoint.save(partial, manifest, tensors)
        write_flushed(partial / CONFIG, json.dumps(dict(settings), indent=2, default=str).encode() + b"\n")
        sync_folder(partial)
        if out.exists():
            out.rmdir()
        os.rename(partial, out)
        sync_folder(out.parent)
    except OSError as e:
        raise UserError(
            f"{out}: cannot write it: {e.strerror or e}", "free some disk space, or give another --out"
        ) from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_flushed(path: Path, data: bytes) -> None:
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def copy_files(files: Mapping[str, Path], to: Path) -> None:
    """Copy files of modest size, as they are."""
    for name, path in files.items():
        if path.stat().st_size > _LARGEST_PASSED:
            raise UserError(f"{path}: larger than {_LARGEST_PASSED} bytes, which no such file is")
        write_flushed(to / name, path.read_bytes())


def passed_files(folder: Path, names: tuple[str, ...] = TOKENIZER_FILES) -> dict[str, Path]:
    """Those of the named files that the folder has."""
    return {name: folder / name for name in names if (folder / name).is_file()}
