"""All commands load checkpoints by the same rules, and refuse one in the same sentence."""

import json
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from dcal_hf import DCALConfig, DCALForImageClassification, DCALForReID

from helpers import TINY_SIZES, noise_picture


# The arguments that each command needs besides the checkpoint.
COMMANDS = {
    "embed": ["--image_dir", "images", "--output_dir", "gallery"],
    "search": ["--gallery_dir", "gallery", "--images", "images/a.png", "--output_dir", "answer"],
    "gallery": ["add", "--gallery_dir", "gallery", "--images", "images"],
    "verify": ["images/a.png", "images/a.png"],
    "export": ["--output", "birds.onnx"],
    "demo": [],
    "predict": ["--images", "images", "--output_dir", "answer"],
    "attention": ["--images", "images", "--output", "attention.jpg"],
}
TRAINING = {
    "run_fgvc": ["--do_eval", "--data_dir", "birds", "--output_dir", "out", "--use_cpu", "--check_files", "off"],
    "run_reid": ["--do_eval", "--data_dir", "turtles", "--output_dir", "out", "--use_cpu", "--check_files", "off"],
}


@pytest.fixture
def run(tmp_path, monkeypatch, run_recipe):
    """Runs a command on a checkpoint, in a folder with an image, a data set for each task and a folder `here`."""
    monkeypatch.chdir(tmp_path)
    birds = [f"birds/{split}/{name}" for split in ("train", "validation") for name in "ab"]
    turtles = [f"turtles/{split}/a" for split in ("train", "query", "gallery")]
    Path("here").mkdir()
    for number, folder in enumerate(("images", *birds, *turtles)):
        Path(folder).mkdir(parents=True)
        noise_picture(number).save(Path(folder, "a.png"))

    def call(command: str, checkpoint: str) -> None:
        if command == "demo":
            pytest.importorskip("gradio")
        given = {**COMMANDS, **TRAINING}[command]
        option = "--models" if command == "attention" else "--model_name_or_path"
        subcommand = given[:1] if command == "gallery" else []
        run_recipe(command, *subcommand, option, checkpoint, *given[len(subcommand):])

    return call


@pytest.mark.parametrize("command", [*COMMANDS, *TRAINING])
def test_a_mistyped_path_is_named(run, command):
    with pytest.raises(FileNotFoundError, match="^There is no checkpoint here/nothing; check the path.$"):
        run(command, "here/nothing")


@pytest.mark.parametrize("command", ["predict", "run_fgvc", "run_reid"])
def test_a_checkpoint_that_cannot_be_downloaded_is_named(run, command):
    """transformers says only that there is no connection; the tests run without one."""
    sentence = "^some/encoder cannot be loaded: .*connect to 'https://huggingface.co'"
    with pytest.raises(OSError, match=sentence) as error:
        run(command, "some/encoder")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("command", [*COMMANDS, *TRAINING])
def test_an_unreadable_configuration_is_named(run, command):
    """transformers itself raises a TypeError that names nothing."""
    Path("here/config.json").write_text("3")
    with pytest.raises(ValueError, match="^config.json of the checkpoint here cannot be read: .*; check the options"):
        run(command, "here")


@pytest.mark.parametrize("content", ["[1, 2]", '"vit"', "null", '{"model_type": ["dcal"]}', '{"model_type": "none"}'])
def test_every_unreadable_configuration_is_named(run, content):
    Path("here/config.json").write_text(content)
    with pytest.raises(ValueError, match=r"(?=.*\bhere\b)(?=.*\bconfig\.json\b)") as error:
        run("predict", "here")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_plain_encoder_is_rejected(run, command):
    ViTModel(ViTConfig(image_size=16, **TINY_SIZES)).save_pretrained("here")
    sentence = "here is a vit checkpoint: give a DCAL one, such as the output_dir of `dcal fgvc` or `dcal reid`."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        run(command, "here")


@pytest.mark.parametrize("command", ["predict", "attention"])
@pytest.mark.parametrize("task", [DCALForReID, "embeddings"], ids=str)
def test_a_checkpoint_without_classifiers_does_not_classify(run, command, task):
    """transformers would initialise classifiers, whose predictions are noise."""
    model_class = DCALForImageClassification if task == "embeddings" else task
    model = model_class.from_backbone(ViTConfig(image_size=16, **TINY_SIZES), num_labels=3, local_query_ratio=0.5)
    (model.base_model if task == "embeddings" else model).save_pretrained("here")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained("here")
    with pytest.raises(ValueError, match="^here is a DCAL checkpoint without classifiers: give one of `dcal fgvc`.$"):
        run(command, "here")


def test_the_configuration_is_read_once(run, import_recipe, monkeypatch):
    model = DCALForImageClassification.from_backbone(ViTConfig(image_size=16, **TINY_SIZES), num_labels=3)
    model.save_pretrained("here")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained("here")
    expected = DCALForImageClassification.from_pretrained("here").config.to_dict()
    from_dict = Mock(side_effect=DCALConfig.from_dict)
    monkeypatch.setattr(DCALConfig, "from_dict", from_dict)
    loaded, _ = import_recipe("loading").load_classifier(import_recipe("arguments").HubArguments("here"))
    assert from_dict.call_count == 1 and loaded.config.to_dict() == expected


@pytest.mark.parametrize("content", ["[1, 2]", "3", '{"image_processor_type": 3}', '{"size": [[]]}'])
def test_an_unreadable_image_processor_is_named(run, import_recipe, content):
    classifier = DCALForImageClassification.from_backbone(ViTConfig(image_size=16, **TINY_SIZES), num_labels=3)
    classifier.save_pretrained("here")
    Path("here/preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match="^preprocessor_config.json of the checkpoint here cannot be read: "):
        run("predict", "here")


@pytest.mark.parametrize("command", ["predict", "run_fgvc"])
@pytest.mark.parametrize(
    "fields",
    [
        {"size": {"height": 10**6, "width": 10**6}},
        {"do_center_crop": True, "crop_size": {"height": 40_000, "width": 16}},
        {"do_pad": True, "pad_size": {"height": 10**5, "width": 10**5}},
        {"size": {"height": 32, "width": 32}},
        {"resample": 99},
        {"rescale_factor": "x"},
        {"image_std": [0.5, 0.0, 0.5]},
        {"image_mean": ["a"]},
        {"preprocess": "x"},
        {"device": "nowhere"},
    ],
    ids=lambda fields: str(fields)[:30],
)
def test_an_image_processor_that_does_not_fit_is_found_while_loading(run, command, fields):
    """On the first image it would raise a TypeError or a KeyError, or fill the memory."""
    labels = {"num_labels": 2, "id2label": dict(enumerate("ab")), "label2id": {"a": 0, "b": 1}}
    DCALForImageClassification.from_backbone(ViTConfig(image_size=16, **TINY_SIZES), **labels).save_pretrained("here")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained("here")
    path = Path("here/preprocessor_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    sentence = "^preprocessor_config.json of the checkpoint here cannot be read: .*; check the options, or"
    with pytest.raises(ValueError, match=sentence) as error:
        run(command, "here")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_nobody_is_asked_whether_to_run_a_checkpoints_code(run, capsys, file):
    """transformers asks on the terminal unless it is told not to trust the code."""
    model = DCALForImageClassification.from_backbone(ViTConfig(image_size=16, **TINY_SIZES), num_labels=3)
    model.save_pretrained("here")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained("here")
    unknown = {"model_type": "none", "image_processor_type": "None"}
    code = {"AutoConfig": "code.Config", "AutoImageProcessor": "code.Processor"}
    Path("here", file).write_text(json.dumps({**unknown, "auto_map": code}))
    with pytest.raises(ValueError, match=f"^{file} of the checkpoint here cannot be read: .* contains custom code"):
        run("predict", "here")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("{", "here is damaged: temperature.json is not valid JSON"),
        ("[" * 100_000, "here is damaged: temperature.json is not valid JSON"),
        ("[]", "here is damaged: temperature.json is not a JSON object"),
        ({}, "here is damaged: temperature.json has no temperature"),
        ({"temperature": "1"}, "here is damaged: temperature of temperature.json has another type"),
        ({"temperature": 10**400}, "here is damaged: temperature.json has a temperature that is not"),
        ({"temperature": -1.0}, "here is damaged: temperature.json has a temperature that is not"),
        ({"temperature": 1.0, "model_id": "a\nb" * 500}, "fitted for model a b.{,600}, not for dcal-"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_damaged_temperature_is_named(run, import_recipe, content, sentence):
    model = DCALForImageClassification.from_backbone(ViTConfig(image_size=16, **TINY_SIZES), num_labels=3)
    facts = {"format_version": 1, "model_id": "dcal-f00"}
    text = content if isinstance(content, str) else json.dumps({**facts, **content})
    Path("here/temperature.json").write_text(text)
    with pytest.raises(ValueError, match=f"here.*{sentence.removeprefix('here')}") as error:
        import_recipe("temperature").load_temperature(model, import_recipe("arguments").HubArguments("here"))
    assert "\n" not in str(error.value)
