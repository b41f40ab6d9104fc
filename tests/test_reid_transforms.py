import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from datasets import Value
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessor, DeiTImageProcessor, ViTImageProcessor

from dcal_hf.transforms import EvalTransform, ReIDTrainTransform, isolated_random_state, reid_processor


SIZE = (32, 16)


def noise(height=48, width=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


@pytest.fixture
def processor():
    return reid_processor(ViTImageProcessor(), SIZE)


@pytest.mark.parametrize("kind", [ViTImageProcessor, DeiTImageProcessor, CLIPImageProcessor])
def test_evaluation_is_a_bicubic_resize_to_the_input_size(kind):
    image = noise()
    processor = reid_processor(kind(image_mean=[0.5] * 3, image_std=[0.5] * 3), SIZE)
    expected = as_tensor(image.resize(SIZE[::-1], Image.Resampling.BICUBIC))
    actual = EvalTransform(processor)({"image": [image]})["pixel_values"][0]
    assert actual.shape == (3, *SIZE)
    assert (actual - expected).abs().max() < 3 / 127.5


def test_the_given_processor_is_not_modified():
    given = DeiTImageProcessor()
    before = given.to_dict()
    reid_processor(given, SIZE)
    assert given.to_dict() == before


def test_a_saved_processor_prepares_images_as_in_evaluation(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    evaluated = EvalTransform(processor)({"image": [noise()]})["pixel_values"][0]
    assert torch.equal(loaded(noise(), return_tensors="pt")["pixel_values"][0], evaluated)


@pytest.mark.parametrize(
    ("options", "factor", "mean", "std"),
    [
        ({"image_mean": [0.2, 0.4, 0.6], "image_std": [0.1, 0.2, 0.3]}, 1 / 255, [0.2, 0.4, 0.6], [0.1, 0.2, 0.3]),
        ({"do_normalize": False}, 1 / 255, 0, 1),
        ({"do_rescale": False, "image_mean": [120] * 3, "image_std": [60] * 3}, 1, 120, 60),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}, 1 / 127.5, 1, 1),
    ],
    ids=["usual", "not normalised", "not rescaled", "rescaled to 2"],
)
def test_training_and_evaluation_scale_pixels_as_the_processor_says(options, factor, mean, std):
    processor = reid_processor(ViTImageProcessor(**options), SIZE)
    image = noise(*SIZE)
    expected = (np.asarray(image, dtype=np.float64) * factor - mean) / std
    train = ReIDTrainTransform(processor, padding=0, random_erasing=0, horizontal_flip=0)
    for transform in (train, EvalTransform(processor)):
        (pixels,) = transform({"image": [image], "label": [0]})["pixel_values"]
        np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_without_augmentation_training_is_the_resize_and_its_flip(processor):
    transform = ReIDTrainTransform(processor, padding=0, random_erasing=0)
    resized = as_tensor(noise().resize(SIZE[::-1], Image.Resampling.BICUBIC))
    outputs = transform({"image": [noise()] * 100, "label": [0] * 100})["pixel_values"]
    flipped = [torch.allclose(output, resized.flip(2), atol=1e-6) for output in outputs]
    straight = [torch.allclose(output, resized, atol=1e-6) for output in outputs]
    assert all(one != other for one, other in zip(flipped, straight))
    assert 30 < sum(flipped) < 70


def test_the_crop_moves_by_up_to_the_padding_and_fills_with_black(processor):
    white = Image.new("RGB", (16, 32), "white")
    outputs = ReIDTrainTransform(processor, random_erasing=0)({"image": [white] * 300, "label": [0] * 300})
    heights, widths = set(), set()
    for output in outputs["pixel_values"]:
        assert output.shape == (3, *SIZE)
        assert set(output.unique().tolist()) <= {-1.0, 1.0}
        inside = output[0] > 0
        heights.add(int(inside.any(dim=1).sum()))
        widths.add(int(inside.any(dim=0).sum()))
        assert inside.sum() == inside.any(dim=1).sum() * inside.any(dim=0).sum()
    assert heights == set(range(22, 33))
    assert widths == set(range(6, 17))


def test_random_erasing_fills_rectangles_with_pixel_noise(processor):
    grey = Image.new("RGB", (16, 32), (128, 128, 128))
    outputs = ReIDTrainTransform(processor, padding=0)({"image": [grey] * 300, "label": [0] * 300})["pixel_values"]
    background = outputs[0].new_tensor(128 / 127.5 - 1)
    areas = []
    for output in outputs:
        erased = ~torch.isclose(output, background, atol=1e-6)
        if erased.any():
            rows, columns = torch.nonzero(erased.any(dim=0), as_tuple=True)
            patch = output[:, rows.min():rows.max() + 1, columns.min():columns.max() + 1]
            assert patch.unique().numel() == patch.numel()
            areas.append(patch[0].numel() / (32 * 16))
    assert 110 < len(areas) < 190
    assert 0.01 < min(areas) < 0.06
    assert 0.25 < max(areas) < 0.36
    pixels = torch.stack(outputs)
    pixels = pixels[~torch.isclose(pixels, background, atol=1e-6)]
    assert pixels.mean() == pytest.approx(0, abs=0.05)
    assert pixels.std() == pytest.approx(1, abs=0.05)


def test_the_random_state_decides(processor):
    def draw(entropy):
        with isolated_random_state([entropy]):
            return ReIDTrainTransform(processor)({"image": [noise()], "label": [0]})["pixel_values"][0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_labels_only_where_there_is_a_label_column(processor):
    features = Features(image=ImageFeature(mode="RGB"), identity=Value("int64"), label=ClassLabel(names=["7", "9"]))
    columns = {"image": [noise(), noise(seed=1)], "identity": [9, 7], "label": [1, 0]}
    train = Dataset.from_dict(columns, features=features)
    query = train.remove_columns("label").with_transform(EvalTransform(processor))
    assert set(query[:2]) == {"pixel_values"}
    assert query.__getitems__([0, 1])[1]["pixel_values"].shape == (3, *SIZE)
    assert train.with_transform(EvalTransform(processor))[:2]["labels"] == [1, 0]
    batch = train.with_transform(ReIDTrainTransform(processor))[:2]
    assert set(batch) == {"pixel_values", "labels"}
    assert batch["labels"] == [1, 0]


def test_flips_can_be_disabled(processor):
    transform = ReIDTrainTransform(processor, padding=0, random_erasing=0, horizontal_flip=0)
    resized = as_tensor(noise().resize(SIZE[::-1], Image.Resampling.BICUBIC))
    outputs = transform({"image": [noise()] * 20, "label": [0] * 20})["pixel_values"]
    assert all(torch.allclose(output, resized, atol=1e-6) for output in outputs)


def test_affine_transforms_fill_with_the_border(processor):
    """A black dot in the centre of a white image moves by up to 20 %, and no corner becomes black."""
    page = np.full((32, 16, 3), 255, dtype=np.uint8)
    page[15:17, 7:9] = 0
    options = {"padding": 0, "random_erasing": 0, "horizontal_flip": 0, "affine": 20}
    images = {"image": [Image.fromarray(page)] * 300, "label": [0] * 300}
    outputs = torch.stack(ReIDTrainTransform(processor, **options)(images)["pixel_values"])
    ink = (1 - outputs[:, 0]) / 2
    assert ink[:, [0, 0, -1, -1], [0, -1, 0, -1]].max() < 0.05
    mass = ink / ink.sum(dim=(1, 2), keepdim=True)
    rows = (mass.sum(2) * torch.arange(32)).sum(1) - 15.5
    columns = (mass.sum(1) * torch.arange(16)).sum(1) - 7.5
    assert 4 < rows.abs().max() < 0.2 * 32 + 1.5
    assert 2 < columns.abs().max() < 0.2 * 16 + 1.5
