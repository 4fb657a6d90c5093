"""Smaller numbers: networks as ONNX files, in int8 after training."""

from stillhouse.quantize.onnx_static import OnnxNetwork, QuantizeStatic, ToOnnx

__all__ = ["OnnxNetwork", "QuantizeStatic", "ToOnnx"]
