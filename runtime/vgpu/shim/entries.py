"""The table of driver entries: symbol, argument types, the CUDA version that brought it, and what it does.

An entry function takes the arguments as Python integers (pointers too), writes its results through pointers and
raises CudaError for any result but success. Before it runs, the state it needs is checked as the driver does:

- "none": nothing;
- "driver": cuInit was called; the function's first argument is the VirtualDriver;
- "context": also that a usable context is current, which is then the first argument.

`stream` names the argument that holds a stream: such an entry gets a per-thread-default-stream variant
(`_ptsz`; `_ptds` for the entries without a stream argument that use the default stream, `stream=-1`).
`unsafe` entries are refused while a stream capture forbids them.
"""

from __future__ import annotations

import ctypes
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tcomp.runtime.vgpu.shim import state
from tcomp.runtime.vgpu.shim.codes import CudaError, fail

Body = Callable[..., None]
F = TypeVar("F", bound=Body)
PER_THREAD = 2
TYPES: dict[str, Any] = {"i": ctypes.c_int32, "u": ctypes.c_uint32, "h": ctypes.c_uint16, "b": ctypes.c_uint8,
                         "p": ctypes.c_uint64}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    symbol: str
    base: str
    since: int
    per_thread: bool
    types: str
    call: Callable[..., int]

    def callback(self) -> Any:
        """The ctypes function object that C calls."""
        return ctypes.CFUNCTYPE(ctypes.c_int32, *(TYPES[t] for t in self.types))(self.call)


ENTRIES: list[Entry] = []


def entry(
    symbol: str, types: str, since: int, *, needs: str = "context", stream: int | None = None, unsafe: bool = False,
    base: str = "", per_thread: bool = False,
) -> Callable[[F], F]:  # fmt: skip
    """Registers a function as the driver's `symbol`. `types` has one letter an argument, see TYPES."""

    def register(function: F) -> F:
        name = base or re.sub(r"_v\d+$", "", symbol)
        ENTRIES.append(Entry(symbol, name, since, per_thread, types, _guarded(function, name, needs, unsafe, None)))
        if stream is not None:
            suffix = "_ptds" if stream < 0 else "_ptsz"
            variant = _guarded(function, name, needs, unsafe, stream)
            ENTRIES.append(Entry(symbol + suffix, name, max(since, 7000), True, types, variant))
        return function

    return register


def _guarded(function: Body, name: str, needs: str, unsafe: bool, per_thread: int | None) -> Callable[..., int]:
    def call(*args: int) -> int:
        try:
            if needs == "none":
                function(*args)
                return 0
            driver = state.driver()
            with driver.lock:
                driver.require_init()
                if per_thread is not None and per_thread >= 0 and args[per_thread] == 0:
                    args = (*args[:per_thread], PER_THREAD, *args[per_thread + 1 :])
                if needs == "driver":
                    function(driver, *args)
                    return 0
                context = driver.usable_context()
                if unsafe:
                    context.refuse_in_capture(name)
                context.default_stream = PER_THREAD if per_thread is not None else 0
                function(context, *args)
            return 0
        except CudaError as e:
            if e.note:
                state.log(f"{name}: {e}")
            return e.code
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            return 999

    return call


def put(address: int, kind: Any, value: Any) -> None:
    """Writes a result through a pointer; a null pointer is an invalid value."""
    if not address:
        raise fail("INVALID_VALUE")
    kind.from_address(address).value = value


def put_int(address: int, value: int) -> None:
    put(address, ctypes.c_int32, value)


def put_size(address: int, value: int) -> None:
    """A size_t, pointer or handle."""
    put(address, ctypes.c_uint64, value)


def put_text(address: int, size: int, text: str) -> None:
    """A terminated string, cut to `size` bytes."""
    if not address or size <= 0:
        raise fail("INVALID_VALUE")
    raw = text.encode()[: size - 1] + b"\0"
    ctypes.memmove(address, raw, len(raw))


def pointers(address: int, count: int) -> list[int]:
    """`count` pointers from an array."""
    return list((ctypes.c_uint64 * count).from_address(address)) if count else []


def string(address: int) -> str:
    if not address:
        raise fail("INVALID_VALUE")
    return ctypes.string_at(address).decode(errors="replace")
