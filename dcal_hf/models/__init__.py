"""DCAL models and their configuration. `save_pretrained` saves these files as the code of a checkpoint."""

from .attention_dcal import top_patches
from .classification_dcal import DCALForImageClassification, DCALImageClassifierOutput
from .configuration_dcal import DCALConfig
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
    "top_patches",
]
