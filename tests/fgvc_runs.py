"""A folder of images and a configuration file for tests of run_fgvc.py."""

from pathlib import Path

import yaml

from helpers import TINY_VIT, noise_picture


OPTIONS = {
    "backbone_config": TINY_VIT,
    "image_size": 16,
    "local_query_ratio": 0.5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "attention_images": 0,
}


def make_folder(root: Path) -> Path:
    """Three classes, with grey, palette and transparent images, a text file, and a class of one image."""
    modes = {("train", "wren", 0): "L", ("train", "wren", 1): "P", ("train", "robin", 0): "RGBA"}
    counts = {("train", "wren"): 5, ("train", "robin"): 5, ("train", "finch"): 1}
    counts |= {("validation", "wren"): 3, ("validation", "robin"): 2, ("test", "wren"): 2, ("test", "finch"): 1}
    for (split, name), count in counts.items():
        folder = root / split / name
        folder.mkdir(parents=True)
        for number in range(count):
            mode = modes.get((split, name, number), "RGB")
            noise_picture(number).convert(mode).save(folder / f"{number}.png")
    (root / "train" / "wren" / "notes.txt").write_text("not an image")
    return root


def config_file(tmp_path: Path, **options: object) -> str:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**OPTIONS, "output_dir": str(tmp_path / "out"), **options}))
    return str(config)
