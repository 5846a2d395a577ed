"""Builds an engine of a model that `fdpp-export --target tensorrt` wrote, by TensorRT's Python API (10 and later).

    build_engine.py OUT [-o ENGINE]

OUT/profiles.json has the shapes; trtexec's and polygraphy's commands stand there, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import tensorrt as trt

import fdpp_ort


def build(folder: Path, engine: Path) -> None:
    logger = trt.Logger(trt.Logger.WARNING)
    if trt.get_plugin_registry().load_library(fdpp_ort.tensorrt_library_path()) is None:
        sys.exit("the plugin library could not be loaded; see above")
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(folder / "model.onnx")):
        sys.exit("\n".join(str(parser.get_error(i)) for i in range(parser.num_errors)))

    config = builder.create_builder_config()
    # The new tokens' keys and values are appended in past's own memory.
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    for shapes in json.loads((folder / "profiles.json").read_text())["profiles"].values():
        profile = builder.create_optimization_profile()
        for name, bounds in shapes.items():
            profile.set_shape(name, bounds["min"], bounds["opt"], bounds["max"])
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        sys.exit("the engine could not be built; see above")
    part = engine.with_name(engine.name + ".part")
    part.write_bytes(plan)
    part.replace(engine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder that fdpp-export wrote")
    parser.add_argument("-o", "--output", type=Path, metavar="ENGINE", help="default: OUT/model.engine")
    options = parser.parse_args()
    build(options.folder, options.output or options.folder / "model.engine")


if __name__ == "__main__":
    main()
