"""The account of PyTorch's memory: the same with and without data, and what PyTorch's profiler saw allocated."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch_memory import CudaAutocast, step_peak, traced_peak  # noqa: E402

from tcomp.cli import common  # noqa: E402
from tcomp.model.request import StepRequest  # noqa: E402
from tcomp.runtime.bench.build import workload_of  # noqa: E402
from tcomp.runtime.bench.torch_base import counterpart  # noqa: E402
from tcomp.runtime.bench.workload import Workload  # noqa: E402


@pytest.fixture(scope="module")
def workload() -> Workload:
    built = common.build_step(
        StepRequest("gpt2", "tiny", {"B": 4, "T": 32}, precision="bf16", lock="none"),
        common.device_for(threads=1),
    )
    return workload_of(built.step, built.request)


def test_without_data_as_with_it(workload: Workload) -> None:
    assert step_peak(workload) == traced_peak(workload)


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning")  # PyTorch's, at its first start
def test_the_profiler_sees_as_much(workload: Workload) -> None:
    model = counterpart(workload)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.zeros(4, 32, dtype=torch.int64)

    def step() -> None:
        with CudaAutocast():
            loss = model(tokens, tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    # oneDNN, which takes bf16 products where the CPU has instructions for them, allocates workspaces of its own
    with torch.backends.mkldnn.flags(enabled=False):
        step()
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 3 * 4 * sum(p.numel() for p in model.parameters())  # parameters and AdamW's two moments
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert step_peak(workload)["Total"] == pytest.approx(most, rel=0.002)  # the account rounds each up to 512 bytes


def test_autocast_narrows_products_and_widens_norms(workload: Workload) -> None:
    x, w = torch.ones(2, 4), torch.ones(4, 4)
    with CudaAutocast():
        assert torch.nn.functional.linear(x, w).dtype == torch.bfloat16
        assert torch.nn.functional.layer_norm(x.bfloat16(), (4,)).dtype == torch.float32
        assert torch.nn.functional.gelu(x.bfloat16()).dtype == torch.bfloat16
