"""What could go wrong with a softmax measured against a guess: scores built to leave the interval, and extreme ones.

Scores are built from two columns of the head: that of query row r and key k is phi + offset(r) + term(k).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import harness
import pytest
import torch
from cases import SOFTMAX_MODES, AttentionCase
from harness import ATTENTION, AttentionCall
from reference.attention import AttentionTensors
from reference.cache import LIMITS, quantise
from reference.precision import assert_accurate

from fdpp_ort import _core

TYPES = (
    ("float32", "float32"),
    ("float16", "float16"),
    ("bfloat16", "bfloat16"),
    ("float32", "int8"),
    ("float16", "float8e4m3fn"),
    ("bfloat16", "int8"),
)
SHAPES = {
    "decode": AttentionCase(tuple(20 + 9 * b % 90 for b in range(25)), 1, 2, 8, 64, "", ""),  # 400 query rows
    "speculative": AttentionCase((20, 90, 64, 200, 131), 4, 4, 5, 128, "", "", "copied"),  # 400
    "prompt": AttentionCase((70, 41), 70, 1, 3, 64, "", "", prompt=True),
    "split": AttentionCase((3000, 700), 1, 1, 4, 128, "", "", "grown"),
}
RAGGED = {"lengths": (90,) * 24 + (2000,)}  # the long row's pieces outnumber the blocks: some take two
FAR = 50.0  # an offset outside the interval
SPREAD = 3.0  # largest term of a key
OUTLIER = 120.0


def cases(*shapes: str, **changes: object) -> list[AttentionCase]:
    unified = {"scale": 1.0, "softmax_mode": "unified", "quantization": "per_channel"}
    return [
        dataclasses.replace(SHAPES[shape], dtype=dtype, cache_dtype=cache, **unified | changes)
        for shape in shapes or SHAPES
        for dtype, cache in TYPES
    ]


def parameters(*shapes: str, **changes: object) -> list:
    return harness.parameters(ATTENTION, cases(*shapes, **changes))


def real_rows(case: AttentionCase) -> torch.Tensor:
    """[B, S, Hq]: which query rows are no padding."""
    lengths = torch.tensor(case.lengths)[:, None, None]
    token = torch.arange(case.query_length)[None, :, None]
    return (token < lengths).expand(-1, -1, case.q_heads) if case.prompt else torch.ones(query_rows(case)).bool()


def query_rows(case: AttentionCase) -> tuple[int, int, int]:
    return case.batch, case.query_length, case.q_heads


def positions(case: AttentionCase) -> torch.Tensor:
    """[B, S, Hq]: the slot of a query row's token."""
    first = torch.tensor([0 if case.prompt else n - case.query_length for n in case.lengths])
    return (first[:, None, None] + torch.arange(case.query_length)[None, :, None]).expand(query_rows(case))


def key_terms(case: AttentionCase) -> torch.Tensor:
    """[B, Hkv, slots]: random terms within SPREAD."""
    shape = (case.batch, case.kv_heads, case.total_length)
    return (torch.rand(shape, generator=torch.Generator().manual_seed(7)) * 2 - 1) * SPREAD


def build(case: AttentionCase, offsets: torch.Tensor, terms: torch.Tensor) -> AttentionTensors:
    """Tensors in which scores are phi + offsets [B, S, Hq] + terms [B, Hkv, slots], the two columns' rounding aside."""
    t = harness.attention_tensors.__wrapped__(case)
    heads = torch.arange(case.q_heads)
    t.phi = (heads % 5 - 2).float()
    t.query.zero_()
    t.query[..., 0] = (t.phi + offsets).to(t.query.dtype)
    t.query[..., 1] = 1
    keys = torch.zeros(*terms.shape, case.head_size, dtype=torch.float64)
    keys[..., 0], keys[..., 1] = 1, terms
    if t.key_scale is not None:
        t.key_scale = torch.full_like(t.key_scale, 1 / LIMITS[t.past_key.dtype][1])
        t.key_scale[..., 1] *= terms.abs().amax()
    for b, length in enumerate(case.lengths):
        past = 0 if case.prompt else length - case.query_length
        t.key[b] = keys[b, :, past : past + case.query_length].transpose(0, 1).to(t.key.dtype)
        held = keys[b : b + 1, :, :past]
        if t.past_key is not None:
            held = held if t.key_scale is None else quantise(held, t.key_scale, t.past_key.dtype)
            t.past_key[b, :, :past] = held[0].to(t.past_key.dtype)
    return t


def run(variant: str, case: AttentionCase, t: AttentionTensors) -> tuple[AttentionCall, int]:
    """A checked call and how many rows it counted."""
    counter = _core.DeviceCounter("cpu" if harness.device_of(variant) == "cpu" else "cuda")
    call = AttentionCall(case, t, harness.device_of(variant))
    call.run(variant, 2, counter=counter)
    call.check()
    return call, counter.read()


def assert_equals_online(call: AttentionCall, variant: str) -> None:
    """Unified and online differ by no more than their rounding: each has the naive computation's error twice."""
    online, count = run(variant, dataclasses.replace(call.case, softmax_mode="online"), call.tensors)
    assert count == 0, "the online softmax counts nothing"
    expected, (reference, naive) = online.heads().double(), call.expected()
    rounded = expected + 2 * (naive.output - reference.output)
    assert_accurate(call.heads(), expected, rounded, call.heads().dtype, "unified against online")


def test_every_backend_runs_unified() -> None:
    """Every signature's types are taken in unified mode where this build has the backend."""
    harness.check_every_case_is_taken(ATTENTION, cases(), "C", "cache_dtype")


@pytest.mark.parametrize("offset", [FAR, -FAR], ids=["above", "below"])
@pytest.mark.parametrize("share", [0, 0.005, 0.5, 1])
@pytest.mark.parametrize(("variant", "case"), parameters())
def test_rows_that_leave_are_counted_and_right(variant: str, case: AttentionCase, share: float, offset: float) -> None:
    rows = real_rows(case).nonzero()
    count = max(round(share * len(rows)), int(share > 0))
    offsets = torch.zeros(query_rows(case))
    for i in range(count):
        offsets[tuple(rows[i * len(rows) // count])] = offset
    call, counted = run(variant, case, build(case, offsets, key_terms(case)))
    assert counted == count
    assert_equals_online(call, variant)


@pytest.mark.parametrize(("variant", "case"), parameters("decode", **RAGGED))
def test_ragged_batches_count_each_row_once(variant: str, case: AttentionCase) -> None:
    offsets = torch.full(query_rows(case), FAR)
    _, counted = run(variant, case, build(case, offsets, key_terms(case)))
    assert counted == offsets.numel()


@pytest.mark.parametrize("early", [True, False], ids=["early", "late"])
@pytest.mark.parametrize(("variant", "case"), parameters())
def test_one_outlier(variant: str, case: AttentionCase, early: bool) -> None:
    """One key of each row far above all others: the rows that see it are counted."""
    terms, at = key_terms(case), torch.tensor([0 if early else n - 1 for n in case.lengths])
    for b, slot in enumerate(at):
        terms[b, :, slot] = OUTLIER
    call, counted = run(variant, case, build(case, torch.zeros(query_rows(case)), terms))
    assert counted == int((real_rows(case) & (positions(case) >= at[:, None, None])).sum())
    assert_equals_online(call, variant)


@pytest.mark.parametrize(("variant", "case"), parameters(window=9))
def test_an_outlier_outside_the_window_does_not_count(variant: str, case: AttentionCase) -> None:
    terms = key_terms(case)
    terms[:, :, 0] = OUTLIER
    call, counted = run(variant, case, build(case, torch.zeros(query_rows(case)), terms))
    assert counted == int((positions(case) < case.window).sum())
    assert_equals_online(call, variant)


@pytest.mark.parametrize(("variant", "case"), parameters(bias="batch"))
def test_masked_keys_do_not_count(variant: str, case: AttentionCase) -> None:
    """Outliers under a bias of -inf, whole blocks of keys from the first on among them."""
    terms = key_terms(case)
    hidden = torch.zeros(case.batch, case.total_length, dtype=torch.bool)
    for b, length in enumerate(case.lengths):
        hidden[b, : length * 3 // 4] = True
        hidden[b, length - 1 : length] = True
        hidden[b, :length:7] = True
    terms[:, :, ::3] = torch.where(hidden[:, None, ::3], OUTLIER, terms[:, :, ::3])
    t = build(case, torch.zeros(query_rows(case)), terms)
    t.bias = torch.zeros(case.bias_shape, dtype=t.query.dtype).masked_fill(hidden[:, None, None, :], -torch.inf)
    call, counted = run(variant, case, t)
    assert counted == 0
    assert_equals_online(call, variant)


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("mode", SOFTMAX_MODES)
@pytest.mark.parametrize(("variant", "case"), parameters(bias="shared"))
def test_rows_that_see_nothing_are_zero(variant: str, case: AttentionCase, mode: str, sink: bool) -> None:
    case = dataclasses.replace(case, softmax_mode=mode, sink=sink)
    t = harness.attention_tensors.__wrapped__(case)
    t.bias.fill_(-torch.inf)
    call, counted = run(variant, case, t)
    assert counted == 0
    assert (call.heads() == 0).all()


@pytest.mark.parametrize("height", [-FAR, 0, FAR, 2000])
@pytest.mark.parametrize(("variant", "case"), parameters(sink=True))
def test_sinks_of_any_height_do_not_count(variant: str, case: AttentionCase, height: float) -> None:
    t = build(case, torch.zeros(query_rows(case)), key_terms(case))
    t.sink[:] = height
    call, counted = run(variant, case, t)
    assert counted == 0
    assert_equals_online(call, variant)


@pytest.mark.parametrize("phi", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize(("variant", "case"), parameters())
def test_a_useless_phi_costs_accuracy_nothing(variant: str, case: AttentionCase, phi: float) -> None:
    """Also where later scores are far above the first."""
    terms = key_terms(case)
    for b, length in enumerate(case.lengths):
        terms[b, :, length * 3 // 4] = OUTLIER
    t = build(case, torch.zeros(query_rows(case)), terms)
    t.phi.fill_(phi)
    _, counted = run(variant, case, t)
    assert counted == int(real_rows(case).sum())


@pytest.mark.parametrize("offset", [-85, -30, 30, 85])
@pytest.mark.parametrize(("variant", "case"), parameters("decode", "prompt", phi_range=1000.0))
def test_an_interval_wider_than_the_numbers_allow(variant: str, case: AttentionCase, offset: float) -> None:
    call, _ = run(variant, case, build(case, torch.full(query_rows(case), float(offset)), key_terms(case)))
    assert_equals_online(call, variant)


@pytest.mark.parametrize("mode", SOFTMAX_MODES)
@pytest.mark.parametrize(("variant", "case"), parameters())
def test_unused_slots_do_not_leak(variant: str, case: AttentionCase, mode: str) -> None:
    """The same bits whether cache slots that hold no token are poison or 0."""
    case = dataclasses.replace(case, softmax_mode=mode)
    poison = harness.attention_tensors.__wrapped__(case)
    clean = harness.attention_tensors.__wrapped__(case)
    for x in (clean.past_key, clean.past_value):
        for b, length in enumerate(case.lengths):
            unused = x[b, :, 0 if case.prompt else length - case.query_length :]
            unused.copy_(torch.zeros(unused.shape))
    calls = [run(variant, case, t)[0] for t in (poison, clean)]
    assert harness.same_bits(*(call.outputs["output"] for call in calls))


def _huge_scores(t: AttentionTensors) -> None:
    """Scores from -60000 to 60000, the largest clear of the others."""
    t.query[:] = 0
    t.query[..., 0] = 100
    for x in (t.key.permute(0, 2, 1, 3), t.past_key):
        if x is not None:
            x[..., 0] = torch.where(
                torch.isnan(x[..., 0]), x[..., 0], torch.linspace(-600, 600, x.shape[2]).to(x.dtype)
            )


def _one_outlier(t: AttentionTensors) -> None:
    """One key, the first of all, whose score is far above every other."""
    t.query[..., :4] = t.query[..., :4].abs() + 1
    keys = t.key.permute(0, 2, 1, 3) if t.past_key is None else t.past_key
    keys[:, :, 0, :4] = 100


def _equal_scores(t: AttentionTensors) -> None:
    t.query[:] = 0


def _equal_keys(t: AttentionTensors) -> None:
    for x in (t.key.permute(0, 2, 1, 3), t.past_key):
        if x is not None:
            x[:] = torch.where(torch.isnan(x), x, torch.ones_like(x) * 1.5)


EXTREME_CASES = [
    dataclasses.replace(case, dtype=dtype, cache_dtype=dtype)
    for case in (
        AttentionCase((40, 23), 1, 2, 3, 64, "", ""),
        AttentionCase((64, 31), 64, 1, 4, 64, "", "", "none", prompt=True),
        AttentionCase((700, 90), 7, 1, 4, 64, "", "", "grown"),
    )
    for dtype in ("float32", "float16", "bfloat16")
]


@pytest.mark.parametrize("extreme", [_huge_scores, _one_outlier, _equal_scores, _equal_keys])
@pytest.mark.parametrize("mode", SOFTMAX_MODES)
@pytest.mark.parametrize(("variant", "case"), harness.parameters(ATTENTION, EXTREME_CASES))
def test_extremes(variant: str, case: AttentionCase, mode: str, extreme: Callable[[AttentionTensors], None]) -> None:
    case = dataclasses.replace(case, softmax_mode=mode, scale=1.0 if extreme is _huge_scores else 0.0)
    t = harness.attention_tensors.__wrapped__(case)
    extreme(t)
    run(variant, case, t)
