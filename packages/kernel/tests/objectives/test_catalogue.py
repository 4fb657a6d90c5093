"""Distillation methods: one training step of every entry, specs that survive JSON, overrides, messages."""

import importlib.util
import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from stillhouse.artifact import Built, Model, load_model, save_model
from stillhouse.digest import digest
from stillhouse.errors import BadSetting, UnknownName
from stillhouse.objectives.catalogue import (
    DISTILLATION_METHODS,
    EMBEDDINGS,
    LOGITS,
    Method,
    Plain,
    distillation_method,
)
from stillhouse.objectives.logits import dkd_loss, kd_loss
from stillhouse.objectives.methods import Channels, MethodEntry
from stillhouse.objectives.objective import Composed, Optimizer, Phase
from stillhouse.objectives.term import Term

SAMPLES, CLASSES, BATCH = 20, 5, 6
STUDENT = Channels(hints=(2, 3, 4), sizes=(8, 4, 2), embedding=4)
TEACHER = Channels(hints=(3, 5, 6), sizes=(8, 4, 2), embedding=6)
EVERY = pytest.mark.parametrize("name", sorted(DISTILLATION_METHODS))


class Tiny(nn.Module):
    """A three-stage network with the outputs of the convention."""

    def __init__(self, channels: Channels) -> None:
        super().__init__()
        widths = (1, *channels.hints)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b))
            for a, b in itertools.pairwise(widths)
        )
        self.head = nn.Linear(channels.embedding, CLASSES)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x, outputs = batch["images"], {}
        for i, stage in enumerate(self.stages, start=1):
            outputs[f"preact{i}"] = stage(x)
            x = outputs[f"hint{i}"] = outputs[f"preact{i}"].relu()
        embedding = x.mean(dim=(2, 3))
        return outputs | {"embedding": embedding, "logits": self.head(embedding)}


def batch() -> dict[str, Tensor]:
    rng = Generator().manual_seed(3)
    return {
        "images": torch.randn(BATCH, 1, 16, 16, generator=rng),
        "labels": torch.randint(CLASSES, (BATCH,), generator=rng),
        "id": torch.randperm(SAMPLES, generator=rng)[:BATCH],
    }


def composed(entry: MethodEntry) -> Composed:
    trained = ("student", *entry.roles)
    return Composed(
        phases={"train": Phase(trains=trained, optimizer=Optimizer(lr=0.1))},
        losses=entry.losses,
        feeds=entry.feeds,
    )


@EVERY
def test_one_step_of_composed_training(name: str):
    torch.manual_seed(0)
    entry = distillation_method(name)(STUDENT, TEACHER, CLASSES, SAMPLES)
    models = {"teacher": Tiny(TEACHER).eval(), "student": Tiny(STUDENT)}
    models |= {role: spec.new() for role, spec in entry.roles.items()}
    # halfway through, when every warm-up is over
    terms = composed(entry).terms(
        "train", models, batch(), step=5, steps=10, rng=Generator().manual_seed(1)
    )
    assert list(terms) == list(entry.losses)
    assert "ce" in terms
    assert all(torch.isfinite(term) and term > 0 for term in terms.values())
    torch.stack([term for key, term in terms.items() if key != "ce"]).sum().backward()
    assert all(p.grad is None for p in models["teacher"].parameters())
    for role in ("student", *entry.roles):
        gradients = [p.grad for p in models[role].parameters() if p.grad is not None]
        assert all(torch.isfinite(g).all() for g in gradients)
        assert sum(g.abs().sum() for g in gradients) > 0
        if role != "student":  # a projector has no part that does not learn
            assert len(gradients) == len(list(models[role].parameters()))


@EVERY
def test_training_lowers_the_distillation_terms(name: str):
    torch.manual_seed(0)
    entry = distillation_method(name)(STUDENT, TEACHER, CLASSES, SAMPLES)
    models = {"teacher": Tiny(TEACHER).eval(), "student": Tiny(STUDENT)}
    models |= {role: spec.new() for role, spec in entry.roles.items()}
    objective = composed(entry)
    trained = nn.ModuleList([models[role] for role in ("student", *entry.roles)])
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.01)
    values: list[float] = []
    for step in range(30):
        terms = objective.terms(
            "train", models, batch(), step=30, steps=60, rng=Generator().manual_seed(step)
        )
        loss = torch.stack([term for key, term in terms.items() if key != "ce"]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert sum(values[-5:]) < 0.9 * sum(values[:5])


@EVERY
def test_entry_is_hashable_as_part_of_a_recipe(name: str):
    entry = distillation_method(name)(STUDENT, TEACHER, CLASSES, SAMPLES)
    other = distillation_method(name)(STUDENT, TEACHER, CLASSES, SAMPLES, ce=0.25)
    assert digest(entry) == digest(distillation_method(name)(STUDENT, TEACHER, CLASSES, SAMPLES))
    assert digest(entry) != digest(other)
    assert other.losses["ce"].weight == 0.25


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in sorted(DISTILLATION_METHODS)
        if DISTILLATION_METHODS[n](STUDENT, TEACHER, 5, 20).roles
    ],
)
def test_roles_survive_saving(name: str, tmp_path):
    for role, spec in distillation_method(name)(STUDENT, TEACHER, CLASSES, SAMPLES).roles.items():
        assert json.loads(json.dumps(dict(spec.kwargs))) == dict(spec.kwargs)
        save_model(tmp_path / role, Built(spec=spec, module=spec.new()))
        again = load_model(tmp_path / role)
        assert isinstance(again.spec, Model)
        assert again.spec == spec


def test_every_number_can_be_overridden_by_name():
    for name, method in DISTILLATION_METHODS.items():
        for number, value in method.numbers.items():
            changed = method(STUDENT, TEACHER, 100, 50000, **{number: value / 2})
            same = digest(changed) == digest(method(STUDENT, TEACHER, 100, 50000))
            assert not same, f"{name}: {number} does nothing"


def test_numbers_of_the_papers():
    kd = DISTILLATION_METHODS["kd"](STUDENT, TEACHER, 100, 50000)
    assert kd.losses["kd"].term == Term(kd_loss, *LOGITS, temperature=4.0)
    assert (kd.losses["ce"].weight, kd.losses["kd"].weight) == (0.1, 0.9)
    dkd = DISTILLATION_METHODS["dkd"](STUDENT, TEACHER, 100, 50000).losses["dkd"]
    numbers = {"alpha": 1.0, "beta": 8.0, "temperature": 4.0}
    assert dkd.term == Term(dkd_loss, *LOGITS, "batch.labels", **numbers)
    assert [dkd.at(epoch / 240) for epoch in (0, 10, 20, 240)] == pytest.approx([0, 0.5, 1, 1])
    memory = DISTILLATION_METHODS["crd"](STUDENT, TEACHER, 100, 50000).roles["memory"]
    assert (memory.kwargs["negatives"], memory.kwargs["samples"]) == (16384, 50000)


def test_a_new_loss_is_one_function_and_one_line_of_the_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The function and the line that docs/plugin.md shows, as they stand there."""
    page = next(p / "docs/plugin.md" for p in Path(__file__).parents if (p / "docs").is_dir())
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (source,) = (block for block in blocks if "def huber_loss" in block)
    (line,) = (block for block in blocks if "Plain(" in block)
    file = tmp_path / "huber_losses.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, file.stem, module)
    spec.loader.exec_module(module)
    names = {"Plain": Plain, "EMBEDDINGS": EMBEDDINGS, "huber_loss": module.huber_loss}
    ((name, plain),) = eval("{" + line + "}", names).items()
    huber = Method(name=name, build=plain)
    assert huber.numbers == {"delta": 1.0, "weight": 1.0, "ce": 1.0}
    entry = huber(STUDENT, replace(TEACHER, embedding=4), CLASSES, SAMPLES, delta=0.5, weight=2.0)
    assert entry.losses[name].weight == 2.0
    objective = composed(entry)
    assert objective.roles == ("teacher", "student")
    assert objective.outputs_of("teacher") == ("embedding",)
    assert objective.sample_mean
    # gaps 0.2 and 2 with delta 0.5: 0.02 and 0.5 (2 - 0.25) = 0.875
    outputs = {"student": torch.tensor([[0.2, -2.0]]), "teacher": torch.zeros(1, 2)}
    found = entry.losses[name].term({r: {"embedding": v} for r, v in outputs.items()}, {})
    assert found.item() == pytest.approx((0.02 + 0.875) / 2)
    with pytest.raises(BadSetting, match=r"delta must be > 0 \(got 0.0\)"):
        huber(STUDENT, TEACHER, CLASSES, SAMPLES, delta=0.0)


def test_stages_pair_by_size_where_their_numbers_differ():
    teacher = Channels(hints=(8, 3, 5, 6), sizes=(16, 8, 4, 2), embedding=6)
    entry = DISTILLATION_METHODS["ofd"](STUDENT, teacher, CLASSES, SAMPLES)
    kwargs = entry.roles["projector"].kwargs
    assert kwargs["teachers"] == ["teacher.preact2", "teacher.preact3", "teacher.preact4"]
    assert (kwargs["channels"], kwargs["targets"]) == ([2, 3, 4], [3, 5, 6])


def test_messages():
    with pytest.raises(
        UnknownName, match=r"distillation methods: unknown objective 'dkdd'. Did you mean 'dkd'"
    ):
        distillation_method("dkdd")
    with pytest.raises(UnknownName, match=r"objective 'kd': unknown setting 'temprature'. Did you"):
        DISTILLATION_METHODS["kd"](STUDENT, TEACHER, 5, 20, temprature=2.0)
    with pytest.raises(BadSetting, match=r"temperature must be > 0 \(got 0.0\)"):
        DISTILLATION_METHODS["kd"](STUDENT, TEACHER, 5, 20, temperature=0.0)
    with pytest.raises(BadSetting, match=r"'std_kd' needs at least 3 classes \(got 2\).*use kd"):
        DISTILLATION_METHODS["std_kd"](STUDENT, TEACHER, 2, 20)
    with pytest.raises(BadSetting, match=r"hints and sizes.*\(got 2 and 1\)"):
        Channels(hints=(1, 2), sizes=(3,), embedding=2)
    far = Channels(hints=(8,), sizes=(7,), embedding=6)
    with pytest.raises(BadSetting, match=r"'at': no stage of the student \(sizes \[8, 4, 2\]\)"):
        DISTILLATION_METHODS["at"](STUDENT, far, 5, 20)


@pytest.mark.parametrize(("name", "number"), [("cc", "order"), ("crd", "negatives")])
def test_a_number_that_counts_is_not_cut_off(name: str, number: str):
    method = distillation_method(name)
    method(STUDENT, TEACHER, CLASSES, SAMPLES, **{number: 3.0})
    message = rf"objective '{name}': {number} must be a whole number \(got 2.5\)"
    with pytest.raises(BadSetting, match=message):
        method(STUDENT, TEACHER, CLASSES, SAMPLES, **{number: 2.5})
