"""Why a student may be no better than alone: checks that open a finished run's models and measure
on its training data, beside those of `diagnosis`, which read what the run recorded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stillhouse.artifact import Artifact
from stillhouse.batching import first_rows
from stillhouse.errors import StillhouseError
from stillhouse.leftovers import temporary
from stillhouse.metrics.scores import FRACTION
from stillhouse.metrics.units import capital, inside, quantity, significant
from stillhouse.probe import CONTROL_STEPS, Answers, Probed, probe
from stillhouse.quantize.onnx_loss import Loss, losses
from stillhouse.quantize.onnx_network import OnnxNetwork
from stillhouse.quantize.onnx_static import QuantizeStatic
from stillhouse.recipe import Context, Recipe
from stillhouse.report.diagnosis import SMALL, Subject, distilling, subject_of
from stillhouse.report.document import Document, Finding
from stillhouse.runs import Runs, finished, input_of
from stillhouse.stages.convert import Convert
from stillhouse.stages.evaluate import Evaluate
from stillhouse.stages.train import Train

EARNED = 0.5  # of a term's fall, by the student
ONE_HOT = 0.01  # probability beside the largest
FLAT = 0.99  # of the largest entropy
KNOWS = 0.1  # of a fraction: ahead on the training part
TIMES = 1.5  # of another score
NOISY = 20.0  # dB that an int8 file's outputs should have: an error of a tenth


def measure(document: Document, recipe: Recipe, runs: Runs) -> tuple[Finding, ...]:
    """What is found by measuring the first training of the row that `diagnose` is about, the best
    teacher, and the first int8 file. Raises MissingData or CorruptArtifact where the run is not
    whole.
    """
    subject = subject_of(document, recipe)
    if subject is None:
        return ()
    found = list(teacher_knows(subject, runs))
    for name, stage in subject.trained.items():
        record = finished(stage, runs)
        if record is not None and not stage.bases:
            with temporary() as folder:
                inputs = {p: input_of(recipe, ref, runs) for p, ref in stage.inputs.items()}
                ctx = _context(name, runs, folder)
                probed = probe(stage, inputs, record.outputs, ctx)
            found += _of_terms(name, stage, probed)
            break
    return (*found, *int8_differs(recipe, runs))


def int8_differs(recipe: Recipe, runs: Runs) -> Iterator[Finding]:
    """Where the first int8 file of a run leaves its float file, on a batch that it was measured on.

    The outputs decide; the tensor that is named is the first, in the order of the graph, that is as
    far off as they may be.
    """
    for stage in recipe.stages:
        if not isinstance(stage, Convert) or not isinstance(stage.convert, QuantizeStatic):
            continue
        record = finished(stage, runs)
        if record is None:
            continue
        ports = {port: input_of(recipe, ref, runs) for port, ref in stage.inputs.items()}
        floats: OnnxNetwork = ports[stage.convert.role].open().module
        int8: OnnxNetwork = record.outputs["model"].open().module
        rows = first_rows(ports["data"].open(), stage.convert.batch)
        batch = {name: rows[name].numpy() for name in floats.inputs}
        inner, outer = losses(floats, int8, [batch])
        worst = min(outer, key=lambda loss: loss.decibels)
        if worst.decibels < NOISY:
            yield Finding(
                check="int8 differs from floats",
                figure=f"'{worst.tensor}' of {stage.name} has {_decibels(worst)} against the float "
                f"file; {_first_lost(inner)}",
                remedy="Leave what follows that tensor in floats (QuantizeStatic's ops), measure "
                'ranges with method="percentile", or train longer with weight decay against single '
                "large channels.",
            )
        return


def _first_lost(inner: Sequence[Loss]) -> str:
    lost = next((i for i, loss in enumerate(inner) if loss.decibels < NOISY), None)
    if lost is None:
        return "no tensor before it is as far off: its own layer is."
    before = f", after '{inner[lost - 1].tensor}' with {_decibels(inner[lost - 1])}" if lost else ""
    return (
        f"the first tensor as far off is '{inner[lost].tensor}' ({_decibels(inner[lost])}{before})."
    )


def _decibels(loss: Loss) -> str:
    return f"{significant(loss.decibels, 2)} dB"


def _of_terms(name: str, stage: Train, probed: Probed) -> Iterator[Finding]:
    kept = distilling(stage)
    yield from gradient_too_small(name, kept, probed)
    yield from not_earned(name, kept, probed)
    for answers in probed.answers:
        yield from unsuitable_temperature(name, answers)


def gradient_too_small(name: str, kept: tuple[str, ...], probed: Probed) -> Iterator[Finding]:
    shares: list[float] = []
    for terms in (probed.start, probed.end):
        whole = sum(term.gradient for term in terms.values())
        ours = sum(terms[term].gradient for term in kept if term in terms)
        shares.append(ours / whole if whole else 0.0)
    if not kept or len(probed.start) == len(kept) or max(shares) >= SMALL:
        return
    yield Finding(
        check="distillation gradient too small",
        figure=f"{', '.join(kept)} make {_percent(shares[0])} of the gradient in the student of "
        f"{name} at its start and {_percent(shares[1])} at its end.",
        remedy="Raise the weight of what is distilled, or lower that of the labels.",
    )


def not_earned(name: str, kept: tuple[str, ...], probed: Probed) -> Iterator[Finding]:
    for term in kept:
        if term not in probed.control or term not in probed.end:
            continue
        start, end = probed.start[term].value, probed.end[term].value
        fall, without = start - end, start - probed.control[term]
        if fall <= 0 or 1 - without / fall >= EARNED:
            continue
        share = max(0.0, 1 - without / fall)
        yield Finding(
            check="distillation term not earned by the student",
            figure=f"'{term}' of {name} fell from {significant(start, 3)} to "
            f"{significant(end, 3)}; with the student frozen, {CONTROL_STEPS} steps of what is "
            f"trained beside it took it to {significant(probed.control[term], 3)}: {share:.0%} of "
            "the fall is the student's.",
            remedy="Make what is trained beside the student smaller, freeze it, or match another "
            "layer.",
        )


def unsuitable_temperature(name: str, answers: Answers) -> Iterator[Finding]:
    at = f"At temperature {answers.temperature:g} of '{answers.term}' in {name}"
    if answers.beside < ONE_HOT:
        yield Finding(
            check="teacher's answers are one-hot",
            figure=f"{at} the teacher gives {_percent(answers.beside)} of the probability to "
            "other classes than its first: it says no more than a label.",
            remedy="Raise the temperature.",
        )
    elif answers.entropy > FLAT:
        yield Finding(
            check="teacher's answers are flat",
            figure=f"{at} the entropy of the teacher's answers is {_percent(answers.entropy)} of "
            "the largest there is: all classes look alike.",
            remedy="Lower the temperature.",
        )


def teacher_knows(s: Subject, runs: Runs) -> Iterator[Finding]:
    """The best teacher's primary score on the students' training data; nothing where these cannot
    be scored (they have no labels, say).
    """
    student = next(iter(s.trained.values()), None)
    if s.teacher is None or student is None or student.data is not None:
        return
    scored = s.recipe.stage(s.teacher.stages[0])
    if not isinstance(scored, Evaluate) or not scored.data:
        return
    port = scored.data[0]
    sources = {name: input_of(s.recipe, ref, runs) for name, ref in scored.inputs.items()}
    seen = input_of(s.recipe, student.inputs["data"], runs)
    if seen.digest == sources[port].digest:
        return
    test = s.teacher.scores[s.primary.name].mean
    try:
        train = _score(s, scored, {**sources, port: seen}, runs)
    except (StillhouseError, KeyError):
        return
    if train is None:
        return
    lower = s.primary.lower_is_better
    if s.primary.unit == FRACTION:
        knows = (test - train if lower else train - test) > KNOWS
    else:
        knows = test > TIMES * train if lower else train > TIMES * test
    if knows:
        yield Finding(
            check="teacher knows the training samples",
            figure=f"{capital(s.teacher.name)} has {quantity(train, s.primary)} "
            f"{inside(s.primary.label)} on the samples that students learn from and "
            f"{quantity(test, s.primary)} on the test part: its answers there are the labels.",
            remedy="Train the teacher on other samples (cross-fitted), distil on unlabelled ones, "
            "or augment more.",
        )


def _score(s: Subject, stage: Evaluate, inputs: Mapping[str, Artifact], runs: Runs) -> float | None:
    """The primary score alone, as the stage would give it for these inputs; None without it."""
    metrics = tuple(m for m in stage.metrics if s.primary.name in [x.name for x in m.scores()])
    if not metrics:
        return None
    alone = replace(stage, metrics=metrics[:1], measures=(), figures=(), plots=())
    with temporary() as folder:
        return alone.run(inputs, _context(stage.name, runs, folder)).scores.get(s.primary.name)


def _context(stage: str, runs: Runs, folder: Path) -> Context:
    return Context(
        stage=stage,
        out=folder,
        checkpoints=folder / "checkpoints",
        caches=folder / "caches",
        device=runs.device,
    )


def _percent(share: float) -> str:
    return f"{significant(100 * share, 2)} %"
