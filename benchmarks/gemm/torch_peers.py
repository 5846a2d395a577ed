"""torch's products as candidates: cuBLAS, and the GEMV that torch.compile makes."""

from __future__ import annotations

import torch
from common.accuracy import LARGEST_ERROR_PEER

from gemm.candidate import Candidate
from gemm.operands import Operands


def cublas(operands: Operands, m: int) -> Candidate:
    weights = operands.weights()
    a, y = operands.a[:m], operands.y[:m]
    transposed = [weights.inputs(index)["B"].T for index in range(weights.sets)]

    def run(index: int) -> torch.Tensor:
        return torch.matmul(a, transposed[index], out=y)

    return Candidate(run, weights.sets, operands.expected(), y, LARGEST_ERROR_PEER)


def compiled(operands: Operands, m: int) -> Candidate:
    """Without its own CUDA graphs: it is captured like the others."""
    weights = operands.weights()
    a = operands.a[:m]
    of_set = [weights.inputs(index)["B"] for index in range(weights.sets)]
    # Of other shapes nothing is needed any more, and there is a limit to how many are kept.
    torch._dynamo.reset()
    linear = torch.compile(torch.nn.functional.linear, mode="max-autotune-no-cudagraphs", dynamic=False)

    def run(index: int) -> torch.Tensor:
        return linear(a, of_set[index])

    return Candidate(run, weights.sets, operands.expected(), None, LARGEST_ERROR_PEER)
