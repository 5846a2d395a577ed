"""Runs the original and the exported graph in ONNX Runtime on the same tokens and compares their logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from . import op_spec
from .dtypes import BY_FORMAT, spec_name
from .errors import ExportError
from .progress import Progress
from .report import Phase, Verification
from .session import Cache, Unfit, attentions, caches_of, empty_past, feeds_for, open_session, provider_for

_SEED = 20240501
_PROMPT_TOKENS = 17
_DECODE_STEPS = 8
_PADDING = 5  # tokens on the left of a second row, where the graph hides them

# Bounds of max |difference| / max |logit|, by what was rounded differently.
# Same float32 weights: only the order of float32 sums differs; some 1e-6 a layer's product, over tens of layers.
# float16 rounds each weight (or activation) by up to 2^-11 and bfloat16 by up to 2^-8; those errors are independent,
# and the logits gather a few tens of times one of them on the way through the layers.
# A new key or value on the border between two steps of an 8-bit cache may fall on either side: half a 127th of a few.
# At accuracy_level 4 one graph may round activations to int8 where the other does not: by up to 2^-8 of a block's
# largest, which is what bfloat16 does to each.
_TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1.5e-1}
_EIGHT_BIT_TOLERANCE = 2e-2

_BIAS = op_spec.input_names(op_spec.ATTENTION).index("attention_bias")


@dataclass(frozen=True)
class _Graph:
    """One of the two graphs and what its session needs.

    room: tokens that its caches have room for from the beginning; 0: they grow with each run."""

    name: str
    path: Path
    provider: str
    library: Path | None
    room: int = 0


def verify_export(
    model: ir.Model,
    original: Path,
    exported: Path,
    library: Path | None,
    weights: str,
    progress: Progress | None = None,
) -> Verification:
    """Compares the graph files `original` and `exported`; `model` is the exported graph.

    A prompt of random tokens and some decode steps, greedy by the original's logits, the cache passed from each run's
    present outputs to the next one's past inputs; it grows, or has room for all from the beginning where the exported
    graph is in the dense form. One row, and where the graph hides padding by a bias from attention_mask a second one,
    which begins with padding. Where that cannot be done the result says "not verified"
    and why. Raises ExportError if one of the graphs fails to run.
    """
    try:
        caches = caches_of(model)
        dtype = caches[0].activations
        provider = _provider(caches)
        if library is None:
            raise Unfit("no op library was given")
        expected = _run_original(_Graph("original", original, provider, None), caches, _rows(model), progress)
        room = _PROMPT_TOKENS + _DECODE_STEPS if _is_dense(model) else 0
        actual = _run(_Graph("exported", exported, provider, library, room), caches, expected.tokens, progress)
        tolerance = _TOLERANCES[dtype if weights == "keep" else spec_name(BY_FORMAT[weights])]
        if any(cache.dtype == np.int8 for cache in caches):
            tolerance = max(tolerance, _EIGHT_BIT_TOLERANCE)
        if _rounds_activations(model):
            tolerance = max(tolerance, _TOLERANCES["bfloat16"])
        phases = [
            _compare("prefill", expected.logits[:1], actual.logits[:1], tolerance),
            _compare("decode", expected.logits[1:], actual.logits[1:], tolerance),
        ]
    except Unfit as reason:
        return Verification("not verified", str(reason))
    status = "passed" if all(phase.passed for phase in phases) else "failed"
    return Verification(status, provider=provider, phases=phases)


@dataclass(frozen=True)
class _Record:
    """`logits`: float32 [tokens, vocabulary] of each step, without padding; `tokens`: int64 [rows, tokens] that it was
    fed."""

    logits: list[np.ndarray]
    tokens: list[np.ndarray]


def _rows(model: ir.Model) -> int:
    """2 where all attentions hide padding by a bias and nothing says that there is one row alone; otherwise 1."""
    inputs = {value.name: value for value in model.graph.inputs}
    tokens = inputs.get("input_ids")
    if "attention_mask" not in inputs or tokens is None or (tokens.shape and isinstance(tokens.shape[0], int)):
        return 1
    biases = [op_spec.inputs(node)[_BIAS : _BIAS + 1] for node in attentions(model)]
    return 2 if all(bias and bias[0] is not None for bias in biases) else 1


def _is_dense(model: ir.Model) -> bool:
    """Whether `model` is for engines, whose caches do not grow."""
    return any(node.domain == op_spec.DENSE_DOMAIN for node in model.graph.all_nodes())


def _rounds_activations(model: ir.Model) -> bool:
    return any(
        op_spec.is_op(node, op_spec.FLAT_GEMM) and node.attributes.get_int("accuracy_level", 0) == 4
        for node in model.graph.all_nodes()
    )


def _provider(caches: list[Cache]) -> str:
    provider = provider_for(caches)
    if provider == "CPUExecutionProvider" and any(cache.norms for cache in caches):
        raise Unfit("ONNX Runtime normalises query and key heads on GPUs alone, which take no float32")
    return provider


def _run_original(graph: _Graph, caches: list[Cache], rows: int, progress: Progress | None) -> _Record:
    """Steps on random tokens in `rows` rows; in one, if the graph does not run on more."""
    if rows > 1:
        try:
            return _run(graph, caches, rows, progress)
        except ExportError:
            pass
    return _run(graph, caches, 1, progress)


def _run(graph: _Graph, caches: list[Cache], tokens: list[np.ndarray] | int, progress: Progress | None) -> _Record:
    """Prefill and decode steps on `tokens`; a number of rows: random ones, then greedy by the graph's own logits."""
    session = open_session(f"the {graph.name} graph", graph.path, graph.provider, graph.library)
    outputs = {output.name: output for output in session.get_outputs()}
    if "logits" not in outputs:
        raise Unfit("the graph has no output named logits")
    vocabulary = outputs["logits"].shape[-1]
    if not isinstance(vocabulary, int):
        raise Unfit("the vocabulary's size is not in the shape of logits")
    names = ["logits", *(cache.present for cache in caches)]
    rows = tokens if isinstance(tokens, int) else len(tokens[0])
    past = empty_past(caches, rows, graph.room)
    record = _Record([], [])
    step_tokens = np.random.default_rng(_SEED).integers(0, vocabulary, (rows, _PROMPT_TOKENS))
    mask = np.zeros((rows, 0), np.int64)
    for step in range(1 + _DECODE_STEPS):
        step_tokens = step_tokens if isinstance(tokens, int) else tokens[step]
        real = np.ones(step_tokens.shape, np.int64)
        if step == 0:
            real[1:, :_PADDING] = 0
        mask = np.concatenate([mask, real], axis=1)
        feeds = feeds_for(session, _known(step_tokens, mask), past)
        try:
            logits, *present = session.run(names, feeds)
        except Exception as error:  # ONNX Runtime's exception classes share no public base
            raise ExportError(f"verification: the {graph.name} graph fails on step {step}: {error}") from error
        if progress is not None:
            progress(f"running the {graph.name} graph", step + 1, 1 + _DECODE_STEPS)
        record.logits.append(logits[real.astype(bool)].astype(np.float32))
        record.tokens.append(step_tokens)
        past = {cache.past: array for cache, array in zip(caches, present, strict=True)}
        step_tokens = logits[:, -1:].argmax(axis=-1)
    return record


def _known(tokens: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs for the new `tokens` of rows whose tokens, all together, have the attention_mask `mask`."""
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -tokens.shape[1] :],
    }


def _compare(name: str, expected: list[np.ndarray], actual: list[np.ndarray], tolerance: float) -> Phase:
    """Differences over all steps' logits, each [tokens, vocabulary]."""
    want, got = np.concatenate(expected), np.concatenate(actual)
    largest = float(np.max(np.abs(want)))
    if not 0 < largest < np.inf:
        raise Unfit(f"the original graph's logits are all zero or not finite ({name})")
    error = float(np.max(np.abs(want - got)))
    return Phase(
        name=name,
        tokens=len(want),
        max_abs_error=error,
        relative_error=error / largest,
        tolerance=tolerance,
        top1_agreement=float(np.mean(want.argmax(axis=-1) == got.argmax(axis=-1))),
    )
