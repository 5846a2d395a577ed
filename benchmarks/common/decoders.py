"""Decoders with random weights: graphs of two spellings over one file of weights, and folders that onnxruntime-genai,
transformers and fdpp-export take."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx import TensorProto

from common.genai_graph import GenaiGraph
from common.random_weights import write_weights
from common.shapes import GLM, LLAMA, OPT, Shape, layout
from common.standard_graph import StandardGraph

SPELLINGS = {"genai": GenaiGraph, "standard": StandardGraph}
TYPES = {"f16": TensorProto.FLOAT16, "f32": TensorProto.FLOAT}


def write_graph(
    path: Path, shape: Shape, spelling: str, element_type: int = TensorProto.FLOAT16, block_size: int = 0
) -> None:
    """A graph over the weights beside it: layout(shape, element_type, block_size)."""
    onnx.save(SPELLINGS[spelling](shape, element_type, block_size).model(), path)


def write_folder(folder: Path, shape: Shape, dtype: str, block_size: int = 0, *, cuda: bool = True) -> None:
    """A model folder as onnxruntime-genai's builder writes it, with a tokenizer of nothing, and transformers'
    config.json.

    dtype: "f16" or "f32", of activations and, without a `block_size`, of weights; with one, products have weights of 4
    bits in blocks of that size."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, layout(shape, TYPES[dtype], block_size))
    write_graph(folder / "model.onnx", shape, "genai", TYPES[dtype], block_size)
    _write_json(folder / "genai_config.json", _genai_config(shape, cuda))
    _write_json(folder / "config.json", _transformers_config(shape))
    # fdpp-export wants them beside a genai_config.json. Random weights have no text.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        _write_json(folder / name, {})


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _genai_config(shape: Shape, cuda: bool) -> dict:
    names = ["input_ids", "attention_mask", *(["position_ids"] if shape.family == OPT else [])]
    decoder = {
        "session_options": {"provider_options": [{"cuda": {"enable_cuda_graph": "1"}}] if cuda else []},
        "filename": "model.onnx",
        "head_size": shape.head_size,
        "hidden_size": shape.hidden,
        "inputs": {
            **{name: name for name in names},
            "past_key_names": "past.%d.key",
            "past_value_names": "past.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
    }
    model = {
        "type": "llama",  # a decoder with a cache: nothing else follows from it
        "context_length": shape.positions,
        "vocab_size": shape.vocabulary,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "decoder": decoder,
    }
    search = {"do_sample": False, "max_length": shape.positions, "past_present_share_buffer": True}
    return {"model": model, "search": search}


def _transformers_config(shape: Shape) -> dict:
    common = {
        "model_type": shape.family,
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.positions,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    if shape.family == OPT:
        more = {"ffn_dim": shape.intermediate, "word_embed_proj_dim": shape.hidden, "activation_function": "relu"}
        return {**common, **more, "architectures": ["OPTForCausalLM"], "do_layer_norm_before": True}
    gated = {
        "intermediate_size": shape.intermediate,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.theta,
    }
    own = {
        LLAMA: {"architectures": ["LlamaForCausalLM"]},
        GLM: {"architectures": ["GlmForCausalLM"], "attention_bias": True, "partial_rotary_factor": 0.5},
    }
    return {**common, **gated, **own[shape.family]}
