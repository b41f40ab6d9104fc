"""Helpers for several test files: images, a tiny encoder, a training that is killed."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, Trainer, TrainerCallback

from dcal_hf import DCALForImageClassification


# Arguments of `ViTConfig`, and, with the model type, a JSON configuration.
TINY_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 8,
}
TINY_VIT = {"model_type": "vit", **TINY_SIZES}


def branches_for(backbone_config: PreTrainedConfig) -> dict[str, tuple[str, ...]]:
    """All branches that an encoder supports, as arguments of `DCALConfig`. GLCA needs a CLS token."""
    return {"branches": ("sa", "pwca")} if backbone_config.model_type == "swin" else {}


def add_noise(model: torch.nn.Module, spread: float) -> torch.nn.Module:
    """Adds noise to the initial weights, whose attention is nearly uniform. Returns the model in evaluation mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model.eval()


def classifier(backbone_config, **kwargs) -> DCALForImageClassification:
    kwargs = {"num_labels": 5, "local_query_ratio": 0.3, **branches_for(backbone_config), **kwargs}
    # With the local readout, the selection matters, too.
    kwargs = {"glca_readout": "local", **kwargs}
    # The noise makes a wrong pair or position visible in the outputs.
    return add_noise(DCALForImageClassification.from_backbone(backbone_config, **kwargs), 0.15)


def images(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(4, 3, height, width)


def is_cait(backbone_config: PreTrainedConfig) -> bool:
    """Whether the encoder is CaiT, whose heads are mixed before and after the softmax."""
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
    """Trains up to the end of a step, as if the process were killed there."""
    trainer.add_callback(_KillAt(step))
    with pytest.raises(_Killed):
        trainer.train(**kwargs)


class RememberSaved(TrainerCallback):
    """Copies the weights of the model at each checkpoint.

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
    """Asserts that weights are equal bit for bit."""
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
