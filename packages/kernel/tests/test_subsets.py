"""Adapters and heads: trained alone, saved without their base, loaded on it by its digest."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stillhouse.artifact import Artifact, Built, Model, load_model, save_model
from stillhouse.cli.running import check_shard
from stillhouse.data.data import TensorData
from stillhouse.data.shards import save_data
from stillhouse.engine import fit
from stillhouse.errors import (
    BadRecipe,
    BadSetting,
    ContractError,
    CorruptArtifact,
    MissingData,
    UnknownName,
)
from stillhouse.export import Export
from stillhouse.objectives.groups import NoDecay, Only, one_group, optimizer_groups
from stillhouse.objectives.objective import Composed, Optimizer, Phase, Weighted
from stillhouse.recipe import Event
from stillhouse.stages import Convert, Train
from stillhouse.testing.killing import KilledError, die_at_checkpoint

from .toys import SITE, Adapted, Net, Wide, by_labels, same, toy_context, toy_data, toy_setup

WIDTH, DEPTH, RANK = 16, 3, 2
ADAPTERS = Only(patterns=("*.up", "*.down"))


@pytest.fixture(autouse=True)
def _site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))


def saved(folder: Path, spec: Model, seed: int = 0) -> Artifact:
    torch.manual_seed(seed)
    return save_model(folder, Built(spec=spec, module=spec.new()))


@pytest.fixture
def base(tmp_path: Path) -> Artifact:
    """The output "model" of a stage "base" of a variant."""
    return saved(
        tmp_path / "base" / "model", Model(build=Wide, kwargs={"width": WIDTH, "depth": DEPTH})
    )


def rows() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, WIDTH, (40,), generator=rng)
    return {"x": torch.randn(40, WIDTH, generator=rng), "labels": labels}


def objective(grouping: Any = ADAPTERS) -> Composed:
    optimizer = Optimizer(build=torch.optim.Adam, lr=0.01)
    phase = Phase(trains=("student",), optimizer=optimizer, grouping=grouping)
    losses = {"ce": Weighted(term=by_labels())}
    return Composed(phases={"main": phase}, losses=losses)


def stage(**changes: Any) -> Train:
    whole = Train(
        name="adapters",
        objective=objective(),
        inputs={"data": "data.train", "base": "base.model"},
        fresh={
            "student": Model(build=Adapted, kwargs={"width": WIDTH, "depth": DEPTH, "rank": RANK})
        },
        bases={"student": "base"},
        steps=20,
        batch=8,
    )
    return replace(whole, **changes)


def train(tmp_path: Path, base: Artifact, **context: Any) -> Artifact:
    data = (
        save_data(tmp_path / "data" / "train", rows())
        if not (tmp_path / "data").exists()
        else (
            Artifact(
                kind="data",
                path=tmp_path / "data" / "train",
                digest="",
                opener="stillhouse.data.shards:load_data",
            )
        )
    )
    ctx = toy_context(tmp_path / "adapters", **context)
    return stage().run({"data": data, "base": base}, ctx).outputs["student"]


def test_adapters_are_saved_without_their_base(tmp_path: Path, base: Artifact) -> None:
    made = train(tmp_path, base)
    stored = load_file(made.path / "model.safetensors")
    assert set(stored) == {f"net.layers.{i}.{n}" for i in range(DEPTH) for n in ("up", "down")}
    assert all(bool(value.any()) for value in stored.values())  # they have been trained
    size = (made.path / "model.safetensors").stat().st_size
    assert size < (base.path / "model.safetensors").stat().st_size
    record = json.loads((made.path / "model.json").read_text())["base"]
    assert (record["digest"], record["from"]) == (base.digest, "base.model")
    found, whole = load_model(made.path).module, load_model(base.path).module
    for i in range(DEPTH):
        kept = found.get_parameter(f"net.layers.{i}.layer.weight")
        assert torch.equal(kept, whole.get_parameter(f"layers.{i}.weight"))
    data = rows()
    assert not torch.equal(found(data)["logits"], whole(data)["logits"])


def test_killed_and_resumed_to_the_same_bits(tmp_path: Path, base: Artifact) -> None:
    whole = train(tmp_path, base)
    shutil.move(tmp_path / "adapters", tmp_path / "whole")
    with pytest.raises(KilledError):
        train(tmp_path, base, observe=die_at_checkpoint, checkpoint_steps=10)
    (file,) = (tmp_path / "adapters" / "checkpoints").glob("step-*/state.safetensors")
    # nor is the base in a checkpoint
    names = {name for name in load_file(file) if name.startswith("model/")}
    assert names == {
        f"model/student/net.layers.{i}.{n}" for i in range(DEPTH) for n in ("up", "down")
    }
    assert train(tmp_path, base).digest == whole.digest


def test_a_checkpoint_on_another_base_is_refused(tmp_path: Path, base: Artifact) -> None:
    with pytest.raises(KilledError):
        train(tmp_path, base, observe=die_at_checkpoint, checkpoint_steps=10)
    spec = Model(build=Wide, kwargs={"width": WIDTH, "depth": DEPTH})
    other = saved(tmp_path / "other" / "model", spec, seed=1)
    with pytest.raises(BadSetting, match="of another training; different: role 'student'"):
        train(tmp_path, other)


def test_a_head_is_saved_with_what_batch_norm_counted(tmp_path: Path) -> None:
    """Own names are the base's; a role from a port goes on from it."""
    first = saved(tmp_path / "first" / "model", Model(build=Net, kwargs={"width": 4}))
    head = Train(
        name="head",
        objective=objective(Only(patterns=("head.*",), then=NoDecay())),
        inputs={"data": "data.train", "student": "first.model"},
        bases={"student": "student"},
        steps=5,
        batch=8,
    )
    data = save_data(tmp_path / "data", toy_data().columns)
    ctx = toy_context(tmp_path / "head")
    made = head.run({"data": data, "student": first}, ctx).outputs["student"]
    assert set(load_file(made.path / "model.safetensors")) == {
        "head.weight", "head.bias",
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip
    # the same training, saved whole
    ctx = toy_context(tmp_path / "all")
    whole = replace(head, bases={}).run({"data": data, "student": first}, ctx).outputs["student"]
    one, other = (load_model(artifact.path).module.state_dict() for artifact in (made, whole))
    assert same(dict(one), dict(other))


def test_a_subset_on_a_subset(tmp_path: Path, base: Artifact) -> None:
    made = train(tmp_path, base)
    second = Train(
        name="second",
        objective=objective(Only(patterns=("net.layers.0.up",))),
        inputs={"data": "data.train", "student": "adapters.student"},
        bases={"student": "student"},
        steps=3,
        batch=8,
    )
    data = save_data(tmp_path / "rows", rows())
    again = second.run({"data": data, "student": made}, toy_context(tmp_path / "second"))
    found = again.outputs["student"]
    assert set(load_file(found.path / "model.safetensors")) == {"net.layers.0.up"}
    kept, before = load_model(found.path).module, load_model(made.path).module
    assert torch.equal(
        kept.get_parameter("net.layers.1.up"), before.get_parameter("net.layers.1.up")
    )


def test_an_export_is_whole(tmp_path: Path, base: Artifact) -> None:
    made = train(tmp_path, base)
    inputs = {"student": made, "data": save_data(tmp_path / "rows", rows())}
    export = Convert(name="e", convert=Export(inputs=("x",)), inputs=dict.fromkeys(inputs, "a.b"))
    out = export.run(inputs, toy_context(tmp_path / "e")).outputs["model"].path
    expected = load_model(made.path).module(rows())["logits"]
    shutil.move(out, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "base")
    assert torch.equal(load_model(tmp_path / "elsewhere").module(rows())["logits"], expected)


def test_another_base_or_none_is_one_line(tmp_path: Path, base: Artifact) -> None:
    made = train(tmp_path, base)
    spec = Model(build=Wide, kwargs={"width": WIDTH, "depth": DEPTH})
    other = saved(tmp_path / "other", spec, seed=1)
    start = (
        rf"^{made.path}: holds what was trained on a base \('base.model', digest {base.digest[:12]}"
    )
    with pytest.raises(
        MissingData,
        match=rf"{start}...\); {other.path} is another model \({other.digest[:12]}...\)",
    ):
        load_model(made.path, base=other.path)
    shutil.move(base.path, tmp_path / "moved")
    with pytest.raises(
        MissingData,
        match=start + r"...\), which is not found; run its stage, or give its folder: "
        r"load_model\(folder, base=...\)$",
    ):
        made.open()
    assert load_model(made.path, base=tmp_path / "moved").spec.build is Adapted
    # what is outside the recipe is found by its reference
    file = made.path / "model.json"
    record = json.loads(file.read_text())
    record["base"]["from"] = f"file:{tmp_path}/moved"
    file.write_text(json.dumps(record))
    assert load_model(made.path).spec.build is Adapted
    record["base"]["names"]["net.layers.0.layer.weight"] = "layers.9.weight"
    file.write_text(json.dumps(record))
    with pytest.raises(CorruptArtifact, match="its base has no tensor 'layers.9.weight'; run the"):
        load_model(made.path)


def test_a_base_of_other_names_is_one_line(tmp_path: Path, base: Artifact) -> None:
    fresh = {"student": Model(build=Net, kwargs={"width": 4})}
    data = save_data(tmp_path / "rows", toy_data().columns)
    with pytest.raises(
        BadRecipe,
        match=r"^base 'base.model' has none of the tensors of the Net \(it has layers.0.weight, .*\); "
        "say their names by a method `base_names`",
    ):
        stage(fresh=fresh).run({"data": data, "base": base}, toy_context(tmp_path / "out"))


def test_groups_of_a_part_by_hand() -> None:
    module = Net(4)
    groups = optimizer_groups(Only(patterns=("head.*",), then=NoDecay()), "student", module, 0.1)
    assert [(len(g["params"]), g.get("weight_decay")) for g in groups] == [(1, None), (1, 0.0)]
    assert groups[0]["params"][0] is module.head.weight
    with pytest.raises(
        BadSetting,
        match=r"no parameter of the Net fits lora_\*; it has conv.weight, conv.bias, norm.weight, "
        r"norm.bias, head.weight ...$",
    ):
        Only(patterns=("lora_*",))(module)


class Writing(nn.Module):
    """Writes to a weight that no phase trains."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(4, 2), nn.Linear(4, 4)

    def forward(self, batch: Any) -> dict[str, Tensor]:
        with torch.no_grad():
            self.body.weight[0, 0] += 1
        return {"logits": self.head(self.body(batch["x"]))}


def test_what_no_phase_trains_in_a_role_stays(tmp_path: Path) -> None:
    data = TensorData({"x": torch.randn(8, 4), "labels": torch.zeros(8, dtype=torch.int64)})
    with pytest.raises(ContractError, match=r"'student' changed during training \('body.weight'\)"):
        fit(
            objective(Only(patterns=("head.*",))),
            {"student": Writing()},
            data,
            setup=toy_setup(),
            ctx=toy_context(tmp_path),
        )


@pytest.mark.parametrize("fresh", [True, False])
def test_a_base_that_does_not_fit_is_refused_before_the_training(
    tmp_path: Path, base: Artifact, fresh: bool
) -> None:
    steps: list[Event] = []
    inputs = {"data": save_data(tmp_path / "rows", rows()), "base": base}
    if fresh:
        spec = Model(build=Wide, kwargs={"width": 2 * WIDTH, "depth": DEPTH})
        bad = stage(objective=objective(one_group), fresh={"student": spec})
        message = r"role 'student' does not fit its base 'base.model': 'layers..*' is stored as"
    else:
        inputs["student"] = saved(tmp_path / "net", Model(build=Net, kwargs={"width": 4}))
        bad = stage(
            objective=objective(one_group),
            fresh={},
            inputs={"data": "d.d", "base": "base.model", "student": "s.s"},
        )
        message = "base 'base.model' has none of the tensors of the Net"
    with pytest.raises(BadRecipe, match=message):
        bad.run(inputs, toy_context(tmp_path / "out", observe=steps.append))
    assert not steps


def test_a_base_alone_is_no_role_to_share_out() -> None:
    with pytest.raises(UnknownName, match="^--shard: unknown frozen role 'base'"):
        check_shard(["base"], 2, [stage()])
