"""FdppGreedyStep in ONNX Runtime against NumPy."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from .models import greedy_step_model

DTYPES = ["float32", "float16"]
PROVIDERS = ["CPUExecutionProvider", pytest.param("CUDAExecutionProvider", marks=pytest.mark.gpu)]


@pytest.fixture
def run(session):
    """run(provider, logits [B, V], positions [B], capacity) -> the op's outputs."""

    def outputs(provider: str, logits: np.ndarray, positions: np.ndarray, capacity: int) -> list[np.ndarray]:
        mask = np.full((len(logits), capacity), 7, np.int64)  # its values are not read
        feeds = {"logits": logits[:, None], "positions": positions[:, None], "attention_mask": mask}
        return session(greedy_step_model(logits.dtype.name), provider).run(None, feeds)

    return outputs


# Vocabularies whose rows start at multiples of 16 bytes and others.
@pytest.mark.parametrize("vocabulary", [1, 7, 1001, 32000])
@pytest.mark.parametrize("batch", [1, 3, 70])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_likeliest_tokens(run, provider: str, dtype: str, batch: int, vocabulary: int) -> None:
    random = np.random.default_rng(vocabulary + batch)
    # Few values, so that most rows have their greatest more than once.
    logits = random.integers(-400, 5, (batch, vocabulary)).astype(dtype) / 8
    positions = random.integers(-1, 12, batch)
    tokens, following, mask, host_tokens = run(provider, logits, positions, 10)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=-1)[:, None])
    np.testing.assert_array_equal(host_tokens, tokens)
    np.testing.assert_array_equal(following, positions[:, None] + 1)
    np.testing.assert_array_equal(mask, np.arange(10) <= positions[:, None] + 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_special_values(run, provider: str, dtype: str) -> None:
    nan, inf = np.nan, np.inf
    rows = [[-1, -0.0, 0, -2], [-inf, -inf, -inf, -inf], [1, inf, nan, 2], [nan, 1, 1, 1], [-inf, inf, inf, 3]]
    tokens, _, _, host_tokens = run(provider, np.array(rows, dtype), np.zeros(5, np.int64), 4)
    assert host_tokens[:, 0].tolist() == [1, 0, -1, -1, 1]
    assert tokens[:, 0].tolist() == [1, 0, 0, 0, 1]  # for an embedding to read


@pytest.mark.parametrize("provider", PROVIDERS)
def test_in_place(session, provider: str) -> None:
    """Positions and mask of a step may lie where those of the last one did."""
    device = "cuda" if provider.startswith("CUDA") else "cpu"
    values = {
        "logits": np.random.default_rng(0).standard_normal((3, 1, 999)).astype(np.float32),
        "positions": np.array([[0], [4], [2]]),
        "attention_mask": np.zeros((3, 6), np.int64),
        "next_tokens": np.zeros((3, 1), np.int64),
        "host_tokens": np.zeros((3, 1), np.int64),
    }
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value, device, 0) for name, value in values.items()}
    greedy = session(greedy_step_model("float32"), provider)
    binding = greedy.io_binding()
    for name in ("logits", "positions", "attention_mask"):
        binding.bind_ortvalue_input(name, values[name])
    for name in ("next_tokens", "host_tokens"):
        binding.bind_ortvalue_output(name, values[name])
    for name in ("positions", "attention_mask"):
        binding.bind_ortvalue_output(f"next_{name}", values[name])
    for _ in range(2):
        greedy.run_with_iobinding(binding)
    assert values["positions"].numpy()[:, 0].tolist() == [2, 6, 4]
    assert values["attention_mask"].numpy().sum(axis=1).tolist() == [3, 6, 5]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"logits": (2, 2, 9)}, r"logits is float32 \[2, 2, 9\], expected float32 or float16 \[batch, 1, vocabulary\]"),
        ({"logits": (2, 1, 0)}, r"logits is float32 \[2, 1, 0\]"),
        ({"positions": (3, 1)}, r"positions is int64 \[3, 1\], expected int64 \[2, 1\]"),
        ({"attention_mask": (1, 5)}, r"attention_mask is int64 \[1, 5\], expected int64 \[2, capacity\]"),
    ],
)
def test_refused(session, wrong: dict, message: str) -> None:
    shapes = {"logits": (2, 1, 9), "positions": (2, 1), "attention_mask": (2, 5)} | wrong
    types = {"logits": np.float32, "positions": np.int64, "attention_mask": np.int64}
    feeds = {name: np.zeros(shape, types[name]) for name, shape in shapes.items()}
    with pytest.raises(Exception, match="FdppGreedyStep: " + message):
        session(greedy_step_model("float32")).run(None, feeds)
