"""A cubin's machine code as text, by NVIDIA's nvdisasm, kept by content: its start alone takes a third of a second,
so several are read in one."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from tcomp.codegen.cache import ContentCache
from tcomp.codegen.nvptx.assembly.merged import UNKNOWN, apart, can_be_merged, gpu_of, merged
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.codegen.nvptx.assembly.whole_program import tool_version
from tcomp.errors import UserError

_TABLE = " BRX "
"""A jump through a table: where it leads is what nvdisasm's analysis finds, which takes a third of the time."""


def disassemble(cubin: bytes, encoded: bool = False, cache_dir: Path | str | None = None) -> str:
    """The SASS of a cubin, by nvdisasm, with each instruction's 128 bits where `encoded`. UserError when it is not
    installed or fails."""
    tool = _tool()
    kept, key = _cache(cache_dir), _key(tool, cubin, encoded)
    body = kept.load(key)
    if body is not None:
        return zlib.decompress(body).decode()
    text = _disassembled(tool, cubin, encoded)
    kept.store(key, zlib.compress(text.encode()))
    return text


def disassemble_all(cubins: Sequence[bytes], cache_dir: Path | str | None = None) -> list[str]:
    """The same of several cubins, by one start of nvdisasm for most of those that are not kept."""
    tool, kept = _tool(), _cache(cache_dir)
    keys = {cubin: _key(tool, cubin, False) for cubin in cubins}
    found = {cubin: zlib.decompress(body).decode() for cubin, key in keys.items() if (body := kept.load(key))}
    new = [cubin for cubin in keys if cubin not in found and can_be_merged(cubin)]
    if len(new) > 1 and len(set(map(gpu_of, new))) == 1:
        for cubin, text in zip(new, _together(tool, new), strict=False):
            if _TABLE not in text:
                kept.store(keys[cubin], zlib.compress(text.encode()))
                found[cubin] = text
    return [found[cubin] if cubin in found else disassemble(cubin, cache_dir=cache_dir) for cubin in cubins]


def _together(tool: Path, cubins: Sequence[bytes]) -> list[str]:
    """Nothing where these cubins cannot be read so, or nvdisasm does not read them: it tells more of each by itself."""
    try:
        return apart(_read(tool, merged(cubins), ["--no-dataflow"]), cubins)
    except (UserError, *UNKNOWN):
        return []


def _tool() -> Path:
    tool = cuda_tool("nvdisasm")
    if tool is None:
        raise UserError(
            "a GPU's machine code is shown by nvdisasm, which is not installed",
            "pip install nvidia-cuda-nvdisasm, put it on PATH, or name it in TCOMP_NVDISASM",
        )
    return tool


def _cache(folder: Path | str | None) -> ContentCache:
    return ContentCache(folder, kind="sass-1", suffix=".sass")


def _key(tool: Path, cubin: bytes, encoded: bool) -> str:
    return hashlib.sha256(repr((tool_version(tool), encoded)).encode() + cubin).hexdigest()[:40]


def _disassembled(tool: Path, cubin: bytes, encoded: bool) -> str:
    options = ["--print-instruction-encoding"] if encoded else []
    found = _read(tool, cubin, [*options, "--no-dataflow"])
    return _read(tool, cubin, options) if _TABLE in found else found


def _read(tool: Path, cubin: bytes, options: Sequence[str]) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _run([str(tool), "--print-code", *options, file.name])


def _run(command: list[str]) -> str:
    """What nvdisasm prints. UserError where it fails."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise UserError(
            f"{command[0]}: cannot run it: {getattr(e, 'strerror', None) or e}",
            "install it (pip install nvidia-cuda-nvdisasm), or let TCOMP_NVDISASM name one that runs",
        ) from e
    if found.returncode != 0:
        raise UserError(
            f"nvdisasm fails: {found.stderr.strip() or found.returncode}",
            "an older nvdisasm does not know newer targets: pip install -U nvidia-cuda-nvdisasm",
        )
    return found.stdout
