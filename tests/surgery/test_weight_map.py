"""The weight map: every tensor accounted for, impossible maps refused while planning."""

import json

import pytest
import torch

from hybridize.core.layout import Layout
from hybridize.surgery import WeightMap, plan_weights
from hybridize.surgery.nodes import Concat, Copy, Init, Node, Repeat, RowSum, Scale, Slice, Times
from tests.tiny import as_student, tiny_teacher

SHAPES = {
    "student": {"a": (4, 3), "b": (2, 3), "c": (6,), "d": (4,)},
    "teacher": {"t": (4, 3)},
    "init": {"i": (8, 3)},
}
TENSORS = {
    origin: {
        name: torch.arange(torch.Size(shape).numel()).float().view(shape)
        for name, shape in names.items()
    }
    for origin, names in SHAPES.items()
}
NODES: list[tuple[Node, tuple[int, ...], str]] = [
    (Copy("a"), (4, 3), "a"),
    (Copy("t", "teacher"), (4, 3), "teacher:t"),
    (Init("i"), (8, 3), "init"),
    (Slice(Init("i"), 2, 5), (3, 3), "init[2:5]"),
    (Concat((Copy("a"), Copy("b"))), (6, 3), "[a; b]"),
    (Repeat(Copy("a"), 3, 2), (12, 3), "repeat(a, 3x, blocks of 2)"),
    (Repeat(Copy("c"), 2, 3), (12,), "repeat(c, 2x, blocks of 3)"),
    (Repeat(Copy("a"), 2, 1, dim=1), (4, 6), "repeat(a, 2x, blocks of 1)"),
    (Scale(Copy("a"), 0.5), (4, 3), "0.5 * a"),
    (Times(Copy("a"), Copy("d")), (4, 3), "d * a"),
    (Times(Copy("d"), Copy("d")), (4,), "d * d"),
    (RowSum(Copy("a")), (4,), "row sums of a"),
]


@pytest.mark.parametrize(("node", "shape", "text"), NODES, ids=[case[2] for case in NODES])
def test_a_node_knows_its_shape_and_prints_itself(
    node: Node, shape: tuple[int, ...], text: str
) -> None:
    made = node.evaluate(lambda origin, name: TENSORS[origin][name])
    assert node.shape(SHAPES) == shape == tuple(made.shape)
    assert str(node) == text
    weights = WeightMap((("x", node),))
    assert WeightMap.from_json(json.loads(json.dumps(weights.to_json()))) == weights


def test_repeat_keeps_blocks_together() -> None:
    made = Repeat(Copy("c"), 2, 3).evaluate(lambda origin, name: TENSORS[origin][name])
    assert made.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]


def test_times_and_row_sum_work_row_by_row() -> None:
    made = Times(Copy("a"), RowSum(Copy("a"))).evaluate(lambda origin, name: TENSORS[origin][name])
    assert made.tolist() == [[0, 3, 6], [36, 48, 60], [126, 147, 168], [270, 300, 330]]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (Copy("missing"), "the student has no tensor missing"),
        (Init("missing"), "no tensor missing to draw"),
        (Slice(Copy("a"), 2, 5), "a has 4 rows, so no rows 2:5"),
        (Concat((Copy("a"), Copy("c"))), "cannot be joined"),
        (Times(Copy("a"), Copy("c")), r"a has 4 rows, but c has the shape \(6,\)"),
        (Repeat(Copy("a"), 2, 3), "has 4 entries, no multiple of 3"),
    ],
)
def test_an_impossible_expression_is_refused(node: Node, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        node.shape(SHAPES)


def test_every_tensor_is_named_once_and_used_or_dropped() -> None:
    shapes = {"student": {"a": (4, 3)}, "teacher": {}, "init": {}}
    wanted = {"a": (4, 3)}
    WeightMap((("a", Copy("a")),)).check(wanted, shapes)
    with pytest.raises(ValueError, match="a must be named once; it is named 0 times"):
        WeightMap(()).check(wanted, shapes)
    with pytest.raises(ValueError, match="it is named 2 times"):
        WeightMap((("a", Copy("a")), ("a", Copy("a")))).check(wanted, shapes)
    with pytest.raises(ValueError, match="z is no tensor of the student"):
        WeightMap((("a", Copy("a")), ("z", Copy("a")))).check(wanted, shapes)
    with pytest.raises(ValueError, match=r"a needs shape \(5, 3\), but a has \(4, 3\)"):
        WeightMap((("a", Copy("a")),)).check({"a": (5, 3)}, shapes)
    shapes["student"]["left"] = (1,)
    with pytest.raises(ValueError, match="left of the student is neither used nor listed"):
        WeightMap((("a", Copy("a")),)).check(wanted, shapes)
    WeightMap((("a", Copy("a")),), {"student:left": "because"}).check(wanted, shapes)


def test_a_planned_map_prints_counts_and_survives_json() -> None:
    teacher = as_student(tiny_teacher("qwen3", attention_bias=True))
    weights = plan_weights(teacher, teacher.layout.convert([1], to="mamba2"))
    assert WeightMap.from_json(json.loads(json.dumps(weights.to_json()))) == weights
    lines = weights.text().splitlines()
    assert lines[0] == "61 tensors" and "copied unchanged" in lines[1]
    assert any("dropped: the mixer adds no bias there" in line for line in lines)
    assert str(weights) == weights.text()


@pytest.mark.parametrize(
    ("options", "kind", "init", "message"),
    [
        ({"state_size": 5}, "mamba2", "from_attention", "cannot fill a state_size of 5"),
        ({"width": 5}, "mamba2", "from_attention", "'width' is not an option"),
        ({}, "mamba2", "copied", "init 'copied' does not exist"),
        ({}, "tests.models.plugin:Average", "from_attention", "no map from attention"),
    ],
)
def test_an_impossible_conversion_fails_while_planning(
    options: dict[str, int], kind: str, init: str, message: str
) -> None:
    teacher = as_student(tiny_teacher())
    layout = teacher.layout.convert([1], to=kind)
    with pytest.raises(ValueError, match=message):
        plan_weights(teacher, layout, init=init, options=options)


def test_a_layout_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        plan_weights(as_student(tiny_teacher()), Layout.uniform(3))
