"""Two processes over gloo, as `torchrun` and `accelerate launch` start them."""

import json
import subprocess
import sys

import pytest


WORKER = """
import json, sys
import torch
import torch.distributed as dist
from torch.utils.data import Dataset
from transformers import ViTConfig
from dcal_hf import DCALForImageClassification, DCALTrainer, DCALTrainingArguments

class Random(Dataset):
    def __len__(self):
        return 22
    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": index % 3}

output_dir, branches, options = sys.argv[1], sys.argv[2].split("+"), json.loads(sys.argv[3])
torch.manual_seed(0)
sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
config = ViTConfig(image_size=16, patch_size=8, **sizes)
model = DCALForImageClassification.from_backbone(config, num_labels=3, local_query_ratio=0.5, branches=branches)
before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
arguments = DCALTrainingArguments(
    output_dir, per_device_train_batch_size=4, num_train_epochs=2, learning_rate=1e-2, logging_steps=1,
    save_strategy="no", use_cpu=True, disable_tqdm=True, ddp_find_unused_parameters=False, **options,
)
trainer = DCALTrainer(model, arguments, train_dataset=Random(), eval_dataset=Random())
trainer.train()
flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
both = [torch.empty_like(flat) for _ in range(2)]
dist.all_gather(both, flat)
predictions = trainer.predict(Random()).predictions
logits = torch.tensor(predictions[0])
if trainer.is_world_process_zero():
    model = trainer.model.eval()
    with torch.no_grad():
        alone = model(torch.stack([Random()[i]["pixel_values"] for i in range(22)])).logits
    print(json.dumps({
        "world_size": arguments.world_size,
        "steps": trainer.state.global_step,
        "equal": torch.equal(*both),
        "moved": [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])],
        "names": list(before),
        "prediction_error": (logits - alone).abs().max().item(),
        "log": trainer.state.log_history[0],
    }))
"""


def is_trained(name: str, options: dict) -> bool:
    if ".backbone." not in name or not options:
        return True
    return "lora_rank" in options and ".attention." in name and name.endswith("weight")


@pytest.mark.parametrize(
    ("branches", "options"),
    [
        ("sa+glca+pwca", {}),
        ("glca", {}),
        ("sa+glca+pwca", {"freeze_backbone": True}),
        ("sa+glca+pwca", {"lora_rank": 2}),
    ],
)
def test_two_processes_keep_equal_weights(tmp_path, branches, options):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = [str(script), str(tmp_path / "out"), branches, json.dumps(options)]
    run = subprocess.run([*launcher, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (line,) = [line for line in run.stdout.splitlines() if line.startswith('{"world_size"')]
    answer = json.loads(line)
    assert (answer["world_size"], answer["steps"]) == (2, 6)
    assert answer["equal"]
    assert answer["moved"] == [name for name in answer["names"] if is_trained(name, options)]
    assert answer["prediction_error"] < 1e-5
    parts = [value for name, value in answer["log"].items() if name.startswith("loss_")]
    assert len(parts) == len(branches.split("+"))
    # At the first step every log-variance is 0: the logged means over both processes add up to the logged total.
    assert answer["log"]["loss"] == pytest.approx(sum(parts) / (2 if len(parts) > 1 else 1), abs=2e-3)
