"""Shape inference that knows ONNX Runtime's ops between products, and leaves a graph alone where it cannot be done."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir
from onnx import defs
from onnx_ir.passes import common

_MICROSOFT = "com.microsoft"
# Ops whose results, of these indices, have the type and shape of their first input. RotaryEmbedding's heads stay where
# they are; attention's values have as many columns as its queries.
_AS_FIRST_INPUT = {
    ("", "SimplifiedLayerNormalization"): (0,),
    **dict.fromkeys(
        ((_MICROSOFT, op) for op in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")), (0, 3)
    ),
    **dict.fromkeys(
        ((_MICROSOFT, op) for op in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "RotaryEmbedding")), (0,)
    ),
}
_ANY = [f"tensor({name})" for name in ("float", "float16", "bfloat16", "double", "int32", "int64", "bool")]


def infer_shapes(model: ir.Model) -> None:
    """As far as the graph's own statements allow: where they contradict each other, as some do, not at all."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output() and any(map(_is_made_up, value.shape or ())):
                value.shape = ir.Shape([None if _is_made_up(size) else size for size in value.shape])
    logger = logging.getLogger(common.ShapeInferencePass.__module__)
    before, logger.disabled = logger.disabled, True  # it would print a traceback
    try:
        with _runtime_ops():
            common.ShapeInferencePass()(model)
    finally:
        logger.disabled = before


def _is_made_up(size: int | ir.SymbolicDim) -> bool:
    """Whether `size` has a name of earlier inference, which knew less."""
    return isinstance(size, ir.SymbolicDim) and str(size.value).startswith("unk__")


@contextmanager
def _runtime_ops() -> Iterator[None]:
    """Lets ONNX know these ops meanwhile."""
    added = [op for op in _AS_FIRST_INPUT if not defs.has(op[1], op[0])]
    try:
        for domain, name in added:
            defs.register_schema(_schema(domain, name, _AS_FIRST_INPUT[domain, name]))
        yield
    finally:
        for domain, name in added:
            defs.deregister_schema(name, 1, domain)


def _schema(domain: str, name: str, alike: tuple[int, ...]) -> defs.OpSchema:
    def infer(context: onnx.shape_inference.InferenceContext) -> None:
        first = context.get_input_type(0)
        for index in alike:
            if first is not None and index < context.get_num_outputs():
                context.set_output_type(index, first)

    schema, any_number = defs.OpSchema, defs.OpSchema.FormalParameterOption.Variadic
    ports = [schema.FormalParameter("all", "T", param_option=any_number, is_homogeneous=False, min_arity=1)]
    made = schema(name, domain, 1, inputs=ports, outputs=ports, type_constraints=[("T", _ANY, "")])
    made.set_type_and_shape_inference_function(infer)
    return made
