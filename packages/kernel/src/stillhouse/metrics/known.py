"""The scores that the kernel's own metrics give, and what a name alone says of any other."""

from stillhouse.metrics.scores import COUNT, FRACTION, Score

ACCURACY = Score(name="accuracy", better="higher", unit=FRACTION)
TOP5 = Score(name="top5_accuracy", better="higher", unit=FRACTION, label="Top-5 accuracy")
NLL = Score(name="nll_loss", better="lower", label="NLL")
CALIBRATION = Score(name="calibration_error", better="lower")
AGREEMENT = Score(name="teacher_agreement", better="higher", unit=FRACTION)
CLASS_RECALL = Score(
    name="class_recall", better="higher", unit=FRACTION, label="Recall of each class"
)
PARAMETERS = Score(name="parameters", better="lower", unit=COUNT, cost=True)
MACS = Score(name="macs", better="lower", unit=COUNT, label="MACs", cost=True)
SIZE = Score(name="size_mib", better="lower", unit="MiB", label="Size", cost=True)
MEMORY = Score(name="peak_memory_mib", better="lower", unit="MiB", label="Peak memory", cost=True)


def latency(batch: int) -> Score:
    """Of a batch of that size."""
    label = f"Latency, batch {batch}"
    return Score(name=f"latency_b{batch}_ms", better="lower", unit="ms", label=label, cost=True)


# what a model takes: the most reliable measure first, then as tables list it, then as plots show it
COMPUTE = (MACS, PARAMETERS, latency(1))
LISTED = (PARAMETERS, MACS, latency(1))
PLOTTED = (MACS, latency(1), PARAMETERS)
KNOWN = (ACCURACY, TOP5, NLL, CALIBRATION, AGREEMENT, CLASS_RECALL, *COMPUTE, SIZE, MEMORY)
LOWER = ("_loss", "_error")
FRACTIONS = ("accuracy", "agreement", "precision", "recall", "_rate")
UNITS = {"_ms": "ms", "_mib": "MiB", "_seconds": "s"}


def guessed(name: str) -> Score:
    """What the name of a score says, where no declaration is recorded: of reports and runs made
    before metrics declared their scores.
    """
    if known := next((score for score in KNOWN if score.name == name), None):
        return known
    for ending, unit in UNITS.items():
        if name.endswith(ending):
            stem = Score(name=name.removesuffix(ending), better="lower")
            return Score(
                name=name, better="lower", unit=unit, label=stem.label, cost=ending != "_seconds"
            )
    unit = FRACTION if name.endswith(FRACTIONS) else ""
    return Score(name=name, better="lower" if name.endswith(LOWER) else "higher", unit=unit)
