"""Small random decoders in the spelling of onnxruntime-genai's builder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

FLOAT, INT32, INT64, FLOAT16 = 1, 6, 7, 10
HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 16
HIDDEN, VOCABULARY, POSITIONS = HEADS * HEAD_SIZE, 96, 64
Edit = Callable[[onnx.ModelProto], None]


def decoder(
    *,
    layers: int = 1,
    dtype: int = FLOAT,
    packed: bool = True,
    tied: bool = True,
    hidden: int = HIDDEN,
    vocabulary: int = VOCABULARY,
    seed: int = 0,
) -> onnx.ModelProto:
    """Layers of attention with rotary and two or four products each; logits [batch, tokens, vocabulary].

    packed: one QKV product. tied: the embedding reads the transposed language model head's weight.
    """
    build = _Builder(dtype, seed)
    build.cos_and_sin()
    build.sequence_lengths()
    build.weight("lm_head.weight", hidden, vocabulary)
    if tied:
        build.node("Transpose", ["lm_head.weight"], "embedding", perm=[1, 0])
    else:
        build.weight("embedding", vocabulary, hidden)
    x = build.node("Gather", ["embedding", "input_ids"], "x.0", name="embed")
    for layer in range(layers):
        x = build.layer(layer, x, hidden, packed)
    build.node("MatMul", [x, "lm_head.weight"], "logits", name="lm_head")
    logits = helper.make_tensor_value_info("logits", dtype, ["batch", "tokens", vocabulary])
    graph = helper.make_graph(
        build.nodes, "decoder", build.inputs, [logits, *build.outputs], build.weights, value_info=build.value_info
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


class _Builder:
    def __init__(self, dtype: int, seed: int) -> None:
        self.dtype = dtype
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.value_info: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.inputs = [
            helper.make_tensor_value_info("input_ids", INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("attention_mask", INT64, ["batch", "total"]),
        ]

    def constant(self, name: str, values: np.ndarray) -> None:
        self.weights.append(numpy_helper.from_array(values, name))

    def weight(self, name: str, rows: int, columns: int) -> None:
        values = self.random.standard_normal((rows, columns), np.float32) / np.sqrt(rows)
        self.constant(name, values.astype(helper.tensor_dtype_to_np_dtype(self.dtype)))

    def node(self, op: str, inputs: list[str], *outputs: str, name: str = "", domain: str = "", **attributes) -> str:
        self.nodes.append(
            helper.make_node(op, inputs, list(outputs), name=name or outputs[0], domain=domain or None, **attributes)
        )
        return outputs[0]

    def product(self, x: str, name: str, rows: int, columns: int) -> str:
        self.weight(f"{name}.weight", rows, columns)
        self.value_info.append(helper.make_tensor_value_info(f"{name}.out", self.dtype, ["batch", "tokens", columns]))
        return self.node("MatMul", [x, f"{name}.weight"], f"{name}.out", name=name)

    def cos_and_sin(self) -> None:
        angles = np.outer(np.arange(POSITIONS), 1e4 ** (-np.arange(HEAD_SIZE // 2) / (HEAD_SIZE // 2)))
        for name, values in (("cos_cache", np.cos(angles)), ("sin_cache", np.sin(angles))):
            self.constant(name, values.astype(helper.tensor_dtype_to_np_dtype(self.dtype)))

    def sequence_lengths(self) -> None:
        self.constant("one", np.array([1], np.int64))
        self.constant("axis", np.array(1, np.int64))
        self.node("ReduceSum", ["attention_mask", "one"], "lengths", keepdims=0)
        self.node("Sub", ["lengths", "one"], "lengths_less_one")
        self.node("Cast", ["lengths_less_one"], "seqlens_k", to=INT32)
        self.node("Shape", ["attention_mask"], "mask_shape")
        self.node("Gather", ["mask_shape", "axis"], "total_long")
        self.node("Cast", ["total_long"], "total", to=INT32)

    def layer(self, layer: int, x: str, hidden: int, packed: bool) -> str:
        prefix, kv_columns = f"layers.{layer}", KV_HEADS * HEAD_SIZE
        if packed:
            qkv = [self.product(x, f"{prefix}.qkv", hidden, HEADS * HEAD_SIZE + 2 * kv_columns), "", ""]
        else:
            columns = {"q": HEADS * HEAD_SIZE, "k": kv_columns, "v": kv_columns}
            qkv = [self.product(x, f"{prefix}.{part}", hidden, count) for part, count in columns.items()]
        past, present = [f"past.{layer}.{part}" for part in "kv"], [f"present.{layer}.{part}" for part in "kv"]
        for name, length, values in (
            *((n, "past", self.inputs) for n in past),
            *((n, "t", self.outputs) for n in present),
        ):
            shape = ["batch", KV_HEADS, length, HEAD_SIZE]
            values.append(helper.make_tensor_value_info(name, self.dtype, shape))
        self.node(
            "GroupQueryAttention",
            [*qkv, *past, "seqlens_k", "total", "cos_cache", "sin_cache", "", "", ""],
            f"{prefix}.attention.out",
            *present,
            name=f"{prefix}.attention",
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            scale=0.25,
            softcap=0.0,
            local_window_size=-1,
            do_rotary=1,
            rotary_interleaved=0,
        )
        out = self.product(f"{prefix}.attention.out", f"{prefix}.o", HEADS * HEAD_SIZE, hidden)
        return self.node("Add", [x, out], f"x.{layer + 1}")


def quantise(
    model: onnx.ModelProto,
    name: str,
    *,
    block_size: int = 16,
    zero_points: bool = False,
    flat: bool = False,
    **attributes: int,
) -> None:
    """Turns the MatMul `name` into a MatMulNBits over random numbers. flat: scales and zero points have one dimension.

    The float weight goes, unless others read it.
    """
    node = node_named(model, name)
    weight = next(w for w in model.graph.initializer if w.name == node.input[1])
    k, n = weight.dims
    blocks = -(-k // block_size)
    random = np.random.default_rng(n * k + block_size)
    values = {"numbers": random.integers(0, 256, (n, blocks, block_size // 2), np.uint8)}
    scales = random.uniform(0.5, 1, (n, blocks)).astype(helper.tensor_dtype_to_np_dtype(weight.data_type)) / 32
    values["scales"] = scales.ravel() if flat else scales
    if zero_points:
        points = random.integers(0, 256, (n, -(-blocks // 2)), np.uint8)
        values["zero_points"] = points.ravel() if flat else points
    model.graph.initializer.extend(numpy_helper.from_array(array, f"{name}.{key}") for key, array in values.items())
    del node.input[1:]
    if not any(weight.name in other.input for other in model.graph.node):
        model.graph.initializer.remove(weight)
    node.input.extend(f"{name}.{key}" for key in values)
    node.op_type, node.domain = "MatMulNBits", "com.microsoft"
    for key, value in ({"N": n, "K": k, "bits": 4, "block_size": block_size} | attributes).items():
        node.attribute.append(helper.make_attribute(key, value))


def with_gates(proto: onnx.ModelProto, layer: int, silu: str = "Sigmoid", **attributes: float) -> None:
    """A feed-forward part behind layer `layer`, gate and up side by side: layers.N.gate, layers.N.up and layers.N.down,
    between the first two x.N+1.silu, of one node "com.microsoft::QuickGelu" or of a Sigmoid, and x.N+1.gated."""
    x, nodes = f"x.{layer + 1}", []
    place = 1 + next(i for i, node in enumerate(proto.graph.node) if x in node.output)
    for node in proto.graph.node[place:]:
        node.input[:] = [f"{x}.mlp" if name == x else name for name in node.input]

    def add(op: str, *inputs: str, output: str, **attributes: float) -> str:
        domain, _, op = op.rpartition("::")
        nodes.append(helper.make_node(op, list(inputs), [output], name=output, domain=domain or None, **attributes))
        return output

    def product(name: str, a: str, rows: int, columns: int) -> str:
        values = np.random.default_rng(len(name) + rows).standard_normal((rows, columns), np.float32) / 20
        proto.graph.initializer.append(numpy_helper.from_array(values, f"{name}.weight"))
        return add("MatMul", a, f"{name}.weight", output=name)

    gate = product(f"layers.{layer}.gate", x, HIDDEN, 2 * HIDDEN)
    up = product(f"layers.{layer}.up", x, HIDDEN, 2 * HIDDEN)
    if silu == "Sigmoid":
        add("Mul", gate, add("Sigmoid", gate, output=f"{x}.sigmoid"), output=f"{x}.silu")
    else:
        add(silu, gate, output=f"{x}.silu", **attributes)
    gated = add("Mul", f"{x}.silu", up, output=f"{x}.gated")
    down = product(f"layers.{layer}.down", gated, 2 * HIDDEN, HIDDEN)
    add("Add", x, down, output=f"{x}.mlp")
    for offset, node in enumerate(nodes):
        proto.graph.node.insert(place + offset, node)


def attention_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The attention nodes of a decoder, in the order of its layers."""
    return [node for node in model.graph.node if "Attention" in node.op_type]


def node_named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node `name`."""
    return next(node for node in model.graph.node if node.name == name)


def ir_node(model: ir.Model, name: str) -> ir.Node:
    """The node `name`."""
    return next(node for node in model.graph if node.name == name)


def add_input(model: onnx.ModelProto, name: str, dtype: int, shape: list[int | str]) -> str:
    """Adds a graph input; returns its name."""
    model.graph.input.append(helper.make_tensor_value_info(name, dtype, shape))
    return name


def save_folder(model: onnx.ModelProto, folder: Path, *, genai: bool = True) -> Path:
    """Writes `folder` as onnxruntime-genai's builder does: model.onnx, model.onnx.data and, with `genai`, the rest."""
    folder.mkdir()
    ir.save(ir.from_proto(model), folder / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=64)
    if genai:
        config = {
            "model": {
                "type": "llama",
                "vocab_size": VOCABULARY,
                "decoder": {"session_options": {"provider_options": []}, "filename": "model.onnx"},
            },
            "search": {"max_length": POSITIONS},
        }
        (folder / "genai_config.json").write_text(json.dumps(config))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_text("{}")
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder
