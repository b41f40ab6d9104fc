"""What several tests need: pictures, a tiny encoder, a run that is killed."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, Trainer, TrainerCallback

from dcal_hf import DCALForImageClassification


# As a JSON configuration, and without its type as arguments of `ViTConfig`.
TINY_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 8,
}
TINY_VIT = {"model_type": "vit", **TINY_SIZES}


def branches_for(backbone_config: PreTrainedConfig) -> dict[str, tuple[str, ...]]:
    """As a field of `DCALConfig`, all branches that an encoder can have: without CLS there is no GLCA."""
    return {"branches": ("sa", "pwca")} if backbone_config.model_type == "swin" else {}


def shaken(model: torch.nn.Module, spread: float) -> torch.nn.Module:
    """A model in evaluation mode whose initial weights, which barely attend, are spread by noise."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model.eval()


def classifier(backbone_config, **kwargs) -> DCALForImageClassification:
    kwargs = {"num_labels": 5, "local_query_ratio": 0.3, **branches_for(backbone_config), **kwargs}
    # So that a wrong pair or position shows.
    return shaken(DCALForImageClassification.from_backbone(backbone_config, **kwargs), 0.15)


def images(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(4, 3, height, width)


def is_cait(backbone_config: PreTrainedConfig) -> bool:
    """Its heads mix around the softmax: by weights, and over whole attention maps."""
    return getattr(backbone_config, "architecture", "").startswith("cait")


def noise_picture(seed: int | list[int] = 0, width: int = 30, height: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


class _Killed(Exception):
    pass


class _KillAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise _Killed


def train_until_killed(trainer: Trainer, step: int, **kwargs) -> None:
    """Trains until the end of a step and no further, as if the process were killed there."""
    trainer.add_callback(_KillAt(step))
    with pytest.raises(_Killed):
        trainer.train(**kwargs)


class RememberSaved(TrainerCallback):
    """The model's weights at each checkpoint.

    Attributes:
        weights (`dict`): State dicts by step.
    """

    def __init__(self):
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_save(self, args, state, control, model, **kwargs):
        self.weights[state.global_step] = copy_of_weights(model)


def copy_of_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """To the last bit."""
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
