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
import hashlib
import json
import math
import sys
import time
from pathlib import Path

import machine
import numpy as np
from bench_generate import PROMPTS

import fdpp_ort
from fdpp_ort.generation import Decoder, ModelFolder, TextCodec, load_model

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")
LARGEST_RATE, LARGEST_DIFFERENCE = 0.005, 1e-4


def rows_that_left() -> int:
    return sum(plan["out_of_range_rows"] for plan in fdpp_ort.last_plan())


def negative_log_likelihood(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """float64 [tokens - 1], of each next token; logits [tokens, vocabulary]."""
    logits, following = logits[:-1].astype(np.float64), tokens[1:]
    highest = logits.max(axis=-1)
    total = np.log(np.exp(logits - highest[:, None]).sum(axis=-1)) + highest
    return total - logits[np.arange(len(following)), following]


def measure(folder: Path, pieces: np.ndarray, new_tokens: int, provider: str) -> dict:
    """Of one graph; `pieces` int64 [pieces, tokens]."""
    model = load_model(ModelFolder.open(folder), provider)
    codec = TextCodec(folder)
    report = json.loads((folder / "fdpp_report.json").read_text(encoding="utf-8"))
    unified = [layer for layer in (report["calibration"] or {"layers": []})["layers"] if layer["unified"]]
    heads = sum(len(layer["heads"]) for layer in unified)  # query rows a token
    decoder = Decoder(model, 1, pieces.shape[1] + new_tokens)
    start, left = time.perf_counter(), rows_that_left()
    losses = [negative_log_likelihood(decoder.prefill(piece[None]).numpy()[0], piece) for piece in pieces]
    counts = {"prefill": (rows_that_left() - left, pieces.size * heads)}

    prompts = [piece[: len(piece) // 2].tolist() for piece in pieces]
    prompts += [codec.encode_prompt(prompt, raw=False) for prompt in PROMPTS]
    generated, steps, left = [], 0, 0
    for prompt in prompts:
        logits = decoder.prefill(np.array([prompt])).numpy()[:, -1]
        before = rows_that_left()
        tokens = []
        for _ in range(new_tokens):
            tokens.append(int(logits.argmax()))
            logits = decoder.step(np.array([[tokens[-1]]]))
        left += rows_that_left() - before
        steps += new_tokens
        generated.append(tokens)
    counts["decode"] = (left, steps * heads)
    return {
        "folder": folder.name,
        "layers": len(model.caches) // 2,
        "unified_layers": len(unified),
        "foreseen_leaving": report["calibration"] and expected(unified),
        "perplexity": math.exp(np.concatenate(losses).mean()),
        "rows": {
            phase: {"left": out, "of": of, "rate": out / of if of else None} for phase, (out, of) in counts.items()
        },
        "tokens": generated,
        "seconds": time.perf_counter() - start,
    }


def expected(unified: list[dict]) -> float | None:
    shares = [head["leaving"] for layer in unified for head in layer["heads"]]
    return sum(shares) / len(shares) if shares else None


def cut(files: list[Path], codec: TextCodec, row: int, count: int) -> tuple[np.ndarray, list[dict]]:
    """`count` pieces of `row` tokens from each file, evenly over it, and what the files are."""
    pieces, described = [], []
    for file in files:
        content = file.read_bytes()
        tokens = np.array(codec.encode(content.decode("utf-8")), np.int64)
        if tokens.size < row:
            raise SystemExit(f"bench_calibration: error: {file} has {tokens.size} tokens, expected at least {row}")
        begins = np.linspace(0, tokens.size - row, count).astype(int)
        pieces += [tokens[begin : begin + row] for begin in begins]
        described.append({"name": file.name, "tokens": int(tokens.size), "sha256": hashlib.sha256(content).hexdigest()})
    return np.stack(pieces), described


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
    pieces, texts = cut(arguments.held_out, TextCodec(arguments.online), arguments.row, arguments.pieces)
    folders = {"online": arguments.online, "unified": arguments.unified}
    results = {
        name: measure(folder, pieces, arguments.new_tokens, arguments.provider) for name, folder in folders.items()
    }
    online, unified = results["online"], results["unified"]
    same = online["tokens"] == unified["tokens"]
    difference = abs(unified["perplexity"] / online["perplexity"] - 1)
    rows = unified["rows"].values()
    rate = sum(phase["left"] for phase in rows) / max(sum(phase["of"] for phase in rows), 1)
    summary = {
        "unified_layers": f"{unified['unified_layers']} of {unified['layers']}",
        "rate": rate,
        "perplexity_difference": difference,
        "generations": len(online["tokens"]),
        "tokens_identical": same,
    }
    print(
        json.dumps(
            summary | {"perplexity": [online["perplexity"], unified["perplexity"]], "rows": unified["rows"]}, indent=1
        )
    )
    if arguments.output is not None:
        head = machine.describe(PACKAGES)
        settings = {"texts": texts, "row": arguments.row, "pieces": len(pieces), "new_tokens": arguments.new_tokens}
        content = {**head, **settings, "summary": summary, "results": results}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    good = unified["unified_layers"] and same and difference <= LARGEST_DIFFERENCE and rate <= LARGEST_RATE
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
