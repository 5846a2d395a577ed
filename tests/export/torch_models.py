"""Small random decoders of transformers, made ONNX in the ways in which people do it, with free batch and lengths."""

from __future__ import annotations

from pathlib import Path

import torch
from chatglm import ChatGlm
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PretrainedConfig, StaticCache

VOCABULARY, LAYERS, HEADS, HEAD_SIZE = 96, 2, 4, 16
ROOM = 32  # of caches of a fixed size
_HIDDEN = HEADS * HEAD_SIZE
_USUAL = {
    "hidden_size": _HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": HEAD_SIZE,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
_WINDOW = 6
_EVERY_OTHER = {"sliding_window": _WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
# transformers' name of the architecture, and what differs from the usual.
_MODELS = {
    "Llama 2": ("llama", {"num_key_value_heads": HEADS}),
    "Llama 3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "SmolLM2": ("llama", {"tie_word_embeddings": True}),
    "Mistral": ("mistral", {"sliding_window": _WINDOW}),
    "Qwen2.5": ("qwen2", {}),
    "Qwen3": ("qwen3", {}),
    "Qwen3, biases": ("qwen3", {"attention_bias": True}),
    "Phi-3": (
        "phi3",
        {
            "partial_rotary_factor": 0.5,
            "hidden_size": 2 * _HIDDEN,
            "head_dim": 2 * HEAD_SIZE,
            "original_max_position_embeddings": 128,
        },
    ),
    "Phi-3 long": (
        "phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * (HEAD_SIZE // 2),
                "long_factor": [2.0] * (HEAD_SIZE // 2),
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "Gemma 2": ("gemma2", {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 20, **_EVERY_OTHER}),
    "Gemma 3": ("gemma3_text", {"head_dim": 256, "query_pre_attn_scalar": 20, **_EVERY_OTHER}),
    "GLM": ("glm", {"partial_rotary_factor": 0.5}),
    "gpt-oss": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            **_EVERY_OTHER,
        },
    ),
    "DeepSeek-V3": (
        "deepseek_v3",
        {
            "num_key_value_heads": HEADS,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "head_dim": 8,
            "v_head_dim": 16,
            "first_k_dense_replace": LAYERS,
        },
    ),
    "OPT": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": _HIDDEN, "num_key_value_heads": HEADS}),
}


def model(name: str, attention: str = "sdpa") -> torch.nn.Module:
    """A model like `name`, always the same numbers. attention: transformers' implementation."""
    torch.manual_seed(0)
    if name == "ChatGLM2":
        sizes = {"layers": LAYERS, "heads": HEADS, "groups": 2, "head_size": 2 * HEAD_SIZE, "vocabulary": VOCABULARY}
        return ChatGlm(**sizes, positions=256).eval()
    architecture, differences = _MODELS[name]
    config = AutoConfig.for_model(architecture, **(_USUAL | differences))
    # The other implementations of experts have no counterpart in ONNX.
    experts = {"experts_implementation": "batched_mm"} if name == "gpt-oss" else {}
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, **experts).eval()


class _Decoder(torch.nn.Module):
    """The model with tensors alone as inputs and outputs, in optimum's order."""

    def __init__(self, inner: torch.nn.Module, position_ids: bool) -> None:
        super().__init__()
        self.inner, self.position_ids = inner, position_ids

    def forward(self, input_ids, attention_mask, *rest):
        position_ids, past = (rest[0], rest[1:]) if self.position_ids else (None, rest)
        cache = DynamicCache()
        for layer in range(self.inner.config.num_hidden_layers):
            cache.update(*past[2 * layer : 2 * layer + 2], layer)
        options = {"position_ids": position_ids} if self.position_ids else {}
        out = self.inner(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **options
        )
        return out.logits, *(part for layer in cache.layers for part in (layer.keys, layer.values))


def _cache_sizes(config: PretrainedConfig) -> tuple[int, int, int]:
    """Heads in the caches, and columns of one in that of keys and in that of values."""
    if hasattr(config, "kv_lora_rank"):  # latent values and the rotated part of keys
        return 1, config.kv_lora_rank, config.qk_rope_head_dim
    size = getattr(config, "head_dim", HEAD_SIZE)
    return getattr(config, "num_key_value_heads", HEADS), size, size


def to_onnx(inner: torch.nn.Module, path: Path, *, opset: int, position_ids: bool, dynamo: bool = True) -> Path:
    """torch.onnx.export of `inner` to `path`, with optimum's names. position_ids: the graph has that input.

    dynamo: the exporter of today; without it the one that optimum uses.
    """
    kv_heads, *sizes = _cache_sizes(inner.config)
    batch, tokens, past = 2, 3, 5
    layers = range(inner.config.num_hidden_layers)
    names = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]
    examples = {
        "input_ids": torch.ones(batch, tokens, dtype=torch.int64),
        "attention_mask": torch.ones(batch, past + tokens, dtype=torch.int64),
    }
    axes = {"input_ids": {0: "batch", 1: "tokens"}, "attention_mask": {0: "batch", 1: "total"}}
    if position_ids:
        examples["position_ids"] = torch.arange(past, past + tokens)[None].repeat(batch, 1)
        axes["position_ids"] = axes["input_ids"]
    for name in names:
        examples[f"past_key_values.{name}"] = torch.randn(batch, kv_heads, past, sizes[name.endswith("value")])
        axes[f"past_key_values.{name}"] = {0: "batch", 2: "past"}
    # Positional, since the decoder takes any number of caches.
    shapes = {"dynamic_shapes": (axes["input_ids"], axes["attention_mask"], tuple(list(axes.values())[2:]))}
    torch.onnx.export(
        _Decoder(inner, position_ids),
        tuple(examples.values()),
        path,
        opset_version=opset,
        input_names=list(examples),
        output_names=["logits", *(f"present.{name}" for name in names)],
        **({"dynamo": True, "external_data": False} | shapes if dynamo else {"dynamo": False, "dynamic_axes": axes}),
    )
    return path


def optimised(source: Path, inner: torch.nn.Module) -> Path:
    """`source`, a graph of `inner`, as ONNX Runtime's optimizer of transformers makes it."""
    from onnxruntime.transformers.optimizer import optimize_model

    sizes = {"num_heads": inner.config.num_attention_heads, "hidden_size": inner.config.hidden_size}
    path = source.with_name("optimised.onnx")
    optimize_model(str(source), model_type="gpt2", opt_level=1, **sizes).save_model_to_file(str(path))
    return path


class _StaticDecoder(torch.nn.Module):
    """The model with caches of ROOM tokens, into which new ones are written at cache_position."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, attention_mask, cache_position, *past):
        cache = StaticCache(config=self.inner.config, max_cache_len=ROOM)
        for layer, keys, values in zip(cache.layers, past[::2], past[1::2], strict=True):
            layer.keys, layer.values, layer.device, layer.is_initialized = keys, values, keys.device, True
            layer.cumulative_length = cache_position[:1].clone()  # grows by itself
        out = self.inner(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
            position_ids=cache_position[None],
        )
        return out.logits, *(part for layer in cache.layers for part in (layer.keys, layer.values))


def with_static_cache(inner: torch.nn.Module, path: Path, *, opset: int) -> Path:
    """torch.onnx.export of `inner` with transformers' StaticCache to `path`."""
    names = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    past = [torch.randn(2, inner.config.num_key_value_heads, ROOM, HEAD_SIZE) for _ in names]
    mask, positions = torch.ones(2, ROOM, dtype=torch.int64), torch.arange(5, 8)
    tokens, batch = {0: "tokens"}, {0: "batch"}
    torch.onnx.export(
        _StaticDecoder(inner),
        (torch.ones(2, 3, dtype=torch.int64), mask, positions, *past),
        path,
        opset_version=opset,
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: "batch", 1: "tokens"}, batch, tokens, tuple(batch for _ in names)),
        input_names=["input_ids", "attention_mask", "cache_position", *(f"past_key_values.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
    )
    return path


def with_transformers(inner: torch.nn.Module, folder: Path, fusions: str | None = None) -> Path:
    """The folder that transformers' own exporter writes, graph and config.json. fusions: as for that provider."""
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    batch, tokens, past = 2, 3, 5
    cache = DynamicCache()
    kv_heads, *sizes = _cache_sizes(inner.config)
    for layer in range(inner.config.num_hidden_layers):
        cache.update(*(torch.randn(batch, kv_heads, past, size) for size in sizes), layer)
    inputs = {
        "input_ids": torch.ones(batch, tokens, dtype=torch.int64),
        "attention_mask": torch.ones(batch, past + tokens, dtype=torch.int64),
        "position_ids": torch.arange(past, past + tokens)[None].repeat(batch, 1),
        "past_key_values": cache,
        "use_cache": True,
    }
    OnnxExporter().export(inner, inputs, config=OnnxConfig(dynamic=True, ort_fusions=fusions)).save_pretrained(folder)
    return folder
