"""PTX to cubins: what is read off the assembler, what is refused and how, and what the cache keeps."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest

import tcomp.codegen.nvptx.assembly.assemble as assemble_module
from tcomp.codegen.cache import ContentCache
from tcomp.codegen.nvptx.assembly.assemble import Assembled, assemble, assemble_all, assembly_key
from tcomp.errors import UserError
from tcomp.machine.targets import TARGETS
from tests.tcomp import ptx_samples as samples


def run(ptx: str, folder: Path, target: str = "sm_90a", **options: Any) -> Assembled:
    return assemble(ptx, target, folder, **options)


def codes(result: Assembled) -> list[str]:
    return [m.code for m in result.findings]


# ------------------------------------------------------------------------------------------- resources


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_assembled(target: str, tmp_path: Path) -> None:
    t = TARGETS[target]
    ptx = samples.kernel(
        "ld.shared.f32 %f1, [s]; bar.sync 0; bar.sync 3; ld.param.u64 %d1, [p]; st.global.f32 [%d1], %f1;",
        target=target, version="{}.{}".format(*t.version), before=".shared .align 4 .b8 s[5000];",
    )  # fmt: skip
    result = run(ptx, tmp_path, target)
    kernel = result.of("k")
    assert result.cubin.startswith(b"\x7fELF") and result.messages == ()
    assert (kernel.shared_bytes, kernel.barriers, kernel.stack_bytes) == (5000, 4, 0)
    assert 4 <= kernel.registers < 20
    with pytest.raises(KeyError):
        result.of("j")


def test_shared_memory_is_counted_wherever_it_is_declared(tmp_path: Path) -> None:
    inside = samples.kernel(
        ".shared .align 4 .b8 s[3000];\nld.shared.f32 %f1, [s]; ld.param.u64 %d1, [p]; st.global.f32 [%d1], %f1;"
    )
    dynamic = samples.kernel(
        "ld.shared.f32 %f1, [s]; ld.param.u64 %d1, [p]; st.global.f32 [%d1], %f1;",
        before=".extern .shared .align 16 .b8 s[];",
    )
    assert run(inside, tmp_path).of("k").shared_bytes == 3000
    assert run(samples.SHARED, tmp_path).of("k").shared_bytes == 50000
    assert run(dynamic, tmp_path).of("k").shared_bytes == 0


def test_spills_are_measured_and_found(tmp_path: Path) -> None:
    assert run(samples.SPILLS, tmp_path).messages == ()
    result = run(samples.SPILLS, tmp_path, options=["-maxrregcount=40"])
    kernel = result.of("k")
    assert kernel.spills and kernel.registers == 40
    assert min(kernel.spill_store_bytes, kernel.spill_load_bytes, kernel.stack_bytes) > 100
    assert codes(result) == ["spill"]
    assert result.findings[0].symbol == "k" and str(kernel.spill_store_bytes) in result.findings[0].text


def test_local_memory_is_found(tmp_path: Path) -> None:
    result = run(samples.STACK, tmp_path)
    assert result.of("k").stack_bytes == 256 and not result.of("k").spills
    assert codes(result) == ["stack"] and "256 bytes of local memory" in result.findings[0].text


# -------------------------------------------------------------------------------------------- messages


def test_performance_remarks_name_kernel_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(samples.WGMMA, tmp_path).messages == ()
    (wait,) = run(samples.WGMMA_WITHOUT_WAIT, tmp_path).findings
    assert (wait.code, wait.symbol, wait.severity) == ("C7517", "k", "warning")
    assert "st.global" in samples.WGMMA_WITHOUT_WAIT.splitlines()[wait.line - 1]
    monkeypatch.setattr("tcomp.codegen.nvptx.assembly.assemble.whole_program_tool", lambda _: None)
    (ignored,) = run(samples.SETMAXNREG, tmp_path).findings
    assert (ignored.code, ignored.symbol) == ("C7504", "k") and "setmaxnreg" in ignored.text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("LOOP|FENCE|MMA|COMMIT|WAIT|END", None),
        ("FENCE|MMA|COMMIT|WAIT|mul.f32 %a0, %a0, 0f3f000000;", None),
        ("FENCE|MMA|add.f32 %f1, %a3, %a0;|st.global.f32 [%d1+9000], %f1;|MMA|COMMIT|WAIT", "C7514"),
        ("LOOP|FENCE|MMA|COMMIT|wgmma.wait_group.sync.aligned 1;|mul.f32 %a0, %a0, 0f3f000000;|END|WAIT", "C7514"),
        ("FENCE|MMA|mov.f32 %a0, 0f3f800000;|MMA|COMMIT|WAIT", "C7515"),
    ],
)
def test_serialised_wgmma(body: str, code: str | None, tmp_path: Path) -> None:
    result = run(samples.wgmma_tile(64, body), tmp_path)
    if code is None:
        assert codes(result) == []
    else:  # which of its reasons an assembler names first differs between versions
        assert codes(result) in ([code], ["C7511"])
    for m in result.findings:
        assert m.symbol == "k" and m.text.startswith("wgmma.mma_async instructions are serialized")
        assert " in line " not in m.text and "'k'" not in m.text


@pytest.mark.slow
def test_a_wgmma_without_registers_is_refused_with_advice(tmp_path: Path) -> None:
    body = "LOOP|FENCE|MMA|COMMIT|WAIT|END"
    assert run(samples.wgmma_tile(96, body, ".maxntid 768, 1, 1"), tmp_path).findings == ()
    with pytest.raises(UserError, match=r"Insufficient registers \(64\).*\[C7602\]") as e:
        run(samples.wgmma_tile(96, body, ".maxntid 1024, 1, 1"), tmp_path)
    assert "smaller tile" in e.value.hint and "| wgmma.mma_async" in e.value.message


def test_a_call_out_of_the_module_is_found_where_it_is(tmp_path: Path) -> None:
    result = run(samples.WGMMA_AND_PRINTF, tmp_path)
    assert sorted(codes(result)) == ["C7509", "extern"]
    lines = samples.WGMMA_AND_PRINTF.splitlines()
    for m in result.findings:
        assert m.symbol == "k" and "call" in lines[m.line - 1]


def test_strict_refuses_what_has_findings(tmp_path: Path) -> None:
    assert run(samples.WGMMA, tmp_path, strict=True).cubin
    with pytest.raises(UserError, match=r"(?s)strict.*kernel k: 256 bytes of local memory") as e:
        run(samples.STACK, tmp_path, strict=True)
    assert "without --strict" in e.value.hint


# -------------------------------------------------------------------------------------------- refusals


REFUSED = {
    "unknown instruction": (
        samples.kernel("addx.f32 %f1, %f2, %f3;"),
        ("line 8", "8 | addx.f32", "kernel k"),
    ),
    "unknown register": (samples.kernel("add.f32 %f1, %f2, %q3;"), ("'%q3'", "8 | add.f32")),
    "wrong types": (samples.kernel("add.u64 %d1, %r1, %d2;"), ("Arguments mismatch", "line 8")),
    "syntax": (samples.kernel("add.f32 %f1 %f2, %r3;"), ("syntax error", "8 | add.f32")),
    "version too old": (samples.kernel("wgmma.fence.sync.aligned;", version="7.8"), ("WGMMA", "8.0")),
    "version too new": (samples.kernel(version="99.9"), ("99.9", "line 1")),
    "other target": (samples.kernel(target="sm_100a", version="8.6"), ("higher than default SM",)),
    "not PTX": ("hello world", ("not PTX",)),
    "empty": ("", ("not PTX",)),
    "binary": (".version 8.0\n\0\0\0", ("not PTX",)),
    "no target": (".version 8.0\n", (".target",)),
    "extern": (samples.CALL_OF_NOTHING, ("kernel k: calls nowhere", "line 9", "9 | call nowhere")),
    "unknown intrinsic": (samples.UNKNOWN_INTRINSIC, ("llvm.nvvm.foo", "an intrinsic that this LLVM does not know")),
    "too much shared": (samples.TOO_MUCH_SHARED, ("kernel k", "too much shared data")),
    "twice": (samples.kernel().replace(".visible", ".visible .entry k() { ret; }\n.visible"), ("Duplicate", "'k'")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_assemble_is_refused_with_its_lines(case: str, tmp_path: Path) -> None:
    ptx, words = REFUSED[case]
    with pytest.raises(UserError) as e:
        run(ptx, tmp_path)
    for word in words:
        assert word in str(e.value)
    assert list(tmp_path.glob("*.cubin")) == [], "a failure must not be kept"


def test_many_errors_are_cut_to_a_few(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="and 15 more"):
        run(samples.kernel("\n".join(f"bad{i}.f32 %f1;" for i in range(20))), tmp_path)


def test_unknown_targets_and_options(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)no GPU target 'sm_90'.*did you mean 'sm_90a'\?.*sm_120a"):
        run(samples.WGMMA, tmp_path, "sm_90")
    with pytest.raises(UserError, match=r"nvJitLink .* does not take .*-nonsense"):
        run(samples.WGMMA, tmp_path, options=["-nonsense"])


def test_whatever_the_text_the_process_lives_on(tmp_path: Path) -> None:
    """Mutations of a good module: each assembles or is refused."""
    generator = random.Random(7)
    pieces = [
        ".reg",
        "{",
        "}",
        ";",
        ".param",
        "[",
        "-99999999999999999999",
        ".entry",
        "call",
        "\udcff",
        "//",
        "/*",
        "é",
    ]
    refused = 0
    for _ in range(60):
        text = samples.STACK
        for _ in range(generator.randint(1, 6)):
            at = generator.randrange(len(text))
            cut = generator.choice((0, 0, 1, 30, 200))
            text = text[:at] + (generator.choice(pieces) if cut < 30 else "") + text[at + cut :]
        try:
            run(text, tmp_path)
        except UserError as e:
            refused += 1
            assert e.message
    assert refused > 20


def test_a_huge_module(tmp_path: Path) -> None:
    body = "ld.param.u64 %d1, [p];\nld.global.f32 %f1, [%d1];\n" + "fma.rn.f32 %f1, %f1, %f1, %f1;\n" * 40000
    result = run(samples.kernel(body + "st.global.f32 [%d1], %f1;"), tmp_path)
    assert len(result.cubin) > 40000 * 8 and result.messages == ()


def test_without_the_library_the_user_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cuda.bindings import nvjitlink

    def missing() -> None:
        raise RuntimeError("Failure finding libnvJitLink.so\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(nvjitlink, "version", missing)
        with pytest.raises(UserError, match=r"nvJitLink does not load: Failure finding libnvJitLink.so\n") as e:
            run(samples.WGMMA, tmp_path)
        assert "pip install" in e.value.hint

    def no_cuda(name: str) -> Any:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(assemble_module, "import_module", no_cuda)
    with pytest.raises(UserError, match=r"cuda-python does not load: No module named 'cuda"):
        run(samples.WGMMA, tmp_path)


# ----------------------------------------------------------------------------------------------- cache


@pytest.fixture
def no_assembler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("assembled although the cache has it")

    monkeypatch.setattr(assemble_module, "_link", refuse)


def test_a_second_start_assembles_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    first = run(samples.WGMMA_WITHOUT_WAIT, tmp_path)
    request.getfixturevalue("no_assembler")
    assert run(samples.WGMMA_WITHOUT_WAIT, tmp_path) == first
    for other in (samples.WGMMA, samples.WGMMA_WITHOUT_WAIT + "\n"):
        with pytest.raises(AssertionError):
            run(other, tmp_path)
    with pytest.raises(AssertionError):
        run(samples.WGMMA_WITHOUT_WAIT, tmp_path, options=["-maxrregcount=40"])


def test_the_key_follows_the_assembler(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {assembly_key("x", "sm_90a"), assembly_key("x", "sm_80"), assembly_key("x", "sm_80", ["-O1"])}
    monkeypatch.setattr(assemble_module, "assembler_version", lambda: (14, 0))
    assert len(keys | {assembly_key("x", "sm_90a")}) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "garbage"])
def test_a_damaged_entry_is_assembled_again(damage: str, tmp_path: Path) -> None:
    first = run(samples.WGMMA, tmp_path)
    (path,) = tmp_path.glob("*.cubin")
    good = path.read_bytes()
    bad = {"cut": good[:-9], "empty": b"", "flip": good[:-1] + bytes([good[-1] ^ 1]), "garbage": b"\xff" * 5000}
    path.write_bytes(bad[damage])
    assert run(samples.WGMMA, tmp_path) == first
    assert path.read_bytes() == good


def test_modules_are_assembled_side_by_side_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=120)
    real = assemble_module._link

    def meet(*arguments: Any) -> tuple[bytes, str]:
        both.wait()  # nobody comes through here alone
        return real(*arguments)

    monkeypatch.setattr(assemble_module, "_link", meet)
    modules = [(samples.kernel(name=f"k{i}"), "sm_90a") for i in range(6)]
    results = assemble_all(modules, tmp_path, workers=2)
    assert [r.resources[0].symbol for r in results] == [f"k{i}" for i in range(6)]


def test_the_content_cache_keeps_kinds_apart(tmp_path: Path) -> None:
    one, other = (ContentCache(tmp_path, kind=k, suffix=".x") for k in ("a", "b"))
    one.store("key", b"body")
    assert one.load("key") == b"body" and other.load("key") is None
