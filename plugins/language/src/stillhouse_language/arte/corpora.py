"""What the small models of scale `tiny` are trained on before anything is distilled: the teacher
to write questions and rationales as prompted, the student to follow one worked example.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator

from stillhouse.artifact import Built, Model, save_model
from stillhouse.data.data import Column
from stillhouse.errors import BadSetting
from stillhouse.work import Work
from stillhouse_language.arte.arithmetic import STYLES, TASK, questions, total
from stillhouse_language.arte.tasks import response, tagged
from stillhouse_language.arte.vocabulary import word_tokenizer
from stillhouse_language.causal.loading import tokenizer_files
from stillhouse_language.causal.model import CausalLM, causal_lm
from stillhouse_language.causal.tokens import ASSET, Tokenizer, tokenizer_of, trainable

Kind = Literal["teacher", "student"]
LONGEST = 256  # tokens of the small models' context


def answered(question: str, style: str) -> str:
    """The response to a sum in a style."""
    return response(STYLES[style](question), str(total(question)))


def known_texts() -> list[str]:
    """Texts that hold every word of the task's prompts and rationales."""
    sum_ = "1+2+3+0"
    found = [TASK.questions([(sum_, "3")] * 3, n) for n in range(10)]
    found += [tagged(n, sum_, "3") for n in range(10)]
    for style in STYLES:
        found += [TASK.styled(style, sum_) + answered(sum_, style), " " + answered(sum_, style)]
    return found


@dataclass(frozen=True, kw_only=True)
class StartModel:
    """A `convert`: a fresh small GPT-2 with the tokenizer of the built-in task; the stage's seed
    draws the weights.
    """

    width: int
    layers: int
    heads: int = 4

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise BadSetting(
                f"width must be a multiple of {2 * self.heads}, two a head (got {self.width})"
            )

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        tokenizer = word_tokenizer(known_texts())
        config = {
            "model_type": "gpt2",
            "n_embd": self.width,
            "n_layer": self.layers,
            "n_head": self.heads,
            "vocab_size": len(tokenizer.inner),
            "n_positions": LONGEST,
            "initializer_range": 0.7 * self.width**-0.5,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
            "bos_token_id": None,
            "eos_token_id": tokenizer.end,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(work.seed)
            module = causal_lm(config)
        files = tokenizer_files(tokenizer, work.ctx.checkpoints)
        spec = Model(build=causal_lm, kwargs={"config": config})
        save_model(out, Built(spec=spec, module=module, assets={ASSET: files}))


@dataclass(frozen=True, kw_only=True)
class WriteCorpus:
    """A `make`: `rows` texts as tokens and labels, of the kind that the model at port "model"
    reads.

    teacher: rationales under the instruction of their style, rationales under the naive prompt in
    a style drawn with equal chance, and lists of questions. student: a worked example and then
    another sum, answered in the example's style; a tenth of them without an example.
    """

    kind: Kind
    rows: int
    per_prompt: int

    def __call__(
        self, inputs: Mapping[str, Any], *, work: Work
    ) -> Mapping[str, Mapping[str, Column]]:
        built: Built = inputs["model"]
        tokenizer = tokenizer_of(built, where="corpus")
        assert isinstance(built.module, CausalLM)
        write = self._teacher if self.kind == "teacher" else self._student
        rows = [write(work.rng) for _ in range(self.rows)]
        return {"train": _columns(tokenizer, rows, built.module)}

    def _teacher(self, rng: Generator) -> tuple[str, str]:
        (sum_,) = questions(1, rng)
        style = [*STYLES][int(torch.randint(0, len(STYLES), (), generator=rng))]
        kind = float(torch.rand((), generator=rng))
        if kind < 0.4:
            return TASK.styled(style, sum_), answered(sum_, style)
        if kind < 0.8:
            return TASK.naive(sum_), answered(sum_, style)
        several = questions(3 + self.per_prompt, rng)
        known = [(one, str(total(one))) for one in several]
        listed = [tagged(n, *each) for n, each in enumerate(known[3:], 1)]
        return TASK.questions(known[:3], self.per_prompt), "\n".join(listed)

    def _student(self, rng: Generator) -> tuple[str, str]:
        first, second = questions(2, rng)
        style = [*STYLES][int(torch.randint(0, len(STYLES), (), generator=rng))]
        if float(torch.rand((), generator=rng)) < 0.1:
            return TASK.naive(second), answered(second, style)
        again = f"{answered(first, style)}\n\n{TASK.item(second)}{answered(second, style)}"
        return TASK.naive(first), again


def _columns(
    tokenizer: Tokenizer, rows: list[tuple[str, str]], module: CausalLM
) -> Mapping[str, Column]:
    return trainable(tokenizer, rows, context=module.context, where="corpus")


def sums(counts: Mapping[str, int], rng: Generator) -> Iterator[tuple[str, list[str]]]:
    """Different sums for each part, none in two parts."""
    every = questions(sum(counts.values()), rng)
    for name, count in counts.items():
        yield name, every[:count]
        every = every[count:]
