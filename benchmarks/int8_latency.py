"""Claim: a SAM of convolutions runs at least 1.5 times as fast with integers as in 32-bit floats,
in ONNX Runtime on one thread of a CPU with VNNI.

    uv run python benchmarks/int8_latency.py [--encoders cnn32 timm:resnet18] [--size 256]
        [--grid 16] [--channels 64] [--threads 1 2] [--rounds 40] [--out docs/results/int8-latency]

For each encoder three files of one network: in floats (`ToOnnx`), with all its products as integers
(`Quantize`, `ToIntegers`), and with those of the image encoder only. One process runs them in turn,
one image and one box at a time; who begins changes from round to round. Seconds are those that
passed and those of the processor, of all threads. Weights are drawn and steps are min-max: neither
changes what is computed. After that ONNX Runtime's own profile says where the time goes.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rounds import paired, summary, write
from torch import Generator, Tensor, nn

from stillhouse.artifact import Built, load_model
from stillhouse.code import code_version
from stillhouse.data.data import TensorData
from stillhouse.environment import environment
from stillhouse.quantize.onnx_network import ONNX, OnnxNetwork
from stillhouse.quantize.onnx_qdq import ToIntegers
from stillhouse.quantize.onnx_static import ToOnnx
from stillhouse.quantize.ptq import Quantize
from stillhouse.work import Work
from stillhouse_sam.models import Shape, named

ROOT = Path(__file__).parent.parent
GOAL, WARMUP, PROFILED, SHOWN = 1.5, 5, 20, 8
INPUTS, OUTPUTS = ("images", "sizes", "boxes"), ("logits", "iou")
ENCODERS = (
    *("cnn32", "timm:resnet18", "timm:mobilenetv2_100", "timm:efficientnet_lite0"),
    *("timm:mobilenetv3_large_100", "tiny_vit_5m_224", "sam-96x4"),
)

Record = dict[str, Any]  # Any: JSON


def rows(size: int, count: int = 2) -> dict[str, Tensor]:
    images = torch.randint(0, 256, (count, 3, size, size), generator=Generator().manual_seed(1))
    return {
        "images": images.to(torch.uint8),
        "sizes": torch.tensor([[size, size]] * count),
        "boxes": torch.tensor([[[0.1, 0.1, 0.6, 0.5]]] * count) * size,
    }


def network(encoder: str, shape: Shape) -> Built:
    """Weights are drawn; BatchNorm has seen the images."""
    torch.manual_seed(0)
    spec = named(encoder, shape=shape)
    module = spec.new().train()
    with torch.no_grad():
        for _ in range(10):
            module(rows(shape.size))
    return Built(spec=spec, module=module.eval())


def files(encoder: str, shape: Shape, folder: Path) -> dict[str, Path]:
    built, batch = network(encoder, shape), rows(shape.size)
    data, rng = TensorData(batch), Generator().manual_seed(0)
    steps = Quantize(inputs=INPUTS, metric="minmax").applied(built, batch)
    common: Record = {"inputs": INPUTS, "outputs": OUTPUTS, "samples": 2}
    # noise in, drawn weights: how near the outputs are is recorded, not asked for
    whole = ToIntegers(**common, tolerance=float("inf"))
    part = ToIntegers(**common, tolerance=float("inf"), parts=("sam.image_encoder",))
    found = {"float": folder / "float", "int8": folder / "int8", "encoder": folder / "encoder"}
    ToOnnx(**common)({"student": built, "data": data}, found["float"], work=Work(rng=rng))
    for name, convert in (("int8", whole), ("encoder", part)):
        convert({"student": steps, "data": data}, found[name], work=Work(rng=rng))
    return found


def opened(folder: Path) -> OnnxNetwork:
    module = load_model(folder).module
    assert isinstance(module, OnnxNetwork)
    return module


def timed(module: nn.Module, batch: Mapping[str, Tensor]) -> tuple[float, float]:
    """Milliseconds that passed, and of the processor."""
    passed, used = time.perf_counter(), time.process_time()
    module(batch)
    return 1000 * (time.perf_counter() - passed), 1000 * (time.process_time() - used)


def latencies(folders: Mapping[str, Path], size: int, threads: int, rounds: int) -> Record:
    torch.set_num_threads(threads)
    modules = {name: opened(folder) for name, folder in folders.items()}
    batch, names = rows(size, 1), list(modules)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(WARMUP + rounds):
        shift = number % len(names)
        for name in [*names[shift:], *names[:shift]]:
            seconds[name].append(timed(modules[name], batch))
    found: Record = {}
    for i, kind in enumerate(("passed_ms", "processor_ms")):
        each = {name: [one[i] for one in seconds[name][WARMUP:]] for name in names}
        found[kind] = {name: summary(values) for name, values in each.items()}
        found[f"speed_up_{kind.removesuffix('_ms')}"] = {
            name: summary(paired(each["float"], each[name])) for name in names if name != "float"
        }
    return found


def profile(folder: Path, size: int) -> Record:
    """Milliseconds a forward on one thread in each type of kernel, the longest first."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(
        str(folder / ONNX), options, providers=["CPUExecutionProvider"]
    )
    given = {name: value.numpy() for name, value in rows(size, 1).items()}
    for _ in range(WARMUP + PROFILED):
        session.run(list(OUTPUTS), given)
    times: dict[tuple[str, str], list[float]] = {}
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"])
    spent, counts = dict[str, float](), Counter[str]()
    for (kind, _), each in times.items():
        # the median of each node: other programs interrupt a few of its runs
        spent[kind] = spent.get(kind, 0.0) + statistics.median(each[WARMUP:]) / 1000
        counts[kind] += 1
    longest = sorted(spent, key=lambda kind: spent[kind], reverse=True)[:SHOWN]
    shown = {kind: {"ms": spent[kind], "nodes": counts[kind]} for kind in longest}
    return {"all_ms": sum(spent.values()), "kernels": shown}


def gaps(folders: Mapping[str, Path], size: int) -> Record:
    """Mean distance of the logits to those in floats, over their mean size: of noise."""
    found = {name: opened(folder)(rows(size))["logits"] for name, folder in folders.items()}
    exact = found.pop("float")
    return {k: ((v - exact).abs().mean() / exact.abs().mean()).item() for k, v in found.items()}


def measured(encoder: str, given: argparse.Namespace) -> Record:
    shape = Shape(size=given.size, grid=given.grid, channels=given.channels, mlp=4 * given.channels)
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as place:
        folders = files(encoder, shape, Path(place))
        module = opened(folders["float"])
        counts = {
            name: load_model(folder).spec.kwargs["integers"]
            for name, folder in folders.items()
            if name != "float"
        }
        return {
            "macs": module.macs,
            "parameters": module.parameter_count,
            "mib": {name: (path / ONNX).stat().st_size / 2**20 for name, path in folders.items()},
            "integers": counts,
            "threads": {
                str(threads): latencies(folders, given.size, threads, given.rounds)
                for threads in given.threads
            },
            "profile_one_thread": {
                name: profile(folder, given.size) for name, folder in folders.items()
            },
            "logits_off_by": gaps(folders, given.size),
        }


def verdict(found: Mapping[str, Record]) -> Record:
    """Of the faster file of each encoder, on one thread, by the processor's time: others may run
    on the machine.
    """
    verdicts: Record = {}
    for encoder, one in found.items():
        if "1" in one["threads"]:
            ratios = one["threads"]["1"]["speed_up_processor"]
            best = max(ratios, key=lambda name: ratios[name]["median"])
            speed_up = ratios[best]["median"]
            verdicts[encoder] = {"file": best, "speed_up": speed_up, "reached": speed_up >= GOAL}
    return verdicts


def table(found: Mapping[str, Record]) -> str:
    lines = [
        f"{'encoder':28}{'threads':>8}{'time':>11}{'float ms':>10}{'int8':>8}{'encoder':>9}"
        f"{'speed-up':>18}"
    ]
    for encoder, one in found.items():
        for threads, times in one["threads"].items():
            for kind in ("processor", "passed"):
                used, ratios = times[f"{kind}_ms"], times[f"speed_up_{kind}"]
                lines.append(
                    f"{encoder:28}{threads:>8}{kind:>11}{used['float']['median']:10.2f}"
                    f"{used['int8']['median']:8.2f}{used['encoder']['median']:9.2f}"
                    f"{ratios['int8']['median']:9.2f}{ratios['encoder']['median']:9.2f}"
                )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A SAM with integers and in floats.")
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "int8-latency")
    given = parser.parse_args(arguments)
    found: dict[str, Record] = {}
    for encoder in given.encoders:
        load = os.getloadavg()
        found[encoder] = {**measured(encoder, given), "load_average_before": load}
        record: Record = {
            "claim": f"at least {GOAL} times as fast with integers, on one thread",
            "setting": {
                "shape": {"size": given.size, "grid": given.grid, "channels": given.channels},
                "batch": 1,
                "rounds": given.rounds,
                "weights": "drawn, BatchNorm settled on noise; steps min-max",
            },
            "code": code_version("stillhouse_sam"),
            "environment": environment("cpu"),
            "encoders": found,
            "verdict": verdict(found),
        }
        write(given.out / "int8-latency.json", record)
        print(table({encoder: found[encoder]}), flush=True)
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
