"""Models for other programs: one graph from pixels or features to probabilities, in ONNX or for torch."""

from rada.exporting.export import ExportSettings, export_model
from rada.exporting.preprocessing import Preprocessing, describe_preprocessing

__all__ = ["ExportSettings", "Preprocessing", "describe_preprocessing", "export_model"]
