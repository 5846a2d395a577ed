"""A decoder graph in an ONNX Runtime session, on the CPU or on a CUDA GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fdpp_ort.errors import FdppError
from fdpp_ort.generation.folder import ModelFolder
from fdpp_ort.generation.graphs import advance_graph, extend_graph
from fdpp_ort.library import core, import_onnxruntime, load_table, register, version_of

if TYPE_CHECKING:
    import onnxruntime

    from fdpp_ort._core import GpuStream

PROVIDERS = ("auto", "cpu", "cuda")
TABLE_NAME = "fdpp_table.json"
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_NO_CAPTURE = "-1"
_QUEUES_REPLAYS = (1, 28)  # before, ONNX Runtime waits for a replayed CUDA graph whatever the run's options say

# ONNX's TensorProto.DataType by the name in ONNX Runtime's types.
ELEMENT_TYPES = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(bfloat16)": 16}


@dataclass(frozen=True)
class Cache:
    """One graph input of the KV cache, [B, heads, capacity, head_size], and the output that continues it."""

    past: str
    present: str
    element_type: int  # ONNX's number
    heads: int
    head_size: int


@dataclass(frozen=True)
class Model:
    """A session and what the decode loop must know of its graph."""

    folder: ModelFolder
    session: onnxruntime.InferenceSession
    device: str  # "cpu" or "cuda"
    stream: GpuStream | None  # of this session and those beside it; None: each has its own, and runs wait
    cuda_graph: bool
    input_ids: str
    attention_mask: str
    position_ids: str | None
    logits: str
    logits_type: int  # ONNX's number
    vocabulary: int
    caches: tuple[Cache, ...]

    @cached_property
    def advance(self) -> onnxruntime.InferenceSession:
        """advance_graph() beside the model."""
        return self._beside(advance_graph(self.vocabulary, self.logits_type))

    @cached_property
    def extend(self) -> onnxruntime.InferenceSession:
        """extend_graph() beside the model."""
        return self._beside(extend_graph())

    @property
    def queues(self) -> bool:
        """Whether runs that need not wait return ahead of the device."""
        waits = self.cuda_graph and version_of(import_onnxruntime()) < _QUEUES_REPLAYS
        return self.stream is not None and not waits

    def run(
        self, session: onnxruntime.InferenceSession, binding, graph_id: str | None = None, wait: bool = True
    ) -> None:
        """Runs the model's session or one beside it, behind the runs before, and waits for the device; without `wait`
        it may return earlier. With CUDA graph: captures at the first call with a `graph_id`, for which it runs more
        than once, and replays that later; None: neither. FdppError: it fails."""
        options = import_onnxruntime().RunOptions()
        if not wait and self.stream is not None:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self.cuda_graph:
            options.add_run_config_entry("gpu_graph_id", graph_id or _NO_CAPTURE)
        try:
            session.run_with_iobinding(binding, options)
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise FdppError(f"{self.folder.model_file}: ONNX Runtime failed: {error}") from error

    def wait(self) -> None:
        """Until the device is done with all runs. FdppError: one of them failed."""
        if self.stream is not None:
            with gpu_failures():
                self.stream.wait()

    def _beside(self, graph: bytes) -> onnxruntime.InferenceSession:
        """Never captured: one kernel is launched as fast."""
        options = _session_options(threads=1)
        register(options)
        providers = _providers(self.device == "cuda", cuda_graph=False, stream=self.stream)
        return import_onnxruntime().InferenceSession(graph, options, providers=providers)


@contextmanager
def gpu_failures() -> Iterator[None]:
    """The library's errors of the GPU as FdppError."""
    try:
        yield
    except RuntimeError as error:
        raise FdppError(f"the GPU failed: {error}") from error


def load_model(
    folder: str | Path | ModelFolder,
    provider: str = "auto",
    cuda_graph: bool | None = False,
    threads: int = 0,
) -> Model:
    """Opens a model folder. `provider` auto: CUDA where ONNX Runtime and the machine offer it and the cache is float16
    or bfloat16, otherwise the CPU. `cuda_graph`: decode steps are captured once and replayed (CUDA only); None: on
    CUDA. `threads`: of one operator on the CPU, 0 for ONNX Runtime's own choice.
    FdppError: provider not available, or a graph that cannot be loaded, cannot be captured or is no decoder with a
    cache."""
    if not isinstance(folder, ModelFolder):
        folder = ModelFolder.open(folder)
    _load_table(folder)
    session, stream = _open_session(folder, provider, cuda_graph is not False, threads)
    device = "cuda" if _CUDA in session.get_providers() else "cpu"
    is_float32 = _caches(folder, session)[0].element_type == ELEMENT_TYPES["tensor(float)"]
    if provider == "auto" and device == "cuda" and is_float32:
        session, stream = _open_session(folder, "cpu", False, threads)
        device = "cpu"
    if cuda_graph and device != "cuda":
        raise FdppError("a CUDA graph was requested, but the model runs on the CPU; add --provider cuda")
    return _describe(folder, session, device, stream, cuda_graph is not False and device == "cuda")


def _load_table(folder: ModelFolder) -> None:
    """What fdpp-tune left beside the model, unless the user names another table. ONNX Runtime tells an op nothing of
    where its model lies."""
    table = folder.path / TABLE_NAME
    if not os.environ.get("FDPP_TABLE") and table.is_file():
        load_table(table)


def _open_session(
    folder: ModelFolder, provider: str, cuda_graph: bool, threads: int
) -> tuple[onnxruntime.InferenceSession, GpuStream | None]:
    """The session and, where it runs on a GPU, the stream that was made for it."""
    onnxruntime = import_onnxruntime()
    if provider not in PROVIDERS:
        raise FdppError(f"provider is {provider!r}, expected one of {', '.join(PROVIDERS)}")
    offered = _CUDA in onnxruntime.get_available_providers()
    if provider == "cuda" and not offered:
        raise FdppError(
            f"cuda requested but onnxruntime {onnxruntime.__version__} has no {_CUDA}; install onnxruntime-gpu"
        )
    options = _session_options(threads)
    register(options)
    cuda = provider != "cpu" and offered
    stream = _new_stream() if cuda else None
    providers = _providers(cuda, cuda_graph, stream)
    try:
        session = onnxruntime.InferenceSession(str(folder.model_file), options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise FdppError(f"{folder.model_file}: ONNX Runtime cannot load the model: {error}") from error
    if provider == "cuda" and _CUDA not in session.get_providers():
        raise FdppError("cuda requested but ONNX Runtime could not start it: no GPU, no driver or no CUDA libraries")
    return session, stream if _CUDA in session.get_providers() else None


def _new_stream() -> GpuStream | None:
    """None: the library was built without GPU kernels, or finds no GPU."""
    try:
        return core().GpuStream()
    except (NotImplementedError, RuntimeError):
        return None


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 4  # fatal ones; errors come as exceptions, warnings are for developers
    options.intra_op_num_threads = threads
    return options


def _providers(cuda: bool, cuda_graph: bool, stream: GpuStream | None) -> list:
    if not cuda:
        return [_CPU]
    options = {"enable_cuda_graph": "1" if cuda_graph else "0"}
    if stream is not None:
        options["user_compute_stream"] = str(stream.handle)
    return [(_CUDA, options), _CPU]


def _caches(folder: ModelFolder, session: onnxruntime.InferenceSession) -> tuple[Cache, ...]:
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name for value in session.get_outputs()}
    caches = []
    for layer in range(len(inputs)):
        for kind in ("key", "value"):
            past = folder.inputs[f"past_{kind}_names"] % layer
            present = folder.outputs[f"present_{kind}_names"] % layer
            if past not in inputs or present not in outputs:
                continue
            value = inputs[past]
            shape = value.shape
            if len(shape) != 4 or value.type not in ELEMENT_TYPES:
                raise FdppError(
                    f"{folder.model_file}: {past} is {value.type} {shape}, "
                    "expected float32, float16 or bfloat16 [batch, heads, length, size]"
                )
            heads = _fixed(folder, "number of KV heads", shape[1], folder.kv_heads)
            head_size = _fixed(folder, "head size", shape[3], folder.head_size)
            caches.append(Cache(past, present, ELEMENT_TYPES[value.type], heads, head_size))
    if not caches:
        raise FdppError(f"{folder.model_file}: no KV cache named {folder.inputs['past_key_names']} among its inputs")
    return tuple(caches)


def _fixed(folder: ModelFolder, what: str, in_graph: int | str | None, configured: int | None) -> int:
    """A dimension that the graph may leave open and genai_config.json then states."""
    if isinstance(in_graph, int):
        return in_graph
    if configured is None:
        raise FdppError(f"{folder.path}: neither the graph nor genai_config.json says the {what}")
    return configured


def _describe(
    folder: ModelFolder,
    session: onnxruntime.InferenceSession,
    device: str,
    stream: GpuStream | None,
    cuda_graph: bool,
) -> Model:
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    caches = _caches(folder, session)
    names = folder.inputs
    for role in ("input_ids", "attention_mask"):
        if names[role] not in inputs:
            raise FdppError(f"{folder.model_file}: no input {names[role]!r}; it has {', '.join(list(inputs)[:4])}, ...")
    unknown = set(inputs) - {cache.past for cache in caches}
    unknown -= {names["input_ids"], names["attention_mask"], names["position_ids"]}
    if unknown:
        raise FdppError(f"{folder.model_file}: inputs that a decode loop cannot fill: {', '.join(sorted(unknown))}")
    if folder.outputs["logits"] not in outputs:
        raise FdppError(f"{folder.model_file}: no output {folder.outputs['logits']!r}")
    logits = outputs[folder.outputs["logits"]]
    if logits.type not in ("tensor(float)", "tensor(float16)") or not isinstance(logits.shape[-1], int):
        raise FdppError(
            f"{folder.model_file}: {logits.name} is {logits.type} {logits.shape}, "
            "expected float32 or float16 [batch, sequence, vocabulary]"
        )
    return Model(
        folder=folder,
        session=session,
        device=device,
        stream=stream,
        cuda_graph=cuda_graph,
        input_ids=names["input_ids"],
        attention_mask=names["attention_mask"],
        position_ids=names["position_ids"] if names["position_ids"] in inputs else None,
        logits=logits.name,
        logits_type=ELEMENT_TYPES[logits.type],
        vocabulary=logits.shape[-1],
        caches=caches,
    )
