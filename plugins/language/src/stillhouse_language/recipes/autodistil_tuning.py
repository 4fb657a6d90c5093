"""Stages of language/autodistil that tune students on few labels, each at a rate of its own."""

from dataclasses import dataclass, replace

from stillhouse.data.taking import Take
from stillhouse.recipe import Stage
from stillhouse.references import Ref, out
from stillhouse.stages import Convert, Make, Train
from stillhouse_language.classifier import AddHead
from stillhouse_language.rates import RATE, ChooseRate, TrainAtRate
from stillhouse_language.recipes.autodistil_settings import AutoDistil
from stillhouse_language.texts import KeepApart
from stillhouse_language.tuning import Lesson, Tuning


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Fine-tunings on `task`, the first of the recipe's. With `rates` in the settings, labelled
    rows are kept apart, and what is tuned chooses its learning rate on them; without, there is one.
    """

    settings: AutoDistil
    task: Make

    def tuning(self) -> Tuning:
        """A fine-tuning with few labels; at the first of the rates where one is to be chosen."""
        s = self.settings
        lr, fresh = (s.rates[0], s.rates[0]) if s.rates else (s.tune_lr, s.fresh_lr)
        return Tuning(
            steps=s.tune_steps,
            batch=s.tune_batch,
            lr=lr,
            fresh_lr=fresh,
            weight_decay=s.weight_decay,
        )

    def head(self) -> AddHead:
        return AddHead(pool=self.settings.pool, dropout=self.settings.dropout)

    def pool(self) -> Ref:
        """The labelled rows that students may learn from."""
        return self._apart()["pool"] if self.settings.rates else self.task["train"]

    def _apart(self) -> Make:
        return Make(
            name="apart",
            make=KeepApart(rows=self.settings.validation),
            inputs={"data": self.task["train"]},
            ports=("pool", "validation"),
        )

    def few(self, seed: int) -> Ref:
        """The labels of a seed."""
        take = Take(rows=self.settings.few, by="labels")
        inputs = {"data": self.pool()}
        return out(Make(name=f"few-{seed}", make=take, inputs=inputs, ports=("train",), seed=seed))

    def rate(self, row: str, encoder: Ref, *, fresh: bool = False) -> Ref | None:
        """The table by which a row chooses its rate; None where there is one rate."""
        if not self.settings.rates:
            return None
        head = replace(self.head(), fresh=fresh)
        lesson = Lesson(tuning=self.tuning(), head=head, labels=self.settings.few)
        choose = Make(
            name=f"rate-{row}",
            make=ChooseRate(lesson=lesson, rates=self.settings.rates),
            inputs={
                "encoder": encoder,
                "train": self.pool(),
                "validation": self._apart()["validation"],
            },
            ports=(RATE,),
        )
        return out(choose)

    def tuned(self, name: str, encoder: Ref, *, head: str, seed: int, rate: Ref | None) -> Stage:
        """The fine-tuning `name` of an encoder under a fresh head, on the labels of a seed."""
        return _at(self._train(name, encoder, head=head, seed=seed), rate)

    def alone(self, name: str, encoder: Ref, *, head: str, seed: int, rate: Ref | None) -> Stage:
        """The same network from fresh weights: what labels alone give."""
        train = self._train(name, encoder, head=head, seed=seed)
        objective = self.tuning().objective(fresh=True)
        return _at(replace(train, objective=objective, reinit=("student",)), rate)

    def _train(self, name: str, encoder: Ref, *, head: str, seed: int) -> Train:
        tuning = self.tuning()
        inputs = {"encoder": encoder, "data": self.task["train"]}
        headed = Convert(name=f"{head}-head", convert=self.head(), inputs=inputs)
        return Train(
            name=name,
            objective=tuning.objective(),
            inputs={"data": self.few(seed), "student": out(headed)},
            steps=tuning.steps,
            batch=tuning.batch,
            views=1,
            seed=seed,
        )


def _at(train: Train, rate: Ref | None) -> Stage:
    return train if rate is None else TrainAtRate.of(train, rate)
