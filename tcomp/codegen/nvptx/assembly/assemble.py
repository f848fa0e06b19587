"""PTX to a cubin, in this process, without a GPU or a driver: nvJitLink through cuda-python.

The result is the cubin, the resources of every function in it, and all the assembler had to say. It is kept by
content in the user's cache folder: the key covers the text, the target, the options and the assembler's version.
nvJitLink assembles every module as one that could be linked with others, so `setmaxnreg` has no effect in its cubins
(it says so, C7504): `whole_program.py` has ptxas do those modules. Kernels that call functions take at least 24
registers.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tcomp.codegen.cache import ContentCache
from tcomp.codegen.nvptx.assembly.diagnostics import (
    Message,
    extern_messages,
    located,
    messages_in,
    refusal,
    resource_messages,
)
from tcomp.codegen.nvptx.assembly.resources import Resources, resources_of
from tcomp.codegen.nvptx.assembly.whole_program import assemble_whole, tool_version, whole_program_tool
from tcomp.errors import UserError
from tcomp.machine.targets import target_named

WORKERS = max(2, min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
"""Modules assembled at the same time; nvJitLink runs outside Python's lock, and one module takes one core."""

_HEADER = struct.Struct("<Q")
_MISSING = "install it by `pip install 'nvidia-nvjitlink>=12.6' 'cuda-python>=12.6'`"


@dataclass(frozen=True)
class Assembled:
    """`resources` has kernels and the functions they call; `messages` has findings and notes."""

    cubin: bytes
    resources: tuple[Resources, ...]
    messages: tuple[Message, ...]

    def of(self, symbol: str) -> Resources:
        """The resources of that kernel or function; KeyError when the module has none of that name."""
        for r in self.resources:
            if r.symbol == symbol:
                return r
        raise KeyError(symbol)

    @property
    def findings(self) -> tuple[Message, ...]:
        """What a strict build fails for."""
        return tuple(m for m in self.messages if m.finding)


def assemble(
    ptx: str, target: str, cache_dir: Path | str | None = None, options: Sequence[str] = (), strict: bool = False
) -> Assembled:
    """The cubin of a PTX module for `target` (sm_90a), and what the assembler says of it.

    `options` are further ones of nvJitLink (`-maxrregcount=64`). With `strict` any finding is an error.
    UserError when the target is unknown, nvJitLink is not installed, or the PTX is refused.
    """
    target_named(target)
    cache = ContentCache(cache_dir, kind="cubin-1", suffix=".cubin")
    key = assembly_key(ptx, target, options)
    body = cache.made(key, partial(_assembled, ptx, target, options))
    (size,) = _HEADER.unpack_from(body)
    log = body[_HEADER.size : _HEADER.size + size].decode()
    cubin = body[_HEADER.size + size :]
    result = _result(ptx, target, cubin, log)
    if strict and result.findings:
        raise UserError(
            "the assembler has findings, and the build is strict\n"
            + "\n".join(f"  {m.describe()}" for m in result.findings),
            "change the schedule, or build without --strict",
        )
    return result


def _assembled(ptx: str, target: str, options: Sequence[str]) -> bytes:
    """The log's length, the log, and the cubin."""
    tool = whole_program_tool(ptx)
    cubin, log = (tool and assemble_whole(tool, ptx, target, options)) or _link(ptx, target, options)
    encoded = log.encode()
    return _HEADER.pack(len(encoded)) + encoded + cubin


def assemble_all(
    modules: Sequence[tuple[str, str]],
    cache_dir: Path | str | None = None,
    workers: int = WORKERS,
    origins: Sequence[str] = (),
) -> list[Assembled]:
    """Assemble (ptx, target) pairs, `workers` at a time; results in the order given. Errors begin with what the
    module's one of `origins` says, the schedule's line for instance."""

    def one(module: tuple[str, str], origin: str) -> Assembled:
        try:
            return assemble(*module, cache_dir)
        except UserError as e:
            raise UserError(f"{origin}: {e.message}" if origin else e.message, e.hint) from e

    with ThreadPoolExecutor(max(1, min(workers, len(modules) or 1))) as pool:
        return list(pool.map(one, modules, origins or [""] * len(modules)))


def assembly_key(ptx: str, target: str, options: Sequence[str] = ()) -> str:
    """The name under which the cache keeps a module: all that the cubin depends on."""
    tool = whole_program_tool(ptx)
    parts: tuple[object, ...] = ("nvjitlink", assembler_version(), target, tuple(options), ptx)
    if tool is not None:
        parts = ("ptxas", tool_version(tool), *parts)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


def assembler_version() -> tuple[int, int]:
    """nvJitLink's version, (13, 5). UserError when it is not installed or does not load."""
    major, minor = _library().version()
    return int(major), int(minor)


def _library() -> Any:
    """cuda-python's binding, once it has found the library."""
    try:
        nvjitlink: Any = import_module("cuda.bindings.nvjitlink")
    except ImportError as e:
        raise UserError(f"PTX cannot be assembled: cuda-python does not load: {e}", _MISSING) from e
    try:
        nvjitlink.version()
    except Exception as e:  # the binding has an exception of its own for each way not to find a library
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(f"PTX cannot be assembled: nvJitLink does not load: {reason}", _MISSING) from e
    return nvjitlink


def _link(ptx: str, target: str, options: Sequence[str]) -> tuple[bytes, str]:
    """The cubin and the log. UserError with the assembler's words when it refuses."""
    link = _library()
    text = ptx.encode(errors="replace")
    if not re.search(r"^\s*\.version\s+\d", ptx, re.M) or "\0" in ptx:
        raise UserError(
            "this is not PTX: it has no `.version` line, or bytes that are not text",
            "give the text that nvcc -ptx or another compiler makes",
        )
    given = [f"-arch={target}", "-verbose", "-Xptxas=-v", *options]
    try:
        handle = link.create(len(given), given)
    except link.nvJitLinkError as e:
        version = ".".join(map(str, assembler_version()))
        raise UserError(
            f"nvJitLink {version} does not take {' '.join(given)}: {e}",
            "a newer target needs a newer nvJitLink: pip install -U nvidia-nvjitlink",
        ) from e
    try:
        try:
            link.add_data(handle, link.InputType.PTX, text, len(text), "tcomp.ptx")
            link.complete(handle)
        except link.nvJitLinkError as e:
            log = _log(handle, link.get_info_log_size, link.get_info_log)
            raise _refused(ptx, target, log + _log(handle, link.get_error_log_size, link.get_error_log), e) from e
        cubin = bytearray(link.get_linked_cubin_size(handle))
        link.get_linked_cubin(handle, cubin)
        log = _log(handle, link.get_info_log_size, link.get_info_log)
        return bytes(cubin), log + _log(handle, link.get_error_log_size, link.get_error_log)
    finally:
        link.destroy(handle)


def _log(handle: int, size: Any, get: Any) -> str:
    count = size(handle)
    if count <= 1:
        return ""
    text = bytearray(count)
    get(handle, text)
    lines = text.rstrip(b"\0").decode(errors="replace").splitlines()
    return "".join(f"{line}\n" for line in lines if "Compile time" not in line)  # the same text gives the same log


def _refused(ptx: str, target: str, log: str, error: Exception) -> UserError:
    """What to tell of PTX that does not assemble or link."""
    found = [m for m in located(messages_in(log), ptx) if m.severity == "error"]
    undefined = set(re.findall(r"Undefined reference to '([^']+)'", log))
    for m in extern_messages(ptx):
        if m.severity == "error" or any(f"calls {name}," in m.text for name in undefined):
            found.append(replace(m, severity="error"))
    for text in re.findall(r"^error\s*: (.*)$", log, re.M):  # nvJitLink's own words, not ptxas's
        if not (found and text.startswith("Undefined reference")):
            symbol = re.search(r"(?:function|for) '([^']+)'", text)
            found.append(Message("error", "link", text, symbol[1] if symbol else ""))
    return refusal(found or [Message("error", "link", str(error))], ptx, target)


def _result(ptx: str, target: str, cubin: bytes, log: str) -> Assembled:
    resources = resources_of(log, cubin, target_named(target).sm)
    messages = (*located(messages_in(log), ptx), *resource_messages(resources), *extern_messages(ptx))
    return Assembled(cubin, resources, messages)
