"""Smaller numbers: networks as ONNX files, in int8 after training, and rounded inside torch."""

from stillhouse.quantize.fake import fake_quantize, quantize_gelu, quantize_softmax

__all__ = ["fake_quantize", "quantize_gelu", "quantize_softmax"]
