"""clip/vlm_ood: a small image tower that keeps a large one's open vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from stillhouse.cache import Cache
from stillhouse.card import Card
from stillhouse.comparison import Comparison, Scores
from stillhouse.data.sampling import Mix
from stillhouse.export import Export
from stillhouse.metrics import Latency, Lines, Memory, Metric, Profile
from stillhouse.objectives.groups import NoDecay
from stillhouse.objectives.objective import (
    Composed,
    Cosine,
    Optimizer,
    Phase,
    Schedule,
    Step,
    Weighted,
)
from stillhouse.objectives.term import Term
from stillhouse.recipe import Recipe, Stage
from stillhouse.references import Ref, out
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse_clip.augment import ResizedCrop
from stillhouse_clip.banks import ClassBank, WithBank
from stillhouse_clip.data import PORTS, ReadClasses
from stillhouse_clip.exporting import ExportTowers
from stillhouse_clip.figures import TopFive
from stillhouse_clip.images import ImageSpec
from stillhouse_clip.objectives import (
    caption_loss,
    classification_loss,
    contrastive_imitation_loss,
    imitation_loss,
    proximity_loss,
)
from stillhouse_clip.open_models import LoadTowers
from stillhouse_clip.prompts import BankOfPrompts, FreshPrompts, TrainedContext
from stillhouse_clip.recipes.joined_teacher import Networks, joined_teacher
from stillhouse_clip.recipes.own_teacher import FreshTowers, own_teacher
from stillhouse_clip.recipes.vlm_ood_notes import JOINED, NOTES, OWN, PAPER, UNTRIED
from stillhouse_clip.recipes.vlm_ood_settings import LOSSES, Row, Text, VlmOodSettings
from stillhouse_clip.scores import FewShots, Known, TextSpace, Unseen
from stillhouse_clip.taught import Support, WithTeacher
from stillhouse_clip.towers import image_model
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
SAID: Mapping[Text, str] = {"plain": "names", "described": "descriptions"}
# what an image network of the package registry was trained with
HALF = (0.5, 0.5, 0.5)


def vlm_ood(settings: VlmOodSettings) -> Recipe:
    """Li et al. 2023 (ICCV, arXiv 2307.03135): distil an image tower on some classes, and keep it
    able to tell others by their texts.

    Claim: a student that also imitates the teacher's image space and its proximity to class texts
    is more accurate on classes that it never saw than one trained to classify by the teacher's
    texts; so are descriptions beside names. Command: `stillhouse run clip/vlm_ood --scale
    tiny|small|paper`. Scores are those of the last step; nothing is picked on unseen classes.

    tiny: drawn scenes of 60 known and 60 unseen combinations, a teacher trained here. small: 160
    known and 40 unseen classes of tiny-imagenet, EfficientNet-Lite0 joined to MiniLM, 5 seeds.
    paper: CLIP ViT-L/14 and the six data sets by path (`--set data=file:<folder>`), ResNet-18, SGD,
    90 epochs.
    """
    return _Stages(settings).recipe()


@dataclass(frozen=True)
class _Stages:
    """The stages of one experiment."""

    settings: VlmOodSettings

    def recipe(self) -> Recipe:
        settings, made = self.settings, self._comparison()
        studies = {"Class texts": [self._texts()]}
        if settings.shot_rows:
            title = f"{settings.shots} images of each unseen class"
            studies[title] = [self._few_shots(seed) for seed in range(settings.seeds)]
        notes = NOTES if settings.teacher else (*NOTES, JOINED if settings.image_weights else OWN)
        if settings.scale != "tiny":
            notes = (*notes, UNTRIED)
        title = f"{settings.student}, open vocabulary, {made.title(made.exported)}"
        card = Card(title=title, task="zero-shot-image-classification", paper=PAPER)
        export = Export(outputs=("embedding", "logits"), card=card, usage=zero_shot_usage)
        return made.recipe(
            name="clip/vlm_ood",
            reference=PAPER,
            export=Convert(
                name="export",
                convert=ExportTowers(image=export),
                inputs={"data": self.data["unseen"], "teacher": out(self.teacher)},
            ),
            studies=studies,
            notes=notes,
            caution=_caution(settings),
        )

    def _comparison(self) -> Comparison:
        settings, students = self.settings, dict[str, tuple[Convert, ...]]()
        for text in settings.texts:
            for row in settings.rows:
                key = f"{row}-{text}"
                each = [self._student(row, text, seed) for seed in range(settings.seeds)]
                students[key] = tuple(each)
        titles = {
            f"{row}-{text}": f"{TITLES[row]}, {SAID[text]}"
            for text in settings.texts
            for row in settings.rows
        }
        best = "proximity" if "proximity" in settings.rows else settings.rows[-1]
        inputs = {"unseen": out(self._taught("unseen")), "validation": self.data["validation"]}
        data = ("unseen", "validation")
        return Comparison(
            teachers={
                f"teacher, {SAID[text]}": self._known_teacher(text) for text in settings.texts
            },
            students=students,
            titles=titles,
            baseline=f"cls-{settings.texts[0]}",
            exported=f"{best}-{settings.texts[-1]}",
            scores=Scores(
                metrics=(Unseen(), Known(), Profile()),
                inputs=inputs,
                measures=(Latency(), Memory()),
                figures=(TopFive(),),
                data=data,
            ),
            teacher_scores=Scores(
                role="teacher",
                metrics=(
                    Unseen(role="teacher", against=False),
                    Known(role="teacher"),
                    Profile(role="teacher"),
                ),
                inputs=inputs,
                measures=(Latency(role="teacher"), Memory(role="teacher")),
                data=data,
            ),
        )

    @cached_property
    def data(self) -> Make:
        settings = self.settings
        described = {"descriptions": settings.descriptions} if settings.descriptions else {}
        make = ReadClasses(
            size=settings.size,
            known=settings.known,
            shots=settings.shots,
            split=settings.split,
            fit=settings.fit,
        )
        inputs = {"source": settings.data, **described}
        return Make(name="data", make=make, inputs=inputs, ports=PORTS)

    @cached_property
    def teacher(self) -> Stage:
        settings, classes = self.settings, self.data["classes"]
        if settings.teacher:
            load = LoadTowers(dim=settings.dim)
            return Convert(name="teacher", convert=load, inputs={"source": settings.teacher})
        if settings.image_weights:
            networks = Networks(
                image=settings.image_weights,
                text=settings.text_weights,
                config=settings.text_config,
                tokenizer=settings.text_tokenizer,
                model=settings.image_network,
                images=ImageSpec(size=settings.image_size, mean=HALF, std=HALF),
                features=settings.image_features,
                dim=settings.dim,
            )
            return joined_teacher(
                data=self.data["train"],
                classes=classes,
                photos=settings.photos,
                networks=networks,
                steps=settings.teacher_steps,
                batch=settings.teacher_batch,
                lr=settings.teacher_lr,
            )
        fresh = FreshTowers(
            image=settings.teacher_model,
            images=self._images,
            texts=settings.texts,
            dim=settings.dim,
            length=48,
        )
        return own_teacher(
            data=self.data["every"],
            classes=classes,
            fresh=fresh,
            augment=self._augment(),
            steps=settings.teacher_steps,
            batch=settings.teacher_batch,
            lr=settings.teacher_lr,
        )

    @property
    def _images(self) -> ImageSpec:
        settings = self.settings
        return ImageSpec(size=settings.size, mean=settings.mean, std=settings.std)

    def _augment(self) -> ResizedCrop:
        return ResizedCrop(area=(self.settings.crop, 1.0), flip=self.settings.flip)

    def _bank(self, text: Text) -> Convert:
        make = ClassBank(enriched=text == "described", truncate=self.settings.truncate)
        inputs = {"teacher": out(self.teacher), "classes": self.data["classes"]}
        return Convert(name=f"bank-{text}", convert=make, inputs=inputs)

    def _taught(self, port: str, *, captions: bool = False) -> Make:
        make = WithTeacher(captions=captions, truncate=self.settings.truncate)
        inputs = {"data": self.data[port], "teacher": out(self.teacher)}
        name = f"captions-{port}" if captions else f"taught-{port}"
        return Make(name=name, make=make, inputs=inputs, ports=("data",))

    def _known_teacher(self, text: Text) -> Convert:
        join = WithBank(temperature=self.settings.temperature)
        inputs = {"student": out(self.teacher), "bank": out(self._bank(text))}
        return Convert(name=f"teacher-{text}", convert=join, inputs=inputs)

    def _student(self, row: Row, text: Text, seed: int) -> Convert:
        """What is scored: a trained tower with the class texts that it was trained with; imitation
        alone reads none.
        """
        train = self._training(row, text, seed)
        classes = out(self._bank(text))
        if row == "prompts":
            learned = BankOfPrompts()
            inputs = {"prompts": train["prompts"]}
            classes = out(Convert(name=f"{train.name}-texts", convert=learned, inputs=inputs))
        return Convert(
            name=f"{row}-{text}-{seed}-towers" if row == "imitation" else f"{train.name}-towers",
            convert=WithBank(temperature=self.settings.temperature),
            inputs={"student": train["student"], "bank": classes},
            seed=seed,
        )

    def _training(self, row: Row, text: Text, seed: int) -> Train:
        settings = self.settings
        source = (
            out(self._taught("train", captions=True)) if row == "captions" else self.data["train"]
        )
        roles: dict[str, Ref] = {}
        trains, grouping = ("student",), NoDecay()
        if row == "prompts":
            trains, grouping = ("student", "prompts"), TrainedContext()
            fresh = FreshPrompts(
                enriched=text == "described", contexts=settings.contexts, truncate=settings.truncate
            )
            inputs = {"teacher": out(self.teacher), "classes": self.data["classes"]}
            roles["prompts"] = out(Convert(name=f"prompts-{text}", convert=fresh, inputs=inputs))
        objective = Composed(
            phases={"student": self._phase(trains, settings.lr, grouping)},
            losses=self._losses(row, "prompts.text" if row == "prompts" else "bank.text"),
        )
        return Train(
            name=f"{row}-{seed}" if row == "imitation" else f"{row}-{text}-{seed}",
            objective=objective,
            inputs={"data": source, **self._frozen(objective, text), **roles},
            fresh={"student": image_model(settings.student, dim=settings.dim, images=self._images)},
            seed=seed,
            steps=settings.steps,
            batch=settings.batch,
            augment=self._augment(),
            views=settings.views,
            cache=self._cache(objective),
            plain=("teacher",) if "teacher" in objective.roles else (),
            precision=settings.precision,
        )

    def _frozen(self, objective: Composed, text: Text) -> dict[str, Ref]:
        known = {"teacher": out(self.teacher), "bank": out(self._bank(text))}
        return {role: ref for role, ref in known.items() if role in objective.roles}

    def _cache(self, objective: Composed) -> dict[str, Cache]:
        read = objective.outputs_of("teacher")
        return {"teacher": Cache(outputs=read)} if read else {}

    def _phase(
        self, trains: tuple[str, ...], lr: float, grouping: NoDecay | TrainedContext
    ) -> Phase:
        settings = self.settings
        schedule: Schedule = Cosine(warmup=0.03)
        if settings.milestones:
            schedule = Step(at=settings.milestones, of=1.0)
        decay = {"weight_decay": settings.weight_decay}
        optimizer = Optimizer(build=torch.optim.AdamW, lr=lr, kwargs=decay)
        if settings.optimizer == "sgd":
            optimizer = Optimizer(build=torch.optim.SGD, lr=lr, kwargs={"momentum": 0.9, **decay})
        return Phase(trains=trains, optimizer=optimizer, schedule=schedule, grouping=grouping)

    def _losses(self, row: Row, text: str) -> dict[str, Weighted]:
        settings = self.settings
        both, heat = ("student.embedding", "teacher.embedding"), settings.temperature
        known = {
            "cls": Term(
                classification_loss, "student.embedding", text, "batch.labels", temperature=heat
            ),
            "mse": Term(imitation_loss, *both, normalized=settings.normalized),
            "cst": Term(
                contrastive_imitation_loss,
                *both,
                temperature=heat,
                mode=settings.mode,
                distance=settings.distance,
            ),
            "vlprox": Term(
                proximity_loss,
                *both,
                text,
                "batch.labels",
                k=settings.k,
                temperature=heat,
                filtered=settings.filtered,
            ),
            "cap": Term(caption_loss, "student.embedding", "batch.caption", "batch.labels"),
        }
        return {name: Weighted(term=known[name]) for name in LOSSES[row]}

    def _texts(self) -> Evaluate:
        lines = {SAID[text]: TextSpace(role=f"bank-{text}") for text in self.settings.texts}
        banks = {f"bank-{text}": out(self._bank(text)) for text in self.settings.texts}
        return Evaluate(name="texts", metrics=(Lines(lines=lines),), inputs=banks, data=())

    def _few_shots(self, seed: int) -> Evaluate:
        """Zero-shot, by retrieval and fine-tuned, of a seed's students."""
        settings, lines, roles = self.settings, dict[str, Metric](), dict[str, Ref]()
        for text in settings.texts:
            for row in settings.shot_rows:
                title, role = f"{TITLES[row]}, {SAID[text]}", f"{row}-{text}"
                roles[role] = out(self._student(row, text, seed))
                roles[f"{role}-tuned"] = out(self._tuned(row, text, seed))
                lines[f"{title}: none"] = FewShots(role=role)
                lines[f"{title}: retrieval"] = FewShots(role=role, support="support")
                lines[f"{title}: fine-tuned"] = FewShots(role=f"{role}-tuned")
        support = Make(
            name="support",
            make=Support(views=settings.shot_views),
            inputs={"data": self.data["shots"], "teacher": out(self.teacher)},
            ports=("support",),
        )
        return Evaluate(
            name=f"shots-{seed}",
            metrics=(Lines(lines=lines),),
            inputs={"unseen": self.data["unseen"], "support": out(support), **roles},
            data=("unseen", "support"),
            seed=seed,
        )

    def _tuned(self, row: Row, text: Text, seed: int) -> Convert:
        settings = self.settings
        objective = Composed(
            phases={"student": self._phase(("student",), settings.shot_lr, NoDecay())},
            losses=self._losses(row, "bank.every"),
        )
        train = Train(
            name=f"{row}-{text}-{seed}-tuned",
            objective=objective,
            data=Mix(parts={"train": 1, "shots": 1}),
            inputs={
                "train": self.data["train"],
                "shots": self.data["shots"],
                "student": self._training(row, text, seed)["student"],
                **self._frozen(objective, text),
            },
            seed=seed,
            steps=settings.shot_steps,
            batch=settings.batch,
            augment=self._augment(),
            views=settings.views,
            cache=self._cache(objective),
            plain=("teacher",) if "teacher" in objective.roles else (),
            precision=settings.precision,
        )
        return Convert(
            name=f"{train.name}-towers",
            convert=WithBank(temperature=settings.temperature),
            inputs={"student": train["student"], "bank": out(self._bank(text))},
            seed=seed,
        )


def _caution(settings: VlmOodSettings) -> str:
    if settings.scale != "tiny":
        return ""
    return (
        "Scale tiny shows that everything works, not what the method is worth: after so few steps "
        "neither teacher nor students have learned all that they can, and on one seed a difference "
        "either way is chance."
    )
