"""Layers on a GPU: the plugin's outputs are those of the op called directly, bit for bit."""

from __future__ import annotations

import threading

import harness
import pytest
import torch
from cases import ATTENTION_CASES, GEMM_CASES, AttentionCase, GemmCase
from harness import AttentionCall, GemmCall
from host import Host, HostError, Plugin, Tensor

from fdpp_ort import _core

pytestmark = pytest.mark.gpu

NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.int8: "int8",
    torch.float8_e4m3fn: "float8",
}
OPS = {spec["name"]: spec for spec in _core.op_specs()}


def in_dense_form(case: GemmCase) -> bool:
    """Rows of B are whole words there, and activations are a GPU's."""
    whole_words = case.weight_format in ("f16", "bf16") or case.shapes()["B"][1] % 4 == 0
    return case.dtype != "float32" and case.accuracy_level == 0 and case.row_gap == 0 and whole_words


GPU_GEMM_CASES = [c for c in GEMM_CASES if in_dense_form(c)][::4]
GPU_ATTENTION_CASES = [
    c for c in ATTENTION_CASES if c.dtype != "float32" and c.cache == "in_place" and c.positions == "slots"
][::6]


def words(x: torch.Tensor) -> torch.Tensor:
    """Bytes as int32: rows of whole words stay rows, others lie on end."""
    flat = x.contiguous().view(torch.uint8)
    if flat.dim() == 2 and flat.shape[1] % 4 == 0:
        return flat.view(torch.int32)
    flat = flat.flatten()
    return torch.nn.functional.pad(flat, (0, -flat.numel() % 4)).view(torch.int32)


class Layer:
    """One layer in an execution context, with its tensors."""

    def __init__(
        self, host: Host, op: str, attributes: dict, inputs: dict[str, torch.Tensor], outputs: list[torch.Tensor]
    ):
        self.names = [p["name"] for p in OPS[op]["inputs"] if inputs.get(p["name"]) is not None]
        self.data = [inputs[name] for name in self.names] + outputs
        self.tensors = [Tensor(NAMES[x.dtype], tuple(x.shape)) for x in self.data]
        built = host.create(op, {**attributes, "inputs": ",".join(self.names)})
        assert all(built.supports(at, self.tensors) for at in range(len(self.tensors)))
        built.configure(self.tensors)
        self.built = built
        self.workspace = harness.random_bytes(built.workspace(self.tensors), self.data[0].device)
        self.context = built.reload().attach()
        self.context.shapes_change(self.tensors)

    def run(self, context: Plugin | None = None, stream: torch.cuda.Stream | None = None) -> None:
        stream = stream or torch.cuda.current_stream()
        addresses = [x.data_ptr() for x in self.data]
        (context or self.context).enqueue(self.tensors, addresses, self.workspace.data_ptr(), stream.cuda_stream)


def gemm_layer(host: Host, case: GemmCase, **more) -> tuple[Layer, GemmCall]:
    call = GemmCall(case, harness.gemm_tensors(case), "cuda")
    inputs = dict(call.inputs)
    if inputs["B"].element_size() == 1:
        inputs["B"] = words(inputs["B"])
    if inputs.get("zero_points") is not None:
        inputs["zero_points"] = words(inputs["zero_points"].flatten())
    inputs["next_weight"] = inputs["B"]  # which changes nothing
    output = torch.full_like(call.outputs["Y"], torch.nan)
    attributes = {k: v for k, v in case.attributes().items() if v is not None}
    return Layer(host, "FdppFlatGemm", {**attributes, **more}, inputs, [output]), call


@pytest.mark.parametrize("case", GPU_GEMM_CASES, ids=str)
def test_product(host: Host, case: GemmCase) -> None:
    layer, call = gemm_layer(host, case)
    call.run()
    layer.run()
    assert harness.same_bits(layer.data[-1], call.outputs["Y"])


def attention_layer(host: Host, case: AttentionCase) -> tuple[Layer, AttentionCall]:
    call = AttentionCall(case, harness.attention_tensors(case), "cuda")
    mask = torch.ones(case.batch, case.total_length, dtype=torch.int64, device="cuda")
    inputs = {k: v.clone() for k, v in call.inputs.items() if isinstance(v, torch.Tensor)}
    inputs["total_sequence_length"] = mask
    outputs = [torch.full_like(call.outputs["output"], torch.nan), inputs["past_key"], inputs["past_value"]]
    attributes = {k: v for k, v in case.attributes().items() if v is not None}
    return Layer(host, "FdppAttention", attributes, inputs, outputs), call


@pytest.mark.parametrize("case", GPU_ATTENTION_CASES, ids=str)
def test_attention(host: Host, case: AttentionCase) -> None:
    layer, call = attention_layer(host, case)
    call.run()
    layer.run()
    for name, output in zip(("output", "present_key", "present_value"), layer.data[-3:], strict=True):
        assert harness.same_bits(output, call.outputs[name]), name


def test_every_tactic(host: Host) -> None:
    """A tactic that does not take the shape makes way."""
    case = next(c for c in GPU_GEMM_CASES if c.weight_format == "f16" and c.m == 1)
    layer, call = gemm_layer(host, case, tactics="timed")
    reference, naive = harness.expected_gemm(case)
    for number in layer.built.tactics():
        layer.context.set_tactic(number)
        layer.data[-1].fill_(torch.nan)
        layer.run()
        call.outputs["Y"] = layer.data[-1]
        call.check(reference, naive)
    with pytest.raises(HostError, match="tactic 7, which this library does not have"):
        layer.context.set_tactic(7)


@pytest.mark.parametrize(
    ("make", "case", "first_output"),
    [(gemm_layer, GPU_GEMM_CASES[0], -1), (attention_layer, GPU_ATTENTION_CASES[0], -3)],
    ids=["product", "attention"],
)
def test_graph_capture(host: Host, make, case: GemmCase | AttentionCase, first_output: int) -> None:
    """A call that allocates GPU memory, in whatever thread, makes the capture fail."""
    layer, call = make(host, case)
    call.run()
    layer.run()
    output = layer.data[first_output]
    expected = output.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="global"):
        layer.run()
    output.fill_(torch.nan)
    graph.replay()
    assert harness.same_bits(output, expected)
    assert harness.same_bits(output, next(iter(call.outputs.values())))


def test_two_contexts_in_two_threads(host: Host) -> None:
    layers = [gemm_layer(host, case) for case in GPU_GEMM_CASES[:2]]
    contexts = [layer.built.attach() for layer, _ in layers]
    for _, call in layers:
        call.run()
    torch.cuda.synchronize()

    def work(layer: Layer, context: Plugin) -> None:
        stream = torch.cuda.Stream()
        for _ in range(200):
            layer.run(context, stream)
        stream.synchronize()

    threads = [
        threading.Thread(target=work, args=(layer, context))
        for (layer, _), context in zip(layers, contexts, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for layer, call in layers:
        assert harness.same_bits(layer.data[-1], call.outputs["Y"])


def test_workspace_is_enough_for_every_number_of_rows(host: Host) -> None:
    """One profile, its workspace asked for once."""
    fields = {"N": 896, "K": 4864, "weight_format": "f16", "inputs": "A,B"}
    plugin = host.create("FdppFlatGemm", fields)
    profile = [Tensor("float16", (300, 4864), (1, 4864)), Tensor("float16", (896, 4864)), Tensor("float16", (300, 896))]
    workspace = plugin.workspace(profile)
    for m in (1, 2, 7, 16, 33, 100, 300):
        shapes = {"A": torch.empty(m, 4864, dtype=torch.float16), "B": torch.empty(896, 4864, dtype=torch.float16)}
        plan = _core.plan_gemm({k: v for k, v in fields.items() if k != "inputs"}, shapes, _core.gpu_device(0))
        assert plan["workspace_bytes"] <= workspace


def test_an_engine_gives_what_it_was_asked_for(host: Host) -> None:
    case = next(c for c in GPU_GEMM_CASES if c.weight_format == "int8")
    layer, _ = gemm_layer(host, case)
    clone = layer.built.clone()
    assert clone.serialised()["workspace"] == layer.built.serialised()["workspace"] == str(layer.workspace.numel())


def test_an_engine_that_gives_too_little(host: Host) -> None:
    """As one that was built beside another table: a kernel that makes do takes the call, or there is an error."""
    layer, call = gemm_layer(
        host, GemmCase(m=300, n=512, k=512, dtype="float16", weight_dtype="float16"), workspace="0"
    )
    assert layer.workspace.numel() > 0, "no kernel that would be chosen needs any"
    layer.run()
    call.outputs["Y"] = layer.data[-1]
    call.check(*harness.expected_gemm(call.case))
    layer, _ = gemm_layer(
        host, GemmCase(m=1, n=96, k=512, dtype="float16", weight_dtype="float16", norm=True), workspace="0"
    )
    with pytest.raises(HostError, match="these shapes need [0-9]+ bytes of workspace, the engine was built to give 0"):
        layer.run()
