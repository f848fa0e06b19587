"""The acceptance's sections of tensor-core families: PyTorch's side is what the oracle says, and a case that ends its
process costs the others nothing."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tcomp.machine.gpu import H100

pytestmark = pytest.mark.usefixtures("cache")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PRODUCT = {"M": 24, "N": 40, "K": 16}
HEADS = {"B": 2, "T": 33, "H": 3, "D": 16}
BLOCKS = {"M": 128, "N": 256, "K": 384}

FAKE = """
import argparse, json, os, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("notes"), parser.add_argument("--skip", type=int)
args, _ = parser.parse_known_args(sys.argv[2:])
with open(args.notes, "a") as out:
    def note(**item):
        print(json.dumps(item), file=out, flush=True)
    for number in range(args.skip, 6):
        note(kind="begin", number=number, what=f"case {number}")
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 2:
            time.sleep(60)
        if number == 3:
            note(kind="row", what="case 3", error="a fault", good=False)
            sys.exit(75)
        if number == 4:
            sys.exit("cannot be")
        note(kind="row", what=f"case {number}")
        note(kind="done")
    note(kind="end", cut=False)
"""


@pytest.fixture
def scripts() -> ModuleType:
    """The folder of the scripts on the path, as it is where one is run; gpu_acceptance.py."""
    import gpu_acceptance

    return gpu_acceptance


def test_a_case_that_ends_its_process_or_never_ends_costs_the_others_nothing(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gpu_sections.py").write_text(FAKE)
    monkeypatch.setattr(scripts, "HERE", tmp_path)
    monkeypatch.setattr(scripts, "PATIENCE", 2.0)
    args = argparse.Namespace(virtual=False, device="cuda", config="", setting="", family_predictions=None)
    found = scripts.run_section(scripts.Section("products", "", 50), args, 50, tmp_path / "notes.jsonl")
    rows = [(i["what"], i.get("error", "")) for i in found["items"]]
    assert found["state"] == "wrong" and found["wrong"] == 4
    assert rows == [("case 0", ""), ("case 1", "exit -9"), ("case 2", "it did not end"), ("case 3", "a fault"),
                    ("case 4", "cannot be"), ("case 5", "")]  # fmt: skip


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "file, op, dims",
    [
        ("linear", "matmul", PRODUCT),
        ("attention", "attention", HEADS),
        ("fp8", "matmul_fp8", {**BLOCKS, "H": 16}),
        ("fp8_block", "matmul_fp8_block", BLOCKS),
    ],
)
def test_what_results_are_compared_with_is_what_the_oracle_says(
    scripts: ModuleType, file: str, op: str, dims: dict[str, int], full: bool
) -> None:
    """Operands that PyTorch draws, and products in f32; the library's own kernel too, where it is no 8-bit one (their
    scales here are 1, for times alone) and runs on a CPU."""
    if full and file != "attention":
        return
    from gpu_cases import Case, module_of, op_of
    from gpu_library import Torch

    from tcomp.oracle import evaluate

    torch = Torch("cpu")
    for suffix in ("", ".backward"):
        case = Case(file, op + suffix, tuple(dims.items()), full=full)
        made = torch.counterpart(case)
        assert set(made.inputs) == {p.name for p in op_of(case).params}
        inputs = {n: x.float().numpy() for n, x in made.inputs.items()}
        expected = evaluate(op_of(case), module_of(case), inputs, dims)
        references = made.references()
        assert set(references) >= {"Y", "O", "dX", "dW", "dQKV"} & set(expected)
        for name, x in references.items():
            oracle = replace(x, value=torch.torch.from_numpy(np.asarray(expected[name], np.float64)))
            far, worst = torch.distances(x.value, oracle)
            assert far < 2.0**-8 and worst < 2.0**-7, name
        for output, name, start in made.library if file in ("linear", "attention") else ():
            if "CUDNN" not in name:
                got = start()()
                if file == "attention":
                    got = torch.torch.stack([g.transpose(1, 2) for g in got], 2) if suffix else got.transpose(1, 2)
                wanted = references[output or ("dQKV" if suffix else "O")]
                assert torch.distances(got, wanted)[0] < 2.0**-7, name


@pytest.mark.parametrize("length", [64, 512])
def test_an_element_of_attention_is_compared_with_what_its_terms_allow(scripts: ModuleType, length: int) -> None:
    """A kernel that rounds weights and their gradients to bf16 passes whatever the length; one that loses a term of the
    second row by a twentieth, or of the last one by a third, does not."""
    from gpu_cases import Case
    from gpu_families import OF_TERMS
    from gpu_library import Torch

    torch = Torch("cpu")
    case = Case("attention", "attention.backward", (("B", 1), ("T", length), ("H", 1), ("D", 16)))
    made = torch.counterpart(case)
    q, k, v = (made.inputs["QKV"][0, :, i, 0].float() for i in range(3))
    o, g = (made.inputs[n][0, :, 0].float() for n in ("O", "dO"))
    p = (q @ k.T * 0.25 - made.inputs["L"].view(-1, 1)).exp().tril()
    ds = p * (g @ v.T - (o * g).sum(1, keepdim=True))

    def gradient(p: Any, ds: Any) -> Any:
        p, ds = p.bfloat16().float(), ds.bfloat16().float()
        return torch.torch.stack([0.25 * ds @ k, 0.25 * ds.T @ q, p.T @ g], 1).bfloat16()[None, :, :, None]

    wanted = made.references()["dQKV"]
    far, worst = torch.distances(gradient(p, ds), wanted)
    assert far < 4e-3 and worst < 0.75 * OF_TERMS
    for row, column, part in ((1, 1, 0.05), (length - 1, int(ds[-1].abs().argmax()), 0.3)):
        lost = ds.clone()
        lost[row, column] *= 1 - part
        assert torch.distances(gradient(p, lost), wanted)[1] > OF_TERMS, row
    assert torch.distances(gradient(p, ds), replace(wanted, terms=None))[1] > worst


def test_every_case_that_is_timed_has_a_product_and_a_distinct_name(scripts: ModuleType) -> None:
    from gpu_cases import ATTENTION, EIGHT_BITS, PRODUCTS, module_of, op_of
    from gpu_families import _operations, _output

    from tcomp.schedule.lower import lower

    cases = (*PRODUCTS, *ATTENTION, *EIGHT_BITS)
    assert len({str(c) for c in cases}) == len(cases)
    for case in cases:
        kernels = [k.name for k in lower(op_of(case), module_of(case), case.sizes, H100).kernels]
        outputs = [x for k in kernels if (x := _output(case, k, len(kernels) == 1))]
        products = {"dX", "dW"} if case.backward else {"Y"}
        assert set(outputs) == products if case.file != "attention" else set(outputs) <= {"whole"}
        assert all(_operations(case, x) > 0 for x in outputs) and _operations(case, "whole") >= 0


@pytest.mark.slow(seconds=18)
def test_the_whole_way_of_a_timed_case_but_for_its_times(
    scripts: ModuleType, virtual: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small cases as if the virtual GPU were a real one, with PyTorch on the CPU in the place of the GPU's."""
    import gpu_families
    from gpu_cases import case
    from gpu_job import Job
    from gpu_library import Timed, Torch

    from tcomp.runtime.cuda.device import CudaDevice
    from tcomp.runtime.cuda.gpus import choose, gpus
    from tcomp.runtime.values import numpy_type

    class Here(Torch):
        def __init__(self, device: str) -> None:
            super().__init__("cpu")

        def put(self, executor: Any, name: str, tensor: Any) -> None:
            slot = executor.step.slots[name]
            assert tensor.dtype == self.types[slot.dtype]
            raw = tensor.contiguous().view(-1).view(self.torch.uint8).numpy().tobytes()
            with executor.fill(name) as out:
                out[...] = np.frombuffer(raw, numpy_type(slot.dtype)).reshape(slot.shape)

        def get(self, executor: Any, name: str) -> Any:
            slot = executor.step.slots[name]
            raw = self.torch.frombuffer(bytearray(executor.read(name).tobytes()), dtype=self.torch.uint8)
            return raw.view(self.types[slot.dtype]).view(slot.shape)

        def timed(self, counterpart: Any, repeats: int) -> Any:
            for output, name, _ in counterpart.library:
                yield Timed(output, name, 1.0)

    monkeypatch.setattr(gpu_families, "Torch", Here)
    monkeypatch.setattr(gpu_families, "REPEATS", 1)
    monkeypatch.setattr(Job, "real", True)
    machine = replace(H100, l2_bytes=1 << 10)  # (a simulator would take minutes to flush a real one)
    job = Job(CudaDevice(choose("", gpus()), machine, None, True, virtual), "", 1, 1, time.monotonic() + 300)
    cases = [
        case("linear", "matmul", M=128, N=128, K=64), case("linear", "matmul.backward", M=128, N=128, K=64),
        case("attention", "attention", B=1, T=130, H=1, D=64),
        case("attention", "attention.backward", B=1, T=130, H=1, D=64),
        case("fp8", "matmul_fp8", M=128, N=128, K=256, H=16),
        case("fp8", "matmul_fp8.backward", M=64, N=128, K=64, H=16),
        case("fp8_block", "matmul_fp8_block", M=128, N=128, K=256),
        case("fp8_block", "matmul_fp8_block.backward", M=128, N=128, K=128),
    ]  # fmt: skip
    items = list(gpu_families._timed(job, cases, lambda real: []))
    rows = [i for i in items if i["kind"] == "row"]
    assert all(i.get("good", True) and "error" not in i for i in rows), rows
    assert sum(i["kernel"] == "check" for i in rows) == len(cases) == sum(i["kind"] == "begin" for i in items)
    assert sum("predicted TFLOP/s" in i for i in rows) >= len(cases)
    assert sum("over the library" in i for i in rows) >= len(cases) - 1


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "op, dims", [("attention", HEADS), ("grouped_attention", {"B": 2, "T": 21, "G": 2, "R": 3, "D": 8})]
)
def test_long_attention_in_float64_is_what_the_oracle_says(
    scripts: ModuleType, op: str, dims: dict[str, int], full: bool
) -> None:
    import gpu_exact
    from gpu_cases import Case, module_of, op_of
    from gpu_sweep import _inputs

    from tcomp.dsl.ast import DType
    from tcomp.oracle import evaluate

    for suffix in ("", ".backward"):
        case = Case("attention", op + suffix, tuple(dims.items()), DType.F32, full)
        inputs = _inputs(op_of(case), case)
        expected = evaluate(op_of(case), module_of(case), inputs, dims)
        found = gpu_exact.attention(inputs, full)
        assert found.keys() == expected.keys()
        for name, x in found.items():
            np.testing.assert_allclose(x, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
