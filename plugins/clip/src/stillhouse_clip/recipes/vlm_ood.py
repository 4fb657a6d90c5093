"""clip/vlm_ood: a small image tower that keeps a large one's open vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass

from stillhouse.card import Card
from stillhouse.comparison import Comparison, Scores
from stillhouse.export import Export
from stillhouse.metrics import Latency, Lines, Memory, Metric, Profile
from stillhouse.recipe import Recipe, Stage
from stillhouse.references import Ref, out
from stillhouse.stages import Convert, Evaluate
from stillhouse_clip.exporting import ExportTowers
from stillhouse_clip.figures import TopFive
from stillhouse_clip.holding import cell
from stillhouse_clip.recipes.vlm_ood_notes import (
    CLOSED_SET,
    GRID,
    JOINED,
    NOTES,
    OWN,
    PAPER,
    RATES,
)
from stillhouse_clip.recipes.vlm_ood_settings import CLOSED, Row, Text, VlmOodSettings
from stillhouse_clip.recipes.vlm_ood_stages import Stages
from stillhouse_clip.scores import FewShots, Known, TextSpace, Unseen
from stillhouse_clip.usage import zero_shot_usage

TITLES: Mapping[Row, str] = {
    "cls": "cls",
    "mse": "cls + mse",
    "contrastive": "cls + mse + contrastive",
    "proximity": "cls + mse + contrastive + proximity",
    "imitation": "mse alone",
    "captions": "cls + captions",
    "prompts": "cls, learned prompts",
}
TEXTS: Mapping[Text, str] = {"plain": "names", "described": "descriptions"}
CLOSED_TITLE = "closed set"


def vlm_ood(settings: VlmOodSettings) -> Recipe:
    """Li et al. 2023 (ICCV, arXiv 2307.03135): distil an image tower on some classes, and keep it
    able to recognise others by their texts.

    Claim: a student that also imitates the teacher's image space and its proximity to class texts
    is more accurate on classes that it never saw than one trained to classify by the teacher's
    texts; so are descriptions beside names. Command: `stillhouse run clip/vlm_ood --scale
    tiny|small|paper`. Scores are those of the last step; nothing is picked on unseen classes: with
    `--set grid=<rates>` all is trained on a part of the known classes' images and scored on the
    rest.

    tiny: drawn scenes of 60 known and 60 unseen combinations, a teacher trained here. small: 160
    known and 40 unseen classes of tiny-imagenet, EfficientNet-Lite0 joined to MiniLM, 5 seeds.
    paper: CLIP ViT-L/14 and the six data sets by path (`--set data=file:<folder>`), ResNet-18, SGD,
    90 epochs.
    """
    return _Experiment(settings, Stages(settings)).recipe()


@dataclass(frozen=True)
class _Experiment:
    """Rows, studies and the export of the stages."""

    settings: VlmOodSettings
    stages: Stages

    def recipe(self) -> Recipe:
        settings, made = self.settings, self._comparison()
        title = f"{settings.student}, open vocabulary, {made.title(made.exported)}"
        card = Card(title=title, task="zero-shot-image-classification", paper=PAPER)
        export = Export(outputs=("embedding", "logits"), card=card, usage=zero_shot_usage)
        shown = self.stages.held_out["held_out"] if settings.grid else self.stages.data["unseen"]
        return made.recipe(
            name="clip/vlm_ood",
            reference=PAPER,
            export=Convert(
                name="export",
                convert=ExportTowers(image=export),
                inputs={"data": shown, "teacher": out(self.stages.teacher)},
            ),
            studies={} if settings.grid else self._studies(),
            notes=_notes(settings),
            caution=_caution(settings),
        )

    def _comparison(self) -> Comparison:
        settings = self.settings
        students, titles = self._students()
        rows = settings.rows_with(settings.texts[-1])
        best = "proximity" if "proximity" in rows else rows[-1]
        rate = f"-{cell(settings.grid[0])}" if settings.grid else ""
        return Comparison(
            teachers={
                f"teacher, {TEXTS[text]}": self.stages.with_texts(text) for text in settings.texts
            },
            students=students,
            titles=titles,
            baseline=f"cls-{settings.texts[0]}{rate}",
            exported=f"{best}-{settings.texts[-1]}{rate}",
            scores=self._scores("student"),
            teacher_scores=self._scores("teacher"),
        )

    def _students(self) -> tuple[dict[str, tuple[Stage, ...]], dict[str, str]]:
        """By short name, a model a seed, and the titles: of each row or, with a grid, of each row
        and rate, the closed set's too.
        """
        settings, seeds = self.settings, range(self.settings.seeds)
        students, titles = dict[str, tuple[Stage, ...]](), dict[str, str]()
        for rate in settings.grid or (None,):
            key, rated = ("", "") if rate is None else (f"-{cell(rate)}", f", rate {rate:g}")
            for text in settings.texts:
                for row in settings.rows_with(text):
                    name = f"{row}-{text}{key}"
                    each = (self.stages.student(row, text, seed, rate) for seed in seeds)
                    students[name] = tuple(each)
                    titles[name] = f"{TITLES[row]}, {TEXTS[text]}{rated}"
            if rate is not None and settings.closed:
                name = f"{CLOSED}{key}"
                students[name] = tuple(self.stages.closed(seed, rate) for seed in seeds)
                titles[name] = f"{CLOSED_TITLE}{rated}"
        return students, titles

    def _scores(self, role: str) -> Scores:
        """Of unseen classes and other images of known ones; with a grid of held-out images of the
        known ones alone.
        """
        if self.settings.grid:
            return Scores(
                role=role,
                metrics=(Known(role=role, data="held_out"),),
                inputs={"held_out": self.stages.held_out["held_out"]},
                data=("held_out",),
            )
        metrics = (
            Unseen(role=role, against=role == "student"),
            Known(role=role),
            Profile(role=role),
        )
        return Scores(
            metrics=metrics,
            inputs={
                "unseen": out(self.stages.taught("unseen")),
                "validation": self.stages.data["validation"],
            },
            measures=(Latency(role=role), Memory(role=role)),
            figures=(TopFive(),) if role == "student" else (),
            data=("unseen", "validation"),
            role=role,
        )

    def _studies(self) -> Mapping[str, list[Evaluate]]:
        settings, studies = self.settings, {"Class texts": [self._texts()]}
        seeds = range(settings.seeds)
        if settings.shot_rows or settings.closed:
            title = f"{settings.shots} images of each unseen class"
            studies[title] = [self._few_shots(seed) for seed in seeds]
        if settings.closed:
            studies["The closed set on its own classes"] = [self._closed(seed) for seed in seeds]
        return studies

    def _texts(self) -> Evaluate:
        lines = {TEXTS[text]: TextSpace(role=f"bank-{text}") for text in self.settings.texts}
        banks = {f"bank-{text}": out(self.stages.bank(text)) for text in self.settings.texts}
        return Evaluate(name="texts", metrics=(Lines(lines=lines),), inputs=banks, data=())

    def _few_shots(self, seed: int) -> Evaluate:
        """Of a seed's students: zero-shot, by retrieval, fine-tuned, and by their own embeddings of
        the shots, which is all that a closed set has.
        """
        settings, lines, roles = self.settings, dict[str, Metric](), dict[str, Ref]()
        data = {"unseen": self.stages.data["unseen"]}
        if settings.shot_rows:
            data["support"] = out(self.stages.support("support", self.stages.image_teacher))
        for text in settings.texts:
            for row in settings.rows_with(text):
                if row not in settings.shot_rows:
                    continue
                title, role = f"{TITLES[row]}, {TEXTS[text]}", f"{row}-{text}"
                student = self.stages.student(row, text, seed)
                roles[role] = out(student)
                roles[f"{role}-tuned"] = out(self.stages.tuned(row, text, seed))
                data[f"{role}-shots"] = self._own_shots(role, student, seed)
                lines[f"{title}: none"] = FewShots(role=role)
                lines[f"{title}: retrieval"] = FewShots(role=role, support="support")
                lines[f"{title}: fine-tuned"] = FewShots(role=f"{role}-tuned")
                lines[f"{title}: shots alone"] = _alone(role)
        if settings.closed:
            closed = self.stages.closed(seed)
            roles[CLOSED] = out(closed)
            data[f"{CLOSED}-shots"] = self._own_shots(CLOSED, closed, seed)
            lines[f"{CLOSED_TITLE}: shots alone"] = _alone(CLOSED)
        return Evaluate(
            name=f"shots-{seed}",
            metrics=(Lines(lines=lines),),
            inputs={**data, **roles},
            data=tuple(data),
            seed=seed,
        )

    def _own_shots(self, role: str, model: Stage, seed: int) -> Ref:
        return out(self.stages.support(f"shots-{role}-{seed}", model, seed))

    def _closed(self, seed: int) -> Evaluate:
        lines = {CLOSED_TITLE: Known(role=CLOSED)}
        inputs = {
            "validation": self.stages.data["validation"],
            CLOSED: out(self.stages.closed(seed)),
        }
        return Evaluate(
            name=f"closed-{seed}-scores",
            metrics=(Lines(lines=lines),),
            inputs=inputs,
            data=("validation",),
            seed=seed,
        )


def _alone(role: str) -> FewShots:
    return FewShots(role=role, support=f"{role}-shots", own=True)


def _notes(settings: VlmOodSettings) -> tuple[str, ...]:
    notes = NOTES
    if not settings.teacher:
        notes = (*notes, JOINED if settings.image_weights else OWN)
    if settings.closed:
        notes = (*notes, CLOSED_SET)
    if settings.grid:
        return (*notes, GRID)
    return (*notes, RATES) if settings.rates else notes


def _caution(settings: VlmOodSettings) -> str:
    if settings.scale != "tiny":
        return ""
    return (
        "Scale tiny shows that everything works, not what the method is worth: after so few steps "
        "neither teacher nor students have learned all that they can, and on one seed a difference "
        "either way is chance."
    )
