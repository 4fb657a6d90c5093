"""A whole plugin in one file, for the kernel's own tests: its entry point is seen while this folder is on sys.path."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor, nn

from stillhouse.artifact import Built, Model
from stillhouse.cache import Cache
from stillhouse.data.data import Columns
from stillhouse.data.encoded import Decoder
from stillhouse.domain import Domain
from stillhouse.errors import BadData, ClientLost
from stillhouse.federated import Federate, KnFu, Plan
from stillhouse.metrics import Classification, Profile
from stillhouse.objectives.objective import Composed, Optimizer, Phase, Tensors, Weighted
from stillhouse.objectives.term import Term
from stillhouse.recipe import Kind, Recipe, Row
from stillhouse.settings import Settings
from stillhouse.stages import Evaluate, Make, Train
from stillhouse.work import Work

domain = Domain(
    name="toy",
    summary="the kernel's tests",
    recipes={"toy": "stillhouse_toy:toy", "federated": "stillhouse_toy:federated"},
    predict="stillhouse_toy:predict",
)


class Net(nn.Module):
    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, 5)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        hidden = self.norm(self.conv(batch["images"])).relu().mean((2, 3))
        return {"logits": self.head(self.drop(hidden)), "embedding": hidden}


def labels_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


def match_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return nn.functional.mse_loss(student, teacher)


def by_labels(role: str = "student") -> Term:
    return Term(labels_loss, f"{role}.logits", "batch.labels")


def by_teacher() -> Term:
    return Term(match_loss, "student.logits", "teacher.logits")


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Adds a number that depends on (id, view, seed) alone."""

    seed: int = 0

    def __call__(self, batch: Tensors) -> Tensors:
        amount = torch.sin((batch["id"] * 7 + batch["view"] * 3 + self.seed).float())
        return {**batch, "images": batch["images"] + amount[:, None, None, None]}


@dataclass(frozen=True, kw_only=True)
class Unzip(Decoder):
    """Float images [3, 8, 8] of compressed bytes, with `plus` added."""

    plus: float = 0.0

    @property
    def version(self) -> str:
        return f"zlib {zlib.ZLIB_VERSION}"

    def __call__(self, encoded: bytes, row: Mapping[str, Tensor], where: str) -> Tensor:
        try:
            values = np.frombuffer(zlib.decompress(encoded), np.float32)
        except zlib.error as error:
            raise BadData(f"{where}: cannot be decompressed ({error})") from error
        return torch.from_numpy(values.reshape(3, 8, 8) + np.float32(self.plus))


def images() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {
        "images": torch.randn(50, 3, 8, 8, generator=rng),
        "labels": torch.randint(0, 5, (50,), generator=rng),
    }


@dataclass(frozen=True, kw_only=True)
class Split:
    test: int = 10

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        source = inputs["source"]
        return {
            "train": {k: v[self.test :] for k, v in source.items()},
            "test": {k: v[: self.test] for k, v in source.items()},
        }


class Toy(Settings):
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"data": "builtin:stillhouse_toy:images"}
    }
    steps: int = 30
    cache: bool = False
    width: int = 4


def toy(settings: Toy) -> Recipe:
    """A teacher, a student with it and a student without it."""
    tune = Optimizer(lr=0.1, kwargs={"momentum": 0.9})
    seeds = range(settings.seeds)
    match = Composed(
        phases={"main": Phase(trains=("student",), optimizer=tune)},
        losses={"ce": Weighted(term=by_labels()), "match": Weighted(term=by_teacher())},
    )
    plain = Composed(phases=match.phases, losses={"ce": match.losses["ce"]})
    teach = Composed(
        phases={"main": Phase(trains=("teacher",), optimizer=tune)},
        losses={"ce": Weighted(term=by_labels("teacher"))},
    )
    common: dict[str, Any] = {"steps": settings.steps, "batch": 8, "augment": Shift(), "views": 2}
    student = {"student": Model(build=Net, kwargs={"width": settings.width, "dropout": 0.2})}
    stages = [
        Make(name="data", make=Split(), inputs={"source": settings.data}, ports=("train", "test")),
        Train(
            name="teacher",
            objective=teach,
            inputs={"data": "data.train"},
            fresh={"teacher": Model(build=Net, kwargs={"width": 12})},
            **common,
        ),
    ]
    for seed in seeds:
        inputs = {"data": "data.train", "teacher": "teacher.teacher"}
        cache = {"teacher": Cache()} if settings.cache else {}
        stages += [
            Train(
                name=f"student-{seed}",
                objective=match,
                inputs=inputs,
                fresh=student,
                seed=seed,
                cache=cache,
                **common,
            ),
            Train(
                name=f"plain-{seed}",
                objective=plain,
                inputs={"data": "data.train"},
                fresh=student,
                seed=seed,
                **common,
            ),
        ]
    for name in [f"{kind}-{seed}" for kind in ("student", "plain") for seed in seeds]:
        inputs = {"data": "data.test", "student": f"{name}.student", "teacher": "teacher.teacher"}
        stages.append(
            Evaluate(
                name=f"{name}-scores",
                metrics=(Classification(teacher="teacher"), Profile()),
                inputs=inputs,
            )
        )
    kinds: dict[str, Kind] = {"student": "student", "plain": "baseline"}
    rows = {
        name: Row(kind=kind, stages=tuple(f"{name}-{seed}-scores" for seed in seeds))
        for name, kind in kinds.items()
    }
    return Recipe(
        name="toy/toy",
        reference="none",
        stages=stages,
        rows=rows,
        method="student",
    )


class Fragile(Net):
    """A net that cannot be trained while there is a file."""

    def __init__(self, width: int, file: str) -> None:
        super().__init__(width)
        self.file = Path(file)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        if self.training and self.file.is_file():
            raise ClientLost("the test wants it so")
        return super().forward(batch)


CLIENTS = ("client-1", "client-2", "client-10")


@dataclass(frozen=True, kw_only=True)
class Deal:
    """A transfer set and the data of each client: noise around a mean that the label moves."""

    rows: int

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        return {port: self._part(work.rng) for port in ("transfer", *CLIENTS)}

    def _part(self, rng: Generator) -> Columns:
        labels = torch.randint(0, 5, (self.rows,), generator=rng)
        images = torch.randn(self.rows, 3, 8, 8, generator=rng) + labels[:, None, None, None]
        return {"images": images, "labels": labels}


class Federated(Settings):
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tiny": {"data": "builtin:none"}}
    rounds: int = 3
    rows: int = 24
    epochs: int = 2


def federated(settings: Federated) -> Recipe:
    """Three clients with nets of different widths."""
    stages = (
        Make(name="data", make=Deal(rows=settings.rows), inputs={}, ports=("transfer", *CLIENTS)),
        Federate(
            name="knfu",
            inputs={
                "transfer": "data.transfer",
                **{f"{name}-data": f"data.{name}" for name in CLIENTS},
            },
            rounds=settings.rounds,
            classes=5,
            rule=KnFu(beta=1.0),
            fresh={
                name: Model(build=Net, kwargs={"width": width, "dropout": 0.2})
                for width, name in enumerate(CLIENTS, start=2)
            },
            plan=Plan(
                optimizer=Optimizer(lr=0.1), batch=8, epochs=settings.epochs, absorb_epochs=1
            ),
        ),
    )
    return Recipe(name="toy/federated", reference="none", stages=stages)


class Words(nn.Module):
    """Texts as rows of token numbers, 0 for none, to logits of two classes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(size, 4, padding_idx=0)
        self.head = nn.Linear(4, 2)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        return {"logits": self.head(self.embed(batch["tokens"]).sum(1))}


def tokens(texts: Sequence[str], vocabulary: Path, length: int = 4) -> Tensor:
    """[texts, length] numbers of words, by a JSON file from words to numbers."""
    numbers = json.loads(vocabulary.read_text())
    rows = [[numbers.get(word, 1) for word in text.split()][:length] for text in texts]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """A `make`: the texts of the port "source" by the vocabulary of the model at port "words"."""

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        source, model = inputs["source"], inputs["words"]
        found = tokens(source.table()["text"].to_pylist(), model.assets["vocabulary"])
        return {"tokens": {"tokens": found, "labels": source.columns["labels"]}}


def predict(model: Built, inputs: Sequence[Path]) -> Sequence[Mapping[str, Any]]:
    """The class of each text file."""
    found = tokens([path.read_text() for path in inputs], model.assets["vocabulary"])
    with torch.no_grad():
        logits = model.module({"tokens": found})["logits"]
    return [
        {"file": path.name, "class": int(row.argmax())}
        for path, row in zip(inputs, logits, strict=True)
    ]


class Towers(nn.Module):
    """Two layers, and what a loader may stumble over."""

    positions: Tensor

    def __init__(self, odd: str = "") -> None:
        super().__init__()
        self.odd = odd
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("positions", torch.linspace(0, 1, 4), persistent=False)
        self.gain = 1.0
        match odd:
            case "tied":
                self.head.weight = self.body.weight
            case "lstm":
                self.lstm = nn.LSTM(4, 4)
            case "strided":
                self.conv.to(memory_format=torch.channels_last)
            case "computed":  # with what the weights are
                self.gain = 1.0 + 0.0 * self.body.weight.sum().item()
            case "kept":
                self.weights = [self.head.weight]
            case "frozen":
                self.body.requires_grad_(False)
            case _:
                pass

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.conv(images)).mean((2, 3)) * self.gain + self.positions
        hidden = self.head(self.body(hidden).relu())
        if self.odd == "kept":
            hidden = hidden @ self.weights[0]
        return self.lstm(hidden)[0] if self.odd == "lstm" else hidden


class Wide(nn.Module):
    """`depth` layers of width x width without biases."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        hidden = batch["x"]
        for layer in self.layers:
            hidden = layer(hidden).relu()
        return {"logits": hidden}


class Adapter(nn.Module):
    """A linear layer plus the product of two thin matrices (LoRA, Hu et al. 2022)."""

    def __init__(self, layer: nn.Module, width: int, rank: int) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(torch.randn(rank, width) / width**0.5)
        self.up = nn.Parameter(torch.zeros(width, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T


class Adapted(nn.Module):
    """`Wide` with an adapter beside each layer."""

    def __init__(self, width: int, depth: int, rank: int) -> None:
        super().__init__()
        self.net, self.depth = Wide(width, depth), depth
        layers = [Adapter(layer, width, rank) for layer in self.net.layers]
        self.net.layers = nn.ModuleList(layers)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        return self.net(batch)

    def base_names(self) -> dict[str, str]:
        layers = range(self.depth)
        return {f"net.layers.{i}.layer.weight": f"layers.{i}.weight" for i in layers}


class Tall(nn.Module):
    """A teacher with layers in a list, one in another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 3)))
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        hidden = self.norm(self.stem(batch["images"])).mean((2, 3))
        return {"logits": self.head(hidden), "embedding": hidden}


class Hidden(nn.Module):
    """Points [B, 8] through one hidden layer to logits of four classes; the layer is a hint."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, width), nn.Linear(width, 4)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        hidden = self.body(batch["x"]).relu()
        return {"logits": self.head(hidden), "hint": hidden[:, :, None, None]}


class Selfish(nn.Module):
    """A projector that makes the teacher's hint of the points themselves: the student need do
    nothing.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Linear(8, width)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        return {"hint": self.body(batch["x"]).relu()[:, :, None, None]}
