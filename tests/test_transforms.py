import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    DeiTImageProcessor,
    DINOv3ViTImageProcessor,
    ViTImageProcessor,
)

from dcal_hf.transforms import (
    EvalTransform,
    ReIDTrainTransform,
    SeededDataset,
    TrainTransform,
    fine_grained_processor,
)


def picture(width=80, height=60, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "kind", [ViTImageProcessor, DeiTImageProcessor, BitImageProcessor, CLIPImageProcessor, DINOv3ViTImageProcessor]
)
def test_the_saved_processor_equals_the_evaluation_transform(tmp_path, kind):
    """Resize to 550/448 of the input, centre crop and normalise, against PIL and NumPy."""
    processor = fine_grained_processor(kind(), (48, 32))
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    (pixels,) = EvalTransform(loaded)({"image": [picture()], "label": [3]})["pixel_values"]

    resized = picture().resize((39, 59), Image.Resampling(int(processor.resample)))
    cropped = np.asarray(resized, dtype=np.float32)[5:53, 3:35] / 255
    expected = (cropped - np.array(processor.image_mean)) / np.array(processor.image_std)
    assert pixels.shape == (3, 48, 32)
    # torchvision and PIL round an interpolated pixel differently.
    np.testing.assert_allclose(pixels.numpy().transpose(1, 2, 0), expected, atol=0.03)


def test_the_processor_is_not_modified():
    processor = ViTImageProcessor()
    fine_grained_processor(processor, (48, 32))
    assert processor.size["height"] == 224 and not processor.do_center_crop


def test_training_crops_are_windows_of_the_resized_image_flipped_or_not():
    processor = fine_grained_processor(ViTImageProcessor(), (8, 8), resize_ratio=1.25)
    transform = TrainTransform(processor)
    batch = transform({"image": [picture()] * 60, "label": list(range(60))})
    resized = torch.tensor(np.asarray(picture().resize((10, 10), Image.Resampling(int(processor.resample)))))
    resized = (resized.permute(2, 0, 1) / 255 - 0.5) / 0.5
    windows = [resized[:, y:y + 8, x:x + 8] for y in range(3) for x in range(3)]
    windows += [window.flip(-1) for window in windows]
    matches = [
        [i for i, window in enumerate(windows) if torch.allclose(pixels, window, atol=0.02)]
        for pixels in batch["pixel_values"]
    ]
    assert all(len(match) == 1 for match in matches)
    assert len({match[0] for match in matches}) > 9
    assert batch["labels"] == list(range(60))


def test_without_a_centre_crop_training_images_are_resized():
    """As with the processor of a Re-ID checkpoint."""
    transform = TrainTransform(ViTImageProcessor(size={"height": 8, "width": 6}))
    assert transform({"image": [picture()], "label": [0]})["pixel_values"][0].shape == (3, 8, 6)


@pytest.mark.parametrize("transform", [TrainTransform, ReIDTrainTransform])
def test_a_processor_without_height_and_width_is_rejected(transform):
    with pytest.raises(ValueError, match="^The image processor has the size {'shortest_edge': 224}, without height"):
        transform(CLIPImageProcessor())


@pytest.mark.parametrize(
    "augmentation", [{"auto_augment": "rand-m9-mstd0.5-inc1"}, {"color_jitter": 0.4}, {"random_erasing": 1.0}]
)
def test_augmentations_change_the_picture(augmentation):
    processor = fine_grained_processor(ViTImageProcessor(), (32, 32), resize_ratio=1)
    image = {"image": [picture(32, 32)] * 8, "label": [0] * 8}
    plain = TrainTransform(processor)(image)["pixel_values"][0]
    augmented = TrainTransform(processor, **augmentation)(image)["pixel_values"]
    assert sum(not torch.allclose(x, plain) and not torch.allclose(x, plain.flip(-1)) for x in augmented) > 4
    assert all(x.shape == (3, 32, 32) and x.isfinite().all() for x in augmented)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_image_mode_becomes_three_channels(mode):
    processor = fine_grained_processor(ViTImageProcessor(), (16, 16))
    for transform in (TrainTransform(processor), EvalTransform(processor)):
        (pixels,) = transform({"image": [picture().convert(mode)], "label": [0]})["pixel_values"]
        assert pixels.shape == (3, 16, 16)


def test_a_broken_image_names_its_path(tmp_path):
    buffer = io.BytesIO()
    picture().save(buffer, "JPEG")
    path = tmp_path / "half.jpg"
    path.write_bytes(buffer.getvalue()[:300])
    transform = TrainTransform(fine_grained_processor(ViTImageProcessor(), (16, 16)))
    with pytest.raises(ValueError, match=f"cannot read image {path}.*remove or replace"):
        transform({"image": [{"path": str(path), "bytes": None}], "label": [0]})


class Noise(torch.utils.data.Dataset):
    """Samples from all three random generators that augmentations use."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(()).item(), np.random.rand(), random.random()])


def test_augmentation_depends_only_on_seed_epoch_and_image():
    def epoch(number, seed=1, workers=0, order=range(12)):
        dataset = SeededDataset(Noise(), seed)
        dataset.set_epoch(number)
        return torch.stack([x[0] for x in DataLoader(dataset, sampler=list(order), num_workers=workers)])

    first = epoch(0)
    assert torch.equal(epoch(0, workers=2), first)
    assert torch.equal(epoch(0, order=range(11, -1, -1)), first.flip(0))
    for other in (epoch(1), epoch(0, seed=2)):
        assert not (other[:, 1:] == first[:, 1:]).any()
    assert len(first[:, 1:].unique()) == 36


def test_persistent_workers_see_a_new_epoch():
    dataset = SeededDataset(Noise(), 1)
    loader = DataLoader(dataset, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        epochs.append(torch.cat(list(loader)))
    assert not torch.equal(*epochs)


def test_the_random_state_of_the_training_process_is_kept():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    SeededDataset(Noise(), 1)[4]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("sizes", [[(80, 60)] * 3, [(80, 60), (31, 97), (80, 60)]], ids=["alike", "mixed"])
def test_evaluation_opens_one_image_at_a_time_to_the_same_pixels(monkeypatch, sizes):
    """The result equals that of the processor on the full batch, which groups images by size."""
    processor = fine_grained_processor(ViTImageProcessor(), (48, 32))
    pictures = [picture(*size, seed=seed) for seed, size in enumerate(sizes)]
    expected = list(processor(pictures, return_tensors="pt")["pixel_values"])
    events = []
    original = EvalTransform.pixel_values
    monkeypatch.setattr("dcal_hf.data.images.open_image", lambda image, *_: events.append("open") or image)
    monkeypatch.setattr(EvalTransform, "pixel_values", lambda *args: events.append("done") or original(*args))
    found = EvalTransform(processor)({"image": pictures})["pixel_values"]
    assert events == ["open", "done"] * 3
    assert all(map(torch.equal, found, expected))
