"""vision/knfu: who gets which images, what its rows differ in, its settings, its messages."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.artifact import Built
from stillhouse.data import TensorData
from stillhouse.errors import BadSetting, StillhouseError
from stillhouse.federated import FedAvg, Federate, Itself, KnFu, Mean
from stillhouse.federated.averaging import fellows
from stillhouse.recipe import Recipe
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Convert, Evaluate, Make
from stillhouse.work import Work
from stillhouse_vision.data import ReadImages
from stillhouse_vision.federated_data import Dirichlet, Grouped, SplitImages
from stillhouse_vision.models import ImageSpec
from stillhouse_vision.recipes.knfu import knfu
from stillhouse_vision.samples import digits

NAME = "vision/knfu"
CLIENTS = tuple(f"client-{number}" for number in range(6))
GROUPS = ((0, 1, 2), (3, 4, 5), (6, 7, 8, 9))
RULES = {"local": None, "itself": Itself(), "mean": Mean(), "fedavg": None, "knfu": KnFu()}


def recipe(scale: str = "tiny", **settings: Any) -> Recipe:
    return make_recipe(NAME, make_settings(NAME, scale, settings))


def federation(made: Recipe, name: str) -> Federate:
    stage = made.stage(name)
    if isinstance(stage, FedAvg):
        return stage.federation
    assert isinstance(stage, Federate)
    return stage


@pytest.fixture(scope="module")
def images() -> dict[str, TensorData]:
    spec = ImageSpec(size=8, mean=(0.3,), std=(0.37,))
    read = ReadImages(images=spec, classes=10)({"source": digits()}, work=Work())
    return {port: TensorData(columns) for port, columns in read.items()}  # type: ignore[arg-type]


def split(images: Mapping[str, TensorData], seed: int = 0, **changes: Any) -> Any:
    given: dict[str, Any] = {
        "clients": CLIENTS,
        "size": 20,
        "transfer": 100,
        "classes": 10,
        "split": Grouped(groups=GROUPS, members=(2, 2, 2)),
    }
    rng = torch.Generator().manual_seed(seed)
    return SplitImages(**{**given, **changes})(images, work=Work(rng=rng))


@pytest.mark.parametrize(
    "way", [Grouped(groups=GROUPS, members=(2, 2, 2)), Dirichlet(alpha=0.1), Dirichlet(alpha=5.0)]
)
def test_no_image_is_at_two_places(images: Mapping[str, TensorData], way: Any) -> None:
    made = split(images, split=way)
    assert list(made) == ["transfer", "test", *CLIENTS]
    train = images["train"].columns
    seen: list[Tensor] = []
    for port, columns in made.items():
        if port == "test":
            continue
        rows = columns["id"]
        assert len(rows) == (100 if port == "transfer" else 20)
        # the row says what the image is
        assert torch.equal(columns["images"], train["images"][rows])
        assert torch.equal(columns["labels"], train["labels"][rows])
        seen.append(rows)
    assert len(torch.cat(seen).unique()) == 100 + 6 * 20
    # the test set is the one there was, whole
    for name in ("images", "labels"):
        assert torch.equal(made["test"][name], images["test"].columns[name])


def test_groups_have_their_classes_and_the_transfer_set_has_all(
    images: Mapping[str, TensorData],
) -> None:
    made = split(images)
    for number, name in enumerate(CLIENTS):
        assert set(made[name]["labels"].tolist()) == set(GROUPS[number // 2])
    assert set(made["transfer"]["labels"].tolist()) == set(range(10))


def test_a_test_set_counts_as_a_client_s_own_labels(images: Mapping[str, TensorData]) -> None:
    made = split(images, split=Dirichlet(alpha=0.5))
    labels, weights = made["test"]["labels"], made["test"]["weights"]
    assert weights.shape == (len(labels), 6)
    for number, name in enumerate(CLIENTS):
        shares = torch.bincount(made[name]["labels"], minlength=10) / 20
        found = torch.zeros(10).index_add(0, labels, weights[:, number])
        torch.testing.assert_close(found, shares)


def test_each_seed_has_a_split_of_its_own(images: Mapping[str, TensorData]) -> None:
    one, again, other = split(images), split(images), split(images, seed=1)
    for port in ("transfer", *CLIENTS):
        assert torch.equal(one[port]["id"], again[port]["id"])
        assert not torch.equal(one[port]["id"], other[port]["id"])


def test_messages_of_a_split(images: Mapping[str, TensorData]) -> None:
    with pytest.raises(BadSetting, match=r"got 400 of 400 training images"):
        split(images, transfer=400)
    with pytest.raises(BadSetting, match=r"group \[0, 1, 2\]: 2 clients of 60 rows need 120"):
        split(images, size=60)
    with pytest.raises(BadSetting, match=r"members must be 6 clients in all \(got \[2, 2, 3\]\)"):
        split(images, split=Grouped(groups=GROUPS, members=(2, 2, 3)))


def test_stages_of_a_seed_and_rows_of_the_report() -> None:
    made = recipe(seeds=2)
    assert [s.name for s in made.stages] == [
        *("data", "split-0", "local-0", "local-0-scores", "split-1", "local-1", "local-1-scores"),
        *(
            stage
            for name in ("itself", "mean", "fedavg", "knfu")
            for stage in (f"{name}-0", f"{name}-0-scores", f"{name}-1", f"{name}-1-scores")
        ),
        "export",
    ]
    assert {title: row.stages for title, row in made.rows.items()} == {
        "local only": ("local-0-scores", "local-1-scores"),
        "self-distillation": ("itself-0-scores", "itself-1-scores"),
        "FedMD mean": ("mean-0-scores", "mean-1-scores"),
        "FedAvg (sends weights)": ("fedavg-0-scores", "fedavg-1-scores"),
        "KnFu": ("knfu-0-scores", "knfu-1-scores"),
    }
    assert made.baseline == "self-distillation"


def test_a_seed_later_leaves_the_stages_there_are() -> None:
    one, two = recipe(seeds=1), recipe(seeds=2)
    for stage in one.stages:
        assert two.stage(stage.name) == stage


def test_rows_of_a_seed_differ_only_in_whom_a_client_learns_from() -> None:
    made = recipe("small", seeds=2)
    for seed in range(2):
        stages = {name: federation(made, f"{name}-{seed}") for name in RULES}
        assert {name: stage.rule for name, stage in stages.items()} == RULES
        first = stages["local"]
        for stage in stages.values():
            assert stage.fresh == first.fresh
            assert (stage.plan, stage.rounds, stage.seed) == (first.plan, first.rounds, seed)
            own = {port: ref for port, ref in stage.inputs.items() if port != "transfer"}
            assert own == first.inputs == {f"{c}-data": f"split-{seed}.{c}" for c in stage.clients}
        for name in ("itself", "mean", "knfu"):
            assert stages[name].inputs["transfer"] == f"split-{seed}.transfer"
        split_stage = made.stage(f"split-{seed}")
        assert isinstance(split_stage, Make)
        assert split_stage.seed == seed
    tests = {s.inputs["data"] for s in made.stages if isinstance(s, Evaluate)}
    assert tests == {"split-0.test", "split-1.test"}


def test_every_group_has_several_architectures_and_every_architecture_several_groups() -> None:
    stage = federation(recipe("small"), "fedavg-0")
    built = {c: Built(spec=stage.fresh[c], module=torch.nn.Identity()) for c in stage.clients}
    groups = fellows(built)
    assert [len(group) for group in groups] == [4, 3, 3]
    # client-0 ... 2, 3 ... 5 and 6 ... 9 have the same classes
    label_groups = [stage.clients[:3], stage.clients[3:6], stage.clients[6:]]
    assert all(set(group) & set(labels) for group in groups for labels in label_groups)


def test_small_and_paper_have_the_settings_of_the_specification() -> None:
    small, paper = recipe("small"), recipe("paper")
    for made, samples, transfer in ((small, 20, 300), (paper, 300, 5000)):
        stage = federation(made, "knfu-0")
        assert stage.rule == KnFu(beta=10.0, distance="kl", min_weight=0.0, labelled=True)
        assert (stage.rounds, stage.plan.epochs, stage.plan.absorb_epochs) == (20, 5, 5)
        assert (stage.plan.batch, stage.plan.temperature) == (32, 2.0)
        assert stage.plan.optimizer.build is torch.optim.Adam
        assert stage.plan.optimizer.lr == 1e-3
        assert len(stage.clients) == 10
        make = made.stage("split-0").make
        assert (make.size, make.transfer) == (samples, transfer)
    assert small.stage("split-0").make.split == Grouped(groups=GROUPS, members=(3, 3, 4))
    assert paper.stage("split-0").make.split == Dirichlet(alpha=0.1)
    assert small.stage("data").inputs == {"source": "data:mnist-subset"}


def test_settings_reach_the_rule() -> None:
    made = recipe(beta=30, distance="js", min_weight=0.05, labelled=False, warmup=1)
    expected = KnFu(beta=30.0, distance="js", min_weight=0.05, labelled=False)
    assert federation(made, "knfu-0").rule == expected
    assert federation(made, "mean-0").warmup == 1


def test_it_says_that_it_is_a_reconstruction_and_whose_model_leaves() -> None:
    made = recipe()
    assert made.notes[0].startswith("Split of this report: grouped, classes 0, 1, 2 for 2 clients")
    assert made.notes[1].startswith("A reconstruction:")
    assert any("first client of the first seed" in note for note in made.notes)
    export = made.stage("export")
    assert isinstance(export, Convert)
    assert export.inputs["student"] == "knfu-0.client-0"
    assert "client-0 of 6" in export.convert.card.title
    spread = recipe(split="dirichlet", alpha=0.5)
    assert spread.notes[0].startswith("Split of this report: Dirichlet, alpha 0.5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": [2, 2]}, r"members: one number for each of the 3 groups, 6 clients in all"),
        ({"clients": 7}, r"members: .* 7 clients in all \(got \[2, 2, 2\]\)"),
        ({"groups": [[0], [1], [10]]}, "groups: class 10 is not in 0..9"),
        ({"split": "group"}, "split: Input should be 'grouped' or 'dirichlet'"),
        ({"distance": "kll"}, "distance: Input should be 'kl', 'js' or 'l1'"),
        ({"beta": -1}, "beta: Input should be greater than or equal to 0"),
        ({"models": ["flat3_8"]}, r"unknown model 'flat3_8'. Did you mean 'flat3-8'"),
        ({"models": []}, "models: Tuple should have at least 1 item"),
        ({"names": ["a"]}, "1 names for classes=10; give one a class"),
        ({"teacher": "file:mine"}, "teacher: a federation has none; leave it empty"),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StillhouseError, match=message) as error:
        recipe(**settings)
    assert "\n" not in str(error.value)


def test_recipe_is_a_function_of_its_settings() -> None:
    assert knfu(make_settings(NAME, "tiny")) == knfu(make_settings(NAME, "tiny"))


def test_the_dirichlet_split_needs_no_groups() -> None:
    made = recipe(split="dirichlet", clients=7, members=[1])
    assert len(federation(made, "knfu-0").clients) == 7
