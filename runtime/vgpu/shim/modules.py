"""Modules, libraries and functions: PTX text or a cubin of known PTX, loaded on a virtual device."""

from __future__ import annotations

import ctypes
import math
import re
import struct
from typing import TYPE_CHECKING

from tcomp.errors import UserError
from tcomp.runtime.vgpu.errors import PtxError
from tcomp.runtime.vgpu.expand import flatten
from tcomp.runtime.vgpu.ptx import Variable
from tcomp.runtime.vgpu.shim import cubins
from tcomp.runtime.vgpu.shim.codes import CudaError, fail

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.shim.context import Context, VirtualDevice

_FATBIN_MAGICS = (0xBA55ED50, 0x466243B1)
_UNKNOWN_REGISTERS = 32
MAX_STATIC_SHARED = 48 << 10


class Image:
    """Code as it was given to a load call: the PTX, and the cubin if it was one."""

    def __init__(self, ptx: str, cubin: bytes | None) -> None:
        self.ptx, self.cubin = ptx, cubin
        version = re.search(r"^\s*\.version\s+(\d+)\.(\d+)", ptx, re.M)
        target = re.search(r"^\s*\.target\s+(sm_\d+[af]?)", ptx, re.M)
        if version is None or target is None:
            raise fail("INVALID_PTX", "the text has no .version or no .target")
        self.version = (int(version[1]), int(version[2]))
        self.target = target[1]

    def require_device(self, device: VirtualDevice, driver_version: int) -> None:
        """INVALID_PTX or NO_BINARY_FOR_GPU when the code is not for this device, UNSUPPORTED_PTX_VERSION when it
        is newer than the driver."""
        has = device.model.sm
        wanted = int("".join(c for c in self.target if c.isdigit()))
        if self.cubin is not None:
            built = cubins.sm_of(self.cubin)
            if built // 10 != has // 10 or built > has or (self.target[-1] in "af" and built != has):
                raise fail("NO_BINARY_FOR_GPU", f"a cubin for sm_{built} on a device of sm_{has}")
        elif wanted > has or (self.target[-1] == "a" and wanted != has):
            raise fail("INVALID_PTX", f"PTX for {self.target} on a device of sm_{has}")
        newest = ptx_version_of(driver_version)
        if self.cubin is None and self.version > newest:
            raise fail(
                "UNSUPPORTED_PTX_VERSION",
                f"PTX version {self.version[0]}.{self.version[1]}; driver {driver_version} knows up to "
                f"{newest[0]}.{newest[1]}",
            )


def ptx_version_of(driver_version: int) -> tuple[int, int]:
    """The newest PTX that a driver takes (PTX ISA notes, release history): 12.0 has 8.0, 13.0 has 9.0."""
    major, minor = driver_version // 1000, driver_version % 1000 // 10
    if major == 12:
        return 8, {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 5, 7: 6, 8: 7}.get(minor, 8)
    return (major - 4, minor) if major > 12 else (7, minor)


def read_image(address: int) -> Image:
    """The image at a host address. INVALID_IMAGE for what is none, NO_BINARY_FOR_GPU for machine code whose PTX is
    not known."""
    if not address:
        raise fail("INVALID_VALUE")
    head = ctypes.string_at(address, 1)
    if head == b"\x7f":
        try:
            cubin = cubins.elf_at(address)
        except (ValueError, struct.error) as e:
            raise fail("INVALID_IMAGE", str(e)) from e
        ptx = cubins.ptx_of(cubin)
        if ptx is None:
            raise fail("NO_BINARY_FOR_GPU", "this cubin was not assembled by tcomp (or its cache entry is gone), and "
                       "machine code cannot be run; load PTX, or call register_cubin(cubin, ptx)")  # fmt: skip
        return Image(ptx, cubin)
    if head[0] not in b"\n\r\t ./":
        if int.from_bytes(ctypes.string_at(address, 4), "little") in _FATBIN_MAGICS:
            raise fail("NO_BINARY_FOR_GPU", "fat binaries cannot be run; load PTX text")
        raise fail("INVALID_IMAGE")
    text = ctypes.string_at(address).decode(errors="replace")
    if ".version" not in text:
        raise fail("INVALID_IMAGE")
    return Image(text, None)


class Module:
    """`loaded` is the virtual GPU's module. INVALID_PTX, with the parser's words, for text that is not PTX."""

    def __init__(self, context: Context, image: Image) -> None:
        self.context, self.image = context, image
        image.require_device(context.device, context.driver.options.driver_version)
        try:
            self.loaded = context.device.gpu.load(image.ptx)
        except (PtxError, UserError) as e:
            raise fail("INVALID_PTX", str(e)) from e
        except MemoryError:
            raise fail("OUT_OF_MEMORY") from None
        self.handle = context.driver.new_handle(self)
        self.functions: dict[str, Function] = {}
        self._registers: dict[str, int] | None = None
        context.modules.append(self)

    def kernels(self) -> list[str]:
        return self.loaded.kernels()

    def function(self, name: str) -> Function:
        if name not in self.functions:
            if name not in self.kernels():
                raise fail("NOT_FOUND", f"no kernel `{name}`; the module has: {', '.join(self.kernels())}")
            self.functions[name] = Function(self, name)
        return self.functions[name]

    def variable(self, name: str) -> tuple[int, int]:
        """Address and bytes of a global or constant variable."""
        address = self.loaded.addresses.get(name)
        if address is None or name not in self.loaded.module.variables:
            raise fail("NOT_FOUND", f"no global variable `{name}`")
        return address, self.loaded.module.variables[name].size

    def registers(self) -> dict[str, int]:
        """Registers per thread by kernel: from the cubin, or by assembling the PTX where nvJitLink is installed."""
        if self._registers is None:
            cubin = self.image.cubin
            if cubin is None:
                try:
                    from tcomp.codegen.nvptx.assembly.assemble import assemble

                    cubin = assemble(self.image.ptx, self.context.device.model.target).cubin
                except (UserError, ImportError):
                    cubin = None
            self._registers = cubins.registers_of(cubin) if cubin is not None else {}
        return self._registers

    def unload(self) -> None:
        for address in self.loaded.addresses.values():  # functions have addresses, too, but no memory
            if self.context.device.memory.find(address) is not None:
                self.context.device.gpu.free(address)
        for f in self.functions.values():
            self.context.driver.drop_handle(f.handle)
        self.context.modules.remove(self)
        self.context.driver.drop_handle(self.handle)


class Function:
    """A kernel. `settable` holds the attributes that cuFuncSetAttribute changes, by number."""

    def __init__(self, module: Module, name: str) -> None:
        self.module, self.name = module, name
        self.handle = module.context.driver.new_handle(self)
        self.entry = module.loaded.module.functions[name]
        self.offsets = _offsets(self.entry.params)
        self.settable = {8: MAX_STATIC_SHARED, 9: -1, 14: 0, 15: 0}
        self.static_shared, self.local_bytes = 0, 0
        try:
            program = flatten(module.loaded.module, self.entry)
            self.static_shared, self.local_bytes = program.shared_bytes, program.local_bytes
        except (PtxError, UserError):
            pass  # it is reported when the kernel is launched
        self.settable[8] = max(0, MAX_STATIC_SHARED - self.static_shared)

    def directive(self, name: str) -> tuple[int, int, int] | None:
        """A `.maxntid`-like directive, filled up with ones."""
        found = self.entry.directives.get(name)
        if not found:
            return None
        x, y, z = (*found, 1, 1)[:3]
        return x, y, z

    @property
    def registers(self) -> int:
        return self.module.registers().get(self.name, _UNKNOWN_REGISTERS)

    @property
    def known_registers(self) -> int | None:
        """The same where it costs nothing to know: from a cubin."""
        return self.registers if self.module.image.cubin is not None else None

    @property
    def max_threads(self) -> int:
        limit = self.directive("reqntid") or self.directive("maxntid")
        per_warp = -(-max(1, self.registers) * 32 // 256) * 256
        by_registers = self.module.context.device.model.registers_per_block // per_warp // 4 * 4 * 32
        return min(math.prod(limit) if limit else 1024, 1024, by_registers)

    @property
    def cluster(self) -> tuple[int, int, int] | None:
        return self.directive("reqnctapercluster")

    def attribute(self, number: int) -> int:
        """A CUfunction_attribute. INVALID_VALUE for an unknown one."""
        image, cluster = self.module.image, self.cluster
        target = "".join(c for c in image.target if c.isdigit())
        values = {
            0: self.max_threads, 1: self.static_shared, 2: 0, 3: self.local_bytes, 4: self.registers,
            5: int(target), 6: self.module.context.device.model.sm, 7: 0,
            10: int("explicitcluster" in self.entry.directives or cluster is not None),
            11: cluster[0] if cluster else 0, 12: cluster[1] if cluster else 0, 13: cluster[2] if cluster else 0,
            16: 0, 17: 0, **self.settable,
        }  # fmt: skip
        if number not in values:
            raise fail("INVALID_VALUE")
        return values[number]

    def set_attribute(self, number: int, value: int) -> None:
        """INVALID_VALUE for a read-only attribute and for more dynamic shared memory than a block can have."""
        if number not in self.settable:
            raise fail("INVALID_VALUE")
        if number == 8:
            most = self.module.context.device.model.shared_per_block - self.static_shared
            if not 0 <= value <= most:
                raise fail("INVALID_VALUE", f"{value} bytes of dynamic shared memory for `{self.name}`; with its "
                           f"{self.static_shared} static bytes a block can have {most}")  # fmt: skip
        if number == 9 and not -1 <= value <= 100:
            raise fail("INVALID_VALUE")
        self.settable[number] = value


class Library:
    """Code that belongs to no context: each context loads it when it first needs it."""

    def __init__(self, context: Context, image: Image) -> None:
        self.image, self.driver = image, context.driver
        self.handle = self.driver.new_handle(self)
        self.kernels: dict[str, Kernel] = {}
        self.module(context)

    def module(self, context: Context) -> Module:
        if self not in context.loaded:
            context.loaded[self] = Module(context, self.image)
        return context.loaded[self]

    def kernel(self, context: Context, name: str) -> Kernel:
        if name not in self.kernels:
            self.module(context).function(name)
            self.kernels[name] = Kernel(self, name)
        return self.kernels[name]

    def unload(self) -> None:
        for context in self.driver.contexts():
            module = context.loaded.pop(self, None)
            if module is not None:
                module.unload()
        for k in self.kernels.values():
            self.driver.drop_handle(k.handle)
        self.driver.drop_handle(self.handle)


class Kernel:
    def __init__(self, library: Library, name: str) -> None:
        self.library, self.name = library, name
        self.handle = library.driver.new_handle(self)

    def function(self, context: Context) -> Function:
        return self.library.module(context).function(self.name)


def function_of(context: Context, handle: int) -> Function:
    """The function of a CUfunction, or of a CUkernel that was cast to one, in that context."""
    try:
        kernel = context.driver.object(handle, Kernel)
    except CudaError:
        found = context.driver.object(handle, Function)
        if found.module.context is not context:
            raise
        return found
    return kernel.function(context)


def _offsets(params: list[Variable]) -> list[int]:
    out, at = [], 0
    for p in params:
        at = -(-at // p.align) * p.align
        out.append(at)
        at += p.size
    return out
