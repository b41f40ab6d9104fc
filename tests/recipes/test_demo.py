"""The demo: what the page answers, and the Space that it becomes. The page itself needs gradio."""

import runpy
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModel, ViTConfig, ViTImageProcessor, pipeline

from dcal_hf import DCALForImageClassification, DCALForReID
from dcal_hf.data import MAX_PIXELS, open_image
from dcal_hf.retrieval import GalleryIndex, VerificationThreshold, model_fingerprint

from helpers import TINY_SIZES, add_noise, noise_picture


NAMES = ["finch", "robin", "wren"]
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="needs the extra demo")


def save(model: torch.nn.Module, folder: Path) -> Path:
    add_noise(model, 0.2).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    paths = [folder / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        noise_picture(number, 800, 40).save(path)
    return paths


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    model = DCALForImageClassification.from_backbone(ViTConfig(image_size=16, **TINY_SIZES), **labels)
    return save(model, tmp_path_factory.mktemp("demo") / "birds")


@pytest.fixture(scope="module")
def reid_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(image_size=16, **TINY_SIZES)
    model = DCALForReID.from_backbone(config, num_labels=3, local_query_ratio=0.5)
    return save(model, tmp_path_factory.mktemp("demo") / "reid")


@pytest.fixture(scope="module")
def gallery_folder(run_recipe, reid_folder, photographs) -> Path:
    gallery = reid_folder.parent / "gallery"
    folder = photographs[0].parent
    run_recipe("embed", "--model_name_or_path", reid_folder, "--image_dir", folder, "--output_dir", gallery)
    return gallery


@pytest.fixture(scope="module")
def load(import_recipe):
    def load_demo(folder: Path, *args):
        return import_recipe("demo_app").load_demo(import_recipe("arguments").HubArguments(str(folder)), *args)

    return load_demo


def embeddings_of(folder: Path, paths: list[Path]) -> np.ndarray:
    pixel_values = ViTImageProcessor.from_pretrained(folder)([open_image(path) for path in paths], return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(folder)(**pixel_values).embeddings.double().numpy()


def threshold(folder: Path, value: float) -> VerificationThreshold:
    facts = {"num_images": 9, "num_identities": 3, "num_same_pairs": 9, "num_different_pairs": 27}
    facts |= {"dataset": "turtles", "date": "2026-01-01", "dcal_hf_version": "0", "true_accept_rate": 0.9}
    model_id = model_fingerprint(AutoModel.from_pretrained(folder))
    return VerificationThreshold(threshold=value, false_accept_rate=0.01, model_id=model_id, **facts)


def test_a_photograph_gets_the_classes_of_the_pipeline(load, classifier_folder, photographs):
    answers, attention = load(classifier_folder).classify(str(photographs[0]))
    expected = pipeline("image-classification", model=str(classifier_folder))(str(photographs[0]))
    assert answers["both"] == pytest.approx({answer["label"]: answer["score"] for answer in expected}, abs=1e-5)
    halves = {name: (answers["sa"][name] + answers["glca"][name]) / 2 for name in NAMES}
    assert answers["both"] == pytest.approx(halves, abs=1e-5)
    assert attention.size == (800, 40)


@pytest.fixture
def calibrated_folder(import_recipe, classifier_folder, tmp_path) -> Path:
    """The classifier with a temperature of 2.5 beside it."""
    folder = shutil.copytree(classifier_folder, tmp_path / "calibrated")
    model = DCALForImageClassification.from_pretrained(folder)
    metrics = {"temperature": 2.5, "ece": 0.2, "ece_scaled": 0.1}
    import_recipe("temperature").save_temperature(model, folder, metrics, "birds", 9)
    return folder


def scaled(answers: dict[str, float], temperature: float) -> dict[str, float]:
    """Probabilities of logits that are divided by a temperature."""
    powers = {name: probability ** (1 / temperature) for name, probability in answers.items()}
    return {name: power / sum(powers.values()) for name, power in powers.items()}


def test_calibrated_probabilities_are_those_of_the_pipeline_scaled(load, calibrated_folder, photographs):
    photograph = str(photographs[0])
    found = {calibrated: load(calibrated_folder, None, None, calibrated) for calibrated in (False, True)}
    raw, answers = (demo.classify(photograph)[0] for demo in found.values())
    expected = pipeline("image-classification", model=str(calibrated_folder))(photograph)
    assert raw["both"] == pytest.approx({answer["label"]: answer["score"] for answer in expected}, abs=1e-5)
    assert answers["both"] == pytest.approx(scaled(raw["both"], 2.5), abs=1e-5)
    assert (answers["sa"], answers["glca"]) == (raw["sa"], raw["glca"])


def test_two_photographs_are_compared_by_the_calibrated_threshold(load, reid_folder, photographs):
    one, two = embeddings_of(reid_folder, photographs[:2])
    distance = np.linalg.norm(one - two)
    first, second = map(str, photographs[:2])
    demo = load(reid_folder)
    answer, *drawn = demo.compare(first, second)
    assert f"Distance {distance:.4f}. No threshold" in answer
    assert [picture.size for picture in drawn] == [(800, 40)] * 2
    for value, decision in ((distance * 1.1, "The same individual"), (distance * 0.9, "Different individuals")):
        demo.threshold = threshold(reid_folder, value)
        assert demo.compare(first, second)[0].startswith(f"{decision}, distance {distance:.4f} (threshold {value:.4f}")


def test_a_gallery_is_searched(load, reid_folder, gallery_folder, photographs):
    demo = load(reid_folder, gallery_folder)
    answer, found = demo.search(str(photographs[2]))
    assert answer == "The nearest of 4 images has a distance of 0.0000."
    embeddings = embeddings_of(reid_folder, photographs)
    order = np.linalg.norm(embeddings - embeddings[2], axis=1).argsort()
    assert [caption.splitlines()[1] for _, caption in found] == [photographs[i].name for i in order]
    assert found[0][0].size == (800, 40)
    demo.threshold = threshold(reid_folder, 1e-9)
    demo.gallery.remove([2])
    assert "Probably a new individual (threshold 0.0000)" in demo.search(str(photographs[2]))[0]


def test_matches_are_the_parts_of_photographs_that_were_embedded(load, import_recipe, reid_folder, photographs):
    """In a Space, too, whose gallery has smaller copies of the images."""
    demo, path = load(reid_folder), str(photographs[0])
    items = {"image": [path, path], "bbox": [[10, 0, 40, 30], [0, 0, 700, 40]]}
    width = embeddings_of(reid_folder, photographs[:1]).shape[1]
    demo.gallery = GalleryIndex.from_embeddings(np.eye(2, width), items, model_id=model_fingerprint(demo.model))
    assert sorted(picture.size for picture, _ in demo.search(path)[1]) == [(40, 30), (700, 40)]
    demo.gallery = import_recipe("space").with_thumbnails(demo.gallery, MAX_PIXELS)
    assert sorted(picture.size for picture, _ in demo.search(path)[1]) == [(40, 30), (512, 29)]


@needs_gradio
def test_a_space_contains_no_local_path(run_recipe, reid_folder, gallery_folder, tmp_path):
    options = ["--model_name_or_path", reid_folder, "--gallery_dir", gallery_folder]
    run_recipe("demo", *options, "--export_space", tmp_path / "space")
    files = [path for path in (tmp_path / "space").rglob("*") if path.is_file()]
    assert "gallery.json" in {path.name for path in files}
    assert [path for path in files if str(reid_folder.parent).encode() in path.read_bytes()] == []


@needs_gradio
def test_a_space_runs_the_registrations_that_its_checkpoint_needs(
    run_recipe, reid_folder, tmp_path, monkeypatch
):
    own, space = tmp_path / "it's" / "registrations_of_a_space.py", tmp_path / "space"
    (own.parent / "genera").mkdir(parents=True)
    for name in ("genera/__init__.py", "genera/corvus.py", "names_of_genera.py", "private.py"):
        (own.parent / name).touch()
    writes = f"with open({str(tmp_path / 'ran')!r}, 'a') as file:\n    file.write(__file__)\n"
    own.write_text(f"import genera.corvus\nimport names_of_genera\n\n{writes}")
    imported = [own.stem, "genera", "genera.corvus", "names_of_genera"]
    with monkeypatch.context() as here:
        here.setattr(sys, "path", [*sys.path])
        run_recipe("demo", "--model_name_or_path", reid_folder, "--register", own, "--export_space", space)
    # As in another process.
    for name in imported:
        del sys.modules[name]
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(space / "app.py"))
    for name in imported:
        assert Path(sys.modules.pop(name).__file__).is_relative_to(space)
    (copy,) = space.rglob(own.name)
    copied = {path.name for path in copy.parent.iterdir()}
    assert copied - {"__pycache__"} == {"genera", "names_of_genera.py", own.name}
    assert (tmp_path / "ran").read_text() == f"{own}{copy}"


@needs_gradio
def test_a_space_contains_only_what_the_demo_reads(run_recipe, classifier_folder, tmp_path):
    """A folder may hold other files, and links to files that are nobody's business."""
    folder, private = shutil.copytree(classifier_folder, tmp_path / "birds"), tmp_path / "private"
    private.write_text("private")
    for name in ("model-draft.safetensors", "model.safetensors.bak", "temperature.json"):
        (folder / name).symlink_to(private)
    run_recipe("demo", "--model_name_or_path", folder, "--export_space", tmp_path / "space")
    copied = {path.name for path in (tmp_path / "space" / "model").iterdir()}
    assert copied == {"config.json", "preprocessor_config.json", "model.safetensors"}
    DCALForImageClassification.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    run_recipe("demo", "--model_name_or_path", folder, "--export_space", tmp_path / "sharded")
    assert DCALForImageClassification.from_pretrained(tmp_path / "sharded" / "model").config.num_labels == 3


@needs_gradio
def test_the_page_shows_names_as_text(load, import_recipe, reid_folder):
    """gradio renders HTML in error messages, and Markdown, with its images, in answers."""
    import gradio

    def fail(path):
        raise ValueError(f"cannot read image {path}")

    app = import_recipe("demo_app")
    with pytest.raises(gradio.Error) as error:
        app.as_errors(fail)("/tmp/<img src=x onerror=alert(1)>.png")
    assert error.value.message == "cannot read image &lt;img src=x onerror=alert(1)&gt;.png"
    page = app.page(load(reid_folder))
    (compare,) = (function for function in page.fns.values() if function.api_name == "compare")
    assert isinstance(compare.outputs[0], gradio.Textbox)


@needs_gradio
@pytest.mark.parametrize(("readout", "has_frames"), [("cls", False), ("local", True)])
def test_the_legend_explains_frames_where_patches_are_framed(
    load, import_recipe, reid_folder, readout, has_frames
):
    import gradio

    demo = load(reid_folder)
    demo.model.config.glca_readout = readout
    texts = [block.value for block in import_recipe("demo_app").page(demo).blocks.values()
             if isinstance(block, gradio.Markdown)]
    assert sum("Bright: what the class token attends to." in text for text in texts) == 2
    assert any("Frames" in text for text in texts) == has_frames


@needs_gradio
@pytest.mark.slow
def test_a_space_runs_on_what_is_in_its_folder(run_recipe, reid_folder, gallery_folder, photographs, tmp_path):
    threshold(reid_folder, 0.5).save(reid_folder)
    space = tmp_path / "space"
    options = ["--model_name_or_path", reid_folder, "--gallery_dir", gallery_folder, "--export_space", space]
    run_recipe("demo", *options, "--title", "Who's \"who\"?")
    _, header, _ = (space / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    facts = yaml.safe_load(header)
    assert (facts["sdk"], facts["app_file"], facts["title"]) == ("gradio", "app.py", "Who's \"who\"?")
    lines = (space / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch") for line in lines) and not any("pytest" in line for line in lines)
    items = GalleryIndex.load(space / "gallery").items
    assert [item["image"]["path"] for item in items] == [path.name for path in photographs]
    assert open_image(items[0]["image"]).size == (512, 26)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "path", [*sys.path])
        page = runpy.run_path(str(space / "app.py"))["demo"]
    assert {function.api_name for function in page.fns.values()} == {"compare", "search"}
    with pytest.raises(FileExistsError, match="exists and is not empty: choose another folder"):
        run_recipe("demo", *options)


@needs_gradio
@pytest.mark.slow
def test_a_space_is_calibrated_as_the_demo_is(run_recipe, load, calibrated_folder, photographs, tmp_path):
    options = ["--model_name_or_path", calibrated_folder, "--calibrated", "--export_space", tmp_path / "space"]
    run_recipe("demo", *options)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "path", [*sys.path])
        page = runpy.run_path(str(tmp_path / "space" / "app.py"))["demo"]
    (classify,) = (function.fn for function in page.fns.values() if function.api_name == "classify")
    answers, _ = load(calibrated_folder, None, None, True).classify(str(photographs[0]))
    assert classify(str(photographs[0]))[1] == pytest.approx(answers["both"], abs=1e-5)


@needs_gradio
@pytest.mark.slow
def test_the_page_answers_over_http(load, import_recipe, classifier_folder, photographs, tmp_path):
    from gradio_client import Client, handle_file

    demo = load(classifier_folder)
    page = import_recipe("demo_app").page(demo)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True)
    try:
        client = Client(url, verbose=False, download_files=tmp_path)
        attention, both, sa, glca = client.predict(handle_file(str(photographs[0])), api_name="/classify")
        answers, _ = demo.classify(str(photographs[0]))
        for shown, branch in ((both, "both"), (sa, "sa"), (glca, "glca")):
            confidences = {entry["label"]: entry["confidence"] for entry in shown["confidences"]}
            assert confidences == pytest.approx(answers[branch], abs=1e-5)
        assert open_image(attention).size == (800, 40)
        # Pillow opens the first, whose header is complete, but not the second.
        for size in (300, 4):
            broken = tmp_path / "broken.png"
            broken.write_bytes(photographs[0].read_bytes()[:size])
            with pytest.raises(Exception, match="cannot read image broken.png: "):
                client.predict(handle_file(str(broken)), api_name="/classify")
    finally:
        page.close()
