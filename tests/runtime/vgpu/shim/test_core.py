"""cuda-core, the high-level package, on the virtual driver; in a process of its own, because it keeps state."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.runtime.vgpu.shim.conftest import SCALE

USE = f"""
import numpy as np
from tcomp.runtime.vgpu.shim import install, register_cubin
driver = install("h100")
from cuda.core import Device, EventOptions, LaunchConfig, LegacyPinnedMemoryResource, ObjectCode, Program
from cuda.core import ProgramOptions, launch
ptx = {SCALE!r}
device = Device(0)
device.set_current()
assert tuple(device.compute_capability) == (9, 0)
stream = device.create_stream()
buffer = device.memory_resource.allocate(1024, stream=stream)
host = LegacyPinnedMemoryResource().allocate(1024)
array = np.from_dlpack(host).view(np.float32)
array[:] = np.arange(256)
buffer.copy_from(host, stream=stream)
kernel = ObjectCode.from_ptx(ptx.encode() + bytes(1)).get_kernel("scale")
assert kernel.num_arguments == 3
config = LaunchConfig(grid=2, block=128)
before = stream.record(options=EventOptions(timing_enabled=True))
launch(stream, config, kernel, buffer, np.float32(3), np.uint32(256))
after = stream.record(options=EventOptions(timing_enabled=True))
stream.sync()
assert after - before > 0
compiled = Program(ptx, "ptx", ProgramOptions(arch="sm_90")).compile("cubin")
register_cubin(bytes(compiled.code), ptx)
second = compiled.get_kernel("scale")
assert second.attributes.num_regs >= 8
builder = stream.create_graph_builder()
builder.begin_building()
launch(builder, config, second, buffer, np.float32(2), np.uint32(256))
launch(builder, config, kernel, buffer, np.float32(2), np.uint32(256))
graph = builder.end_building().complete()
for _ in range(2):
    graph.launch(stream)
buffer.copy_to(host, stream=stream)
stream.sync()
assert array.tolist() == (np.arange(256) * 48).tolist()
assert len(driver.reports) == 5 and not driver.findings
buffer.close(stream)
print("done")
"""


@pytest.mark.skipif(importlib.util.find_spec("cuda.core") is None, reason="cuda-core is not installed")
def test_cuda_core() -> None:
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.strip() == "done", done.stderr
