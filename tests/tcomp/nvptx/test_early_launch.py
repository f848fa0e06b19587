"""Launches that begin while the one before ends: nothing of a kernel touches global memory before it has waited."""

from __future__ import annotations

import re

import pytest

from tcomp.codegen.nvptx.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.disassemble import disassemble
from tcomp.codegen.nvptx.emitter import WAIT_FOR_LAUNCH
from tcomp.codegen.nvptx.tools import cuda_tool
from tcomp.dsl.load import library, load
from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import machine_for_target
from tcomp.model.build import build_step

GLOBAL = re.compile(r"\b((ld|st|red|atom|prefetch)\.[\w.:]*global|cp\.(reduce\.)?async|ld\.param\.b8|prefetchu)")
MEMORY = re.compile(r"\b(LDG|STG|RED|REDG|ATOM|ATOMG|UTMALDG|UTMASTG|UTMAREDG|UBLKCP|UBLKRED|LDGSTS)\b")


def kernels_of(model: str, precision: str, target: str) -> dict[str, Kernel]:
    module = load(library() / f"{model}.tc", precision)
    sizes = {"C": 128, "H": 2, "L": 1} if model == "gpt2" else {"L": 1}
    step = build_step(
        module, model, "tiny", {"B": 2, "T": 64}, overrides=sizes, precision=precision,
        machine=machine_for_target(target),
    )  # fmt: skip
    return step.kernels


def entries(ptx: str) -> list[str]:
    return ptx.split(".visible .entry ")[1:]


@pytest.mark.parametrize(("model", "precision"), [("gpt2", "bf16"), ("llama", "fp8")])
def test_every_entry_waits_before_it_touches_global_memory(model: str, precision: str) -> None:
    for kernel in kernels_of(model, precision, "sm_90a").values():
        for body in entries(compile_kernel(kernel, machine_for_target("sm_90a")).ptx):
            place = body.index(WAIT_FOR_LAUNCH)
            assert body.count(WAIT_FOR_LAUNCH) == 1, kernel.name
            found = GLOBAL.search(body[:place])
            assert found is None, (kernel.name, found)


@pytest.mark.slow
@pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="reads machine code")
@pytest.mark.parametrize(("model", "precision"), [("gpt2", "bf16"), ("llama", "fp8")])
def test_so_does_its_machine_code(model: str, precision: str) -> None:
    machine = machine_for_target("sm_90a")
    for kernel in kernels_of(model, precision, "sm_90a").values():
        code = disassemble(assemble(compile_kernel(kernel, machine).ptx, machine.target).cubin)
        for body in re.split(r"\.section\s+\.text\.", code)[1:]:
            if "ACQBULK" in body:
                assert MEMORY.search(body[: body.index("ACQBULK")]) is None, kernel.name
            else:
                assert ".func" in body or MEMORY.search(body) is None, kernel.name


def test_older_gpus_have_no_such_launches() -> None:
    machine = machine_for_target("sm_89")
    for kernel in kernels_of("gpt2", "bf16", "sm_89").values():
        assert WAIT_FOR_LAUNCH not in compile_kernel(kernel, machine).ptx
