"""What the commands and programs of README.md find around them: small folders of images and tiny models."""

from pathlib import Path

import faiss
import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTImageProcessor, ViTModel, ViTMSNConfig, ViTMSNModel

import dcal_hf.data.fgvc
import dcal_hf.data.reid
from dcal_hf import DCALForImageClassification, DCALForReID
from dcal_hf.data import synthetic_fgvc, synthetic_reid
from dcal_hf.retrieval import GalleryIndex
from dcal_hf.transforms import fine_grained_processor, reid_processor

from helpers import TINY_SIZES, noise_picture


CLASSES = ("finch", "robin", "wren")
ENCODERS = {
    "facebook/deit-tiny-patch16-224": (ViTConfig, ViTModel),
    "google/vit-base-patch16-224-in21k": (ViTConfig, ViTModel),
    "facebook/dinov2-small": (Dinov2Config, Dinov2Model),
    "facebook/vit-msn-small": (ViTMSNConfig, ViTMSNModel),
}


def make_world(root: Path) -> None:
    """Folders of images, and plain encoders where the ids of the Hub are paths of folders."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "recipes").symlink_to(Path(__file__).parents[1] / "recipes")
    for split, count in (("train", 4), ("validation", 2)):
        save_individuals(root / "birds" / split, CLASSES, count)
    save_individuals(root / "turtles", [f"turtle {number}" for number in range(16)], 4)
    for number, name in enumerate(["photographs/1.jpg", "photographs/2.jpg", "sparrow", "who", "a", "b"]):
        path = (root / name).with_suffix(".jpg")
        path.parent.mkdir(exist_ok=True)
        noise_picture(number, 60, 48).save(path)
    for folder in ("Market-1501-v15.09.15", "omniglot-reid"):
        save_market(root / folder)
    for name, (config, model) in ENCODERS.items():
        sizes = {**TINY_SIZES, "patch_size": 16, "image_size": 32}
        model(config(**sizes)).save_pretrained(root / name)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / name)


def save_individuals(root: Path, names: list[str] | tuple[str, ...], count: int) -> None:
    for identity, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(count):
            noise_picture([identity, number], 60, 48).save(root / name / f"{number}.jpg")


def save_market(root: Path) -> None:
    """Market-1501's layout: 16 identities to train on, as many as a batch has, and 2 to search for."""
    for identity in range(1, 19):
        for number in range(4):
            split = "bounding_box_train" if identity <= 16 else "bounding_box_test" if number else "query"
            (root / split).mkdir(parents=True, exist_ok=True)
            path = root / split / f"{identity:04}_c{number % 2 + 1}s1_{number:06}_00.jpg"
            noise_picture([identity, number], 32, 64).save(path)


def save_trained(root: Path) -> None:
    """What the training commands leave behind."""
    torch.manual_seed(0)
    encoder = ViTConfig(**TINY_SIZES, image_size=32)
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    birds = DCALForImageClassification.from_backbone(encoder, **labels)
    for model, prepare, name in (
        (birds, fine_grained_processor, "birds"),
        (DCALForReID.from_backbone(encoder, num_labels=4), reid_processor, "reid"),
    ):
        model.save_pretrained(root / "out" / name)
        prepare(ViTImageProcessor(), (32, 32)).save_pretrained(root / "out" / name)


def few_images() -> None:
    """`--dataset_name drawn` of a few images."""
    dcal_hf.data.fgvc.synthetic_fgvc = lambda: synthetic_fgvc(20, 10, 10)
    dcal_hf.data.reid.synthetic_reid = lambda: synthetic_reid(16, 5, 3, 3, 4)


def names_of_programs() -> dict[str, object]:
    """What the programs use and the text around them explains."""

    def read(batch: dict[str, list]) -> dict[str, list]:
        return {"pixel_values": [torch.randn(3, 448, 448) for _ in batch["label"]], "labels": batch["label"]}

    split = Dataset.from_dict({"label": [0, 1]}).with_transform(read)
    galleries = [
        GalleryIndex.from_embeddings(
            np.eye(2, dtype=np.float32), Dataset.from_dict({"image": ["a.jpg", "b.jpg"]}), model_id="model"
        )
        for _ in range(2)
    ]
    names = {"image": Image.new("RGB", (60, 48)), "train": split, "validation": split}
    return {**names, "faiss": faiss, "galleries": galleries}
