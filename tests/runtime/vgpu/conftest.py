"""A virtual GPU, a short form for hand-written kernels, and nvcc where there is one."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.runtime.vgpu import Device, Report

HEAD = ".version 9.0\n.target sm_90a\n.address_size 64\n"
REGISTERS = (".reg .pred %p<30>; .reg .b16 %h<40>; .reg .b32 %r<60>; .reg .f32 %f<60>; .reg .b64 %rd<40>;"
             " .reg .f64 %fd<30>;\n")  # fmt: skip


def entry(body: str, params: str = "x,y", shared: int = 0) -> str:
    """A kernel `k` whose pointer parameters are in %rd0, %rd1, ... and thread number in %r0."""
    names = params.split(",") if params else []
    text = HEAD + f".visible .entry k({', '.join(f'.param .u64 {n}' for n in names)})\n{{\n{REGISTERS}"
    if shared:
        text += f".shared .align 16 .b8 buf[{shared}];\n"
    text += "".join(f"ld.param.u64 %rd{n}, [{name}];\n" for n, name in enumerate(names))
    return text + "mov.u32 %r0, %tid.x;\n" + body + "\nret;\n}\n"


def launch(body: str, *arrays: Any, grid: int = 1, block: int = 32, shared: int = 0) -> tuple[Report, list[Any]]:
    """Runs `body` with each array uploaded; the report and the arrays afterwards."""
    gpu = Device()
    names = ",".join(f"a{n}" for n in range(len(arrays)))
    addresses = [gpu.upload(np.asarray(a)) for a in arrays]
    report = gpu.load(entry(body, names, shared)).launch("k", grid, block, addresses)
    return report, [gpu.download(p, a.dtype, a.size) for p, a in zip(addresses, arrays, strict=True)]


def find_nvcc() -> str | None:
    for path in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if path and os.path.exists(path):
            return path
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations if spec and spec.submodule_search_locations else []:
        for path in Path(root).glob("*/bin/nvcc"):
            return str(path)
    return None


@pytest.fixture(scope="session")
def nvcc(request: pytest.FixtureRequest) -> Callable[..., str]:
    """(CUDA C++ text, architecture) -> PTX, kept by content in pytest's cache; skips where there is no nvcc."""
    compiler = find_nvcc()
    if compiler is None:
        pytest.skip("no nvcc: pip install nvidia-cuda-nvcc nvidia-cuda-cccl")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    folder = request.config.cache.mkdir("vgpu-nvcc")

    def compile_text(text: str, arch: str = "sm_80") -> str:
        stem = folder / hashlib.sha256("\n".join((version, arch, text)).encode()).hexdigest()[:24]
        out = stem.with_suffix(".ptx")
        if not out.exists():
            source, fresh = stem.with_suffix(f".{os.getpid()}.cu"), stem.with_suffix(f".{os.getpid()}.ptx")
            source.write_text(text)
            done = subprocess.run([compiler, f"-arch={arch}", "-ptx", "-w", str(source), "-o", str(fresh)],
                                  capture_output=True, text=True, check=False)  # fmt: skip
            source.unlink()
            if done.returncode:
                lines = [x for x in done.stderr.splitlines() if "error" in x] or done.stderr.splitlines()
                if any(" error: " in x and str(stem) in x for x in lines):
                    pytest.fail(f"nvcc refuses this text: {lines[:3]}")
                pytest.skip(f"nvcc does not work here: {lines[:1]}")
            fresh.rename(out)
        return out.read_text()

    return compile_text
