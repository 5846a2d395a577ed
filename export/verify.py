"""Runs the original and the exported graph in ONNX Runtime on the same tokens and compares their logits."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from . import op_spec
from .dtypes import BY_FORMAT, spec_name
from .errors import ExportError
from .fuse.attention import activation_dtype, head_size, takes_norms
from .progress import Progress
from .reference import write_reference
from .report import Difference, Phase, Verification
from .weight_format import WeightFormat

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

    activations: the attention's other element type, by name."""

    past: str
    present: str
    heads: int
    head_size: int
    dtype: np.dtype
    activations: str


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
    present outputs to the next one's past inputs; it grows, or has room for all from the beginning where the exported
    graph is in the dense form. One row, and where the graph hides padding by a bias from attention_mask a second one,
    which begins with padding. Where weights are quantised, what is judged is the difference to the original graph with
    the values that are stored, which is written beside `exported` meanwhile; the difference to the original itself is
    reported. Where that cannot be done the result says "not verified" and why. Raises ExportError if one of the graphs
    fails to run.
    """
    try:
        return _verification(model, original, exported, library, weights, changed, progress)
    except _Unfit as reason:
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
    caches = _caches(model)
    provider = _provider(caches, original)
    if library is None:
        raise _Unfit("no op library was given")
    first = expected = _run_original(_Graph("original", original, provider, None), caches, _rows(model), progress)
    quantised = bool(changed) and any(form.quantised for form in weights)
    if quantised:
        with tempfile.TemporaryDirectory(dir=exported.parent, prefix=".reference.") as folder:
            reference = write_reference(original, changed, Path(folder), progress)
            expected = _run(_Graph("reference", reference, provider, None), caches, first.tokens, progress)
    room = _PROMPT_TOKENS + _DECODE_STEPS if _is_dense(model) else 0
    actual = _run(_Graph("exported", exported, provider, library, room), caches, first.tokens, progress)
    tolerance = _tolerance(model, caches, () if quantised else weights)
    phases = [Phase(**asdict(difference), tolerance=tolerance) for difference in _differences(expected, actual)]
    status = "passed" if all(phase.passed for phase in phases) else "failed"
    loss = _differences(first, actual) if quantised else []
    return Verification(status, provider=provider, phases=phases, loss=loss)


def _tolerance(model: ir.Model, caches: list[_Cache], weights: Collection[WeightFormat]) -> float:
    """Bound of the relative error, where `weights` are rounded differently."""
    rounded = [spec_name(BY_FORMAT[form.name]) for form in weights if form.name != "keep"]
    tolerances = [_TOLERANCES[name] for name in (caches[0].activations, *rounded)]
    if any(cache.dtype == np.int8 for cache in caches):
        tolerances.append(_EIGHT_BIT_TOLERANCE)
    if _rounds_activations(model):
        tolerances.append(_TOLERANCES["bfloat16"])
    return max(tolerances)


@dataclass(frozen=True)
class _Record:
    """`logits`: float32 [tokens, vocabulary] of each step, without padding; `last`: of each row's last token, [rows,
    vocabulary]; `tokens`: int64 [rows, tokens] that it was fed."""

    logits: list[np.ndarray]
    last: list[np.ndarray]
    tokens: list[np.ndarray]


def _attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if (node.domain, node.op_type) in _ATTENTIONS]


def _caches(model: ir.Model) -> list[_Cache]:
    caches = []
    for node in _attentions(model):
        inputs = op_spec.inputs(node)
        if len(inputs) < 5 or inputs[3] is None:
            continue
        heads, size = node.attributes.get_int("kv_num_heads", 0), head_size(node)
        for past, present in zip(inputs[3:5], node.outputs[1:3], strict=False):
            if not past.is_graph_input() or not present.is_graph_output() or past.dtype is None or size is None:
                raise _Unfit(f"the cache of {node.name} is not an input and an output of the graph with known sizes")
            activations = spec_name(activation_dtype(node) or past.dtype)
            names = (past.name, present.name)
            caches.append(_Cache(*names, heads, size, past.dtype.numpy(), activations))
    return caches


def _rows(model: ir.Model) -> int:
    """2 where all attentions hide padding by a bias and nothing says that there is one row alone; otherwise 1."""
    inputs = {value.name: value for value in model.graph.inputs}
    tokens = inputs.get("input_ids")
    if "attention_mask" not in inputs or tokens is None or (tokens.shape and isinstance(tokens.shape[0], int)):
        return 1
    biases = [op_spec.inputs(node)[_BIAS : _BIAS + 1] for node in _attentions(model)]
    return 2 if all(bias and bias[0] is not None for bias in biases) else 1


def _is_dense(model: ir.Model) -> bool:
    """Whether `model` is for engines, whose caches do not grow."""
    return any(node.domain == op_spec.DENSE_DOMAIN for node in model.graph.all_nodes())


def _rounds_activations(model: ir.Model) -> bool:
    return any(
        op_spec.is_op(node, op_spec.FLAT_GEMM) and node.attributes.get_int("accuracy_level", 0) == 4
        for node in model.graph.all_nodes()
    )


def _provider(caches: list[_Cache], original: Path) -> str:
    try:
        import onnxruntime
    except ImportError as error:
        raise _Unfit("onnxruntime is not installed") from error
    for cache in caches:
        if cache.dtype not in (np.float32, np.float16, np.int8):
            raise _Unfit(f"a {np.dtype(cache.dtype).name} cache cannot be passed from NumPy")
    dtype = caches[0].activations
    if dtype == "float32":
        if any(map(takes_norms, _attentions(ir.load(original)))):
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
    vocabulary = outputs["logits"].shape[-1]
    if not isinstance(vocabulary, int):
        raise _Unfit("the vocabulary's size is not in the shape of logits")
    names = ["logits", *(cache.present for cache in caches)]
    rows = tokens if isinstance(tokens, int) else len(tokens[0])
    past = {cache.past: np.zeros((rows, cache.heads, graph.room, cache.head_size), cache.dtype) for cache in caches}
    record = _Record([], [], [])
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
        if progress is not None:
            progress(f"running the {graph.name} graph", step + 1, 1 + _DECODE_STEPS)
        logits = logits.astype(np.float32)
        record.logits.append(logits[real[:, -logits.shape[1] :].astype(bool)])
        record.last.append(logits[:, -1])
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


def _differences(expected: _Record, actual: _Record) -> list[Difference]:
    """Over all tokens, or over the last ones where `actual` has no others."""
    want, got = expected.logits, actual.logits
    if len(want[0]) != len(got[0]):
        want, got = expected.last, actual.last
    return [_difference("prefill", want[:1], got[:1]), _difference("decode", want[1:], got[1:])]


def _difference(name: str, expected: list[np.ndarray], actual: list[np.ndarray]) -> Difference:
    """Over all steps' logits, each [tokens, vocabulary]."""
    want, got = np.concatenate(expected), np.concatenate(actual)
    largest = float(np.max(np.abs(want)))
    if not 0 < largest < np.inf:
        raise _Unfit(f"the original graph's logits are all zero or not finite ({name})")
    error = float(np.max(np.abs(want - got)))
    return Difference(
        name=name,
        tokens=len(want),
        max_abs_error=error,
        relative_error=error / largest,
        top1_agreement=float(np.mean(want.argmax(axis=-1) == got.argmax(axis=-1))),
    )
