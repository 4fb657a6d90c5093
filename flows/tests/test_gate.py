"""The gate: what params.yaml may say, and which reports pass."""

import math
from collections.abc import Mapping, Sequence

import pytest

from stillhouse.errors import BadSetting, UnknownName
from stillhouse.metrics.known import guessed
from stillhouse.metrics.scores import Score
from stillhouse.report.collect import Product, Source
from stillhouse.report.document import Document, Headline, Lineage, Row, Seed, StageEntry
from stillhouse.report.statistics import summarize
from stillhouse_flows.promotion.gate import Gate, Standard, check_scores, decide, read_gate

Values = Mapping[str, Sequence[float]]


def stage(
    name: str, inputs: Mapping[str, str], *, model: bool = False, digest: str = "d"
) -> StageEntry:
    product = Product(kind="model", path="model", digest="0")
    return StageEntry(
        name=name,
        kind="",
        key="",
        seconds=None,
        started=None,
        device=None,
        nproc=None,
        resumed_at=None,
        measured={},
        inputs={port: Source(ref=ref, digest=digest) for port, ref in inputs.items()},
        outputs={"model": product} if model else {},
    )


def row(name: str, stages: Sequence[str], values: Values) -> Row:
    count = max((len(v) for v in values.values()), default=0)
    seeds = tuple(
        Seed(stage=stages[0], scores={k: v[i] for k, v in values.items()}) for i in range(count)
    )
    return Row(
        name=name,
        kind="student",
        stages=tuple(stages),
        seeds=seeds,
        scores={score: summarize(given) for score, given in values.items()},
        differences={},
    )


def document(
    student: Values,
    *,
    export: str = "kd-0.student",
    data: str = "1a2b3c4d5e",
    scores: Sequence[Score] = (),
    method: str = "",
) -> Document:
    """A report with a teacher, a plain student, and a distilled one, which the recipe exports."""
    return Document(
        schema_version=2,
        recipe="toy/learn",
        variant="tiny",
        scale="tiny",
        settings={},
        reference="",
        notes=(),
        headline=Headline(sentence="", detail=()),
        missing=(),
        baseline="student",
        primary="accuracy",
        scores=tuple(scores) or tuple(guessed(name) for name in student),
        rows=(
            row("teacher", ["teacher-scores"], {"accuracy": [0.95]}),
            row("student", ["plain-0-scores"], {"accuracy": [0.7]}),
            row("student + kd", ["kd-0-scores"], student),
        ),
        stages=(
            stage("data", {"file": "data:a"}, digest=data),
            stage("pretrained", {"checkpoint": "file:t.pth"}, model=True),
            stage("teacher-scores", {"data": "data.test", "teacher": "pretrained.model"}),
            stage(
                "plain-0-scores",
                {"data": "data.test", "student": "plain-0.student", "teacher": "pretrained.model"},
            ),
            stage(
                "kd-0-scores",
                {"data": "data.test", "student": "kd-0.student", "teacher": "pretrained.model"},
            ),
            stage("export", {"student": export, "data": "data.test"}, model=True),
        ),
        curves=(),
        pictures=(),
        exported=(),
        method=method,
        lineage=Lineage(
            data=data, commit=None, changed=False, lock=None, code="", stillhouse="", stale=()
        ),
        environments=(),
        commands=(),
    )


def promoted(student: Values, **kwargs: str) -> Standard:
    return Standard(run="toy-learn-tiny-1", row="student + kd", report=document(student, **kwargs))


def gate(**rules: object) -> Gate:
    return Gate.model_validate(rules)


def test_a_gate_is_read_and_its_absence_is_none() -> None:
    text = "toy: {learn: {tiny: {}}}\ngate:\n  toy/learn:\n    row: student\n    minimum: {accuracy: 0.8}\n    not_worse: [accuracy]\n"
    found = read_gate(text, "toy/learn")
    assert found == Gate(row="student", minimum={"accuracy": 0.8}, not_worse=("accuracy",))
    assert read_gate(text, "toy/count") is None
    assert read_gate("", "toy/count") is None


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            "{minimun: {accuracy: 1}}",
            "gate toy/learn: unknown key 'minimun'. Did you mean 'minimum'?",
        ),
        ("{minimum: {accuracy: high}}", "minimum.accuracy: Input should be a valid number"),
        ("{minimum: {accuracy: .nan}}", "minimum.accuracy: Input should be a finite number"),
        ("{row: student}", "give at least one of minimum, maximum, not_worse"),
        ("", "give at least one of minimum, maximum, not_worse"),
        ("[accuracy]", "give at least one of minimum, maximum, not_worse"),
    ],
)
def test_a_gate_that_cannot_be_used_is_one_clear_line(rules: str, words: str) -> None:
    with pytest.raises((UnknownName, BadSetting)) as caught:
        read_gate(f"gate:\n  toy/learn: {rules}\n", "toy/learn")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_refuse_with_every_reason_and_accept_with_what_holds() -> None:
    report = document({"accuracy": [0.84], "latency_b1_ms": [6.0]})
    found = decide(report, gate(minimum={"accuracy": 0.85}, maximum={"latency_b1_ms": 5}), None)
    assert not found.accepted
    assert found.row == "student + kd"
    assert found.reasons == (
        "accuracy 0.84, at least 0.85 asked",
        "latency_b1_ms 6, at most 5 asked",
    )
    found = decide(report, gate(minimum={"accuracy": 0.84}, maximum={"latency_b1_ms": 6}), None)
    assert found.accepted
    assert found.scores == {"accuracy": 0.84, "latency_b1_ms": 6.0}


def test_nan_never_passes() -> None:
    report = document({"accuracy": [math.nan], "nll_loss": [math.nan]})
    before = promoted({"accuracy": [0.1], "nll_loss": [9.0]})
    for rules in (
        {"minimum": {"accuracy": 0.0}},
        {"maximum": {"nll_loss": 99.0}},
        {"not_worse": ["accuracy"]},
        {"not_worse": ["nll_loss"]},
    ):
        assert not decide(report, gate(**rules), before).accepted


@pytest.mark.parametrize(
    ("score", "theirs", "mean", "accepted"),
    [
        # 0.8, 0.82, 0.84: the mean is 0.82, the lower bound 0.7703
        ("accuracy", [0.8, 0.82, 0.84], 0.771, True),
        ("accuracy", [0.8, 0.82, 0.84], 0.770, False),
        ("nll_loss", [0.8, 0.82, 0.84], 0.869, True),
        ("nll_loss", [0.8, 0.82, 0.84], 0.870, False),
        # one seed has no interval
        ("accuracy", [0.82], 0.82, True),
        ("accuracy", [0.82], 0.8199, False),
        ("nll_loss", [0.82], 0.8201, False),
    ],
)
def test_not_worse_is_beyond_the_interval_of_the_promoted(
    score: str, theirs: list[float], mean: float, accepted: bool
) -> None:
    found = decide(document({score: [mean]}), gate(not_worse=[score]), promoted({score: theirs}))
    assert found.accepted is accepted
    assert "toy-learn-tiny-1, which is promoted" in found.reasons[0]
    assert ("not worse than" in found.reasons[0]) is accepted


def test_scores_of_other_data_are_said_to_be() -> None:
    report, before = document({"accuracy": [0.5]}, data="5e6f7a8b9c"), promoted({"accuracy": [0.8]})
    (reason,) = decide(report, gate(not_worse=["accuracy"]), before).reasons
    assert reason.endswith(
        "(the scores are of different data: version 5e6f7a8b, promoted 1a2b3c4d)"
    )


def test_a_score_that_the_promoted_lacks_cannot_be_compared() -> None:
    report = document({"accuracy": [0.9], "f1": [0.9]})
    (reason,) = decide(report, gate(not_worse=["f1"]), promoted({"accuracy": [0.8]})).reasons
    assert reason == "toy-learn-tiny-1, which is promoted, has no f1 to compare with"


def test_the_first_student_has_nothing_to_be_worse_than() -> None:
    found = decide(document({"accuracy": [0.1]}), gate(not_worse=["accuracy"]), None)
    assert (found.accepted, found.reasons) == (True, ("no student was promoted before",))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"row": "student + kdd"}, "unknown row 'student + kdd'. Did you mean 'student + kd'?"),
        ({"minimum": {"acuracy": 1}}, "unknown score 'acuracy'. Did you mean 'accuracy'?"),
        (
            {"row": "student"},
            "row 'student' is not of the student that the recipe exports; that is 'student + kd'",
        ),
    ],
)
def test_a_gate_that_does_not_fit_the_report_says_what_would(
    rules: dict[str, object], words: str
) -> None:
    with pytest.raises((UnknownName, BadSetting)) as caught:
        decide(document({"accuracy": [0.9]}), gate(**{"minimum": {"accuracy": 0}, **rules}), None)
    assert words in str(caught.value)


def test_without_a_row_that_the_export_tells_one_must_be_given() -> None:
    report, rules = document({"accuracy": [0.9]}, export="other.model"), {"accuracy": 0.5}
    with pytest.raises(BadSetting, match="give row:, one of student, student \\+ kd, teacher"):
        decide(report, gate(minimum=rules), None)
    assert decide(report, gate(minimum=rules, row="student + kd"), None).accepted


def test_a_score_that_its_metric_declares_is_held_in_its_direction() -> None:
    fid = (Score(name="fid", better="lower", label="FID"),)
    before = Standard(
        run="toy-learn-tiny-1", row="student + kd", report=document({"fid": [12.0]}, scores=fid)
    )
    rule = gate(not_worse=["fid"], row="student + kd")
    better = decide(document({"fid": [11.0]}, scores=fid), rule, before)
    worse = decide(document({"fid": [13.0]}, scores=fid), rule, before)
    assert better.accepted
    assert not worse.accepted
    assert worse.reasons[0].startswith("fid 13, worse than the mean 12 of toy-learn-tiny-1")


def test_not_worse_needs_a_score_with_a_direction() -> None:
    modes = (Score(name="modes", better="neither"),)
    with pytest.raises(BadSetting, match="not_worse: no value of 'modes' is better than another"):
        decide(document({"modes": [3.0]}, scores=modes), gate(not_worse=["modes"]), None)


def test_without_a_row_the_method_is_judged_not_the_file_that_is_exported() -> None:
    """The exported file may be of another row: the student in int8."""
    report = document({"accuracy": [0.9]}, export="plain-0.student", method="student + kd")
    found = decide(report, gate(minimum={"accuracy": 0.8}), None)
    assert (found.accepted, found.row) == (True, "student + kd")
    exported = decide(report, gate(minimum={"accuracy": 0.8}, row="student"), None)
    assert (exported.accepted, exported.row) == (False, "student")
    with pytest.raises(
        BadSetting, match="row 'teacher' is not of the student that .* exports; that"
    ):
        decide(report, gate(minimum={"accuracy": 0.8}, row="teacher"), None)


@pytest.mark.parametrize("rule", ["minimum", "maximum", "not_worse"])
def test_a_score_that_no_metric_declares_is_one_line(rule: str) -> None:
    given = ("acuracy",) if rule == "not_worse" else {"acuracy": 0.5}
    with pytest.raises(UnknownName) as caught:
        check_scores(gate(**{rule: given}), ("accuracy", "nll_loss"), where="params.yaml: gate a/b")
    assert str(caught.value) == (
        "params.yaml: gate a/b: unknown score 'acuracy'. Did you mean 'accuracy'? "
        "Valid: accuracy, nll_loss."
    )
