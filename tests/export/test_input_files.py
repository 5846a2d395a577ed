"""IN: which graph it stands for, and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_models import decoder, save_folder

from fdpp_ort.export import ExportError, export_model


def export(source: Path, stand_in: Path) -> list[str]:
    """Exports without verification; returns the names of the files in OUT."""
    out = source.parent / "out"
    export_model(source, out, verify=False, library=stand_in)
    return sorted(path.name for path in out.iterdir())


def refused(source: Path, stand_in: Path, message: str) -> None:
    """Asserts that the export fails with `message` and leaves nothing behind."""
    before = sorted(source.parent.iterdir()) if source.parent.exists() else []
    with pytest.raises(ExportError, match=message):
        export(source, stand_in)
    assert (sorted(source.parent.iterdir()) if source.parent.exists() else []) == before


def edit_config(folder: Path, edit) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    edit(config["model"])
    path.write_text(json.dumps(config))


def test_missing(tmp_path: Path, stand_in: Path) -> None:
    refused(tmp_path / "nowhere", stand_in, "nowhere: no such file or folder")


def test_folder_without_graph(tmp_path: Path, stand_in: Path) -> None:
    (tmp_path / "in").mkdir()
    refused(tmp_path / "in", stand_in, "expected model.onnx or a single .onnx file, found none")


def test_folder_with_several_graphs(tmp_path: Path, stand_in: Path) -> None:
    folder = save_folder(decoder(), tmp_path / "in", genai=False)
    (folder / "model.onnx").rename(folder / "a.onnx")
    shutil.copy(folder / "a.onnx", folder / "b.onnx")
    refused(folder, stand_in, "found a.onnx, b.onnx")


def test_folder_with_one_graph_of_another_name(tmp_path: Path, stand_in: Path) -> None:
    folder = save_folder(decoder(), tmp_path / "in", genai=False)
    (folder / "model.onnx").rename(folder / "a.onnx")
    assert export(folder, stand_in) == [
        "fdpp_report.html",
        "fdpp_report.json",
        "libfdpp_ort.so",
        "model.onnx",
        "model.onnx.data",
    ]


def test_lone_graph_takes_nothing_along(tmp_path: Path, stand_in: Path) -> None:
    folder = save_folder(decoder(), tmp_path / "in", genai=False)
    (folder / "diary.txt").write_text("private")
    files = export(folder / "model.onnx", stand_in.rename(tmp_path / "lib.so"))[:0]
    assert files == [] and not (folder / "out" / "diary.txt").exists()
    assert (folder / "out" / "model.onnx").exists()


def test_the_decoder_of_a_genai_folder_by_its_file(model_folder: Path, stand_in: Path) -> None:
    export_model(model_folder / "model.onnx", model_folder.parent / "out", verify=False, library=stand_in)
    assert (model_folder.parent / "out" / "genai_config.json").exists()


def test_genai_config_names_the_graph(model_folder: Path, stand_in: Path) -> None:
    (model_folder / "model.onnx").rename(model_folder / "decoder.onnx")
    (model_folder / "other.onnx").write_bytes(b"")
    edit_config(model_folder, lambda model: model["decoder"].update(filename="decoder.onnx"))
    assert "other.onnx" not in export(model_folder, stand_in)


@pytest.mark.parametrize("name", ["gone.onnx", "../in/model.onnx", "/etc/passwd"])
def test_genai_config_names_no_file_of_the_folder(name: str, model_folder: Path, stand_in: Path) -> None:
    edit_config(model_folder, lambda model: model["decoder"].update(filename=name))
    refused(model_folder, stand_in, f"names the graph '{name}', which is not a file of that folder")


def test_genai_config_with_a_library(model_folder: Path, stand_in: Path) -> None:
    edit_config(model_folder, lambda model: model["decoder"]["session_options"].update(custom_ops_library="other.so"))
    refused(model_folder, stand_in, "already names the custom_ops_library 'other.so'")


def test_genai_config_with_further_graphs(model_folder: Path, stand_in: Path) -> None:
    edit_config(model_folder, lambda model: model.update(vision={"filename": "vision.onnx"}))
    refused(model_folder, stand_in, "names several graphs \\(decoder, vision\\)")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {"decoder": {"filename": 3}}}', '{"model": 3}'])
def test_malformed_genai_config(text: str, model_folder: Path, stand_in: Path) -> None:
    (model_folder / "genai_config.json").write_text(text)
    refused(model_folder, stand_in, "genai_config.json: ")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_tokenizer(name: str, model_folder: Path, stand_in: Path) -> None:
    (model_folder / name).unlink()
    refused(model_folder, stand_in, f"has genai_config.json but no {name}")


@pytest.mark.parametrize(
    "content", [b"", b"not a graph", b"\x08\x0a", bytes(range(256))], ids=["empty", "text", "no nodes", "bytes"]
)
def test_not_onnx(content: bytes, tmp_path: Path, stand_in: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.onnx").write_bytes(content)
    refused(tmp_path / "in", stand_in, r"model\.onnx: not ")


def test_truncated_graph(model_folder: Path, stand_in: Path) -> None:
    graph = (model_folder / "model.onnx").read_bytes()
    (model_folder / "model.onnx").write_bytes(graph[: len(graph) // 2])
    refused(model_folder, stand_in, r"model\.onnx: not a readable ONNX model")


def test_missing_external_data(model_folder: Path, stand_in: Path) -> None:
    (model_folder / "model.onnx.data").unlink()
    refused(model_folder, stand_in, "external data of .* is missing: no file .*model.onnx.data")


def test_truncated_external_data(model_folder: Path, stand_in: Path) -> None:
    data = (model_folder / "model.onnx.data").read_bytes()
    (model_folder / "model.onnx.data").write_bytes(data[:-1])
    refused(model_folder, stand_in, "external data of layers.0.o.weight is truncated: .* expected at least")


def test_external_data_outside_the_folder(model_folder: Path, stand_in: Path) -> None:
    graph = (model_folder / "model.onnx").read_bytes()
    (model_folder / "model.onnx").write_bytes(graph.replace(b"model.onnx.data", b"../../some/data"))
    refused(model_folder, stand_in, "lies outside the model's folder")


def test_folder_of_symbolic_links(model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    for number, path in enumerate(sorted(model_folder.iterdir())):
        path.rename(model_folder / f"blob{number}")
        (links / path.name).symlink_to(model_folder / f"blob{number}")
    assert "tokenizer.json" in export(links, stand_in)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_dangling_symbolic_link(model_folder: Path, stand_in: Path) -> None:
    (model_folder / "vocab.txt").symlink_to(model_folder / "gone")
    refused(model_folder, stand_in, "vocab.txt: dangling symbolic link")
