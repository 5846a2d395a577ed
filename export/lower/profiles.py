"""Shapes that an engine is built for: two optimisation profiles, prefill and decode, and the commands that build it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from .. import op_spec
from ..attention_node import activation_dtype
from ..errors import ExportError

PROFILES_FILE = "profiles.json"
_PLUGIN = "libfdpp_trt.so"
_ENGINE = "model.engine"
_USUAL_PROMPT = 512
_USUAL_LENGTH = 2048

# What the dimensions of a graph input are; those of the caches are _CACHE.
_DIMENSIONS = {
    "input_ids": ("batch", "sequence"),
    "position_ids": ("batch", "sequence"),
    "attention_mask": ("batch", "total"),
}
_CACHE = ("batch", "heads", "capacity", "head size")

# min, opt and max of a dimension, and of an input's shape.
Range = tuple[int, int, int]
Profile = dict[str, dict[str, list[int]]]
_BOUNDS = ("min", "opt", "max")


@dataclass(frozen=True)
class Limits:
    """The most that an engine takes: rows at once, and tokens in a row, for which the caches have room."""

    batch: int
    length: int

    def profiles(self) -> dict[str, dict[str, Range]]:
        """The dimensions of each profile. Caches are as long as the longest row, always."""
        prompt = min(_USUAL_PROMPT, self.length)
        always = {"batch": (1, self.batch, self.batch), "capacity": (self.length,) * 3}
        return {
            "prefill": {**always, "sequence": (1, prompt, self.length), "total": (1, prompt, self.length)},
            "decode": {**always, "sequence": (1, 1, 1), "total": (1, max(self.length // 2, 1), self.length)},
        }


def engine_limits(model: ir.Model, config: dict[str, Any] | None, batch: int | None, length: int | None) -> Limits:
    """What the user asks for; otherwise a batch of 1 and the context length of `config` (genai_config.json), or 2048,
    as far as the rotary embedding has positions."""
    positions = _positions(model)
    if length is None:
        length = (config or {}).get("model", {}).get("context_length", _USUAL_LENGTH)
        length = min(length, positions or length)
    elif positions is not None and length > positions:
        raise ExportError(f"max_length is {length}, but cos_cache has {positions} positions")
    return Limits(1 if batch is None else batch, length)


def write_profiles(model: ir.Model, limits: Limits, graph: str, path: Path, *, for_8_6: bool) -> None:
    """Writes `path`: the shapes of the inputs of the file `graph` in each profile, and commands that build an engine.

    for_8_6: TensorRT 8.6 takes the graph, too.
    """
    inputs = _dynamic_inputs(model)
    profiles = {name: _profile(inputs, ranges) for name, ranges in limits.profiles().items()}
    commands = {"10": _trtexec_10(graph, profiles, _precision(model, "--stronglyTyped"))}
    if for_8_6:
        commands["8.6"] = _trtexec_8_6(graph, profiles)
    content = {
        "max_batch": limits.batch,
        "max_length": limits.length,
        "profiles": profiles,
        "trtexec": commands,
        "polygraphy": _polygraphy(graph, profiles, _precision(model, "--strongly-typed")),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if op_spec.is_op(node, op_spec.ATTENTION)]


def _positions(model: ir.Model) -> int | None:
    """Rows of the shortest cos_cache; None: nobody states how many."""
    tables = [op_spec.inputs(node)[7] for node in _attentions(model)]
    rows = [table.shape[0] for table in tables if table is not None and table.shape]
    return min((count for count in rows if isinstance(count, int)), default=None)


def _dynamic_inputs(model: ir.Model) -> dict[str, list[int | str]]:
    """The dimensions of each graph input that has one of no fixed size: numbers, and names as in Limits.profiles."""
    caches = [past for node in _attentions(model) for past in op_spec.inputs(node)[3:5]]
    found = {}
    for value in model.graph.inputs:
        if value.is_initializer() or (value.shape is not None and value.shape.is_static()):
            continue
        names = _CACHE if value in caches else _DIMENSIONS.get(value.name)
        if names is None or value.shape is None or len(value.shape) != len(names):
            expected = f"{list(names)}" if names else f"fixed sizes, or one of {', '.join(_DIMENSIONS)}"
            raise ExportError(f"graph input {value.name} has shape {value.shape}, expected {expected}")
        found[value.name] = [
            size if isinstance(size, int) else name for size, name in zip(value.shape, names, strict=True)
        ]
    return found


def _profile(inputs: dict[str, list[int | str]], ranges: dict[str, Range]) -> Profile:
    return {
        name: {
            bound: [size if isinstance(size, int) else ranges[size][i] for size in dimensions]
            for i, bound in enumerate(_BOUNDS)
        }
        for name, dimensions in inputs.items()
    }


def _precision(model: ir.Model, as_typed: str) -> str:
    """The option by which TensorRT computes in the graph's own types, norms in float32. A graph of float32 has to be
    rounded instead: on a GPU our kernels take no float32 activations."""
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return as_typed if activation_dtype(_attentions(model)[0]) in halves else "--fp16"


def _trtexec_10(graph: str, profiles: dict[str, Profile], precision: str) -> str:
    words = ["trtexec", f"--onnx={graph}", f"--saveEngine={_ENGINE}", precision, f"--dynamicPlugins={_PLUGIN}"]
    for index, profile in enumerate(profiles.values()):
        words += [f"--profile={index}", *_trtexec_shapes(profile)]
    return shlex.join(words)


def _trtexec_8_6(graph: str, profiles: dict[str, Profile]) -> str:
    """With one profile, since that trtexec knows no more: from the least to the most of all, best at decode's."""
    every, decode = list(profiles.values()), profiles["decode"]
    shapes = {
        name: {
            "min": [min(sizes) for sizes in zip(*(profile[name]["min"] for profile in every), strict=True)],
            "opt": decode[name]["opt"],
            "max": [max(sizes) for sizes in zip(*(profile[name]["max"] for profile in every), strict=True)],
        }
        for name in decode
    }
    words = ["trtexec", f"--onnx={graph}", f"--saveEngine={_ENGINE}", "--fp16", f"--plugins={_PLUGIN}"]
    return shlex.join([*words, *_trtexec_shapes(shapes)])


def _trtexec_shapes(profile: Profile) -> list[str]:
    return [
        f"--{bound}Shapes=" + ",".join(f"{name}:{'x'.join(map(str, profile[name][bound]))}" for name in profile)
        for bound in _BOUNDS
    ]


def _polygraphy(graph: str, profiles: dict[str, Profile], precision: str) -> str:
    words = ["polygraphy", "convert", graph, "--convert-to", "trt", "-o", _ENGINE, precision, "--plugins", _PLUGIN]
    for profile in profiles.values():
        for bound in _BOUNDS:
            shapes = (f"{name}:{str(profile[name][bound]).replace(' ', '')}" for name in profile)
            words += [f"--trt-{bound}-shapes", *shapes]
    return shlex.join(words)
