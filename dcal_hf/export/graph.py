"""The graph that is exported: a DCAL model whose input is converted to pixel values and whose outputs are a tuple."""

from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BaseImageProcessor

from ..models import DCALForImageClassification
from ..models.modeling_dcal import DCALPreTrainedModel


InputKind = Literal["pixel_values", "uint8", "tracker"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def available_outputs(model: DCALPreTrainedModel) -> list[str]:
    """Names of the outputs that a graph of this model can have.

    `embeddings` (B, D), as in `AutoModel`; `rollout` (B, patches), if the encoder has a CLS token. Classifiers also
    have `probabilities` and `logits` (B, classes) of all branches together, and `sa_probabilities`, `sa_logits`,
    `glca_probabilities`, `glca_logits` of those branches that run at inference.
    """
    names = []
    if isinstance(model, DCALForImageClassification):
        for branch in ("", *(f"{name}_" for name in model.config.inference_branches)):
            names += [f"{branch}probabilities", f"{branch}logits"]
    return [*names, "embeddings", *(["rollout"] if model.config.has_cls else [])]


def choose_outputs(model: DCALPreTrainedModel, outputs: Sequence[str] | None, input_kind: InputKind) -> list[str]:
    """The names of the outputs, or by default one; raises a `ValueError` if the model has no such outputs."""
    available = available_outputs(model)
    if outputs is None:
        outputs = ["embeddings" if input_kind == "tracker" else available[0]]
    unknown = [name for name in outputs if name not in available]
    if unknown or not outputs or len(set(outputs)) < len(outputs):
        raise ValueError(f"The outputs {list(outputs)} must be some of {', '.join(available)}, each once.")
    if input_kind == "tracker" and outputs[0] != "embeddings":
        raise ValueError(f"A tracker reads the first output, which must be embeddings, not {outputs[0]}.")
    return list(outputs)


def measure_normalisation(processor: BaseImageProcessor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Measures the values of black and white after a processor, each of shape (3, 1, 1).

    Raises:
        ValueError: If the processor does not output images of this size (height, width).
    """
    height, width = size
    pictures = [Image.new("RGB", (width, height), color) for color in ("black", "white")]
    values = processor(pictures, return_tensors="pt")["pixel_values"]
    if tuple(values.shape[2:]) != size:
        raise ValueError(
            f"The image processor outputs {values.shape[2]} x {values.shape[3]} pixels, and the model takes {height} "
            f"x {width}: give the processor that is saved with it."
        )
    black, white = values[:, :, height // 2, width // 2].float().unsqueeze(-1).unsqueeze(-1)
    return black, white


class OnnxGraph(nn.Module):
    """A model whose input is converted to pixel values and whose outputs are a tuple."""

    def __init__(
        self,
        model: DCALPreTrainedModel,
        outputs: list[str],
        input_kind: InputKind,
        black: Tensor,
        white: Tensor,
        temperature: float = 1.0,
    ):
        super().__init__()
        self.model = model
        self.outputs = outputs
        self.input_kind = input_kind
        self.black, self.white = black, white
        self.temperature = temperature
        scale, shift = torch.ones_like(black), torch.zeros_like(black)
        if input_kind == "uint8":
            scale, shift = (white - black) / 255, black
        elif input_kind == "tracker":
            mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
            scale, shift = (white - black) * std, (white - black) * mean + black
        # Rounding makes equal constants differ slightly.
        self.converts = not (torch.allclose(scale, scale.new_tensor(1.0)) and shift.abs().max() < 1e-5)
        self.register_buffer("scale", scale.to(model.device))
        self.register_buffer("shift", shift.to(model.device))

    @property
    def input_name(self) -> str:
        """The name of the input of the graph."""
        return "pixel_values" if self.input_kind == "pixel_values" else "images"

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        if self.input_kind == "uint8":
            pixels = pixels.permute(0, 3, 1, 2).to(self.scale.dtype)
        return self.read(pixels * self.scale + self.shift if self.converts else pixels)

    def read(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The outputs for pixel values (B, 3, height, width)."""
        fields = self.model(pixel_values, output_rollout="rollout" in self.outputs)
        if self.temperature != 1:
            fields.logits = fields.logits / self.temperature
        return tuple(
            getattr(fields, name.replace("probabilities", "logits")).float().softmax(dim=-1)
            if name.endswith("probabilities")
            else getattr(fields, name)
            for name in self.outputs
        )

    def pixels(self, pixel_values: Tensor) -> Tensor:
        """The graph input that corresponds to these pixel values."""
        if not self.converts and self.input_kind != "uint8":
            return pixel_values
        pixels = (pixel_values - self.shift) / self.scale
        if self.input_kind == "tracker":
            return pixels
        return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


__all__ = ["InputKind", "OnnxGraph", "available_outputs", "choose_outputs", "measure_normalisation"]
