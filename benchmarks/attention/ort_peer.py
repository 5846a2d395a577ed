"""ONNX Runtime's GroupQueryAttention node as a candidate, caches bound in place.

Which kernel the node takes, environment variables say; they are read when the session is made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import onnxruntime
import torch
from common import ort_session
from onnx import helper

from attention.candidate import Candidate
from attention.operands import Operands, rotary_tables, rotated

KERNELS = {
    "ort": {},
    "ort_xqa": {"ORT_ENABLE_XQA": "1"},
    "ort_flash": {"ORT_ENABLE_XQA": "0", "ORT_ENABLE_CUDNN_FLASH_ATTENTION": "0"},
    "ort_cudnn": {"ORT_ENABLE_XQA": "0", "ORT_ENABLE_CUDNN_FLASH_ATTENTION": "1"},
}
_sessions: dict[tuple, onnxruntime.InferenceSession] = {}


def model(q_heads: int, kv_heads: int, head_size: int, rotary: bool) -> bytes:
    half, i32 = torch.float16, torch.int32
    tokens = {"query": q_heads * head_size, "key": kv_heads * head_size, "value": kv_heads * head_size}
    cache = ["B", kv_heads, "L", head_size]
    inputs = [(name, half, ["B", "S", columns]) for name, columns in tokens.items()]
    inputs += [(name, half, cache) for name in ("past_key", "past_value")]
    inputs += [("seqlens_k", i32, ["B"]), ("total_sequence_length", i32, [1])]
    if rotary:
        inputs += [(name, half, ["P", head_size // 2]) for name in ("cos_cache", "sin_cache")]
    outputs = [("output", half, ["B", "S", q_heads * head_size])]
    outputs += [(name, half, cache) for name in ("present_key", "present_value")]
    node = helper.make_node(
        "GroupQueryAttention",
        [name for name, _, _ in inputs],
        [name for name, _, _ in outputs],
        domain="com.microsoft",
        num_heads=q_heads,
        kv_num_heads=kv_heads,
        do_rotary=int(rotary),
    )
    return ort_session.one_node(node, inputs, outputs)


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def session(kernel: str, problem: tuple[int, int, int, bool], stream: int) -> onnxruntime.InferenceSession:
    """One for all batches and contexts of a problem (Hq, Hkv, D, rotary)."""
    key = (kernel, problem, stream)
    if key not in _sessions:
        with environment(KERNELS[kernel]):
            _sessions[key] = ort_session.cuda_session(model(*problem), stream)
    return _sessions[key]


def candidate(operands: Operands, kernel: str, stream: torch.cuda.Stream, *, rotary: bool = False) -> Candidate:
    case, query = operands.case, operands.query
    b, s = case.batch, case.queries
    of_kernel = session(kernel, (case.q_heads, case.kv_heads, case.head_size, rotary), stream.cuda_stream)
    common = {
        "query": query.view(b, s, -1),
        "key": operands.key.view(b, s, -1),
        "value": operands.value.view(b, s, -1),
        "seqlens_k": torch.full((b,), case.context - 1, dtype=torch.int32, device=query.device),
    }
    scored, new_key = query, operands.key
    if rotary:
        cos, sin = rotary_tables(case.context, case.head_size, query.device)
        common |= {"cos_cache": cos, "sin_cache": sin}
        scored, new_key = (rotated(x, cos, sin, case.context - s) for x in (query, operands.key))
    output = torch.full_like(common["query"], float("nan"))
    total = np.array([case.context], dtype=np.int32)
    run_options = ort_session.run_options()

    def binding(key: torch.Tensor, value: torch.Tensor) -> onnxruntime.IOBinding:
        inputs = {**common, "past_key": key, "past_value": value}
        outputs = {"output": output, "present_key": key, "present_value": value}
        made = ort_session.binding(of_kernel, inputs, outputs)
        made.bind_cpu_input("total_sequence_length", total)
        return made

    bindings = [binding(key, value) for key, value in operands.caches]

    def run(index: int) -> torch.Tensor:
        of_kernel.run_with_iobinding(bindings[index], run_options)
        return output

    # The bindings know addresses alone.
    return Candidate(operands, run, query=scored, new_key=new_key, keeps=(common, total))
