"""Classification of photographs: the table, the figures, and errors."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIZES
from matplotlib.figure import Figure
from transformers import ViTConfig, ViTImageProcessor, ViTModel, pipeline

from dcal_hf import DCALForImageClassification, visualization
from dcal_hf.data import open_image
from dcal_hf.transforms import fine_grained_processor

from helpers import add_noise, noise_picture


NAMES = ["finch", "robin", "wren"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    from conftest import BACKBONES

    folder = tmp_path_factory.mktemp("predict") / "model"
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    model = add_noise(DCALForImageClassification.from_backbone(BACKBONES["vit"], glca_readout="local", **labels), 0.15)
    model.save_pretrained(folder)
    fine_grained_processor(ViTImageProcessor(), model.config.image_size).save_pretrained(folder)
    return folder


@pytest.fixture
def photographs(tmp_path) -> Path:
    for number, name in enumerate(["finch", "finch", "robin", "wren"]):
        (tmp_path / "photographs" / name).mkdir(parents=True, exist_ok=True)
        noise_picture(number, 40 + number, 30).save(tmp_path / "photographs" / name / f"{number}.png")
    return tmp_path / "photographs"


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_equals_the_pipeline(run_recipe, checkpoint, photographs, tmp_path):
    answer = tmp_path / "answer"
    run_recipe("predict", "--model_name_or_path", checkpoint, "--images", photographs, "--output_dir", answer,
               "--batch_size", 3, "--top_k", 2)
    rows = table(answer / "predictions.csv")
    classify = pipeline("image-classification", model=str(checkpoint), top_k=2)
    paths = sorted(photographs.rglob("*.png"))
    assert [row["image"] for row in rows] == [str(path) for path in paths for _ in range(2)]
    expected = [answer for path in paths for answer in classify(str(path))]
    assert [row["class"] for row in rows] == [answer["label"] for answer in expected]
    np.testing.assert_allclose(
        [float(row["probability_both"]) for row in rows], [answer["score"] for answer in expected], atol=1e-4
    )
    halves = [(float(row["probability_sa"]) + float(row["probability_glca"])) / 2 for row in rows]
    np.testing.assert_allclose(halves, [float(row["probability_both"]) for row in rows], atol=2e-4)
    assert (answer / "contact_sheet.jpg").is_file() and not (answer / "mistakes.csv").exists()


def test_mistakes_are_listed_most_confident_first(run_recipe, checkpoint, photographs, tmp_path):
    answer = tmp_path / "answer"
    run_recipe("predict", "--model_name_or_path", checkpoint, "--images", photographs, "--output_dir", answer,
               "--labelled")
    first = {row["image"]: row["class"] for row in table(answer / "predictions.csv") if row["rank"] == "1"}
    mistakes = table(answer / "mistakes.csv")
    wrong = {path for path, name in first.items() if Path(path).parent.name != name}
    assert {row["image"] for row in mistakes} == wrong
    assert all(row["label"] == Path(row["image"]).parent.name for row in mistakes)
    confidences = [float(row["probability"]) for row in mistakes]
    assert confidences == sorted(confidences, reverse=True) and len(mistakes) > 0
    assert all((answer / name).is_file() for name in ("mistakes.jpg", "confused_pairs.jpg", "confusion_matrix.png"))


def test_the_classes_of_linked_photographs_are_those_of_their_links(import_recipe, photographs, tmp_path, monkeypatch):
    linked = tmp_path / "linked"
    (linked / "wren").mkdir(parents=True)
    (linked / "finch").symlink_to(photographs / "robin")
    (linked / "wren" / "1.png").symlink_to(photographs / "finch" / "0.png")
    module = import_recipe("predict")
    paths = module.find_images([str(linked)])
    assert paths == [str(linked / "finch" / "2.png"), str(linked / "wren" / "1.png")]
    assert module.folder_labels(paths, NAMES) == [0, 2]
    monkeypatch.chdir(linked / "wren")
    assert module.folder_labels(module.find_images([".", "1.png"]), NAMES) == [2, 2]


def test_the_order_of_confused_classes(import_recipe):
    module = import_recipe("predict")

    def prediction(label: int, best: int, confidence: float) -> object:
        probabilities = torch.full((4,), (1 - confidence) / 3)
        probabilities[best] = confidence
        return module.Prediction(f"{label}{best}{confidence}", {"both": probabilities}, label=label)

    given = [(0, 1, 0.9), (2, 0, 0.5), (2, 0, 0.6), (0, 0, 0.4), (0, 0, 0.8), (0, 0, 0.7), (3, 2, 0.55)]
    pairs = module.confused_pairs([prediction(*facts) for facts in given])
    assert [(wrong.path, right and right.path) for wrong, right in pairs] == [
        ("200.6", "000.8"), ("010.9", None), ("320.55", "200.6"),
    ]


def test_a_table_of_confused_classes_has_no_empty_columns(run_recipe, checkpoint, photographs, tmp_path, monkeypatch):
    """Of a single mistake, nothing shows the predicted class."""
    arguments = ["--model_name_or_path", checkpoint, "--output_dir", tmp_path / "answer", "--labelled"]
    run_recipe("predict", *arguments, "--images", photographs, "--sheet_images", 0)
    mistake = table(tmp_path / "answer" / "mistakes.csv")[0]["image"]
    drawn = []
    monkeypatch.setattr(visualization, "picture_table", lambda *args: drawn.extend(args) or Figure())
    run_recipe("predict", *arguments, "--images", mistake)
    rows, headings = drawn
    assert headings == ["mistaken", "where the model looked (frames: patches that GLCA reads)"]
    assert [len(row) for row in rows] == [2]


def test_the_contact_sheet_shows_photographs_of_all_folders(import_recipe):
    chosen = import_recipe("predict").evenly_spaced
    assert chosen([*range(7)], 60) == [*range(7)]
    assert chosen([*range(100)], 4) == [0, 25, 50, 75] and chosen([*range(7)], 3) == [0, 2, 4]


def test_captions_shorten_long_names(import_recipe):
    predict = import_recipe("predict")
    names = ["Taraxacum officinale", "Plantae Tracheophyta Magnoliopsida Asterales Asteraceae Taraxacum"]
    photograph = "plants/IMG_20240102_063015_of_the_meadow_behind_the_old_house_0042.jpg"
    prediction = predict.Prediction(photograph, {"both": torch.tensor([0.75, 0.25])}, label=1)
    first, second, third = predict.caption(prediction, names).split("\n")
    assert first == "Taraxacum officinale 0.75"
    assert second.startswith("true: Plantae") and second.endswith("…steraceae Taraxacum") and len(second) == 46
    assert third.startswith("IMG_20240102_063015_") and third.endswith("_0042.jpg") and len(third) == 40


def test_attention_overlays_have_the_size_of_the_photograph(run_recipe, checkpoint, photographs, tmp_path):
    answer = tmp_path / "answer"
    wren = photographs / "wren" / "3.png"
    run_recipe("predict", "--model_name_or_path", checkpoint, "--images", wren, "--output_dir", answer, "--attention",
               "--sheet_images", 0)
    (overlay,) = (answer / "attention").iterdir()
    assert overlay.name == "00000_3.jpg" and open_image(overlay).size == (43, 30)


def test_figures_show_what_max_pixels_allows(run_recipe, checkpoint, photographs, tmp_path, monkeypatch):
    """A default of 100 pixels stands for the real one, above which a photograph takes seconds to read."""
    monkeypatch.setattr(open_image, "__defaults__", (100, None))
    answer = tmp_path / "answer"
    run_recipe("predict", "--model_name_or_path", checkpoint, "--images", photographs, "--output_dir", answer,
               "--labelled", "--attention", "--max_pixels", 43 * 30)
    assert len([*(answer / "attention").iterdir()]) == 4 and (answer / "mistakes.jpg").is_file()


def test_an_overlay_of_a_photograph_with_the_longest_name_is_written(run_recipe, checkpoint, photographs, tmp_path):
    """A file system takes names of 255 bytes, here of characters with two bytes."""
    long = (photographs / "wren" / "3.png").rename(photographs / ("\u00e9" * 125 + ".png"))
    options = ["--output_dir", tmp_path / "answer", "--attention", "--sheet_images", 0]
    run_recipe("predict", "--model_name_or_path", checkpoint, "--images", long, *options)
    (overlay,) = (tmp_path / "answer" / "attention").iterdir()
    assert overlay.name.startswith("00000_\u00e9") and overlay.suffix == ".jpg"


def test_attention_compares_models_on_the_same_photographs(run_recipe, checkpoint, photographs, tmp_path, monkeypatch):
    """A plain encoder has no predictions, only attention."""
    ViTModel(ViTConfig(intermediate_size=64, **SIZES), add_pooling_layer=False).save_pretrained(tmp_path / "plain")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "plain")
    drawn = []
    draw = visualization.attention_comparison
    monkeypatch.setattr(visualization, "attention_comparison", lambda *args: drawn.extend(args) or draw(*args))
    run_recipe("attention", "--models", checkpoint, checkpoint, "--names", "SA", "DCAL", "--baseline",
               tmp_path / "plain", "--images", photographs, "--count", 3, "--labelled", "--output", tmp_path / "a.png")
    pictures, rollouts, _, _, titles, correct, names = drawn
    assert len(pictures) == 3 and list(rollouts) == ["baseline", "SA", "DCAL"]
    assert titles["baseline"] == [""] * 3 and correct["baseline"] == [None] * 3
    assert titles["SA"] == titles["DCAL"]
    for name, title, is_right in zip(names, titles["DCAL"], correct["DCAL"]):
        assert is_right == (name.split()[1] == title.split()[0])
    assert not torch.equal(rollouts["baseline"][0], rollouts["SA"][0])
    width, height = open_image(tmp_path / "a.png").size
    assert width > 4 * 150 and height > 3 * 100
    with pytest.raises(ValueError, match="--names needs a name for each of --models, all different"):
        run_recipe("attention", "--models", checkpoint, "--names", "baseline", "--baseline", checkpoint, "--images",
                   photographs, "--output", tmp_path / "b.png")


def test_unreadable_photographs_can_be_skipped(run_recipe, checkpoint, photographs, tmp_path, caplog):
    arguments = ["--model_name_or_path", checkpoint, "--sheet_images", 0, "--batch_size", 2, "--images", photographs]
    run_recipe("predict", *arguments, "--output_dir", tmp_path / "all")
    for name in ("broken 1.png", "broken 2.png", "broken 3.png"):  # one batch has none that can be read
        (photographs / name).write_bytes(b"no picture")
    run_recipe("predict", *arguments, "--output_dir", tmp_path / "readable", "--skip_broken")
    names, expected = ([(row["image"], row["class"]) for row in table(tmp_path / folder / "predictions.csv")]
                       for folder in ("readable", "all"))
    assert names == expected and f"cannot read image {photographs / 'broken 1.png'}" in caplog.text
    with pytest.raises(ValueError, match="--images: of 1 photograph, none can be read"):
        run_recipe("predict", *arguments[:-1], photographs / "broken 1.png", "--skip_broken", "--output_dir", tmp_path)


@pytest.mark.parametrize(
    "arguments, error, sentence",
    [
        (["--images", "nowhere"], FileNotFoundError, "--images: there is no photograph and no folder nowhere"),
        (["--images", "{photographs}", "--labelled"], ValueError, "named after none of the model's 3 classes"),
        (["--images", "{broken}"], ValueError, "cannot read image .*broken.png"),
    ],
)
def test_mistakes_raise_clear_errors(run_recipe, checkpoint, photographs, tmp_path, arguments, error, sentence):
    (photographs / "wren").rename(photographs / "wrens")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    given = [argument.format(photographs=photographs, broken=broken) for argument in arguments]
    with pytest.raises(error, match=sentence):
        run_recipe("predict", "--model_name_or_path", checkpoint, "--output_dir", tmp_path / "answer", *given)
    assert not (tmp_path / "answer").exists()
