"""What can be set in vision/knfu, and its presets for the three scales."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from stillhouse.federated.fusion import Distance
from stillhouse.inputs import raw_input
from stillhouse.places import project_root
from stillhouse.recipe import OUTSIDE, Scale
from stillhouse.settings import Input
from stillhouse_vision.models import full_name
from stillhouse_vision.own_clients import client_names
from stillhouse_vision.own_data import Look, number
from stillhouse_vision.recipes.teaching_settings import ImageSettings

DIGITS = tuple(str(digit) for digit in range(10))
MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
GROUPS = 3  # of classes, in data of a user's own
MNIST: Mapping[str, Any] = {"size": 28, "mean": MNIST_MEAN, "std": MNIST_STD, "names": DIGITS}


class KnowledgeFusion(ImageSettings):
    """Settings of `vision/knfu`. All numbers but `beta` are our choice: the paper's are not
    known to us.
    """

    split: Literal["grouped", "dirichlet"] = Field(
        "grouped", description="how the images are spread over the clients"
    )
    alpha: float = Field(0.1, gt=0, description="of the Dirichlet split: small is heterogeneous")
    groups: tuple[tuple[int, ...], ...] = Field(
        ((0, 1, 2), (3, 4, 5), (6, 7, 8, 9)), description="classes of each group of clients"
    )
    members: tuple[int, ...] = Field((3, 3, 4), description="clients of each group")
    private: Input = Field(
        "", description="your clients: file:<folder a client, in each a folder a class>"
    )
    client_names: tuple[str, ...] = Field((), description="their folders; empty: all there are")
    clients: int = Field(10, ge=1, le=10_000, description="of the federation")
    samples: int = Field(20, ge=1, description="private images a client")
    transfer: int = Field(300, ge=1, description="images that all clients share")
    models: tuple[str, ...] = Field(
        ("flat3-4", "flat3-8", "flat2-8"), min_length=1, description="architectures, dealt in turn"
    )
    rounds: int = Field(20, ge=1, le=100_000, description="of exchange between clients and server")
    epochs: int = Field(5, ge=1, description="passes over a client's own images a round")
    absorb_epochs: int = Field(5, ge=1, description="passes over the transfer set a round")
    warmup: int = Field(0, ge=0, description="rounds before the first fusion")
    batch: int = Field(32, ge=1, description="images of an optimizer step")
    lr: float = Field(1e-3, gt=0, description="of Adam")
    temperature: float = Field(2.0, gt=0, description="of what is fused and fitted")
    beta: float = Field(10.0, ge=0, description="0: all clients alike; large: each only itself")
    distance: Distance = Field("kl", description="js needs a beta of about 30")
    min_weight: float = Field(0.0, ge=0, lt=1, description="smaller fusion weights are dropped")
    labelled: bool = Field(True, description="use the transfer set's labels for the estimate")
    mean: tuple[float, ...] = Field((0.5,), description="of the greys (0 to 1), subtracted first")
    std: tuple[float, ...] = Field((0.25,), description="of the greys, divided by then")

    follows_data: ClassVar[tuple[str, ...]] = (
        *ImageSettings.follows_data,
        "groups",
        "members",
        "client_names",
    )

    @classmethod
    def from_data(
        cls,
        source: Any,
        values: Mapping[str, Any],
        given: Mapping[str, Any],  # Any: as there
    ) -> Mapping[str, Any]:
        private = values.get("private", "")
        known = isinstance(private, str) and private.startswith(OUTSIDE)
        names = client_names(raw_input(private, project_root())) if known else ()
        return {**super().from_data(source, values, given), "client_names": names}

    @classmethod
    def of_look(
        cls, look: Look, values: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Up to three groups of neighbouring classes, and clients for each."""
        found = super().of_look(look, values, given)
        clients = int(number(values, "clients", cls.model_fields["clients"].default))
        classes = int(number(given, "classes", found["classes"]))
        count = max(1, min(GROUPS, classes, clients))
        groups = np.array_split(np.arange(classes), count)
        return {
            **found,
            "groups": tuple(tuple(group.tolist()) for group in groups),
            "members": tuple(len(part) for part in np.array_split(np.arange(clients), count)),
        }

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": {
            "data": "builtin:stillhouse_vision.samples:digits",
            "clients": 6,
            "members": (2, 2, 2),
            "transfer": 100,
            "rounds": 3,
            "size": 8,
            "mean": (0.3,),
            "std": (0.37,),
            "names": DIGITS,
        },
        "small": {"data": "data:mnist-subset", **MNIST},
        "paper": {
            "data": "file:mnist",
            "split": "dirichlet",
            "samples": 300,
            "transfer": 5000,
            "models": ("flat2-8", "flat2-16", "flat2-32"),
            "seeds": 5,
            **MNIST,
        },
    }

    @field_validator("models", mode="after")
    @classmethod
    def _full_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(full_name(name) for name in names)

    @model_validator(mode="after")
    def _whole(self) -> "KnowledgeFusion":
        if self.teacher:
            raise ValueError("teacher: a federation has none; leave it empty")
        if self.private and not self.client_names:
            raise ValueError(
                "private: the clients' folders are found where data are your own too; set data to "
                "the images that all clients may see (their training part is shared)"
            )
        if self.split == "grouped" and not self.private:
            self._check_groups()
        return self

    def _check_groups(self) -> None:
        if len(self.groups) != len(self.members) or sum(self.members) != self.clients:
            raise ValueError(
                f"members: one number for each of the {len(self.groups)} groups, "
                f"{self.clients} clients in all (got {list(self.members)})"
            )
        outside = {c for group in self.groups for c in group if not 0 <= c < self.classes}
        if outside:
            raise ValueError(f"groups: class {min(outside)} is not in 0..{self.classes - 1}")
