"""fdpp-tune: time the matrix products of a model, and on a GPU its attention, on this machine and write the table that
says which kernel runs."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from fdpp_ort.cli.options import positive_numbers
from fdpp_ort.errors import FdppError
from fdpp_ort.generation.model import TABLE_NAME
from fdpp_ort.tuning import (
    ROWS,
    AttentionShape,
    Measurements,
    Product,
    analyse,
    attention_from_model,
    attention_from_text,
    from_model,
    from_text,
    tune,
    write_table,
)
from fdpp_ort.tuning.analysis import best_of
from fdpp_ort.tuning.attention import CACHE_DTYPES
from fdpp_ort.tuning.plot import check_plots, plot
from fdpp_ort.tuning.products import BLOCK_SIZES, DTYPES, EPILOGUES
from fdpp_ort.tuning.tuner import make_timer

PROGRAM = "fdpp-tune"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.partition(": ")[2])
    parser.add_argument("--model", metavar="MODEL", type=Path, help="model folder or .onnx file")
    parser.add_argument("--shapes", metavar="N,K", nargs="+", help="weights by their dimensions")
    parser.add_argument(
        "--attention", metavar="Q_HEADS,KV_HEADS,HEAD_SIZE", nargs="+", help="attention by its heads, on a GPU"
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), help="of the weights (default: the model's; f32 or, on a GPU, f16)"
    )
    parser.add_argument(
        "--epilogue",
        choices=list(EPILOGUES),
        help="of --shapes: with a bias or residual, or without (default: both; a missing one is as the other)",
    )
    parser.add_argument(
        "--block-size", type=int, choices=BLOCK_SIZES, help="of --shapes with int4 weights (default: 32)"
    )
    parser.add_argument(
        "--cache-dtype",
        choices=list(CACHE_DTYPES),
        help="of keys and values (default: the model's, or as the activations)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: PyTorch's GPU if any")
    parser.add_argument(
        "-o", "--output", metavar="TABLE", type=Path, help=f"default: {TABLE_NAME} beside the model, where it is found"
    )
    parser.add_argument("--rows", metavar="M,...", type=positive_numbers, default=ROWS, help="the Ms to time")
    parser.add_argument("--seconds", type=float, default=0.1, help="of each configuration at a time (default: 0.1)")
    parser.add_argument(
        "--pool",
        metavar="MIB",
        type=int,
        default=0,
        help="memory that weights, or caches of attention, take turns in (default: more than the processor's caches)",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with what TABLE's .measured.jsonl holds; --no-resume times all anew",
    )
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw time over M there (PNG, SVG, PDF)")
    options = parser.parse_args(argv)
    if options.model is not None and (options.shapes or options.attention):
        parser.error("--model comes with neither --shapes nor --attention")
    if not (options.model or options.shapes or options.attention):
        parser.error("one of --model, --shapes and --attention is required")
    return options


def _backend(device: str) -> str:
    if device != "auto":
        return device
    try:
        import torch
    except ImportError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def _products(options: argparse.Namespace, backend: str) -> list[Product]:
    if options.model is not None:
        return from_model(options.model, backend, options.dtype)
    epilogues = [options.epilogue] if options.epilogue else EPILOGUES
    weights = options.dtype or ("f32" if backend == "cpu" else "f16")
    return from_text(options.shapes or [], backend, weights, epilogues, options.block_size or 0)


def _attention(options: argparse.Namespace, backend: str) -> list[AttentionShape]:
    if backend == "cpu":
        if options.attention:
            raise FdppError("--attention is for a GPU: on a CPU attention's kernels divide their work themselves")
        return []
    if options.model is not None:
        return attention_from_model(options.model, options.dtype, options.cache_dtype)
    return attention_from_text(options.attention or [], options.dtype, options.cache_dtype)


def _output(options: argparse.Namespace) -> Path:
    if options.output is not None:
        return options.output
    if options.model is None:
        return Path(TABLE_NAME)
    return (options.model if options.model.is_dir() else options.model.parent) / TABLE_NAME


def _print_summary(measurements: Measurements) -> None:
    import rich.console

    title = measurements.head["device"]["name"]
    tables = (_product_table(title, measurements), _attention_table(title, measurements))
    rich.console.Console().print(*(table for table in tables if table.row_count))


def _table(title: str, *headings: str):
    import rich.box
    import rich.table

    table = rich.table.Table(box=rich.box.SIMPLE, title=title)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _mean(ratios: list[float]) -> str:
    return f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}" if ratios else "-"


def _product_table(title: str, measurements: Measurements):
    best = "time of the best / of the library, mean over M"
    table = _table(title, "N", "K", "weights", "epilogue", "M1", "M2", best)
    for product, times in measurements:
        inflection = analyse(times)
        ratios = [
            min(t.microseconds for t in row) / library.microseconds
            for row in times.values()
            if (library := best_of(row, "large"))
        ]
        shape = (product.n, product.k, product.weights, product.epilogue, inflection.m1, inflection.m2)
        table.add_row(*map(str, shape), _mean(ratios))
    return table


def _attention_table(title: str, measurements: Measurements):
    own = "time of the choice before / of the best, mean"
    table = _table(title, "heads", "activations", "cache", "batches and contexts timed", own)
    for shape, times in measurements.attention():
        # The first of each is what ran without what is found here.
        ratios = [row[0].microseconds / min(t.microseconds for t in row) for row in times.values()]
        table.add_row(shape.heads, shape.dtype, shape.cache_format, str(len(times)), _mean(ratios))
    return table


def run(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    if options.plot is not None:
        check_plots()
    backend = _backend(options.device)
    products, attention = _products(options, backend), _attention(options, backend)
    if options.plot is not None and not products:
        raise FdppError("--plot draws times over M: give --shapes or --model")
    timer = make_timer(backend, options.seconds, options.pool << 20)
    output = _output(options)
    measurements = Measurements(output.with_suffix(".measured.jsonl"), timer.device, options.resume)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("tuning")
        tune(
            products,
            options.rows,
            timer,
            measurements,
            lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
            attention,
        )
    write_table(output, measurements)
    if options.plot is not None:
        plot(options.plot, measurements)
    _print_summary(measurements)
    print(f"wrote {output}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = parse_arguments(argv)
    try:
        run(options)
    except FdppError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{PROGRAM}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
