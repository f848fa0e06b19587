"""The table of entries against cuda.h, where the CUDA headers are installed: names, versions, argument types."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tcomp.runtime.vgpu.shim.build import table_header
from tcomp.runtime.vgpu.shim.load import ENTRIES

WIDTHS = {"int": "i", "unsigned int": "u", "unsigned short": "h", "unsigned char": "b", "CUdevice": "i",
          "cuuint32_t": "u"}  # fmt: skip
OLD = {"cuCtxCreate_v2", "cuCtxCreate_v3"}  # of earlier versions' headers


@pytest.fixture(scope="module")
def headers() -> tuple[str, str]:
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(r) for r in spec.submodule_search_locations or []] if spec else []
    found = [p for r in [*roots, Path("/usr/local/cuda")] for p in sorted(r.glob("**/include/cuda.h"))]
    typedefs = [p.with_name("cudaTypedefs.h") for p in found if p.with_name("cudaTypedefs.h").exists()]
    if not typedefs:
        pytest.skip("no CUDA headers: pip install nvidia-cuda-runtime")
    header = typedefs[0].with_name("cuda.h").read_text()
    return re.sub(r"/\*.*?\*/", " ", header, flags=re.S), typedefs[0].read_text()


def test_symbols_are_unique() -> None:
    symbols = [e.symbol for e in ENTRIES]
    assert len(set(symbols)) == len(symbols) > 250
    assert table_header(ENTRIES).count("\n") == len(symbols)


def test_arguments_agree_with_the_header(headers: tuple[str, str]) -> None:
    text = headers[0]
    enums = set(re.findall(r"}\s*(\w+);", "".join(re.findall(r"typedef enum \w+ \{.*?\} \w+;", text, re.S))))
    renamed = dict(re.findall(r"#define (cu\w+)\s+(?:__CUDA_API_PT[DS][SZ]\()?(cu\w+)", text))
    prototypes = {}
    for name, arguments in re.findall(r"CUresult CUDAAPI (cu\w+)\s*\(([^;]*)\);", text):
        prototypes.setdefault(renamed.get(name, name), arguments)
    checked, wrong = 0, []
    for e in ENTRIES:
        if e.per_thread or e.symbol not in prototypes or e.symbol in OLD:
            continue
        arguments = [] if prototypes[e.symbol].strip() in ("", "void") else prototypes[e.symbol].split(",")
        types = ""
        for a in arguments:
            kind = re.sub(r"\s+", " ", re.sub(r"\b(const|volatile)\b", "", a)).strip()
            name = re.sub(r"\s*\w+$", "", kind).strip() if " " in kind else kind
            is_enum = name in enums and "*" not in kind and "[" not in kind
            types += "p" if "*" in kind or "[" in kind else "e" if is_enum else WIDTHS.get(name, "p")
        checked += 1
        if len(types) != len(e.types) or any(w != g and not (w == "e" and g in "iu") for w, g in zip(types, e.types)):  # noqa: B905
            wrong.append((e.symbol, e.types, types))
    assert checked > 150 and wrong == []


def test_versions_agree_with_the_header(headers: tuple[str, str]) -> None:
    known = set(re.findall(r"PFN_(cu\w+?_v\d+)(?:_pt[ds][sz])?\b", headers[1]))
    unknown = [e.symbol for e in ENTRIES if not e.per_thread and f"{e.base}_v{e.since}" not in known]
    assert [s for s in unknown if not s.startswith("cuProfiler")] == []
