"""torch's scaled_dot_product_attention as a candidate: FlashAttention-2 with its own split-KV, and cuDNN."""

from __future__ import annotations

import warnings

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attention.candidate import Candidate
from attention.operands import Operands

BACKENDS = {"fa2": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}


def sdpa(operands: Operands, backend: str, *, tokens_first: bool = False) -> Candidate:
    """Decode, or a prompt (causal). Keys and values as they lie in the caches, heads first; tokens_first: a prompt's as
    the projections write them (the caches hold the same numbers)."""
    case = operands.case
    causal = case.queries == case.context
    if case.queries != 1 and not causal:
        raise ValueError("SDPA takes one new token, or a prompt: its is_causal counts from the first key")
    # As the projections write it: the heads of a token side by side.
    query = operands.query.transpose(1, 2)
    grouped = case.group > 1
    tokens = (operands.key.transpose(1, 2), operands.value.transpose(1, 2))

    def run(index: int) -> torch.Tensor:
        key, value = tokens if tokens_first else operands.caches[index]
        with sdpa_kernel(BACKENDS[backend]):
            out = scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=grouped)
        return out.transpose(1, 2)

    def run_operator(index: int) -> torch.Tensor:
        key, value = tokens if tokens_first else operands.caches[index]
        operator = torch.ops.aten._scaled_dot_product_cudnn_attention
        return operator(query, key, value, None, False, 0.0, causal)[0].transpose(1, 2)

    try:
        return _run_once(Candidate(operands, run))
    except RuntimeError:
        if backend != "cudnn":
            raise
        # torch's rules on what it gives to cuDNN are narrower than cuDNN's own.
        return _run_once(Candidate(operands, run_operator, note="called past torch's checks"))


def packed_cudnn(operands: Operands) -> Candidate:
    """Decode with a group's query heads as the rows of one head: what they read is the same, and no mask is needed."""
    case = operands.case
    query = operands.query.view(case.batch, case.kv_heads, case.group, case.head_size)

    def run(index: int) -> torch.Tensor:
        key, value = operands.caches[index]
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return scaled_dot_product_attention(query, key, value).reshape(case.batch, 1, case.q_heads, -1)

    return _run_once(Candidate(operands, run))


def _run_once(candidate: Candidate) -> Candidate:
    """Backends that refuse a problem say why in warnings; the exception itself says only that none is left."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            candidate.run(0)
        except RuntimeError as error:
            reasons = "; ".join(str(warning.message).partition(" (Triggered")[0] for warning in said)
            raise RuntimeError(f"{error}: {reasons}" if reasons else str(error)) from None
    return candidate
