"""The whole way from IN to OUT."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from . import op_spec
from .calibrate import calibrate_phi, read_tokens
from .destination import prepare_destination, staged
from .errors import ExportError
from .fuse import fuse
from .fuse.language_model_head import language_model_head
from .gpus import Gpu
from .lower import (
    CACHES,
    PROFILES_FILE,
    checked_library,
    engine_limits,
    hint_next_weights,
    into_products,
    keep_last_logits,
    lower,
    lower_for_tensorrt,
    state_caches,
    write_genai_config,
    write_profiles,
)
from .normalise import (
    Source,
    canonicalise,
    context_length,
    find_source,
    fuse_norms,
    load,
    require_well_formed,
    to_grouped_query,
)
from .normalise.source import GENAI_CONFIG, side_files
from .page import to_html
from .progress import Progress
from .report import PAGE_FILE, REPORT_FILE, ExportReport, Verification
from .traffic import traffic_of
from .verify import verify_export
from .weight_format import WeightFormat
from .write import weight_bytes, write_model

TARGETS = ("onnxruntime", "tensorrt")
SOFTMAX_MODES = ("lazy", "online")
_GRAPH = "model.onnx"


def export_model(
    source: str | Path,
    destination: str | Path,
    *,
    target: str = "onnxruntime",
    weights: str = "keep",
    head_weights: str | None = None,
    softmax: str = "lazy",
    verify: bool = True,
    gated: bool = True,
    packed_qkv: bool = True,
    bias: bool = True,
    head_norms: bool = True,
    norms: bool = True,
    norms_into_products: bool = True,
    activations: bool = True,
    prefetch: bool = False,
    last_logits: bool = False,
    cache: str | None = None,
    library: str | Path | None = None,
    overwrite: bool = False,
    max_batch: int | None = None,
    max_length: int | None = None,
    calibrate: str | Path | None = None,
    gpu: Gpu | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Writes the model `source` with our ops to the folder `destination`.

    source: a model folder or an .onnx file.
    destination: a folder that does not exist; with `overwrite` also one that an earlier export wrote.
    target: one of TARGETS. weights: how weights are stored, as WEIGHTS_HELP spells it. head_weights: those of the
    product that makes the logits; None: as the others, but int8 where these are int4. softmax: one of SOFTMAX_MODES.
    verify: compare the logits of both graphs in ONNX Runtime.
    gated: make one product of gate and up in silu(gate) * up. packed_qkv: make one of queries, keys and values. bias:
    let products add their biases. head_norms: let attention do the RMS norms of query and key heads. norms: make one
    node of an RMS norm in standard ops, and of the residual sum ahead of it.
    norms_into_products: of the target onnxruntime alone (tensorrt always does it), RMS and layer norms and residual
    sums are done by the products beside them. activations: let products do the activation behind them. prefetch: of the
    target onnxruntime alone, tell each product which weight the next one reads. last_logits: of the target onnxruntime
    alone, logits of each row's last token alone. cache: of the target onnxruntime alone, one of CACHES: what the graph
    and genai_config.json say of caches, that past and present are one buffer with room or that they grow; None: what IN
    says.
    library: the op library, for the target onnxruntime (which gets a copy) and for verify.
    max_batch: of the target tensorrt alone, the rows at once that engines are built for; None: 1.
    max_length: tokens in a row that engines are built for, and that rotary tables which the graph does not have itself
    are made for; None: the model's context length.
    calibrate: a UTF-8 text, or an .npz file of token ids, over which the exported graph is run: layers where that is
    worth it get the unified softmax and its phi. Needs the library, too.
    gpu: for which the report says how many tokens/s its memory allows.
    progress: called during long steps.

    Raises ExportError, and then leaves nothing behind, for input that cannot be exported, if no attention could be
    rewritten, if calibration or writing fails and if the logits leave their tolerance.
    """
    options = {"target": (target, TARGETS), "softmax": (softmax, SOFTMAX_MODES), "cache": (cache, (None, *CACHES))}
    for name, (value, allowed) in options.items():
        if value not in allowed:
            raise ExportError(f"{name} is {value!r}, expected one of {', '.join(filter(None, allowed))}")
    stored = WeightFormat.parse(weights)
    head_stored = WeightFormat.parse(head_weights, "head_weights") if head_weights is not None else stored.of_head
    if max_batch is not None and target != "tensorrt":
        raise ExportError(f"max_batch is of the target tensorrt alone; the target is {target}")
    for name, value in (("last_logits", last_logits), ("cache", cache)):
        if value and target != "onnxruntime":
            raise ExportError(f"{name} is of the target onnxruntime alone; the target is {target}")
    for name, value in (("max_batch", max_batch), ("max_length", max_length)):
        if value is not None and value < 1:
            raise ExportError(f"{name} is {value}, expected at least 1")
    destination = Path(destination)
    prepare_destination(destination, overwrite)
    library = Path(library) if library is not None else None
    bundled = checked_library(library) if target == "onnxruntime" else None
    found = find_source(Path(source))
    tokens = None
    if calibrate is not None:
        if library is None:
            raise ExportError("calibrate runs the exported graph, which needs the op library")
        tokens = read_tokens(Path(calibrate), found.model.parent)

    report = ExportReport(str(source), str(destination), target, str(stored), softmax, str(head_stored))
    model, data_files = load(found.model)
    if any(node.domain in (op_spec.DOMAIN, op_spec.DENSE_DOMAIN) for node in model.graph.all_nodes()):
        raise ExportError(f"{found.model} already has ops of domain {op_spec.DOMAIN}: it was exported before")
    report.weight_bytes_before = weight_bytes(model)
    canonicalise(model)
    require_well_formed(model, found.model)
    positions = max_length or context_length(found)
    to_grouped_query(model, positions, report)
    if norms:
        fuse_norms(model, report)
    if head_weights is not None:
        _require_head(model, found.model, head_weights)
    changed = fuse(
        model,
        stored,
        report,
        head_weights=head_stored,
        gated=gated,
        packed_qkv=packed_qkv,
        bias_in_products=bias,
        norms_of_heads=head_norms,
        activations=activations,
    )
    _require_rewrites(model, found.model, weights, report)
    lower(model, softmax)
    if target == "tensorrt":
        lower_for_tensorrt(model, report)
        limits = engine_limits(model, found.genai_config, max_batch, max_length)
    else:
        if cache is not None:
            state_caches(model, cache, report)
        if last_logits:
            keep_last_logits(model, report)
        if norms_into_products:
            into_products(model, report, sums_stay=True)
        if prefetch:
            hint_next_weights(model, report)
    report.weight_bytes_after = weight_bytes(model)
    report.traffic = traffic_of(model, positions, gpu)

    with staged(destination, overwrite) as folder:
        _copy_side_files(found, data_files, bundled, cache, folder)
        write_model(model, folder / _GRAPH, progress)
        if target == "tensorrt":
            for_8_6 = not report.needs_tensorrt_10
            write_profiles(model, limits, _GRAPH, folder / PROFILES_FILE, for_8_6=for_8_6)
        if tokens is not None:
            report.calibration = calibrate_phi(folder / _GRAPH, tokens, str(calibrate), library, positions, progress)
        if verify:
            report.verification = verify_export(
                model, found.model, folder / _GRAPH, library, {stored, head_stored}, changed, progress
            )
            _require_verified(report.verification)
        (folder / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
        (folder / PAGE_FILE).write_text(to_html(report), encoding="utf-8")
    return report


def _require_rewrites(model: ir.Model, path: Path, weights: str, report: ExportReport) -> None:
    ours = {node.op_type for node in model.graph.all_nodes() if node.domain == op_spec.DOMAIN}
    attentions = [left for left in report.left if left.op.endswith(("Attention", "Softmax"))]
    if op_spec.ATTENTION not in ours:
        why = "; ".join(f"{left.node}: {left.reason}" for left in attentions) or "it has no attention node"
        raise ExportError(f"{path}: no attention was rewritten: {why}")
    if weights != "keep" and op_spec.FLAT_GEMM not in ours:
        others = [f"{left.node}: {left.reason}" for left in report.left if left not in attentions]
        raise ExportError(
            f"{path}: --weights {weights} changes nothing, no MatMul was rewritten"
            + "".join(f": {other}" for other in others[:1])
        )


def _require_head(model: ir.Model, path: Path, weights: str) -> None:
    head = language_model_head(model)
    if head is None:
        raise ExportError(f"{path}: --head-weights {weights}: no product makes an output named logits")
    if head.op_type == "MatMulNBits":
        raise ExportError(f"{path}: --head-weights {weights}: the weights of {head.name} are quantised already")


def _copy_side_files(
    source: Source, data_files: set[Path], library: Path | None, cache: str | None, folder: Path
) -> None:
    if source.folder is not None:
        for file in side_files(source.folder, data_files):
            shutil.copyfile(file, folder / file.name)
    if source.genai_config is not None:
        name = library.name if library is not None else None
        write_genai_config(source.genai_config, folder / GENAI_CONFIG, _GRAPH, name, cache)
    if library is not None:
        shutil.copy(library, folder / library.name)


def _require_verified(verification: Verification) -> None:
    failed = [phase for phase in verification.phases if not phase.passed]
    if failed:
        worst = failed[0]
        raise ExportError(
            f"verification failed: {worst.name} logits differ from the original's by {worst.relative_error:.2e} of "
            f"their largest magnitude, tolerance {worst.tolerance:g}"
        )
    generation = verification.generation
    if generation is not None and not generation.passed:
        raise ExportError(
            f"verification failed: after {min(generation.same)} tokens the graphs generate different ones, by a gap of "
            f"{generation.gap:.2e} of the original's largest logit, tolerance {generation.tolerance:g}"
        )
