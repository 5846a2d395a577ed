"""FdppAttention as a candidate: append in place, the softmax modes, rotary embedding, 8-bit caches."""

from __future__ import annotations

import torch

from attention.candidate import LARGEST_ERROR, Candidate
from attention.operands import Operands, rotary_tables, rotated
from fdpp_ort import _core

MODES = ("lazy", "unified", "online")
CACHE_TYPES = {"f8e4m3": torch.float8_e4m3fn, "i8": torch.int8}


def device_of(tensor: torch.Tensor) -> dict:
    return _core.gpu_device(tensor.device.index or 0) if tensor.is_cuda else _core.cpu_device()


def candidate(
    operands: Operands,
    mode: str = "lazy",
    *,
    phi: float = 0.0,
    rotary: bool = False,
    per_channel: bool = False,
    variant: str | None = None,
) -> Candidate:
    """The scores are those of random numbers, about normal: phi = 0 with the interval's defaults holds for all rows."""
    case, query = operands.case, operands.query
    device = query.device
    b, s = case.batch, case.queries
    attributes = {"num_heads": case.q_heads, "kv_num_heads": case.kv_heads, "softmax_mode": mode}
    common = {
        "query": query.view(b, s, -1),
        "key": operands.key.view(b, s, -1),
        "value": operands.value.view(b, s, -1),
        "seqlens_k": torch.full((b,), case.context - 1, dtype=torch.int32, device=device),
        "total_sequence_length": case.bound or case.context,
    }
    scored, new_key = query, operands.key
    counter = None
    if mode == "unified":
        common["phi"] = torch.full((case.q_heads,), phi, device=device)
        counter = _core.DeviceCounter("cuda" if query.is_cuda else "cpu")
    if rotary:
        attributes["do_rotary"] = 1
        cos, sin = rotary_tables(case.bound or case.context, case.head_size, device)
        common |= {"cos_cache": cos, "sin_cache": sin}
        scored, new_key = (rotated(x, cos, sin, case.context - s) for x in (query, operands.key))
    if operands.pool.scale is not None:
        quantization = "PER_CHANNEL" if per_channel else "PER_TENSOR"
        attributes |= {"k_quant_type": quantization, "v_quant_type": quantization}
        shape = (1, case.kv_heads, 1, case.head_size) if per_channel else (1,)
        scale = torch.full(shape, operands.pool.scale, device=device)
        common |= {"k_scale": scale, "v_scale": scale}

    inputs = [{**common, "past_key": key, "past_value": value} for key, value in operands.caches]
    plan = _core.plan_attention(attributes, inputs[0], device_of(query), variant=variant)
    # On the CPU the call brings its own.
    workspace = (
        torch.empty(max(plan["workspace_bytes"], 256), dtype=torch.uint8, device=device) if query.is_cuda else None
    )
    output = torch.full((b, s, case.q_heads * case.head_size), float("nan"), dtype=torch.float16, device=device)
    outputs = [{"output": output, "present_key": key, "present_value": value} for key, value in operands.caches]

    def run(index: int) -> torch.Tensor:
        stream = torch.cuda.current_stream().cuda_stream if query.is_cuda else 0
        _core.attention(
            attributes,
            inputs[index],
            outputs[index],
            workspace=workspace,
            stream=stream,
            variant=variant,
            counter=counter,
        )
        return output

    note = f"{plan['variant']}, {plan['num_splits']} splits"
    return Candidate(operands, run, query=scored, new_key=new_key, limit=LARGEST_ERROR, note=note, counter=counter)
