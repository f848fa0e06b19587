"""User objects: host resources with a count of references, which graphs keep alive."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.shim.driver import VirtualDriver


class UserObject:
    """`destroy` is a C function of one pointer, called when the last reference goes."""

    def __init__(self, driver: VirtualDriver, data: int, destroy: int, count: int) -> None:
        self.driver, self.data, self.destroy, self.count = driver, data, destroy, count
        self.handle = driver.new_handle(self)

    def retain(self, count: int = 1) -> None:
        self.count += count

    def release(self, count: int = 1) -> None:
        self.count -= count
        if self.count <= 0 and self.handle:
            self.driver.drop_handle(self.handle)
            self.handle = 0
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.destroy)(self.data)
