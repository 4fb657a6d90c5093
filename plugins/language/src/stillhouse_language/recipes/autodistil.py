"""language/autodistil: small encoders of several sizes from a large one, by few-shot search."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from stillhouse.cache import Cache
from stillhouse.card import Card
from stillhouse.comparison import Comparison, costed
from stillhouse.export import Export
from stillhouse.metrics import Classification
from stillhouse.objectives.groups import NoDecay
from stillhouse.objectives.language import lm_cross_entropy_loss
from stillhouse.objectives.objective import Composed, Cosine, Optimizer, Phase, Weighted
from stillhouse.objectives.term import Term
from stillhouse.recipe import Recipe, Stage
from stillhouse.references import Ref, out
from stillhouse.search import Exhaustive, RandomSearch
from stillhouse.stages import Convert, Make, Search, Train
from stillhouse_language.choosing import Choose, Cut
from stillhouse_language.encoder import PROJECTIONS
from stillhouse_language.encoders import LoadEncoder, NewEncoder
from stillhouse_language.proxy import RelationScore, superlm_port
from stillhouse_language.recipes.autodistil_notes import PAPER, caution, notes
from stillhouse_language.recipes.autodistil_settings import ROWS, TEACHER, WHOLE, AutoDistil
from stillhouse_language.recipes.autodistil_studies import studies
from stillhouse_language.recipes.autodistil_tuning import FineTuning
from stillhouse_language.sandwich import Linear, Sandwich
from stillhouse_language.spaces import Spaces, SubSpace
from stillhouse_language.texts import MaskTokens, ReadCorpus, ReadTask
from stillhouse_language.tokenizing import SPECIAL
from stillhouse_language.transformers_folder import ExportClassifier
from stillhouse_language.usage import classifier_usage

LONG = "long"  # K = 1 that is trained as long as all SuperLMs together


def autodistil(settings: AutoDistil) -> Recipe:
    """AutoDistil, Xu et al. 2022 (arXiv 2201.12507): few SuperLMs, each of subnets of one size
    class, distilled by self-attention relations; the best subnet of a budget found without labels
    and without training, cut out, and fine-tuned on any task.

    Claim: the subnet that the relation loss on held-out text chooses is as good as a hand-made
    student that was distilled for its size alone. Controls: random and the largest subnet of the
    budget, one SuperLM for all sizes, the chosen shape on labels alone.
    Command: `stillhouse run language/autodistil --scale tiny|small|paper`.

    tiny: a four-layer encoder trained here on the documentation in Python's library. small:
    MiniLM-L6 to subnets of half the paper's widths, WikiText and unlabelled phrases; SST-2, CoLA
    and RTE. paper: BERT-base, Wikipedia and books (`--set data=file:...`), GLUE.
    """
    parts = Parts.of(settings)
    made = parts.comparison()
    export = ExportClassifier(
        export=Export(
            inputs=("tokens", "mask"),
            outputs=("logits",),
            dynamic={"tokens": ("length",), "mask": ("length",)},
            card=Card(
                title=f"Classifier of {next(iter(settings.tasks))}, distilled by AutoDistil",
                task="text-classification",
                paper=PAPER,
            ),
            usage=classifier_usage,
        )
    )
    tested = {"data": parts.tasks[0]["test"]}
    return made.recipe(
        name="language/autodistil",
        reference=PAPER,
        export=Convert(name="export", convert=export, inputs=tested),
        studies=studies(settings, parts),
        notes=notes(chosen=bool(settings.rates)),
        caution=caution(settings.scale),
    )


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The stages that rows and studies have in common."""

    settings: AutoDistil
    teacher: Ref
    text: Make
    tasks: tuple[Make, ...]
    slices: Mapping[str, Convert]  # of the teacher, as each SuperLM begins
    superlms: Mapping[str, Train]
    search: Search
    whole: Mapping[str, Search]  # of K = 1, by how long it was trained

    @classmethod
    def of(cls, settings: AutoDistil) -> "Parts":
        teacher, text = teacher_and_text(settings)
        spaces = settings.sub_spaces()
        slices = {name: _slices(name, space, teacher) for name, space in spaces.spaces.items()}
        superlms = {
            name: superlm(settings, name, space, teacher, text, slices[name])
            for name, space in spaces.spaces.items()
        }
        tasks = [_task(settings, name, source, teacher) for name, source in settings.tasks.items()]
        return cls(
            settings=settings,
            teacher=teacher,
            text=text,
            tasks=tuple(tasks),
            slices=slices,
            superlms=superlms,
            search=_search(settings, "search", spaces, superlms, teacher, text),
            whole=_whole(settings, teacher, text) if settings.whole_trials else {},
        )

    def superlm_inputs(self) -> dict[str, Ref]:
        return {superlm_port(name): out(stage) for name, stage in self.superlms.items()}

    def choices(self) -> dict[str, Choose]:
        """Rules by row; of the random ones each seed's."""
        spaces = self.settings.sub_spaces()
        cost = next(iter(self.settings.budget))
        drawn = {
            f"random-{seed}": Choose(spaces=spaces, rule="random", number=seed)
            for seed in range(self.settings.seeds)
        }
        return {
            "chosen": Choose(spaces=spaces, rule="best"),
            "largest": Choose(spaces=spaces, rule="largest", cost=cost),
            **drawn,
        }

    def encoders(self) -> dict[str, Ref]:
        """The students before they are fine-tuned, by row."""
        given = {"trials": self.search["trials"], **self.superlm_inputs()}
        found = {
            name: out(Convert(name=name, convert=choice, inputs=given))
            for name, choice in self.choices().items()
        }
        found["hand"] = out(by_hand(self.settings, self.teacher, self.text))
        for name, search in self.whole.items():
            choice = Choose(spaces=self.settings.whole_space(), rule="best")
            inputs = {"trials": search["trials"], **_superlms_of(search)}
            found[name] = out(Convert(name=f"chosen-{name}", convert=choice, inputs=inputs))
        return found

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows of students, in the order in which they are made."""
        return tuple(row for row in ROWS if row in self.whole or not row.startswith("one"))

    @property
    def tuning(self) -> FineTuning:
        return FineTuning(settings=self.settings, task=self.tasks[0])

    def rate(self, row: str) -> Ref | None:
        """The table by which a row chooses its learning rate; None where there is one rate."""
        if row == TEACHER:
            return self.tuning.rate(row, self.teacher)
        encoder = self.encoders()[{"labels": "chosen", "random": "random-0"}.get(row, row)]
        return self.tuning.rate(row, encoder, fresh=row == "labels")

    def comparison(self) -> Comparison:
        name = f"{TEACHER}-tuned"
        rate = self.rate(TEACHER)
        teacher = self.tuning.tuned(name, self.teacher, head=name, seed=0, rate=rate)
        encoders = self.encoders()
        return Comparison(
            teachers={"teacher, fine-tuned": teacher},
            students={row: self._students(row, encoders) for row in self.rows},
            titles=ROWS,
            baseline="labels",
            exported="chosen",
            scores=costed(Classification(), inputs={"data": self.tasks[0]["test"]}),
        )

    def _students(self, row: str, encoders: Mapping[str, Ref]) -> tuple[Stage, ...]:
        """A row's students, each of the labels of its seed; of random subnets each another one."""
        tuning, rate, seeds = self.tuning, self.rate(row), range(self.settings.seeds)
        if row == "labels":
            return tuple(
                tuning.alone(
                    f"labels-{seed}", encoders["chosen"], head="chosen", seed=seed, rate=rate
                )
                for seed in seeds
            )
        names = {seed: f"random-{seed}" if row == "random" else row for seed in seeds}
        stages = {
            seed: f"{name}-tuned" if row == "random" else f"{row}-tuned-{seed}"
            for seed, name in names.items()
        }
        return tuple(
            tuning.tuned(stages[seed], encoders[name], head=name, seed=seed, rate=rate)
            for seed, name in names.items()
        )


def teacher_and_text(settings: AutoDistil) -> tuple[Ref, Make]:
    """The encoder that teaches, given or trained here, and the text in its tokens."""
    if settings.teacher:
        tokenizer = {"tokenizer": settings.tokenizer} if settings.tokenizer else {}
        given = Convert(
            name="teacher",
            convert=LoadEncoder(expected=settings.full(), dropout=settings.dropout),
            inputs={"checkpoint": settings.teacher, **tokenizer},
        )
        return out(given), _text(settings, out(given))
    new = NewEncoder(architecture=settings.full(), dropout=settings.dropout)
    fresh = Convert(name="fresh", convert=new, inputs={"source": settings.data})
    text = _text(settings, out(fresh))
    masking = MaskTokens(
        mask=SPECIAL.index("[MASK]"), vocabulary=settings.full().vocabulary, first=len(SPECIAL)
    )
    term = Term(lm_cross_entropy_loss, "teacher.hidden", "teacher.embedding", "batch.targets")
    phase = _phase(settings, "teacher", lr=settings.teacher_lr)
    teacher = Train(
        name="teacher",
        objective=Composed(phases={"teacher": phase}, losses={"masked": Weighted(term=term)}),
        inputs={"data": text["train"], "teacher": out(fresh)},
        steps=settings.teacher_steps,
        batch=settings.batch,
        augment=masking,
    )
    return out(teacher), text


def _text(settings: AutoDistil, model: Ref) -> Make:
    make = ReadCorpus(
        length=settings.length,
        held=settings.held,
        rows=settings.rows,
        parts=settings.corpus,
        shortest=settings.shortest,
    )
    inputs = {"source": settings.data, "model": model}
    return Make(name="text", make=make, inputs=inputs, ports=("train", "held"))


def _task(settings: AutoDistil, name: str, source: str, model: Ref) -> Make:
    return Make(
        name=f"task-{name}",
        make=ReadTask(name=name, length=settings.task_length),
        inputs={"source": source, "model": model},
        ports=("train", "test"),
    )


def _phase(settings: AutoDistil, role: str, *, lr: float) -> Phase:
    kwargs = {"weight_decay": settings.weight_decay, "eps": 1e-8}
    return Phase(
        trains=(role,),
        optimizer=Optimizer(build=torch.optim.AdamW, lr=lr, kwargs=kwargs),
        schedule=Cosine(warmup=0.1) if role == "teacher" else Linear(),
        clip_norm=1.0,
        grouping=NoDecay(),
    )


def _slices(name: str, space: SubSpace, teacher: Ref) -> Convert:
    """The teacher's weights as far as any subnet of the sub-space reaches."""
    cut = Cut(architecture=space.stored)
    return Convert(name=f"slices-{name}", convert=cut, inputs={"encoder": teacher})


def superlm(
    settings: AutoDistil, name: str, space: SubSpace, teacher: Ref, text: Make, slices: Convert
) -> Train:
    """The training of a sub-space's SuperLM."""
    objective = Sandwich(
        space=space,
        phase=_phase(settings, "student", lr=settings.lr),
        heads=settings.full().heads,
        kind=settings.kind,
        draws=settings.draws,
    )
    return Train(
        name=superlm_port(name),
        objective=objective,
        inputs={"data": text["train"], "teacher": teacher, "student": out(slices)},
        steps=settings.steps,
        batch=settings.batch,
        views=1,
        cache={"teacher": Cache(outputs=PROJECTIONS)} if settings.stored else {},
    )


def score_of(settings: AutoDistil) -> RelationScore:
    return RelationScore(rows=settings.scored, heads=settings.full().heads, kind=settings.kind)


def _search(
    settings: AutoDistil,
    name: str,
    spaces: Spaces,
    superlms: Mapping[str, Train],
    teacher: Ref,
    text: Make,
) -> Search:
    """All subnets of the budget; of a space far larger than those, as many at random."""
    trained = {superlm_port(space): out(stage) for space, stage in superlms.items()}
    every = WHOLE not in spaces.spaces or len(spaces) <= settings.whole_trials
    return Search(
        name=name,
        space=spaces,
        score=score_of(settings),
        budget=settings.budget,
        trials=len(spaces) if every else settings.whole_trials,
        inputs={"data": text["held"], "teacher": teacher, **trained},
        strategy=Exhaustive() if every else RandomSearch(),
    )


def _whole(settings: AutoDistil, teacher: Ref, text: Make) -> dict[str, Search]:
    """K = 1, by row: as many steps as each SuperLM, and as many as all of them."""
    spaces = settings.whole_space()
    space = spaces.spaces[WHOLE]
    slices = _slices(WHOLE, space, teacher)
    one = superlm(settings, WHOLE, space, teacher, text, slices)
    long = replace(one, name=f"{one.name}-{LONG}", steps=settings.steps * len(settings.spaces))
    return {
        row: _search(settings, f"search-{row}", spaces, {WHOLE: stage}, teacher, text)
        for row, stage in (("one", one), ("one-long", long))
    }


def _superlms_of(search: Search) -> dict[str, str]:
    prefix = superlm_port("")
    return {port: ref for port, ref in search.inputs.items() if port.startswith(prefix)}


def by_hand(settings: AutoDistil, teacher: Ref, text: Make) -> Stage:
    """The hand-made student, distilled alone by the same loss for as long as a SuperLM."""
    a = settings.by_hand()
    cut = Convert(name="hand-cut", convert=Cut(architecture=a), inputs={"encoder": teacher})
    only = SubSpace(
        full=a, layers=(a.layers,), widths=(a.width,), ratios=(a.inner / a.width,), heads=(a.heads,)
    )
    alone = superlm(settings, "hand", only, teacher, text, cut)
    return replace(alone, name="hand")
