"""How well scores of untrained networks rank trained ones, beside the number of parameters.

    uv run python benchmarks/nas_ranking.py [--table 201] [--count 500]

Architectures are drawn from a table of data/nas-tables; each is scored on one batch of real
CIFAR-10 pictures by DisWOT (its teacher: the best architecture of the table, untrained), by the
losses of distillation at initialisation, and by zero-cost proxies. Killed, it goes on where it was.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from nas_drawing import draw, scatter
from nas_scores import Line, Settings, columns, dead, diswot_scores, scored
from nas_tables import ACCURACIES, ROOT, Name, Table
from rounds import write
from torch import Tensor

from stillhouse.code import code_version
from stillhouse.environment import environment
from stillhouse.errors import BadData
from stillhouse.search.proxies import combined
from stillhouse.search.ranking import (
    bootstrap,
    kendall_tau,
    kendall_tau_within,
    partial_kendall_tau,
    spearman_rho,
)

SLICES = 5

Record = Mapping[str, Any]  # Any: JSON


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of the scored architectures: their places among all."""

    name: str
    rows: Sequence[int]


def lead(score: Tensor, accuracy: Tensor, size: Tensor) -> float:
    """How much better than `size` a score ranks: difference of the two taus."""
    return kendall_tau(score, accuracy) - kendall_tau(size, accuracy)


def parts(lines: Sequence[Line], macs: Sequence[float]) -> list[Part]:
    """All, those with a way from picture to classifier, and fifths of the MACs (equal MACs stay
    together).
    """
    everything = range(len(lines))
    connected = [row for row in everything if lines[row]["connected"]]
    edges = statistics.quantiles(macs, n=SLICES, method="inclusive")
    fifth = [sum(value > edge for edge in edges) for value in macs]
    slices = [[row for row in everything if fifth[row] == number] for number in range(SLICES)]
    return [
        Part(name="all", rows=everything),
        Part(name="connected", rows=connected),
        *(Part(name=f"macs fifth {n}", rows=rows) for n, rows in enumerate(slices, 1)),
    ]


def correlations(
    part: Part, found: Mapping[str, Sequence[float]], accuracy: Sequence[float], resamples: int
) -> Record:
    """Each proxy's rank correlations with the accuracy in a part, with their intervals."""
    chosen = list(part.rows)
    table = {name: torch.tensor(values).double()[chosen] for name, values in found.items()}
    truth = torch.tensor(accuracy).double()[chosen]
    size, macs = table["parameters"], table["macs"]
    proxies = {
        name: {
            "kendall_tau": interval(resamples, kendall_tau, score, truth),
            "spearman_rho": interval(resamples, spearman_rho, score, truth),
            "partial_tau_given_parameters": interval(
                resamples, partial_kendall_tau, score, truth, size
            ),
            "tau_minus_tau_of_parameters": interval(resamples, lead, score, truth, size),
            "tau_at_equal_macs": interval(resamples, kendall_tau_within, score, truth, macs),
            "minus_infinity": dead(score.tolist()),
        }
        for name, score in table.items()
    }
    return {
        "name": part.name,
        "n": len(chosen),
        "macs": [macs.min().item(), macs.max().item()],
        "different_macs": len(macs.unique()),
        "accuracy": [truth.min().item(), truth.max().item()],
        "proxies": proxies,
    }


def interval(resamples: int, statistic: Callable[..., float], *given: Tensor) -> Record | None:
    """None where the statistic says nothing: a column is constant, or orders as size does."""
    try:
        return asdict(bootstrap(statistic, *given, resamples=resamples))
    except BadData:
        return None


def by_inits(lines: Sequence[Line], accuracy: Sequence[float], resamples: int) -> Record:
    """DisWOT's tau with the first draws of the weights alone: what averaging them brings."""
    most = len(lines[0]["semantics"])
    truth = torch.tensor(accuracy).double()
    scores = {n: diswot_scores(lines, n) for n in range(1, most + 1)}
    return {
        str(n): {
            "diswot": interval(resamples, kendall_tau, torch.tensor(combined(s)), truth),
            "semantic": interval(
                resamples, kendall_tau, torch.tensor([one.semantic for one in s]), truth
            ),
            "relation": interval(
                resamples, kendall_tau, torch.tensor([one.relation for one in s]), truth
            ),
        }
        for n, s in scores.items()
    }


def seconds(lines: Sequence[Line]) -> Record:
    """Processor seconds an architecture: the median of each score, the mean of all together."""
    names = lines[0]["seconds"]
    medians = {name: statistics.median([line["seconds"][name] for line in lines]) for name in names}
    totals = [sum(line["seconds"].values()) for line in lines]
    return {"median": medians, "all_mean": statistics.fmean(totals)}


def record(settings: Settings, resamples: int, table: Table, lines: Sequence[Line]) -> Record:
    found = columns(lines)
    accuracy = [line["accuracy"] for line in lines]
    return {
        "claim": "how well scores of untrained networks rank trained ones, beside their size",
        "accuracy": ACCURACIES[settings.table],
        "settings": {**asdict(settings), "resamples": resamples, "interval": "95 % percentile"},
        "sampled": f"{len(lines)} of {len(table.rows)}, uniformly without replacement",
        "teacher": {
            "architecture": table.best.text,
            "accuracy": table.best.accuracy,
            "weights": "untrained: N(0, 1) for DisWOT, the default initialisation for kd:*",
            "chosen": "the best of the table",
        },
        "pictures": "JPEG copies of CIFAR-10 training pictures with their labels",
        "code": code_version("stillhouse_vision"),
        "environment": environment("cpu"),
        "load_average_at_the_end": os.getloadavg(),
        "processor_seconds": seconds(lines),
        "parts": [
            correlations(part, found, accuracy, resamples) for part in parts(lines, found["macs"])
        ],
        "diswot_by_inits": by_inits(lines, accuracy, resamples),
    }


def text_of(result: Record) -> str:
    """The table that is printed: a line a proxy; tau in each part, then what size does not tell."""
    named = [(part["name"].replace("macs fifth", "fifth"), part) for part in result["parts"]]
    everything = named[0][1]["proxies"]
    titles = [f"{name} ({part['n']})" for name, part in named]
    head = f"{'tau':24}" + "".join(f"{title:>16}" for title in titles)
    lines = [head + f"{'given params':>16}{'equal MACs':>12}{'rho':>8}"]
    for proxy, own in everything.items():
        taus = "".join(f"{_number(part['proxies'][proxy]['kendall_tau']):>16}" for _, part in named)
        rest = [own["partial_tau_given_parameters"], own["tau_at_equal_macs"], own["spearman_rho"]]
        given, equal, rho = map(_number, rest)
        lines.append(f"{proxy:24}{taus}{given:>16}{equal:>12}{rho:>8}")
    return "\n".join(lines)


def _number(found: Record | None) -> str:
    return "-" if found is None else f"{found['value']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", choices=get_args(Name), default="201")
    parser.add_argument("--count", type=int, default=500, help="architectures")
    parser.add_argument("--batch", type=int, default=32, help="pictures")
    parser.add_argument("--inits", type=int, default=4, help="draws of the weights for DisWOT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "nas-ranking")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(
        table=given.table,
        count=given.count,
        batch=given.batch,
        inits=given.inits,
        zen_inits=max(1, given.inits // 2),
        seed=given.seed,
    )
    table, lines = scored(settings, given.data)
    result = record(settings, given.resamples, table, lines)
    name = f"nas-ranking-{settings.table}"
    write(given.out / f"{name}.json", result)
    draw(result, given.out / f"{name}.svg")
    scatter(lines, columns(lines), given.out / f"{name}-scatter.svg")
    print(text_of(result))
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
