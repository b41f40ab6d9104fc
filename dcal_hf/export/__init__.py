"""ONNX files of DCAL models, for any batch size, compared with torch before they appear. Needs the extra `export`.

The graph takes `pixel_values`, or normalises the pixels itself. A JSON file beside it says what goes in and what comes
out. `torch.export.export` needs nothing of this: it takes any DCAL model as it is.
"""

from .graph import available_outputs
from .onnx_files import OnnxExport, export_onnx


__all__ = ["OnnxExport", "available_outputs", "export_onnx"]
