"""A cubin's machine code as text, by NVIDIA's nvdisasm, kept by content: its start alone takes a third of a second."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import zlib
from pathlib import Path

from tcomp.codegen.cache import ContentCache
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.codegen.nvptx.assembly.whole_program import tool_version
from tcomp.errors import UserError


def disassemble(cubin: bytes, encoded: bool = False, cache_dir: Path | str | None = None) -> str:
    """The SASS of a cubin, by nvdisasm, with each instruction's 128 bits where `encoded`. UserError when it is not
    installed or fails."""
    tool = cuda_tool("nvdisasm")
    if tool is None:
        raise UserError(
            "a GPU's machine code is shown by nvdisasm, which is not installed",
            "pip install nvidia-cuda-nvdisasm, put it on PATH, or name it in TCOMP_NVDISASM",
        )
    kept = ContentCache(cache_dir, kind="sass-1", suffix=".sass")
    key = hashlib.sha256(repr((tool_version(tool), encoded)).encode() + cubin).hexdigest()[:40]
    body = kept.load(key)
    if body is not None:
        return zlib.decompress(body).decode()
    text = _disassembled(tool, cubin, encoded)
    kept.store(key, zlib.compress(text.encode()))
    return text


def _disassembled(tool: Path, cubin: bytes, encoded: bool) -> str:
    options = ["--print-code", *(["--print-instruction-encoding"] if encoded else [])]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        found = _run([str(tool), *options, "--no-dataflow", file.name])
        # (Where jumps through tables lead is what the analysis finds; it takes a third of the time.)
        return _run([str(tool), *options, file.name]) if " BRX " in found else found


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
