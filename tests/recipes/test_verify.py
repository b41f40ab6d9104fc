"""Verification: calibration on folders of individuals, and the threshold saved with the checkpoint."""

import csv
import importlib
import itertools
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoModel, ViTConfig, ViTImageProcessor

from dcal_hf import DCALForReID
from dcal_hf.data import load_reid
from dcal_hf.retrieval import model_fingerprint

from helpers import TINY_SIZES, add_noise, noise_picture


RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def run_here(monkeypatch):
    """Runs a recipe with a command line in this process."""
    monkeypatch.syspath_prepend(str(RECIPES))

    def run_main(recipe: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [recipe, *map(str, arguments)])
        importlib.import_module(recipe).main()

    return run_main


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "model"
    model = DCALForReID.from_backbone(ViTConfig(image_size=16, **TINY_SIZES), num_labels=3, local_query_ratio=0.5)
    add_noise(model, 0.2).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def picture(individual: int, number: int) -> Image.Image:
    """The pattern of an individual, with noise."""
    pattern = np.asarray(noise_picture(individual), np.int64)
    noise = np.asarray(noise_picture([individual, number]), np.int64)
    return Image.fromarray(((3 * pattern + noise) // 4).astype(np.uint8))


@pytest.fixture(scope="module")
def turtles(tmp_path_factory) -> Path:
    """Six test individuals with four images, and one with a single image."""
    root = tmp_path_factory.mktemp("data") / "turtles"
    for individual in range(7):
        folder = root / "test" / f"turtle {individual}"
        folder.mkdir(parents=True)
        for number in range(4 if individual < 6 else 1):
            picture(individual, number).save(folder / f"{number}.png")
    return root


@torch.no_grad()
def embeddings_of(checkpoint: Path, paths: list[Path]) -> np.ndarray:
    pixel_values = ViTImageProcessor.from_pretrained(checkpoint)(
        [Image.open(path) for path in paths], return_tensors="pt"
    )
    return AutoModel.from_pretrained(checkpoint)(**pixel_values).embeddings.double().numpy()


def loop_pairs(checkpoint: Path, root: Path) -> tuple[list[float], list[float]]:
    """Distances of pairs of the same individual, and sorted distances of different individuals."""
    paths = sorted(root.glob("test/*/*.png"))
    same, different = [], []
    for (a, first), (b, second) in itertools.combinations(zip(paths, embeddings_of(checkpoint, paths)), 2):
        (same if a.parent == b.parent else different).append(float(np.linalg.norm(first - second)))
    return same, sorted(different)


def test_calibrate_and_verify(run_here, checkpoint, turtles, tmp_path, capsys):
    run_here("verify", "--model_name_or_path", checkpoint, "--calibrate", "--data_dir", turtles,
             "--false_accept_rate", 0.05)
    same, different = loop_pairs(checkpoint, turtles)
    kept = json.loads((checkpoint / "verification.json").read_text())
    assert (len(same), len(different)) == (6 * 6, 25 * 24 // 2 - 6 * 6)
    assert kept["threshold"] == pytest.approx(different[len(different) // 20], abs=1e-5)
    assert kept["true_accept_rate"] == pytest.approx(np.mean([distance < kept["threshold"] for distance in same]))
    facts = {"num_images": 25, "num_identities": 7, "num_same_pairs": 36, "num_different_pairs": 264}
    facts |= {"dataset": "turtles", "false_accept_rate": 0.05}
    facts["model_id"] = model_fingerprint(AutoModel.from_pretrained(checkpoint))
    assert {name: kept[name] for name in facts} == facts
    assert "at most 5 % of 264 pairs of different individuals" in capsys.readouterr().out

    folder = turtles / "test"
    paths = [folder / "turtle 0" / "0.png", folder / "turtle 0" / "1.png", folder / "turtle 1" / "0.png",
             folder / "turtle 2" / "3.png"]
    run_here("verify", "--model_name_or_path", checkpoint, *paths, "--output", tmp_path / "answers.csv")
    first, second = capsys.readouterr().out.splitlines()[:2]
    with open(tmp_path / "answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    embeddings = embeddings_of(checkpoint, paths)
    distances = np.linalg.norm(embeddings[::2] - embeddings[1::2], axis=1)
    assert distances[0] < kept["threshold"] < distances[1]
    assert [row["same"] for row in rows] == ["True", "False"]
    assert [(row["first"], row["second"]) for row in rows] == [tuple(map(str, paths[:2])), tuple(map(str, paths[2:]))]
    np.testing.assert_allclose([float(row["distance"]) for row in rows], distances, atol=1e-4)
    assert [row["threshold"] for row in rows] == [f"{kept['threshold']:.4f}"] * 2
    assert first.startswith(f"{paths[0]} and {paths[1]}: the same individual, distance {rows[0]['distance']}")
    assert f": different individuals, distance {rows[1]['distance']} (threshold {kept['threshold']:.4f}" in second
    assert second.endswith("false-accept rate 0.05 on turtles)")

    # Parts of one photograph are the images that are cut out of it.
    both = Image.new("RGB", (100, 50))
    for number, path in enumerate(paths[2:]):
        with Image.open(path) as image:
            both.paste(image, (50 * number, 0))
            box = [*image.size]
    both.save(tmp_path / "both.png")
    boxes = ["--bbox", 0, 0, *box, 50, 0, *box]
    run_here("verify", "--model_name_or_path", checkpoint, tmp_path / "both.png", tmp_path / "both.png", *boxes)
    assert f"different individuals, distance {rows[1]['distance']} " in capsys.readouterr().out


def test_search_with_the_threshold(run_here, checkpoint, turtles, tmp_path, capsys):
    """Turtle 6 is not in the gallery, and turtle 0 is, in another image."""
    known = tmp_path / "known"
    known.mkdir()
    for individual in range(3):
        (known / f"{individual}.png").write_bytes((turtles / f"test/turtle {individual}/0.png").read_bytes())
    run_here("verify", "--model_name_or_path", checkpoint, "--calibrate", "--data_dir", turtles)
    run_here("embed", "--model_name_or_path", checkpoint, "--image_dir", known, "--output_dir", tmp_path / "gallery")
    capsys.readouterr()
    threshold = json.loads((checkpoint / "verification.json").read_text())["threshold"]
    queries = [turtles / "test/turtle 0/1.png", turtles / "test/turtle 6/0.png"]
    cmd = ("search", "--model_name_or_path", checkpoint, "--gallery_dir", tmp_path / "gallery", "--images", *queries,
           "--matches_in_picture", 0, "--output_dir", tmp_path)
    embeddings = embeddings_of(checkpoint, [*queries, *sorted(known.iterdir())])
    expected = np.sort(np.linalg.norm(embeddings[:2, None] - embeddings[None, 2:], axis=-1), axis=1)
    assert expected[0, 0] < threshold < expected[1, 0]
    for given in ("calibrated", threshold):
        run_here(*cmd, "--threshold", given)
        answers = capsys.readouterr().out.split(str(queries[1]))
        sentence = f"Probably a new individual: nothing is nearer than {threshold:.4f}."
        assert [sentence in answer for answer in answers] == [False, True]
        with open(tmp_path / "matches.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        np.testing.assert_allclose([float(row["distance"]) for row in rows], expected.flatten(), atol=1e-3)
        assert [row["same"] for row in rows] == [str(distance < threshold) for distance in expected.flatten()]
    with pytest.raises(ValueError, match="--threshold is a distance, or calibrated, not 'near'"):
        run_here(*cmd, "--threshold", "near")
    run_here(*cmd)
    assert "new individual" not in capsys.readouterr().out
    assert (tmp_path / "matches.csv").read_text().startswith("query,rank,distance,row,image\n")


def test_unnormalised_embeddings_need_a_euclidean_gallery(run_here, checkpoint, turtles, tmp_path):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"normalize_embeddings": False}))
    model = ("--model_name_or_path", checkpoint)
    run_here("verify", *model, "--calibrate", "--data_dir", turtles)
    for metric in ("cosine", "euclidean"):
        gallery = tmp_path / metric
        run_here("embed", *model, "--image_dir", turtles, "--output_dir", gallery, "--metric", metric)
        cmd = ("search", *model, "--gallery_dir", gallery, "--images", turtles / "test/turtle 0/1.png",
               "--matches_in_picture", 0, "--output_dir", tmp_path / "answer", "--threshold")
        if metric == "euclidean":
            run_here(*cmd, "calibrated")
            continue
        run_here(*cmd, 0.5)
        with pytest.raises(ValueError, match="compares them at length 1: embed the gallery again, with --metric eucl"):
            run_here(*cmd, "calibrated")


def test_an_uncalibrated_checkpoint_explains_how_to_calibrate(run_here, checkpoint, turtles):
    pair = (turtles / "test/turtle 0/0.png", turtles / "test/turtle 0/1.png")
    with pytest.raises(FileNotFoundError, match=f"has no verification.json: calibrate .* {checkpoint} --calibrate"):
        run_here("verify", "--model_name_or_path", checkpoint, *pair)


def test_another_model_is_rejected(run_here, checkpoint, turtles):
    run_here("verify", "--model_name_or_path", checkpoint, "--calibrate", "--data_dir", turtles)
    add_noise(DCALForReID.from_pretrained(checkpoint), 0.01).save_pretrained(checkpoint)
    pair = (turtles / "test/turtle 0/0.png", turtles / "test/turtle 0/1.png")
    with pytest.raises(ValueError, match="was calibrated for model dcal-.*, not for dcal-.*: calibrate again"):
        run_here("verify", "--model_name_or_path", checkpoint, *pair)


def test_a_broken_image_is_named(run_here, checkpoint, turtles, tmp_path):
    run_here("verify", "--model_name_or_path", checkpoint, "--calibrate", "--data_dir", turtles)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"cannot read image {broken}"):
        run_here("verify", "--model_name_or_path", checkpoint, turtles / "test/turtle 0/0.png", broken)


def test_individuals_with_one_image_are_rejected(run_here, checkpoint, tmp_path):
    for name in ("Ann", "Bob"):
        (tmp_path / "birds" / "test" / name).mkdir(parents=True)
        noise_picture().save(tmp_path / "birds" / "test" / name / "0.png")
    with pytest.raises(ValueError, match="birds has no possible query: none of the held-out"):
        run_here("verify", "--model_name_or_path", checkpoint, "--calibrate", "--data_dir", tmp_path / "birds")
    assert not (checkpoint / "verification.json").exists()


def test_distractors_are_not_an_individual(run_here, tmp_path):
    """Market-1501's layout: two images of identity 0 are not a pair of the same individual."""
    verify = importlib.import_module("verify")
    for place in ("query/1/a", "query/2/a", "gallery/0/a", "gallery/0/b", "gallery/1/b", "gallery/2/b", "gallery/3/a"):
        path = tmp_path / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_picture().save(path)
    images, distractor_ids = verify.labelled_images(verify.VerifyArguments(calibrate=True, data_dir=str(tmp_path)))
    assert (sorted(images["identity"]), distractor_ids) == ([0, 0, 1, 1, 2, 2, 3], [0])


@pytest.mark.parametrize("names", [("Ann", "Bob"), ("1", "2")])
def test_images_of_unknown_individuals_are_left_out(run_here, tmp_path, caplog, names):
    """They may show an individual of another image, so that a pair with one is neither the same nor different."""
    verify = importlib.import_module("verify")
    for individual in (*names, "unknown"):
        (tmp_path / "birds" / "test" / individual).mkdir(parents=True)
        for number in range(3):
            noise_picture(number).save(tmp_path / "birds" / "test" / individual / f"{number}.png")
    arguments = verify.VerifyArguments(calibrate=True, data_dir=str(tmp_path / "birds"))
    with caplog.at_level("INFO"):
        images, distractor_ids = verify.labelled_images(arguments)
    records = images.cast_column("image", ImageFeature(decode=False))["image"]
    counts = Counter(Path(record["path"]).parent.name for record in records)
    assert counts == dict.fromkeys(names, 3) and distractor_ids == []
    assert len(set(images["identity"])) == 2
    assert "left out: 3 images of gallery of unknown individuals" in caplog.text
    assert "Calibrating on 6 images of 2 individuals of birds" in caplog.text


@pytest.mark.parametrize("dataset_name", [None, "market1501"])
def test_a_data_set_has_the_name_that_training_gives_it(run_here, tmp_path, dataset_name):
    folder = tmp_path / "pigeons.v2"
    folder.mkdir()
    given = {"dataset_name": dataset_name, "data_dir": str(folder)}
    titles = [
        importlib.import_module("verify").VerifyArguments(calibrate=True, **given).title,
        importlib.import_module("run_reid").DataArguments(**given).title,
    ]
    assert titles == ["pigeons.v2"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jpg"], "Give two images, or several pairs of them: a.jpg b.jpg; got 1"),
        ([], "Give two images, or several pairs of them: a.jpg b.jpg; got 0"),
        (["a.jpg", "b.jpg", "--calibrate", "--data_dir", "turtles"], "ask about a.jpg in a call without it"),
        (["--calibrate"], "give --calibrate and labelled images"),
        (["a.jpg", "b.jpg", "--data_dir", "turtles"], "give --calibrate and labelled images"),
        (["--calibrate", "--data_dir", "turtles"], "model is no folder to keep the threshold in"),
    ],
)
def test_invalid_usage_raises_a_clear_error(run_here, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_here("verify", *arguments, "--model_name_or_path", "a_hub_name/model")


def test_individuals_of_a_table_are_those_that_training_holds_out(run_here, tmp_path):
    """Half of the individuals were seen on one day only, so with --camera_column date they cannot be queries."""
    rows = ["image,identity,date"]
    for number in range(30):
        noise_picture(number).save(tmp_path / f"{number}.png")
        day = number // 10 if number % 2 else 0
        rows.append(f"{number}.png,turtle {number % 10},2024-05-0{day + 1}")
    (tmp_path / "turtles.csv").write_text("\n".join(rows))
    given = {"dataset_name": str(tmp_path / "turtles.csv"), "camera_column": "date"}
    held_out = load_reid(given["dataset_name"], camera_column="date")
    verify = importlib.import_module("verify")
    images, _ = verify.labelled_images(verify.VerifyArguments(calibrate=True, **given))
    assert set(images["identity"]) == set(held_out["query"]["identity"]) | set(held_out["gallery"]["identity"])
    assert images.features["camera_id"].names == ["2024-05-01", "2024-05-02", "2024-05-03"]
