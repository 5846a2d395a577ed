"""The report as a page, and what it says of bytes and tokens/s."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from small_models import (
    FLOAT,
    FLOAT16,
    HEAD_SIZE,
    HIDDEN,
    KV_HEADS,
    POSITIONS,
    VOCABULARY,
    attention_nodes,
    decoder,
    save_folder,
)

from fdpp_ort.cli.export import main
from fdpp_ort.export import ExportError, ExportReport, export_model, find_gpu, to_html
from fdpp_ort.export.calibrate import Calibration, HeadScores, LayerScores
from fdpp_ort.export.gpus import Gpu
from fdpp_ort.export.traffic import traffic_of

_EMPTY = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Rows of the tables by their ids, text, tags that were opened and not closed, what would be loaded."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.text, self.open, self.loads, self._rows, self._cell = "", [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.loads += [value for name, value in values.items() if name in ("src", "href")]
        if tag not in _EMPTY:
            self.open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(values["id"], [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        pass  # lines of the plot

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self._rows[-1].append(self._cell)
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell += data
        if not {"style"} & set(self.open):
            self.text += data


def words(page: Page) -> str:
    return " ".join(page.text.split())


@pytest.fixture
def exported(tmp_path: Path, library: str) -> tuple[ExportReport, Path]:
    """Two layers, one of which stays as it is; calibrated."""
    proto = decoder(layers=2)
    attention_nodes(proto)[1].attribute.append(helper.make_attribute("smooth_softmax", 1))
    tokens = tmp_path / "tokens.npz"
    np.savez(tokens, np.random.default_rng(0).integers(0, VOCABULARY, 4 * POSITIONS))
    folder = save_folder(proto, tmp_path / "in")
    gpu = Gpu("Some <GPU>", 1e9)
    options = {"calibrate": tokens, "max_length": POSITIONS, "gpu": gpu, "library": library}
    return export_model(folder, tmp_path / "out", **options), tmp_path / "out"


def test_says_all_that_the_report_says(exported) -> None:
    report, out = exported
    text = (out / "fdpp_report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert text == to_html(report) and page.open == [] and page.loads == []
    assert not re.search(r"url\(|@import|<script|http", text)

    assert dict(page.tables["rewritten"][1:]) == {what: str(count) for what, count in report.rewritten.items()}
    ((_, left),) = [page.tables["left"]] if len(page.tables["left"]) == 2 else []
    assert left == [report.left[0].op, report.left[0].node, report.left[0].reason]
    phases = page.tables["phases"][1:]
    assert [row[:2] for row in phases] == [["prefill", "29"], ["decode", "32"]]
    assert phases[0][3] == f"{report.verification.phases[0].relative_error:.2e}"
    outputs = {row[0]: row[2] for row in page.tables["outputs"][1:]}
    assert outputs == {output.name: f"{output.relative_error:.2e}" for output in report.verification.outputs}
    assert len(outputs) == 4
    said = words(page)
    assert "Verification: passed" in said and "17, 17 of 17 in each row" in said
    assert "Some <GPU> reads 1 GB/s" in said and "unified in 1 of 1 layers" in said
    (step,) = report.traffic.steps
    assert page.tables["traffic"][1][0] == str(POSITIONS) and page.tables["traffic"][1][3] == f"{1e9 / step.bytes:.0f}"


def test_of_little(tmp_path: Path, stand_in: Path, model_folder: Path) -> None:
    report = export_model(model_folder, tmp_path / "out", verify=False, library=stand_in)
    page = Page(to_html(report))
    said = words(page)
    assert "Verification: not verified (not asked for)" in said and "No attention and no matrix product." in said
    assert "--gpu NAME" in said and set(page.tables) == {"rewritten", "traffic"}
    assert [len(row) for row in page.tables["traffic"]] == [3] * 6  # 128 to 32768 tokens, no tokens/s


def head(low: float, high: float, phi: float) -> HeadScores:
    return HeadScores(low - 1, high + 1, low, high, phi, 0.0)


def test_the_plot_shows_each_layers_range(report: ExportReport) -> None:
    """OPT's range beside an everyday one."""
    heads = [[head(-10, 12, 1)], [head(-496.8, 363.5, -7), head(-5, 5, 0)]]
    layers = [LayerScores(f"layer <{i}>", -20, 20, (0, 0.7)[i], i == 0, scores) for i, scores in enumerate(heads)]
    report.calibration = Calibration("text", 512, 256, layers)
    text = to_html(report)
    plot = xml.etree.ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    ticks = {
        float(item.text): float(item.get("y")) - 4 for item in plot.findall("text") if item.get("text-anchor") == "end"
    }
    assert min(ticks) <= -497.8 and max(ticks) >= 364.5
    groups = plot.findall("g")
    assert [group.find("title").text for group in groups] == ["layer <0>", "layer <1>"]
    assert len({group.get("stroke") for group in groups}) == 2
    (low, at_low), (high, at_high) = min(ticks.items()), max(ticks.items())

    def score(y: str) -> float:
        return low + (float(y) - at_low) / (at_high - at_low) * (high - low)

    whole, most, *phis = groups[1].findall("line")
    assert [score(whole.get(end)) for end in ("y1", "y2")] == pytest.approx([364.5, -497.8], abs=1)
    assert [score(most.get(end)) for end in ("y1", "y2")] == pytest.approx([363.5, -496.8], abs=1)
    assert [score(line.get("y1")) for line in phis] == pytest.approx([-7, 0], abs=1)
    rows = Page(text).tables["layers"]
    assert [row[:3] for row in rows[1:]] == [["layer <0>", "unified", "0.000 %"], ["layer <1>", "lazy", "70.000 %"]]


# ---- bytes


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_bytes_of_a_step(tied: bool, target: str, tmp_path: Path, stand_in: Path) -> None:
    """Of an embedding one row is read, unless a product reads it, too."""
    folder = save_folder(decoder(tied=tied), tmp_path / "in")
    options = {"max_length": POSITIONS, "verify": False, "target": target, "gpu": Gpu("", 1e6)}
    report = export_model(folder, tmp_path / "out", library=stand_in, **options)
    products = HIDDEN * (HIDDEN + 2 * KV_HEADS * HEAD_SIZE) + HIDDEN * HIDDEN + HIDDEN * VOCABULARY
    rows = 2 * HEAD_SIZE // 2 + (0 if tied else HIDDEN)
    assert 0 <= report.traffic.weights - 4 * (products + rows) < 100  # a few integers of the graph
    token = 2 * 4 * KV_HEADS * HEAD_SIZE
    (last,) = report.traffic.steps
    assert (last.context, last.cache_bytes) == (POSITIONS, POSITIONS * token)
    assert last.bytes == report.traffic.weights + last.cache_bytes and last.tokens_per_second == 1e6 / last.bytes
    written = json.loads((tmp_path / "out" / "fdpp_report.json").read_text())["traffic"]
    assert written["steps"][-1]["bytes"] == last.bytes


@pytest.mark.parametrize("dimension", [1, 3])
def test_sizes_that_only_the_attention_states(dimension: int) -> None:
    """As in onnxruntime-genai's graphs."""
    proto = decoder()
    for value in proto.graph.input[2:]:
        value.type.tensor_type.shape.dim[dimension].dim_param = "some"
    (step,) = traffic_of(ir.from_proto(proto), 100, None).steps
    assert step.cache_bytes == 100 * 2 * 4 * KV_HEADS * HEAD_SIZE


@pytest.mark.parametrize("shape", [[], [0, 3]])
def test_tables_without_rows(shape: list[int]) -> None:
    """Damaged graphs have them."""
    proto = decoder()
    (before,) = traffic_of(ir.from_proto(proto), 100, None).steps
    proto.graph.initializer.append(helper.make_tensor("table", FLOAT, shape, [1.0] if shape == [] else []))
    proto.graph.node.append(helper.make_node("Gather", ["table", "input_ids"], ["found"], name="look up"))
    (step,) = traffic_of(ir.from_proto(proto), 100, None).steps
    assert step.bytes == before.bytes + (4 if shape == [] else 0)


def test_caches_of_unknown_size() -> None:
    proto = decoder(packed=False)
    del proto.graph.value_info[:]
    for value in proto.graph.input[2:]:
        value.type.tensor_type.ClearField("shape")
    assert traffic_of(ir.from_proto(proto), 100, None) is None


def test_a_window_and_a_narrow_cache() -> None:
    proto = decoder(layers=2, dtype=FLOAT16)
    window = next(item for item in attention_nodes(proto)[1].attribute if item.name == "local_window_size")
    window.i = 100
    token = 2 * 2 * KV_HEADS * HEAD_SIZE
    (short, long) = traffic_of(ir.from_proto(proto), 1000, None).steps
    assert short.cache_bytes == (128 + 100) * token and long.cache_bytes == (1000 + 100) * token
    assert long.tokens_per_second is None


# ---- GPUs


@pytest.mark.parametrize(
    ("text", "bandwidth"), [("H200", 4.8e12), ("rtx4090", 1.008e12), ("A100 80gb", 2.039e12), ("512.5", 512.5e9)]
)
def test_gpus_by_name_and_number(text: str, bandwidth: float) -> None:
    assert find_gpu(text).bandwidth == pytest.approx(bandwidth)


@pytest.mark.parametrize("text", ["", "H2000X", "0", "-5", "inf", "nan"])
def test_gpus_that_are_not_known(text: str) -> None:
    with pytest.raises(ExportError, match=r"is not known; expected GB/s or one of B200, H200"):
        find_gpu(text)


def test_from_the_command_line(model_folder: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "page.html"
    assert main([str(model_folder), str(tmp_path / "out"), "--no-verify", "--gpu", "h200", "--report", str(page)]) == 0
    assert "H200 allows one row at most so many tokens/s" in capsys.readouterr().out
    assert page.read_text() == (tmp_path / "out" / "fdpp_report.html").read_text()
    assert main([str(model_folder), str(tmp_path / "other"), "--gpu", "h3000"]) == 1
    assert "GPU 'h3000' is not known" in capsys.readouterr().err and not (tmp_path / "other").exists()
