"""Every way to run a product or attention on a device."""

from __future__ import annotations

from collections.abc import Callable

from fdpp_ort.errors import FdppError
from fdpp_ort.library import core
from fdpp_ort.tuning.attention import AttentionShape
from fdpp_ort.tuning.measurements import Candidate
from fdpp_ort.tuning.products import Product


def candidates(product: Product, m: int, device: dict) -> list[Candidate]:
    """FdppError: there is none."""
    problem = product.problem(m)
    return _all("FdppFlatGemm", device, f"{product.title}, M={m}", lambda v: core().gemm_splits(problem, device, v))


def attention_candidates(shape: AttentionShape, inputs: dict, device: dict) -> list[Candidate]:
    """For the op's `inputs`; the library's own choice first. FdppError: there is none."""
    arguments = (shape.attributes, inputs, device)
    found = _all("FdppAttention", device, shape.title, lambda v: core().attention_splits(*arguments, v))
    own = core().plan_attention(*arguments)
    return list(dict.fromkeys([Candidate.of("", own["variant"], own["split"]), *found]))


def _all(op: str, device: dict, what: str, splits: Callable[[str], list[dict]]) -> list[Candidate]:
    """Of all variants, each with its `splits`."""
    found, refusals = [], []
    for v in core().variants():
        if (v["op"], v["backend"]) != (op, device["backend"]):
            continue
        try:
            found += [Candidate.of(v["kind"], v["name"], split) for split in splits(v["name"])]
        except NotImplementedError as error:
            refusals.append(str(error))
    if not found:
        reasons = "; ".join(refusals) or f"this build has none for {device['backend']}"
        raise FdppError(f"{what}: no kernel takes it ({reasons})")
    return found
