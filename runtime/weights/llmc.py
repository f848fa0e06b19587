"""llm.c's GPT-2 checkpoints: 256 int32 of header, then all parameters (train_gpt2.py there writes them).

Header: magic 20240326, version 3 (f32) or 5 (bf16), then numbers by the layout's [llmc] table. The parameters come in
the layout's order, each with all of its layers, exactly as models/gpt2.tc lays them out.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from tcomp.dsl.dims import Number
from tcomp.errors import UserError
from tcomp.model.graph import Graph
from tcomp.runtime.safetensors_file import KINDS, Entry
from tcomp.runtime.weights.layout import Layout, Place

MAGIC, VERSIONS, HEADER_BYTES = 20240326, {3: "F32", 5: "BF16"}, 1024


def read_llmc(path: Path, layout: Layout) -> tuple[dict[str, Number], str]:
    """The numbers in the header and the type of the tensors."""
    if layout.llmc is None:
        raise UserError(f"{layout.path}: it has no table [llmc]", "llm.c's files are of gpt2")
    try:
        with open(path, "rb") as f:
            head = f.read(HEADER_BYTES)
    except OSError as e:
        raise UserError(
            f"{path}: cannot read it: {e.strerror or e}", "name a file that exists and that you may read"
        ) from e
    words = np.frombuffer(head[: len(head) // 4 * 4], "<i4")
    if not len(words) or words[0] != MAGIC:
        raise UserError(f"{path}: not an llm.c checkpoint: it does not start with {MAGIC}", "such files end in .bin")
    if len(head) < HEADER_BYTES:
        state = f"{len(head)} bytes, its header alone has {HEADER_BYTES}"
        raise UserError(f"{path}: truncated: {state}", "copy or make the file again")
    if int(words[1]) not in VERSIONS:
        known = ", ".join(f"{v} ({k})" for v, k in VERSIONS.items())
        raise UserError(
            f"{path}: an llm.c checkpoint of version {words[1]}; known are {known}",
            "save it by train_gpt2.py of llm.c in one of these",
        )
    numbers: dict[str, Number] = {name: int(words[at]) for name, at in layout.llmc.header.items()}
    if min(numbers.values()) < 1:
        raise UserError(
            f"{path}: a damaged llm.c checkpoint: its header gives {numbers}", "copy or make the file again"
        )
    return numbers, VERSIONS[int(words[1])]


def llmc_entries(
    path: Path, layout: Layout, graph: Graph, padded: int, kind: str
) -> tuple[list[Place], dict[str, Entry]]:
    """The parameters as whole tensors of the file. `padded` is the file's number of rows of the first one."""
    assert layout.llmc is not None
    shapes = {p.decl.name: p.tensor.shape for p in graph.parameters}
    if set(layout.llmc.tensors) != set(shapes):
        raise UserError(
            f"{layout.path}: [llmc] does not list the parameters of {graph.model.name}",
            "list every parameter, in the file's order",
        )
    wanted, entries, at = [], {}, HEADER_BYTES
    for n, name in enumerate(layout.llmc.tensors):
        shape = (padded, *shapes[name][1:]) if n == 0 else shapes[name]
        entries[name] = Entry(path, name, kind, shape, at)
        rows = min(shape[0], shapes[name][0])
        wanted.append(Place(name, shape, name, None, 0, rows, False))
        at += KINDS[kind].itemsize * math.prod(shape)
    size = path.stat().st_size
    if size != at:
        state = "truncated" if size < at else "too long"
        raise UserError(f"{path}: {state}: {size} bytes, its header promises {at}", "copy or make the file again")
    if padded > shapes[layout.llmc.tensors[0]][0]:
        raise UserError(
            f"{path}: the vocabulary is padded to {padded} rows, {graph.model.name} pads it to fewer",
            "import into a model whose vocabulary has room for them",
        )
    return wanted, entries
