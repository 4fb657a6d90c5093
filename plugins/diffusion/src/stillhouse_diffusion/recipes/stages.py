"""Stages of one-step distillation: teacher, parts of the labels, TSM, DM, ADM, students joined."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from stillhouse.artifact import Model
from stillhouse.data.sampling import Beside
from stillhouse.objectives.objective import Constant, Cosine, Optimizer, Phase
from stillhouse.recipe import Stage
from stillhouse.references import Ref, out, reference
from stillhouse.stages import Convert, Make, Train
from stillhouse_diffusion.data import ReadLabelled
from stillhouse_diffusion.denoisers import Discriminator
from stillhouse_diffusion.folders import LoadDiffusers
from stillhouse_diffusion.joining import JoinStudents, Sampler
from stillhouse_diffusion.making import Conditions, SplitByLabel, TeacherPairs, part_ports
from stillhouse_diffusion.phases import DenoiseImages, MatchDistribution, MatchScores
from stillhouse_diffusion.recipes.msd_settings import Distillation
from stillhouse_diffusion.recipes.rows import Row


def read_data(settings: Distillation) -> Make:
    """Real images: ports train and test."""
    return Make(
        name="data",
        make=ReadLabelled(shape=settings.shape, classes=settings.classes),
        inputs={"source": settings.data},
        ports=("train", "test"),
    )


def conditions(settings: Distillation) -> Make:
    """Inputs from which the teacher and all students make images."""
    make = Conditions(rows=settings.samples, classes=settings.classes, shape=settings.shape)
    return Make(name="conditions", make=make, inputs={}, ports=("test",), seed=1)


def discriminator(*, features: int, side: int) -> torch.nn.Module:
    """A fresh `Discriminator`."""
    return Discriminator(features=features, side=side)


@dataclass(frozen=True, kw_only=True)
class Builder:
    """The stages of a recipe's settings; equal calls give equal stages. `features` is the network
    that k-means splits need, if there is one.
    """

    settings: Distillation
    features: Ref | None = None

    @property
    def train(self) -> Ref:
        return read_data(self.settings)["train"]

    def phase(self, *trains: str, lr: float, every: int = 1, ema: float = 0.0) -> Phase:
        """One optimizer of all roles that learn at once; with `ema` each has an average."""
        s = self.settings
        schedule = Constant(warmup=s.warmup) if s.constant else Cosine(warmup=s.warmup)
        optimizer = Optimizer(
            build=torch.optim.AdamW,
            lr=lr,
            kwargs={"betas": [0.9, 0.999], "weight_decay": s.decay},
        )
        return Phase(
            trains=trains,
            optimizer=optimizer,
            schedule=schedule,
            clip_norm=s.clip,
            every=every,
            ema=dict.fromkeys(trains, ema) if ema else {},
        )

    def teacher(self) -> Stage:
        """The denoiser trained here, or one of a diffusers folder."""
        s = self.settings
        spec = s.network(s.widths)
        if s.teacher:
            load = LoadDiffusers(
                shape=s.shape,
                classes=s.classes,
                widths=s.widths,
                sigma_data=s.sigma_data,
                bf16=s.precision == "bf16",
            )
            return Convert(name="teacher", convert=load, inputs={"folder": s.teacher})
        phase = self.phase("teacher", lr=s.teacher_lr, ema=s.ema)
        return Train(
            name="teacher",
            objective=DenoiseImages(phases={"teacher": phase}, noise=s.noise()),
            inputs={"data": self.train},
            fresh={"teacher": spec},
            steps=s.teacher_steps,
            batch=s.batch,
        )

    def denoiser(self) -> Ref:
        """The teacher as a denoiser: its average, where it has one."""
        stage = self.teacher()
        average = "teacher-ema"
        return reference(stage, average) if average in stage.outputs else out(stage)

    def sampler(self) -> Convert:
        """The teacher as a sampler."""
        s = self.settings
        return Convert(
            name="sampler",
            convert=Sampler(noise=s.noise(), steps=s.heun_steps, shape=s.shape),
            inputs={"teacher": self.denoiser()},
        )

    def pairs(self, rows: int) -> Make:
        """Noise, label and the teacher's image of them."""
        s = self.settings
        return Make(
            name="pairs",
            make=TeacherPairs(rows=rows, classes=s.classes, shape=s.shape),
            inputs={"teacher": out(self.sampler())},
            ports=("train",),
        )

    def split(self, row: Row) -> Make:
        """The parts of the labels."""
        make = SplitByLabel(students=row.students, classes=self.settings.classes, by=row.by)
        inputs: dict[str, str] = {"data": self.train}
        if row.by == "kmeans":
            assert self.features is not None
            inputs["features"] = self.features
        ports = ("owner", *part_ports(row.students))
        return Make(name=f"{row.by}-{row.students}", make=make, inputs=inputs, ports=ports)

    def tsm(self, seed: int) -> Train:
        """Stage 0, once on all data for all students of a seed."""
        s = self.settings
        return Train(
            name=f"tsm-{seed}",
            objective=MatchScores(
                phases={"student": self.phase("student", lr=s.tsm_lr)}, noise=s.noise()
            ),
            inputs={"data": self.train, "teacher": self.denoiser()},
            fresh={"student": s.network(s.student_widths)},
            steps=s.tsm_steps,
            batch=s.batch,
            seed=seed,
        )

    def matched(self, row: Row, number: int, seed: int) -> Train:
        """Stage 1 of a student, and stage 2 where the row has one."""
        first = self._dm(row.base, number, seed)
        return self._adm(row, number, first) if row.adm else first

    def _dm(self, row: Row, number: int, seed: int) -> Train:
        s = self.settings
        ratio = 1 if row.pairs else s.ratio
        phases = {
            "student": self.phase("student", lr=s.dm_lr, every=ratio),
            "fake": self.phase("fake", lr=s.fake_lr),
        }
        student: Mapping[str, str] = {} if row.half else {"student": self.denoiser()}
        fresh: Mapping[str, Model] = {}
        fake = self.denoiser()
        if row.half and row.tsm:
            student = {"student": out(self.tsm(seed))}
            fake = out(self.tsm(seed)) if s.fake_init == "tsm" else fake
        elif row.half:
            fresh = {"student": s.network(s.student_widths)}
        part = self.split(row)[f"part{number}"]
        sets: dict[str, str] = {"data": part}
        if row.pairs:
            sets = {"part": part, "pairs": out(self.pairs(s.pairs))}
        return Train(
            name=f"{row.name}-{seed}-s{number}",
            objective=MatchDistribution(
                phases=phases, noise=s.noise(), regression=s.regression if row.pairs else 0.0
            ),
            inputs={**sets, "teacher": self.denoiser(), "fake": fake, **student},
            fresh=fresh,
            data=Beside(ports=("part", "pairs")) if row.pairs else None,
            steps=s.dm_steps * row.times,
            batch=s.batch,
            seed=seed,
        )

    def _adm(self, row: Row, number: int, first: Train) -> Train:
        s = self.settings
        phases = {
            "student": self.phase("student", lr=s.adm_lr, every=s.ratio),
            "fake": self.phase("fake", "discriminator", lr=s.adm_lr),
        }
        return Train(
            name=f"{row.name}-{first.seed}-s{number}",
            objective=MatchDistribution(
                phases=phases,
                noise=s.noise(),
                adversarial=s.adversarial,
                guidance=s.guidance,
                features=s.discriminator,
            ),
            inputs={
                "data": self.split(row)[f"part{number}"],
                "teacher": self.denoiser(),
                "student": first["student"],
                "fake": first["fake"],
            },
            fresh={"discriminator": Model(build=discriminator, kwargs=s.bottleneck())},
            steps=s.adm_steps * row.times,
            batch=s.batch,
            seed=first.seed,
        )

    def joined(self, row: Row, seed: int) -> Convert:
        """All students of a row behind their router."""
        s = self.settings
        each = row.times * (s.dm_steps + (s.adm_steps if row.adm else 0))
        once = s.tsm_steps if row.half and row.tsm else 0
        join = JoinStudents(
            noise=s.noise(), shape=s.shape, training_steps=row.students * each + once
        )
        students = {f"student{n}": out(self.matched(row, n, seed)) for n in range(row.students)}
        return Convert(
            name=f"{row.name}-{seed}",
            convert=join,
            inputs={**students, "owner": self.split(row)["owner"]},
            seed=seed,
        )

    def rows(self) -> dict[str, tuple[Convert, ...]]:
        """The joined students of each row, one a seed."""
        return {
            row.name: tuple(self.joined(row, seed) for seed in range(self.settings.seeds))
            for row in self.settings.parsed()
        }
