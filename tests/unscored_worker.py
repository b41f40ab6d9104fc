"""The script that each of two processes runs in `test_distributed.py`: an evaluation that cannot be scored."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import ViTConfig, ViTImageProcessor

from dcal_hf import DCALForReID, DCALReIDTrainer, DCALReIDTrainingArguments
from dcal_hf.data import synthetic_reid
from dcal_hf.transforms import EvalTransform, reid_processor

from helpers import TINY_SIZES


def main(folder: str) -> None:
    """Writes the error of each process to a file named by its rank. No query has a match in the gallery."""
    model = DCALForReID.from_backbone(ViTConfig(image_size=16, **TINY_SIZES), num_labels=2)
    dataset = synthetic_reid(2, 2, 2, 2, 2, 16)
    strangers = dataset["query"].map(lambda row: {"identity": row["identity"] + 100})
    transform = EvalTransform(reid_processor(ViTImageProcessor(), (16, 16)))
    sets = {"query": strangers.with_transform(transform), "gallery": dataset["gallery"].with_transform(transform)}
    arguments = DCALReIDTrainingArguments(folder, use_cpu=True, disable_tqdm=True)
    try:
        DCALReIDTrainer(model, arguments, eval_dataset=sets).evaluate()
    except ValueError as error:
        Path(folder, os.environ["RANK"]).write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
    dist.destroy_process_group()
