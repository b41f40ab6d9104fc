"""Trainers and their arguments, samplers, pairs for PWCA, parameter groups, LoRA and sharding."""

from ..classes import class_names, has_class_names, name_classes
from .checkpoints import check_resumable, check_unlocked, checkpoint_folders, last_checkpoint
from .class_balance import named_weights
from .classifiers import set_classes
from .inputs import check_best_metric, check_distractors
from .pairs import DistractedDataset, PairCollator, register_pair_strategy
from .reid_trainer import DCALReIDTrainer, reid_metric_names
from .reid_training_args import DCALReIDTrainingArguments
from .samplers import IdentityBalancedSampler, PairSampler
from .trainer import DCALTrainer
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
    "check_best_metric",
    "check_distractors",
    "check_resumable",
    "check_unlocked",
    "checkpoint_folders",
    "class_names",
    "has_class_names",
    "last_checkpoint",
    "name_classes",
    "named_weights",
    "reid_metric_names",
    "register_pair_strategy",
    "set_classes",
]
