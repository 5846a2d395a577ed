"""Writing the table that the library reads (docs/dispatch.md says what is in it)."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from pathlib import Path

from fdpp_ort.files import write_json
from fdpp_ort.tuning.analysis import analyse, analyse_attention
from fdpp_ort.tuning.attention import AttentionShape
from fdpp_ort.tuning.measurements import Measurements
from fdpp_ort.tuning.products import Product

_FORMAT = 1


def write_table(path: Path, measurements: Measurements) -> None:
    """Makes the table of all that was measured. FdppError: it cannot be written."""
    table = {
        "fdpp_table": _FORMAT,
        "library": measurements.head["library"],
        "measured": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d, fdpp-tune"),
        "device": measurements.head["device"],
        "gemm": [_entry(product, times) for product, times in measurements],
        "attention": [_attention_entry(shape, times) for shape, times in measurements.attention()],
    }
    write_json(path, table, "the table")


def _entry(product: Product, times: dict) -> dict:
    inflection = analyse(times)
    ranges = [
        {"from": r.first, "variant": r.candidate.variant, "split": dict(r.candidate.split)} for r in inflection.ranges
    ]
    return {
        "n": product.n,
        "k": product.k,
        "dtype": product.dtype,
        "weight_format": product.weight_format,
        "epilogue": product.epilogue,
        **({"block_size": product.block_size} if product.block_size else {}),
        # Without it the default: what knows nothing of levels reads the table too.
        **({"accuracy_level": product.accuracy_level} if product.accuracy_level else {}),
        "m1": inflection.m1,
        "m2": inflection.m2,
        "ranges": ranges,
    }


def _attention_entry(shape: AttentionShape, times: dict) -> dict:
    ranges = [
        {"batch": r.batch, "context": r.context, "variant": r.candidate.variant, "split": dict(r.candidate.split)}
        for r in analyse_attention(times)
    ]
    return asdict(shape) | {"ranges": ranges}
