"""Dual Cross-Attention Learning (https://huggingface.co/papers/2205.02151) for Hugging Face transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from .configuration_dcal import DCALConfig
from .modeling_dcal import DCALForImageClassification, DCALImageClassifierOutput, DCALModel, DCALModelOutput
from .trainer import DCALTrainer
from .training_args import DCALTrainingArguments
from .version import __version__


AutoConfig.register("dcal", DCALConfig)
AutoModel.register(DCALConfig, DCALModel)
AutoModelForImageClassification.register(DCALConfig, DCALForImageClassification)
# Checkpoints carry their code: they load with `trust_remote_code=True` where dcal_hf is not installed.
DCALConfig.register_for_auto_class()
DCALModel.register_for_auto_class("AutoModel")
DCALForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = [
    "DCALConfig",
    "DCALForImageClassification",
    "DCALImageClassifierOutput",
    "DCALModel",
    "DCALModelOutput",
    "DCALTrainer",
    "DCALTrainingArguments",
    "__version__",
]
