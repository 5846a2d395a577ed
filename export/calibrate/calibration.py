"""Runs the exported graph over text and writes what follows into it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir

from .. import op_spec
from ..decoder_inputs import Call
from ..errors import ExportError
from ..pack import register
from ..progress import Progress
from ..session import Unfit, caches_of, empty_past, feeds_for, open_session, provider_for, stated_room
from .findings import Calibration, LayerScores
from .interval import LARGEST_SHARE
from .probe import add_probes
from .rows import ScoreRows

# At most so many tokens are run, in rows of so many that are spread over all of the text.
_TOKENS, _ROW_TOKENS = 8192, 2048
_PHI = "phi"


def calibrate_phi(
    graph: Path,
    tokens: np.ndarray,
    text: str,
    library: Path,
    positions: int,
    progress: Progress | None = None,
) -> Calibration:
    """Changes the exported graph file `graph`: where few rows of `tokens` would leave the interval around phi, its
    attention gets softmax_mode unified, phi, phi_lower and phi_upper; the others keep their mode.

    tokens: int64 [tokens] of the file `text`. library: the op library. positions: tokens that a row may have.
    Raises ExportError where the graph cannot be run here, or not on these tokens.
    """
    model = ir.load(graph)
    try:
        rows = _rows(tokens, min(_ROW_TOKENS, positions, stated_room(model, caches_of(model)) or positions))
        found = _scores(model, graph, rows, text, library, progress)
    except Unfit as reason:
        raise ExportError(f"calibration is not possible: {reason}") from reason
    layers = [_layer(scores) for scores in found]
    _write(graph, layers)
    return Calibration(text, sum(row.size for row in rows), len(rows[0]), layers)


def _rows(tokens: np.ndarray, length: int) -> list[np.ndarray]:
    """Rows of `length` tokens, evenly from all of the text; a text that is not as long is one row."""
    count = max(1, min(tokens.size, _TOKENS) // length)
    begins = np.linspace(0, max(0, tokens.size - length), count).astype(int)
    return [tokens[begin : begin + length] for begin in begins]


def _scores(
    model: ir.Model, graph: Path, rows: list[np.ndarray], text: str, library: Path, progress: Progress | None
) -> list[ScoreRows]:
    caches = caches_of(model)
    provider = provider_for(caches)
    found = [ScoreRows(attention) for attention in add_probes(model)]
    if not found:
        raise Unfit("its attention lies in subgraphs alone")
    probed = graph.with_name(f".{graph.name}.probed")
    try:
        ir.save(model, probed)
        session = open_session("the graph that is calibrated", probed, provider, library)
    finally:
        probed.unlink(missing_ok=True)
    names = sorted({name for scores in found for name in scores.attention.outputs})
    for done, row in enumerate(rows):
        call = Call(np.ones((1, row.size), bool), np.zeros(1, int), row.size)
        past = empty_past(session, caches, 1, row.size)
        try:
            outputs = dict(zip(names, session.run(names, feeds_for(session, row[None], call, past)), strict=True))
        except Unfit:
            raise
        except Exception as error:  # ONNX Runtime's exception classes share no public base
            span = f"tokens of {text}, which lie between {row.min()} and {row.max()}"
            raise ExportError(f"calibration: the graph fails on {span}: {error}") from error
        for scores in found:
            queries, keys, *bias = (outputs[name] for name in scores.attention.outputs)
            scores.add(queries, keys, bias[0] if bias else None)
        if progress is not None:
            progress("calibrating", done + 1, len(rows))
    return found


def _layer(scores: ScoreRows) -> LayerScores:
    heads, kernels = scores.heads(), scores.kernels
    leaving = sum(head.leaving for head in heads) / len(heads)
    return LayerScores(scores.attention.node, kernels.lower, kernels.upper, leaving, leaving <= LARGEST_SHARE, heads)


def _write(graph: Path, layers: list[LayerScores]) -> None:
    """Weights stay where they are: beside the graph, and not read."""
    model = ir.load(graph)
    nodes = [node for node in model.graph if op_spec.is_op(node, op_spec.ATTENTION)]
    for index, (node, layer) in enumerate(zip(nodes, layers, strict=True)):
        if layer.unified:
            _set_unified(node, layer, f"layers.{index}.{_PHI}")
    beside = graph.with_name(f".{graph.name}.new")
    ir.save(model, beside)
    os.replace(beside, graph)


def _set_unified(node: ir.Node, layer: LayerScores, name: str) -> None:
    node.attributes["softmax_mode"] = ir.AttrString("softmax_mode", "unified")
    node.attributes["phi_lower"] = ir.AttrFloat32("phi_lower", layer.phi_lower)
    node.attributes["phi_upper"] = ir.AttrFloat32("phi_upper", layer.phi_upper)
    phi = register(node.graph, ir.tensor(np.array([head.phi for head in layer.heads], np.float32), name=name))
    if node.domain == op_spec.DENSE_DOMAIN:
        names = f"{node.attributes.get_string(op_spec.DENSE_ATTRIBUTE)},{_PHI}"
        node.attributes[op_spec.DENSE_ATTRIBUTE] = ir.AttrString(op_spec.DENSE_ATTRIBUTE, names)
        place = len(node.inputs)
    else:
        place = op_spec.input_names(op_spec.ATTENTION).index(_PHI)
    node.resize_inputs(place + 1)
    node.replace_input_with(place, phi)
