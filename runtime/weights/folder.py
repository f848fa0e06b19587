"""A Hugging Face folder's tensors: one safetensors file, or shards with an index. Nothing in it is ever executed, and
torch pickles are not opened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from tcomp.errors import UserError
from tcomp.runtime.safetensors_file import CONVERTIBLE, Entry, read_header
from tcomp.runtime.weights.config import read_json
from tcomp.runtime.weights.layout import Layout, Place

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SHOWN = 5
_COMPARED = 1 << 22
"""Elements compared at a time."""


def open_folder(folder: Path) -> dict[str, Entry]:
    """Every tensor of the folder by name, from the headers alone."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "name a folder that transformers saved, with config.json in it")
    if (folder / INDEX).is_file():
        return _sharded(folder)
    if (folder / ONE_FILE).is_file():
        return read_header(folder / ONE_FILE)
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder}: it holds {pickles[0]}, a pickle, which can run code when it is read; tcomp does not open it",
            "save it as safetensors where you trust it: model.save_pretrained(DIR, safe_serialization=True)",
        )
    raise UserError(f"{folder}: it holds neither {ONE_FILE} nor {INDEX}", "name a folder that transformers saved")


def _sharded(folder: Path) -> dict[str, Entry]:
    index = folder / INDEX
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
        raise UserError(f"{index}: it has no weight_map of file names", "download the file again")
    entries: dict[str, Entry] = {}
    for file in sorted(set(where.values())):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(
                f"{index}: {file!r} is no safetensors file of this folder",
                "download the file again: shards lie beside their index",
            )
        if not (folder / file).is_file():
            raise UserError(f"{folder}: the index names {file}, which is not there", "download the missing shard")
        for name, entry in read_header(folder / file).items():
            if where.get(name) != file:
                raise UserError(
                    f"{folder / file}: it holds {name!r}, which the index does not place there",
                    "download index and shards again, of one version",
                )
            entries[name] = entry
    missing = sorted(set(where) - set(entries))
    if missing:
        raise UserError(
            f"{index}: it names {missing[0]!r} in {where[missing[0]]}, which does not hold it",
            "download index and shards again, of one version",
        )
    return entries


def matched(
    entries: Mapping[str, Entry], wanted: list[Place], tied: Mapping[str, str], layout: Layout, layers: int, where: Path
) -> dict[str, Entry]:
    """The entries by the names of the layout. UserError listing what is missing, of a wrong shape or type, or too much;
    a tied tensor that is there must be equal to what it is tied to."""
    prefix = next((p for p in layout.prefixes if p + wanted[0].name in entries), layout.prefixes[0])
    faults, found = [], {}
    for place in wanted:
        entry = entries.get(prefix + place.name)
        if entry is None:
            faults.append(f"{prefix + place.name} is missing ({list(place.shape)})")
        elif entry.shape != place.shape:
            faults.append(f"{prefix + place.name} is {list(entry.shape)}, the model needs {list(place.shape)}")
        elif entry.kind not in CONVERTIBLE:
            faults.append(f"{prefix + place.name} is {entry.kind}; known are {', '.join(CONVERTIBLE)}")
        else:
            found[place.name] = entry
    ignored = {n.replace("{l}", str(layer)) for n in layout.ignored for layer in range(layers)}
    for name, entry in entries.items():
        bare = name.removeprefix(prefix)
        other = tied.get(name, tied.get(bare))
        if bare in found or bare in {p.name for p in wanted} or bare in ignored:
            continue
        if other is None:
            faults.append(f"{name} is unknown to the layout {layout.path.name}")
        elif other in found and not _equal(entry, found[other]):
            faults.append(f"{name} differs from {prefix + other}, but the model ties them")
    if faults:
        listing = "\n".join(f"  {f}" for f in faults[:_SHOWN])
        more = f"\n  and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UserError(
            f"{where}: the tensors are not those of this model:\n{listing}{more}",
            "check that config.json and the tensors belong together, or give another --model",
        )
    return found


def _equal(a: Entry, b: Entry) -> bool:
    """Whether two tensors hold the same bytes."""
    if (a.kind, a.shape) != (b.kind, b.shape):
        return False
    count = math.prod(a.shape)
    pieces = ((at, min(at + _COMPARED, count)) for at in range(0, count, _COMPARED))
    return all(a.read(*piece).tobytes() == b.read(*piece).tobytes() for piece in pieces)
