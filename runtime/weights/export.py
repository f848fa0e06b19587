"""Tensors as a Hugging Face folder: config.json, safetensors (shards and an index where large), passed-on files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcomp.errors import UserError
from tcomp.runtime.cache import sync_folder
from tcomp.runtime.safetensors_file import Stored, write_file
from tcomp.runtime.weights.config import CONFIG
from tcomp.runtime.weights.folder import INDEX, ONE_FILE
from tcomp.runtime.weights.run import copy_files, write_flushed

_METADATA = {"format": "pt"}


def shards(tensors: Mapping[str, Stored], most: int) -> list[dict[str, Stored]]:
    """The tensors in order, in groups of at most `most` bytes (a larger tensor has one of its own)."""
    groups: list[dict[str, Stored]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.bytes > most:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.bytes
    return groups


def write_folder(
    out: Path, config: Mapping[str, Any], tensors: Mapping[str, Stored], passed: Mapping[str, Path], shard_bytes: int
) -> None:
    """Write the folder under a temporary name, flush it and put it in place; UserError where that is impossible."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: there is something of that name already", "give another --to-hf, or remove it")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        copy_files(passed, partial)
        write_flushed(partial / CONFIG, _json(config))
        groups = shards(tensors, shard_bytes)
        names = [ONE_FILE] if len(groups) == 1 else [
            f"model-{n + 1:05d}-of-{len(groups):05d}.safetensors" for n in range(len(groups))
        ]  # fmt: skip
        for name, group in zip(names, groups, strict=True):
            write_file(partial / name, group, _METADATA)
        if len(groups) > 1:
            where = {t: name for name, group in zip(names, groups, strict=True) for t in group}
            total = sum(t.bytes for t in tensors.values())
            write_flushed(partial / INDEX, _json({"metadata": {"total_size": total}, "weight_map": where}))
        sync_folder(partial)
        if out.exists():
            out.rmdir()
        os.rename(partial, out)
        sync_folder(out.parent)
    except OSError as e:
        raise UserError(
            f"{out}: cannot write it: {e.strerror or e}", "free some disk space, or give another folder"
        ) from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
