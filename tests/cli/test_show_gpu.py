"""`tcomp show` for GPU targets: schedules, tile IR, PTX and SASS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.cli import build_gpu
from tcomp.codegen.nvptx.assembly import tools
from tests.cli.support import Tcomp, refused
from tests.cli.test_build_gpu import Code, Shape
from tests.tcomp import ptx_samples as samples

LAYERNORM = ["show", "ops/layernorm", "layernorm", "--dim", "M=8", "--dim", "C=16"]


@pytest.fixture
def own_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    code = Code(samples.kernel("bar.sync 5;"), (Shape("k"),))
    monkeypatch.setattr(build_gpu, "generator", lambda machine, cache: lambda kernel: code)


def test_schedules_and_tiles_of_a_gpu(tcomp: Tcomp) -> None:
    result = tcomp(*LAYERNORM, "--schedule", "--tile", "--target", "sm_80")
    assert result.code == 0, result.error
    assert "schedule layernorm on sm_80" in result.out and "grid m.0" in result.out
    assert "core m.0" in tcomp(*LAYERNORM, "--tile").out, "the CPU remains the default"


def test_generated_code(tcomp: Tcomp) -> None:
    llvm = tcomp(*LAYERNORM, "--llvm", "--target", "sm_90a")
    assert llvm.code == 0, llvm.error
    assert "nvptx64-nvidia-cuda" in llvm.out and "ptx_kernel" in llvm.out
    ptx = tcomp(*LAYERNORM, "--ptx", "--target", "sm_89")
    assert ptx.code == 0, ptx.error
    assert ".version 7.8" in ptx.out and ".target sm_89" in ptx.out and ".visible .entry" in ptx.out


def test_ptx(tcomp: Tcomp, own_ptx: None) -> None:
    result = tcomp(*LAYERNORM, "--ptx")
    assert result.code == 0, result.error
    assert "bar.sync 5;" in result.out


@pytest.mark.skipif(tools.cuda_tool("nvdisasm") is None, reason="nvdisasm is not installed")
def test_sass(tcomp: Tcomp, own_ptx: None) -> None:
    result = tcomp(*LAYERNORM, "--sass", "--gpu", "h200")
    assert result.code == 0, result.error
    assert "BAR.SYNC" in result.out and "EXIT" in result.out


def test_without_nvdisasm_the_user_is_told(
    tcomp: Tcomp, own_ptx: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TCOMP_NVDISASM", str(tmp_path / "missing"))
    refused(tcomp(*LAYERNORM, "--sass"), "missing: cannot run it: No such file")
    failing = tmp_path / "nvdisasm"
    failing.write_text("#!/bin/sh\necho 'unknown target' >&2\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setenv("TCOMP_NVDISASM", str(failing))
    refused(tcomp(*LAYERNORM, "--sass"), "nvdisasm fails: unknown target")
    monkeypatch.delenv("TCOMP_NVDISASM")
    monkeypatch.setattr(tools, "PACKAGES", ())
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    refused(tcomp(*LAYERNORM, "--sass"), "nvdisasm, which is not installed", "pip install nvidia-cuda-nvdisasm")


def test_forms_that_a_machine_has_not(tcomp: Tcomp) -> None:
    refused(tcomp(*LAYERNORM, "--asm", "--target", "sm_80"), "--asm is for CPUs", "--ptx or --sass")
    refused(tcomp(*LAYERNORM, "--ptx", "--target", "cpu"), "--ptx and --sass are for GPUs")
    refused(tcomp(*LAYERNORM, "--ptx", "--target", "sm_75"), "no GPU target 'sm_75'")
