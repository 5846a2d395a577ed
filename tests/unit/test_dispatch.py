"""Selection, overrides and records, also for GPUs that are not there."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import torch
from cases import H200

from fdpp_ort import _core

ATTENTION, GEMM = "FdppAttention", "FdppFlatGemm"


def names(op: str, backend: str) -> list[str]:
    return [v["name"] for v in _core.variants() if v["op"] == op and v["backend"] == backend]


def plan_gemm(
    m: int, n: int, k: int, device: dict[str, object], dtype: str = "f32", **options: object
) -> dict[str, object]:
    t = {"f32": torch.float32, "f16": torch.float16}[dtype]
    inputs = {"A": torch.empty(m, k, dtype=t), "B": torch.empty(n, k, dtype=t)}
    return _core.plan_gemm({"N": n, "K": k, "weight_format": dtype}, inputs, device, **options)


def attention_call(head_size: int = 64) -> tuple[dict[str, object], dict[str, object]]:
    inputs = {
        "query": torch.zeros(1, 1, 3 * 2 * head_size),
        "seqlens_k": torch.zeros(1, dtype=torch.int32),
        "total_sequence_length": 1,
    }
    return {"num_heads": 2, "kv_num_heads": 2}, inputs


def cpu(**changes: object) -> dict[str, object]:
    return _core.cpu_device() | changes


@pytest.mark.parametrize(
    ("m", "kind"), [(1, "gemv"), (2, "flat"), (16, "flat"), (17, "runtime_gemm"), (512, "runtime_gemm")]
)
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_gemm_inflections_on_the_cpu(m: int, kind: str, isa: str) -> None:
    if not any(isa in name for name in names(GEMM, "cpu")):
        assert not any("avx" in name for name in names(GEMM, "cpu")), "an x86 build has both"
        return
    plan = plan_gemm(m, 576, 192, cpu(isa=isa, host_gemm=True))
    assert plan["variant"] == ("cpu_runtime_gemm" if kind == "runtime_gemm" else f"cpu_{isa}_{kind}")


@pytest.mark.parametrize(
    ("isa", "vnni", "accuracy_level", "name"),
    [
        ("avx512", {"avx512_vnni": True, "avx_vnni": True}, 4, "cpu_avx512_vnni"),
        ("avx512", {"avx512_vnni": True, "avx_vnni": True}, 0, "cpu_avx512"),
        ("avx512", {"avx512_vnni": False, "avx_vnni": False}, 4, "cpu_avx512"),
        ("avx2", {"avx512_vnni": False, "avx_vnni": True}, 4, "cpu_avx2_vnni"),
        ("avx2", {"avx512_vnni": False, "avx_vnni": False}, 4, "cpu_avx2"),
    ],
)
def test_int4_takes_vnni_where_it_may(isa: str, vnni: dict[str, bool], accuracy_level: int, name: str) -> None:
    if not any("vnni" in variant for variant in names(GEMM, "cpu")):
        assert not any("avx" in variant for variant in names(GEMM, "cpu")), "an x86 build has both"
        return
    attributes = {"N": 48, "K": 64, "weight_format": "int4", "block_size": 32, "accuracy_level": accuracy_level}
    for m, kind in ((1, "gemv"), (8, "flat")):
        inputs = {
            "A": torch.empty(m, 64),
            "B": torch.empty(48, 32, dtype=torch.uint8),
            "scales": torch.empty(48, 2),
        }
        assert _core.plan_gemm(attributes, inputs, cpu(isa=isa, **vnni))["variant"] == f"{name}_{kind}"


PROBLEM = {"m": 1, "n": 48, "k": 64, "dtype": "float32", "weight_format": "int4"}


@pytest.mark.parametrize("changes", [{}, {"block_size": 128}, {"weight_format": "fp8"}, {"accuracy_level": 4}])
def test_splits_of_quantised_weights(changes: dict[str, object]) -> None:
    own = {"pieces": 1, "rows": 0, "stages": 0, "algorithm": 0}
    assert _core.gemm_splits(PROBLEM | changes, cpu(), "cpu_scalar_flat") == [own]


def test_accuracy_level_counts_for_splits() -> None:
    device = cpu(isa="avx2", avx_vnni=True)
    with pytest.raises(NotImplementedError, match=r"M=1 N=48 K=64 float32 weights int4/32: takes int4 .* at accuracy"):
        _core.gemm_splits(PROBLEM, device, "cpu_avx2_vnni_gemv")
    assert _core.gemm_splits(PROBLEM | {"accuracy_level": 4}, device, "cpu_avx2_vnni_gemv")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"m": 0}, "problem m is 0, expected a positive number"),
        ({"n": 0}, "N is 0 and K is 64, expected positive numbers"),
        ({"dtype": "int8"}, 'problem dtype is "int8", expected one of float32, float16, bfloat16'),
        ({"weight_format": "int3"}, 'weight_format is "int3", expected f32, f16, bf16, int8, fp8 or int4'),
        ({"block_size": 24}, "block_size is 24, expected 16, 32, 64 or 128 with weight_format int4"),
        ({"weight_format": "int8", "block_size": 32}, "block_size is 32, expected 0 with weight_format int8"),
        ({"accuracy_level": 5}, "accuracy_level is 5, expected 0 to 4"),
        ({"blocks": 2}, 'unknown problem key "blocks"'),
    ],
)
def test_problems_that_are_none(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.gemm_splits(PROBLEM | changes, cpu(), "cpu_scalar_flat")


def test_gemm_without_the_runtimes_product() -> None:
    """The nearest kind takes what the runtime would."""
    assert "flat" in plan_gemm(100, 576, 192, cpu(host_gemm=False))["variant"]


def test_scalar_processor_takes_scalar_variants() -> None:
    for m in (1, 8, 100):
        assert "scalar" in plan_gemm(m, 64, 64, cpu(isa="scalar", host_gemm=False))["variant"]
    assert "scalar" in _core.plan_attention(*attention_call(), cpu(isa="scalar"))["variant"]


@pytest.mark.parametrize(
    ("m", "n", "k", "kind"),
    [
        (1, 12288, 4096, "gemv"),
        (2, 4096, 4096, "flat"),
        (12, 4096, 4096, "flat"),
        pytest.param(48, 4096, 4096, "cublas", marks=pytest.mark.gpu),  # where cuBLASLt can be loaded
        pytest.param(4096, 4096, 4096, "cublas", marks=pytest.mark.gpu),
    ],
)
def test_gemm_inflections_on_a_gpu(m: int, n: int, k: int, kind: str) -> None:
    if names(GEMM, "cuda"):
        assert kind in plan_gemm(m, n, k, H200, "f16")["variant"]
    else:
        with pytest.raises(NotImplementedError, match="this build has none for that backend"):
            plan_gemm(m, n, k, H200, "f16")


def test_an_old_gpu_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="FdppFlatGemm: no kernel for .* on cuda"):
        plan_gemm(1, 64, 64, H200 | {"compute_capability": 60}, "f16")


def test_a_hip_device_has_no_kernels() -> None:
    with pytest.raises(NotImplementedError, match=r"on hip \(this build has none for that backend\)"):
        plan_gemm(1, 64, 64, {"backend": "hip"})


def test_forced_variants(unforced: None) -> None:
    for name in names(GEMM, "cpu"):
        takes, why = _core.supports(
            GEMM,
            {"N": 64, "K": 64, "weight_format": "f32"},
            {"A": torch.empty(1, 64), "B": torch.empty(64, 64)},
            name,
            cpu(),
        )
        _core.force_variant(GEMM, name)
        if takes:
            plan = plan_gemm(1, 64, 64, cpu())
            assert (plan["variant"], plan["reason"]) == (name, "forced")
        else:
            with pytest.raises(NotImplementedError, match=f"variant {name} is forced but does not take"):
                plan_gemm(1, 64, 64, cpu())
            assert f"variant {name} is forced but does not take" in why
    _core.force_variant(GEMM, None)
    assert plan_gemm(1, 64, 64, cpu())["reason"] != "forced"


def test_forcing_for_one_call_leaves_the_standing_force(unforced: None) -> None:
    scalar = next(name for name in names(ATTENTION, "cpu") if "scalar" in name)
    other = next(name for name in names(ATTENTION, "cpu"))
    call = attention_call()
    _core.force_variant(ATTENTION, scalar)
    assert _core.plan_attention(*call, cpu(), variant=other)["variant"] == other
    assert _core.plan_attention(*call, cpu())["variant"] == scalar


def test_forcing_one_backend_leaves_others(unforced: None) -> None:
    _core.force_variant(GEMM, names(GEMM, "cpu")[0])
    if names(GEMM, "cuda"):
        assert plan_gemm(1, 4096, 4096, H200, "f16")["reason"] != "forced"


def test_forcing_what_is_not_there() -> None:
    with pytest.raises(ValueError, match='FdppFlatGemm has no variant "nothing" in this build; it has cpu_'):
        _core.force_variant(GEMM, "nothing")
    with pytest.raises(ValueError, match='no op is named "FdppNothing"'):
        _core.force_variant("FdppNothing", "cpu_scalar")
    with pytest.raises(ValueError, match='has no variant "nothing"'):
        plan_gemm(1, 64, 64, cpu(), variant="nothing")


SUBPROCESS = """
import numpy
from fdpp_ort import _core
attributes = {"N": 64, "K": 64, "weight_format": "f32"}
inputs = {"A": numpy.ones((1, 64), "float32"), "B": numpy.ones((64, 64), "float32")}
print(_core.plan_gemm(attributes, inputs, _core.cpu_device()))
"""


def run_with(**environment: str) -> subprocess.CompletedProcess[str]:
    # The module may come from a path that only this process knows, and must not come from the working folder's sources.
    path = os.pathsep.join(p for p in sys.path if p)
    here = pathlib.Path(__file__).parent
    return subprocess.run(
        [sys.executable, "-c", SUBPROCESS],
        env=os.environ | {"PYTHONPATH": path} | environment,
        cwd=here,
        capture_output=True,
        text=True,
        check=True,
    )


def test_force_by_environment() -> None:
    scalar = next(name for name in names(GEMM, "cpu") if "scalar" in name)
    done = run_with(FDPP_FORCE=f"{GEMM}={scalar}")
    assert f"'variant': '{scalar}'" in done.stdout
    assert "'reason': 'forced'" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (f"{GEMM}=nothing", 'has no variant "nothing" in this build'),
        ("FdppNothing=cpu_scalar", 'no op is named "FdppNothing"'),
        ("nonsense", "expected OP=VARIANT"),
    ],
)
def test_bad_force_by_environment(entry: str, message: str) -> None:
    done = run_with(FDPP_FORCE=entry)
    assert f'FDPP_FORCE entry "{entry}" ignored' in done.stderr
    assert message in done.stderr
    assert "forced" not in done.stdout


def test_log() -> None:
    assert f"fdpp: {GEMM} " in run_with(FDPP_LOG="1").stderr


def test_records() -> None:
    _core.clear_plans()
    assert _core.last_plans() == []
    y = torch.empty(3, 64)
    plan = _core.gemm(
        {"N": 64, "K": 32, "weight_format": "f32"}, {"A": torch.ones(3, 32), "B": torch.ones(64, 32)}, {"Y": y}
    )
    (record,) = _core.last_plans()
    problem = "M=3 N=64 K=32 float32 weights f32"
    assert plan.pop("split") == {"pieces": 1, "rows": 0, "stages": 0, "algorithm": 0}
    assert record == plan | {"op": GEMM, "node": "", "problem": problem, "out_of_range_rows": 0}
    _core.plan_attention(*attention_call(), cpu())
    assert {r["op"] for r in _core.last_plans()} == {ATTENTION, GEMM}
    _core.clear_plans()
    assert _core.last_plans() == []


def eight_bit_call(cache_dtype: torch.dtype) -> tuple[dict[str, object], dict[str, object]]:
    attributes, inputs = attention_call()
    past = torch.zeros(1, 2, 4, 64).to(cache_dtype)
    inputs |= {"past_key": past, "past_value": past, "k_scale": torch.ones(1), "v_scale": torch.ones(1, 2, 1, 64)}
    return attributes | {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_CHANNEL"}, inputs


@pytest.mark.parametrize(("dtype", "name"), [(torch.int8, "int8"), (torch.float8_e4m3fn, "float8e4m3fn")])
def test_tensors_of_8_bits(dtype: torch.dtype, name: str) -> None:
    _core.clear_plans()
    _core.plan_attention(*eight_bit_call(dtype), cpu())
    assert f"float32 cache {name}" in _core.last_plans()[0]["problem"]


def test_other_float8_types_are_named() -> None:
    with pytest.raises(ValueError, match="past_key has DLPack type code .* expected float32, .* float8e4m3fn, int32"):
        _core.plan_attention(*eight_bit_call(torch.float8_e5m2), cpu())


def test_counter() -> None:
    attributes, inputs = attention_call()
    attributes |= {"softmax_mode": "unified", "phi_lower": -1e-3, "phi_upper": 1e-3}
    inputs["query"] = torch.full_like(inputs["query"], 0.1)  # scores of 64 · 0.01 / 8 = 0.08
    outputs = {"output": torch.empty(1, 1, 2 * 64)}
    outputs |= {name: torch.empty(1, 2, 1, 64) for name in ("present_key", "present_value")}
    counter = _core.DeviceCounter("cpu")
    for phi, count in ((0.08, 0), (0.0, 2), (0.08, 2), (0.0, 4)):
        inputs["phi"] = torch.full((2,), phi)
        _core.attention(attributes, inputs, outputs, counter=counter)
        assert counter.read() == count
    _core.attention(attributes, inputs, outputs)
    assert counter.read() == 4


def test_counters_elsewhere() -> None:
    with pytest.raises(ValueError, match='"tpu", expected one of cpu, cuda, hip'):
        _core.DeviceCounter("tpu")
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, NotImplementedError), match="GPU|cuda"):
            _core.DeviceCounter("cuda")


@pytest.mark.gpu
def test_a_counter_of_another_backend_is_refused() -> None:
    attributes, inputs = attention_call()
    outputs = {name: torch.empty(1, 2, 1, 64) for name in ("present_key", "present_value")}
    outputs["output"] = torch.empty(1, 1, 2 * 64)
    with pytest.raises(ValueError, match="counter lies on cuda, the tensors on cpu"):
        _core.attention(attributes, inputs, outputs, counter=_core.DeviceCounter("cuda"))


def test_variants_have_unique_names_and_summaries() -> None:
    keys = [(v["op"], v["name"]) for v in _core.variants()]
    assert len(set(keys)) == len(keys) > 0
    assert all(v["summary"] and v["name"].startswith((v["backend"], "cublas")) for v in _core.variants())


def test_devices() -> None:
    device = _core.cpu_device()
    assert device["backend"] == "cpu"
    assert device["threads"] >= 1
    assert device["name"]
    with pytest.raises(ValueError, match='device backend is "tpu", expected one of cpu, cuda, hip'):
        plan_gemm(1, 8, 8, {"backend": "tpu"})
    with pytest.raises(ValueError, match='unknown device key "sms"'):
        plan_gemm(1, 8, 8, {"sms": 3})
    with pytest.raises(ValueError, match='unknown op "FdppNothing"'):
        _core.supports("FdppNothing", {}, {}, "x", device)
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, NotImplementedError), match="GPU|cuda"):
            _core.gpu_device(0)
