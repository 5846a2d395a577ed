"""Attention in standard ops -> GroupQueryAttention: what is taken, and what stays as it is and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from both_graphs import POSITIONS, assert_same, rewrite
from spelled_out_models import decoder

from fdpp_ort.export import ExportError, export_model
from fdpp_ort.export.report import ExportReport


def attributes(proto: onnx.ModelProto) -> dict[str, object]:
    node = next(node for node in proto.graph.node if node.op_type == "FdppAttention")
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


WINDOW = (
    "visible = And(causal, real)",
    """border = Sub(column, window)
    near = Greater(row, border)
    seen = And(causal, near)
    visible = And(seen, real)""",
)


def sinks(column: str = "Expand(sinks, sink_shape)", rest: str = "i0, axis_last") -> tuple[str, str]:
    """Scores with a further column, without which the weights are used."""
    return (
        "weights = Softmax<axis = -1>(masked)",
        f"""score_shape = Shape<end = 3>(masked)
        sink_shape = Concat<axis = 0>(score_shape, axis1)
        sink_column = {column}
        with_sinks = Concat<axis = -1>(masked, sink_column)
        largest = ReduceMax<keepdims = 1>(with_sinks, axis_last)
        shifted = Sub(with_sinks, largest)
        all_weights = Softmax<axis = -1>(shifted)
        weights = Slice(all_weights, {rest}, i3)""",
    )


def by_length(most: str) -> tuple[str, str]:
    """Frequencies that are others in rows of more than `most` tokens."""
    return (
        "angles = Mul(numbers, frequencies)",
        f"""is_long = Greater(total0, {most})
        slower = Mul(frequencies, half)
        chosen = Where(is_long, slower, frequencies)
        angles = Mul(numbers, chosen)""",
    )


TAKEN = {
    "as it is": (),
    "sinks": (sinks(),),
    "heads normalised when they stand first": tuple(
        (
            f"{x} = Transpose<perm = [0, 2, 1, 3]>({x}4)",
            f"""{x}_first = Transpose<perm = [0, 2, 1, 3]>({x}4)
            {x}_squares = Mul({x}_first, {x}_first)
            {x}_mean = ReduceMean<keepdims = 1>({x}_squares, axis_last)
            {x}_root = Sqrt({x}_mean)
            {x}_normed = Div({x}_first, {x}_root)
            {x} = Mul({x}_normed, norm_weight)""",
        )
        for x in "qk"
    ),
    "other frequencies beyond the context": (by_length("many"),),
    "queries scaled": (
        ("scores = MatMul(query, keys_t)", "small = Mul(query, scale)\nscores = MatMul(small, keys_t)"),
        ("scaled = Mul(scores, scale)", "scaled = Identity(scores)"),
    ),
    "hidden by Where": (
        ("masked = Add(scaled, mask)", "masked = Where(visible, scaled, lowest)"),
        ("mask = Where(visible, zero_f, lowest)", ""),
    ),
    "softcap": (
        (
            "masked = Add(scaled, mask)",
            """divided = Div(scaled, two)
            capped = Tanh(divided)
            back = Mul(capped, two)
            masked = Add(back, mask)""",
        ),
    ),
    "window": (WINDOW,),
    "slopes": (
        (
            "masked = Add(scaled, mask)",
            """places_f = Cast<to = 1>(row)
            sloping = Mul(places_f, slopes)
            both = Add(mask, sloping)
            masked = Add(scaled, both)""",
        ),
    ),
    "pairs rotated": (
        (
            "angles2 = Concat<axis = -1>(angles, angles)",
            """each = Unsqueeze(angles, axis_last)
            twice = Concat<axis = -1>(each, each)
            angles2 = Reshape(twice, angle_pairs)""",
        ),
        *(
            (
                f"{x}_turned = Concat<axis = -1>({x}_minus, {x}_left)",
                f"""{x}_even = Slice({x}, i0, i8, i3, i2)
                {x}_odd = Slice({x}, i1, i8, i3, i2)
                {x}_odd_minus = Neg({x}_odd)
                {x}_a = Unsqueeze({x}_odd_minus, axis_last)
                {x}_b = Unsqueeze({x}_even, axis_last)
                {x}_ab = Concat<axis = -1>({x}_a, {x}_b)
                {x}_turned = Reshape({x}_ab, pairs)""",
            )
            for x in "qk"
        ),
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_is_taken(case: str, report: ExportReport) -> None:
    before = decoder(*TAKEN[case])
    after = rewrite(before, report)
    assert report.left == []
    assert report.rewritten == {
        "MatMul, Softmax, MatMul -> GroupQueryAttention": 1,
        "GroupQueryAttention -> FdppAttention": 1,
    }
    gone = {"Softmax", "Tanh", "Cos", *(["Range"] if case != "slopes" else [])}
    gone |= {"Transpose"} if "heads" not in case else set()
    assert not gone & {node.op_type for node in after.graph.node}
    found = attributes(after)
    assert (found["num_heads"], found["kv_num_heads"]) == (4, 2)
    assert found["scale"] == pytest.approx(0.3)
    assert found["softcap"] == (2 if case == "softcap" else 0)
    assert found["local_window_size"] == (3 if case == "window" else -1)
    assert found["rotary_interleaved"] == (case == "pairs rotated")
    assert_same(before, after)


def test_float16(report: ExportReport) -> None:
    """Everything that the op gets is of one type, also what the exporter makes."""
    after = rewrite(decoder(dtype=np.float16), report)
    assert report.left == []
    types = {tensor.name: tensor.data_type for tensor in after.graph.initializer}
    made = {name: kind for name, kind in types.items() if name.startswith("fdpp.") and "int64" not in name}
    assert set(made) == {"fdpp.cos_cache.0", "fdpp.sin_cache.0", "fdpp.zero.float16", "fdpp.lowest.float16"}
    assert set(made.values()) == {onnx.TensorProto.FLOAT16}


def test_tables_have_the_positions_asked_for(report: ExportReport) -> None:
    after = rewrite(decoder(), report)
    tables = {tensor.name: tensor.dims for tensor in after.graph.initializer if "_cache" in tensor.name}
    assert tables == {"fdpp.cos_cache.0": [POSITIONS, 4], "fdpp.sin_cache.0": [POSITIONS, 4]}


def test_a_short_context(tmp_path: Path, library: str) -> None:
    onnx.save(decoder(), tmp_path / "in.onnx")
    report = export_model(tmp_path / "in.onnx", tmp_path / "out", verify=False, library=library, max_length=1)
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == 1


ENCODER = (
    "int64[batch, total] attention_mask,",
    "int64[batch, total] attention_mask, float[batch, there, 32] encoder,",
)
LEFT = {
    "not causal": (
        "its mask lets a query see later tokens",
        (("visible = And(causal, real)", "visible = Or(causal, real)"),),
    ),
    "no mask": (
        "it has no mask: a query sees later tokens",
        (("masked = Add(scaled, mask)", "masked = Identity(scaled)"),),
    ),
    "a prompt that sees all of itself": (
        "its mask lets a query see later tokens",
        (
            (
                "visible = And(causal, real)",
                """prompt = Less(row, window)
                either = Or(causal, prompt)
                visible = And(either, real)""",
            ),
        ),
    ),
    "a cache in another type": (
        "its past (past_back) is not an input of the graph with known heads and head size",
        (
            (
                "present_key = Concat<axis = 2>(past_key, key)",
                """past_short = Cast<to = 10>(past_key)
                past_back = Cast<to = 1>(past_short)
                present_key = Concat<axis = 2>(past_back, key)""",
            ),
        ),
    ),
    "mask by tokens": (
        "what is added to its scores follows from the tokens",
        (
            (
                "masked = Add(scaled, mask)",
                """first = ReduceMax<keepdims = 0>(x)
                by_tokens = Add(mask, first)
                masked = Add(scaled, by_tokens)""",
            ),
        ),
    ),
    "cross attention": (
        "its keys or values are not past and new ones",
        (
            ENCODER,
            (
                "keys5 = Unsqueeze(present_key, axis2)",
                """there3 = MatMul(encoder, wk)
                there4 = Reshape(there3, kv_shape)
                there = Transpose<perm = [0, 2, 1, 3]>(there4)
                keys5 = Unsqueeze(there, axis2)""",
            ),
            (
                "values5 = Unsqueeze(present_value, axis2)",
                """worth3 = MatMul(encoder, wv)
                worth4 = Reshape(worth3, kv_shape)
                worth = Transpose<perm = [0, 2, 1, 3]>(worth4)
                values5 = Unsqueeze(worth, axis2)""",
            ),
            ("masked = Add(scaled, mask)", "masked = Identity(scaled)"),
        ),
    ),
    "other groups": (
        "what its nodes compute is not what GroupQueryAttention computes",
        tuple(
            line
            for x in ("keys", "values")
            for line in (
                (f"{x}5 = Unsqueeze(present_{x[:-1]}, axis2)", f"{x}5 = Unsqueeze(present_{x[:-1]}, axis1)"),
                (f"{x}_all = Expand({x}5, groups)", f"{x}_all = Expand({x}5, other_groups)"),
            )
        ),
    ),
    "keys alone rotated": (
        "of its queries and keys only one has a rotary embedding",
        (("query = Add(q_cos, q_sin)", "query = Identity(q)"),),
    ),
    "sinks that are no constants": (
        "its scores are put together with something that is no constant of one number a head",
        (sinks("Slice(masked, i0, i1, i3)"),),
    ),
    "a key in place of the sink left out": (
        "what its nodes compute is not what GroupQueryAttention computes",
        (sinks(rest="i1, end"),),
    ),
    "frequencies by the length": (
        "its rotary embedding follows from how many tokens there are, of at most 64",
        (by_length("window"),),
    ),
    "a cache that is cut": (
        "are not an output of the graph",
        (
            (
                "present_key = Concat<axis = 2>(past_key, key)",
                "whole_key = Concat<axis = 2>(past_key, key)\npresent_key = Slice(whole_key, i0, i8, i2)",
            ),
            ("keys5 = Unsqueeze(present_key, axis2)", "keys5 = Unsqueeze(whole_key, axis2)"),
        ),
    ),
    "softmax over queries": (
        "its softmax is not over the last dimension",
        (("weights = Softmax<axis = -1>(masked)", "weights = Softmax<axis = 2>(masked)"),),
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_is_left(case: str, report: ExportReport) -> None:
    reason, changes = LEFT[case]
    before = decoder(*changes)
    after = rewrite(before, report)
    assert report.rewritten == {}
    (left,) = report.left
    assert left.op == "Softmax" and reason in left.reason
    before_types, after_types = ([node.op_type for node in proto.graph.node] for proto in (before, after))
    for op in ("MatMul", "Softmax"):
        assert after_types.count(op) == before_types.count(op)
    assert "GroupQueryAttention" not in after_types
    if case != "a cache that is cut":  # which fits no mask on the second step
        assert_same(before, after)


def test_nothing_to_rewrite_is_an_error(tmp_path: Path, stand_in: Path) -> None:
    onnx.save(decoder(*LEFT["not causal"][1]), tmp_path / "in.onnx")
    with pytest.raises(ExportError, match="no attention was rewritten: .*: its mask lets a query see later tokens"):
        export_model(tmp_path / "in.onnx", tmp_path / "out", verify=False, library=stand_in)


def test_in_a_branch(report: ExportReport) -> None:
    """As in optimum's merged decoders, one branch for prompts and one for what follows."""
    before = decoder(
        ("weights = Softmax<axis = -1>(masked)", "one_query = Equal(new1, axis1)"),
        ("heads = MatMul(weights, values)", "heads = Identity(query)"),
    )
    graph = before.graph
    heads = next(node for node in graph.node if node.output[0] == "heads")
    branches = []
    for name in ("then_branch", "else_branch"):
        softmax = onnx.helper.make_node("Softmax", ["masked"], [f"{name}.weights"], name=f"{name}.softmax")
        product = onnx.helper.make_node("MatMul", [f"{name}.weights", "values"], [f"{name}.heads"])
        made = onnx.helper.make_tensor_value_info(f"{name}.heads", onnx.TensorProto.FLOAT, None)
        branches.append(onnx.helper.make_graph([softmax, product], name, [], [made]))
    heads.CopyFrom(
        onnx.helper.make_node("If", ["one_query"], ["heads"], then_branch=branches[0], else_branch=branches[1])
    )
    after = rewrite(before, report)
    assert report.rewritten == {}
    assert {left.node for left in report.left} == {"then_branch.softmax", "else_branch.softmax"}
    assert {left.reason for left in report.left} == {
        "it is in a branch or a loop: only those in the graph itself are rewritten"
    }
    assert [node.op_type for node in after.graph.node].count("If") == 1
    assert_same(before, after)
