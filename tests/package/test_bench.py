"""fdpp-bench, benchmarks/bench_model.py and benchmarks/soak.py over decoders small enough to time in a test."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from random_decoder import make
from tiny_decoder import CONTEXT_LENGTH

from fdpp_ort.bench import timing
from fdpp_ort.bench.cells import DECODE, PREFILL, Cell, list_cells
from fdpp_ort.bench.limit import Limit
from fdpp_ort.bench.online_softmax import with_online_softmax
from fdpp_ort.bench.quality import agreement
from fdpp_ort.bench.random_cache import by_numpy, by_torch
from fdpp_ort.bench.session_runner import SessionRunner
from fdpp_ort.bench.spec import Spec
from fdpp_ort.errors import FdppError
from fdpp_ort.generation import Decoder, load_model

QUICK = ("--new-tokens", 4, "--rounds", 1)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def lines_of(journal: Path) -> list[dict]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def names_of(content: dict) -> list[str]:
    return [candidate["name"] for candidate in content["candidates"] if not candidate["absent"]]


# ---- decoders with random weights


@pytest.mark.parametrize("block_size", [0, 32, 128])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-opt", "tiny-glm"])
def test_random_decoders_are_exported_in_full(random_decoders, tmp_path, name: str, block_size: int) -> None:
    _, shapes = random_decoders
    _, exported, report = make(random_decoders, tmp_path, name, "f32", block_size, verify=True)
    shape = shapes.named_shape(name)
    product = "MatMulNBits" if block_size else "MatMul"
    assert report.left == []
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == shape.layers
    assert report.rewritten[f"{product} -> FdppFlatGemm"] == len(shape.products())
    assert report.verification.status == "passed"


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-opt", "tiny-glm"])
def test_genai_runs_them(random_decoders, tmp_path, name: str) -> None:
    pytest.importorskip("onnxruntime_genai")
    from fdpp_ort.bench.genai_runner import GenaiRunner
    from fdpp_ort.bench.spec import Spec

    original, exported, _ = make(random_decoders, tmp_path, name, "f32")
    for folder in (original, exported):
        runner = GenaiRunner(Spec("genai", str(folder), "cpu", threads=1, new_tokens=3))
        assert len(runner.decode(2, 20)) == 3
        assert len(runner.prefill(1, 20, 2)) == 2


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-opt", "tiny-glm"])
def test_transformers_run_them(random_decoders, tmp_path, name: str) -> None:
    pytest.importorskip("transformers")
    from fdpp_ort.bench.spec import Spec
    from fdpp_ort.bench.torch_runners import EagerRunner

    decoders, shapes = random_decoders
    decoders.write_folder(tmp_path / name, shapes.named_shape(name), "f32")
    runner = EagerRunner(Spec("hf", str(tmp_path / name), "cpu", new_tokens=3, dtype="float32"))
    assert len(runner.decode(2, 20)) == 3
    assert len(runner.prefill(1, 20, 2)) == 2


def test_transformers_know_their_shapes(random_decoders, tmp_path) -> None:
    """As many weights as the graph has, tables and positions aside."""
    transformers = pytest.importorskip("transformers")
    decoders, shapes = random_decoders
    for name in ("tiny-llama", "tiny-opt", "tiny-glm"):
        shape = shapes.named_shape(name)
        decoders.write_folder(tmp_path / name, shape, "f32")
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path / name))
        stored = decoders.layout(shape, onnx.TensorProto.FLOAT)
        assert sum(weight.numel() for weight in model.parameters()) == sum(tensor.count for tensor in stored)


# ---- fdpp-bench model


@pytest.fixture(scope="module")
def measured(llama, tmp_path_factory) -> Path:
    """Results of a run with what a test environment has."""
    output = tmp_path_factory.mktemp("bench") / "results.json"
    original, exported = llama
    arguments = [original, "--fdpp", exported, "--peers", "ort,genai,vllm", "--ablations", "--bandwidth", 20]
    cells = ["--batch", "1,2", "--context", "64,32", "--prefill", 16, "--new-tokens", 4, "--rounds", 2]
    done = bench("model", *arguments, *cells, "-o", output, "--plot", output.with_suffix(".svg"))
    assert done.returncode == 0, done.stderr
    assert "fdpp-no-t3" in done.stdout
    assert "vllm: absent: it needs a GPU" in done.stdout
    assert "wrote " + str(output.with_name("results-ablations.svg")) in done.stdout
    return output


def bench(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-P", "-m", "fdpp_ort.cli.bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_candidate_has_every_cell(measured) -> None:
    content = read(measured)
    names = names_of(content)
    assert set(names) >= {"fdpp", "ort", "fdpp-no-t1", "fdpp-no-t2", "fdpp-no-t3"}
    assert content["left_out"] == []
    cells = [(row["phase"], row["batch"], row["tokens"]) for row in content["rows"]]
    first = [(DECODE, 1, 64), (DECODE, 2, 64), (PREFILL, 1, 16)]
    assert cells == [*first, (DECODE, 1, 32), (DECODE, 2, 32)]
    for row in content["rows"]:
        assert row["failed"] == {}
        assert set(row["ms"]) == set(names)
        for name in names:
            assert len(row["rounds"][name]) == 2
            assert row["peak_memory_bytes"][name] > 10e6
            tokens = row["batch"] * (1 if row["phase"] == DECODE else row["tokens"])
            assert row["tokens_per_second"][name] == pytest.approx(1e3 * tokens / row["ms"][name], rel=0.01)
    for name in ("results.svg", "results-ablations.svg"):
        assert measured.with_name(name).stat().st_size > 1000


def test_it_says_where_and_with_what(measured) -> None:
    (run,) = read(measured)["runs"]
    assert run["cpu_threads"] >= 1 and run["date"] and "onnxruntime" in run["versions"]
    assert "fdpp_ort" in run["command"] or "bench" in run["command"]


def test_the_limit_is_the_bytes_of_weights_and_caches(measured, random_decoders) -> None:
    _, shapes = random_decoders
    shape = shapes.named_shape("tiny-llama")
    token = 2 * shape.layers * shape.kv_heads * shape.head_size * 4
    read_bytes = {(r["batch"], r["tokens"]): r["bytes_read"] for r in read(measured)["rows"] if r["phase"] == DECODE}
    assert read_bytes[2, 64] - read_bytes[1, 64] == 64 * token
    assert read_bytes[1, 64] - read_bytes[1, 32] == 32 * token
    weights = 4 * (sum(map(math.prod, shape.products().values())) + len(shape.norms()) * shape.hidden)
    # Besides, of embedding and rotary tables one row each, and the constants of shapes.
    others = read_bytes[1, 64] - 64 * token - weights
    assert 4 * shape.hidden <= others < 4 * shape.hidden + 1024
    for row in read(measured)["rows"]:
        if row["phase"] == PREFILL:
            assert row["limit_ms"] is None and row["of_limit"] == {}
            continue
        assert row["limit_ms"] == pytest.approx(row["bytes_read"] / 20e9 * 1e3, abs=1e-4)
        for name, share in row["of_limit"].items():
            assert share == pytest.approx(row["limit_ms"] / row["ms"][name], rel=0.01)


def test_ratios_are_of_the_same_round(measured) -> None:
    content = read(measured)
    found = content["comparisons"]["ort / fdpp"][DECODE]
    decode = [row for row in content["rows"] if row["phase"] == DECODE]
    pairs = [zip(row["rounds"]["ort"], row["rounds"]["fdpp"], strict=True) for row in decode]
    expected = [np.median([a / b for a, b in pair]) for pair in pairs]
    assert found["cells"] == 4
    assert found["geometric_mean"] == pytest.approx(np.exp(np.mean(np.log(expected))), rel=1e-3)
    assert found["least"] == pytest.approx(min(expected), rel=1e-3)


def test_candidates_take_turns(measured) -> None:
    lines = [line for line in lines_of(measured.with_suffix(".measured.jsonl")) if "candidate" in line]
    turns = [(line["round"], line["candidate"]) for line in lines]
    order = list(dict.fromkeys(turns))
    names = [name for turn, name in order if turn == 1]
    assert order == [(turn, name) for turn in (1, 2) for name in names]


def test_resume_measures_what_is_missing_alone(llama, tmp_path) -> None:
    original, exported = llama
    output = tmp_path / "r.json"
    journal = output.with_suffix(".measured.jsonl")
    arguments = ["model", original, "--fdpp", exported, "--peers", "ort", "--batch", 1, "--context", "32,64", *QUICK]
    assert bench(*arguments, "-o", output).returncode == 0
    whole = journal.read_text()
    lines = whole.splitlines(keepends=True)
    kept = [line for line in lines if not ('"ort"' in line and '"tokens": 64' in line)]
    assert 0 < len(lines) - len(kept) < 4
    journal.write_text("".join(kept) + '{"cell": half a line')
    done = bench(*arguments, "-o", output, "--resume")
    assert done.returncode == 0, done.stderr
    assert "fdpp" not in done.stderr.replace("fdpp-bench", "")  # had nothing left to do
    again = journal.read_text()
    assert again.startswith("".join(kept))
    assert len(lines_of(journal)) == len(lines) + 1  # a second run
    content = read(output)
    assert len(content["runs"]) == 2 and content["left_out"] == []
    assert all(set(row["ms"]) >= {"fdpp", "ort"} for row in content["rows"])
    assert bench(*arguments, "-o", output).returncode == 0
    assert len(lines_of(journal)) == len(lines)  # without --resume it begins anew


def test_another_measurement_is_not_gone_on_with(llama, tmp_path) -> None:
    output = tmp_path / "r.json"
    arguments = ["model", llama[0], "--peers", "ort", "--batch", 1, "--context", 32, "--rounds", 1, "-o", output]
    assert bench(*arguments, "--new-tokens", 4).returncode == 0
    done = bench(*arguments, "--new-tokens", 5, "--resume")
    assert done.returncode == 1
    assert "leave out --resume" in done.stderr and "Traceback" not in done.stderr


def test_what_is_left_out_for_lack_of_time_is_named(llama, tmp_path) -> None:
    output = tmp_path / "r.json"
    arguments = ["model", *llama[:1], "--fdpp", llama[1], "--peers", "ort", "--batch", 1, "--context", 32, *QUICK]
    done = bench(*arguments, "-o", output, "--time-budget", 0.001)
    assert done.returncode == 0, done.stderr
    content = read(output)
    assert "ort, decode 1x32, round 1" in content["left_out"]
    assert all(row["ms"] == {} and row["failed"] == {} for row in content["rows"])
    assert "left out for lack of time" in done.stdout
    assert bench(*arguments, "-o", output, "--resume").returncode == 0
    assert read(output)["left_out"] == []


def test_time_left_over_goes_to_what_was_left_out(tmp_path, monkeypatch) -> None:
    """A clock that the worker moves on: the first turn's share is too short for the second cell, all of it is not."""
    from fdpp_ort.bench import schedule
    from fdpp_ort.bench.candidates import Candidate
    from fdpp_ort.bench.journal import Journal
    from fdpp_ort.bench.spec import Spec

    now = [0.0]

    class Clockwork:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def answer(self, seconds):
            return {"took": 1.0}

        def measure(self, cell, seconds):
            now[0] += 10
            return {"seconds": [0.1], "took": 10.0}

    monkeypatch.setattr(schedule, "Worker", Clockwork)
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now[0])
    cells = list_cells([1, 2], [64], [])
    candidates = [Candidate(name, Spec("session", "", "cpu")) for name in "ab"]
    both = ["a, decode 2x64, round 1", "b, decode 2x64, round 1"]
    for deadline, left_out in ((45.0, []), (30.0, both)):
        now[0] = 0.0
        journal = Journal(tmp_path / f"{deadline}.jsonl", {}, resume=False)
        plan = schedule.Schedule(journal, cells, lambda cell: "", lambda: None, lambda what: None, deadline)
        plan.run(candidates, 1)
        assert plan.left_out(candidates, 1) == left_out


def test_an_absent_peer_is_no_zero(original_folder, tmp_path) -> None:
    """That folder has no config.json for transformers."""
    output = tmp_path / "r.json"
    arguments = ["--peers", "ort,hf", "--batch", 1, "--context", 32, *QUICK, "-o", output]
    done = bench("model", original_folder, *arguments)
    assert done.returncode == 0, done.stderr
    content = read(output)
    (absent,) = [candidate for candidate in content["candidates"] if candidate["name"] == "hf"]
    assert absent["absent"] == "transformers' config.json is not there"
    assert names_of(content) == ["ort"]
    assert all("hf" not in row["ms"] and "hf" not in row["failed"] for row in content["rows"])


def test_a_candidate_that_fails_leaves_the_others(llama, tmp_path, monkeypatch) -> None:
    output = tmp_path / "r.json"
    arguments = ["--peers", "ort", "--batch", 1, "--context", 32, *QUICK, "-o", output]
    with monkeypatch.context() as forced:
        forced.setenv("FDPP_FORCE", "FdppFlatGemm=cpu_avx2_vnni_gemv")  # takes int4 alone
        done = bench("model", llama[0], "--fdpp", llama[1], *arguments)
    assert done.returncode == 0, done.stderr
    for row in read(output)["rows"]:
        assert "FdppError" in row["failed"]["fdpp"]
        assert "fdpp" not in row["ms"] and row["ms"]["ort"] > 0
    broken = shutil.copytree(llama[0], tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"no graph")
    output = tmp_path / "b.json"
    arguments[-1] = output
    done = bench("model", broken, "--fdpp", llama[1], *arguments)
    assert done.returncode == 0, done.stderr
    for row in read(output)["rows"]:
        assert "does not load: FdppError" in row["failed"]["ort"]
        assert "ort" not in row["ms"] and row["ms"]["fdpp"] > 0


def test_a_process_that_ends_is_said_to(tmp_path) -> None:
    from fdpp_ort.bench.candidates import Candidate
    from fdpp_ort.bench.process import Worker, WorkerEnded
    from fdpp_ort.bench.spec import Spec

    ends = Candidate("x", Spec("no such worker", str(tmp_path), "cpu"))
    with Worker(ends, lambda: None) as worker, pytest.raises(WorkerEnded, match="exit status 1: .*no such worker"):
        worker.answer(60)
    hangs = Candidate("x", Spec("session", str(tmp_path), "cpu"))
    with Worker(hangs, lambda: None) as worker:
        assert "expected one .onnx file" in worker.answer(60)["error"]
    with Worker(hangs, lambda: None) as worker, pytest.raises(WorkerEnded, match="no answer within"):
        worker.answer(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give MODEL, --fdpp or both"),
        (["none"], "none: expected a folder, found nothing"),
        (["ORIGINAL", "--peers", "tensorflow"], "unknown: tensorflow; expected some of ort, ort-graph, genai"),
        (["ORIGINAL", "--batch", "0,1"], "expected positive whole numbers, as 1,8, found '0,1'"),
        (["ORIGINAL", "--context", "many"], "expected positive whole numbers"),
        (["ORIGINAL", "--rounds", "0"], "expected positive whole numbers"),
        (["ORIGINAL", "--ablations"], "give it by --fdpp"),
        (["ORIGINAL", "--bandwidth", "fast"], "GPU 'fast' is not known"),
        (["ORIGINAL", "--checkpoint", "ORIGINAL"], "it has no config.json"),
        (["ORIGINAL", "-o", "no-such-folder/r.json"], "no folder for the results"),
        (["ORIGINAL", "--peers", ""], "no candidate can run: none was asked for"),
        (["ORIGINAL", "--peers", "vllm"], "no candidate can run: vllm: it needs a GPU"),
    ],
)
def test_bad_arguments(arguments, message, original_folder, tmp_path, monkeypatch, capsys) -> None:
    from fdpp_ort.cli.bench import main

    monkeypatch.chdir(tmp_path)
    given = [str(original_folder) if word == "ORIGINAL" else word for word in arguments]
    try:
        status = main(["model", *given])
    except SystemExit as error:
        status = error.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err


# ---- parts


def test_cells_come_in_the_order_of_importance() -> None:
    cells = list_cells([8, 1], [64, 32], [16])
    assert [cell.key for cell in cells] == [
        "decode 8x64",
        "decode 1x64",
        "prefill 1x16",
        "decode 8x32",
        "decode 1x32",
    ]


def test_what_does_not_fit_is_said_to(llama) -> None:
    limit = Limit(llama[1], None, 10_000_000, 4)
    assert limit.misfit(Cell(DECODE, 1, 64)) == ""
    assert limit.misfit(Cell(DECODE, 1000, 64)).startswith("does not fit: 0.1 GB")
    assert limit.seconds(Cell(DECODE, 1, 64)) is None


def test_the_online_softmax_shares_the_weights(llama, tmp_path) -> None:
    folder = with_online_softmax(llama[1], tmp_path / "online")
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    modes = [attribute.s for node in graph.node for attribute in node.attribute if attribute.name == "softmax_mode"]
    assert modes == [b"online"] * 2
    data = folder / "model.onnx.data"
    assert data.stat().st_ino == (llama[1] / data.name).stat().st_ino
    with pytest.raises(FdppError, match="it has no FdppAttention"):
        with_online_softmax(llama[0], tmp_path / "other")


@pytest.mark.parametrize("element_type", [1, 10, 16])
def test_caches_of_random_numbers(element_type: int) -> None:
    shape = (2, 3, 16, 8)
    torch = pytest.importorskip("torch")
    for value in (by_numpy(shape, element_type), by_torch(shape, element_type, "cpu")):
        assert value.shape() == list(shape) and value.element_type() == element_type
    numbers = torch.from_dlpack(by_torch(shape, element_type, "cpu")).float()
    assert 0.8 < numbers.std() < 1.2
    if element_type != 16:
        assert 0.8 < by_numpy(shape, element_type).numpy().astype(np.float32).std() < 1.2


def test_fixed_inputs_change_no_logits(llama) -> None:
    """The mask's columns beyond the sequence are zeros then, as with a CUDA graph."""
    model = load_model(llama[1], "cpu")
    prompt = np.arange(10)[None] * 7
    found = []
    for fixed in (False, True):
        decoder = Decoder(model, 1, 32, fixed_inputs=fixed)
        decoder.prefill(prompt)
        found.append(np.stack([decoder.step(np.array([[token]])) for token in (3, 1, 4)]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_a_pretended_length_counts(llama) -> None:
    """A step at length 10 over a cache of nothing but what a prompt of 10 tokens left there."""
    model = load_model(llama[1], "cpu")
    decoder = Decoder(model, 1, 32)
    decoder.prefill(np.arange(10)[None])
    expected = decoder.step(np.array([[5]]))
    decoder.step(np.array([[6]]))
    decoder.pretend(10)
    np.testing.assert_array_equal(decoder.step(np.array([[5]])), expected)
    with pytest.raises(FdppError, match="length is 33"):
        decoder.pretend(33)


@pytest.mark.parametrize("context", [16, CONTEXT_LENGTH - 1, CONTEXT_LENGTH])
def test_a_runner_times_each_step_it_is_asked_for(fdpp_folder, context: int) -> None:
    """Where the model's context ends, some at a time."""
    runner = SessionRunner(Spec("session", str(fdpp_folder), "cpu", new_tokens=5))
    seconds = runner.decode(2, context)
    assert len(seconds) == 5 and min(seconds) > 0


def test_intervals_are_over_two_items(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def items():
        for pause in (7, 1, 3, 0, 8):
            now[0] += pause
            yield pause

    assert timing.intervals(items()) == [2, 1.5, 4]
    assert timing.intervals(iter(())) == []


# ---- plots


def results(rows: list[tuple[int, int, dict[str, float]]], captured: tuple[str, ...] = ()) -> dict:
    """What plots read of results: rows of batch, context and milliseconds."""
    names = sorted({name for _, _, ms in rows for name in ms})
    return {
        "model": "M",
        "runs": [{"gpu": "a GPU, driver 1", "cpu": "a CPU", "date": "2026-11-23T15:25:17+00:00"}],
        "candidates": [{"name": name, "absent": "", "cuda_graph": name in captured} for name in names],
        "rows": [
            {"phase": DECODE, "batch": batch, "tokens": context, "limit_ms": 1.5 * batch, "ms": ms}
            for batch, context, ms in rows
        ]
        + [{"phase": PREFILL, "batch": 1, "tokens": 8, "limit_ms": None, "ms": {"ort": 1.0}}],
    }


def lines_by_label(axis) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): [tuple(point) for point in line.get_xydata()] for line in axis.get_lines()}


def test_the_plot_shows_ours_the_peers_and_the_limit() -> None:
    """What runs without CUDA graph is drawn only where nothing runs with it; what is far slower is written."""
    from fdpp_ort.bench.plot import draw_peers

    slow = {"fdpp": 3.0, "fdpp-graph": 2.0, "ort": 5.0, "ort-graph": 4.0, "hf": 80.0}
    content = results(
        [(8, 64, {**slow, "hf": 90.0}), (1, 64, slow), (1, 32, {"fdpp-graph": 2.0, "hf": 3.0})],
        captured=("fdpp-graph", "ort-graph"),
    )
    figure = draw_peers(content)
    assert figure.get_suptitle() == "M, a GPU, 2026-11-23: a decoding step"
    short, long = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["32 tokens of context", "64 tokens of context"]
    assert lines_by_label(long) == {
        "byte limit": [(1, 1.5), (8, 12.0)],
        "fdpp, CUDA graph": [(1, 2.0), (8, 2.0)],
        "ONNX Runtime, CUDA graph": [(1, 4.0), (8, 4.0)],
    }
    assert [text.get_text() for text in long.texts] == ["Hugging Face eager: 80 to 90 ms"]
    assert lines_by_label(short)["Hugging Face eager"] == [(1, 3.0)]
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 4  # each once


def test_a_cpu_has_no_cuda_graphs() -> None:
    from fdpp_ort.bench.plot import draw_ablations, draw_peers

    content = results([(1, 64, {"fdpp": 3.0, "ort": 5.0, "genai": 6.0})])
    (axis,) = draw_peers(content).axes
    assert set(lines_by_label(axis)) == {"byte limit", "fdpp", "ONNX Runtime", "GenAI"}
    assert draw_ablations(content) is None


def test_ablations_are_plotted_as_ratios(tmp_path) -> None:
    from fdpp_ort.bench.plot import draw_ablations, plot

    content = results([(2, 64, {"fdpp": 2.0, "fdpp-no-t1": 3.0, "fdpp-no-t3": 4.0}), (1, 64, {"fdpp-no-t1": 3.0})])
    (axis,) = draw_ablations(content).axes
    lines = lines_by_label(axis)
    assert lines["T1 off: online softmax"] == [(2, 1.5)]
    assert lines["T3 off: products by the flat kernel alone"] == [(2, 2.0)]
    assert not any(label.startswith("T2") for label in lines)
    written = [tmp_path / name for name in ("p.png", "p-ablations.png")]
    assert plot(written[0], content) == written
    assert set(tmp_path.iterdir()) == set(written)
    with pytest.raises(FdppError, match="the plot cannot be written"):
        plot(tmp_path / "no-such-folder" / "p.png", content)


def test_a_plot_of_nothing(tmp_path) -> None:
    """All left out for lack of time: panels without lines."""
    from fdpp_ort.bench.plot import plot

    content = results([(1, 64, {}), (2, 64, {})])
    for row in content["rows"]:
        row["limit_ms"] = None
    assert plot(tmp_path / "p.png", content) == [tmp_path / "p.png"]


# ---- fdpp-bench quality


@pytest.fixture
def text(tmp_path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(" ".join(f"w{(i * i) % 37}" for i in range(200)))
    return file


QUALITY = ("--tokens", 20, "--prompt-tokens", 8, "--row", 48)


def test_quality_of_the_same_model(original_folder, fdpp_folder, text, tmp_path) -> None:
    output = tmp_path / "q.json"
    done = bench("quality", original_folder, fdpp_folder, "--text", text, *QUALITY, "-o", output)
    assert done.returncode == 0, done.stderr
    content = read(output)
    assert content["same_tokens"] == [20, 20] and content["partings"] == [] and content["passed"]
    assert content["perplexity_difference"] < 1e-5
    assert content["perplexity"]["original"] > 1


def test_quality_of_another_model(original_folder, fdpp_folder, text, tmp_path) -> None:
    other = shutil.copytree(fdpp_folder, tmp_path / "other")
    model = onnx.load(other / "model.onnx")
    (head,) = [tensor for tensor in model.graph.initializer if tensor.name == "head"]
    head.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(head), "head"))
    onnx.save(model, other / "model.onnx")
    output = tmp_path / "q.json"
    done = bench("quality", original_folder, other, "--text", text, *QUALITY, "-o", output)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "greedy tokens that agree, of 20: 0" in done.stdout
    assert "prompt 0 parts after 0 tokens: the original gives its own token" in done.stdout
    for parting in read(output)["partings"]:
        its, ours = parting["logits"]
        # Ours is the original's least likely token: all logits have the other sign.
        assert its > ours and parting["spacing"] == np.spacing(np.float32(abs(its)))


def test_quality_of_a_short_text(original_folder, fdpp_folder, text) -> None:
    done = bench("quality", original_folder, fdpp_folder, "--text", text, "--row", 500)
    assert done.returncode == 1
    assert "has 200 tokens, expected at least 500" in done.stderr


def test_agreement_counts_up_to_the_first_other_token() -> None:
    assert agreement([[1, 2, 3], [4, 5]], [[1, 2, 4], [4, 5]]) == [2, 2]


# ---- programs of benchmarks/


def test_bench_model_makes_and_measures(benchmarks, tmp_path) -> None:
    sizes = ["--batch", "1", "--context", "32", "--prefill", "16", "--new-tokens", "4", "--rounds", "1"]
    command = [sys.executable, benchmarks / "bench_model.py", "--output-dir", tmp_path / "out", "--work", tmp_path]
    models = ["--models", "tiny-llama,tiny-opt", "--weights", "int4-32", "--provider", "cpu", "--peers", "ort"]
    done = subprocess.run([*command, *models, *sizes], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("tiny-llama", "tiny-opt"):
        content = read(tmp_path / "out" / f"{name}-int4-32.json")
        assert all(row["ms"]["fdpp"] > 0 and row["ms"]["ort"] > 0 for row in content["rows"])
        assert "commit" in content["runs"][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # weights are gone
    again = subprocess.run([*command, *models, *sizes, "--resume"], capture_output=True, text=True)
    assert again.returncode == 0 and "round" not in again.stdout


def test_bench_model_wants_room(benchmarks, random_decoders, tmp_path) -> None:
    sys.path.insert(0, str(benchmarks))
    try:
        import bench_model
    finally:
        sys.path.pop(0)
    _, shapes = random_decoders
    with pytest.raises(OSError, match=r"GB free, two models of it take \d+\.\d: --work"):
        bench_model.make(shapes.named_shape("Llama2-13B", 10_000), "f16", tmp_path, "cuda")


def test_soak(benchmarks, llama, tmp_path) -> None:
    command = [sys.executable, benchmarks / "soak.py", llama[1], "--steps", "600", "--capacity", "64"]
    done = subprocess.run([*command, "--output", tmp_path / "s.json"], capture_output=True, text=True)
    content = read(tmp_path / "s.json")
    assert content["steps"] == 600 and content["passed"]["memory"], done.stderr
    assert content["slower"] is not None  # how much is no matter for a test: others run beside it


# ---- on a GPU


@pytest.mark.gpu
def test_on_a_gpu(random_decoders, tmp_path) -> None:
    original, exported, _ = make(random_decoders, tmp_path, "tiny-llama", "f16")
    output = tmp_path / "r.json"
    peers = "ort,ort-graph,genai,genai-no-graph,hf"
    cells = ["--batch", "1,2", "--context", "64,32", "--prefill", 16, *QUICK]
    arguments = [original, "--fdpp", exported, "--provider", "cuda", "--peers", peers, "--ablations"]
    done = bench("model", *arguments, *cells, "-o", output)
    assert done.returncode == 0, done.stderr
    content = read(output)
    assert {"fdpp", "fdpp-graph", "ort", "ort-graph"} <= set(names_of(content))
    for row in content["rows"]:
        assert set(row["failed"]) <= ({"genai"} if row["batch"] > 1 else set())
        assert all(value > 0 for value in row["ms"].values())


@pytest.mark.gpu
def test_each_decoder_captures_a_graph_of_its_own(random_decoders, tmp_path) -> None:
    _, exported, _ = make(random_decoders, tmp_path, "tiny-llama", "f16")
    plain, captured = load_model(exported, "cuda"), load_model(exported, "cuda", cuda_graph=True)
    for capacity in (32, 48):
        found = []
        for model in (plain, captured):
            decoder = Decoder(model, 1, capacity)
            decoder.prefill(np.arange(10)[None])
            found.append(np.stack([decoder.step(np.array([[token]])) for token in range(8)]))
        np.testing.assert_allclose(found[1], found[0], rtol=1e-2, atol=1e-2)
