"""The recipe with a command line and a folder of images, and the files it writes."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from PIL import Image
from timm.models import save_for_hf
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTConfig, ViTImageProcessor, ViTModel

from dcal_hf.integrity import locked
from dcal_hf.training.checkpoints import LOCK_FILE

from fgvc_runs import config_file, make_folder
from helpers import TINY_SIZES, TINY_VIT, noise_picture
from processes import run_script


ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "run_fgvc.py"


@pytest.fixture
def recipe(import_recipe):
    return import_recipe("run_fgvc")


@pytest.fixture
def run_main(run_recipe):
    def run(tmp_path: Path, *arguments: str, **options: object) -> None:
        run_recipe("run_fgvc", config_file(tmp_path, **options), *arguments)

    return run


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_an_encoder_without_rollout_writes_no_attention_figure(tmp_path, run_main):
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
    options = {"data_dir": str(make_folder(tmp_path / "birds")), "attention_images": 2, "disable_tqdm": True}
    options |= {"backbone_config": {**swin, "patch_size": 4}, "branches": ["sa", "pwca"], "max_steps": 1}
    run_main(tmp_path, "--do_train", "--do_eval", **options)
    assert "eval_accuracy" in read_json(tmp_path / "out" / "all_results.json")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| branches | sa, pwca |" in card and "| num_pwca_blocks | 2 |" in card and "| glca_readout |" not in card
    assert "| steps | 1 |" in card and "| epochs |" not in card
    assert not (tmp_path / "out" / "attention.jpg").exists()


def test_probabilities_are_calibrated_on_the_evaluated_images(tmp_path, run_main, run_recipe):
    """The temperature has the least negative log-likelihood of a fine grid, and scales the predictions for test."""
    data_dir = make_folder(tmp_path / "birds")
    run_main(tmp_path, "--do_train", "--do_eval", "--do_predict", data_dir=str(data_dir), disable_tqdm=True)
    out = tmp_path / "out"
    results, saved = read_json(out / "all_results.json"), read_json(out / "temperature.json")
    model = AutoModelForImageClassification.from_pretrained(out).eval()
    processor = AutoImageProcessor.from_pretrained(out)
    logits = {}
    for split in ("validation", "test"):
        paths = sorted((data_dir / split).rglob("*.png"))
        with torch.no_grad():
            inputs = [processor(Image.open(path).convert("RGB"), return_tensors="pt") for path in paths]
            logits[split] = torch.cat([model(**image).logits for image in inputs]).double()
        labels = torch.tensor([model.config.label2id[path.parent.name] for path in paths])
        if split == "validation":
            grid = np.geomspace(saved["temperature"] / 3, saved["temperature"] * 3, 2001)
            losses = [torch.nn.functional.cross_entropy(logits[split] / value, labels) for value in grid.tolist()]
            assert grid[np.argmin(losses)] == pytest.approx(saved["temperature"], rel=2e-3)
            assert (saved["dataset"], saved["num_images"]) == ("birds, validation", 5)
    assert results["predict_temperature"] == results["eval_temperature"] == saved["temperature"]
    probabilities = (logits["test"] / saved["temperature"]).softmax(1)
    confidence, predicted = (value.numpy() for value in probabilities.max(1))
    bins = np.ceil(confidence * 15)
    gaps = [abs((confidence - (predicted == labels.numpy()))[bins == number].sum()) for number in set(bins)]
    assert results["predict_ece_scaled"] == pytest.approx(sum(gaps) / 3, abs=1e-5)
    assert f"error (15 bins): {100 * results['eval_ece']:.2f} %; " in (out / "README.md").read_text()

    arguments = ["--model_name_or_path", out, "--images", data_dir / "test", "--sheet_images", 0, "--top_k", 1]
    run_recipe("predict", *arguments, "--output_dir", tmp_path / "answer", "--calibrated")
    with open(tmp_path / "answer" / "predictions.csv", newline="") as file:
        found = [float(row["probability_both"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(found, confidence, atol=1e-4)
    (out / "temperature.json").write_text(json.dumps({**saved, "model_id": "another"}))
    with pytest.raises(ValueError, match="was fitted for model another, not for dcal-"):
        run_recipe("predict", *arguments, "--output_dir", tmp_path / "answer", "--calibrated")


def test_distractors_from_a_folder_are_in_the_model_card(tmp_path, run_main):
    options = {"data_dir": str(make_folder(tmp_path / "birds")), "disable_tqdm": True, "logging_steps": 1}
    options |= {"pwca_fraction": 0.5, "local_query_selection": "similarity"}
    others = make_folder(tmp_path / "others")
    for folder in (others, tmp_path / "birds" / "validation" / "wren"):
        noise_picture(99).save(folder / "evaluated.png")
    run_main(tmp_path, "--do_train", "--do_eval", "--distractor_dir", str(others), **options)
    history = read_json(tmp_path / "out" / "trainer_state.json")["log_history"]
    assert "loss_pwca" in history[0] and not any("unpaired_images" in line for line in history)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "others" in card and "similarity" in card and "pwca_fraction" in card
    check = (tmp_path / "out" / "data_check.csv").read_text()
    assert f"distractors,{others / 'evaluated.png'},in two splits,\"also validation/wren/evaluated.png" in check
    with pytest.raises(FileNotFoundError, match="The folder of images .*nowhere does not exist"):
        arguments = ["--do_train", "--overwrite_output_dir", "--distractor_dir", str(tmp_path / "nowhere")]
        run_main(tmp_path, *arguments, **options)


def test_train_evaluate_and_predict(tmp_path):
    folder = make_folder(tmp_path / "birds")
    config = config_file(tmp_path, data_dir=str(folder), attention_images=2, logging_steps=1)
    run = run_script(RECIPE, config, "--do_train", "--do_eval", "--do_predict")
    assert ": 1 entry, the first is" in run.stderr and "notes.txt" in run.stderr
    assert "PWCA" in run.stdout
    out = tmp_path / "out"

    results = read_json(out / "all_results.json")
    names = {f"eval_{branch}{name}" for branch in ("", "sa_", "glca_") for name in ("accuracy", "top5_accuracy")}
    assert names | {"train_loss", "predict_accuracy"} <= set(results)
    assert (results["train_samples"], results["eval_samples"], results["predict_samples"]) == (11, 5, 3)

    with open(out / "eval_confusion_matrix.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == [row[0] for row in rows] == ["finch", "robin", "wren"]
    counts = np.array([[int(cell) for cell in row[1:]] for row in rows])
    assert counts.sum(axis=1).tolist() == [0, 2, 3]
    assert np.trace(counts) / 5 == pytest.approx(results["eval_accuracy"])

    with open(out / "predict_predictions.csv", newline="") as file:
        predictions = list(csv.DictReader(file))
    assert [row["label"] for row in predictions] == ["finch", "wren", "wren"]
    assert predictions[0]["image"] == str(Path("test", "finch", "0.png"))
    written = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".png"]
    assert [path.name for path in written if str(tmp_path).encode() in path.read_bytes()] == []
    assert np.mean([row["label"] == row["prediction"] for row in predictions]) == results["predict_accuracy"]

    card = ModelCard.load(out / "README.md")
    assert {result.metric_value for result in card.data.eval_results} >= {results["eval_glca_accuracy"]}
    assert "2205.02151" in card.text and "train images | 11" in card.text
    with Image.open(out / "attention.jpg") as attention:
        assert attention.size[0] > 100
    assert AutoModelForImageClassification.from_pretrained(out).config.label2id == {"finch": 0, "robin": 1, "wren": 2}


def class_folder(root: Path, *names: str) -> Path:
    """Four training and two validation images per class."""
    for split, count in (("train", 4), ("validation", 2)):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                noise_picture([len(name), number]).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def bird_checkpoint(tmp_path, recipe) -> Path:
    """A checkpoint with the classes wren, robin and finch, not in alphabetical order."""
    options = ["--backbone_config", json.dumps(TINY_VIT), "--image_size", "16", "--local_query_ratio", "0.5"]
    (model_args,) = recipe.parse_arguments((recipe.ModelArguments,), options)
    torch.manual_seed(0)
    names = ["wren", "robin", "finch"]
    model, processor = recipe.load_model(
        recipe.DCALForImageClassification, recipe.fine_grained_processor, model_args, names
    )
    with torch.no_grad():
        for head in (model.sa_classifier, model.glca_classifier):
            head.bias.copy_(torch.tensor([0.0, 50.0, 0.0]))  # always predicts robin
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def from_checkpoint(folder: Path, data_dir: Path, **options: object) -> dict[str, object]:
    source = {"backbone_config": None, "image_size": None, "local_query_ratio": None}
    return {**source, "model_name_or_path": str(folder), "data_dir": str(data_dir), "disable_tqdm": True, **options}


def test_classes_of_a_checkpoint_are_matched_by_name(
    tmp_path, run_main, bird_checkpoint, monkeypatch, capsys
):
    """The folder has two of its three classes, in another order."""
    drawn = []
    monkeypatch.setattr("dcal_hf.visualization.attention_figure", lambda *args: drawn.extend(args) or Figure())
    data = class_folder(tmp_path / "two", "robin", "wren")
    run_main(tmp_path, "--do_eval", **from_checkpoint(bird_checkpoint, data, attention_images=3))
    # The output folder has no model.
    assert f"dcal predict --model_name_or_path {bird_checkpoint} " in capsys.readouterr().out
    with open(tmp_path / "out" / "eval_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["prediction"] for row in rows} == {"robin"}
    # Relative to the data, since the file is pushed.
    assert [row["label"] for row in rows] == [Path(row["image"]).parts[-2] for row in rows]
    assert not any(Path(row["image"]).is_absolute() for row in rows)
    assert read_json(tmp_path / "out" / "eval_results.json")["eval_accuracy"] == 0.5
    # The figure shows the mistakes first, on the original photographs.
    photographs, *_, titles, _, correct = drawn
    shown = [re.fullmatch(r"\d\.png +true: (\w+) +predicted: robin \(1\.00\)", title)[1] for title in titles]
    assert shown == ["wren", "wren", "robin"] and correct == [False, False, True]
    assert [photograph.size for photograph in photographs] == [(30, 24)] * 3


def test_a_single_class_is_named(tmp_path, run_main):
    """As in the official folder of Oxford Flowers, `jpg`."""
    data = class_folder(tmp_path / "flowers", "jpg")
    with pytest.raises(ValueError, match="the single class or identity 'jpg', .* of each into its own"):
        run_main(tmp_path, "--do_train", data_dir=str(data))


def test_evaluation_rejects_classes_that_the_checkpoint_lacks(tmp_path, run_main, bird_checkpoint):
    data = class_folder(tmp_path / "three", "robin", "titmouse", "wren")
    with pytest.raises(ValueError, match="lacks the class 'titmouse' of the data set: .* wren, robin, finch"):
        run_main(tmp_path, "--do_eval", **from_checkpoint(bird_checkpoint, data))
    data = class_folder(tmp_path / "others", "tram", "train")
    with pytest.raises(ValueError, match="has none of the classes 'train', 'tram' .*--ignore_mismatched_sizes"):
        run_main(tmp_path, "--do_train", **from_checkpoint(bird_checkpoint, data))


@pytest.mark.parametrize("replace", [False, True])
def test_fine_tuning_with_a_new_class_keeps_the_known_ones(tmp_path, run_main, bird_checkpoint, replace):
    """At a learning rate of 0, the rows equal those of the checkpoint by name."""
    data = class_folder(tmp_path / "more", "bunting", "robin", "wren")
    options = from_checkpoint(bird_checkpoint, data, learning_rate=0.0, ignore_mismatched_sizes=replace)
    run_main(tmp_path, "--do_train", "--do_eval", **options)
    before = AutoModelForImageClassification.from_pretrained(bird_checkpoint)
    after = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    names = ["bunting", "robin", "wren"] if replace else ["wren", "robin", "finch", "bunting"]
    assert list(after.config.id2label.values()) == names
    for name in set(names) - {"bunting"}:
        old, new = before.config.label2id[name], after.config.label2id[name]
        for head in ("sa_classifier", "glca_classifier"):
            assert torch.equal(getattr(after, head).weight[new], getattr(before, head).weight[old])
    assert read_json(tmp_path / "out" / "eval_results.json")["eval_accuracy"] == pytest.approx(1 / 3)


def test_a_checkpoint_without_class_names_takes_them_in_order(tmp_path, run_main, recipe, bird_checkpoint, caplog):
    model = recipe.DCALForImageClassification.from_pretrained(bird_checkpoint)
    model.config.id2label = {number: f"LABEL_{number}" for number in range(3)}
    model.save_pretrained(bird_checkpoint)
    data = class_folder(tmp_path / "farm", "cow", "dog", "ox")
    run_main(tmp_path, "--do_eval", **from_checkpoint(bird_checkpoint, data))
    assert "has no class names" in caplog.text
    with open(tmp_path / "out" / "eval_predictions.csv", newline="") as file:
        assert {row["prediction"] for row in csv.DictReader(file)} == {"dog"}


def save_vit(folder: Path) -> list[float]:
    ViTModel(ViTConfig(image_size=32, **TINY_SIZES)).save_pretrained(folder)
    ViTImageProcessor(image_mean=[0.4] * 3).save_pretrained(folder)
    return [0.4] * 3


def save_timm(folder: Path) -> list[float]:
    args = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
    model = timm.create_model("vit_base_patch16_224", **args)
    save_for_hf(model, folder, model_args=args, safe_serialization=True)
    return list(model.pretrained_cfg["mean"])


@pytest.mark.parametrize("save_encoder", [save_vit, save_timm])
def test_fine_tuning_an_encoder_and_then_its_dcal_checkpoint(tmp_path, run_main, save_encoder):
    folder = make_folder(tmp_path / "birds")
    torch.manual_seed(0)
    mean = save_encoder(tmp_path / "encoder")
    source = {"backbone_config": None, "model_name_or_path": str(tmp_path / "encoder"), "image_size": [24, 16]}
    run_main(tmp_path, "--do_train", "--do_eval", data_dir=str(folder), **source)
    first = read_json(tmp_path / "out" / "eval_results.json")
    processor = read_json(tmp_path / "out" / "preprocessor_config.json")
    assert processor["crop_size"] == {"height": 24, "width": 16} and processor["image_mean"] == mean

    source = {"backbone_config": None, "model_name_or_path": str(tmp_path / "out"), "image_size": None}
    run_main(tmp_path, "--do_eval", "--output_dir", str(tmp_path / "again"), data_dir=str(folder), **source)
    again = read_json(tmp_path / "again" / "eval_results.json")
    assert again["eval_loss"] == pytest.approx(first["eval_loss"], abs=1e-6)
    # The card of an evaluation names the checkpoint. In the checkpoint's own folder, that of the training stays.
    evaluation = (tmp_path / "again" / "README.md").read_text()
    assert 'model="out"' in evaluation and "This run only evaluated the model" in evaluation
    card = (tmp_path / "out" / "README.md").read_text()
    run_main(tmp_path, "--do_eval", data_dir=str(folder), **source)
    assert (tmp_path / "out" / "README.md").read_text() == card and "| epochs | 1 |" in card


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    options = {"data_dir": str(make_folder(tmp_path / "birds")), "save_steps": 1, "num_train_epochs": 2}
    run_script(RECIPE, config_file(tmp_path, **options), "--do_train")
    uninterrupted = (tmp_path / "out" / "model.safetensors").read_bytes()
    for step in (5, 6):  # as if killed while the fifth checkpoint was written
        for file in sorted((tmp_path / "out" / f"checkpoint-{step}").iterdir()):
            if step == 6 or file.name == "trainer_state.json":
                file.unlink()
    (tmp_path / "out" / "model.safetensors").unlink()
    run_script(RECIPE, config_file(tmp_path, **options), "--do_train", "--resume_from_checkpoint", "last")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == uninterrupted


def test_a_second_run_keeps_the_checkpoints_of_the_first(tmp_path, run_main, capsys, caplog):
    options = {"disable_tqdm": True, "save_steps": 1, "save_total_limit": 1, "max_steps": 2}
    options["data_dir"], out = str(class_folder(tmp_path / "birds", "robin", "wren")), tmp_path / "out"

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != LOCK_FILE}
    run_main(tmp_path, "--do_train", **options)
    before = files()
    with pytest.raises(ValueError, match="holds the checkpoints of an earlier run: .*last, .*--overwrite_output_dir"):
        run_main(tmp_path, "--do_train", **options)
    assert files() == before and "not trained" not in caplog.text
    run_main(tmp_path, "--do_eval", **options)
    assert "is a plain encoder, so the classifiers that are evaluated are not trained" in caplog.text
    resume, results = ("--do_train", "--resume_from_checkpoint", "last"), (out / "train_results.json").read_bytes()
    run_main(tmp_path, *resume, **options)
    assert (out / "train_results.json").read_bytes() == results
    assert "The run was complete: 2 steps. Nothing was trained.\n" in capsys.readouterr().out
    run_main(tmp_path, *resume, **{**options, "max_steps": 3})
    before, overwrite = files(), ("--do_train", "--overwrite_output_dir")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        run_main(tmp_path, *overwrite, "--distractor_dir", str(tmp_path / "nowhere"), **options)
    with locked(out / LOCK_FILE, "in use"), pytest.raises(BlockingIOError, match="is the output folder of a run"):
        run_main(tmp_path, *overwrite, **{**options, "data_dir": "nowhere"})  # refused before images are looked for
    assert files().keys() == before.keys()
    (out / "checkpoint-best").mkdir()  # not a checkpoint of the Trainer
    run_main(tmp_path, *overwrite, **{**options, "save_total_limit": 9})
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2", "checkpoint-best"}


def test_options_override_the_file_and_branches_can_be_disabled(tmp_path, run_main):
    folder = make_folder(tmp_path / "birds")
    arguments = ["--do_train", "--branches", "sa", "pwca", "--max_train_samples", "7", "--num_train_epochs", "2"]
    run_main(tmp_path, *arguments, train_dir=str(folder / "train"), train_val_split=0.3)
    config = read_json(tmp_path / "out" / "config.json")
    assert config["branches"] == ["sa", "pwca"] and config["inference_branches"] == ["sa"]
    assert read_json(tmp_path / "out" / "trainer_state.json")["epoch"] == 2
    assert read_json(tmp_path / "out" / "train_results.json")["train_samples"] == 7


LESS = [(["--freeze_backbone"], "True"), (["--layer_decay", "0.75"], "0.75"), (["--lora_rank", "2"], "2")]


@pytest.mark.parametrize(("arguments", "value"), LESS)
def test_parameter_efficient_fine_tuning_saves_a_plain_model(tmp_path, run_main, arguments, value):
    folder = make_folder(tmp_path / "birds")
    run_main(tmp_path, "--do_train", "--do_eval", *arguments, data_dir=str(folder))
    assert f"| {arguments[0].removeprefix('--')} | {value} |" in (tmp_path / "out" / "README.md").read_text()
    _, report = AutoModelForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_a_broken_image_and_a_missing_test_split_are_named(tmp_path, run_main):
    folder = make_folder(tmp_path / "birds")
    broken = folder / "train" / "robin" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"1 of 11 images cannot be read, the first is {broken}: .* --skip_broken"):
        run_main(tmp_path, "--do_train", data_dir=str(folder))
    with pytest.raises(ValueError, match="--do_predict needs a test split, and train has none"):
        run_main(tmp_path, "--do_predict", train_dir=str(folder / "train"))
