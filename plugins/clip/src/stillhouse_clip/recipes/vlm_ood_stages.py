"""The stages of clip/vlm_ood: data, teacher, banks of class texts, and trainings."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from stillhouse.cache import Cache
from stillhouse.data.sampling import Mix
from stillhouse.objectives import cross_entropy_loss
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
from stillhouse.recipe import Stage
from stillhouse.references import Ref, out
from stillhouse.stages import Convert, Make, Train
from stillhouse_clip.augment import ResizedCrop
from stillhouse_clip.banks import ClassBank, WithBank
from stillhouse_clip.closed_set import FreshClosedSet
from stillhouse_clip.data import PORTS, ReadClasses
from stillhouse_clip.holding import HoldOutImages, cell
from stillhouse_clip.image_side import JoinImages
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
from stillhouse_clip.recipes.vlm_ood_settings import (
    CLOSED,
    LOSSES,
    SHARED,
    Row,
    Text,
    VlmOodSettings,
)
from stillhouse_clip.taught import Support, WithTeacher
from stillhouse_clip.towers import image_model

# what an image network of the package registry was trained with
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Stages:
    """The stages of one experiment. With a grid students, and the map of a joined teacher, learn
    from a part of the training images; a training is then given its rate.
    """

    settings: VlmOodSettings

    @cached_property
    def data(self) -> Make:
        """Images of known and unseen classes, and the table of classes."""
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
    def held_out(self) -> Make:
        """The training images in two: what is learned from, what settings are chosen on."""
        inputs = {"data": self.data["train"]}
        make, ports = HoldOutImages(), ("train", "held_out")
        return Make(name="held-out", make=make, inputs=inputs, ports=ports)

    @property
    def train(self) -> Ref:
        """What students and a joining map learn from."""
        return self.held_out["train"] if self.settings.grid else self.data["train"]

    @property
    def teacher(self) -> Stage:
        """The teacher with both towers."""
        return self._teachers[0]

    @property
    def image_teacher(self) -> Stage:
        """What students are held to: the teacher, or its image tower alone where it is joined."""
        return self._teachers[1]

    @cached_property
    def _teachers(self) -> tuple[Stage, Stage]:
        settings, classes = self.settings, self.data["classes"]
        if settings.teacher:
            load = LoadTowers(dim=settings.dim)
            given = Convert(name="teacher", convert=load, inputs={"source": settings.teacher})
            return given, given
        if settings.image_weights:
            both = joined_teacher(
                data=self.train,
                classes=classes,
                photos=settings.photos,
                networks=self._networks,
                steps=settings.teacher_steps,
                batch=settings.teacher_batch,
                lr=settings.teacher_lr,
            )
            sides = {port: both.inputs[port] for port in ("image", "projection")}
            return both, Convert(name="teacher-images", convert=JoinImages(), inputs=sides)
        fresh = FreshTowers(
            image=settings.teacher_model,
            images=self._images,
            texts=settings.texts,
            dim=settings.dim,
            length=48,
        )
        own = own_teacher(
            data=self.data["every"],
            classes=classes,
            fresh=fresh,
            augment=self._augment,
            steps=settings.teacher_steps,
            batch=settings.teacher_batch,
            lr=settings.teacher_lr,
        )
        return own, own

    @property
    def _networks(self) -> Networks:
        settings = self.settings
        return Networks(
            image=settings.image_weights,
            text=settings.text_weights,
            config=settings.text_config,
            tokenizer=settings.text_tokenizer,
            model=settings.image_network,
            images=ImageSpec(size=settings.image_size, mean=HALF, std=HALF),
            features=settings.image_features,
            dim=settings.dim,
        )

    @property
    def _images(self) -> ImageSpec:
        settings = self.settings
        return ImageSpec(size=settings.size, mean=settings.mean, std=settings.std)

    @property
    def _augment(self) -> ResizedCrop:
        return ResizedCrop(area=(self.settings.crop, 1.0), flip=self.settings.flip)

    def bank(self, text: Text) -> Convert:
        """The texts of all classes, by the teacher."""
        make = ClassBank(enriched=text == "described", truncate=self.settings.truncate)
        inputs = {"teacher": out(self.teacher), "classes": self.data["classes"]}
        return Convert(name=f"bank-{text}", convert=make, inputs=inputs)

    def taught(self, port: str) -> Make:
        """Images with the teacher's embeddings."""
        inputs = {"data": self.data[port], "teacher": out(self.image_teacher)}
        make = WithTeacher(truncate=self.settings.truncate)
        return Make(name=f"taught-{port}", make=make, inputs=inputs, ports=("data",))

    def support(self, name: str, model: Stage, seed: int = 0) -> Make:
        """A model's embeddings of augmented shots."""
        return Make(
            name=name,
            make=Support(views=self.settings.shot_views),
            inputs={"data": self.data["shots"], "teacher": out(model)},
            ports=("support",),
            seed=seed,
        )

    def with_texts(self, text: Text) -> Convert:
        """The teacher's image tower with class texts."""
        join = WithBank(temperature=self.settings.temperature)
        inputs = {"student": out(self.image_teacher), "bank": out(self.bank(text))}
        return Convert(name=f"teacher-{text}", convert=join, inputs=inputs)

    def student(self, row: Row, text: Text, seed: int, rate: float | None = None) -> Convert:
        """What is scored: a trained tower with the class texts that it was trained with; imitation
        alone reads none.
        """
        train = self.training(row, text, seed, rate)
        classes = out(self.bank(text))
        if row == "prompts":
            learned = BankOfPrompts()
            inputs = {"prompts": train["prompts"]}
            classes = out(Convert(name=f"{train.name}-texts", convert=learned, inputs=inputs))
        return Convert(
            name=f"{_named(row, text, rate)}-{seed}-towers",
            convert=WithBank(temperature=self.settings.temperature),
            inputs={"student": train["student"], "bank": classes},
            seed=seed,
        )

    def training(self, row: Row, text: Text, seed: int, rate: float | None = None) -> Train:
        """The training of a row's student, at its own rate or one of the grid."""
        settings, source = self.settings, self.train
        if row == "captions":
            make = WithTeacher(captions=True, truncate=settings.truncate)
            inputs = {"data": self.train, "teacher": out(self.teacher)}
            source = out(Make(name="captions-train", make=make, inputs=inputs, ports=("data",)))
        roles: dict[str, Ref] = {}
        trains, grouping = ("student",), NoDecay()
        if row == "prompts":
            trains, grouping = ("student", "prompts"), TrainedContext()
            fresh = FreshPrompts(
                enriched=text == "described", contexts=settings.contexts, truncate=settings.truncate
            )
            inputs = {"teacher": out(self.teacher), "classes": self.data["classes"]}
            roles["prompts"] = out(Convert(name=f"prompts-{text}", convert=fresh, inputs=inputs))
        lr = self._rate(row, rate) if row == SHARED else self._rate(row, rate, text)
        objective = Composed(
            phases={"student": self._phase(trains, lr, grouping)},
            losses=self._losses(row, "prompts.text" if row == "prompts" else "bank.text"),
        )
        tower = image_model(settings.student, dim=settings.dim, images=self._images)
        name = _named(row, text, rate) if row != SHARED else _rated(SHARED, rate)
        return Train(
            name=f"{name}-{seed}",
            objective=objective,
            inputs={"data": source, **self._frozen(objective, text), **roles},
            fresh={"student": tower},
            seed=seed,
            steps=settings.steps,
            batch=settings.batch,
            augment=self._augment,
            views=settings.views,
            cache=_kept(objective),
            plain=("teacher",) if "teacher" in objective.roles else (),
            precision=settings.precision,
        )

    def closed(self, seed: int, rate: float | None = None) -> Train:
        """The training of the closed set: cross-entropy of the known classes, and no text."""
        settings = self.settings
        tower = image_model(settings.student, dim=settings.dim, images=self._images)
        start = Convert(
            name=f"closed-start-{seed}",
            convert=FreshClosedSet(tower=tower, dim=settings.dim),
            inputs={"classes": self.data["classes"]},
            seed=seed,
        )
        term = Term(cross_entropy_loss, "student.logits", "batch.labels")
        phase = self._phase(("student",), self._rate(CLOSED, rate), NoDecay())
        return Train(
            name=f"{_rated(CLOSED, rate)}-{seed}",
            objective=Composed(phases={"student": phase}, losses={"ce": Weighted(term=term)}),
            inputs={"data": self.train, "student": out(start)},
            seed=seed,
            steps=settings.steps,
            batch=settings.batch,
            augment=self._augment,
            views=settings.views,
            precision=settings.precision,
        )

    def tuned(self, row: Row, text: Text, seed: int) -> Convert:
        """A student fine-tuned on shots beside the known classes."""
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
                "student": self.training(row, text, seed)["student"],
                **self._frozen(objective, text),
            },
            seed=seed,
            steps=settings.shot_steps,
            batch=settings.batch,
            augment=self._augment,
            views=settings.views,
            cache=_kept(objective),
            plain=("teacher",) if "teacher" in objective.roles else (),
            precision=settings.precision,
        )
        return Convert(
            name=f"{train.name}-towers",
            convert=WithBank(temperature=settings.temperature),
            inputs={"student": train["student"], "bank": out(self.bank(text))},
            seed=seed,
        )

    def _rate(self, row: str, rate: float | None, text: str = "") -> float:
        """A rate of the grid, or a row's own: that of the row with this text before the row's."""
        if rate is not None:
            return rate
        rates = self.settings.rates
        return rates.get(f"{row}-{text}", rates.get(row, self.settings.lr))

    def _frozen(self, objective: Composed, text: Text) -> dict[str, Ref]:
        known = {"teacher": out(self.image_teacher), "bank": out(self.bank(text))}
        return {role: ref for role, ref in known.items() if role in objective.roles}

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


def _kept(objective: Composed) -> Mapping[str, Cache]:
    read = objective.outputs_of("teacher")
    return {"teacher": Cache(outputs=read)} if read else {}


def _rated(name: str, rate: float | None) -> str:
    return name if rate is None else f"{name}-{cell(rate)}"


def _named(row: Row, text: Text, rate: float | None) -> str:
    return _rated(f"{row}-{text}", rate)
