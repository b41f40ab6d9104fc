"""What each of two processes runs in `test_distributed.py`, over gloo, as `torchrun` and `accelerate launch` do."""

import json
import os
import sys

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset
from transformers import AutoConfig, PreTrainedConfig, ViTConfig

from dcal_hf import DCALForImageClassification, DCALTrainer, DCALTrainingArguments


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
CONFIG = ViTConfig(intermediate_size=16, **SIZES)


class Random(Dataset):
    """Noise images (3, 16, 16) of three classes, each by its number."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": index % 3}


class NeighbourTrainer(DCALTrainer):
    """Pairs images 2i and 2i + 1 of a batch: the same pairs however the batch is cut in even parts."""

    def pairs(self, labels: Tensor) -> dict[str, Tensor]:
        return {"pair_index": torch.arange(len(labels)) ^ 1} if self.model.config.uses_pwca else {}


def make_trainer(
    output_dir: str,
    branches: str = "sa+glca+pwca",
    trainer_class: type[DCALTrainer] = NeighbourTrainer,
    config: PreTrainedConfig = CONFIG,
    **options,
) -> DCALTrainer:
    torch.manual_seed(0)
    model = DCALForImageClassification.from_backbone(
        config, 16, num_labels=3, local_query_ratio=0.5, branches=branches.split("+")
    )
    arguments = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **options,
    }
    arguments = DCALTrainingArguments(output_dir, **arguments)
    return trainer_class(model, arguments, train_dataset=Random(16), eval_dataset=Random(22))


def shard_on_the_cpu() -> None:
    """Lets accelerate shard over gloo, which it offers accelerators alone and otherwise ignores."""
    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def whole(parameter: Tensor) -> Tensor:
    parameter = parameter.detach()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def main(output_dir: str, branches: str, options: str) -> None:
    """Trains, predicts and saves; the first process writes what it saw to `answer.json`.

    Args:
        options: JSON, for [`make_trainer`]; with `resume_from_checkpoint`, training goes on from there, with
            `random_pairs` pairs are the trainer's own, and `config` is a dictionary.
    """
    options = json.loads(options)
    if "config" in options:
        options["config"] = AutoConfig.for_model(**options["config"])
    resume_from_checkpoint = options.pop("resume_from_checkpoint", None)
    trainer_class = DCALTrainer if options.pop("random_pairs", False) else NeighbourTrainer
    if "fsdp" in options:
        shard_on_the_cpu()
    trainer = make_trainer(output_dir, branches, trainer_class, **options)
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    parameters = [whole(parameter) for parameter in trainer.model.parameters()]
    flat = torch.cat([parameter.flatten() for parameter in parameters])
    both = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    logits = trainer.predict(Random(22)).predictions[0]
    trainer.save_model()
    if trainer.is_world_process_zero():
        answer = {
            "world_size": trainer.args.world_size,
            "steps": trainer.state.global_step,
            "equal": torch.equal(*both),
            "logits": logits.tolist(),
            "sharded": [type(block).__name__ for block in trainer.model.modules() if hasattr(block, "unshard")],
            "log": [line for line in trainer.state.log_history if "loss" in line],
        }
        with open(os.path.join(output_dir, "answer.json"), "w", encoding="utf-8") as file:
            json.dump(answer, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
