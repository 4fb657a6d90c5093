"""language/arte: a student's training data from a teacher that is aligned with the student."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from stillhouse.cache import Cache
from stillhouse.card import Card
from stillhouse.comparison import Comparison, costed, seeded
from stillhouse.objectives.language import lm_cross_entropy_loss, lm_sparse_kd_loss
from stillhouse.objectives.objective import Composed, Cosine, Optimizer, Phase, Weighted
from stillhouse.objectives.term import Term
from stillhouse.recipe import Recipe, Stage
from stillhouse.references import Ref, out
from stillhouse.sparse import TopK
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse_language.arte.metrics import Accuracy, ChosenStyles, Preference
from stillhouse_language.arte.published import PUBLISHED
from stillhouse_language.arte.reading import TASKS
from stillhouse_language.arte.token_targets import PadRows
from stillhouse_language.causal.export import ExportLM
from stillhouse_language.recipes.arte_alignment import Aligning
from stillhouse_language.recipes.arte_data import Sources, data_of, styles_of_tasks
from stillhouse_language.recipes.arte_notes import NOTES, PAPER, caution
from stillhouse_language.recipes.arte_settings import (
    BASELINE,
    METHOD,
    TOKENS,
    ArteSettings,
)

TITLES: Mapping[str, str] = {
    "original": "best of the original teacher's drafts",
    "unaligned": "original teacher, same process as ARTE",
    "random": "random choice of the drafts",
    "worst": "worst of the drafts",
    "arte": "ARTE",
    "reversed": "teacher aligned with the reverse preference",
    "rationale": "old questions, aligned rationales",
    "question": "aligned questions, original rationales",
    "tokens": "ARTE, and the aligned teacher's token distributions",
}


def arte(settings: ArteSettings) -> Recipe:
    """Liu et al. 2024 (arXiv 2406.19227), ARTE: the student tries the teacher's drafts as its one
    example, the teacher is aligned by DPO with what helped, and writes the student's data.

    Claim: a student that is fine-tuned on the aligned teacher's data answers better than one on the
    original teacher's. Controls: random and worst drafts, a teacher aligned with the reverse
    preference, no data. Command: `stillhouse run language/arte --scale tiny|small|paper`. Scores
    are those of the last step; nothing is picked on the test set.

    tiny: sums of digits, Llamas of some 100,000 parameters trained here. small: SmolLM2-135M as
    student and as teacher, which chooses among candidates of data; CommonsenseQA, StrategyQA and
    GSM8K, 3 seeds. paper: Llama-3-70B-Instruct and Gemma-2B.
    """
    sources = Sources.of(settings)
    aligned = Aligning(settings=settings, sources=sources)
    data = data_of(settings, sources, aligned)
    tuned = {
        row: seeded(_tuned(settings, sources, row, made), settings.seeds)
        for row, made in data.items()
    }
    if TOKENS in settings.rows:
        by_tokens = _by_tokens(settings, sources, data[METHOD], aligned.merged())
        tuned[TOKENS] = seeded(by_tokens, settings.seeds)
    several = settings.tasks
    quality = Accuracy(
        tasks=several,
        options=any(task in PUBLISHED and PUBLISHED[task].task.options for task in several),
        longest=settings.longest,
    )
    tested = {"data": sources.tested["test"], TASKS: sources.read[TASKS]}
    scores = replace(costed(quality, inputs=tested), data=("data", TASKS))
    teacher_scores = replace(
        costed(replace(quality, role="teacher"), inputs=tested, role="teacher"),
        data=("data", TASKS),
    )
    made = Comparison(
        teachers=_as_they_are(sources),
        students=tuned,
        titles=TITLES,
        baseline=BASELINE,
        exported=METHOD,
        scores=scores,
        teacher_scores=teacher_scores,
    )
    card = Card(
        title=f"Student of language/arte, {', '.join(several)}",
        task="text-generation",
        paper=PAPER,
    )
    export = Convert(
        name="export",
        convert=ExportLM(card=card, onnx=settings.onnx),
        inputs={"data": sources.tested["test"]},
    )
    return made.recipe(
        name="language/arte",
        reference=PAPER,
        export=export,
        studies=_studies(settings, aligned, data),
        notes=NOTES,
        caution=caution(settings),
    )


def _as_they_are(sources: Sources) -> Mapping[str, Stage]:
    """The rows of models that nothing here has tuned."""
    if sources.teacher == sources.student:
        return {"student, no data (also the teacher)": sources.student}
    return {"teacher": sources.teacher, "student, no data": sources.student}


def _tuned(settings: ArteSettings, sources: Sources, row: str, data: Stage) -> Train:
    """Supervised fine-tuning: cross-entropy of the response, mean over its tokens."""
    optimizer = Optimizer(build=torch.optim.AdamW, lr=settings.lr, kwargs={"weight_decay": 0.0})
    schedule = Cosine(warmup=0.03)
    phase = Phase(trains=("student",), optimizer=optimizer, schedule=schedule, clip_norm=1.0)
    term = Term(lm_cross_entropy_loss, "student.hidden", "student.head", "batch.labels")
    return Train(
        name=row,
        objective=Composed(phases={"tune": phase}, losses={"ce": Weighted(term=term)}),
        inputs={"data": out(data), "student": out(sources.student)},
        steps=settings.steps,
        batch=settings.batch,
        precision=settings.precision,
    )


def _by_tokens(settings: ArteSettings, sources: Sources, data: Stage, teacher: Stage) -> Train:
    """The fine-tuning on ARTE's data with the aligned teacher's next-token distributions beside the
    tokens themselves: word-level distillation (Kim & Rush 2016, arXiv 1606.07947, eq. 4), of whose
    targets the likeliest tokens and the rest are computed once and kept.
    """
    inputs = {"data": out(data), "teacher": out(teacher), "student": out(sources.student)}
    rows = Make(name=f"{TOKENS}-data", make=PadRows(), inputs=inputs, ports=("train",))
    kept = TopK(temperature=settings.token_temperature)
    term = Term(
        lm_sparse_kd_loss,
        "student.hidden",
        "student.head",
        *(f"teacher.{name}" for name in kept.names),
        "batch.counted",
        temperature=settings.token_temperature,
    )
    train, weight = _tuned(settings, sources, TOKENS, rows), settings.token_weight
    assert isinstance(train.objective, Composed)
    hard = train.objective.losses["ce"]
    losses = {"ce": replace(hard, weight=1 - weight)} if weight < 1 else {}
    losses["kd"] = Weighted(term=term, weight=weight)
    return replace(
        train,
        objective=replace(train.objective, losses=losses),
        inputs={**train.inputs, "teacher": out(teacher)},
        cache={"teacher": Cache(outputs=(kept,))},
        views=1,
    )


def _studies(
    settings: ArteSettings, aligned: Aligning, data: Mapping[str, Stage]
) -> Mapping[str, list[Evaluate]]:
    styles = styles_of_tasks(settings)
    ports = {TITLES[row]: f"data-{row}" for row in data}
    inputs: dict[str, Ref] = {f"data-{row}": out(stage) for row, stage in data.items()}
    preference = Evaluate(
        name="preference", metrics=(Preference(),), inputs={"data": out(aligned.preferences)}
    )
    chosen = Evaluate(
        name="examples",
        metrics=(ChosenStyles(lines=ports, styles=styles),),
        inputs=inputs,
        data=tuple(inputs),
    )
    studies = {
        "What the student prefers, by style of its example": [preference],
        "What alignment moved": [aligned.moved()],
        "Data of each row": [chosen],
    }
    if settings.trained_here:
        studies["What teachers write, unprompted for a style"] = [aligned.written(styles)]
    return studies
