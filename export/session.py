"""The graph of a decoder in an ONNX Runtime session: its caches, a provider that runs it, values for its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from . import op_spec
from .attention_node import activation_dtype, head_size
from .decoder_inputs import MASK, Call
from .dtypes import spec_name
from .errors import ExportError

# FdppAttention and what it came from have the same inputs and outputs; a graph may hold both.
_ATTENTIONS = (
    (op_spec.DOMAIN, op_spec.ATTENTION),
    (op_spec.DENSE_DOMAIN, op_spec.ATTENTION),
    ("com.microsoft", "GroupQueryAttention"),
)


class Unfit(Exception):
    """Why this graph or machine does not allow a run."""


@dataclass(frozen=True)
class Cache:
    """Names of one past input and its present output, and what past needs: heads, head size, numpy dtype.

    activations: the attention's other element type, by name. room: tokens that it has room for in any case, its window
    where it holds no more than that."""

    past: str
    present: str
    heads: int
    head_size: int
    dtype: np.dtype
    activations: str
    room: int


def attentions(model: ir.Model) -> list[ir.Node]:
    """The attentions of `model`, ours and GroupQueryAttention."""
    return [node for node in model.graph.all_nodes() if (node.domain, node.op_type) in _ATTENTIONS]


def caches_of(model: ir.Model) -> list[Cache]:
    """Keys' and values' caches of all attentions that have any; raises Unfit for one of unknown sizes."""
    caches = []
    for node in attentions(model):
        inputs = op_spec.inputs(node)
        if len(inputs) < 5 or inputs[3] is None:
            continue
        heads, size = node.attributes.get_int("kv_num_heads", 0), head_size(node)
        ring = node.attributes.get_int("sliding_window_cache", 0)
        room = node.attributes.get_int("local_window_size", 0) if ring else 0
        for past, present in zip(inputs[3:5], node.outputs[1:3], strict=False):
            if not past.is_graph_input() or not present.is_graph_output() or past.dtype is None or size is None:
                raise Unfit(f"the cache of {node.name} is not an input and an output of the graph with known sizes")
            caches.append(
                Cache(
                    past.name,
                    present.name,
                    heads,
                    size,
                    past.dtype.numpy(),
                    activations=spec_name(activation_dtype(node) or past.dtype),
                    room=room,
                )
            )
    return caches


def stated_room(model: ir.Model, caches: list[Cache]) -> int | None:
    """Tokens for which all caches have room, by the sizes of the inputs of `model`; None: they do not say."""
    shapes = {value.name: tuple(value.shape or ()) for value in model.graph.inputs}
    sizes = [size for cache in caches if not cache.room for size in shapes[cache.past][2:3]]
    return min((size for size in sizes if isinstance(size, int)), default=None)


def provider_for(caches: list[Cache]) -> str:
    """ONNX Runtime's provider for graphs with these caches; raises Unfit where there is none."""
    try:
        import onnxruntime
    except ImportError as error:
        raise Unfit("onnxruntime is not installed") from error
    for cache in caches:
        if cache.dtype not in (np.float32, np.float16, np.int8):
            raise Unfit(f"a {np.dtype(cache.dtype).name} cache cannot be passed from NumPy")
    dtype = caches[0].activations
    if dtype == "float32":
        return "CPUExecutionProvider"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise Unfit(f"a {dtype} graph needs ONNX Runtime's CUDA provider, which is not available here")
    return "CUDAExecutionProvider"


def open_session(what: str, path: Path, provider: str, library: Path | None) -> Any:
    """A session of the graph at `path`, which errors call `what`, with the ops of `library`.

    Raises ExportError where ONNX Runtime refuses it and Unfit where the provider does not start.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        if library is not None:
            options.register_custom_ops_library(str(library))
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exception classes share no public base
        raise ExportError(f"ONNX Runtime cannot load {what}: {error}") from error
    if provider not in session.get_providers():
        raise Unfit(f"ONNX Runtime's {provider} does not start here")
    return session


def takes_one_token(session: Any) -> bool:
    """Whether a run takes one token a row; raises Unfit where it takes another number, which the graph fixes."""
    shape = next((item.shape for item in session.get_inputs() if item.name == "input_ids"), [])
    tokens = shape[1] if len(shape) == 2 else None
    if isinstance(tokens, int) and tokens != 1:
        raise Unfit(f"the graph takes {tokens} tokens at once")
    return tokens == 1


def empty_past(session: Any, caches: list[Cache], rows: int, tokens: int) -> dict[str, np.ndarray]:
    """Values of the past inputs before the first token. Caches of which the graph says that past and present are as
    large have room for `tokens` tokens, or for as many as it says; others grow with each run, from none."""
    ports = (*session.get_inputs(), *session.get_outputs())
    slots = {port.name: port.shape[2] if len(port.shape) > 2 else None for port in ports}
    past = {}
    for cache in caches:
        stays = slots[cache.past] is not None and slots[cache.past] == slots[cache.present]
        room = slots[cache.past] if isinstance(slots[cache.past], int) else tokens * stays
        past[cache.past] = np.zeros((rows, cache.heads, cache.room or room, cache.head_size), cache.dtype)
    return past


def feeds_for(session: Any, tokens: np.ndarray, call: Call, past: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values of all inputs of the session, input_ids `tokens` among them; raises Unfit for one that is not known."""
    feeds, known, sizes = dict(past), {"input_ids": [tokens], **call.inputs()}, {}
    for item in session.get_inputs():
        sizes.update(zip(item.shape, past[item.name].shape, strict=False) if item.name in past else ())
    for item in session.get_inputs():
        if item.name in feeds:
            continue
        forms = known.get(item.name, [])
        # An input of unknown rank, too, has the shape [].
        fits = [form for form in forms if form.ndim == len(item.shape)] or ([] if item.shape else forms)
        if not fits or item.type not in ("tensor(int64)", "tensor(int32)"):
            raise Unfit(f"no values are known for the graph's input {item.name} ({item.type})")
        array = fits[0]
        if item.name == MASK:
            array = _widened(array, item.shape[-1] if item.shape else None, sizes)
        feeds[item.name] = array.astype(np.int64 if item.type == "tensor(int64)" else np.int32)
    return feeds


def _widened(mask: np.ndarray, columns: int | str | None, sizes: dict[int | str | None, int]) -> np.ndarray:
    """`mask` with as many columns as the graph says, in a number or in the name of a dimension of caches."""
    wanted = columns if isinstance(columns, int) else sizes.get(columns, 0) if columns is not None else 0
    return np.pad(mask, ((0, 0), (0, max(0, wanted - mask.shape[1]))))
