"""Runs the original and the exported graph in ONNX Runtime on the same tokens and compares what they put out."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx_ir as ir

from . import op_spec
from .attention_node import takes_norms
from .decode_run import Graph, Record, run
from .dtypes import BY_FORMAT, spec_name
from .errors import ExportError
from .progress import Progress
from .prompts import Rows, rows_to_try
from .reference import write_reference
from .report import Difference, Generation, OutputError, Phase, Verification
from .session import Cache, Unfit, attentions, caches_of, provider_for
from .weight_format import WeightFormat

# Bounds of max |difference| / max |logit|, by what was rounded differently.
# Same float32 weights: only the order of float32 sums differs; some 1e-6 a layer's product, over tens of layers.
# float16 rounds each weight (or activation) by up to 2^-11 and bfloat16 by up to 2^-8; those errors are independent,
# and the logits gather a few tens of times one of them on the way through the layers.
# A new key or value on the border between two steps of an 8-bit cache may fall on either side: half a 127th of a few.
# At accuracy_level 4 one graph may round activations to int8 where the other does not: by up to 2^-8 of a block's
# largest, which is what bfloat16 does to each.
_TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1.5e-1}
_EIGHT_BIT_TOLERANCE = 2e-2


def verify_export(
    model: ir.Model,
    original: Path,
    exported: Path,
    library: Path | None,
    weights: Collection[WeightFormat],
    changed: Mapping[str, ir.TensorProtocol],
    progress: Progress | None = None,
) -> Verification:
    """Compares the graph files `original` and `exported`; `model` is the exported graph.

    weights: the formats in use. changed: by name, what original weights have become that are stored as something else.

    A prompt of random tokens and some decode steps, greedy by the original's logits, the cache passed from each run's
    present outputs to the next one's past inputs; it grows, or has room for all from the beginning where past and
    present have one size. Then the exported graph goes on from the prompt by its own greedy tokens. There are two rows,
    the shorter one with padding where an input says what that is: on the left where attention_mask does and the graph
    hides it by a bias, on the right where it counts each row's tokens, as GroupQueryAttention does. A graph that takes
    no such rows gets two of one length, or one row.

    Where weights are quantised, what is judged is the difference to the original graph with the values that are stored,
    which is written beside `exported` meanwhile; the difference to the original itself is reported. Where that cannot
    be done the result says "not verified" and why. Raises ExportError if one of the graphs fails to run.
    """
    try:
        return _verification(model, original, exported, library, weights, changed, progress)
    except Unfit as reason:
        return Verification("not verified", str(reason))


def _verification(
    model: ir.Model,
    original: Path,
    exported: Path,
    library: Path | None,
    weights: Collection[WeightFormat],
    changed: Mapping[str, ir.TensorProtocol],
    progress: Progress | None,
) -> Verification:
    caches, source = caches_of(model), ir.load(original)
    before = attentions(source)
    provider = _provider(caches, before)
    if library is None:
        raise Unfit("no op library was given")
    own = Graph("original", original, provider)
    batches = rows_to_try(source, model, caches)
    rows, expected = _first_that_runs(own, caches, batches, progress)
    quantised = bool(changed) and any(form.quantised for form in weights)
    loss: list[Difference] = []
    ours = Graph("exported", exported, provider, library)
    actual = run(ours, caches, rows, expected.fed, progress)
    if quantised:
        loss = _differences(expected, actual)
        with tempfile.TemporaryDirectory(dir=exported.parent, prefix=".reference.") as folder:
            reference = Graph("reference", write_reference(original, changed, Path(folder), progress), provider)
            expected = run(reference, caches, rows, expected.fed[:1], progress)
        actual = run(ours, caches, rows, expected.fed, progress)
    alone = run(ours, caches, rows, expected.fed[:1], progress)
    tolerance = _tolerance(model, caches, () if quantised else weights)
    phases = [Phase(**asdict(difference), tolerance=tolerance) for difference in _differences(expected, actual)]
    generation = _generation(expected, alone, tolerance)
    passed = generation.passed and all(phase.passed for phase in phases)
    return Verification(
        "passed" if passed else "failed",
        provider=provider,
        rows=str(rows),
        phases=phases,
        loss=loss,
        generation=generation,
        outputs=_output_errors(expected, actual, rows),
    )


def _tolerance(model: ir.Model, caches: list[Cache], weights: Collection[WeightFormat]) -> float:
    """Bound of the relative error, where `weights` are rounded differently."""
    rounded = [spec_name(BY_FORMAT[form.name]) for form in weights if form.name != "keep"]
    tolerances = [_TOLERANCES[name] for name in (caches[0].activations, *rounded)]
    if any(cache.dtype == np.int8 for cache in caches):
        tolerances.append(_EIGHT_BIT_TOLERANCE)
    if _rounds_activations(model):
        tolerances.append(_TOLERANCES["bfloat16"])
    return max(tolerances)


def _rounds_activations(model: ir.Model) -> bool:
    return any(
        op_spec.is_op(node, op_spec.FLAT_GEMM) and node.attributes.get_int("accuracy_level", 0) == 4
        for node in model.graph.all_nodes()
    )


def _provider(caches: list[Cache], before: list[ir.Node]) -> str:
    provider = provider_for(caches)
    if provider == "CPUExecutionProvider" and any(map(takes_norms, before)):
        raise Unfit("ONNX Runtime normalises query and key heads on GPUs alone, which take no float32")
    return provider


def _first_that_runs(
    graph: Graph, caches: list[Cache], batches: list[Rows], progress: Progress | None
) -> tuple[Rows, Record]:
    """The first rows that the original graph runs on, and what it made of them."""
    *tries, last = batches
    for rows in tries:
        try:
            record = run(graph, caches, rows, [], progress)
        except ExportError:
            continue
        # The last place of a row that ends with padding says nothing.
        if not (record.last_alone and rows.ragged and rows.side == "right"):
            return rows, record
    return last, run(graph, caches, last, [], progress)


def _differences(expected: Record, actual: Record) -> list[Difference]:
    """Over all tokens, or over the last ones where `actual` has no others."""
    want, got = expected.logits, actual.logits
    if actual.last_alone:
        want, got = expected.following, actual.following
    return [_difference("prefill", want[:1], got[:1]), _difference("decode", want[1:], got[1:])]


def _difference(name: str, expected: list[np.ndarray], actual: list[np.ndarray]) -> Difference:
    """Over all steps' logits, each [tokens, vocabulary]."""
    want, got = np.concatenate(expected), np.concatenate(actual)
    largest = float(np.max(np.abs(want)))
    if not 0 < largest < np.inf:
        raise Unfit(f"the original graph's logits are all zero or not finite ({name})")
    error = float(np.max(np.abs(want - got)))
    return Difference(
        name=name,
        tokens=len(want),
        max_abs_error=error,
        relative_error=error / largest,
        top1_agreement=float(np.mean(want.argmax(axis=-1) == got.argmax(axis=-1))),
    )


def _generation(expected: Record, actual: Record, tolerance: float) -> Generation:
    """Both by their own greedy tokens. Two logits, each off by at most the tolerance, may change places."""
    largest = max(float(np.max(np.abs(logits))) for logits in expected.following)
    same, gap = [], 0.0
    for row, (want, got) in enumerate(zip(expected.greedy, actual.greedy, strict=True)):
        differ = np.flatnonzero(want != got)
        same.append(int(differ[0]) if differ.size else len(want))
        if differ.size:
            logits = expected.following[differ[0]][row]
            gap = max(gap, float(logits[want[differ[0]]] - logits[got[differ[0]]]) / largest)
    return Generation(expected.greedy.shape[1], same, gap, 2 * tolerance)


def _output_errors(expected: Record, actual: Record, rows: Rows) -> list[OutputError]:
    """The caches after the last step, where they hold tokens."""
    real = rows.mask(len(expected.fed) - 1)
    errors = []
    for name, want in expected.caches.items():
        want, got = (_tokens_of(cache, real) for cache in (want, actual.caches[name]))
        error = float(np.max(np.abs(want - got)))
        largest = float(np.max(np.abs(want)))
        errors.append(OutputError(name, error, error / largest if largest > 0 else error))
    return errors


def _tokens_of(cache: np.ndarray, real: np.ndarray) -> np.ndarray:
    """float32 [tokens, heads, head size] of [rows, heads, slots, head size]; all slots where they are but a window."""
    by_slot = np.moveaxis(cache, 1, 2).astype(np.float32)
    return by_slot[:, : real.shape[1]][real] if by_slot.shape[1] >= real.shape[1] else by_slot
