"""Buffers that grow, inputs that stay on the device, captured steps: all give the plain loop's tokens."""

from __future__ import annotations

import dataclasses
import shutil
import time
from argparse import Namespace
from collections import deque
from itertools import islice

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from random_decoder import make

from fdpp_ort import FdppError
from fdpp_ort.cli import generate as command
from fdpp_ort.generation import Decoder, ModelFolder, Sampler, generate, load_model
from fdpp_ort.generation import model as model_module
from fdpp_ort.generation import readout as readout_module
from fdpp_ort.generation.decoder import last_row
from fdpp_ort.generation.model import Model
from fdpp_ort.generation.readout import Readout
from fdpp_ort.generation.step_inputs import StepInputs

PROMPT = [3, 141, 59, 265, 35, 89]
PROMPTS = [PROMPT, PROMPT[::-1], [7] * len(PROMPT)]
NEW_TOKENS = 30
CAPACITY = 40
SMALLEST = 4  # the prompt is longer
FIXED = [pytest.param(False, id="plain"), pytest.param(True, id="fixed")]


def plain_loop(model, prompts) -> list[list[int]]:
    """One buffer of the right size, each step's logits on the host."""
    decoder = Decoder(model, len(prompts), CAPACITY, smallest=CAPACITY)
    logits = last_row(decoder.prefill(np.array(prompts)))
    tokens = []
    for _ in range(NEW_TOKENS):
        tokens.append(logits.argmax(axis=-1))
        logits = decoder.step(tokens[-1][:, None])
    return np.stack(tokens, axis=1).tolist()


@pytest.fixture(scope="module", params=["llama", "opt"])
def models(request):
    return [load_model(folder, "cpu") for folder in request.getfixturevalue(request.param)]


@pytest.fixture(scope="module")
def model(llama):
    return load_model(llama[1], "cpu")


@pytest.mark.parametrize("fixed", FIXED)
@pytest.mark.parametrize("batch", [1, 3])
def test_growing_changes_no_tokens(models, batch: int, fixed: bool) -> None:
    for model in models:
        decoder = Decoder(model, batch, CAPACITY, smallest=SMALLEST, fixed_inputs=fixed)
        buckets = []
        result = generate(
            decoder, PROMPTS[:batch], NEW_TOKENS, on_token=lambda *_, d=decoder, b=buckets: b.append(d.bucket)
        )
        assert result.tokens == plain_loop(model, PROMPTS[:batch])
        assert sorted(set(buckets)) == [8, 16, 32, CAPACITY]


@pytest.mark.parametrize("fixed", FIXED)
def test_rows_end_on_their_own(model, fixed: bool) -> None:
    free = plain_loop(model, PROMPTS)
    end = free[0][12]
    assert end not in free[1], "the second row is to go on"
    decoder = Decoder(model, 3, CAPACITY, smallest=SMALLEST, fixed_inputs=fixed)
    result = generate(decoder, PROMPTS, NEW_TOKENS, eos_ids={end})
    assert result.tokens == [row[: row.index(end)] if end in row else row for row in free]


@pytest.mark.parametrize("fixed", FIXED)
def test_a_grown_decoder_serves_short_prompts(model, fixed: bool) -> None:
    decoder = Decoder(model, 1, CAPACITY, smallest=SMALLEST, fixed_inputs=fixed)
    first = generate(decoder, [PROMPT], 2).tokens
    generate(decoder, [PROMPT], NEW_TOKENS)
    assert generate(decoder, [PROMPT], 2).tokens == first
    assert decoder.bucket == CAPACITY


@pytest.mark.parametrize("fixed", FIXED)
def test_the_last_place_is_used(model, fixed: bool) -> None:
    decoder = Decoder(model, 1, 9, smallest=SMALLEST, fixed_inputs=fixed)
    result = generate(decoder, [PROMPT], NEW_TOKENS)
    assert (result.finish_reason, decoder.length, decoder.bucket) == ("capacity", 9, 9)
    assert result.tokens[0] == plain_loop(model, [PROMPT])[0][:4]
    with pytest.raises(FdppError, match="10 tokens do not fit the KV cache's capacity of 9"):
        next(decoder.greedy(np.array([result.tokens[0][-1:]])))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampling_draws_the_same_with_fixed_inputs(model, temperature: float) -> None:
    def tokens(fixed: bool) -> list[list[int]]:
        decoder = Decoder(model, 3, CAPACITY, smallest=SMALLEST, fixed_inputs=fixed)
        return generate(decoder, PROMPTS, NEW_TOKENS, Sampler(temperature, top_k=20, seed=3)).tokens

    assert tokens(True) == tokens(False)


@pytest.mark.parametrize("fixed", FIXED)
def test_tokens_other_than_the_likeliest(model, fixed: bool) -> None:
    """Between greedy steps, and into the next bucket."""
    given = [np.array([[token], [token + 1]]) for token in range(100, 100 + NEW_TOKENS)]
    expected = Decoder(model, 2, CAPACITY, smallest=CAPACITY)
    expected.prefill(np.array(PROMPTS[:2]))
    decoder = Decoder(model, 2, CAPACITY, smallest=SMALLEST, fixed_inputs=fixed)
    decoder.prefill(np.array(PROMPTS[:2]))
    for tokens in given:
        np.testing.assert_array_equal(next(decoder.greedy(tokens))[:, 0], expected.step(tokens).argmax(axis=-1))


def test_steps_are_such_as_can_be_captured(model, monkeypatch) -> None:
    """What a CUDA graph demands, which no CPU has: an id's first run may run the graph several times, and each later
    one uses the buffers of the first."""
    run, captured = Model.run, {}

    def run_captured(self, session, binding, graph_id=None, wait=True) -> None:
        first = graph_id is not None and (session, graph_id) not in captured
        if graph_id is not None:
            assert captured.setdefault((session, graph_id), binding) is binding
        for _ in range(3 if first else 1):
            run(self, session, binding)

    expected = plain_loop(model, PROMPTS)
    monkeypatch.setattr(Model, "run", run_captured)
    decoder = Decoder(model, 3, CAPACITY, smallest=SMALLEST, fixed_inputs=True)
    for _ in range(2):
        assert generate(decoder, PROMPTS, NEW_TOKENS).tokens == expected
    assert len(captured) == 4  # a bucket each


# ---- a step ahead


class Delayed:
    """Stands for a GPU's stream, which no CPU has: runs that need not wait happen when somebody waits for them."""

    def __init__(self, monkeypatch):
        self.pending: deque = deque()
        self.queued = 0
        self._marks: dict[Readout, int] = {}
        self._last: dict[StepInputs, int] = {}
        run, read, advance = Model.run, Readout.read, StepInputs.advance

        def run_later(model, session, binding, graph_id=None, wait=True) -> None:
            self.pending.append(lambda: run(model, session, binding, graph_id))
            self.queued += 1
            if wait:
                self.until(self.queued)

        def read_marked(readout) -> np.ndarray:
            self.until(self._marks[readout])
            return read(readout)

        def advance_counted(inputs, wait=True) -> Readout:
            readout = advance(inputs, wait)
            self._last[inputs] = self.queued
            return readout

        monkeypatch.setattr(Model, "run", run_later)
        monkeypatch.setattr(Model, "wait", lambda model: self.until(self.queued))
        monkeypatch.setattr(Readout, "mark", lambda readout: self._marks.update({readout: self.queued}))
        monkeypatch.setattr(Readout, "read", read_marked)
        monkeypatch.setattr(StepInputs, "advance", advance_counted)
        for name in ("place", "write"):
            monkeypatch.setattr(StepInputs, name, self._when_idle(getattr(StepInputs, name)))

    def until(self, count: int) -> None:
        """Does the first `count` runs."""
        while self._done() < count:
            self.pending.popleft()()

    def _done(self) -> int:
        return self.queued - len(self.pending)

    def _when_idle(self, write):
        def checked(inputs, *arguments) -> None:
            assert self._last.get(inputs, 0) <= self._done(), "the host writes what a run reads that is under way"
            write(inputs, *arguments)

        return checked


@pytest.fixture
def delayed(monkeypatch) -> Delayed:
    return Delayed(monkeypatch)


def ahead(model, batch: int, smallest: int = SMALLEST) -> Decoder:
    return Decoder(model, batch, CAPACITY, smallest=smallest, fixed_inputs=True)


def first_tokens(decoder: Decoder) -> np.ndarray:
    return last_row(decoder.prefill(np.array(PROMPTS[: decoder.batch]))).argmax(axis=-1)[:, None]


@pytest.mark.parametrize("batch", [1, 3])
def test_tokens_of_runs_that_are_late(models, monkeypatch, batch: int) -> None:
    expected = [plain_loop(model, PROMPTS[:batch]) for model in models]
    Delayed(monkeypatch)
    for model, tokens in zip(models, expected, strict=True):
        decoder = ahead(model, batch)
        for _ in range(2):  # through the buckets, then in the last one
            assert generate(decoder, PROMPTS[:batch], NEW_TOKENS).tokens == tokens


def test_one_step_is_under_way_when_tokens_are_read(model, delayed) -> None:
    decoder = ahead(model, 1, smallest=16)
    counts = []
    for _ in decoder.greedy(first_tokens(decoder), 12):
        counts.append((decoder.length, len(delayed.pending)))
    # A step is two runs: the graph, and what makes the next one's inputs. None enters a bucket, none follows the last.
    under_way = [0 if length in (16, 18) else 2 for length in range(7, 19)]
    assert counts == list(zip(range(7, 19), under_way, strict=True))


def test_no_step_is_ahead_of_tokens_of_the_host(model, monkeypatch) -> None:
    runs, run = [], Model.run
    monkeypatch.setattr(Model, "run", lambda self, *args, **kwargs: (runs.append(1), run(self, *args, **kwargs)))
    decoder = Decoder(model, 1, CAPACITY, smallest=CAPACITY)
    tokens = first_tokens(decoder)
    runs.clear()
    for count, _ in enumerate(decoder.greedy(tokens, 5), 1):
        assert len(runs) == count


@pytest.mark.parametrize("taken", [1, 2, 9, 10, 11, NEW_TOKENS - 1])
def test_an_iterator_may_be_left(model, monkeypatch, taken: int) -> None:
    """After tokens ahead of, at and behind the end of a bucket; kept, or closed."""
    expected = plain_loop(model, PROMPTS)
    Delayed(monkeypatch)
    decoder = ahead(model, 3)
    for closes in (False, True):
        iterator = decoder.greedy(first_tokens(decoder))
        tokens = list(islice(iterator, taken))
        assert decoder.length == len(PROMPT) + taken
        if closes:
            iterator.close()
        np.testing.assert_array_equal(np.hstack(tokens), np.array(expected)[:, 1 : taken + 1])
        # Other tokens than the step had that was under way, then those again.
        reference = Decoder(model, 3, CAPACITY, smallest=CAPACITY)
        reference.prefill(np.hstack([np.array(PROMPTS), np.array(expected)[:, :taken]]))
        for given in (np.full((3, 1), 5), tokens[-1]):
            np.testing.assert_allclose(decoder.step(given), reference.step(given), rtol=1e-4, atol=1e-4)


def test_a_left_iterator_does_not_go_on(model, delayed) -> None:
    decoder = ahead(model, 1)
    for take_over in (first_tokens, lambda d: d.pretend(5), lambda d: next(d.greedy(np.array([[1]])))):
        iterator = decoder.greedy(first_tokens(decoder))
        next(iterator)
        take_over(decoder)
        length = decoder.length
        with pytest.raises(FdppError, match="another call has taken the sequence on"):
            next(iterator)
        assert decoder.length == length


def test_decoders_of_a_model_take_turns(model, monkeypatch) -> None:
    expected = plain_loop(model, PROMPTS)
    Delayed(monkeypatch)
    decoders = [ahead(model, 3), ahead(model, 3, smallest=7)]
    iterators = [decoder.greedy(first_tokens(decoder), NEW_TOKENS - 1) for decoder in decoders]
    for step, found in enumerate(zip(*iterators, strict=True), 1):
        assert [tokens[:, 0].tolist() for tokens in found] == [[row[step] for row in expected]] * 2


def test_tokens_are_the_callers(model, delayed) -> None:
    expected = plain_loop(model, [PROMPT])[0]
    decoder = ahead(model, 1)
    found = []
    for tokens in decoder.greedy(first_tokens(decoder), NEW_TOKENS - 1):
        found.append(int(tokens[0, 0]))
        tokens[:] = 1
    assert found == expected[1:]


def test_a_nan_ends_the_steps_and_nothing_else(model, monkeypatch) -> None:
    expected = plain_loop(model, [PROMPT])
    delayed = Delayed(monkeypatch)
    decoder = ahead(model, 1)
    iterator = decoder.greedy(first_tokens(decoder))
    next(iterator)
    step = delayed.pending[0]

    def broken() -> None:
        step()
        decoder._logits.update_inplace(np.full(decoder._logits.shape(), np.nan, np.float32))

    delayed.pending[0] = broken
    with pytest.raises(FdppError, match="NaN"):
        next(iterator)
    assert generate(decoder, [PROMPT], NEW_TOKENS).tokens == expected


def test_a_run_that_fails_ends_the_steps_and_nothing_else(model, monkeypatch) -> None:
    expected = plain_loop(model, [PROMPT])
    decoder = ahead(model, 1, smallest=CAPACITY)
    iterator = decoder.greedy(first_tokens(decoder))
    next(iterator)
    with monkeypatch.context() as patch:

        def fail(*_, wait: bool = True) -> None:
            if not wait:
                raise FdppError("no memory")

        patch.setattr(Model, "run", fail)
        with pytest.raises(FdppError, match="no memory"):
            next(iterator)
    assert list(iterator) == []
    assert generate(decoder, [PROMPT], NEW_TOKENS).tokens == expected


def test_which_models_queue_runs(model, monkeypatch) -> None:
    stream = object()
    assert model.stream is None and not model.queues
    model.wait()
    with_stream = dataclasses.replace(model, stream=stream)
    captured = dataclasses.replace(with_stream, cuda_graph=True)
    assert with_stream.queues
    for version in ("1.20.1", "1.27.3", "1.28.0", "1.31.1", "2.0.0"):
        monkeypatch.setattr(onnxruntime, "__version__", version)
        assert captured.queues == (version >= "1.28.0")
        assert with_stream.queues


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
def test_without_a_stream_of_ours_sessions_have_their_own(monkeypatch, error) -> None:
    class Core:
        @staticmethod
        def GpuStream():
            raise error("no GPU")

    monkeypatch.setattr(model_module, "core", lambda: Core)
    stream = model_module._new_stream()
    assert stream is None
    assert model_module._providers(True, True, stream)[0][1] == {"enable_cuda_graph": "1"}


def test_sessions_get_the_stream_and_runs_say_whether_to_wait(model, monkeypatch) -> None:
    options = []

    class Stream:
        handle = 140000000000016

    class Session:
        def run_with_iobinding(self, binding, run_options) -> None:
            options.append(run_options)

    assert model_module._providers(True, False, Stream)[0][1]["user_compute_stream"] == "140000000000016"
    key = "disable_synchronize_execution_providers"
    on_stream = dataclasses.replace(model, stream=Stream)
    for which, wait, expected in ((on_stream, False, "1"), (on_stream, True, ""), (model, False, "")):
        which.run(Session(), None, wait=wait)
        assert get_entry(options[-1], key) == expected


def get_entry(options: onnxruntime.RunOptions, key: str) -> str:
    try:
        return options.get_run_config_entry(key)
    except RuntimeError:
        return ""


class Mailbox(bytearray):
    """Stands for the library's: what a kernel writes is there once somebody waited for the mark."""

    address = 4096

    def __init__(self, stream, size: int):
        super().__init__(size)
        self.stream, self.marks = stream, 0

    def mark(self, stream) -> None:
        assert stream is self.stream
        self.marks += 1

    def wait(self) -> None:
        self[:8] = self.marks.to_bytes(8, "little")


def test_what_kernels_write_through_is_read_behind_its_mark(model, monkeypatch) -> None:
    monkeypatch.setattr(readout_module, "core", lambda: Namespace(HostMailbox=Mailbox))
    readout = Readout(dataclasses.replace(model, stream=object()), 3)
    bound = []
    readout.bind_to(Namespace(bind_output=lambda *arguments: bound.append(arguments)), "host_tokens")
    assert bound == [("host_tokens", "cuda", 0, np.int64, [3, 1], Mailbox.address)]
    found = []
    for _ in range(2):
        readout.mark()
        found.append(readout.read())
    assert [values.tolist() for values in found] == [[[1], [0], [0]], [[2], [0], [0]]]


def test_errors_of_the_gpu_are_ours(model, monkeypatch) -> None:
    def fail(*_) -> None:
        raise RuntimeError("cudaErrorIllegalAddress")

    on_stream = dataclasses.replace(model, stream=Namespace(wait=fail))
    monkeypatch.setattr(readout_module, "core", lambda: Namespace(HostMailbox=Mailbox))
    monkeypatch.setattr(Mailbox, "wait", fail)
    for wait in (on_stream.wait, Readout(on_stream, 1).read):
        with pytest.raises(FdppError, match="the GPU failed: cudaErrorIllegalAddress"):
            wait()


def test_a_smallest_bucket_of_nothing_is_refused(model) -> None:
    with pytest.raises(FdppError, match="smallest 0, expected at least 1"):
        Decoder(model, 1, CAPACITY, smallest=0)


# ---- inputs of the next step


class Bound(dict):
    """Stands for a binding."""

    bind_ortvalue_input = dict.__setitem__


def step_inputs(model, logits: np.ndarray, capacity: int = 6) -> tuple[StepInputs, Bound]:
    values = onnxruntime.OrtValue.ortvalue_from_numpy(logits[:, None], model.device, 0)
    inputs, bound = StepInputs(model, len(logits), capacity, values), Bound()
    inputs.bind_to(bound)
    return inputs, bound


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def placed(request, random_decoders, tmp_path):
    """A model with position_ids on a device, captured on the GPU, and its logits' type."""
    dtype = "f16" if request.param == "cuda" else "f32"
    folder = make(random_decoders, tmp_path, "tiny-opt", dtype)[1]
    return load_model(folder, request.param, None), np.float16 if dtype == "f16" else np.float32


def test_they_follow_the_sequence(placed) -> None:
    model, dtype = placed
    inputs, bound = step_inputs(model, np.zeros((2, model.vocabulary), dtype))
    for length in (3, 0, 5):
        inputs.place(length)
        np.testing.assert_array_equal(bound[model.position_ids].numpy(), [[length]] * 2)
        np.testing.assert_array_equal(bound[model.attention_mask].numpy(), [[int(i <= length) for i in range(6)]] * 2)
    inputs.place(1)
    inputs.advance()
    inputs.advance()
    np.testing.assert_array_equal(bound[model.position_ids].numpy(), [[3], [3]])
    np.testing.assert_array_equal(bound[model.attention_mask].numpy(), [[1, 1, 1, 1, 0, 0]] * 2)


def test_the_first_of_equal_logits_is_chosen(placed) -> None:
    model, dtype = placed
    logits = np.random.default_rng(0).standard_normal((4, model.vocabulary)).astype(dtype) - 20
    logits[0, [700, 130, 999]] = 5
    logits[1] = -3
    logits[2, -1] = 6
    logits[3, [17, 16]] = np.inf
    inputs, bound = step_inputs(model, logits)
    inputs.place(0)
    assert inputs.read(inputs.advance()).tolist() == [[130], [0], [999], [16]]
    assert inputs.holds(np.array([[130], [0], [999], [16]]))
    inputs.write(np.array([[1], [2], [3], [4]]))
    assert not inputs.holds(np.array([[130], [0], [999], [16]]))
    np.testing.assert_array_equal(bound[model.input_ids].numpy(), [[1], [2], [3], [4]])


def test_nan_is_refused_on_the_device_too(placed) -> None:
    model, dtype = placed
    logits = np.zeros((2, model.vocabulary), dtype)
    logits[1, 5], logits[1, 7] = 3, np.nan
    inputs, _ = step_inputs(model, logits)
    with pytest.raises(FdppError, match="NaN"):
        inputs.read(inputs.advance())


# ---- fdpp-generate


def arguments(provider: str, cuda_graph: bool | None) -> Namespace:
    return Namespace(provider=provider, cuda_graph=cuda_graph, threads=0)


def test_a_model_that_is_not_captured_runs_without(model, monkeypatch, capsys) -> None:
    asked = []

    def load(folder, provider, cuda_graph, threads):
        asked.append(cuda_graph)
        if cuda_graph is not False:
            raise FdppError("it has an If")
        return model

    monkeypatch.setattr(command, "load_model", load)
    decoder = command.open_decoder(model.folder, 16, 8, arguments("cuda", None))
    assert (decoder.model, decoder.length) == (model, 9)
    assert capsys.readouterr().err == "fdpp-generate: without a CUDA graph: it has an If\n"
    with pytest.raises(FdppError, match="it has an If"):
        command.open_decoder(model.folder, 16, 8, arguments("cuda", True))
    assert asked == [None, False, True]


def test_nothing_is_said_on_a_cpu(llama, capsys) -> None:
    folder = ModelFolder.open(llama[1])
    for cuda_graph in (None, False):
        assert not command.open_decoder(folder, 16, 16, arguments("cpu", cuda_graph)).model.cuda_graph
    assert capsys.readouterr().err == ""


# ---- on a GPU


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-opt"])
def gpu_folders(request, random_decoders, tmp_path_factory):
    return make(random_decoders, tmp_path_factory.mktemp("f16"), request.param, "f16")[:2]


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3])
def test_captured_steps_give_the_same_tokens(gpu_folders, batch: int) -> None:
    """Over all buckets, then again in the last one, which is captured by then."""
    for folder in gpu_folders:
        plain, captured = load_model(folder, "cuda"), load_model(folder, "cuda", cuda_graph=True)
        found = []
        for model in (plain, captured):
            decoder = Decoder(model, batch, CAPACITY, smallest=SMALLEST)
            found.append([generate(decoder, PROMPTS[:batch], NEW_TOKENS).tokens for _ in range(2)])
            assert decoder.bucket == CAPACITY
        assert found[0] == found[1]


@pytest.mark.gpu
def test_growing_changes_no_logits_on_a_gpu(gpu_folders) -> None:
    """The same tokens through one bucket without, and several with CUDA graph; splits may round otherwise."""
    for folder in gpu_folders:
        found = []
        for graph, smallest in ((False, CAPACITY), (True, SMALLEST)):
            decoder = Decoder(load_model(folder, "cuda", graph), 3, CAPACITY, smallest=smallest)
            decoder.prefill(np.array(PROMPTS))
            found.append(np.stack([decoder.step(np.full((3, 1), token)) for token in range(NEW_TOKENS)]))
        assert np.isfinite(found[0]).all()
        np.testing.assert_allclose(found[1], found[0], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_captured_steps_take_tokens_that_the_host_draws(gpu_folders) -> None:
    found = []
    for graph in (False, True):
        decoder = Decoder(load_model(gpu_folders[1], "cuda", graph), 3, CAPACITY, smallest=SMALLEST)
        found.append(generate(decoder, PROMPTS, NEW_TOKENS, Sampler(1.0, top_k=20, seed=3)).tokens)
    assert found[0] == found[1]


@pytest.mark.gpu
def test_several_decoders_of_a_model_keep_their_graphs(gpu_folders) -> None:
    model = load_model(gpu_folders[1], "cuda", cuda_graph=True)
    decoders = [Decoder(model, batch, CAPACITY, smallest=SMALLEST) for batch in (1, 3)]
    for decoder in decoders:
        decoder.warm_up(CAPACITY - 1)  # into the last bucket
    alone = [generate(d, PROMPTS[: d.batch], NEW_TOKENS).tokens for d in decoders]
    for decoder in decoders:
        decoder.prefill(np.array(PROMPTS[: decoder.batch]))
    tokens = [np.array([[row[0]] for row in rows]) for rows in alone]
    iterators = [decoder.greedy(given, NEW_TOKENS - 1) for decoder, given in zip(decoders, tokens, strict=True)]
    for step, found in enumerate(zip(*iterators, strict=True), 1):
        assert [given[:, 0].tolist() for given in found] == [[row[step] for row in rows] for rows in alone]


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True])
def test_iterators_that_are_left_on_a_gpu(gpu_folders, graph: bool) -> None:
    """With a step under way, ahead of, at and behind the end of a bucket: what follows finds nothing of it."""
    model = load_model(gpu_folders[1], "cuda", graph)
    expected = np.array(generate(Decoder(model, 3, CAPACITY, smallest=SMALLEST), PROMPTS, NEW_TOKENS).tokens)
    for taken in (1, 2, 9, 10, 11):
        decoder = Decoder(model, 3, CAPACITY, smallest=SMALLEST)
        tokens = list(islice(decoder.greedy(first_tokens(decoder)), taken))  # which closes it
        np.testing.assert_array_equal(np.hstack(tokens), expected[:, 1 : taken + 1])
        iterator = decoder.greedy(tokens[-1])
        np.testing.assert_array_equal(next(iterator)[:, 0], expected[:, taken + 1])
        logits = decoder.step(np.full((3, 1), 5))  # it is still there
        with pytest.raises(FdppError, match="another call has taken the sequence on"):
            next(iterator)
        decoder.pretend(len(PROMPT) + taken + 1)
        np.testing.assert_allclose(decoder.step(np.full((3, 1), 5)), logits, rtol=1e-2, atol=1e-2)
        assert generate(decoder, PROMPTS, NEW_TOKENS).tokens == expected.tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True])
def test_tokens_are_read_ahead_of_what_is_queued_behind_them(gpu_folders, graph: bool) -> None:
    """Much work between a step and the next: queueing that one and reading this one's tokens wait for none of it."""
    model = load_model(gpu_folders[1], "cuda", graph)
    assert model.queues
    decoder = Decoder(model, 3, CAPACITY, smallest=CAPACITY)
    expected = np.array(generate(decoder, PROMPTS, NEW_TOKENS).tokens)
    rows, numbers = 64, 1 << 21
    short, long = (
        onnxruntime.OrtValue.ortvalue_from_shape_and_type([rows, count], np.float32, "cuda", 0)
        for count in (numbers, 2 * numbers)
    )
    work = model.extend.io_binding()
    work.bind_ortvalue_input("short", short)
    work.bind_cpu_input("pads", np.array([0, 0, 0, numbers], np.int64))
    work.bind_ortvalue_output("long", long)
    model.run(model.extend, work)  # what only a first run does

    iterator = decoder.greedy(first_tokens(decoder))
    np.testing.assert_array_equal(next(iterator)[:, 0], expected[:, 1])
    start = time.perf_counter()
    for _ in range(100):  # 1.6 GB each
        model.run(model.extend, work, wait=False)
    np.testing.assert_array_equal(next(iterator)[:, 0], expected[:, 2])
    read = time.perf_counter() - start
    model.wait()
    done = time.perf_counter() - start
    assert read < done / 2
    np.testing.assert_array_equal(next(iterator)[:, 0], expected[:, 3])


@pytest.mark.gpu
def test_a_stream_per_model(gpu_folders) -> None:
    models = [load_model(folder, "cuda") for folder in gpu_folders]
    handles = {model.stream.handle for model in models}
    assert len(handles) == 2 and 0 not in handles
    for model in models:
        model.wait()


@pytest.mark.gpu
def test_generate_captures_where_it_can(gpu_folders, tmp_path, capsys) -> None:
    folder = ModelFolder.open(shutil.copytree(gpu_folders[1], tmp_path / "model"))
    assert command.open_decoder(folder, 64, 8, arguments("cuda", None)).model.cuda_graph
    assert capsys.readouterr().err == ""

    model = onnx.load(folder.model_file, load_external_data=False)
    (logits,) = [value for node in model.graph.node for value in node.output if value == "logits"]
    for node in model.graph.node:
        node.output[:] = ["inner" if name == logits else name for name in node.output]
    model.graph.node.extend(  # CUDA has no Sinh
        [
            helper.make_node("Cast", ["inner"], ["inner32"], to=TensorProto.FLOAT),
            helper.make_node("Sinh", ["inner32"], ["outer32"]),
            helper.make_node("Cast", ["outer32"], [logits], to=TensorProto.FLOAT16),
        ]
    )
    onnx.save(model, folder.model_file)
    assert not command.open_decoder(folder, 64, 8, arguments("cuda", None)).model.cuda_graph
    said = capsys.readouterr().err
    assert said.startswith("fdpp-generate: without a CUDA graph: ") and "graph capture" in said
