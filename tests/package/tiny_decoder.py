"""A decoder of one attention layer in a folder of its own, small enough to make in a test.

Its embedding is as wide as packed query, key and value, so that a row of it goes straight into attention.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tokenizers
from onnx import TensorProto, helper, numpy_helper, save_model

VOCABULARY = 40
HEADS = 4
KV_HEADS = 2
HEAD_SIZE = 32
CONTEXT_LENGTH = 64
EOS = 39
WORDS = {f"w{i}": i for i in range(VOCABULARY - 1)} | {"<eos>": EOS}


def write_folder(folder: Path, ours: bool) -> Path:
    """`ours`: FdppAttention and FdppFlatGemm, otherwise GroupQueryAttention and MatMul, with the same weights."""
    folder.mkdir()
    save_model(_graph(ours), folder / "model.onnx")
    config = {
        "model": {
            "context_length": CONTEXT_LENGTH,
            "eos_token_id": EOS,
            "decoder": {"filename": "model.onnx", "head_size": HEAD_SIZE, "num_key_value_heads": KV_HEADS},
        }
    }
    (folder / "genai_config.json").write_text(json.dumps(config))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _graph(ours: bool):
    random = np.random.default_rng(7)
    width = HEADS * HEAD_SIZE
    embedding = random.standard_normal((VOCABULARY, width + 2 * KV_HEADS * HEAD_SIZE), np.float32)
    head = random.standard_normal((VOCABULARY, width), np.float32)
    angles = np.outer(np.arange(CONTEXT_LENGTH), 100.0 ** -(np.arange(HEAD_SIZE // 2) * 2 / HEAD_SIZE))
    weights = {
        "embedding": embedding,
        "head": head if ours else head.T,
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "one": np.array([1], np.int64),
        "axis": np.array([1], np.int64),
        "second": np.array(1, np.int64),
    }
    cache = ["past_key_values.0.key", "past_key_values.0.value"]
    present = ["present.0.key", "present.0.value"]
    attention_inputs = ["packed", "", "", *cache, "seqlens_k", "total", "cos", "sin"]
    attention = "FdppAttention" if ours else "GroupQueryAttention"
    heads = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": 1}
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["packed"]),
        helper.make_node("ReduceSum", ["attention_mask", "axis"], ["sum"], keepdims=0),
        helper.make_node("Sub", ["sum", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["seqlens_k"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "second"], ["length"]),
        helper.make_node("Cast", ["length"], ["total"], to=TensorProto.INT32),
        helper.make_node(
            attention,
            attention_inputs,
            ["mixed", *present],
            name="attention",
            domain="fdpp" if ours else "com.microsoft",
            **heads,
        ),
    ]
    if ours:
        gemm = {"N": VOCABULARY, "K": width, "weight_format": "f32"}
        head_node = helper.make_node("FdppFlatGemm", ["mixed", "head"], ["logits"], name="head", domain="fdpp", **gemm)
    else:
        head_node = helper.make_node("MatMul", ["mixed", "head"], ["logits"])
    nodes.append(head_node)

    def floats(name: str, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def integers(name: str, *shape):
        return helper.make_tensor_value_info(name, TensorProto.INT64, shape)

    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            integers("input_ids", "batch", "sequence"),
            integers("attention_mask", "batch", "total_length"),
            *(floats(name, "batch", KV_HEADS, "past_length", HEAD_SIZE) for name in cache),
        ],
        [
            floats("logits", "batch", "sequence", VOCABULARY),
            *(floats(name, "batch", KV_HEADS, "present_length", HEAD_SIZE) for name in present),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    domains = [("", 17), ("com.microsoft", 1), ("fdpp", 1)]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*domain) for domain in domains], ir_version=9)
