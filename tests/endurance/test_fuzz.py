"""A thousand damaged files, by a seed: each gives a result, or an error of one sentence that names the file.

`DCAL_FUZZ_SEED` is the seed, 0 by default. A failure names its case, by which it is made again:

    DCAL_FUZZ_SEED=7 DCAL_FUZZ_CASE=31 python -m pytest tests/endurance/test_fuzz.py -k image
"""

import importlib
import json
import os
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from scipy.io import savemat
from transformers import ViTConfig, ViTImageProcessor

from dcal_hf import DCALForImageClassification
from dcal_hf.data import load_fgvc, load_reid, open_image
from dcal_hf.data.archives import data_folder
from dcal_hf.retrieval import GalleryIndex, VerificationThreshold, model_fingerprint
from dcal_hf.training import last_checkpoint
from dcal_hf.training.checkpoints import check_resumable

from distributed_worker import make_trainer
from fuzzing import Case, change_bytes, change_json, change_lines, change_value, run_case
from galleries import make
from helpers import TINY_SIZES, classifier, noise_picture


SEED = int(os.environ.get("DCAL_FUZZ_SEED", 0))
ONLY = os.environ.get("DCAL_FUZZ_CASE")
RECIPES = Path(__file__).parents[2] / "recipes"

# Reads a damaged copy; and what an error must name one of.
Reading = tuple[Callable[[], Any], tuple[str, ...]]

ODD_YAML = (
    "base: own.yaml", "base: 3", "base: [a.yaml]", "base: ../base.yaml", "\tseed: 1", "seed: 1", "seed: 2", "- a",
    "---", "...", "%YAML 9", "? [a, b]\n: c", "? {a: b}\n: c", "name: &a [1]", "name: *a", "<<: {seed: 3}", "<<: [1]",
    "null: 1", "1: 2", "true: x", "2001-01-01: x", "seed: !!python/object:os.system x", "seed: !!binary aGk=",
    "seed: !!set {a}", "seed: !!timestamp 2001-01-01", "seed: 2001-99-99", "nested: {a: 2001-01-01}",
    "nested: {a: {b: [1, {c: d}]}}", "seed: .nan", "seed: 0x_", "seed: 1:2:3", "seed: 'x", 'seed: "\\xZZ"', "seed: |",
    "seed: {", "seed: !!int x", "seed: !!float x", "seed: !!omap [a]", "seed: !!pairs [a]", "sizes: [[1, 2], {a: b}]",
    "seed: " + "9" * 5000,
)
ODD_CSV = (
    "", ",", '"', "image,identity", "image,image,image", "identity", "a.png,1,0,train,more,and more", "a.png,,,",
    "a.png", 'a.png,"1\n2",0,train', "b.png;2;1;train", "../a.png,1,0,train", "\x00,1,0,train", "a.png,-1,0,train",
    "a.png,nan,0,query", "a.png,1,0,dev", ",1,0,train", "/etc,1,0,train", "a.png," + "9" * 4400 + ",0,train",
    "x" * 140_000 + ",1,0,train",
)
ROWS = (
    ("a.png", "0", "0", "train"), ("b.png", "0", "1", "train"), ("c.png", "1", "0", "query"),
    ("d.png", "1", "1", "gallery"),
)


@dataclass
class Options:
    """What configurations of the fuzzer set."""

    seed: int = 0
    rate: float = 0.0
    name: str | None = None
    sizes: list[int] = field(default_factory=list)
    nested: str | None = None
    switch: bool = False


def make_images(folder: Path) -> None:
    picture, exif = noise_picture(0, 18, 12), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a bird"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    for suffix in ("avif", "bmp", "gif", "jpg", "png", "ppm", "tif", "webp"):
        picture.save(folder / f"rgb.{suffix}")
    for suffix in ("jpg", "png", "tif", "webp"):
        picture.save(folder / f"exif.{suffix}", exif=exif)
    picture.quantize(16).save(folder / "palette.png", transparency=bytes([0, 128]))
    picture.convert("LA").save(folder / "la.png")
    picture.convert("L").convert("I;16").save(folder / "deep.png")
    picture.save(folder / "moving.gif", save_all=True, append_images=[picture.rotate(90), picture])
    picture.save(folder / "progressive.jpg", progressive=True)
    picture.save(folder / "phone.jpg", format="MPO", save_all=True, append_images=[picture])
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        picture.save(folder / f"{compression}.tif", compression=compression)


def read_image(folder: Path, whole: Path, rng: Random) -> Reading:
    path = damaged_copy(rng.choice(sorted(whole.iterdir())), folder, rng)
    record = {"path": str(path), "bytes": path.read_bytes()} if rng.random() < 0.3 else path
    return partial(open_image, record), (str(path),)


def make_configurations(folder: Path) -> None:
    (folder / "own.yaml").write_text(
        "# of a run\nbase: base.yaml\nseed: 3\nrate: 1e-3\nname: 'a bird'\nsizes: [1, 2]\n"
        "nested: {model_type: vit, hidden_size: 16}\nswitch: true\n"
    )
    options = {"base": "base.yaml", "seed": 3, "rate": 0.1, "name": "a", "sizes": [1, 2], "nested": {"a": [1]}}
    (folder / "own.json").write_text(json.dumps(options, indent=2))
    (folder / "base.yaml").write_text("seed: 1\nswitch: false\n")


def read_configuration(folder: Path, whole: Path, rng: Random) -> Reading:
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    path = folder / rng.choice(("own.yaml", "own.yaml", "own.json"))
    content = path.read_bytes()
    path.write_bytes(change_json(content, rng) if path.suffix == ".json" else change_lines(content, rng, ODD_YAML))
    parse_arguments = importlib.import_module("arguments").parse_arguments
    return partial(parse_arguments, (Options,), [str(path)]), (path.name, str(folder))


def make_checkpoint(folder: Path) -> None:
    classifier(ViTConfig(image_size=16, **TINY_SIZES), num_labels=3).save_pretrained(folder)


def read_config(folder: Path, whole: Path, rng: Random) -> Reading:
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    path = folder / "config.json"
    path.write_bytes(change_json(path.read_bytes(), rng))
    return partial(DCALForImageClassification.from_pretrained, folder), (str(folder),)


def read_safetensors(folder: Path, whole: Path, rng: Random) -> Reading:
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    if rng.random() < 0.5:
        path.write_bytes(change_bytes(content, rng))
    else:
        (size,) = struct.unpack_from("<Q", content)
        header = json.dumps(change_value(json.loads(content[8:8 + size]), rng)).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size:])
    return partial(DCALForImageClassification.from_pretrained, folder), (str(folder),)


def make_for_commands(folder: Path) -> None:
    """A checkpoint with everything that commands read: weights in several files, a temperature and a threshold."""
    model = classifier(ViTConfig(image_size=16, **TINY_SIZES), num_labels=3)
    model.save_pretrained(folder, max_shard_size="8KB")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    metrics = {"temperature": 2.5, "ece": 0.2, "ece_scaled": 0.1}
    importlib.import_module("temperature").save_temperature(model, folder, metrics, "birds", 9)
    calibration = ("birds", model_fingerprint(model), "2020-01-01", "1")
    VerificationThreshold(0.5, 0.01, 0.9, 9, 3, 4, 5, *calibration).save(folder)
    noise_picture().save(folder / "owl.png")


def read_as_commands(folder: Path, whole: Path, rng: Random) -> Reading:
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    path = rng.choice([*sorted(folder.glob("*.json")), *sorted(folder.glob("*.safetensors"))[:2]])
    path.write_bytes((change_json if path.suffix == ".json" else change_bytes)(path.read_bytes(), rng))
    module = {name: importlib.import_module(name) for name in ("embed", "loading", "predict", "temperature", "verify")}

    def read() -> None:
        args = module["embed"].CheckpointArguments(str(folder))
        model, processor = module["loading"].load_classifier(args)
        module["verify"].load_threshold(args, model)
        temperature = module["temperature"].load_temperature(model, args)
        list(module["predict"].predict(model, processor, [str(folder / "owl.png")], [None], args, True, temperature))

    return read, (str(folder),)


def make_archives(folder: Path) -> None:
    members = folder / "members"
    (members / "owl").mkdir(parents=True)
    for number in range(3):
        noise_picture(number, 6, 4).save(members / "owl" / f"{number}.png")
    for suffix, mode in (("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz")):
        with tarfile.open(folder / f"birds.{suffix}", mode, format=tarfile.PAX_FORMAT) as file:
            # Beyond 100 bytes, in a header of its own.
            file.add(members / "owl", "owl" + "é" * 60)
            link = tarfile.TarInfo("owl/link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "0.png"
            file.addfile(link)
    for name, compression in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED),
                              ("bzip2", zipfile.ZIP_BZIP2), ("lzma", zipfile.ZIP_LZMA)):
        with zipfile.ZipFile(folder / f"{name}.zip", "w", compression) as file:
            for path in sorted(members.rglob("*.png")):
                file.write(path, f"owl/{path.name}")
    shutil.rmtree(members)


def read_archive(folder: Path, whole: Path, rng: Random) -> Reading:
    path = damaged_copy(rng.choice(sorted(whole.iterdir())), folder, rng)
    return partial(data_folder, path, cache_dir=folder), (str(path),)


def make_csv(folder: Path) -> None:
    for number, (name, *_) in enumerate(ROWS):
        noise_picture(number, 6, 4).save(folder / name)
    lines = [("image", "identity", "camera", "split"), *ROWS]
    (folder / "rows.csv").write_text("".join(",".join(line) + "\n" for line in lines))


def read_csv(folder: Path, whole: Path, rng: Random) -> Reading:
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    path = folder / "rows.csv"
    path.write_bytes(change_lines(path.read_bytes(), rng, ODD_CSV))
    return partial(load_reid, path), (path.name,)


def make_parquet(folder: Path) -> None:
    make_csv(folder)
    columns = dict(zip(("image", "identity", "camera", "split"), map(list, zip(*ROWS)), strict=True))
    Dataset.from_dict(columns).to_parquet(folder / "rows.parquet")


def read_parquet(folder: Path, whole: Path, rng: Random) -> Reading:
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    path = folder / "rows.parquet"
    path.write_bytes(change_bytes(path.read_bytes(), rng))
    return partial(load_reid, path), (path.name,)


def make_cars(folder: Path) -> None:
    records = [[(f"{number}.jpg", 1 + number % 2, 0) for number in range(3)]]
    kinds = [("fname", object), ("class", object), ("test", object)]
    names = np.array([["a car", "another"]], dtype=object)
    for split in ("train", "test"):
        (folder / f"cars_{split}").mkdir()
        for number in range(3):
            noise_picture(number, 6, 4).save(folder / f"cars_{split}" / f"{number}.jpg")
    (folder / "devkit").mkdir()
    for name, compressed in (("train_annos", False), ("test_annos_withlabels", True)):
        variables = {"annotations": np.array(records, dtype=kinds)}
        savemat(folder / "devkit" / f"cars_{name}.mat", variables, do_compression=compressed)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})


def read_cars(folder: Path, whole: Path, rng: Random) -> Reading:
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    path = rng.choice(sorted((folder / "devkit").iterdir()))
    path.write_bytes(change_bytes(path.read_bytes(), rng))
    return partial(load_fgvc, "stanford_cars", folder, validation_fraction=0), (path.name,)


def make_gallery(folder: Path) -> None:
    make("IVF1,Flat", count=5, search_parameters={"nprobe": 1}).save(folder / "gallery")
    VerificationThreshold(0.5, 0.01, 0.9, 9, 3, 4, 5, "birds", "dcal-f00", "2020-01-01", "1").save(folder / "gallery")


def read_gallery(folder: Path, whole: Path, rng: Random) -> Reading:
    gallery = shutil.copytree(whole / "gallery", folder / "gallery")
    path = rng.choice(sorted(path for path in gallery.rglob("*") if path.is_file()))
    path = rng.choice((path, gallery / "gallery.json", gallery / "verification.json"))
    path.write_bytes((change_json if path.suffix == ".json" else change_bytes)(path.read_bytes(), rng))
    if path.name == "verification.json":
        return partial(VerificationThreshold.load, gallery, "dcal-f00"), (str(gallery),)
    return lambda: GalleryIndex.load(gallery).search([[0.5] * 16], 2), (str(gallery),)


def make_run(folder: Path) -> None:
    make_trainer(str(folder), save_strategy="steps", save_steps=1, max_steps=2).train()


def read_run(folder: Path, whole: Path, rng: Random) -> Reading:
    run = shutil.copytree(whole, folder / "run")
    newest = run / "checkpoint-2"
    path = rng.choice((run / "_run.json", newest / "manifest.json", *sorted(newest.iterdir())))
    path.write_bytes((change_json if path.suffix == ".json" else change_bytes)(path.read_bytes(), rng))
    read = rng.choice((partial(last_checkpoint, run), partial(check_resumable, newest, 0, 1)))
    return read, (str(run),)


def damaged_copy(source: Path, folder: Path, rng: Random) -> Path:
    path = folder / source.name
    path.write_bytes(change_bytes(source.read_bytes(), rng))
    return path


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        make: Writes whole ones.
        read: Writes a damaged copy, and tells how it is read.
        cases (`int`): How many are read in the normal suite, and five times as many with `-m slow`.
    """

    make: Callable[[Path], None]
    read: Callable[[Path, Path, Random], Reading]
    cases: int


KINDS = {
    "image": Kind(make_images, read_image, 50),
    "configuration": Kind(make_configurations, read_configuration, 40),
    "config": Kind(make_checkpoint, read_config, 20),
    "safetensors": Kind(make_checkpoint, read_safetensors, 12),
    "commands": Kind(make_for_commands, read_as_commands, 16),
    "archive": Kind(make_archives, read_archive, 24),
    "csv": Kind(make_csv, read_csv, 16),
    "parquet": Kind(make_parquet, read_parquet, 8),
    "mat": Kind(make_cars, read_cars, 10),
    "gallery": Kind(make_gallery, read_gallery, 12),
    "run": Kind(make_run, read_run, 8),
}


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def fuzz(name: str, folder: Path, numbers: range) -> str:
    """Reads damaged files, and tells how many could be read."""
    kind, flaws, results = KINDS[name], [], 0
    whole = folder / "whole"
    whole.mkdir()
    kind.make(whole)
    for number in numbers if ONLY is None else [int(ONLY)]:
        case = Case(name, SEED, number)
        place = folder / str(number)
        place.mkdir()
        has_result, flaw = run_case(case, *kind.read(place, whole, case.rng))
        results += has_result
        if flaw is None:
            shutil.rmtree(place)
        else:
            flaws.append(flaw)
    assert not flaws, "\n\n".join(flaws)
    return f"{results} read, {len(numbers) - results} refused in a sentence"


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_give_a_result_or_a_clear_error(tmp_path, name):
    fuzz(name, tmp_path, range(KINDS[name].cases))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_thousand_damaged_files_give_a_result_or_a_clear_error(tmp_path, name, tell):
    """The normal suite has read the first fifth of them."""
    count = 5 * KINDS[name].cases
    tell(f"damaged files: {name}, seed {SEED}", f"{count} cases", fuzz(name, tmp_path, range(count)))
