"""Trainers and their arguments, with what they need: batches, partners for PWCA, parameter groups, LoRA, sharding."""

from .pairs import DistractedDataset, PairCollator, PairSampler
from .reid_trainer import DCALReIDTrainer, column, protocol_columns
from .reid_training_args import DCALReIDTrainingArguments
from .samplers import IdentityBalancedSampler
from .trainer import DCALTrainer, last_checkpoint
from .training_args import DCALTrainingArguments


__all__ = [
    "DCALReIDTrainer",
    "DCALReIDTrainingArguments",
    "DCALTrainer",
    "DCALTrainingArguments",
    "DistractedDataset",
    "IdentityBalancedSampler",
    "PairCollator",
    "PairSampler",
    "column",
    "last_checkpoint",
    "protocol_columns",
]
