import subprocess
import sys

import pytest

from stillhouse.errors import BadRecipe
from stillhouse.metrics import units
from stillhouse.metrics.known import ACCURACY, NLL, guessed, latency
from stillhouse.metrics.scores import Score, by_name


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
    assert units.quantity(value, guessed(name)) == expected


def test_a_difference_has_a_sign_unless_it_rounds_to_zero() -> None:
    assert units.difference(0.0194, ACCURACY) == "+1.94 points"
    assert units.difference(-0.0194, ACCURACY) == "\N{MINUS SIGN}1.94 points"
    assert units.signed(-0.000001, ACCURACY) == "0.00"


def test_any_other_unit_follows_the_number() -> None:
    psnr = Score(name="psnr", better="higher", unit="dB", label="PSNR")
    assert units.quantity(31.4159, psnr) == "31.4 dB"
    assert units.difference(-0.25, psnr) == "\N{MINUS SIGN}0.250 dB"
    assert units.headed(psnr) == "PSNR, dB"


def test_a_score_without_a_label_is_called_by_its_name() -> None:
    assert latency(32).label == "Latency, batch 32"
    assert Score(name="teacher_agreement", better="higher").label == "Teacher agreement"


def test_a_score_has_a_direction_and_is_declared_in_one_way() -> None:
    # in a process of its own: here types are checked before it is
    words = "from stillhouse.metrics import Score; Score(name='fid', better='down')"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    assert "score 'fid': better must be higher, lower or neither (got 'down')" in done.stderr
    other = Score(name="nll_loss", better="lower", label="Loss")
    assert list(by_name([NLL, ACCURACY, NLL])) == ["nll_loss", "accuracy"]
    with pytest.raises(BadRecipe, match="score 'nll_loss' is declared in two ways"):
        by_name([NLL, other])


@pytest.mark.parametrize(
    ("name", "better", "unit", "cost"),
    [
        ("step_loss", "lower", "", False),
        ("warm_up_ms", "lower", "ms", True),
        ("train_seconds", "lower", "s", False),
        ("skipped_rate", "higher", "%", False),
        ("perplexity", "higher", "", False),
    ],
)
def test_what_a_name_says_where_nothing_is_recorded(
    name: str, better: str, unit: str, cost: bool
) -> None:
    found = guessed(name)
    assert (found.better, found.unit, found.cost) == (better, unit, cost)


def test_labels_within_a_sentence() -> None:
    assert units.inside("Accuracy") == "accuracy"
    assert units.inside("NLL") == "NLL"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(8.06, "8.1 s"), (59.97, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert units.duration(seconds) == expected
