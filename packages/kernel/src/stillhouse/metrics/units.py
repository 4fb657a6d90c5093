"""How values of a score are written, by its unit."""

import math
from collections.abc import Mapping

from stillhouse.metrics.scores import FRACTION, Score

MINUS = "\N{MINUS SIGN}"
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float, score: Score) -> str:
    """A value of the score, without its unit."""
    match score.unit:
        case "":
            return _minus(_plain(value))
        case "%":
            return _minus(f"{100 * value:.2f}")
        case "count":
            return prefixed(value)
        case _:
            return _minus(significant(value, 3))


def shown(value: float, score: Score) -> float:
    """A value as it stands on an axis."""
    return 100 * value if score.unit == FRACTION else value


def headed(score: Score) -> str:
    """The label with its unit, as the name of an axis: "Latency, batch 1, ms"."""
    return f"{score.label}, {score.symbol}" if score.symbol else score.label


def quantity(value: float, score: Score) -> str:
    """A value of the score with its unit."""
    return f"{number(value, score)} {score.symbol}".rstrip()


def signed(value: float, score: Score) -> str:
    """A difference with its sign, without the unit; a difference that rounds to zero has none."""
    text = number(value, score)
    if not any(digit in text for digit in "123456789"):
        return text.removeprefix(MINUS)
    return text if value < 0 else f"+{text}"


def difference(value: float, score: Score) -> str:
    """A difference with its sign and unit: "+1.94 points"."""
    return f"{signed(value, score)} {score.points}".rstrip()


def interval(low: float, high: float, score: Score, *, sign: bool = False) -> str:
    """ "low to high" without units."""
    write = signed if sign else number
    return f"{write(low, score)} to {write(high, score)}"


def probability(p: float) -> str:
    """A p-value with two digits; the smallest are "< 0.0001"."""
    return "< 0.0001" if p < 0.0001 else significant(p, 2)


def counted(counts: Mapping[str, float]) -> str:
    """Counts by label, beside a number: " (car boxes 6, cyclist boxes 1)", "" without any."""
    listed = ", ".join(f"{inside(label)} {value:g}" for label, value in counts.items())
    return f" ({listed})" if listed else ""


def inside(label: str) -> str:
    """A label as it stands within a sentence: NLL and MACs keep their capitals."""
    return label if label[1:2].isupper() else label[:1].lower() + label[1:]


def capital(text: str) -> str:
    """As it begins a sentence."""
    return text[:1].upper() + text[1:]


def seeds(count: int) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{count} seed" if count == 1 else f"{count} seeds"


def significant(value: float, digits: int) -> str:
    """Decimal notation with `digits` significant digits; whole numbers keep all of theirs."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def prefixed(value: float) -> str:
    """Three digits with k, M, G or T: 272474 is "272 k"."""
    for size, letter in PREFIXES:
        if abs(value) >= size:
            return f"{_minus(significant(value / size, 3))} {letter}"
    return _minus(f"{value:.0f}")


def ratio(value: float) -> str:
    """A factor: "13x", "2.4x"."""
    return f"{significant(value, 2)}\N{MULTIPLICATION SIGN}"


def duration(seconds: float) -> str:
    """Seconds as "8.1 s", "3 min 20 s" or "2 h 05 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def file_size(amount: int) -> str:
    """Bytes as "512 B", "3.4 MiB"."""
    for power, symbol in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if amount >= 1024**power:
            return f"{amount / 1024**power:.1f} {symbol}"
    return f"{amount} B"


def _plain(value: float) -> str:
    places = 4 if abs(value) < 10 else 2 if abs(value) < 1000 else 1
    return f"{value:.{places}f}"


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
