"""Compares an exported model in ONNX Runtime, with our custom ops, to its TensorRT engine, with our plugins.

    compare.py OUT [--engine ENGINE] [--layers] [--tolerance 0.02]

By polygraphy: both run a prompt and a decoding step on the same random tokens and caches. --layers marks what each of
our ops computes as an output of the graph, builds an engine of that and compares layer by layer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from polygraphy.backend.common import BytesFromPath
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.backend.trt import (
    CreateConfig,
    EngineFromBytes,
    EngineFromNetwork,
    LoadPlugins,
    NetworkFromOnnxPath,
    Profile,
    TrtRunner,
)
from polygraphy.comparator import Comparator, CompareFunc

import fdpp_ort

DENSE_DOMAIN = "fdpp.dense"
PROMPT = 32


def with_layers(model: Path) -> Path:
    """A copy of the graph beside it, the weights' files shared, that gives what our ops compute."""
    graph = onnx.load(model, load_external_data=False)
    known = {output.name for output in graph.graph.output}
    for node in graph.graph.node:
        if node.domain == DENSE_DOMAIN and node.output[0] not in known:
            graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.output[0]))
    path = model.with_name("model.layers.onnx")
    onnx.save(graph, path)
    return path


def feeds(model: Path, shapes: dict[str, dict[str, list[int]]], vocabulary: int) -> Iterator[dict[str, np.ndarray]]:
    """A prompt of a few tokens, then one token after as many in the caches."""
    rng = np.random.default_rng(0)
    types = {i.name: i.type.tensor_type.elem_type for i in onnx.load(model, load_external_data=False).graph.input}
    for new, past in ((PROMPT, 0), (1, PROMPT)):
        sizes = {"input_ids": [1, new], "position_ids": [1, new], "attention_mask": [1, new + past]}
        feed = {}
        for name, kind in types.items():
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
            shape = sizes.get(name) or [1, *shapes[name]["max"][1:]]
            if name == "input_ids":
                feed[name] = rng.integers(0, vocabulary, shape).astype(dtype)
            elif name == "attention_mask":
                feed[name] = np.ones(shape, dtype)
            elif name == "position_ids":
                feed[name] = np.arange(past, past + new).reshape(shape).astype(dtype)
            else:
                feed[name] = rng.standard_normal(shape).astype(dtype)
        yield feed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder that fdpp-export --target tensorrt wrote")
    parser.add_argument("--engine", type=Path, help="an engine that was built before; default: one is built")
    parser.add_argument("--layers", action="store_true", help="compare what each of our ops computes")
    parser.add_argument("--tolerance", type=float, default=0.02, help="relative and absolute (default: 0.02)")
    options = parser.parse_args()
    if options.engine and options.layers:
        parser.error("--layers needs an engine of its own")
    model = options.folder / "model.onnx"
    if options.layers:
        model = with_layers(model)

    session_options = onnxruntime.SessionOptions()
    fdpp_ort.register(session_options)
    session = onnxruntime.InferenceSession(model, session_options, providers=onnxruntime.get_available_providers())
    vocabulary = next(o for o in session.get_outputs() if o.name == "logits").shape[-1]

    profiles = json.loads((options.folder / "profiles.json").read_text())["profiles"]
    shapes = [Profile() for _ in profiles]
    for profile, given in zip(shapes, profiles.values(), strict=True):
        for name, bounds in given.items():
            profile.add(name, **bounds)
    plugins = [fdpp_ort.tensorrt_library_path()]
    if options.engine:
        engine = EngineFromBytes(LoadPlugins(plugins, BytesFromPath(str(options.engine))))
    else:
        network = NetworkFromOnnxPath(LoadPlugins(plugins, str(model)), strongly_typed=True)
        engine = EngineFromNetwork(network, config=CreateConfig(profiles=shapes))

    prompt, token = feeds(model, profiles["decode"], vocabulary)
    alike = True
    for index, feed in enumerate((prompt, token)):
        runners = [OnnxrtRunner(session), TrtRunner(engine, optimization_profile=index)]
        results = Comparator.run(runners, data_loader=[feed])
        compare = CompareFunc.simple(rtol=options.tolerance, atol=options.tolerance)
        alike = bool(Comparator.compare_accuracy(results, compare_func=compare)) and alike
    sys.exit(0 if alike else 1)


if __name__ == "__main__":
    main()
