"""The exported model with the online softmax, beside the one that was exported: weights are shared, not written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fdpp_ort.errors import FdppError
from fdpp_ort.generation.folder import ModelFolder


def with_online_softmax(folder: Path, destination: Path) -> Path:
    """Makes `destination` of the folder that fdpp-export wrote. Files but the graph are hard links, copies on another
    file system. FdppError: the graph has no FdppAttention."""
    try:
        import onnx
    except ImportError as error:
        raise FdppError(f"--ablations needs onnx ({error}); pip install onnx") from error
    graph = ModelFolder.open(folder).model_file
    model = onnx.load(graph, load_external_data=False)
    attentions = [node for node in model.graph.node if node.op_type == "FdppAttention"]
    if not attentions:
        raise FdppError(f"{graph}: it has no FdppAttention; give fdpp-export's folder")
    for node in attentions:
        for attribute in [a for a in node.attribute if a.name == "softmax_mode"]:
            node.attribute.remove(attribute)
        node.attribute.append(onnx.helper.make_attribute("softmax_mode", "online"))
    destination.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file() and file != graph:
            _link(file, destination / file.name)
    onnx.save(model, destination / graph.name)
    return destination


def _link(source: Path, destination: Path) -> None:
    destination.unlink(missing_ok=True)
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
