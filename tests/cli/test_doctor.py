"""`tcomp doctor`: every piece with its use, remedies for what is missing, exit code 1 only for what all need."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from tcomp.cli import doctor
from tests.cli.support import Tcomp


def test_it_lists_what_is_there_and_what_for(tcomp: Tcomp, tmp_path: Path) -> None:
    result = tcomp("doctor")
    assert result.code == 0, result.error
    for word in (
        "llvmlite", "LLVM NVPTX", "nvjitlink", "cuda-bindings", "C compiler", "nvdisasm", "driver", "cpu features",
        "cache folder", "assembling PTX", "checkpoints", "everything that tcomp needs",
    ):  # fmt: skip
        assert word in result.out
    for heading in ("Python", "Processor", "Compiler", "GPU toolchain", "GPUs", "Folders"):
        assert f"\n{heading}\n" in "\n" + result.out


def test_missing_gpu_pieces_are_no_fault(tcomp: Tcomp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str, *_: object) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    def no_library(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr("tcomp.codegen.nvptx.assembly.assemble.import_module", no_library)
    monkeypatch.setattr("tcomp.codegen.nvptx.assembly.tools.PACKAGES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    result = tcomp("doctor")
    assert result.code == 0
    lines = result.out.splitlines()
    for start, remedy in (
        ("- nvjitlink ", "pip install 'nvidia-nvjitlink"), ("- nvdisasm ", "pip install nvidia-cuda-nvdisasm"),
        ("- ptxas ", "pip install nvidia-cuda-nvcc"), ("- C compiler ", "apt install gcc"),
        ("- driver ", "install NVIDIA's driver"),
    ):  # fmt: skip
        at = next(i for i, line in enumerate(lines) if line.startswith(start))
        assert remedy in lines[at + 1]


def test_a_broken_core_piece_ends_with_1(tcomp: Tcomp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TCOMP_CACHE", str(tmp_path / "file" / "below"))
    result = tcomp("doctor")
    assert result.code == 1
    assert "! cache folder" in result.out and "set TCOMP_CACHE" in result.out and "broken: cache folder;" in result.out


def test_a_library_that_is_not_installed_is_named(tcomp: Tcomp, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name in ("lark", "optuna") else real(name))
    result = tcomp("doctor")
    assert result.code == 1
    assert "! lark" in result.out and "pip install lark" in result.out and "broken: lark;" in result.out
    assert "- optuna" in result.out


DRIVER = """
int cuDriverGetVersion(int *v) { *v = 12040; return 0; }
int cuInit(unsigned f) { return INIT; }
int cuDeviceGetCount(int *n) { *n = 3; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { const char *p = "Some GPU"; while ((*s++ = *p++)); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) {
  int major[] = {9, 8, 7}, minor[] = {0, 6, 5};
  *v = a == 75 ? major[d] : minor[d]; return 0;
}
int cuDeviceTotalMem_v2(unsigned long *n, int d) { *n = 80ul << 30; return 0; }
"""


@pytest.mark.parametrize("init", [0, 100])
def test_gpus_that_are_there(init: int, tmp_path: Path) -> None:
    """A library of the driver's name answers for three GPUs, or says that there is none."""
    source = tmp_path / "driver.c"
    source.write_text(DRIVER.replace("INIT", str(init)))
    library = tmp_path / "libcuda.so.1"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler")
    program = "import sys; sys.argv = ['tcomp', 'doctor']; from tcomp.cli.main import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LD_LIBRARY_PATH": str(tmp_path)},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    if init:
        assert "CUDA 12.4, but cuInit gives 100" in found.stdout and "CUDA_VISIBLE_DEVICES" in found.stdout
        return
    assert "Some GPU, sm_90, 80.00 GiB, code of sm_90a" in found.stdout
    assert "Some GPU, sm_86, 80.00 GiB, code of sm_80" in found.stdout
    assert "Some GPU, sm_75" in found.stdout and "tcomp needs sm_80 or newer" in found.stdout
