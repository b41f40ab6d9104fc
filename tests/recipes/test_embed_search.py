"""The recipes that embed photographs into a gallery and search it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, ViTConfig, ViTImageProcessor

from dcal_hf import DCALForImageClassification
from dcal_hf.retrieval import GalleryIndex, model_fingerprint

from helpers import TINY_SIZES, noise_picture
from processes import Printed, run_script


RECIPES = Path(__file__).parents[2] / "recipes"


def torchrun(script: Path, *arguments: str, processes: int) -> Printed:
    """Like [`run_script`], but with the real launcher, which imports torch once more."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    run = subprocess.run([*launcher, str(script), *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return Printed(run.stdout, run.stderr)


@pytest.fixture(scope="module")
def run_main(run_recipe):
    def run(recipe: str, **options: object) -> None:
        run_recipe(recipe, *as_arguments(options))

    return run


def as_arguments(options: dict[str, object]) -> list[str]:
    values = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    return [str(part) for name, parts in values.items() for part in (f"--{name}", *parts)]


def save_model(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = ViTConfig(image_size=16, **TINY_SIZES)
    DCALForImageClassification.from_backbone(config, num_labels=3, local_query_ratio=0.5).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Eleven images in nested folders, a text file, and a hidden folder with another image."""
    folder = tmp_path_factory.mktemp("photographs")
    names = [f"a/{i}.png" for i in range(4)] + [f"a/b/c/{i}.JPG" for i in range(4)] + ["x.png", "y.png", "z.bmp"]
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise_picture(seed).save(folder / name)
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "x.png").write_bytes((folder / "x.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def gallery(run_main, model, photographs, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("galleries") / "gallery"
    run_main("embed", model_name_or_path=model, image_dir=photographs, output_dir=output_dir, batch_size=4)
    return output_dir


def expected_embeddings(model: Path, paths: list[str]) -> np.ndarray:
    processor = ViTImageProcessor.from_pretrained(model)
    with torch.no_grad():
        images = [Image.open(path) for path in paths]
        embeddings = AutoModel.from_pretrained(model)(**processor(images, return_tensors="pt")).embeddings
    return torch.nn.functional.normalize(embeddings).numpy()


def test_a_folder_becomes_a_gallery(model, photographs, gallery):
    index = GalleryIndex.load(gallery, model_fingerprint(AutoModel.from_pretrained(model)), dimension=32)
    names = [f"a/{i}.png" for i in range(4)] + [f"a/b/c/{i}.JPG" for i in range(4)] + ["x.png", "y.png", "z.bmp"]
    assert index.items["image"][:] == [str(photographs / name) for name in names]
    vectors = index.index.index.reconstruct_n(0, 11)
    np.testing.assert_allclose(vectors, expected_embeddings(model, index.items["image"][:]), atol=1e-5)
    assert index.model_name == str(model)


@pytest.mark.parametrize("launch", [run_script, pytest.param(torchrun, marks=pytest.mark.slow)])
def test_two_processes_embed_as_one(model, photographs, gallery, tmp_path, launch):
    options = {"model_name_or_path": model, "image_dir": photographs, "output_dir": tmp_path / "two", "batch_size": 4}
    done = launch(RECIPES / "embed.py", *as_arguments(options), processes=2)
    one, two = (GalleryIndex.load(folder) for folder in (gallery, tmp_path / "two"))
    # Eleven images are three batches of four; each process has two.
    assert "| 2/2 [" in done.stderr
    assert one.items["image"][:] == two.items["image"][:]
    assert (one.index.index.reconstruct_n(0, 11) == two.index.index.reconstruct_n(0, 11)).all()


def test_searching(model, photographs, gallery, tmp_path):
    queries = [str(photographs / "a/b/c/2.JPG"), str(photographs / "x.png")]
    options = {"gallery_dir": gallery, "images": queries, "top_k": 3, "matches_in_picture": 2, "output_dir": tmp_path}
    printed = run_script(RECIPES / "search.py", *as_arguments({"model_name_or_path": model, **options})).stdout
    with open(tmp_path / "matches.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["query"], row["rank"]) for row in rows] == [(query, f"{i}") for query in queries for i in (1, 2, 3)]
    paths = GalleryIndex.load(gallery).items["image"][:]
    similarities = expected_embeddings(model, queries) @ expected_embeddings(model, paths).T
    best = (-similarities).argsort(axis=1)[:, :3]
    assert [int(row["row"]) for row in rows] == best.flatten().tolist()
    assert [row["image"] for row in rows] == [paths[i] for i in best.flatten()]
    distances = [float(row["distance"]) for row in rows]
    found = np.take_along_axis(similarities, best, axis=1).flatten()
    np.testing.assert_allclose(distances, np.sqrt(np.maximum(2 - 2 * found, 0)), atol=1e-3)
    assert distances[0] == distances[3] == 0 and rows[0]["image"] == queries[0]
    for row in rows:
        assert f"{row['distance']}" in printed and row["image"] in printed
    with Image.open(tmp_path / "ranked_list.jpg") as picture:
        assert picture.format == "JPEG" and picture.width > 300


def test_another_model_is_rejected(run_main, gallery, photographs, tmp_path):
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="was embedded by model dcal-.*, not by dcal-"):
        run_main(
            "search", model_name_or_path=other, gallery_dir=gallery, images=[photographs / "x.png"],
            output_dir=tmp_path / "answer",
        )
    assert not (tmp_path / "answer").exists()


def test_broken_images(run_main, model, photographs, tmp_path, caplog):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("x.png", "y.png"):
        (folder / name).write_bytes((photographs / name).read_bytes())
    (folder / "broken.jpg").write_bytes((photographs / "a/b/c/0.JPG").read_bytes()[:200])
    options = {"model_name_or_path": model, "image_dir": folder, "output_dir": tmp_path / "gallery"}
    with pytest.raises(ValueError, match=f"cannot read image {folder / 'broken.jpg'}"):
        run_main("embed", **options)
    assert not (tmp_path / "gallery").exists()
    run_main("embed", **options, skip_broken=True)
    assert f"cannot read image {folder / 'broken.jpg'}" in caplog.text
    assert "2 of 3 images could be read" in caplog.text
    kept = [str(folder / name) for name in ("x.png", "y.png")]
    assert GalleryIndex.load(tmp_path / "gallery").items["image"][:] == kept
    with pytest.raises(ValueError, match=f"cannot read image {folder / 'broken.jpg'}"):
        run_main(
            "search", model_name_or_path=model, gallery_dir=tmp_path / "gallery", images=[folder / "broken.jpg"],
            output_dir=tmp_path,
        )


def test_a_data_set_and_its_columns(run_main, run_recipe, model, photographs, tmp_path):
    images = tmp_path / "birds"
    for number, name in enumerate(["wren", "robin", "wren", "robin", "wren"]):
        (images / name).mkdir(parents=True, exist_ok=True)
        (images / name / f"{number}.png").write_bytes((photographs / "a" / f"{number % 4}.png").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({
        "model_name_or_path": str(model), "dataset_name": str(images), "output_dir": str(tmp_path / "gallery"),
        "factory": "IVF2,Flat", "search_parameters": {"nprobe": 2},
    }))
    run_recipe("embed", tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"--split test: .*birds has only train"):
        run_main(
            "embed", model_name_or_path=model, dataset_name=images, split="test", output_dir=tmp_path / "nothing"
        )
    query = images / "wren" / "2.png"
    run_main(
        "search", model_name_or_path=model, gallery_dir=tmp_path / "gallery", images=[query], output_dir=tmp_path,
        search_parameters='{"nprobe": 1}', matches_in_picture=0, top_k=1,
    )
    assert (tmp_path / "matches.csv").read_text().splitlines()[1:] == [f"{query},1,0.0000,3,{query},wren"]
    assert GalleryIndex.load(tmp_path / "gallery").search_parameters == {"nprobe": 2}
    assert not (tmp_path / "ranked_list.jpg").exists()


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 24), ({"split": "gallery"}, 16), ({"split": "query"}, 8), ({"split": "train", "test_fraction": 0.25}, 18)],
)
def test_all_individuals_are_embedded_by_default(tmp_path, import_recipe, options, count):
    for number in range(24):
        path = tmp_path / "turtles" / f"turtle {number % 8}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_picture(number).save(path)
    embed = import_recipe("embed")
    options = {"dataset_name": str(tmp_path / "turtles"), "task": "reid", **options}
    table = embed.load_images(embed.GalleryArguments(output_dir="gallery", **options))
    # Whoever adds an image to the gallery names its individual only.
    assert len(table) == count and table.column_names == ["image", "identity"]


@pytest.mark.parametrize(("name", "task"), [("rows.csv", "reid"), ("birds", "reid"), ("birds", "fgvc")])
def test_images_are_found_from_another_working_directory(tmp_path, monkeypatch, import_recipe, name, task):
    rows = ["image,identity"]
    for number in range(4):
        image = f"birds/{number % 2}/{number}.png"
        (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
        noise_picture(number).save(tmp_path / image)
        rows.append(f"{image},{number % 2}")
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    embed = import_recipe("embed")
    args = embed.GalleryArguments(output_dir="gallery", dataset_name=name, task=task, split="train")
    paths = [image.filename for image in embed.load_images(args)["image"]]
    assert sorted(paths) == sorted(map(str, tmp_path.glob("birds/*/*.png")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either --image_dir or --dataset_name"),
        ({"image_dir": "nowhere"}, "The folder of images nowhere does not exist"),
    ],
)
def test_missing_images_are_named(import_recipe, options, message):
    embed = import_recipe("embed")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        embed.load_images(embed.GalleryArguments(output_dir="gallery", **options))


def test_a_table_is_embedded_by_its_boxes(tmp_path, run_main, model):
    """The half of a photograph that the table names is found again as a photograph of its own, in a folder."""
    rows, halves = ["path,identity,bbox"], tmp_path / "halves"
    halves.mkdir()
    for number in range(4):
        picture = noise_picture(number, width=40, height=20)
        picture.save(tmp_path / f"{number}.png")
        picture.crop((20, 0, 40, 20)).save(halves / f"{number}.png")
        rows += [f'{number}.png,{side} {number},"[{left}, 0, 20, 20]"' for side, left in (("a", 0), ("b", 20))]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    # A table is one of individuals without --task.
    options = {"model_name_or_path": model, "dataset_name": tmp_path / "rows.csv", "split": "train"}
    run_main("embed", **options, output_dir=tmp_path / "gallery")
    search = {"model_name_or_path": model, "gallery_dir": tmp_path / "gallery", "output_dir": tmp_path / "answer"}
    wholes = [tmp_path / f"{number}.png" for number in range(4)]
    for images, bbox in ((sorted(halves.iterdir()), {}), (wholes, {"bbox": [20, 0, 20, 20]})):
        run_main("search", **search, top_k=2, images=images, **bbox)
        with (tmp_path / "answer" / "matches.csv").open(newline="") as file:
            found = [row for row in csv.DictReader(file) if row["rank"] == "1"]
        assert [row["query"] for row in found] == list(map(str, images))
        assert [row["identity"] for row in found] == ["b 0", "b 1", "b 2", "b 3"]
        best = found[2]
        assert float(best["distance"]) < 1e-3 and best["bbox"] == "[20.0, 0.0, 20.0, 20.0]"
    with Image.open(tmp_path / "answer" / "ranked_list.jpg") as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize(("bbox", "count"), [([1, 2, 3], 1), ([1, 2, 3, 0], 1), ([1, 2, 3, 4] * 2, 3), ([], 1)])
def test_boxes_of_another_number_are_refused(import_recipe, bbox, count):
    with pytest.raises(ValueError, match="^--bbox takes x, y, width and height in pixels, the same for all images or"):
        import_recipe("embed").image_parts(["a.jpg"] * count, bbox)


def test_one_box_is_of_all_images_and_several_are_of_one_each(import_recipe):
    image_parts, paths = import_recipe("embed").image_parts, ["a.jpg", "b.jpg"]
    assert image_parts(paths, [1, 2, 3, 4])["bbox"][:] == [[1, 2, 3, 4]] * 2
    assert image_parts(paths, [1, 2, 3, 4, 5, 6, 7, 8])["bbox"][:] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert image_parts(paths).column_names == ["image"]
