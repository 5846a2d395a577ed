"""Choices for whole decoding steps: what a table has for the products and the attention of models of the real shapes,
against the other variants and splits, by the time of a step of a few layers as a CUDA graph.

    tune_steps.py TABLE --output NEW [--models Llama2-7B,...] [--weights f16] [--layers 4] [--batches 1,2,4,8]
        [--contexts 1024] [--parts products,attention] [--seconds 600] [--work FOLDER]

fdpp-tune times each kernel by itself, over operands that come from memory. Within a step a kernel starts while the one
before still has its multiprocessors, and the fastest choice can be another. NEW is TABLE with every choice that makes
a step shorter by more than noise; NEW with .txt says what was tried. Products are tried at the first of the contexts.
What several models share is tried with the first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import machine
import torch
from common.captured_step import CapturedStep, open_session
from common.choices import Span, attention_choice, product_choice, with_attention, with_product
from common.decoders import write_folder
from common.options import comma_separated, numbers
from common.shapes import OPT, SHAPES, Shape, named_shape

import fdpp_ort
from fdpp_ort.export import export_model
from fdpp_ort.tuning.attention import BATCHES, AttentionShape
from fdpp_ort.tuning.candidates import candidates
from fdpp_ort.tuning.measurements import Candidate
from fdpp_ort.tuning.products import Product, from_text

PACKAGES = ("torch", "onnxruntime-gpu", "numpy")
PARTS = ("products", "attention")
WEIGHTS = {"f16": 0, "int4-32": 32, "int4-128": 128}  # and their block size
# What is found at one of these holds down to the one before it.
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
CONTEXTS = (128, 256, 1024, 4096, 16384, 65536)
TILE, MOST_ROUNDS = 64, 6  # of attention: keys of a tile, blocks a multiprocessor in clusters
LIBRARY_ROWS = 16  # up to so many a library's products are far behind
CACHE_BYTES = 40e9  # of all layers
ROOM = 64  # tokens that the caches hold beyond the context
WARM, TIMED, TURNS = 3, 9, 9
GOOD, WORTH = 0.9985, 0.998  # of the best step so far: what is timed again, and what is taken then
MOST_SHOWN = 4


@dataclass
class Search:
    """One table, and steps that are captured under it."""

    table: dict
    trial: Path  # where the library reads a table from
    end: float  # of the share of this model, time.monotonic()'s
    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)

    def capture(self, step: CapturedStep, table: dict) -> CapturedStep:
        self.trial.write_text(json.dumps(table), encoding="utf-8")
        fdpp_ort.load_table(self.trial)
        return step.captured_anew()

    def improve(self, what: str, best: CapturedStep, was: Candidate, others: dict[Candidate, dict]) -> CapturedStep:
        """Tries the `others`, each with the table that has it; returns the best step, whose table is then `table`."""
        reference = _us(best)
        tried = []
        for candidate, table in others.items():
            try:
                step = self.capture(best, table)
            except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
                self.say(f"{what}: {_name(candidate)} failed: {str(error)[:120]}")
                continue
            tried.append((_us(step), candidate, step))
        if not tried:
            return best
        reference = (reference + _us(best)) / 2
        tried.sort(key=lambda one: one[0])
        line = f"{what} has {_name(was)}; " + ", ".join(
            f"{_name(candidate)} {us / reference:.4f}" for us, candidate, _ in tried[:MOST_SHOWN]
        )
        us, candidate, step = tried[0]
        if us < GOOD * reference:
            before, after = _in_turns(best, step)
            line += f" | {before:.1f} -> {after:.1f} us ({after / before:.4f})"
            if after < WORTH * before:
                best, self.table = step, others[candidate]
                line += " taken"
        self.say(line)
        return best


def _us(step: CapturedStep) -> float:
    step.replay_times(WARM)
    return statistics.median(step.replay_times(TIMED))


def _in_turns(a: CapturedStep, b: CapturedStep) -> tuple[float, float]:
    found: dict[CapturedStep, list[float]] = {a: [], b: []}
    for turn in range(TURNS):
        for step in (a, b) if turn % 2 == 0 else (b, a):
            found[step].append(_us(step))
    return statistics.median(found[a]), statistics.median(found[b])


def _name(candidate: Candidate) -> str:
    split = " ".join(f"{key}={value}" for key, value in candidate.split)
    return f"{candidate.variant.removeprefix('cuda_')} {split}".strip()


def products_of(shape: Shape, weights: str) -> dict[str, Product]:
    """Those of a layer and the head, as they are after the export."""
    gated = 1 if shape.family == OPT else 2
    sizes = {
        "qkv": (shape.qkv, shape.hidden),
        "o": (shape.hidden, shape.heads * shape.head_size),
        "gate_up": (gated * shape.intermediate, shape.hidden),
        "down": (shape.hidden, shape.intermediate),
        "head": (shape.vocabulary, shape.hidden),
    }
    kind, block = weights.split("-")[0], WEIGHTS[weights]
    return {name: from_text([f"{n},{k}"], "cuda", kind, ["plain"], block)[0] for name, (n, k) in sizes.items()}


def attention_of(shape: Shape) -> AttentionShape:
    return AttentionShape(shape.heads, shape.kv_heads, shape.head_size, "float16", "float16")


def attention_candidates(shape: AttentionShape, batch: int, context: int, multiprocessors: int) -> list[Candidate]:
    """Clusters of each size over whole units and cut ones, about a half to three blocks a multiprocessor in all where
    units are few, one to three of them on it at once."""
    found = [Candidate.of("", "cuda_decode_short", {})] if context <= CONTEXTS[0] else []
    units = batch * shape.kv_heads
    for cluster in (1, 2, 4, 8):
        if cluster > 1 and cluster * TILE > context:
            continue
        most_pieces = max(context // (2 * TILE * cluster), 1)
        for filled in (0.5, 1, 2, 3):
            pieces = min(max(math.floor(filled * multiprocessors / (units * cluster)), 1), most_pieces)
            blocks = units * cluster * pieces
            if cluster > 1 and blocks > MOST_ROUNDS * multiprocessors:
                continue
            for resident in (2, 3) if blocks > multiprocessors else (1, 2, 3):
                split = {"cluster": cluster, "pieces": pieces, "blocks_per_multiprocessor": resident}
                found.append(Candidate.of("", "cuda_decode_hopper", split))
    return list(dict.fromkeys(found))


def tune_model(name: str, options: argparse.Namespace, search: Search, done: set, device: dict, work: Path) -> None:
    shape = named_shape(name, options.layers)
    folder = work / name
    write_folder(folder / "original", shape, "f16", WEIGHTS[options.weights])
    export_model(folder / "original", folder / "out", library=fdpp_ort.library_path(), verify=False)
    stream = torch.cuda.Stream()
    session = open_session(str(folder / "out" / "model.onnx"), stream)
    shutil.rmtree(folder)
    attention = attention_of(shape)
    products = {what: product for what, product in products_of(shape, options.weights).items() if product not in done}
    token_bytes = 2 * 2 * shape.kv_heads * shape.head_size * shape.layers
    for batch in options.batches:
        for context in options.contexts:
            if batch * context * token_bytes > CACHE_BYTES or context > shape.positions:
                continue
            if time.monotonic() > search.end:
                search.say(f"{name}: no time for batch {batch} and {context} tokens")
                continue
            torch.cuda.empty_cache()
            best = CapturedStep(session, stream, batch, context, context + ROOM)
            begin = best = search.capture(best, search.table)
            table = search.table
            cell = f"{name} {batch} x {context}"
            if "products" in options.parts and context == options.contexts[0]:
                for what, product in products.items():
                    if (was := product_choice(search.table, product, batch)) is None:
                        search.say(f"{cell} {what}: no entry")
                        continue
                    rows = Span.below(batch, ROWS)
                    others = {
                        other: with_product(search.table, product, rows, other)
                        for other in candidates(product, batch, device)
                        if (other.kind != "large" or batch > LIBRARY_ROWS) and _differs(other, was)
                    }
                    best = search.improve(f"{cell} {what}", best, was, others)
            was = attention_choice(search.table, attention, batch, context)
            if "attention" in options.parts and attention not in done and was is not None:
                spans = Span.below(batch, BATCHES), Span.below(context, CONTEXTS)
                others = {
                    other: with_attention(search.table, attention, *spans, other)
                    for other in attention_candidates(attention, batch, context, device["multiprocessors"])
                    if _differs(other, was)
                }
                best = search.improve(f"{cell} attention", best, was, others)
            if best is begin:
                search.say(f"## {cell}: {_us(best):.1f} us")
            else:
                before, after = _in_turns(begin, best)
                line = f"## {cell}: {before:.1f} -> {after:.1f} us ({after / before:.4f})"
                if after >= before:  # what was found was noise
                    search.table = table
                    line += ", given up"
                search.say(line)
            del begin, best
    done |= {*products.values(), attention}


def _differs(a: Candidate, b: Candidate) -> bool:
    return (a.variant, a.split) != (b.variant, b.split)


def write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("table", type=Path, metavar="TABLE")
    add("--output", type=Path, required=True, metavar="NEW")
    real = [name for name in SHAPES if not name.startswith("tiny")]
    add("--models", type=comma_separated(SHAPES), default=real, metavar="NAME,...")
    add("--weights", choices=list(WEIGHTS), default="f16", help="of the products")
    add("--layers", type=int, default=4)
    add("--batches", type=numbers, default=[1, 2, 4, 8], metavar="B,...")
    add("--contexts", type=numbers, default=[1024], metavar="T,...")
    add("--parts", type=comma_separated(PARTS), default=list(PARTS), metavar="PART,...")
    add("--seconds", type=float, default=600, help="for all; each model gets an equal share of what is left")
    add("--work", type=Path, default=Path("/dev/shm"), metavar="FOLDER", help="for weights")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    device = fdpp_ort.library.core().gpu_device(0)
    done: set[Product | AttentionShape] = set()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        search = Search(json.loads(options.table.read_text(encoding="utf-8")), work / "trial.json", end)
        search.say(json.dumps(machine.describe(PACKAGES)))
        for index, name in enumerate(options.models):
            now = time.monotonic()
            search.end = now + (end - now) / (len(options.models) - index)
            tune_model(name, options, search, done, device, work)
            torch.cuda.empty_cache()
            write(options.output, json.dumps(search.table, indent=1) + "\n")
            write(options.output.with_suffix(".txt"), "\n".join(search.lines) + "\n")


if __name__ == "__main__":
    main()
