"""llm.c's CPU program, for `LLMC=FOLDER tcomp bench gpt2 --against benchmarks/peers/llmc_gpt2.py`.

LLMC names a checkout of https://github.com/karpathy/llm.c. Its train_gpt2.c is built as its Makefile does it (-Ofast
-march=native -fopenmp) by $CC, else cc; a cold start builds. It has one weight decay for all parameters: that of the
group `matrices` here. f32 only.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import numpy as np

from tcomp.errors import UserError
from tcomp.runtime.bench.workload import Ints, Weights, Workload

SOURCE = Path(__file__).with_name("llmc_step.c")
FLAGS = ["-Ofast", "-march=native", "-fopenmp", "-DOMP", "-DTESTING", "-shared", "-fPIC"]


class Program:
    """See `tcomp.runtime.bench.own_program`."""

    def __init__(self, workload: Workload, weights: Weights) -> None:
        if workload.dtype != "f32":
            raise UserError("llm.c's CPU program computes in f32 only", "give --dtype f32")
        self.library = ctypes.CDLL(str(build(Path(os.environ["XDG_CACHE_HOME"]))))
        self.library.step.restype = ctypes.c_float
        values = np.empty(sum(p.bytes for p in workload.parameters) // 4, np.float32)
        at = 0
        for p in workload.parameters:  # in llm.c's order, and the vocabulary padded, as in models/gpt2.tc
            size = p.bytes // 4
            weights.read(p.name, [values[at : at + size]])
            at += size
        d = workload.dims
        self.library.start(
            values.ctypes.data_as(ctypes.c_void_p), *(int(d[name]) for name in ("S", "V", "P", "L", "H", "C"))
        )
        h = workload.hyper
        decay = h.get("matrices.weight_decay", h.get("weight_decay", 0.0))
        self.hyper = [ctypes.c_float(x) for x in (h["clip"], h["beta1"], h["beta2"], h["eps"], decay)]
        self.number = 0

    def step(self, tokens: Ints, targets: Ints, learning_rate: float) -> float:
        """One whole step."""
        self.number += 1
        places = [a.ctypes.data_as(ctypes.c_void_p) for a in (tokens, targets)]
        rate = ctypes.c_float(learning_rate)
        return float(self.library.step(*places, *tokens.shape, rate, *self.hyper, self.number))


def build(cache: Path) -> Path:
    """The library, built unless the cache has it. UserError where LLMC names no checkout, or it does not build."""
    library = cache / "llmc.so"
    if not library.exists():
        folder = Path(os.environ.get("LLMC", ""))
        if not (folder / "train_gpt2.c").is_file():
            raise UserError(
                "LLMC: names no checkout of llm.c", "git clone https://github.com/karpathy/llm.c; LLMC=llm.c"
            )
        cache.mkdir(parents=True, exist_ok=True)
        command = [os.environ.get("CC", "cc"), *FLAGS, f"-I{folder}", str(SOURCE), "-o", str(library), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(
                f"llm.c does not build: {done.stderr[-2000:]}", "the compiler must know OpenMP; name one by CC"
            )
    return library
