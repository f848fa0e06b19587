"""The object cache: found again, never trusted when damaged, shared between processes, harmless when unwritable."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tcomp.codegen.cpu.cache as cache_module
from tcomp.codegen.cache import CacheWarning, default_folder
from tcomp.codegen.cpu.cache import ObjectCache, compile_kernels
from tcomp.codegen.cpu.compiled import kernel_key
from tcomp.dsl.ast import Access, Binary, DType, Name, Num, Span
from tcomp.ir.tile import Axis, Buffer, Compute, Kernel, Scope
from tcomp.machine.cpu import detect
from tcomp.runtime.cpu.single import SingleKernel

MACHINE = detect()


def kernel(factor: float, n: int = 32) -> Kernel:
    """Y = X * factor."""
    buffers = (Buffer("X", DType.F32, (n,), Scope.OPERAND), Buffer("Y", DType.F32, (n,), Scope.OPERAND))
    value = Binary("*", Access("X", (Name("i"),)), Num(factor))
    body = Compute(Access("Y", (Name("i"),)), value, (Axis("i", Num(0), Num(n), n, 1, MACHINE.lanes_f32),))
    return Kernel("scale", buffers, (), ((body,),), frozenset("X"), frozenset("Y"))


KEY = """
from tcomp.codegen.cpu.compiled import kernel_key
from tcomp.dsl.ast import Access, DType, Name, Num
from tcomp.ir.content import content_text
from tcomp.ir.tile import Axis, Buffer, Compute, Kernel, Scope
from tcomp.machine.cpu import detect
names = ["m", "k", "block", "n1", "query"]
axes = tuple(Axis(n, Num(0), Num(4), 4) for n in names)
total = Compute(Access("Y", ()), Access("X", tuple(map(Name, names))), axes, frozenset(names), "sum")
operands = (Buffer("X", DType.F32, (4,) * 5, Scope.OPERAND), Buffer("Y", DType.F32, (), Scope.OPERAND))
pairs = frozenset(zip(names, reversed(names)))
k = Kernel("total", operands, (), ((total,),), frozenset(names), frozenset("Y"), pairs)
print(kernel_key(k, detect()), content_text(k))
"""


def test_keys_do_not_depend_on_the_hash_seed() -> None:
    """Members of a set come in another order in another process; a key of that order would never be found again."""
    runs = (
        subprocess.run([sys.executable, "-c", KEY], env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE)
        for seed in ("1", "2", "3")
    )
    assert len({r.stdout for r in runs if not r.returncode}) == 1


def works(k: Kernel, folder: Path, factor: float) -> bool:
    with SingleKernel(k, MACHINE, 1, folder) as single:
        single.array("X")[...] = 1
        single.run()
        return bool((single.array("Y") == factor).all())


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("compiled although the cache has it")

    monkeypatch.setattr("tcomp.codegen.cpu.compile.compile_kernel", refuse)


def test_a_second_start_compiles_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    first = compile_kernels([kernel(2.0), kernel(3.0), kernel(2.0)], MACHINE, tmp_path)
    assert first[0].symbols == first[2].symbols != first[1].symbols
    request.getfixturevalue("no_compiler")
    again = compile_kernels([kernel(2.0), kernel(3.0), kernel(2.0)], MACHINE, tmp_path)
    assert again == first
    with pytest.raises(AssertionError):
        compile_kernels([kernel(4.0)], MACHINE, tmp_path)


def test_the_key_follows_content_and_machine_but_not_source_places() -> None:
    k = kernel(2.0)
    elsewhere = replace(k, span=Span("x.tc", 3, 1, 3, 9))
    assert kernel_key(elsewhere, MACHINE) == kernel_key(k, MACHINE)
    assert kernel_key(kernel(2.5), MACHINE) != kernel_key(k, MACHINE)
    assert kernel_key(k, replace(MACHINE, features=("sse2",))) != kernel_key(k, MACHINE)


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "swap", "garbage", "other key"])
def test_a_damaged_entry_is_compiled_again(damage: str, tmp_path: Path) -> None:
    k = kernel(2.0)
    key = kernel_key(k, MACHINE)
    compile_kernels([k], MACHINE, tmp_path)
    path = ObjectCache(tmp_path).path(key)
    good = path.read_bytes()
    other = kernel(3.0)
    match damage:
        case "cut":
            path.write_bytes(good[: len(good) // 2])
        case "empty":
            path.write_bytes(b"")
        case "flip":
            path.write_bytes(good[:-100] + bytes([good[-100] ^ 1]) + good[-99:])
        case "swap":
            path.write_bytes(good[:20] + good[21:] + good[20:21])
        case "garbage":
            path.write_bytes(os.urandom(5000))
        case "other key":
            compile_kernels([other], MACHINE, tmp_path)
            path.write_bytes(ObjectCache(tmp_path).path(kernel_key(other, MACHINE)).read_bytes())
    assert ObjectCache(tmp_path).load(key) is None
    assert works(k, tmp_path, 2.0)
    assert path.read_bytes() == good


def test_misses_compiled_in_worker_processes_are_the_same_objects(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_cpu_cache as t, tcomp.codegen.cpu.cache as c\n"
        "from pathlib import Path\n"
        "kernels = [t.kernel(float(f)) for f in range(8)]\n"
        "c.PARALLEL_FROM = int(sys.argv[2])\n"
        "compilers = c.Compilers(t.MACHINE, Path(sys.argv[3]))\n"
        "for k in kernels[:6]: compilers.begin(k)\n"
        "if sys.argv[4] == 'killed':\n"
        "    import multiprocessing\n"
        "    for child in multiprocessing.active_children(): child.kill(); child.join()\n"
        "if sys.argv[4] == 'no': import tcomp.codegen.cpu.compile as g; g.compile_kernel = None\n"
        "compilers.finish(kernels)\n"
        "compilers.close()\n"
    )
    for parallel_from, name, here in ((2, "parallel", "no"), (99, "serial", "yes"), (2, "killed", "killed")):
        arguments = [str(Path(__file__).parent), str(parallel_from), str(tmp_path / name), here]
        subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=300)
    parallel, serial, killed = (
        {p.name: p.read_bytes() for p in (tmp_path / n).glob("*.o")} for n in ("parallel", "serial", "killed")
    )
    assert len(parallel) == 8
    assert parallel == serial == killed


def test_ctrl_c_while_compilers_are_forked_is_not_lost(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_cpu_cache as t, tcomp.codegen.cpu.cache as c\n"
        "from dataclasses import replace\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "compilers = c.Compilers(replace(t.MACHINE, cores=2), sys.argv[2])\n"
        "try:\n"
        "    for f in range(4): compilers.begin(t.kernel(float(f)))\n"
        "    print('lost')\n"
        "except KeyboardInterrupt: print('interrupted')\n"
        "compilers.close()\n"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (run.stdout, run.stderr, run.returncode) == ("interrupted\n", "", 0)


@pytest.mark.parametrize("what", ["no thread", "one thread", "one process"])
def test_where_processes_or_threads_are_limited_the_process_itself_compiles(what: str, tmp_path: Path) -> None:
    """The processes that were begun end at once: Python's end would wait for them."""
    program = (
        "import os, sys, threading; sys.path.insert(0, sys.argv[1])\n"
        "import multiprocessing, test_cpu_cache as t, tcomp.codegen.cpu.cache as c\n"
        "from dataclasses import replace\n"
        "forks, fork = [], os.fork\n"
        "def limited():\n"
        "    if forks: raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    forks.append(1)\n"
        "    return fork()\n"
        "started, start = [], threading.Thread.start\n"
        "def refuse(thread):\n"
        "    if len(started) == (sys.argv[3] == 'one thread'): raise RuntimeError(\"can't start new thread\")\n"
        "    started.append(1)\n"
        "    start(thread)\n"
        "if sys.argv[3].endswith('thread'): threading.Thread.start = refuse\n"
        "else: os.fork = limited\n"
        "compilers = c.Compilers(replace(t.MACHINE, cores=2), sys.argv[2])\n"
        "kernels = [t.kernel(float(f)) for f in range(6)]\n"
        "for k in kernels: compilers.begin(k)\n"
        "print(len(compilers.finish(kernels)), multiprocessing.active_children())\n"
        "compilers.close()\n"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path), what]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr, run.returncode) == ("6 []\n", "", 0)


def test_a_process_with_threads_forks_no_compilers(tmp_path: Path) -> None:
    stop = threading.Event()
    beside = threading.Thread(target=stop.wait)
    beside.start()
    try:
        compilers = cache_module.Compilers(replace(MACHINE, cores=4), tmp_path)
        for factor in range(5):
            compilers.begin(kernel(float(factor)))
        assert not list(tmp_path.glob("*.o"))
        assert not multiprocessing.active_children()
        assert len({k.object for k in compilers.finish([kernel(float(f)) for f in range(5)])}) == 5
        compilers.close()
    finally:
        stop.set()
        beside.join()


def _hammer(folder: str, seed: int, failures: multiprocessing.Queue[str]) -> None:
    cache = ObjectCache(folder)
    generator = np.random.default_rng(seed)
    for _ in range(200):
        key = f"k{generator.integers(3)}"
        expected = key.encode() * 5000
        found = cache.load(key)
        if found is not None and found != expected:
            failures.put(key)
        cache.store(key, expected)


def test_processes_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    failures: multiprocessing.Queue[str] = context.Queue()
    workers = [context.Process(target=_hammer, args=(str(tmp_path), s, failures)) for s in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
        assert w.exitcode == 0
    assert failures.empty()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k0.o", "k1.o", "k2.o"]


def test_an_unwritable_folder_warns_once_and_the_run_goes_on(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.warns(CacheWarning, match="set TCOMP_CACHE") as caught:
        assert works(kernel(2.0), blocked / "cache", 2.0)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert works(kernel(3.0), blocked / "cache", 3.0)


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TCOMP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_folder() == Path("/home/someone/.cache/tcomp/kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_folder() == Path("/x/tcomp/kernels")
    monkeypatch.setenv("TCOMP_CACHE", "/y")
    assert default_folder() == Path("/y/kernels")
    assert default_folder("cubins") == Path("/y/cubins")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_in_a_kernels_place_is_not_waited_for(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path)
    os.mkfifo(cache.path("k"))
    assert cache.load("k") is None
    cache.store("k", b"code")
    assert cache.load("k") == b"code"


def test_a_start_that_finds_all_kernels_loads_no_generator() -> None:
    code = (
        "import sys, tcomp.runtime.cpu.executor; print(*[m for m in sys.modules if 'codegen.cpu.' in m or 'rich' in m])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) == {"tcomp.codegen.cpu.cache", "tcomp.codegen.cpu.compiled"}
