"""DCAL models and their configuration. `save_pretrained` saves these files as the code of a checkpoint."""

from .attention_dcal import top_patches
from .classification_dcal import DCALForImageClassification, DCALImageClassifierOutput
from .configuration_dcal import DCALConfig
from .encoder_dcal import EncoderAdapter
from .families_dcal import register_encoder
from .modeling_dcal import DCALModel, DCALModelOutput, DCALPreTrainedModel
from .reid_dcal import DCALForReID, DCALReIDOutput


__all__ = [
    "DCALConfig",
    "DCALForImageClassification",
    "DCALForReID",
    "DCALImageClassifierOutput",
    "DCALModel",
    "DCALModelOutput",
    "DCALPreTrainedModel",
    "DCALReIDOutput",
    "EncoderAdapter",
    "register_encoder",
    "top_patches",
]
