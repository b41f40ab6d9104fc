"""A Trainer that trains parts of a model: a frozen backbone, layer-wise learning rates, LoRA."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import TrainOutput

from .lora import add_lora, merged_state_dict, save_adapted_layers, with_adapted_layers
from .parameter_groups import parameter_groups, weight_matrix_names
from .resumable_trainer import ResumableTrainer
from .training_args import DCALTrainingArguments


class FineTuningTrainer(ResumableTrainer):
    """`Trainer` with the arguments `freeze_backbone`, `layer_decay`, `lora_rank` and `lora_targets`.

    The backbone is frozen, or has adapters with `lora_rank`, only while `train` runs. Adapters are merged into its
    weights when `train` returns, and in every checkpoint.

    Args:
        model (`DCALPreTrainedModel`, *optional*): Required unless `model_init` is given.
        args (`DCALTrainingArguments`)
        kwargs: As in `transformers.Trainer`.
    """

    args: DCALTrainingArguments

    def __init__(self, model: nn.Module | None, args: DCALTrainingArguments, **kwargs: Any):
        self.has_adapters = False
        super().__init__(model, args, **kwargs)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """As in `transformers.Trainer`; the new model gets adapters like the one it replaces."""
        model = super().call_model_init(trial)
        if self.has_adapters:
            self.adapters = add_lora(model, self.args.lora_rank, self.args.lora_targets)
        return model

    def _train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains with a frozen backbone or with adapters, and leaves as many parameters trainable as before."""
        backbone = self.model.base_model.backbone
        trainable = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
        try:
            if self.args.lora_rank > 0:
                return self._train_adapters(*args, **kwargs)
            return super()._train(*args, **kwargs)
        finally:
            # Not `backbone`: `model_init` makes another one.
            for name, parameter in self.model.base_model.backbone.named_parameters():
                parameter.requires_grad_(name in trainable)

    def _train_adapters(self, *args: Any, **kwargs: Any) -> TrainOutput:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError("LoRA does not train under DeepSpeed or FSDP: start one process per GPU without them.")
        if self.model_init is None:
            self.adapters = add_lora(self.model, self.args.lora_rank, self.args.lora_targets)
        self.has_adapters = True
        try:
            return super()._train(*args, **kwargs)
        finally:
            self.adapters.merge_and_unload()
            self.has_adapters = False
            # They hold the parameters of the adapters, and a further run would train these.
            self.optimizer = self.lr_scheduler = None

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[nn.Module, DataLoader]:
        if self.args.freeze_backbone:
            self.model.base_model.backbone.requires_grad_(False)
        return super()._prepare_for_training(*args, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Excludes biases, norms, CLS and other tokens, position embeddings, layer scales and log-variances."""
        return weight_matrix_names(model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in `transformers.Trainer`, with layer-wise learning rate decay if `layer_decay` is below 1."""
        if self.optimizer is None and self.args.layer_decay < 1:
            model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model))
            kinds = {name: "undecayed" for name, _ in model.named_parameters() if name not in decayed}
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(
                [
                    {
                        "params": group.parameters,
                        "lr": group.scale * self.args.learning_rate,
                        "weight_decay": 0.0 if group.kind == "undecayed" else self.args.weight_decay,
                    }
                    for group in parameter_groups(model, kinds, self.args.layer_decay)
                ],
                **kwargs,
            )
        return super().create_optimizer(model)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.has_adapters:
            super()._save(output_dir, state_dict)
            return
        super()._save(output_dir, merged_state_dict(self.model))
        save_adapted_layers(self.model, self.args.output_dir if output_dir is None else output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # Checkpoints use the original names of ViT weights; only from_pretrained maps them back (transformers#48805).
        model = self.model if model is None else model
        state = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype).state_dict()
        if self.has_adapters:
            state = with_adapted_layers(model, state, resume_from_checkpoint)
        model.load_state_dict(state)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
            return
        self._load_from_checkpoint(self.state.best_model_checkpoint)


__all__ = ["FineTuningTrainer"]
