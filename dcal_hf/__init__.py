"""Dual Cross-Attention Learning (https://huggingface.co/papers/2205.02151) for Hugging Face transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from .models import (
    DCALConfig,
    DCALForImageClassification,
    DCALForReID,
    DCALImageClassifierOutput,
    DCALModel,
    DCALModelOutput,
    DCALReIDOutput,
    EncoderAdapter,
    register_encoder,
)
from .training import (
    DCALReIDTrainer,
    DCALReIDTrainingArguments,
    DCALTrainer,
    DCALTrainingArguments,
    register_pair_strategy,
)
from .version import __version__


AutoConfig.register("dcal", DCALConfig)
AutoModel.register(DCALConfig, DCALModel)
AutoModelForImageClassification.register(DCALConfig, DCALForImageClassification)
# Saves the code with each checkpoint, which then loads with `trust_remote_code=True` where dcal_hf is not installed.
DCALConfig.register_for_auto_class()
DCALModel.register_for_auto_class("AutoModel")
DCALForImageClassification.register_for_auto_class("AutoModelForImageClassification")
# There is no Auto class for Re-ID. This one only saves the code with the checkpoint; load it with AutoModel.
DCALForReID.register_for_auto_class("AutoModelForPreTraining")

__all__ = [
    "DCALConfig",
    "DCALForImageClassification",
    "DCALForReID",
    "DCALImageClassifierOutput",
    "DCALModel",
    "DCALModelOutput",
    "DCALReIDOutput",
    "DCALReIDTrainer",
    "DCALReIDTrainingArguments",
    "DCALTrainer",
    "DCALTrainingArguments",
    "EncoderAdapter",
    "__version__",
    "register_encoder",
    "register_pair_strategy",
]
