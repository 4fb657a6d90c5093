import pytest

from stillhouse.report import units


@pytest.mark.parametrize(
    ("value", "name", "expected"),
    [
        (0.91237, "accuracy", "91.24 %"),
        (1.0, "teacher_agreement", "100.00 %"),
        (272474, "parameters", "272 k"),
        (41_000_000, "macs", "41.0 M"),
        (999, "parameters", "999"),
        (0.041, "latency_b1_ms", "0.0410 ms"),
        (151.4, "latency_b32_ms", "151 ms"),
        (0.34071, "nll_loss", "0.3407"),
        (-0.34071, "kendall_tau", "\N{MINUS SIGN}0.3407"),
        (23.456, "perplexity", "23.46"),
    ],
)
def test_quantities(value: float, name: str, expected: str) -> None:
    assert units.quantity(value, name) == expected


def test_a_difference_has_a_sign_unless_it_rounds_to_zero() -> None:
    assert units.difference(0.0194, "accuracy") == "+1.94 points"
    assert units.difference(-0.0194, "accuracy") == "\N{MINUS SIGN}1.94 points"
    assert units.signed(-0.000001, "accuracy") == "0.00"


def test_labels_follow_from_names() -> None:
    assert units.unit("latency_b32_ms").label == "Latency, batch 32"
    assert units.unit("teacher_agreement").label == "Teacher agreement"
    assert units.inside("Accuracy") == "accuracy"
    assert units.inside("NLL") == "NLL"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(8.06, "8.1 s"), (59.97, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert units.duration(seconds) == expected
