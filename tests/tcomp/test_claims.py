"""Of several programs one makes a content and the others wait, but never for one that is gone or stands still."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tcomp.codegen import claims
from tcomp.codegen.cache import ContentCache
from tcomp.codegen.cpu.cache import Compilers, ObjectCache, compile_kernels
from tcomp.codegen.cpu.compiled import kernel_key
from tests.tcomp.test_cpu_cache import MACHINE, kernel

HOLDER = """
import sys
from pathlib import Path
from tcomp.codegen import claims
assert claims.take(Path(sys.argv[1]), sys.argv[2])
print("taken", flush=True)
sys.stdin.read()
"""


@contextmanager
def other_holds(folder: Path, key: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has claimed a key, until its standard input ends or it is killed."""
    command = [sys.executable, "-c", HOLDER, str(folder), key]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "taken\n"
            yield process
        finally:
            process.kill()


def test_a_claim_is_of_one_content_and_one_process(tmp_path: Path) -> None:
    with other_holds(tmp_path, "ab" * 16) as other:
        assert not claims.take(tmp_path, "ab" * 16)
        assert claims.take(tmp_path, "cd" * 16)
        assert not claims.take(tmp_path, "ab" * 16)
        claims.give_back(tmp_path, "cd" * 16)
        other.kill()
        other.wait()
        assert claims.take(tmp_path, "ab" * 16)
        claims.give_back(tmp_path, "ab" * 16)


def test_a_claim_stays_while_others_are_given_back(tmp_path: Path) -> None:
    assert claims.take(tmp_path, "ab" * 16) and claims.take(tmp_path, "cd" * 16)
    claims.give_back(tmp_path, "cd" * 16)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    refused = subprocess.run([*command, "ab" * 16], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert refused.returncode and "AssertionError" in refused.stderr
    assert not subprocess.run([*command, "cd" * 16], stdin=subprocess.DEVNULL, capture_output=True).returncode
    claims.give_back(tmp_path, "ab" * 16)
    assert tmp_path not in claims._files


def test_a_folder_by_another_name_is_the_same_one(tmp_path: Path) -> None:
    """Whose handle, closed, would take the locks of the first."""
    folder, link = tmp_path / "folder", tmp_path / "link"
    assert claims.take(folder, "ab" * 16)
    link.symlink_to(folder)
    assert claims.take(link, "cd" * 16)
    claims.give_back(link, "cd" * 16)
    command = [sys.executable, "-c", HOLDER, str(folder), "ab" * 16]
    refused = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert refused.returncode and "AssertionError" in refused.stderr
    claims.give_back(link, "ab" * 16)
    assert not {folder, link} & claims._files.keys()


def test_where_nothing_can_be_claimed_everyone_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert claims.take(blocked / "cache", "ab" * 16)

    def without_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", without_locks)
    assert claims.take(tmp_path, "ab" * 16) and not {tmp_path, blocked / "cache"} & claims._files.keys()
    claims.give_back(tmp_path, "ab" * 16)


def test_what_another_program_compiles_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compiled here where that one goes away."""
    monkeypatch.setattr("tcomp.codegen.cpu.cache.LOOK", 0.01)
    (made,) = compile_kernels([kernel(2.0)], MACHINE, tmp_path / "made")
    key = kernel_key(kernel(2.0), MACHINE)
    with other_holds(tmp_path, key) as other:
        later = threading.Timer(0.1, lambda: ObjectCache(tmp_path).store(key, made.object))
        later.start()
        with monkeypatch.context() as m:
            m.setattr("tcomp.codegen.cpu.cache._compile_one", None)
            assert compile_kernels([kernel(2.0)], MACHINE, tmp_path) == [made]
        later.join()
        os.remove(ObjectCache(tmp_path).path(key))
        later = threading.Timer(0.1, other.kill)
        later.start()
        assert compile_kernels([kernel(2.0), kernel(3.0)], MACHINE, tmp_path)[0] == made
    assert ObjectCache(tmp_path).load(key) == made.object and tmp_path not in claims._files


def test_who_waits_has_compiled_all_else_and_claims_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So two programs never wait for each other; and a program that stands still is not waited for without end."""
    monkeypatch.setattr("tcomp.codegen.cpu.cache.PATIENCE", 0.05)
    compilers, held, waits = Compilers(MACHINE, tmp_path), kernel_key(kernel(2.0), MACHINE), list[int]()

    def look(_: float) -> None:
        waits.append(len(list(tmp_path.glob("*.o"))))
        assert not compilers._claimed
        real(0.06)

    real = time.sleep
    monkeypatch.setattr("tcomp.codegen.cpu.cache.time.sleep", look)
    with other_holds(tmp_path, held):
        for factor in (2.0, 3.0, 4.0):
            compilers.begin(kernel(factor))
        assert len(compilers.finish([kernel(2.0), kernel(3.0)])) == 2
    compilers.close()
    assert waits and set(waits) == {1} and ObjectCache(tmp_path).load(held) is not None


def test_contents_of_any_kind_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcomp.codegen.cache.LOOK", 0.01)
    cache, key = ContentCache(tmp_path, kind="test-1", suffix=".test"), "ab" * 16
    with other_holds(tmp_path, key):
        later = threading.Timer(0.1, lambda: cache.store(key, b"theirs"))
        later.start()
        assert cache.made(key, lambda: b"ours") == b"theirs"
        later.join()
        monkeypatch.setattr("tcomp.codegen.cache.PATIENCE", 0.05)
        assert cache.made("cd" * 16, lambda: b"ours") == b"ours" == cache.load("cd" * 16)
        os.remove(cache.path(key))
        assert cache.made(key, lambda: b"ours") == b"ours"
