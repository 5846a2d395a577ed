"""Kernels on a GPU that another process keeps busy: the system takes a kernel off the multiprocessors wherever it is,
and lets it go on later. A kernel that hands on shared memory which it still reads gives other numbers then, now and
then, and never where it has the GPU to itself."""

from __future__ import annotations

import subprocess
import sys
import time

import harness
import pytest
import torch
from cases import AttentionCase, GemmCase
from harness import ATTENTION, GEMM, AttentionCall, GemmCall

from fdpp_ort import _core

SECONDS = 3  # of each kernel
OTHER = """
import torch
x = torch.randn(8192, 8192, dtype=torch.float16, device="cuda")
y = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
print("busy", flush=True)
while True:
    for _ in range(20):
        x @ x
        y.add_(1)
    torch.cuda.synchronize()
"""

# More work than blocks, so that rings of shared memory go round many times.
LENGTHS = tuple(3 + i * 37 % 298 for i in range(64))
ATTENTION_CASES = [
    AttentionCase(LENGTHS, 3, 8, 4, 128, "float16", "float16", softcap=20.0),
    AttentionCase(LENGTHS, 1, 16, 1, 64, "bfloat16", "bfloat16", rotary="half"),
]
GEMM_CASES = [
    GemmCase(1, 8192, 4096, "float16", "float16", norm="rms"),
    GemmCase(8, 8192, 4096, "float16", "float16", residual=True),
    GemmCase(8, 8192, 4096, "float16", "uint8", block_size=32),
    GemmCase(32, 8192, 4096, "bfloat16", "bfloat16"),
]


@pytest.fixture(scope="module")
def busy_gpu():
    """Another process that computes and moves memory all the time."""
    assert torch.cuda.is_available(), "torch sees no GPU; run -m gpu on a GPU machine"
    with subprocess.Popen([sys.executable, "-c", OTHER], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "busy\n"
        yield
        assert other.poll() is None, "the other process died: nothing was preempted"
        other.kill()


def own_kernels(op: str, cases: list) -> list:
    return [p for p in harness.parameters(op, cases) if pytest.mark.gpu in p.marks and p.values[0] != "cublaslt"]


def same_bits_again_and_again(op, call, variant: str) -> None:
    call.run(variant)
    output = next(iter(call.outputs.values()))
    first = output.clone()
    stream = torch.cuda.current_stream().cuda_stream
    options = {"workspace": call.workspace, "stream": stream, "variant": variant}
    end, calls = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        output.fill_(torch.nan)
        op(call.case.attributes(), call.inputs, call.outputs, **options)
        calls += 1
        assert torch.equal(output, first), f"call {calls} gave other numbers than the first"
    assert calls > 20


@pytest.mark.parametrize(("variant", "case"), own_kernels(ATTENTION, ATTENTION_CASES))
def test_attention(variant: str, case: AttentionCase, busy_gpu) -> None:
    same_bits_again_and_again(_core.attention, AttentionCall(case, harness.attention_tensors(case), "cuda"), variant)


@pytest.mark.parametrize(("variant", "case"), own_kernels(GEMM, GEMM_CASES))
def test_gemm(variant: str, case: GemmCase, busy_gpu) -> None:
    same_bits_again_and_again(_core.gemm, GemmCall(case, harness.gemm_tensors(case), "cuda"), variant)
