"""The students of sam/tinysam in few bits."""

from stillhouse.quantize.onnx_qdq import ToIntegers
from stillhouse.quantize.onnx_static import ToOnnx
from stillhouse.quantize.ptq import Quantize
from stillhouse.quantize.scales import Metric
from stillhouse.stages import Convert
from stillhouse_sam.recipes.tinysam_names import DYNAMIC, INPUTS, OUTPUT, seeds, shipped_sam
from stillhouse_sam.recipes.tinysam_settings import METRICS, TinySamSettings

# a decoder of so few tokens is no faster with integers, and less exact (docs/results/int8-latency)
INTEGERS = ("sam.image_encoder",)
GROSS = 0.5  # of an output's mean size: what integers may be off; their scores say the rest


def _quantize(
    settings: TinySamSettings, name: str, bits: int, metric: Metric, seed: int
) -> Convert:
    return Convert(
        name=name,
        convert=Quantize(
            bits=bits,
            metric=metric,
            samples=settings.calibration,
            candidates=settings.candidates,
            rounds=settings.rounds,
            inputs=INPUTS,
            outputs={"logits": "bernoulli", "iou": "normal"},
        ),
        inputs={"student": shipped_sam(settings, seed), "data": "data.calibration"},
        seed=seed,
    )


def quantized_sams(settings: TinySamSettings) -> list[Convert]:
    stages = [
        _quantize(settings, f"w{bits}-{seed}", bits, "hessian", seed)
        for bits in settings.bits
        for seed in seeds(settings)
    ]
    tried = compared(settings)
    # the Hessian-weighted ones of the first seed are there already
    return stages + [
        _quantize(settings, ref.removesuffix(".model"), bits, metric, 0)
        for (bits, metric), ref in tried.items()
        if metric != "hessian"
    ]


def compared(settings: TinySamSettings) -> dict[tuple[int, Metric], str]:
    """The quantized first student by bits and metric."""
    return {
        (bits, metric): f"w{bits}-0.model" if metric == "hessian" else f"w{bits}-{metric}.model"
        for bits in settings.bits
        for metric in METRICS
        if settings.compared
    }


def integer_sams(settings: TinySamSettings) -> list[Convert]:
    """The quantized student of eight bits as ONNX that runs with integers, and its floats."""
    if not settings.int8:
        return []
    stages: list[Convert] = []
    for seed in seeds(settings):
        photos = {"data": "data.calibration"}
        onnx = ToOnnx(inputs=INPUTS, outputs=OUTPUT, dynamic=DYNAMIC)
        floats = {**photos, "student": shipped_sam(settings, seed)}
        stages.append(Convert(name=f"onnx-{seed}", convert=onnx, inputs=floats))
        found = {**photos, "student": f"w8-{seed}.model"}
        whole = ToIntegers(
            parts=INTEGERS,
            inputs=INPUTS,
            outputs=OUTPUT,
            dynamic=DYNAMIC,
            samples=settings.calibration,
            tolerance=GROSS,
        )
        stages.append(Convert(name=f"int8-{seed}", convert=whole, inputs=found, seed=seed))
    return stages
