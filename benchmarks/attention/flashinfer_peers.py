"""FlashInfer's decode attention (CUDA cores and tensor cores) and its XQA kernels as candidates.

Their kernels are compiled on first use. build() compiles all that a run needs side by side; with a folder it leaves
them there, made on a machine without a GPU if need be, and use() takes them from it.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import torch

from attention.candidate import Candidate
from attention.cases import PAGE, Case
from attention.operands import Operands

WORKSPACE_BYTES = 512 << 20
SEMAPHORE_BYTES = 8 << 20
HALF = torch.float16


def specs(cases: list[Case]) -> list:
    """What has to be compiled for `cases`."""
    from flashinfer.jit.attention.modules import gen_batch_decode_module, gen_batch_prefill_module
    from flashinfer.jit.xqa import gen_xqa_module

    wanted = []
    for d in sorted({case.head_size for case in cases}):
        wanted.append(gen_batch_decode_module(HALF, HALF, HALF, torch.int32, d, d, 0, False, False))
        wanted.append(gen_batch_prefill_module("fa2", HALF, HALF, HALF, torch.int32, d, d, 0, False, False, False))
    for d, group in sorted({(case.head_size, case.group) for case in cases}):
        wanted.append(gen_xqa_module(HALF, HALF, PAGE, d, group, False, HALF, 1))
    return wanted


def build(cases: list[Case], folder: Path | None = None) -> None:
    from flashinfer.jit.core import build_jit_specs

    wanted = specs(cases)
    build_jit_specs(wanted)
    for spec in wanted if folder else []:
        (folder / spec.name).mkdir(parents=True, exist_ok=True)
        shutil.copy2(spec.jit_library_path, folder / spec.name)


def use(folder: Path) -> None:
    """Load modules from `folder`, as far as they are there."""
    from flashinfer.jit import env

    env.FLASHINFER_AOT_DIR = folder.resolve()


@cache
def buffer(purpose: str, size_bytes: int, device: torch.device) -> torch.Tensor:
    """One for all cases. 0 at first: XQA's semaphores must be, and are again after each call."""
    return torch.zeros(size_bytes, dtype=torch.uint8, device=device)


def flashinfer(operands: Operands, *, tensor_cores: bool) -> Candidate:
    import flashinfer

    case = operands.case
    table = operands.page_table()
    device = table.device
    pages = case.context // PAGE
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        buffer("flashinfer", WORKSPACE_BYTES, device), "HND", use_tensor_cores=tensor_cores
    )
    wrapper.plan(
        torch.arange(case.batch + 1, dtype=torch.int32) * pages,
        table.view(-1),
        torch.full((case.batch,), PAGE, dtype=torch.int32),
        case.q_heads,
        case.kv_heads,
        case.head_size,
        PAGE,
        q_data_type=HALF,
        kv_data_type=HALF,
    )
    query = operands.query.view(case.batch, case.q_heads, case.head_size)
    output = torch.full_like(query, float("nan"))
    caches = [operands.pages(index) for index in range(operands.sets)]

    def run(index: int) -> torch.Tensor:
        return wrapper.run(query, caches[index], out=output)

    return Candidate(operands, run, layout="paged")


def xqa(operands: Operands) -> Candidate:
    from flashinfer.xqa import xqa as call

    case = operands.case
    table = operands.page_table()
    query = operands.query.view(case.batch, 1, case.q_heads, case.head_size)
    output = torch.full_like(query, float("nan"))
    lengths = torch.full((case.batch, 1), case.context, dtype=torch.int32, device=table.device).view(torch.uint32)
    scratch = buffer("xqa", WORKSPACE_BYTES, table.device)
    locks = buffer("xqa semaphores", SEMAPHORE_BYTES, table.device).view(torch.uint32)
    caches = [operands.pages(index) for index in range(operands.sets)]

    def run(index: int) -> torch.Tensor:
        keys, values = caches[index]
        call(query, keys, values, table, lengths, output, scratch, locks, case.kv_heads, PAGE, kv_layout="HND")
        return output

    return Candidate(operands, run, layout="paged")
