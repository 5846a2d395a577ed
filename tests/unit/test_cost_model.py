"""The model of costs: what decides on a device that no table was measured on."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import H200, UNTUNED_H200

from fdpp_ort import _core

KINDS = {v["name"]: v["kind"] for v in _core.variants()}
ORDER = ("gemv", "flat", "large")
ROWS = range(1, 130)
SHAPES = [(4096, 4096), (12288, 4096), (4096, 11008), (32000, 4096), (896, 4864), (576, 576), (49152, 576), (64, 64)]
CPU = _core.cpu_device() | {"host_gemm": True}
HAS_CUDA = any(v["backend"] == "cuda" for v in _core.variants())
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="a build without CUDA kernels plans for no GPU")


def kinds(n: int, k: int, device: dict, dtype: torch.dtype, weight_format: str) -> list[str]:
    """What is chosen for each of ROWS."""
    activations = torch.float32 if device["backend"] == "cpu" else dtype
    b = torch.empty(n, k, dtype=dtype)
    chosen = []
    for m in ROWS:
        inputs = {"A": torch.empty(m, k, dtype=activations), "B": b}
        plan = _core.plan_gemm({"N": n, "K": k, "weight_format": weight_format}, inputs, device)
        assert plan["reason"] == "model of costs"
        chosen.append(KINDS[plan["variant"]])
    return chosen


def inflection_points(chosen: list[str]) -> tuple[int, int]:
    m1 = next((m for m, kind in zip(ROWS, chosen, strict=True) if kind != "gemv"), ROWS[-1] + 1)
    m2 = next((m for m, kind in zip(ROWS, chosen, strict=True) if kind == "large"), ROWS[-1] + 1)
    return m1, m2


def assert_rising(chosen: list[str]) -> None:
    """From one kind to the next as M rises, and never back."""
    assert [kind for kind, _ in itertools.groupby(chosen)] == [kind for kind in ORDER if kind in chosen]


@pytest.mark.parametrize(("dtype", "weight_format"), [(torch.float32, "f32"), (torch.float16, "f16")])
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_processors(dtype: torch.dtype, weight_format: str, threads: int) -> None:
    device = CPU | {"threads": threads}
    for n, k in SHAPES[:1] + SHAPES[4:]:
        chosen = kinds(n, k, device, dtype, weight_format)
        assert_rising(chosen)
        if any(kind == "gemv" for kind in KINDS.values()):
            assert inflection_points(chosen) == (2, 17)


@needs_cuda
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize(
    "device",
    [
        UNTUNED_H200,
        H200 | {"name": "NVIDIA A100", "multiprocessors": 108, "memory_bandwidth": 2.0e12, "compute_capability": 80},
        H200 | {"name": "NVIDIA L4", "multiprocessors": 58, "memory_bandwidth": 3.0e11, "compute_capability": 89},
        H200 | {"name": "silent", "memory_bandwidth": 0.0},
    ],
    ids=lambda d: d["name"],
)
def test_gpus(n: int, k: int, device: dict) -> None:
    chosen = kinds(n, k, device, torch.float16, "f16")
    m1, m2 = inflection_points(chosen)
    assert_rising(chosen)
    assert 1 <= m1 <= 5
    assert m2 >= 9, "padded to 8 rows, a flat product costs as much as one of fewer"


@needs_cuda
@pytest.mark.parametrize(
    ("n", "k", "m", "kind"),
    [
        (4096, 4096, 8, "flat"),
        (128256, 4096, 1, "gemv"),
        (896, 896, 4, "gemv"),
        (22016, 4096, 1, "gemv"),
        (12288, 4096, 4, "flat"),
        (4096, 4096, 16, "flat"),
        pytest.param(4608, 4096, 64, "large", marks=pytest.mark.gpu),  # where cuBLASLt can be loaded
        pytest.param(5120, 5120, 64, "large", marks=pytest.mark.gpu),
    ],
)
def test_choices_that_an_h200_confirmed(n: int, k: int, m: int, kind: str) -> None:
    """benchmarks/results/2026-11-23-h200-gemm.json"""
    inputs = {"A": torch.empty(m, k, dtype=torch.float16), "B": torch.empty(n, k, dtype=torch.float16)}
    assert KINDS[_core.plan_gemm({"N": n, "K": k, "weight_format": "f16"}, inputs, UNTUNED_H200)["variant"]] == kind


@pytest.mark.gpu  # where cuBLASLt can be loaded
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (12288, 4096), (22016, 4096), (4096, 11008)])
def test_prompts_of_int4_models(n: int, k: int) -> None:
    """Many rows are the library's: the gemv kind, cheap as it is for one row, takes no more."""
    inputs = {
        "A": torch.empty(1024, k, dtype=torch.float16),
        "B": torch.empty(n, k // 2, dtype=torch.uint8),
        "scales": torch.empty(n, k // 32, dtype=torch.float16),
    }
    attributes = {"N": n, "K": k, "weight_format": "int4", "block_size": 32}
    assert KINDS[_core.plan_gemm(attributes, inputs, UNTUNED_H200)["variant"]] == "large"
