"""Runs the original and the exported graph in ONNX Runtime on the same tokens and compares their logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from . import op_spec
from .dtypes import BY_FORMAT, spec_name
from .errors import ExportError
from .fuse.attention import activation_dtype, head_size, takes_norms
from .progress import Progress
from .report import Phase, Verification

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

# FdppAttention and what it came from have the same inputs and outputs; a graph may hold both.
_ATTENTIONS = (
    (op_spec.DOMAIN, op_spec.ATTENTION),
    (op_spec.DENSE_DOMAIN, op_spec.ATTENTION),
    ("com.microsoft", "GroupQueryAttention"),
)
_BIAS = op_spec.input_names(op_spec.ATTENTION).index("attention_bias")


class _Unfit(Exception):
    """Why this graph or machine does not allow the comparison."""


@dataclass(frozen=True)
class _Graph:
    """One of the two graphs and what its session needs.

    room: tokens that its caches have room for from the beginning; 0: they grow with each run."""

    name: str
    path: Path
    provider: str
    library: Path | None
    room: int = 0


@dataclass(frozen=True)
class _Cache:
    """Names of one past input and its present output, and what past needs: heads, head size, numpy dtype.

    activations: the attention's other element type, by name. norms: it normalises query and key heads. room: tokens
    that it has room for in any case, its window where it holds no more than that."""

    past: str
    present: str
    heads: int
    head_size: int
    dtype: np.dtype
    activations: str
    norms: bool
    room: int


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
        caches = _caches(model)
        dtype = caches[0].activations
        provider = _provider(caches)
        if library is None:
            raise _Unfit("no op library was given")
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
    except _Unfit as reason:
        return Verification("not verified", str(reason))
    status = "passed" if all(phase.passed for phase in phases) else "failed"
    return Verification(status, provider=provider, phases=phases)


@dataclass(frozen=True)
class _Record:
    """`logits`: float32 [tokens, vocabulary] of each step, without padding; `tokens`: int64 [rows, tokens] that it was
    fed."""

    logits: list[np.ndarray]
    tokens: list[np.ndarray]


def _caches(model: ir.Model) -> list[_Cache]:
    caches = []
    for node in model.graph.all_nodes():
        if (node.domain, node.op_type) not in _ATTENTIONS:
            continue
        inputs = op_spec.inputs(node)
        if len(inputs) < 5 or inputs[3] is None:
            continue
        heads, size = node.attributes.get_int("kv_num_heads", 0), head_size(node)
        ring = node.attributes.get_int("sliding_window_cache", 0)
        room = node.attributes.get_int("local_window_size", 0) if ring else 0
        for past, present in zip(inputs[3:5], node.outputs[1:3], strict=False):
            if not past.is_graph_input() or not present.is_graph_output() or past.dtype is None or size is None:
                raise _Unfit(f"the cache of {node.name} is not an input and an output of the graph with known sizes")
            activations = spec_name(activation_dtype(node) or past.dtype)
            names = (past.name, present.name)
            caches.append(_Cache(*names, heads, size, past.dtype.numpy(), activations, takes_norms(node), room))
    return caches


def _rows(model: ir.Model) -> int:
    """2 where all attentions hide padding by a bias and nothing says that there is one row alone; otherwise 1."""
    inputs = {value.name: value for value in model.graph.inputs}
    tokens = inputs.get("input_ids")
    if "attention_mask" not in inputs or tokens is None or (tokens.shape and isinstance(tokens.shape[0], int)):
        return 1
    attentions = [node for node in model.graph.all_nodes() if (node.domain, node.op_type) in _ATTENTIONS]
    biases = [op_spec.inputs(node)[_BIAS : _BIAS + 1] for node in attentions]
    return 2 if all(bias and bias[0] is not None for bias in biases) else 1


def _is_dense(model: ir.Model) -> bool:
    """Whether `model` is for engines, whose caches do not grow."""
    return any(node.domain == op_spec.DENSE_DOMAIN for node in model.graph.all_nodes())


def _rounds_activations(model: ir.Model) -> bool:
    return any(
        op_spec.is_op(node, op_spec.FLAT_GEMM) and node.attributes.get_int("accuracy_level", 0) == 4
        for node in model.graph.all_nodes()
    )


def _provider(caches: list[_Cache]) -> str:
    try:
        import onnxruntime
    except ImportError as error:
        raise _Unfit("onnxruntime is not installed") from error
    for cache in caches:
        if cache.dtype not in (np.float32, np.float16, np.int8):
            raise _Unfit(f"a {np.dtype(cache.dtype).name} cache cannot be passed from NumPy")
    dtype = caches[0].activations
    if dtype == "float32":
        if any(cache.norms for cache in caches):
            raise _Unfit("ONNX Runtime normalises query and key heads on GPUs alone, which take no float32")
        return "CPUExecutionProvider"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise _Unfit(f"a {dtype} graph needs ONNX Runtime's CUDA provider, which is not available here")
    return "CUDAExecutionProvider"


def _session(graph: _Graph) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        if graph.library is not None:
            options.register_custom_ops_library(str(graph.library))
        session = onnxruntime.InferenceSession(str(graph.path), options, providers=[graph.provider])
    except Exception as error:  # ONNX Runtime's exception classes share no public base
        raise ExportError(f"verification: ONNX Runtime cannot load the {graph.name} graph: {error}") from error
    if graph.provider not in session.get_providers():
        raise _Unfit(f"ONNX Runtime's {graph.provider} does not start here")
    return session


def _run_original(graph: _Graph, caches: list[_Cache], rows: int, progress: Progress | None) -> _Record:
    """Steps on random tokens in `rows` rows; in one, if the graph does not run on more."""
    if rows > 1:
        try:
            return _run(graph, caches, rows, progress)
        except ExportError:
            pass
    return _run(graph, caches, 1, progress)


def _run(graph: _Graph, caches: list[_Cache], tokens: list[np.ndarray] | int, progress: Progress | None) -> _Record:
    """Prefill and decode steps on `tokens`; a number of rows: random ones, then greedy by the graph's own logits."""
    session = _session(graph)
    outputs = {output.name: output for output in session.get_outputs()}
    if "logits" not in outputs:
        raise _Unfit("the graph has no output named logits")
    *_, vocabulary = outputs["logits"].shape or [None]
    if not isinstance(vocabulary, int) or vocabulary < 1:
        raise _Unfit("the vocabulary's size is not in the shape of logits")
    names = ["logits", *(cache.present for cache in caches)]
    rows = tokens if isinstance(tokens, int) else len(tokens[0])
    past = {
        cache.past: np.zeros((rows, cache.heads, cache.room or graph.room, cache.head_size), cache.dtype)
        for cache in caches
    }
    record = _Record([], [])
    step_tokens = np.random.default_rng(_SEED).integers(0, vocabulary, (rows, _PROMPT_TOKENS))
    mask = np.zeros((rows, 0), np.int64)
    for step in range(1 + _DECODE_STEPS):
        step_tokens = step_tokens if isinstance(tokens, int) else tokens[step]
        real = np.ones(step_tokens.shape, np.int64)
        if step == 0:
            real[1:, :_PADDING] = 0
        mask = np.concatenate([mask, real], axis=1)
        feeds = _feeds(session, step_tokens, mask, past)
        try:
            logits, *present = session.run(names, feeds)
        except Exception as error:  # as in _session
            raise ExportError(f"verification: the {graph.name} graph fails on step {step}: {error}") from error
        if logits.shape[:2] != step_tokens.shape:
            raise ExportError(
                f"verification: the {graph.name} graph's logits have shape {list(logits.shape)} for tokens of shape "
                f"{list(step_tokens.shape)}"
            )
        if progress is not None:
            progress(f"running the {graph.name} graph", step + 1, 1 + _DECODE_STEPS)
        record.logits.append(logits[real.astype(bool)].astype(np.float32))
        record.tokens.append(step_tokens)
        past = {cache.past: array for cache, array in zip(caches, present, strict=True)}
        step_tokens = logits[:, -1:].argmax(axis=-1)
    return record


def _feeds(session: Any, tokens: np.ndarray, mask: np.ndarray, past: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values of all inputs for the new `tokens` of rows whose tokens, all together, have the attention_mask `mask`."""
    known = {
        "input_ids": tokens,
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -tokens.shape[1] :],
    }
    feeds = dict(past)
    for item in session.get_inputs():
        if item.name in feeds:
            continue
        if item.name not in known or item.type not in ("tensor(int64)", "tensor(int32)"):
            raise _Unfit(f"no values are known for the graph's input {item.name} ({item.type})")
        feeds[item.name] = known[item.name].astype(np.int64 if item.type == "tensor(int64)" else np.int32)
    return feeds


def _compare(name: str, expected: list[np.ndarray], actual: list[np.ndarray], tolerance: float) -> Phase:
    """Differences over all steps' logits, each [tokens, vocabulary]."""
    want, got = np.concatenate(expected), np.concatenate(actual)
    largest = float(np.max(np.abs(want)))
    if not 0 < largest < np.inf:
        raise _Unfit(f"the original graph's logits are all zero or not finite ({name})")
    error = float(np.max(np.abs(want - got)))
    return Phase(
        name=name,
        tokens=len(want),
        max_abs_error=error,
        relative_error=error / largest,
        tolerance=tolerance,
        top1_agreement=float(np.mean(want.argmax(axis=-1) == got.argmax(axis=-1))),
    )
