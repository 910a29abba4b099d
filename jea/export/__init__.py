"""ONNX files of trained networks: standard operators of opset 17, BatchNorm folded, one function per family of models.

    jea export CONFIG OUT.onnx --weights FILE      or      jea.export.export_onnx(model, "out.onnx")
"""
from jea.export.onnx_file import export_onnx

__all__ = ["export_onnx"]
