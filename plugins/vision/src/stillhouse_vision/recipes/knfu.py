"""vision/knfu: clients with private images learn from their semantic neighbours' predictions."""

from dataclasses import dataclass, replace

import torch

from stillhouse.federated.averaging import FedAvg
from stillhouse.federated.clients import Plan
from stillhouse.federated.figures import ClientLabels, FusionWeights
from stillhouse.federated.metrics import ExchangeScores, FederatedAccuracy
from stillhouse.federated.rules import Itself, KnFu, Mean, Rule
from stillhouse.federated.stage import Federate
from stillhouse.objectives.objective import Optimizer
from stillhouse.recipe import Recipe, Row
from stillhouse.references import collected, reference
from stillhouse.stages import Evaluate, Make
from stillhouse.stages.make import Maker
from stillhouse_vision.federated_data import Dirichlet, Grouped, SplitImages
from stillhouse_vision.own_clients import OwnClients
from stillhouse_vision.recipes.knfu_settings import KnowledgeFusion
from stillhouse_vision.recipes.teaching import (
    caution,
    data_stage,
    export_stage,
    image_spec,
    named_model,
)

PAPER = "KnFu: effective knowledge fusion, 2024 (arXiv 2403.11892)"
NOTES = (
    "A reconstruction: KnFu has no released code, and only parts of the paper's text were at hand. "
    "From the paper: the four steps of a round (local training, knowledge extraction, effective "
    "knowledge fusion, local fine-tuning), beta = 10, the metric ALMA, MNIST and CIFAR-10. Ours: "
    "how a client's label distribution is estimated, the distance, weights as a softmax of -beta "
    "times it, the losses, temperature, optimizer, epochs, rounds, models, splits, and that ALMA "
    "weighs one test set by each client's own labels.",
    "Self-distillation is the baseline, the control that a gain of fusion must beat: there each "
    "client is taught by itself alone, for as many steps. Local only and FedAvg make fewer steps: "
    "they have no fine-tuning on the shared images.",
    "FedMD mean averages probabilities and fits them as KnFu does (FedMD itself averages logits): "
    "the rows differ in the fusion weights alone.",
    "FedAvg sends weights, which breaks the rule that only predictions leave a client. It averages "
    "clients of one architecture, whatever their classes, BatchNorm's statistics with the weights; "
    "a round ends with the mean, so its models are not personal.",
    "ALMA and global accuracy trade off: a client that knows its own classes alone is good at the "
    "first and bad at the second.",
    "Predictions on the transfer set reveal to a server what classes a client has, and may reveal "
    "more about its images: nothing is clipped or noised here. A client can also fake the "
    "predictions of another's neighbour.",
    "A federation has no global model. The exported student is the first client of the first seed "
    "of KnFu, made for its own classes.",
)
ITSELF, FUSED = "self-distillation", "KnFu"


def knfu(settings: KnowledgeFusion) -> Recipe:
    """KnFu, effective knowledge fusion (arXiv 2403.11892), a RECONSTRUCTION: federated clients.

    Claim: where clients differ in their classes, a teacher fused from the predictions of semantic
    neighbours serves each client better than the mean of all (FedMD); where they do not, the same.
    Command: `stillhouse run vision/knfu --scale tiny|small|paper`; `--set split=dirichlet` for
    the other split. Scores are those of the last round; nothing is picked on the test set.

    Your clients: `--set data=file:<what all see> --set private=file:<folder>` with a folder
    a client, each with a folder a class (not all of them need be there).

    A seed has its own split, first weights and batches, the same for all rows. tiny: digits, 6
    clients, 3 rounds. small: MNIST, 10 clients of three architectures with 20 images each, 300
    shared ones, 20 rounds. paper: 300 and 5,000 images; `file:mnist` is a folder with
    train and test, and CIFAR-10 goes with `data`, `size`, `mean`, `std`,
    `names`, `models` and `rounds=50`.
    """
    rows = _rows(settings)
    splits = [_split(settings, seed) for seed in range(settings.seeds)]
    scores = {row.label: [_scores(settings, row, split) for split in splits] for row in rows}
    clients = _clients(settings)
    title = (
        f"{settings.models[0]}, {clients[0]} of {len(clients)} of a KnFu federation: "
        "a personal model for its own classes, not a global one"
    )
    export = export_stage(title, f"{PAPER}, a reconstruction", splits[0]["test"])
    student = {"student": reference(_federation(settings, rows[-1], splits[0]), clients[0])}
    export = replace(export, inputs={**export.inputs, **student})
    evaluated = [stage for stages in scores.values() for stage in stages]
    return Recipe(
        name="vision/knfu",
        reference=PAPER,
        stages=collected(*evaluated, export),
        rows={
            label: Row(
                kind="baseline" if label == ITSELF else "student",
                stages=tuple(stage.name for stage in stages),
            )
            for label, stages in scores.items()
        },
        caution=caution(settings, f"{settings.rounds} rounds"),
        method=FUSED,
        notes=(_split_note(settings), *_alone_note(settings), *NOTES),
    )


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row of the report: `label`, its stages' `name`, and how its clients learn from others."""

    label: str
    name: str
    rule: Rule | None = None
    averaged: bool = False


def _rows(settings: KnowledgeFusion) -> tuple[_Row, ...]:
    fusion = KnFu(
        beta=settings.beta,
        distance=settings.distance,
        min_weight=settings.min_weight,
        labelled=settings.labelled,
    )
    return (
        _Row(label="local only", name="local"),
        _Row(label=ITSELF, name="itself", rule=Itself()),
        _Row(label="FedMD mean", name="mean", rule=Mean()),
        _Row(label=_averaged(settings), name="fedavg", averaged=True),
        _Row(label=FUSED, name="knfu", rule=fusion),
    )


def _averaged(settings: KnowledgeFusion) -> str:
    return "FedAvg (no two of one architecture)" if _alone(settings) else "FedAvg (sends weights)"


def _alone(settings: KnowledgeFusion) -> bool:
    """Whether no two clients have one architecture, so that no weights can be averaged."""
    kinds = settings.models
    dealt = [kinds[number % len(kinds)] for number in range(len(_clients(settings)))]
    return len(set(dealt)) == len(dealt)


def _alone_note(settings: KnowledgeFusion) -> tuple[str, ...]:
    if not _alone(settings):
        return ()
    return (
        f"No two of the {len(_clients(settings))} clients have one architecture "
        f"({', '.join(settings.models)}), so FedAvg has nobody to average with: each client learns "
        "alone, as in the row local only. Name fewer models to compare with it.",
    )


def _split_note(settings: KnowledgeFusion) -> str:
    if settings.private:
        return (
            f"Clients of this report: {', '.join(settings.client_names)}, each with the images of "
            f"its own folder; up to {settings.transfer} of the training images of data shared."
        )
    each = f"{settings.samples} private images a client, {settings.transfer} shared"
    if settings.split == "dirichlet":
        return f"Split of this report: Dirichlet, alpha {settings.alpha:g}; {each}."
    groups = ", ".join(
        f"classes {', '.join(map(str, group))} for {count} clients"
        for group, count in zip(settings.groups, settings.members, strict=True)
    )
    return f"Split of this report: grouped, {groups}; {each}."


def _clients(settings: KnowledgeFusion) -> tuple[str, ...]:
    if settings.private:
        return settings.client_names
    return tuple(f"client-{number}" for number in range(settings.clients))


def _split(settings: KnowledgeFusion, seed: int) -> Make:
    clients, data = _clients(settings), data_stage(settings)
    inputs: dict[str, str] = {"train": data["train"], "test": data["test"]}
    if settings.private:
        inputs["private"] = settings.private
        make: Maker = OwnClients(
            clients=clients,
            transfer=settings.transfer,
            images=image_spec(settings),
            classes=settings.classes,
            resize=settings.resize,
        )
    else:
        grouped = Grouped(groups=settings.groups, members=settings.members)
        make = SplitImages(
            clients=clients,
            size=settings.samples,
            transfer=settings.transfer,
            classes=settings.classes,
            split=grouped if settings.split == "grouped" else Dirichlet(alpha=settings.alpha),
        )
    ports = ("transfer", "test", *clients)
    return Make(name=f"split-{seed}", make=make, inputs=inputs, ports=ports, seed=seed)


def _federation(settings: KnowledgeFusion, row: _Row, split: Make) -> Federate | FedAvg:
    """Architectures are dealt in turn, so that a group of clients has several."""
    kinds, clients = settings.models, _clients(settings)
    shared = {} if row.rule is None else {"transfer": split["transfer"]}
    federation = Federate(
        name=f"{row.name}-{split.seed}",
        inputs={**shared, **{f"{client}-data": split[client] for client in clients}},
        rounds=settings.rounds,
        classes=settings.classes,
        rule=row.rule,
        fresh={
            client: named_model(settings, kinds[number % len(kinds)])
            for number, client in enumerate(clients)
        },
        plan=Plan(
            optimizer=Optimizer(build=torch.optim.Adam, lr=settings.lr),
            batch=settings.batch,
            epochs=settings.epochs,
            absorb_epochs=settings.absorb_epochs,
            temperature=settings.temperature,
        ),
        warmup=settings.warmup,
        seed=split.seed,
    )
    return FedAvg(federation=federation) if row.averaged else federation


def _scores(settings: KnowledgeFusion, row: _Row, split: Make) -> Evaluate:
    made, clients = _federation(settings, row, split), _clients(settings)
    roles = {role: reference(made, role) for role in (*clients, "exchange")}
    return Evaluate(
        name=f"{made.name}-scores",
        metrics=(FederatedAccuracy(clients=clients), ExchangeScores()),
        inputs={"data": split["test"], **roles},
        plots=(ClientLabels(), FusionWeights()) if row.label == FUSED and split.seed == 0 else (),
    )
