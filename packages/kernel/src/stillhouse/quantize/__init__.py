"""Smaller numbers: networks as ONNX files, in int8 after training."""
