"""The students of sam/tinysam in few bits."""

from stillhouse.export import Axes
from stillhouse.quantize.onnx_qdq import ToIntegers
from stillhouse.quantize.onnx_static import ToOnnx
from stillhouse.quantize.ptq import Quantize
from stillhouse.quantize.scales import Metric
from stillhouse.references import Ref, out
from stillhouse.stages import Convert
from stillhouse_sam.recipes.tinysam_settings import TinySamSettings
from stillhouse_sam.recipes.tinysam_training import masks

INPUTS = ("images", "sizes", "point_coords", "point_labels")
OUTPUT = ("logits", "iou", "embedding")
DYNAMIC: Axes = dict.fromkeys(INPUTS[2:], ("prompts", "points"))
# a decoder of so few tokens is no faster with integers, and less exact (docs/results/int8-latency)
INTEGERS = ("sam.image_encoder",)
GROSS = 0.5  # of an output's mean size: what integers may be off; their scores say the rest


def quantized(
    settings: TinySamSettings, sam: Ref, bits: int, seed: int = 0, metric: Metric = "hessian"
) -> Convert:
    """A student in so many bits, the scales searched by `metric`."""
    return Convert(
        name=f"w{bits}-{seed if metric == 'hessian' else metric}",
        convert=Quantize(
            bits=bits,
            metric=metric,
            samples=settings.calibration,
            candidates=settings.candidates,
            rounds=settings.rounds,
            inputs=INPUTS,
            outputs={"logits": "bernoulli", "iou": "normal"},
        ),
        inputs={"student": sam, "data": masks(settings)["calibration"]},
        seed=seed,
    )


def integers(settings: TinySamSettings, sam: Ref, seed: int = 0) -> tuple[Convert, Convert]:
    """The quantized student of eight bits as ONNX that runs with integers, and its floats."""
    data = {"data": masks(settings)["calibration"]}
    whole = ToIntegers(
        parts=INTEGERS,
        inputs=INPUTS,
        outputs=OUTPUT,
        dynamic=DYNAMIC,
        samples=settings.calibration,
        tolerance=GROSS,
    )
    inputs = {**data, "student": out(quantized(settings, sam, 8, seed))}
    onnx = ToOnnx(inputs=INPUTS, outputs=OUTPUT, dynamic=DYNAMIC)
    return (
        Convert(name=f"int8-{seed}", convert=whole, inputs=inputs, seed=seed),
        Convert(name=f"onnx-{seed}", convert=onnx, inputs={**data, "student": sam}),
    )
