"""A calibrated graph on text that it was not calibrated on: rows that leave phi, perplexity, greedy tokens.

    fdpp-export ORIGINAL online --softmax online
    fdpp-export ORIGINAL unified --calibrate calibration.txt
    bench_calibration.py --online online --unified unified --held-out held-out.txt [--output FILE]

A piece of the text is a prompt of --row tokens, whose perplexity is taken; its first half, by itself, is continued by
--new-tokens greedy ones, so that rows in decoding steps are counted, too. So are bench_generate.py's prompts.

Exit status 1: a greedy token differs, perplexities differ by more than 1e-4 of themselves, or more than 0.5 % of the
query rows leave phi.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import machine
import numpy as np
from bench_generate import PROMPTS

import fdpp_ort
from fdpp_ort.bench.quality import cut, perplexity
from fdpp_ort.generation import Decoder, ModelFolder, TextCodec, load_model

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")
LARGEST_RATE, LARGEST_DIFFERENCE = 0.005, 1e-4


def rows_that_left() -> int:
    return sum(plan["out_of_range_rows"] for plan in fdpp_ort.last_plan())


class Graph:
    """One of the two folders, loaded, and what its report says of calibration."""

    def __init__(self, folder: Path, provider: str, capacity: int):
        self.model = load_model(ModelFolder.open(folder), provider)
        self.decoder = Decoder(self.model, 1, capacity)
        report = json.loads((folder / "fdpp_report.json").read_text(encoding="utf-8"))
        layers = (report["calibration"] or {"layers": []})["layers"]
        self.unified = [layer for layer in layers if layer["unified"]]
        self.heads = sum(len(layer["heads"]) for layer in self.unified)  # query rows a token

    def counted(self, tokens: int, left: int) -> dict:
        """Of the query rows of so many tokens `left` left phi."""
        rows = tokens * self.heads
        return {"left": left, "of": rows, "rate": left / rows if rows else None}

    def perplexity(self, pieces: np.ndarray) -> tuple[float, dict]:
        """Over all `pieces`, int64 [pieces, tokens], and rows that left phi."""
        before = rows_that_left()
        found = perplexity(self.decoder, pieces)
        return found, self.counted(pieces.size, rows_that_left() - before)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> tuple[list[list[int]], dict]:
        """Greedy tokens of each prompt, ends of text ignored, and rows that left phi in decoding steps."""
        generated, left = [], 0
        for prompt in prompts:
            logits = self.decoder.prefill(np.array([prompt])).numpy()[:, -1]
            before, tokens = rows_that_left(), []
            for _ in range(new_tokens):
                tokens.append(int(logits.argmax()))
                logits = self.decoder.step(np.array([[tokens[-1]]]))
            left += rows_that_left() - before
            generated.append(tokens)
        return generated, self.counted(len(prompts) * new_tokens, left)

    def foreseen(self) -> float | None:
        """The share of rows that calibration expects to leave, on its own text."""
        shares = [head["leaving"] for layer in self.unified for head in layer["heads"]]
        return sum(shares) / len(shares) if shares else None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--online", required=True, type=Path, metavar="FOLDER", help="exported with --softmax online")
    parser.add_argument("--unified", required=True, type=Path, metavar="FOLDER", help="exported with --calibrate")
    parser.add_argument("--held-out", required=True, type=Path, nargs="+", metavar="TEXT")
    parser.add_argument("--row", type=int, default=2048, help="tokens of a piece of text")
    parser.add_argument("--pieces", type=int, default=4, help="pieces of each text")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results there, as JSON")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    codec = TextCodec(arguments.online)
    pieces, texts = cut(arguments.held_out, codec, arguments.row, arguments.pieces)
    prompts = [piece[: len(piece) // 2].tolist() for piece in pieces]
    prompts += [codec.encode_prompt(prompt, raw=False) for prompt in PROMPTS]
    results, tokens = {}, []
    for name, folder in (("online", arguments.online), ("unified", arguments.unified)):
        graph = Graph(folder, arguments.provider, arguments.row + arguments.new_tokens)
        perplexity, prefill = graph.perplexity(pieces)
        generated, decode = graph.generate(prompts, arguments.new_tokens)
        tokens.append(generated)
        results[name] = {
            "layers": len(graph.model.caches) // 2,
            "unified_layers": len(graph.unified),
            "foreseen_rate": graph.foreseen(),
            "perplexity": perplexity,
            "prefill_rows": prefill,
            "decode_rows": decode,
        }
    online, unified = results["online"], results["unified"]
    phases = unified["prefill_rows"], unified["decode_rows"]
    summary = {
        "rate": sum(phase["left"] for phase in phases) / max(sum(phase["of"] for phase in phases), 1),
        "perplexity_difference": abs(unified["perplexity"] / online["perplexity"] - 1),
        "tokens_identical": tokens[0] == tokens[1],
    }
    content = {
        **machine.describe(PACKAGES),
        "texts": texts,
        "pieces": len(pieces),
        "row": arguments.row,
        "generations": len(prompts),
        "new_tokens": arguments.new_tokens,
        "summary": summary,
        "results": results,
    }
    print(json.dumps(content, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    close = summary["rate"] <= LARGEST_RATE and summary["perplexity_difference"] <= LARGEST_DIFFERENCE
    return 0 if close and summary["tokens_identical"] and unified["unified_layers"] else 1


if __name__ == "__main__":
    sys.exit(main())
