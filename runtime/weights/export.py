"""Tensors as a Hugging Face folder: config.json, safetensors (shards and an index where large), passed-on files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcomp.runtime.safetensors_file import Stored, write_file
from tcomp.runtime.weights.config import CONFIG
from tcomp.runtime.weights.folder import INDEX, ONE_FILE
from tcomp.runtime.weights.run import copy_files, write_flushed
from tcomp.runtime.weights.whole_folder import whole_folder

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
    with whole_folder(out, "--to-hf") as folder:
        copy_files(passed, folder)
        write_flushed(folder / CONFIG, _json(config))
        groups = shards(tensors, shard_bytes)
        names = [ONE_FILE] if len(groups) == 1 else [
            f"model-{n + 1:05d}-of-{len(groups):05d}.safetensors" for n in range(len(groups))
        ]  # fmt: skip
        for name, group in zip(names, groups, strict=True):
            write_file(folder / name, group, _METADATA)
        if len(groups) > 1:
            where = {t: name for name, group in zip(names, groups, strict=True) for t in group}
            total = sum(t.bytes for t in tensors.values())
            write_flushed(folder / INDEX, _json({"metadata": {"total_size": total}, "weight_map": where}))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
