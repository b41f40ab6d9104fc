"""The families of encoders that DCAL supports, by model type. `encoder_dcal` explains how to write an adapter."""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from .cait_dcal import CaiTAdapter
from .clip_dcal import CLIPAdapter
from .dinov2_dcal import DINOv2Adapter, DINOv2WithRegistersAdapter
from .dinov3_dcal import DINOv3Adapter
from .encoder_dcal import EncoderAdapter
from .eva_dcal import EvaAdapter
from .loading_dcal import UnknownEncoderError
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


def register_encoder(model_type: str, adapter: type[EncoderAdapter], exist_ok: bool = False) -> None:
    """Adds a family of encoders. Register it again before loading a checkpoint with such an encoder.

    Args:
        model_type (`str`):
            `model_type` of the encoder's configuration. If transformers does not have it, its classes must be
            registered there as well (`AutoConfig.register`, `AutoModel.register`).
        adapter (`type[EncoderAdapter]`): Its adapter; `encoder_dcal` explains what it must define.
        exist_ok (`bool`, *optional*, defaults to `False`): Whether to replace an adapter of this type.

    Raises:
        TypeError: If `adapter` is not a subclass of [`EncoderAdapter`].
        ValueError: If the type already has an adapter, unless `exist_ok`.
    """
    if not (isinstance(adapter, type) and issubclass(adapter, EncoderAdapter)):
        raise TypeError(f"The adapter of '{model_type}' must be a subclass of EncoderAdapter, got {adapter!r}.")
    if model_type in ADAPTERS and not exist_ok:
        raise ValueError(
            f"There is an adapter for '{model_type}' already, {ADAPTERS[model_type].__name__}: pass exist_ok=True to "
            "replace it."
        )
    ADAPTERS[model_type] = adapter


def find_adapter(config: PreTrainedConfig) -> type[EncoderAdapter]:
    """Finds the adapter class for the configuration of an encoder; completes the configuration of a timm encoder.

    Raises:
        ValueError: If the encoder is unknown or not supported, or its configuration is unsafe to build.
    """
    family = config.model_type
    if family == TIMM:
        families = {name: adapter for name, adapter in ADAPTERS.items() if issubclass(adapter, TimmAdapter)}
        family = complete_timm_config(config, families)
    if family not in ADAPTERS:
        raise UnknownEncoderError(
            f"DCAL has no adapter for the encoder '{family}': call dcal_hf.register_encoder('{family}', ...) with one "
            f"first, also before loading a checkpoint, or use one of {', '.join(ADAPTERS)}."
        )
    return ADAPTERS[family]


def read_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Adds the fields that transformers requires to read a backbone's configuration from a dictionary.

    Raises:
        ValueError: If neither transformers nor a registration knows the type of the backbone.
    """
    model_type = fields.get("model_type", "vit")
    if model_type not in CONFIG_MAPPING:
        raise UnknownEncoderError(
            f"transformers does not know the encoder '{model_type}': before loading, call AutoConfig.register, "
            "AutoModel.register and dcal_hf.register_encoder with its configuration, model and adapter."
        )
    return ADAPTERS.get(fields.get("model_type"), EncoderAdapter).read_fields(fields)


__all__ = ["ADAPTERS", "find_adapter", "read_fields", "register_encoder"]
