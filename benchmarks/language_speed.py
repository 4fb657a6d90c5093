"""Claim: AutoDistil's search scores all subnets of three sub-spaces in at most a tenth of the time
that one SuperLM is trained for; a step of the sandwich rule runs the teacher once, and peaks at no
more than 1.15 of a step of the largest subnet alone. What a step of a 135 M language model takes
has no goal.

    uv run python benchmarks/language_speed.py [--rounds 9] [--out docs/results/language-speed]

Networks are those of `language/autodistil` at small (a teacher of MiniLM's shape, sub-space "base")
and of SmolLM2-135M, with drawn weights: what they hold does not change what is computed. One
thread. Times are processor time; contestants alternate, and who begins changes from round to round.
Memory: a process each, which first makes a step of two short rows, so that no library is counted,
and lets go of all but the networks; then the peak of the resident size in three steps above what
was resident before them: gradients, the optimizer's state, activations. The whole peak is beside.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rounds import in_turns, paired, summary, write
from torch import Generator, Tensor, nn

from stillhouse.code import code_version
from stillhouse.data.data import Columns, Data, TensorData
from stillhouse.engine import fit
from stillhouse.environment import environment
from stillhouse.heap import trim
from stillhouse.objectives.language import lm_cross_entropy_loss
from stillhouse.objectives.objective import (
    Composed,
    Models,
    Objective,
    Optimizer,
    Phase,
    Tensors,
    Weighted,
)
from stillhouse.objectives.term import Term
from stillhouse.recipe import Context
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Search, Train
from stillhouse.training import Setup
from stillhouse.work import Work
from stillhouse_language.architecture import parameter_count
from stillhouse_language.causal.model import CausalLM, causal_lm
from stillhouse_language.causal.ragged import ragged
from stillhouse_language.encoder import Encoder
from stillhouse_language.proxy import RelationScore, superlm_port
from stillhouse_language.recipes.autodistil_settings import AutoDistil
from stillhouse_language.sandwich import Sandwich, sampled, teacher_relations
from stillhouse_language.spaces import Spaces, SubSpace
from stillhouse_language.subnets import subnet

ROOT = Path(__file__).parent.parent
RECIPE, SPACE = "language/autodistil", "base"
SHARE, PEAK, STEPS = 0.1, 1.15, 3
ROWS = 64  # of a batch in the measures of memory: small's own leaves activations behind the weights
VOCABULARY = 49152
SMOLLM: Mapping[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "vocab_size": VOCABULARY, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
TOKENS, SEQUENCES = 256, 4
WAYS = ("sandwich", "largest", "language model")

Record = dict[str, Any]  # Any: JSON


class Repeated(Sandwich):
    """The same with a pass of the teacher for each subnet: what is saved is seen beside it."""

    def terms(
        self, phase: str, models: Models, batch: Tensors, *, step: int, steps: int, rng: Generator
    ) -> Iterator[Tensors]:
        drawn = sampled(self.space, draws=self.draws, seed=self.seed, step=step)
        student = models["student"]
        assert isinstance(student, Encoder)
        for number, architecture in enumerate(drawn):
            with torch.no_grad():
                targets = teacher_relations(
                    models["teacher"], batch, heads=self.heads, kind=self.kind
                )
            found = subnet(student, architecture).projections(batch, in_place=True)
            yield {f"subnet-{number}": self.loss(targets, found, batch["mask"])}


def settings_of() -> AutoDistil:
    settings = make_settings(RECIPE, "small", {"stored": False})
    assert isinstance(settings, AutoDistil)
    return settings


def text(settings: AutoDistil, rows: int, length: int = 0) -> Columns:
    """Random tokens, rows full to their end."""
    rng = torch.Generator().manual_seed(0)
    shape = (rows, length or settings.length)
    return {
        "tokens": torch.randint(0, settings.full().vocabulary, shape, generator=rng),
        "mask": torch.ones(shape, dtype=torch.int64),
    }


def networks(settings: AutoDistil, space: SubSpace) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "teacher": Encoder(settings.full().record()).eval(),
        "student": Encoder(space.stored.record()),
    }


def objective_of(settings: AutoDistil) -> Sandwich:
    """That of the recipe's own stage."""
    stage = make_recipe(RECIPE, settings).stage(superlm_port(SPACE))
    assert isinstance(stage, Train)
    assert isinstance(stage.objective, Sandwich)
    return stage.objective


class Stamped:
    """Data of one batch again and again, with the processor time at which each was asked for."""

    def __init__(self, rows: Columns) -> None:
        self.data, self.stamps = TensorData(rows), list[float]()

    def __len__(self) -> int:
        return len(self.data)

    def batches(self, size: int, *, rng: Generator | None) -> Iterator[Tensors]:
        assert rng is not None
        self.stamps.append(time.process_time())
        yield self.data.rows(torch.arange(size))


def fitted(
    objective: Objective, models: dict[str, nn.Module], data: Data, *, steps: int, batch: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ctx = Context(
            stage="speed",
            out=folder,
            checkpoints=folder / "checkpoints",
            caches=folder,
            checkpoint_seconds=float("inf"),
        )
        fit(objective, models, data, setup=Setup(steps=steps, batch=batch), ctx=ctx)


def training(settings: AutoDistil, rounds: int) -> Record:
    """Seconds of a step by `fit`, with one pass of the teacher and with one a subnet."""
    once = objective_of(settings)
    ways = {"once": once, "repeated": Repeated(**vars(once))}
    passes = dict[str, int]()

    def timed(name: str) -> float:
        models = networks(settings, once.space)
        teacher, calls = models["teacher"], list[int]()
        assert isinstance(teacher, Encoder)
        own = teacher.projections

        def counted(batch: Tensors) -> dict[str, Tensor]:
            calls.append(1)
            return own(batch)

        teacher.projections = counted
        data = Stamped(text(settings, settings.batch))
        fitted(ways[name], models, data, steps=1 + STEPS + 1, batch=settings.batch)
        passes[name] = len(calls) // (2 + STEPS)
        return (data.stamps[1 + STEPS] - data.stamps[1]) / STEPS

    times = in_turns({name: lambda name=name: timed(name) for name in ways}, rounds)
    return {
        "batch": settings.batch,
        "tokens": settings.length,
        "subnets_a_step": 2 + once.draws,
        "teacher_passes_a_step": passes,
        "seconds_a_step": {name: summary(values) for name, values in times.items()},
        "repeated_over_once": summary(paired(times["repeated"], times["once"])),
    }


def searching(settings: AutoDistil, step: float) -> Record:
    """Seconds to score all subnets, whatever the budget, beside the training of one SuperLM."""
    made = make_recipe(RECIPE, settings)
    search = made.stage("search")
    assert isinstance(search, Search)
    assert isinstance(search.score, RelationScore)
    assert isinstance(search.space, Spaces)
    space = search.space
    torch.manual_seed(0)
    superlms = {
        superlm_port(name): Encoder(each.stored.record()).eval()
        for name, each in space.spaces.items()
    }
    teacher = Encoder(settings.full().record()).eval()
    data = TensorData(text(settings, settings.scored))
    start = time.process_time()
    prepared = search.score.prepared(teacher, superlms, data, work=Work())
    for name, architecture in space.every:
        prepared.loss(superlms[superlm_port(name)], architecture)
    seconds = time.process_time() - start
    return {
        "subnets": len(space),
        "rows": settings.scored,
        "seconds": seconds,
        "steps": settings.steps,
        "share_of_a_superlm": seconds / (step * settings.steps),
        "steps_from_which_the_goal_holds": seconds / (step * SHARE),
    }


def peak(way: str) -> Record:
    """What a process of its own measures."""
    torch.set_num_threads(1)
    if way == "language model":
        objective, models, rows, batch, count = language_model()
        short: Columns = {
            name: ragged([[1] * 8] * 2) if name == "tokens" else _wide([[1] * 8] * 2)
            for name in rows
        }
    else:
        settings = settings_of()
        objective = objective_of(settings)
        models = networks(settings, objective.space)
        if way == "largest":
            objective = replace(objective, space=alone(objective.space))
        batch, rows = ROWS, text(settings, ROWS)
        short = text(settings, 2, 8)
        count = parameter_count(objective.space.stored)
    fitted(objective, models, TensorData(short), steps=1, batch=2)
    for module in models.values():
        module.zero_grad(set_to_none=True)
    trim()
    before = resident("VmRSS")
    reset_peak()
    fitted(objective, models, TensorData(rows), steps=STEPS, batch=batch)
    above, whole = resident("VmHWM") - before, resident("VmHWM")
    return {
        "peak_above_mib": above / 2**20,
        "process_peak_mib": whole / 2**20,
        "parameters": count,
        "bytes_a_parameter": above / count,
    }


def alone(space: SubSpace) -> SubSpace:
    """The largest subnet and no other."""
    a = space.largest
    return SubSpace(
        full=space.full,
        layers=(a.layers,),
        widths=(a.width,),
        ratios=(a.inner / a.width,),
        heads=(a.heads,),
    )


def language_model() -> tuple[Objective, dict[str, nn.Module], Columns, int, int]:
    """A step of supervised fine-tuning as language/arte makes it."""
    torch.manual_seed(0)
    model = causal_lm(SMOLLM)
    assert isinstance(model, CausalLM)
    rng = torch.Generator().manual_seed(0)
    tokens: list[list[int]] = torch.randint(
        0, VOCABULARY, (SEQUENCES, TOKENS), generator=rng
    ).tolist()
    columns: Columns = {"tokens": ragged(tokens), "labels": _wide(tokens)}
    optimizer = Optimizer(build=torch.optim.AdamW, lr=1e-5)
    term = Term(lm_cross_entropy_loss, "student.hidden", "student.head", "batch.labels")
    phase = Phase(trains=("student",), optimizer=optimizer, clip_norm=1.0)
    objective = Composed(phases={"tune": phase}, losses={"ce": Weighted(term=term)})
    count = sum(parameter.numel() for parameter in model.parameters())
    return objective, {"student": model}, columns, SEQUENCES, count


def _wide(rows: list[list[int]]) -> Any:  # Any: a Ragged of int64
    column = ragged(rows)
    return replace(column, values=column.values.long())


def resident(field: str) -> int:
    """Bytes: VmRSS now, VmHWM at most since the peak was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measured(way: str) -> Record:
    command = [sys.executable, __file__, "--way", way]
    # what is freed goes back to the system at once
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=env, text=True).stdout
    return json.loads(found.splitlines()[-1])


def table(record: Record) -> str:
    step, search = record["training"], record["search"]
    memory, times = record["memory"], step["seconds_a_step"]
    return "\n".join(
        [
            f"a step of {step['subnets_a_step']} subnets: {times['once']['median']:.3f} s with "
            f"{step['teacher_passes_a_step']['once']} pass of the teacher, "
            f"{step['repeated_over_once']['median']:.2f} of that with "
            f"{step['teacher_passes_a_step']['repeated']}",
            f"{search['subnets']} subnets on {search['rows']} rows: {search['seconds']:.1f} s, "
            f"{search['share_of_a_superlm']:.2f} of a SuperLM's {search['steps']} steps (goal "
            f"{SHARE:g}, which holds from {search['steps_from_which_the_goal_holds']:.0f} steps)",
            *(
                f"{way}: {memory[way]['peak_above_mib']:.0f} MiB above the process before, "
                f"{memory[way]['bytes_a_parameter']:.1f} bytes a parameter, peak of the process "
                f"{memory[way]['process_peak_mib']:.0f} MiB"
                for way in WAYS
            ),
            f"sandwich over largest alone: {record['sandwich_over_largest']:.3f} above, "
            f"{record['sandwich_over_largest_process']:.3f} of the whole process (goal {PEAK:g})",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of the language recipes.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "language-speed")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(peak(given.way)))
        return
    torch.set_num_threads(1)
    settings, before = settings_of(), os.getloadavg()
    memory = {way: measured(way) for way in WAYS}
    trained = training(settings, given.rounds)
    record: Record = {
        "claim": f"all subnets are scored in {SHARE} of a SuperLM's training; a step's peak is at "
        f"most {PEAK} of the largest subnet's",
        "code": code_version("stillhouse_language"),
        "environment": environment("cpu"),
        "load_average_before": before,
        "rounds": given.rounds,
        "training": trained,
        "search": searching(settings, trained["seconds_a_step"]["once"]["median"]),
        "memory": memory,
    }
    for name, key in (("", "peak_above_mib"), ("_process", "process_peak_mib")):
        ratio = memory["sandwich"][key] / memory["largest"][key]
        record[f"sandwich_over_largest{name}"] = ratio
    record["passed"] = {
        "search": record["search"]["share_of_a_superlm"] <= SHARE,
        "peak": record["sandwich_over_largest"] <= PEAK,
    }
    print(table(record))
    print(f"load {before[0]:.1f} before; {record['passed']}")
    write(given.out / "language-speed.json", record)


if __name__ == "__main__":
    main()
