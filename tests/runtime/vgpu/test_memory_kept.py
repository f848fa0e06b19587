"""How long the memory of a kernel's machine is kept."""

from __future__ import annotations

import gc
import weakref

from tcomp.runtime.vgpu import Device
from tests.runtime.vgpu.conftest import entry

ARRIVES = """
setp.ne.u32 %p0, %r0, 0; mov.u32 %r1, buf;
@!%p0 mbarrier.init.shared.b64 [%r1], 32;
bar.sync 0;
mbarrier.arrive.shared.b64 %rd0, [%r1];
WAIT: mbarrier.test_wait.shared.b64 %p1, [%r1], %rd0;
@!%p1 bra WAIT;
"""


def test_registers_and_shared_memory_go_with_the_module() -> None:
    """Not when circles are looked for: they are the largest arrays there are."""
    loaded = Device().load(entry(ARRIVES, "", shared=8))
    assert not loaded.launch("k", 1, 32, []).findings
    ((machine, executor),) = loaded._ready.values()
    kept = weakref.ref(machine), weakref.ref(executor)
    gc.disable()
    try:
        del loaded, machine, executor
        assert [k() for k in kept] == [None, None]
    finally:
        gc.enable()
