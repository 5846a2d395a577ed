"""What can be timed: our graph and the original one in ONNX Runtime and onnxruntime-genai, and other runtimes."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from fdpp_ort.bench.spec import Spec
from fdpp_ort.errors import FdppError
from fdpp_ort.library import core

ORIGINAL, FDPP, CHECKPOINT = "the original model", "the exported model (--fdpp)", "transformers' config.json"


@dataclass(frozen=True)
class Kind:
    """modules: what must be importable. model: what it runs. gpu_only: there is nothing like it on a CPU."""

    worker: str
    modules: tuple[str, ...]
    model: str
    cuda_graph: bool = False
    gpu_only: bool = False


# In the order of the table.
KINDS = {
    "fdpp": Kind("session", ("onnxruntime",), FDPP),
    "fdpp-graph": Kind("session", ("onnxruntime",), FDPP, cuda_graph=True, gpu_only=True),
    "fdpp-genai": Kind("genai", ("onnxruntime_genai",), FDPP, cuda_graph=True),
    "ort": Kind("session", ("onnxruntime",), ORIGINAL),
    "ort-graph": Kind("session", ("onnxruntime",), ORIGINAL, cuda_graph=True, gpu_only=True),
    "genai": Kind("genai", ("onnxruntime_genai",), ORIGINAL, cuda_graph=True),
    # With its graph GenAI 0.18 cannot prompt several rows of a GroupQueryAttention model.
    "genai-no-graph": Kind("genai", ("onnxruntime_genai",), ORIGINAL, gpu_only=True),
    "hf": Kind("hf", ("torch", "transformers"), CHECKPOINT),
    "compile": Kind("compile", ("torch", "transformers"), CHECKPOINT),
    "vllm": Kind("vllm", ("vllm",), CHECKPOINT, cuda_graph=True, gpu_only=True),
}
OURS = ("fdpp", "fdpp-graph", "fdpp-genai")
PEERS = tuple(name for name in KINDS if name not in OURS)


def reference_among(names: Collection[str]) -> str | None:
    """Which of ours the others are compared with: the one with the CUDA graph where there is one."""
    return next((name for name in ("fdpp-graph", "fdpp") if name in names), None)


# The paper's techniques, each off: T1 is a folder of its own, T2 (flat GEMM) and T3 (a kernel by the shape) force one
# kernel on all products.
NO_T1, NO_T2, NO_T3 = "fdpp-no-t1", "fdpp-no-t2", "fdpp-no-t3"
_LIBRARY_PRODUCT = {"cuda": "cublaslt", "scalar": "cpu_runtime_gemm"}
_FLAT_PRODUCT = {
    "cuda": "cuda_flat_mma",
    "avx512": "cpu_avx512_flat",
    "avx2": "cpu_avx2_flat",
    "scalar": "cpu_scalar_flat",
}


@dataclass(frozen=True)
class Candidate:
    """absent: why it cannot run here; "" where it can. environment: variables of its process."""

    name: str
    spec: Spec
    environment: dict[str, str] = field(default_factory=dict)
    absent: str = ""


@dataclass(frozen=True)
class Models:
    """Folders of one model; None: not given. online: the export without T1. dtype: of the checkpoint, by PyTorch's
    name."""

    original: Path | None
    fdpp: Path | None
    checkpoint: Path | None
    online: Path | None = None
    dtype: str = "float16"

    def folder(self, what: str) -> Path | None:
        return {ORIGINAL: self.original, FDPP: self.fdpp, CHECKPOINT: self.checkpoint}[what]


def list_candidates(
    peers: tuple[str, ...], ablations: bool, models: Models, provider: str, threads: int, new_tokens: int
) -> list[Candidate]:
    """Ours and `peers`, in the order of KINDS, then ablations; those that cannot run here, too."""
    common = {"provider": provider, "threads": threads, "new_tokens": new_tokens}
    names = [name for name in KINDS if name in peers or name in OURS]
    if models.fdpp is None:
        names = [name for name in names if name not in OURS]
    found = [_candidate(name, models, common) for name in names]
    if ablations:
        found += _ablations(models, common)
    return found


def _candidate(name: str, models: Models, common: dict) -> Candidate:
    kind = KINDS[name]
    folder = models.folder(kind.model)
    graph = kind.cuda_graph and common["provider"] == "cuda"
    spec = Spec(kind.worker, str(folder or ""), cuda_graph=graph, dtype=models.dtype, **common)
    if kind.gpu_only and common["provider"] == "cpu":
        return Candidate(name, spec, absent="it needs a GPU (--provider cuda)")
    missing = [module for module in kind.modules if find_spec(module) is None]
    if missing:
        return Candidate(name, spec, absent=f"{', '.join(missing)} cannot be imported")
    if folder is None:
        return Candidate(name, spec, absent=f"{kind.model} is not there")
    return Candidate(name, spec)


def _ablations(models: Models, common: dict) -> list[Candidate]:
    if models.fdpp is None or models.online is None:
        raise FdppError("--ablations: techniques of the exported model are turned off; give it by --fdpp")
    on_gpu = common["provider"] == "cuda"
    place = "cuda" if on_gpu else core().cpu_device()["isa"]
    forced = {
        NO_T2: _LIBRARY_PRODUCT["cuda" if on_gpu else "scalar"],
        NO_T3: _FLAT_PRODUCT[place],
    }
    ours = Spec("session", str(models.fdpp), cuda_graph=on_gpu, **common)
    online = Spec("session", str(models.online), cuda_graph=on_gpu, **common)
    return [
        Candidate(NO_T1, online),
        *(Candidate(name, ours, {"FDPP_FORCE": f"FdppFlatGemm={variant}"}) for name, variant in forced.items()),
    ]


def environment_of(candidate: Candidate) -> dict[str, str]:
    return {**os.environ, **candidate.environment}
