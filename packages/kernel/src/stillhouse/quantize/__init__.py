"""Smaller numbers: networks as ONNX files, in int8 after training, and rounded inside torch."""

from stillhouse.quantize.fake import fake_quantize, quantize_gelu, quantize_softmax
from stillhouse.quantize.scales import Op, Scales, search_scales

__all__ = [
    "Op",
    "Scales",
    "fake_quantize",
    "quantize_gelu",
    "quantize_softmax",
    "search_scales",
]
