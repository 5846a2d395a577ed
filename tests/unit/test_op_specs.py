"""The exporter's mirror of the op specs equals the library's own."""

from __future__ import annotations

from fdpp_ort import _core
from fdpp_ort.export.op_spec import op_specs


def test_mirror_equals_library() -> None:
    mirror = {spec["name"]: spec for spec in op_specs()}
    library = {spec["name"]: spec for spec in _core.op_specs()}
    assert set(mirror) == set(library)
    for name, spec in library.items():
        assert set(mirror[name]) == set(spec), name
        for part, value in spec.items():
            assert mirror[name][part] == value, f"{name}: {part}"
