"""ONNX Runtime's MatMul and MatMulNBits nodes as candidates, weights bound in place."""

from __future__ import annotations

from functools import lru_cache

import onnxruntime
import torch
from common import ort_session
from common.accuracy import LARGEST_ERROR_PEER
from onnx import helper

from gemm.candidate import Candidate
from gemm.operands import Operands

LARGEST_ERROR_INT4 = 2e-2  # its kernels add in float16


def absent() -> str | None:
    """Why there is no such peer on this machine."""
    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        return f"onnxruntime {onnxruntime.__version__} has no CUDA provider, only {', '.join(providers)}"
    return None


@lru_cache(maxsize=1)
def matmul_session(stream: int) -> onnxruntime.InferenceSession:
    """One for all shapes."""
    half = torch.float16
    node = helper.make_node("MatMul", ["A", "B"], ["Y"])
    inputs = [("A", half, ["M", "K"]), ("B", half, ["K", "N"])]
    return ort_session.cuda_session(ort_session.one_node(node, inputs, [("Y", half, ["M", "N"])]), stream)


@lru_cache(maxsize=4)
def nbits_session(n: int, k: int, block_size: int, stream: int) -> onnxruntime.InferenceSession:
    half, blocks = torch.float16, -(-k // block_size)
    settings = {"N": n, "K": k, "bits": 4, "block_size": block_size, "accuracy_level": 0}
    node = helper.make_node("MatMulNBits", ["A", "B", "scales"], ["Y"], domain="com.microsoft", **settings)
    inputs = [("A", half, ["M", k]), ("B", torch.uint8, [n, blocks, block_size // 2]), ("scales", half, [n, blocks])]
    return ort_session.cuda_session(ort_session.one_node(node, inputs, [("Y", half, ["M", n])]), stream)


def matmul(operands: Operands, m: int, stream: torch.cuda.Stream) -> Candidate:
    """As exporters write it, B [K, N]: of the same memory as the others' weights, but other numbers in each place."""
    weights = operands.weights()
    of_sets = [{"B": weights.as_columns(index)} for index in range(weights.sets)]
    session = matmul_session(stream.cuda_stream)
    return _candidate(session, operands, m, of_sets, operands.expected_of_columns, LARGEST_ERROR_PEER)


def matmul_nbits(operands: Operands, m: int, name: str, stream: torch.cuda.Stream) -> Candidate:
    weights = operands.weights(name)
    of_sets = [weights.matmul_nbits(index) for index in range(weights.sets)]
    session = nbits_session(weights.n, weights.k, weights.format.block_size, stream.cuda_stream)
    return _candidate(session, operands, m, of_sets, operands.expected(name), LARGEST_ERROR_INT4)


def _candidate(session, operands: Operands, m: int, of_sets: list[dict], expected, limit: float) -> Candidate:
    a, y = operands.a[:m], operands.y[:m]
    bindings = [ort_session.binding(session, {"A": a, **inputs}, {"Y": y}) for inputs in of_sets]
    options = ort_session.run_options()

    def run(index: int) -> torch.Tensor:
        session.run_with_iobinding(bindings[index], options)
        return y

    return Candidate(run, len(bindings), expected, y, limit)
