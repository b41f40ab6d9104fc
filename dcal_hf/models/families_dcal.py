"""The families of encoders that DCAL supports, by model type. `encoder_dcal` explains how to add one."""

from typing import Any

from transformers import PreTrainedConfig

from .cait_dcal import CaiTAdapter
from .clip_dcal import CLIPAdapter
from .dinov2_dcal import DINOv2Adapter, DINOv2WithRegistersAdapter
from .dinov3_dcal import DINOv3Adapter
from .encoder_dcal import EncoderAdapter
from .eva_dcal import EvaAdapter
from .swin_dcal import SwinAdapter
from .timm_dcal import TIMM, TimmAdapter, complete_timm_config
from .vit_dcal import DeiTAdapter, ViTAdapter


# All timm architectures share one model type in transformers. The other keys with that prefix are values of the
# configuration's `timm_family`.
ADAPTERS: dict[str, type[EncoderAdapter]] = {
    "vit": ViTAdapter,
    "deit": DeiTAdapter,
    "dinov2": DINOv2Adapter,
    "dinov2_with_registers": DINOv2WithRegistersAdapter,
    "dinov3_vit": DINOv3Adapter,
    "clip_vision_model": CLIPAdapter,
    "swin": SwinAdapter,
    TIMM: TimmAdapter,
    "timm_cait": CaiTAdapter,
    "timm_eva": EvaAdapter,
}


def find_adapter(config: PreTrainedConfig) -> type[EncoderAdapter]:
    """Finds the adapter class for the configuration of an encoder; completes the configuration of a timm encoder.

    Raises:
        ValueError: If the encoder is not supported, or its configuration is unsafe to build.
    """
    family = config.model_type
    if family == TIMM:
        families = {name: adapter for name, adapter in ADAPTERS.items() if issubclass(adapter, TimmAdapter)}
        family = complete_timm_config(config, families)
    if family not in ADAPTERS:
        raise ValueError(
            f"DCAL cannot use a backbone of type '{family}': pairs of images cannot be passed to its attention. Use "
            f"one of {', '.join(ADAPTERS)}."
        )
    return ADAPTERS[family]


def read_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Adds the fields that transformers requires to read a backbone's configuration from a dictionary."""
    return ADAPTERS.get(fields.get("model_type"), EncoderAdapter).read_fields(fields)


__all__ = ["ADAPTERS", "find_adapter", "read_fields"]
