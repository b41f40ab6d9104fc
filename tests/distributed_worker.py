"""The script that each of the two processes of `test_distributed.py` runs, over gloo."""

import json
import os
import sys

import datasets
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset
from transformers import AutoConfig, PreTrainedConfig, ViTConfig

from dcal_hf import DCALForImageClassification, DCALTrainer, DCALTrainingArguments


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
CONFIG = ViTConfig(intermediate_size=16, **SIZES)


class Random(Dataset):
    """Noise images (3, 16, 16) of three classes, seeded by their index."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": index % 3}


def train_data(size: int) -> datasets.Dataset:
    """The same images in a table, whose classes can be read without the images."""

    def transform(batch: dict[str, list]) -> dict[str, list]:
        samples = [Random(size)[index] for index in batch["index"]]
        return {name: [sample[name] for sample in samples] for name in ("pixel_values", "labels")}

    columns = {"index": range(size), "label": [index % 3 for index in range(size)]}
    return datasets.Dataset.from_dict(columns).with_transform(transform)


class RememberPairs:
    """Records the classes of the pairs (P, 2) at each training step of this process."""

    def __init__(self, model: nn.Module):
        self.classes: list[list[list[int]]] = []
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Tensor]) -> None:
        if "pairs" in kwargs:
            self.classes.append(kwargs["labels"][kwargs["pairs"]].tolist())


def make_trainer(
    output_dir: str,
    branches: str = "sa+glca+pwca",
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
    return DCALTrainer(model, arguments, train_dataset=train_data(16), eval_dataset=Random(22))


def shard_on_the_cpu() -> None:
    """Makes accelerate shard on the CPU over gloo, which it otherwise supports only on accelerators."""
    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def full_parameter(parameter: Tensor) -> Tensor:
    parameter = parameter.detach()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def main(output_dir: str, branches: str, options: str) -> None:
    """Trains, predicts and saves; the first process writes the results to `answer.json`.

    Args:
        options: JSON, for [`make_trainer`]; `resume_from_checkpoint` resumes training, and `config` is a dictionary.
    """
    options = json.loads(options)
    if "config" in options:
        options["config"] = AutoConfig.for_model(**options["config"])
    resume_from_checkpoint = options.pop("resume_from_checkpoint", None)
    if "fsdp" in options:
        shard_on_the_cpu()
    trainer = make_trainer(output_dir, branches, **options)
    pairs = RememberPairs(trainer.model)
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    pairs_of_all = [None, None]
    dist.all_gather_object(pairs_of_all, pairs.classes)
    parameters = [full_parameter(parameter) for parameter in trainer.model.parameters()]
    flat = torch.cat([parameter.flatten() for parameter in parameters])
    both = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    logits = trainer.predict(Random(22)).predictions
    trainer.save_model()
    if trainer.is_world_process_zero():
        answer = {
            "world_size": trainer.args.world_size,
            "steps": trainer.state.global_step,
            "equal": torch.equal(*both),
            "logits": logits.tolist(),
            "sharded": [type(block).__name__ for block in trainer.model.modules() if hasattr(block, "unshard")],
            "pairs": pairs_of_all,
            "unpaired": [line for line in trainer.state.log_history if "unpaired_images" in line],
            "log": [line for line in trainer.state.log_history if "loss" in line],
        }
        with open(os.path.join(output_dir, "answer.json"), "w", encoding="utf-8") as file:
            json.dump(answer, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
    # Otherwise gloo's threads sometimes abort the interpreter at exit.
    dist.destroy_process_group()
