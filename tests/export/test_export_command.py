"""fdpp-export: exit status, what it prints, and that bad input ends in one line instead of a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_models import attention_nodes, decoder, save_folder

from fdpp_ort.cli.export import main


def test_exports_verifies_and_reports(model_folder: Path, library: str, tmp_path: Path, capsys) -> None:
    report = tmp_path / "report.json"
    assert main([str(model_folder), str(tmp_path / "out"), "--weights", "f16", "--report", str(report)]) == 0
    printed = capsys.readouterr().out
    for text in ("FdppAttention", "FdppFlatGemm", "prefill", "decode", "passed", "wrote"):
        assert text in printed
    assert json.loads(report.read_text()) == json.loads((tmp_path / "out" / "fdpp_report.json").read_text())
    assert (tmp_path / "out" / Path(library).name).read_bytes() == Path(library).read_bytes()


def test_says_that_it_did_not_verify(model_folder: Path, tmp_path: Path, capsys) -> None:
    assert main([str(model_folder), str(tmp_path / "out"), "--no-verify"]) == 0
    assert "not verified: not asked for" in capsys.readouterr().out


def test_prints_what_was_left(tmp_path: Path, capsys) -> None:
    proto = decoder(layers=2)
    attention_nodes(proto)[1].op_type = "PagedAttention"
    folder = save_folder(proto, tmp_path / "in")
    assert main([str(folder), str(tmp_path / "out"), "--no-verify"]) == 0
    printed = capsys.readouterr().out
    assert "Left as they are" in printed and "layers.1.attention" in printed


def test_overwrite(model_folder: Path, tmp_path: Path) -> None:
    arguments = [str(model_folder), str(tmp_path / "out"), "--no-verify"]
    assert [main(arguments), main(arguments), main([*arguments, "--overwrite"])] == [0, 1, 0]


def cut_data(folder: Path) -> None:
    (folder / "model.onnx.data").write_bytes(b"")


def no_data(folder: Path) -> None:
    (folder / "model.onnx.data").unlink()


def no_onnx(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"hello")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def out_exists(folder: Path) -> None:
    (folder.parent / "out").mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_data, "is truncated"),
        (no_data, "is missing: no file"),
        (no_onnx, "not a readable ONNX model"),
        (no_tokenizer, "no tokenizer.json"),
        (out_exists, "was not written by fdpp-export"),
    ],
)
def test_bad_input_ends_in_one_line(spoil, message: str, model_folder: Path, tmp_path: Path, capsys) -> None:
    spoil(model_folder)
    assert main([str(model_folder), str(tmp_path / "out")]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("fdpp-export: error: ") and message in last


def test_report_that_cannot_be_written(model_folder: Path, tmp_path: Path, capsys) -> None:
    arguments = [str(model_folder), str(tmp_path / "out"), "--no-verify", "--report", str(tmp_path / "gone" / "r.json")]
    assert main(arguments) == 1
    assert "cannot write the report" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.onnx").exists()


def test_formats_of_weights(model_folder: Path, tmp_path: Path) -> None:
    arguments = [
        str(model_folder),
        str(tmp_path / "out"),
        "--no-verify",
        "--weights",
        "int4:16",
        "--head-weights",
        "f16",
    ]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "out" / "fdpp_report.json").read_text())
    assert (report["weights"], report["head_weights"]) == ("int4:16", "f16")


def test_unknown_format(model_folder: Path, tmp_path: Path, capsys) -> None:
    assert main([str(model_folder), str(tmp_path / "out"), "--weights", "int5"]) == 1
    assert "weights is 'int5', expected keep, f32, f16, bf16, int8, fp8 or int4[" in capsys.readouterr().err


def test_unknown_option(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["in", "out", "--softmax", "f8"])
    assert "invalid choice" in capsys.readouterr().err
