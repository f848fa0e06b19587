"""PTX of another compiler: kernels in CUDA C++, compiled by nvcc, assembled and reported on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tcomp.codegen.nvptx.assembly.assemble import Assembled, assemble
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.errors import UserError

NVCC = cuda_tool("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed (nvidia-cuda-nvcc)")

SOURCE = r"""
#define BODY(n) float a[n]; \
  for (int i = 0; i < n; i++) a[i] = x[i * 1024 + threadIdx.x]; \
  for (int j = 0; j < times; j++) for (int i = 0; i < n; i++) a[i] = a[i] * a[(i + 7) % n] + x[j]; \
  for (int i = 0; i < n; i++) x[i * 1024 + threadIdx.x] = a[i];
extern "C" __global__ void __launch_bounds__(1024) crowded(float *x, int times) { BODY(96) }
extern "C" __global__ void __launch_bounds__(128) roomy(float *x, int times) { BODY(96) }
extern "C" __global__ void indexed(float *x, int n) {
  float a[40];
  for (int i = 0; i < 40; i++) a[i] = x[i];
  for (int j = 0; j < n; j++) a[(j * n) % 40] += x[j];
  __shared__ float s[64];
  s[threadIdx.x] = a[n]; __syncthreads(); x[n] = s[63 - threadIdx.x];
}
__device__ __noinline__ float helper(float v) { return v * v + 1; }
extern "C" __global__ void calling(float *x) { x[threadIdx.x] = helper(x[threadIdx.x]); }
"""


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("nvcc")
    (folder / "k.cu").write_text(SOURCE)
    assert NVCC is not None
    done = subprocess.run(
        [NVCC, "-ptx", "-arch=sm_80", "k.cu", "-o", "k.ptx"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"nvcc does not work here: {done.stderr.strip()[:200]}")
    return (folder / "k.ptx").read_text()


@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_120a"])
def test_findings_belong_to_the_kernels_at_fault(ptx: str, target: str, tmp_path: Path) -> None:
    result = assembled(ptx, target, tmp_path)
    assert {(m.symbol, m.code) for m in result.findings} == {("crowded", "spill"), ("indexed", "stack")}
    crowded, roomy, indexed = map(result.of, ("crowded", "roomy", "indexed"))
    assert crowded.registers <= 64 < 96 < roomy.registers
    assert (indexed.stack_bytes, indexed.shared_bytes, indexed.barriers) == (160, 256, 1)
    functions = [r for r in result.resources if not r.entry]
    assert len(functions) == 1 and "helper" in functions[0].symbol


def assembled(ptx: str, target: str, folder: Path) -> Assembled:
    try:
        return assemble(ptx, target, folder)
    except UserError as e:
        if "Unsupported .version" in str(e):
            pytest.skip("nvcc is newer than nvJitLink")
        raise
