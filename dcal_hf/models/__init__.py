"""DCAL's models and their configuration, in flat files that are saved with a checkpoint as its code."""

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
