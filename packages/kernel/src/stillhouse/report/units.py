"""How a score is written: label, unit and digits follow from its name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

MINUS = "\N{MINUS SIGN}"
# 0..1, shown as percent
FRACTIONS = (
    "accuracy",
    "agreement",
    "precision",
    "recall",
    "_rate",
    "_rate_error",
    "nme_error",
    "miou",
    "miou_lost",
    "_ap",
)
# of COCO: over all objects, and by their size
AP = ("ap", "ap_small", "ap_medium", "ap_large")
LABELS = {
    "in_vocabulary_rate": "In vocabulary",
    "macs": "MACs",
    "size_mib": "Size",
    "peak_memory_mib": "Peak memory",
    "pool_rate": "Of the pool",
    "nll_loss": "NLL",
    "alma_accuracy": "ALMA",
    "top5_accuracy": "Top-5 accuracy",
    "nme_error": "NME",
    "median_nme_error": "Median NME",
    "p90_nme_error": "90th percentile NME",
    "soft_nme_error": "NME of soft to hard",
    "teacher_nme_error": "NME to the teacher",
    "failure_rate_error": "Failure rate",
    "auc": "AUC",
    "box_miou": "Box mIoU",
    "forward_box_miou": "mIoU, one box a picture",
    "click1_miou": "1-click mIoU",
    "click3_miou": "3-click mIoU",
    "click5_miou": "5-click mIoU",
    "click9_miou": "9-click mIoU",
    "everything_miou": "Everything mIoU",
    "miou_lost": "mIoU lost",
    "mean_3d_moderate_ap": "3D mAP, moderate",
    "mean_bev_moderate_ap": "BEV mAP, moderate",
    "ap": "AP",
    "ap_small": "AP, small",
    "ap_medium": "AP, medium",
    "ap_large": "AP, large",
}
SUFFIXES = {"_ms": "ms", "_mib": "MiB", "_seconds": "s"}
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, kw_only=True)
class Unit:
    """How numbers of one score are written; `points` is the word for a difference."""

    label: str
    symbol: str = ""
    points: str = ""


def unit(name: str) -> Unit:
    """The unit that the name of a score implies."""
    if name.endswith(FRACTIONS) or name in AP:
        return Unit(label=_label(name), symbol="%", points="points")
    for suffix, symbol in SUFFIXES.items():
        if name.endswith(suffix):
            return Unit(label=_label(name.removesuffix(suffix), name), symbol=symbol, points=symbol)
    return Unit(label=_label(name))


def _label(stem: str, name: str = "") -> str:
    if known := LABELS.get(name or stem):
        return known
    words = stem.replace("_b", ", batch ") if stem.startswith("latency_b") else stem
    text = words.replace("_", " ")
    return text[:1].upper() + text[1:]


def number(value: float, name: str) -> str:
    """A value of the score, without its unit."""
    symbol = unit(name).symbol
    if symbol == "%":
        return _minus(f"{100 * value:.2f}")
    if name in ("parameters", "macs"):
        return prefixed(value)
    return _minus(significant(value, 3) if symbol else _plain(value))


def quantity(value: float, name: str) -> str:
    """A value of the score with its unit."""
    symbol = unit(name).symbol
    return f"{number(value, name)} {symbol}" if symbol else number(value, name)


def signed(value: float, name: str) -> str:
    """A difference with its sign, without the unit; a difference that rounds to zero has none."""
    text = number(value, name)
    if not any(digit in text for digit in "123456789"):
        return text.removeprefix(MINUS)
    return text if value < 0 else f"+{text}"


def difference(value: float, name: str) -> str:
    """A difference with its sign and unit: "+1.94 points"."""
    points = unit(name).points
    return f"{signed(value, name)} {points}" if points else signed(value, name)


def interval(low: float, high: float, name: str, *, sign: bool = False) -> str:
    """ "low to high" without units."""
    write = signed if sign else number
    return f"{write(low, name)} to {write(high, name)}"


def probability(p: float) -> str:
    """A p-value with two digits; the smallest are "< 0.0001"."""
    return "< 0.0001" if p < 0.0001 else significant(p, 2)


def counted(counts: Mapping[str, float]) -> str:
    """Counts beside a number: " (car boxes 6, cyclist boxes 1)", "" without any."""
    said = ", ".join(f"{inside(unit(name).label)} {value:g}" for name, value in counts.items())
    return f" ({said})" if said else ""


def inside(label: str) -> str:
    """A label as it stands within a sentence: NLL and MACs keep their capitals."""
    return label if label[1:2].isupper() else label[:1].lower() + label[1:]


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
