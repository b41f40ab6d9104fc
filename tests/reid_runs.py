"""Images in Market-1501's layout and a configuration file for tests of run_reid.py."""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from helpers import TINY_VIT


TINY = {**TINY_VIT, "initializer_range": 0.3}
OPTIONS = {
    "backbone_config": TINY,
    "image_size": [16, 8],
    "dataset_name": "market1501",
    "padding": 2,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "instances_per_identity": 2,
    "use_cpu": True,
    "ranked_queries": 0,
}


def save_noise(path: Path, identity: int, number: int) -> None:
    """Noise on a shade of the identity, so that all images differ."""
    rng = np.random.default_rng([identity, number])
    pixels = np.random.default_rng(identity).integers(120, 136, 3) + rng.integers(-99, 100, (24, 12, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def make_market(root: Path, first: int = 1) -> Path:
    """Market-1501's layout: 4 training and 3 test identities of two cameras each, distractors and junk."""
    for identity in range(first, first + 7):
        split = "bounding_box_train" if identity < first + 4 else "bounding_box_test"
        for number in range(6):
            save_noise(root / split / f"{identity:04}_c{number % 2 + 1}s1_{number:06}_00.jpg", identity, number)
        if identity >= first + 4:
            save_noise(root / "query" / f"{identity:04}_c1s1_{9:06}_00.jpg", identity, 9)
    save_noise(root / "query" / f"{first + 90:04}_c1s1_000009_00.jpg", first + 90, 9)
    for number in range(3):
        save_noise(root / "bounding_box_test" / f"0000_c3s1_{number:06}_00.jpg", 900 + number, number)
        save_noise(root / "bounding_box_test" / f"-1_c3s1_{number:06}_00.jpg", 950 + number, number)
    return root


def config_file(tmp_path: Path, **options: object) -> str:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**OPTIONS, "output_dir": str(tmp_path / "out"), **options}))
    return str(config)
