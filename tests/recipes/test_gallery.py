"""`dcal gallery` as a user runs it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, ViTConfig, ViTImageProcessor

from dcal_hf import DCALForImageClassification
from dcal_hf.retrieval import GalleryIndex, embed_images, model_fingerprint

from galleries import make
from helpers import TINY_SIZES, noise_picture


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = ViTConfig(image_size=16, **TINY_SIZES)
    DCALForImageClassification.from_backbone(config, num_labels=3, local_query_ratio=0.5).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture
def photographs(tmp_path) -> list[str]:
    (tmp_path / "photographs" / "late").mkdir(parents=True)
    names = [tmp_path / "photographs" / name for name in ("0.png", "1.png", "2.png", "late/3.png", "late/4.png")]
    for number, path in enumerate(names):
        noise_picture(number).save(path)
    return list(map(str, names))


def embedded(checkpoint: Path, images: list[str]) -> tuple[np.ndarray, str]:
    model = AutoModel.from_pretrained(checkpoint)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    return embed_images(model, processor, Dataset.from_dict({"image": images})), model_fingerprint(model)


@pytest.fixture
def gallery(tmp_path, checkpoint, photographs) -> Path:
    """The first three photographs, of two individuals."""
    vectors, model_id = embedded(checkpoint, photographs[:3])
    features = Features({"image": Value("string"), "identity": ClassLabel(names=["Anton", "Berta"])})
    items = Dataset.from_dict({"image": photographs[:3], "identity": [0, 1, 1]}, features=features)
    GalleryIndex.from_embeddings(vectors, items, model_id=model_id, model_name="out").save(tmp_path / "gallery")
    return tmp_path / "gallery"


@pytest.fixture
def run(import_recipe, monkeypatch, gallery):
    def call(command: str, *arguments: object) -> None:
        options = [command, "--gallery_dir", str(gallery), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", ["gallery.py", *options])
        import_recipe("gallery").main()

    return call


def test_added_images_are_found_and_known_ones_are_not_added_again(run, gallery, checkpoint, photographs, capsys):
    columns = ["--columns", json.dumps({"identity": "Anton"})]
    run("add", "--model_name_or_path", checkpoint, "--images", Path(photographs[0]).parent, *columns)
    assert "Added 2 of 5 images (3 are in the gallery already); " in capsys.readouterr().out
    found = GalleryIndex.load(gallery)
    assert found.items["image"][:] == photographs and found.items["identity"][:] == [0, 1, 1, 0, 0]
    vectors, _ = embedded(checkpoint, photographs)
    scores, rows = found.search_rows(vectors, 1)
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4] and np.allclose(scores, 1, atol=1e-5)


def test_a_broken_image_is_not_added(run, gallery, checkpoint, photographs, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    columns = ["--columns", json.dumps({"identity": "Anton"})]
    images = [*photographs[2:], photographs[3], broken]
    run("add", "--model_name_or_path", checkpoint, "--skip_broken", "True", "--images", *images, *columns)
    assert "Added 2 of 4 images (1 is in the gallery already, 1 cannot be read); " in capsys.readouterr().out
    assert GalleryIndex.load(gallery).items["image"][:] == photographs


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["--rows", 0], [1, 2]),
        (["--images", "2.png"], [0, 1]),
        (["--columns", '{"identity": "Berta"}'], [0]),
    ],
)
def test_images_are_removed_by_row_by_path_and_by_value(run, gallery, photographs, monkeypatch, arguments, left):
    monkeypatch.chdir(Path(photographs[0]).parent)
    run("remove", *arguments)
    found = GalleryIndex.load(gallery)
    assert found.items["image"][:] == [photographs[row] for row in left] and found.index.ntotal == len(left)


def test_a_folder_of_images_is_removed(run, gallery, checkpoint, photographs):
    add = ["--model_name_or_path", checkpoint, "--images", *photographs[3:], "--columns", '{"identity": 1}']
    run("add", *add)
    run("remove", "--images", Path(photographs[3]).parent)
    assert GalleryIndex.load(gallery).items["image"][:] == photographs[:3]


def test_show_tells_how_it_was_made_and_what_is_in_it(run, gallery, photographs, capsys):
    Path(photographs[2]).unlink()
    run("show", "--start", 1, "--count", 1)
    told = capsys.readouterr().out.splitlines()
    assert "3 images" in told[0] and "by out (dcal-" in told[0] and "cosine distance, index Flat" in told[0]
    assert told[1:] == [
        f"1 image file is gone, the first is {photographs[2]}",
        "identity: 2 different, most often Berta (2), Anton (1)",
        "     row  image, identity",
        f"       1  {photographs[1]}, Berta",
    ]


def test_a_new_individual_is_added(run, gallery, checkpoint, photographs, capsys):
    add = ["add", "--model_name_or_path", checkpoint, "--images"]
    run(*add, photographs[3], "--columns", '{"identity": "Cora"}')
    assert "identity 'Cora' is new" in capsys.readouterr().out
    run(*add, photographs[4], "--columns", '{"identity": "Cora"}')
    assert "is new" not in capsys.readouterr().out
    found = GalleryIndex.load(gallery).items
    assert found.features["identity"].names == ["Anton", "Berta", "Cora"] and found["identity"][:] == [0, 1, 1, 2, 2]


def test_individuals_that_are_numbers_need_a_number(import_recipe):
    class_numbers, features = import_recipe("gallery").class_numbers, Features({"identity": Value("int64")})
    assert class_numbers({"identity": 7}, features) == class_numbers({"identity": "7"}, features) == {"identity": 7}
    with pytest.raises(ValueError, match="^--columns: identity is a number in this gallery, not 'Berta'.$"):
        class_numbers({"identity": "Berta"}, features)


def test_a_part_of_a_photograph_is_embedded_and_shown(run, gallery, checkpoint, photographs, capsys):
    box, two = [2.0, 2.0, 8.0, 8.0], Path(photographs[4]).with_name("crop.png")
    Image.open(photographs[0]).crop((2, 2, 10, 10)).save(two)
    found = GalleryIndex.load(gallery)
    found.items = found.items.add_column("bbox", [None] * 3, feature=List(Value("float64")))
    found.save(gallery)
    columns = {"identity": "Anton", "bbox": box}
    run("add", "--model_name_or_path", checkpoint, "--images", photographs[0], "--columns", json.dumps(columns))
    run("add", "--model_name_or_path", checkpoint, "--images", two, "--columns", '{"identity": "Berta"}')
    found = GalleryIndex.load(gallery)
    assert found.items["image"][3:] == [photographs[0], str(two)] and found.items["bbox"][3:] == [box, None]
    part, whole = found.index.index.reconstruct(3), found.index.index.reconstruct(4)
    assert np.allclose(part, whole, atol=1e-5)
    run("add", "--model_name_or_path", checkpoint, "--images", photographs[0], "--columns", json.dumps(columns))
    assert "Added 0 of 1 image (1 is in the gallery already); " in capsys.readouterr().out
    with pytest.raises(ValueError, match="bbox is .x, y, width, height. in pixels, or null .*, not '2 2'"):
        run("remove", "--columns", '{"bbox": "2 2"}')
    run("show")
    assert "3  " + photographs[0] + f", Anton, {box}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "arguments", "sentence"),
    [
        ("list", [], "Give one of add, remove, show first"),
        ("remove", ["--paths", "0.png"], "^there is no option --paths; --help lists all$"),
        ("show", ["--count", -1], "--count -1: it must be at least 0"),
        ("remove", [], "by one of --images, --rows and --columns"),
        ("remove", ["--rows", 3], "--rows 3: .* has the rows 0 to 2"),
        ("remove", ["--rows", 0, 1, 2], "These are all images of .*: delete the folder"),
        ("remove", ["--images", "nobody.png"], "--images nobody.png: .* has no image of that path"),
        ("remove", ["--columns", "Berta"], "--columns takes a JSON object, such as"),
        ("remove", ["--columns", '{"name": "Berta"}'], "has no column 'name'; it has identity"),
        ("remove", ["--columns", '{"identity": "Cora"}'], "identity 'Cora' is none of Anton, Berta"),
    ],
)
def test_invalid_options_raise_clear_errors(run, gallery, command, arguments, sentence):
    before = sorted(gallery.rglob("*"))
    with pytest.raises(ValueError, match=sentence):
        run(command, *arguments)
    assert sorted(gallery.rglob("*")) == before


def test_mistakes_found_while_loading_print_one_sentence(run, gallery, checkpoint, photographs):
    arguments = ["--model_name_or_path", checkpoint, "--images", photographs[3]]
    with pytest.raises(ValueError, match="has the column identity, too: give its value by --columns"):
        run("add", *arguments)
    make(count=3).save(gallery.with_name("other"))
    with pytest.raises(ValueError, match="was embedded by model dcal-0123456789abcdef"):
        run("add", "--gallery_dir", gallery.with_name("other"), *arguments)
