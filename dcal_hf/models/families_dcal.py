"""The families of encoders that DCAL knows, by model type. How to add one is told in `encoder_dcal`."""

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


# timm's architectures have one model type in transformers: the others of that prefix are `timm_family` of a
# configuration.
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
    """The family of an encoder, by its configuration, which is completed if timm knows more of it.

    Raises:
        ValueError: If DCAL does not know it, or must not build it.
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
    """A backbone's configuration as a dictionary, with what transformers' reader of it takes for given."""
    return ADAPTERS.get(fields.get("model_type"), EncoderAdapter).read_fields(fields)


__all__ = ["ADAPTERS", "find_adapter", "read_fields"]
