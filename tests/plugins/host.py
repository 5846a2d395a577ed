"""TensorRT's part in the life of a plugin, played by host.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TYPES = {
    "float32": 0,
    "float16": 1,
    "int8": 2,
    "int32": 3,
    "bool": 4,
    "uint8": 5,
    "float8": 6,
    "bfloat16": 7,
    "int64": 8,
}
LINEAR = 0
VECTORISED = 1  # kCHW2, a format that no plugin of ours has
FIELD_TYPES = {"float": 1, "int": 5, "text": 6, "long": 10}
MOST_TACTICS = 32


@dataclass(frozen=True)
class Tensor:
    """Of a layer: type, shapes up to `most` (from `least` on, where that is another) and format."""

    type: str
    most: Sequence[int]
    least: Sequence[int] | None = None
    format: int = LINEAR


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("least", ctypes.c_int64 * 8),
        ("most", ctypes.c_int64 * 8),
    ]


class _Field(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
        ("data", ctypes.c_void_p),
    ]


class HostError(Exception):
    """What the plugin logged when a call failed."""


class Host:
    def __init__(self, host: Path, library: str):
        self._c = ctypes.CDLL(str(host))
        for name in ("take_messages", "describe_creator", "describe", "serialised", "timing_id"):
            getattr(self._c, f"host_{name}").restype = ctypes.c_char_p
        for name in ("create", "clone", "reload", "attach"):
            getattr(self._c, f"host_{name}").restype = ctypes.c_void_p
        for name in ("load", "output_types", "output_shapes", "supports", "configure", "set_tactic", "shapes_change"):
            getattr(self._c, f"host_{name}").restype = ctypes.c_bool
        self._c.host_enqueue.restype = ctypes.c_bool
        self._c.host_workspace.restype = ctypes.c_int64
        if not self._c.host_load(library.encode()):
            raise HostError(self.messages())

    def messages(self) -> str:
        return self._c.host_take_messages().decode()

    def creators(self) -> list[tuple[str, str, str, str, dict[str, int]]]:
        """(kind, name, version, namespace, types of the fields)"""
        found = []
        for i in range(self._c.host_creator_count()):
            kind, name, version, namespace, fields = self._c.host_describe_creator(i).decode().split("|")
            types = dict(field.split(" ") for field in fields.split(","))
            found.append((kind, name, version, namespace, {k: int(v) for k, v in types.items()}))
        return found

    def create(self, op: str, fields: dict[str, object], runtime: bool = False) -> Plugin:
        keep, given = [], (_Field * len(fields))()
        for i, (name, value) in enumerate(fields.items()):
            if isinstance(value, str):
                data, kind, length = ctypes.create_string_buffer(value.encode()), "text", len(value.encode())
            elif isinstance(value, float):
                data, kind, length = ctypes.c_float(value), "float", 1
            else:
                data, kind, length = ctypes.c_int32(value), "int", 1
            keep.append(data)
            pointer = ctypes.cast(ctypes.pointer(data), ctypes.c_void_p)
            given[i] = _Field(name.encode(), FIELD_TYPES[kind], length, pointer)
        return self._plugin(self._c.host_create(op.encode(), given, len(fields), runtime))

    def _plugin(self, pointer: int | None) -> Plugin:
        if not pointer:
            raise HostError(self.messages())
        return Plugin(self, pointer)


class Plugin:
    def __init__(self, host: Host, pointer: int):
        self._host = host
        self._c = host._c
        self._pointer = ctypes.c_void_p(pointer)

    def __del__(self) -> None:
        self._c.host_destroy(self._pointer)

    def _check(self, done: bool) -> None:
        if not done:
            raise HostError(self._host.messages())

    def describe(self) -> list[str]:
        return self._c.host_describe(self._pointer).decode().split("|")

    def serialised(self) -> dict[str, str]:
        lines = self._c.host_serialised(self._pointer).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def timing_id(self) -> str:
        return self._c.host_timing_id(self._pointer).decode()

    def clone(self) -> Plugin:
        return self._host._plugin(self._c.host_clone(self._pointer))

    def reload(self) -> Plugin:
        return self._host._plugin(self._c.host_reload(self._pointer))

    def attach(self) -> Plugin:
        return self._host._plugin(self._c.host_attach(self._pointer))

    def output_count(self) -> int:
        return self._c.host_output_count(self._pointer)

    def aliased_input(self, output: int) -> int:
        return self._c.host_aliased_input(self._pointer, output)

    def output_types(self, inputs: Sequence[str]) -> list[str]:
        count = self.output_count()
        given = (ctypes.c_int32 * len(inputs))(*(TYPES[t] for t in inputs))
        out = (ctypes.c_int32 * count)()
        self._check(self._c.host_output_types(self._pointer, given, len(inputs), out, count))
        return [next(name for name, number in TYPES.items() if number == t) for t in out]

    def output_shapes(self, inputs: Sequence[Tensor]) -> list[tuple[int, ...]]:
        count = self.output_count()
        out = (_Tensor * count)()
        self._check(self._c.host_output_shapes(self._pointer, _tensors(inputs), len(inputs), out, count))
        return [tuple(t.most[: t.rank]) for t in out]

    def supports(self, at: int, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensor `at` may be what it is; `tensors`: inputs, then outputs."""
        outputs = self.output_count()
        return self._c.host_supports(self._pointer, at, _tensors(tensors), len(tensors) - outputs, outputs)

    def configure(self, tensors: Sequence[Tensor]) -> None:
        self._check(self._c.host_configure(self._pointer, *self._layer(tensors)))

    def workspace(self, tensors: Sequence[Tensor]) -> int:
        return self._c.host_workspace(self._pointer, *self._layer(tensors))

    def tactics(self) -> list[int]:
        numbers = (ctypes.c_int32 * MOST_TACTICS)()
        count = self._c.host_tactics(self._pointer, numbers, MOST_TACTICS)
        self._check(count >= 0)
        return list(numbers[:count])

    def set_tactic(self, number: int) -> None:
        self._check(self._c.host_set_tactic(self._pointer, number))

    def shapes_change(self, tensors: Sequence[Tensor]) -> None:
        self._check(self._c.host_shapes_change(self._pointer, *self._layer(tensors)))

    def enqueue(self, tensors: Sequence[Tensor], data: Sequence[int], workspace: int, stream: int) -> None:
        """`data`: device addresses of the tensors."""
        addresses = (ctypes.c_void_p * len(data))(*data)
        layer = self._layer(tensors)
        self._check(
            self._c.host_enqueue(self._pointer, *layer, addresses, ctypes.c_void_p(workspace), ctypes.c_void_p(stream))
        )

    def _layer(self, tensors: Sequence[Tensor]) -> tuple[ctypes.Array, int, int]:
        outputs = self.output_count()
        return _tensors(tensors), len(tensors) - outputs, outputs


def _tensors(tensors: Sequence[Tensor]) -> ctypes.Array:
    made = (_Tensor * len(tensors))()
    for c, t in zip(made, tensors, strict=True):
        c.type, c.format, c.rank = TYPES[t.type], t.format, len(t.most)
        c.most[: len(t.most)] = list(t.most)
        c.least[: len(t.most)] = list(t.least if t.least is not None else t.most)
    return made
