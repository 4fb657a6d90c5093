"""Claim: a KD step of 8,192 tokens over 152,000 classes by chunks of tokens needs at most 1/8 of
the memory of the dense loss, and no more time.

    uv run python benchmarks/lm_loss.py

A step is value and gradients of KD (T = 2) from hidden states 576 wide (SmolLM2's) with respect to
these and to the head [152,000, 576], in float32. Four ways, each step in a process of its own:
    dense, kept      logits of all tokens against whole ones made of 64 (`Cache(top_k=64)`)
    chunked, kept    `lm_sparse_kd_loss` of the 64 stored ones and their rest
    dense, head      logits of all tokens against those of the teacher's head
    chunked, head    `lm_kd_loss`: the same, by chunks
Stored targets are there before the clock starts. Peak: VmHWM of /proc/self/status after the step
less before it. Where the dense loss does not fit the memory of the machine (5.0 GB a tensor of
8,192 tokens), it is measured at the most tokens that do, which are named, and compared with chunks
of 8,192 tokens all the same: its memory could only be more. Seconds are compared a token then.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rounds import write
from torch import Tensor

ROOT = Path(__file__).parent.parent
TOKENS, CLASSES, WIDTH, KEPT, TEMPERATURE = 8192, 152_000, 576, 64, 2.0
GOAL = 1 / 8
PAIRS = {"dense, kept": "chunked, kept", "dense, head": "chunked, head"}
# tensors [tokens, classes] that the dense way has at once, by which it is decided what fits
TENSORS = 8

Record = Mapping[str, Any]  # Any: JSON


def status(name: str) -> int:
    """Bytes; not ru_maxrss, which begins with the peak of the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def free() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024


def fitting(tokens: int, classes: int) -> int:
    """The tokens, halved until the dense loss fits."""
    while 4 * TENSORS * tokens * classes > 0.9 * free():
        tokens //= 2
    return tokens


def step(way: str, tokens: int, classes: int, chunk: int) -> Callable[[], Tensor]:
    """The loss of one step; its hidden states and head are leaves with gradients."""
    from stillhouse.cache import Cache
    from stillhouse.objectives.language import lm_kd_loss, lm_sparse_kd_loss
    from stillhouse.packing import unpack

    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=rng).requires_grad_()
    head = (torch.randn(classes, WIDTH, generator=rng) / 12).requires_grad_()
    taught = torch.randn(tokens, WIDTH, generator=rng)
    teacher = torch.randn(classes, WIDTH, generator=rng) / 12
    index = torch.randint(classes - KEPT, (tokens, 1), generator=rng) + torch.arange(KEPT)
    rest = torch.full((tokens,), -1.0)
    log_p = (
        torch.randn(tokens, KEPT, generator=rng).log_softmax(1)
        + torch.log(-torch.expm1(rest))[:, None]
    )

    def dense(whole: Tensor) -> Tensor:
        """As everyone writes it: `kd_loss` also counts classes that the teacher excludes."""
        student = F.log_softmax(hidden @ head.T / TEMPERATURE, dim=1)
        target = F.log_softmax(whole / TEMPERATURE, dim=1)
        return TEMPERATURE**2 * F.kl_div(student, target, reduction="batchmean", log_target=True)

    def restored() -> Tensor:
        stored = {"logits.top": log_p, "logits.index": index.int(), "logits.rest": rest}
        stored["logits.classes"] = torch.full((tokens,), classes)
        return dense(unpack(stored, Cache(top_k=KEPT))["logits"])

    def headed() -> Tensor:
        with torch.no_grad():
            whole = taught @ teacher.T
        return dense(whole)

    ways: Mapping[str, Callable[[], Tensor]] = {
        "dense, kept": restored,
        "chunked, kept": lambda: lm_sparse_kd_loss(
            hidden, head, index, log_p, rest, temperature=TEMPERATURE, chunk=chunk
        ),
        "dense, head": headed,
        "chunked, head": lambda: lm_kd_loss(
            hidden, head, taught, teacher, temperature=TEMPERATURE, chunk=chunk
        ),
    }
    return ways[way]


def contestant(way: str, tokens: int, classes: int, chunk: int) -> Record:
    """What a process of its own measures."""
    step(way, 64, 512, 16)().backward()  # the libraries are there
    loss = step(way, tokens, classes, chunk)
    before, started = status("VmRSS"), time.perf_counter()
    cpu = time.process_time()
    value = loss()
    value.backward()
    return {
        "peak_above_mib": (status("VmHWM") - before) / 2**20,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "loss": value.item(),
    }


def measured(way: str, tokens: int, given: argparse.Namespace) -> Record:
    sizes = ["--tokens", str(tokens), "--classes", str(given.classes), "--chunk", str(given.chunk)]
    command = [sys.executable, __file__, "--way", way, *sizes]
    record = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(record.splitlines()[-1])


def middle(rounds: list[Record], tokens: int) -> Record:
    """Medians over rounds, and seconds a thousand tokens."""
    found = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    per = {
        f"{name}_per_1000_tokens": 1000 * found[name] / tokens
        for name in ("seconds", "cpu_seconds")
    }
    return {"tokens": tokens, **found, **per, "rounds": rounds}


def verdict(ways: Record) -> Record:
    pairs = {
        by_chunks: {
            "peak_of_dense": ways[by_chunks]["peak_above_mib"] / ways[dense]["peak_above_mib"],
            "tokens_of_dense": ways[dense]["tokens"],
            "seconds_of_dense_per_token": ways[by_chunks]["seconds_per_1000_tokens"]
            / ways[dense]["seconds_per_1000_tokens"],
            "cpu_seconds_of_dense_per_token": ways[by_chunks]["cpu_seconds_per_1000_tokens"]
            / ways[dense]["cpu_seconds_per_1000_tokens"],
        }
        for dense, by_chunks in PAIRS.items()
    }
    return {
        "goal": "peak at most 1/8 of the dense loss, at most its seconds a token",
        "pairs": pairs,
        "peak_reached": all(pair["peak_of_dense"] <= GOAL for pair in pairs.values()),
        "seconds_reached": all(pair["seconds_of_dense_per_token"] <= 1 for pair in pairs.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and time of KD over a long vocabulary.")
    parser.add_argument("--way", choices=[*PAIRS, *PAIRS.values()])
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "lm-loss")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(contestant(given.way, given.tokens, given.classes, given.chunk)))
        return
    from stillhouse.code import code_version
    from stillhouse.environment import environment

    load, fits = os.getloadavg(), fitting(given.tokens, given.classes)
    tokens = {way: fits if way in PAIRS else given.tokens for way in [*PAIRS, *PAIRS.values()]}
    rounds: dict[str, list[Record]] = {way: [] for way in tokens}
    for _ in range(given.rounds):
        for way, count in tokens.items():
            rounds[way].append(measured(way, count, given))
            print(f"{way:16}{count:6} tokens  {json.dumps(rounds[way][-1])}", flush=True)
    ways = {way: middle(found, tokens[way]) for way, found in rounds.items()}
    # of as many tokens, so that values can be compared
    same = {way: measured(way, 64, given)["loss"] for way in ("dense, head", "chunked, head")}
    record: Record = {
        "claim": "KD of 8,192 tokens x 152,000 classes by chunks: 1/8 of the memory, no more time",
        "setting": {
            "tokens": given.tokens,
            "tokens_of_the_dense_loss": fits,
            "classes": given.classes,
            "width": WIDTH,
            "kept": KEPT,
            "temperature": TEMPERATURE,
            "chunk": given.chunk,
            "rounds": given.rounds,
            "type": "float32",
            "threads": torch.get_num_threads(),
        },
        "code": code_version("stillhouse"),
        "environment": environment("cpu"),
        "load_average_before": load,
        "load_average_after": os.getloadavg(),
        "ways": ways,
        "loss_of_64_tokens": same,
        "verdict": verdict(ways),
    }
    write(given.out / "lm-loss.json", record)
    for way, one in ways.items():
        print(
            f"{way:16}{one['tokens']:6} tokens{one['peak_above_mib']:9.0f} MiB"
            f"{one['seconds_per_1000_tokens']:8.2f} s a 1000 tokens"
        )
    print(json.dumps(record["verdict"], indent=1))


if __name__ == "__main__":
    main()
