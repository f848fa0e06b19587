"""The virtual driver: its devices, handles, threads' context stacks, and the reports of every launch."""

from __future__ import annotations

import threading
from typing import TypeVar

from tcomp.runtime.vgpu.report import Finding, Report
from tcomp.runtime.vgpu.shim import state
from tcomp.runtime.vgpu.shim.allocations import Allocations
from tcomp.runtime.vgpu.shim.codes import CODES, CudaError, fail
from tcomp.runtime.vgpu.shim.context import Context, VirtualDevice
from tcomp.runtime.vgpu.shim.machines import Model
from tcomp.runtime.vgpu.shim.options import ShimOptions

T = TypeVar("T")
_HANDLES = 0x5600_0000_1000


class VirtualDriver:
    """What `install` gives. `reports` has every kernel's report in the order they ran, `findings` what was found
    in them; `seconds` of events are virtual. Work runs when it is synchronised with: see work.py."""

    def __init__(self, model: Model, devices: int, options: ShimOptions) -> None:
        self.model, self.options = model, options
        self.lock = threading.RLock()
        self.initialised = False
        self.reports: list[Report] = []
        self.allocations = Allocations()
        self.devices: list[VirtualDevice] = []
        for n in range(devices):
            self.devices.append(VirtualDevice(self, n, model))
        self.library = ""
        self._objects: dict[int, object] = {}
        self._next = _HANDLES
        self._number = 0
        self._local = threading.local()
        self._said: set[tuple[str, str, int]] = set()

    @property
    def findings(self) -> list[Finding]:
        return [f for r in self.reports for f in r.findings]

    def clear(self) -> None:
        """Forgets the reports so far; what was printed once may be printed again."""
        self.reports.clear()
        self._said.clear()

    # --- handles
    def new_handle(self, item: object) -> int:
        """A handle that was never given before and points to no memory."""
        self._next += 16
        self._objects[self._next] = item
        return self._next

    def object(self, handle: int, kind: type[T], error: str = "INVALID_HANDLE") -> T:
        found = self._objects.get(handle)
        if not isinstance(found, kind):
            raise fail(error)
        return found

    def drop_handle(self, handle: int) -> None:
        self._objects.pop(handle, None)

    def all(self, kind: type[T]) -> list[T]:
        return [o for o in self._objects.values() if isinstance(o, kind)]

    def contexts(self) -> list[Context]:
        return self.all(Context)

    def next_number(self) -> int:
        self._number += 1
        return self._number

    # --- contexts of threads
    @property
    def stack(self) -> list[Context]:
        found: list[Context] | None = getattr(self._local, "stack", None)
        if found is None:
            found = self._local.stack = []
        return found

    @property
    def capture_mode(self) -> int:
        """What captures forbid in the calling thread: 0 global, 1 thread-local, 2 relaxed."""
        return getattr(self._local, "capture_mode", 0)

    @capture_mode.setter
    def capture_mode(self, mode: int) -> None:
        self._local.capture_mode = mode

    def require_init(self) -> None:
        if not self.initialised:
            raise fail("NOT_INITIALIZED")

    def current(self) -> Context | None:
        return self.stack[-1] if self.stack else None

    def usable_context(self) -> Context:
        """The calling thread's context. INVALID_CONTEXT without one, CONTEXT_IS_DESTROYED, or its sticky error."""
        context = self.current()
        if context is None:
            raise fail("INVALID_CONTEXT")
        if context.destroyed:
            raise fail("CONTEXT_IS_DESTROYED")
        if context.error:
            raise CudaError(context.error)
        return context

    def device(self, number: int) -> VirtualDevice:
        if not 0 <= number < len(self.devices):
            raise fail("INVALID_DEVICE")
        return self.devices[number]

    # --- reports
    def add_report(self, report: Report) -> None:
        self.reports.append(report)
        if len(self.reports) > self.options.keep_reports:
            del self.reports[: -self.options.keep_reports]
        for f in report.findings:
            key = (report.kernel, f.kind, f.line)
            if key not in self._said:
                self._said.add(key)
                state.log(f"in kernel `{report.kernel}`, grid {report.grid}, block {report.block}: {f}")

    def describe_error(self, code: int) -> str:
        name, text = CODES.get(code, ("CUDA_ERROR_UNKNOWN", "unrecognized error code"))
        return f"{name} ({code}): {text}"
