"""diffusion/msd: K one-step students of a class-conditional diffusion model, a part each."""

import functools

import torch

from stillhouse.artifact import Model
from stillhouse.card import Card
from stillhouse.comparison import Comparison, Scores
from stillhouse.metrics import Latencies, Latency, Profile
from stillhouse.objectives import cross_entropy_loss
from stillhouse.objectives.groups import Only
from stillhouse.objectives.objective import Composed, Cosine, Optimizer, Phase, Weighted
from stillhouse.objectives.term import Term
from stillhouse.recipe import Recipe, Stage
from stillhouse.references import Ref, out
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse_diffusion.export import ExportStudents
from stillhouse_diffusion.features import Embed, LoadLite0, small_classifier
from stillhouse_diffusion.figures import SampleGrid
from stillhouse_diffusion.metrics import Cost, Fidelity, PartFidelity, Swap
from stillhouse_diffusion.recipes.msd_settings import Msd
from stillhouse_diffusion.recipes.notes import NOTES, PAPER
from stillhouse_diffusion.recipes.rows import parse_row
from stillhouse_diffusion.recipes.stages import Builder, conditions, read_data

TEACHER = "teacher, Heun sampler"


def msd(settings: Msd) -> Recipe:
    """Song et al. 2024 (MSD, arXiv 2410.23274): several one-step students of a diffusion model,
    each distilled for its own part of the conditions.

    Claim: K students at equal steps each are nearer to the teacher than one. Control: one student
    with K times the steps, which costs the same training. Command: `stillhouse run diffusion/msd
    --scale tiny|small|paper`. Scores are those of the last step; nothing is picked by them.

    tiny: 8 x 8 digits of scikit-learn. small: MNIST at 16 pixels, a teacher of 0.2 M parameters
    trained here. paper: ImageNet-64 and your UNet2DModel (`--set data=file:...
    teacher=file:...`), DMD2's hyperparameters, for GPUs.
    """
    features = feature_network(settings)
    builder = Builder(settings=settings, features=out(features))
    made = _comparison(settings, builder, features)
    lines, roles = made.lines(), made.roles()
    tested = {"data": conditions(settings)["test"]}
    turns = Evaluate(
        name="turns",
        metrics=(Cost(role=f"student-{settings.method}"),),
        inputs={**tested, **roles},
        measures=(Latencies(lines=lines, batches=(1, 32), runs=5),),
        figures=(SampleGrid(lines=lines, columns=settings.grid),),
    )
    parts = Evaluate(
        name="parts",
        metrics=(PartFidelity(),),
        inputs={**made.scores.inputs, "student": made.model(made.first)},
        measures=(Swap(),),
        data=made.scores.data,
    )
    title = f"One-step images, {parse_row(settings.method).title}"
    export = ExportStudents(
        card=Card(title=title, task="unconditional-image-generation", paper=PAPER)
    )
    return made.recipe(
        name="diffusion/msd",
        reference=PAPER,
        export=Convert(name="export", convert=export, inputs=tested),
        studies={"By part of the labels, first seed": [parts], "In one run, in turns": [turns]},
        notes=NOTES,
    )


def _comparison(settings: Msd, builder: Builder, features: Stage) -> Comparison:
    real = Make(
        name="embedded",
        make=Embed(),
        inputs={**_real(settings), "features": out(features)},
        ports=("train", "test"),
    )
    inputs: dict[str, str] = {
        "data": conditions(settings)["test"],
        "reference": real["train"],
        "held": real["test"],
        "features": out(features),
    }
    scores = functools.partial(_scores, inputs)
    return Comparison(
        teachers={TEACHER: builder.sampler()},
        students=builder.rows(),
        titles={row.name: row.title for row in settings.parsed()},
        baseline=settings.baseline,
        exported=settings.method,
        scores=scores("student"),
        teacher_scores=scores("teacher"),
    )


def _real(settings: Msd) -> dict[str, Ref]:
    data = read_data(settings)
    return {"train": data["train"], "test": data["test"]}


def _scores(inputs: dict[str, str], role: str) -> Scores:
    return Scores(
        role=role,
        metrics=(Fidelity(role=role), Profile(role=role), Cost(role=role)),
        inputs=inputs,
        measures=(Latency(role=role, runs=5),),
        data=("data", "reference", "held"),
    )


def feature_network(settings: Msd) -> Train:
    """What images are compared by: a classifier trained here on the real training images, or the
    features of EfficientNet-Lite0, whose linear head is.
    """
    phase = Phase(
        trains=("features",),
        optimizer=Optimizer(build=torch.optim.AdamW, lr=settings.feature_lr),
        schedule=Cosine(),
        grouping=Only(patterns=("head.*",)) if settings.features else Only(patterns=("*",)),
    )
    term = Term(cross_entropy_loss, "features.logits", "batch.labels")
    objective = Composed(phases={"features": phase}, losses={"ce": Weighted(term=term)})
    spec = Model(
        build=small_classifier,
        kwargs={
            "channels": settings.channels,
            "size": settings.size,
            "classes": settings.classes,
            "widths": list(settings.feature_widths),
        },
    )
    inputs: dict[str, str] = {"data": read_data(settings)["train"]}
    if settings.features:
        load = LoadLite0(classes=settings.classes)
        backbone = Convert(name="lite0", convert=load, inputs={"weights": settings.features})
        inputs["features"] = out(backbone)
    return Train(
        name="features",
        objective=objective,
        inputs=inputs,
        fresh={} if settings.features else {"features": spec},
        steps=settings.feature_steps,
        batch=settings.batch,
    )
