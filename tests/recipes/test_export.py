"""ONNX export: the example in the README, outputs at any batch size, and unsupported models."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from transformers import AutoModel, ViTConfig, ViTImageProcessor, pipeline

from dcal_hf import DCALForImageClassification, DCALForReID
from dcal_hf.export import export_onnx
from dcal_hf.export.metadata import resizing
from dcal_hf.retrieval import model_fingerprint
from dcal_hf.transforms import fine_grained_processor, reid_processor

from helpers import TINY_SIZES, add_noise, classifier, noise_picture


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
NAMES = ["finch", "robin", "wren"]
IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A classifier in out/birds, and photographs, as in the README."""
    folder = tmp_path_factory.mktemp("export")
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    torch.manual_seed(0)
    config = ViTConfig(image_size=(16, 24), **TINY_SIZES)
    model = add_noise(DCALForImageClassification.from_backbone(config, local_query_ratio=0.3, **labels), 0.3)
    model.save_pretrained(folder / "out" / "birds")
    fine_grained_processor(ViTImageProcessor(), (16, 24), 1.5).save_pretrained(folder / "out" / "birds")
    (folder / "photographs").mkdir()
    for number in range(3):
        noise_picture(number, 40 + number, 30).save(folder / "photographs" / f"{number}.png")
    noise_picture(7, 50, 41).save(folder / "sparrow.jpg")
    return folder


@pytest.fixture(scope="module")
def exported(folder, run_recipe) -> Path:
    """The export of the README with int8, shared by the tests because it takes seconds."""
    (command,) = re.findall(r"^python recipes/export.py (.*)$", README, re.MULTILINE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        outputs = ("probabilities", "glca_logits", "embeddings")
        run_recipe("export", *shlex.split(command), "--int8", "--outputs", *outputs)
    return folder / "birds.onnx"


def test_the_readme_classifies_a_photograph_without_torch(exported, folder, monkeypatch, capsys):
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "onnxruntime" in code)
    assert len(list(filter(None, code.splitlines()))) <= 10
    monkeypatch.chdir(folder)
    # The fixture requests more outputs than the README's command does.
    exec(code.replace("(probabilities,) =", "(probabilities, *_) ="), {})
    name, probability = capsys.readouterr().out.split()
    best = pipeline("image-classification", model="out/birds")("sparrow.jpg")[0]
    assert name == best["label"]
    # Pillow and torchvision round resized pixels differently.
    assert float(probability) == pytest.approx(best["score"], abs=0.02)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_any_batch_gives_what_torch_gives(exported, folder, batch_size):
    crops = np.random.default_rng(batch_size).integers(0, 256, (batch_size, 16, 24, 3), dtype=np.uint8)
    found = onnxruntime.InferenceSession(exported).run(None, {"images": crops})
    model = DCALForImageClassification.from_pretrained(folder / "out" / "birds").eval()
    # The processor scales to [0, 1], then normalises with mean 0.5 and standard deviation 0.5.
    pixel_values = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        output = model(pixel_values)
    expected = [(output.sa_logits.softmax(-1) + output.glca_logits.softmax(-1)) / 2, output.glca_logits]
    for value, right in zip(found, [*expected, output.embeddings], strict=True):
        np.testing.assert_allclose(value, right.numpy(), atol=1e-5)


def test_the_metadata_describes_inputs_and_outputs(exported, folder):
    about = json.loads(exported.with_name("birds.onnx.metadata.json").read_text())
    assert about["labels"] == NAMES and about["outputs"] == ["probabilities", "glca_logits", "embeddings"]
    session = onnxruntime.InferenceSession(exported)
    assert [about["input"][name] for name in ("name", "shape")] == ["images", session.get_inputs()[0].shape]
    assert about["embedding_dim"] == session.get_outputs()[2].shape[1] == 2 * TINY_SIZES["hidden_size"]
    assert about["model_id"] == model_fingerprint(AutoModel.from_pretrained(folder / "out" / "birds"))
    assert about["normalisation"] == {"mean": [0.5] * 3, "std": [0.5] * 3, "in_graph": True}
    assert (about["resize"], about["crop"]) == ([36, 24], [6, 4, 30, 20])
    assert about["compared"]["photographs"] and about["compared"]["images"] == 3 and about["temperature"] == 1


@pytest.mark.parametrize("size", [(16, 24), (48, 64), (62, 62), (224, 112)])
def test_pillow_resizes_and_crops_as_the_processor_does(size):
    processor = fine_grained_processor(ViTImageProcessor(), size)
    about, photograph = resizing(processor, size), noise_picture(3, 90, 60)
    pixels = np.asarray(photograph.resize(about["resize"], about["resample"]).crop(about["crop"]), dtype=float)
    expected = processor(photograph, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0) * 127.5 + 127.5
    # Pillow and torchvision round differently, by 1 of 255; a crop that is off by one differs by more than 50.
    assert np.abs(pixels - expected).max() < 2


def test_the_file_holds_no_paths_of_this_computer(exported):
    assert b".py" not in exported.read_bytes()


def test_int8_is_close_to_torch(exported):
    crops = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), dtype=np.uint8)
    small = exported.with_name("birds.int8.onnx")
    embeddings = [onnxruntime.InferenceSession(path).run(["embeddings"], {"images": crops})[0]
                  for path in (exported, small)]
    differences = np.abs(embeddings[0] - embeddings[1]).max()
    assert 1e-6 < differences < 0.2 * np.abs(embeddings[0]).max()
    about = json.loads(small.with_name("birds.int8.onnx.metadata.json").read_text())
    assert about["int8"] and 0.99 < about["compared"]["agreement"]["embeddings"]["cosine"] <= 1


@pytest.fixture
def without_onnx(monkeypatch) -> list[dict[str, np.ndarray]]:
    """Exports without the graph, which takes seconds; returns the outputs of torch by name, per export."""
    outputs = []

    def run(graph, pixel_values, files):
        batch = tuple(output.detach().numpy() for output in graph.read(pixel_values))
        outputs.append(dict(zip(graph.outputs, batch, strict=True)))
        return [batch], [[batch]]

    monkeypatch.setattr("dcal_hf.export.onnx_files.save_graph", lambda graph, pixel_values, path: path.touch())
    monkeypatch.setattr("dcal_hf.export.onnx_files.run_batches", run)
    return outputs


def test_calibrated_probabilities_are_those_of_predict(
    folder, import_recipe, run_recipe, without_onnx, tmp_path
):
    source = shutil.copytree(folder / "out" / "birds", tmp_path / "birds")
    model = ["--model_name_or_path", source]
    metrics = {"temperature": 2.5, "ece": 0.2, "ece_scaled": 0.1}
    classifier = DCALForImageClassification.from_pretrained(source)
    import_recipe("temperature").save_temperature(classifier, source, metrics, "birds", 9)
    outputs = ["probabilities", "logits", "sa_probabilities", "glca_probabilities"]
    images = ["--images", folder / "photographs"]
    run_recipe("export", *model, "--output", tmp_path / "a.onnx", "--calibrated", "--outputs", *outputs, *images)
    run_recipe("predict", *model, *images, "--output_dir", tmp_path, "--calibrated", "--sheet_images", 0)
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    (found,) = without_onnx
    for branch, name in (("both", "probabilities"), ("sa", "sa_probabilities"), ("glca", "glca_probabilities")):
        expected = [float(row[f"probability_{branch}"]) for row in rows]
        labels = [NAMES.index(row["class"]) for row in rows]
        np.testing.assert_allclose(found[name][np.repeat(range(3), 3), labels], expected, atol=1e-4, err_msg=name)
    exponents = np.exp(found["logits"])
    np.testing.assert_allclose(exponents / exponents.sum(1, keepdims=True), found["probabilities"], atol=1e-6)
    assert json.loads((tmp_path / "a.onnx.metadata.json").read_text())["temperature"] == 2.5


def test_a_checkpoint_in_half_precision_is_exported_with_its_temperature(folder, import_recipe, tmp_path, monkeypatch):
    """The model is exported in float32, but calibrated as it was evaluated."""
    classifier = DCALForImageClassification.from_pretrained(folder / "out" / "birds", dtype=torch.bfloat16)
    source = shutil.copytree(folder / "out" / "birds", tmp_path / "half")
    classifier.save_pretrained(source)
    metrics = {"temperature": 2.5, "ece": 0.2, "ece_scaled": 0.1}
    evaluated = DCALForImageClassification.from_pretrained(source)
    assert evaluated.dtype == torch.bfloat16
    import_recipe("temperature").save_temperature(evaluated, source, metrics, "birds", 9)
    export = import_recipe("export")
    calls = []
    monkeypatch.setattr(export, "export_onnx", lambda *args, **kwargs: calls.append((args[0].dtype, kwargs)))
    monkeypatch.setattr(export, "report", lambda exported: None)
    arguments = ["--model_name_or_path", str(source), "--output", str(tmp_path / "a.onnx"), "--calibrated"]
    monkeypatch.setattr("sys.argv", ["export.py", *arguments])
    export.main()
    ((dtype, options),) = calls
    assert dtype == torch.float32 and options["temperature"] == 2.5


def test_a_temperature_is_for_classifiers(tmp_path, run_recipe):
    model, processor = tiny_reid((256, 128)), reid_processor(ViTImageProcessor(), (256, 128))
    with pytest.raises(ValueError, match="A temperature scales the logits of a classifier, and the model is none"):
        export_onnx(model, processor, tmp_path / "a.onnx", temperature=2.5)
    model.save_pretrained(tmp_path / "reid")
    processor.save_pretrained(tmp_path / "reid")
    arguments = ["--model_name_or_path", tmp_path / "reid", "--output", tmp_path / "a.onnx", "--calibrated"]
    with pytest.raises(ValueError, match="^--calibrated scales the probabilities of a classifier, and .*: leave out"):
        run_recipe("export", *arguments)


def test_files_are_overwritten_only_on_request(exported, folder, run_recipe):
    before = exported.stat().st_mtime_ns
    with pytest.raises(FileExistsError, match="birds.onnx exists: choose another name, or allow to overwrite it"):
        run_recipe("export", "--model_name_or_path", folder / "out" / "birds", "--output", exported)
    assert exported.stat().st_mtime_ns == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def tiny_reid(size: tuple[int, int], **kwargs) -> DCALForReID:
    config = ViTConfig(image_size=size, **TINY_SIZES | {"patch_size": 64})
    return add_noise(DCALForReID.from_backbone(config, num_labels=3, local_query_ratio=0.5, **kwargs), 0.2)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("a.pt", {}, "a.pt must end in .onnx"),
        ("a.onnx", {"outputs": ["probabilities"]}, "must be some of embeddings, rollout, each once"),
        ("clip_a.onnx", {"input_kind": "tracker"}, "if a name has 'clip': rename it"),
        ("verify.onnx", {"input_kind": "tracker"}, "the model takes 256 x 128 pixels, but trackers pass 256 x 256"),
        ("a.onnx", {"input_kind": "tracker", "outputs": ["rollout"]}, "must be embeddings, not rollout"),
    ],
)
def test_invalid_usage_raises_a_clear_error(tmp_path, name, options, sentence):
    processor = reid_processor(ViTImageProcessor(), (256, 128))
    with pytest.raises(ValueError, match=sentence):
        export_onnx(tiny_reid((256, 128)), processor, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be_exported_are_rejected(tmp_path):
    model, processor = tiny_reid((256, 128)), reid_processor(ViTImageProcessor(), (256, 128))
    with pytest.raises(ValueError, match="torch.bfloat16: load it with dtype=torch.float32"):
        export_onnx(tiny_reid((256, 128)).to(torch.bfloat16), processor, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="local_query_selection='random' draws other patches in each call"):
        export_onnx(tiny_reid((256, 128), local_query_selection="random"), processor, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="outputs 128 x 128 pixels, and the model takes 256 x 128"):
        export_onnx(model, reid_processor(processor, (128, 128)), tmp_path / "a.onnx")


def test_a_difference_from_torch_is_an_error_and_writes_nothing(tmp_path, monkeypatch):
    model, processor = tiny_reid((256, 128)), reid_processor(ViTImageProcessor(), (256, 128))

    def run_wrong(graph, pixel_values, files):
        right = [(np.zeros((1, 4)),), (np.zeros((2, 4)),)]
        return right, [[(np.zeros((1, 4)),), (np.array([[0, 0, 0, 0], [0, 0, 0.5, np.nan]]),)]]

    monkeypatch.setattr("dcal_hf.export.onnx_files.save_graph", lambda graph, pixel_values, path: path.touch())
    monkeypatch.setattr("dcal_hf.export.onnx_files.run_batches", run_wrong)
    with pytest.raises(ValueError, match="embeddings of a batch of 2 by nan, which is above the tolerance of 0.0001"):
        export_onnx(model, processor, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_the_extra_is_named_if_a_package_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("dcal_hf.export.onnx_files.PACKAGES", ("onnx", "onnx_of_nobody"))
    with pytest.raises(ImportError, match=r"needs onnx_of_nobody: pip install dcal_hf\[export\]"):
        export_onnx(tiny_reid((256, 128)), ViTImageProcessor(), tmp_path / "a.onnx")


def test_an_encoder_that_cannot_be_exported_is_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise torch.onnx.OnnxExporterError("step 1") from RuntimeError("no data-dependent shapes\nand so on")

    monkeypatch.setattr("torch.onnx.export", refuse)
    model, processor = tiny_reid((256, 128)), reid_processor(ViTImageProcessor(), (256, 128))
    chosen = model.config._attn_implementation
    with pytest.raises(ValueError, match="torch.onnx cannot export the encoder 'vit': no data-dependent shapes$"):
        export_onnx(model, processor, tmp_path / "a.onnx")
    assert model.config._attn_implementation == chosen and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.5, IMAGENET_MEAN.tolist()], ids=["converted", "imagenet"])
def test_tracker_input(tmp_path, mean):
    """BoxMOT normalises RGB crops by ImageNet's constants, and reads the first output of the first input."""
    constants = {} if mean == 0.5 else {"image_mean": mean, "image_std": IMAGENET_STD.tolist()}
    processor = reid_processor(ViTImageProcessor(**constants), (256, 128))
    model = tiny_reid((256, 128))
    export_onnx(model, processor, tmp_path / "persons.onnx", input_kind="tracker")
    crops = np.random.default_rng(0).integers(0, 256, (3, 256, 128, 3), dtype=np.uint8)
    images = ((crops / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "persons.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, 256, 128]
    found = session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: images})[0]
    with torch.no_grad():
        expected = model(**processor([Image.fromarray(crop) for crop in crops], return_tensors="pt")).embeddings
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    about = json.loads((tmp_path / "persons.onnx.metadata.json").read_text())
    assert about["model_kwargs"] == {"img_size": [256, 128]} and about["schema_version"] == 1


@pytest.mark.slow
def test_every_encoder_can_be_exported(any_backbone_config, tmp_path):
    model = classifier(any_backbone_config)
    rollout = ["rollout"] if model.config.has_cls else []
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    outputs = ["probabilities", "sa_logits", "embeddings", *rollout]
    export = export_onnx(model, processor, tmp_path / "a.onnx", outputs=outputs)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for size in (1, 2, 5):
        pixel_values = torch.randn(size, 3, 32, 32)
        with torch.no_grad():
            output = model(pixel_values, output_rollout=bool(rollout))
        expected = [output.logits.softmax(-1), output.sa_logits, output.embeddings]
        expected += [output.rollout] if rollout else []
        found = session.run(None, {"pixel_values": pixel_values.numpy()})
        for name, value, right in zip(outputs, found, expected, strict=True):
            np.testing.assert_allclose(value, right.numpy(), atol=2e-5, err_msg=name)
    assert max(max(values.values()) for values in export.differences.values()) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"branches": ("sa",)}, {"glca_readout": "cls"}, {"glca_scope": "local"}, {"inference_branches": ("glca",)}],
)
def test_every_readout_can_be_exported(vit_config, tmp_path, options):
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    outputs = ["probabilities", "logits", "embeddings"]
    export = export_onnx(classifier(vit_config, **options), processor, tmp_path / "a.onnx", outputs=outputs)
    assert max(max(values.values()) for values in export.differences.values()) < 2e-5
