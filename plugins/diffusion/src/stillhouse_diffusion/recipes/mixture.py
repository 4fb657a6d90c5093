"""diffusion/mixture: MSD on a mixture of Gaussians in the plane, whose densities can be seen."""

from stillhouse.card import Card
from stillhouse.comparison import Comparison, Scores
from stillhouse.metrics import Latencies, Latency, Profile
from stillhouse.recipe import Recipe
from stillhouse.references import out
from stillhouse.stages import Convert, Evaluate
from stillhouse_diffusion.export import ExportStudents
from stillhouse_diffusion.figures import PlaneGrid
from stillhouse_diffusion.metrics import Cost, PlaneDistance
from stillhouse_diffusion.recipes.msd_settings import Mixture
from stillhouse_diffusion.recipes.notes import MIXTURE_NOTES, PAPER
from stillhouse_diffusion.recipes.rows import parse_row
from stillhouse_diffusion.recipes.stages import Builder, conditions

TEACHER = "teacher, Heun sampler"


def mixture(settings: Mixture) -> Recipe:
    """The two-dimensional experiment of MSD (arXiv 2410.23274): eight classes of eight Gaussians,
    an MLP, and the L1 distance of a student's density to the teacher's.

    Claim: the distance falls with the number of students at equal steps each. Control: one student
    with as many times the steps. Command: `stillhouse run diffusion/mixture --scale
    tiny|small|paper`.

    tiny: a thousand steps. small: 16,000 steps of the teacher, three seeds. paper: the paper's
    numbers from memory, which are uncertain.
    """
    builder = Builder(settings=settings)
    inputs: dict[str, str] = {
        "data": conditions(settings)["test"],
        "pairs": out(builder.pairs(2 * settings.samples)),
    }
    made = Comparison(
        teachers={TEACHER: builder.sampler()},
        students=builder.rows(),
        titles={row.name: row.title for row in settings.parsed()},
        baseline=settings.baseline,
        exported=settings.method,
        scores=_scores(settings, inputs, "student"),
        teacher_scores=_scores(settings, inputs, "teacher"),
    )
    tested, lines = {"data": inputs["data"]}, made.lines()
    turns = Evaluate(
        name="turns",
        metrics=(Cost(role=f"student-{settings.method}"),),
        inputs={**tested, **made.roles()},
        measures=(Latencies(lines=lines, batches=(1, 1024), runs=5),),
        plots=(PlaneGrid(lines=lines),),
    )
    title = f"One-step points, {parse_row(settings.method).title}"
    export = ExportStudents(card=Card(title=title, task="other", paper=PAPER))
    return made.recipe(
        name="diffusion/mixture",
        reference=PAPER,
        export=Convert(name="export", convert=export, inputs=tested),
        studies={"In one run, in turns": [turns]},
        notes=MIXTURE_NOTES,
    )


def _scores(settings: Mixture, inputs: dict[str, str], role: str) -> Scores:
    return Scores(
        role=role,
        metrics=(PlaneDistance(role=role, bins=settings.bins), Profile(role=role), Cost(role=role)),
        inputs=inputs,
        measures=(Latency(role=role, runs=5),),
        data=("data", "pairs"),
    )
