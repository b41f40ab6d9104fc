"""Command lines and configuration files of the recipes."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from transformers import AutoConfig

from dcal_hf import DCALConfig, DCALForImageClassification, DCALTrainingArguments


CONFIGURATIONS = Path(__file__).parents[2] / "recipes" / "configs"


@pytest.fixture
def parse_arguments(import_recipe):
    return import_recipe("arguments").parse_arguments


def test_commands_to_copy_are_quoted_for_a_shell(import_recipe, tmp_path):
    folder, own = tmp_path / "it's a 'model'", "my code/genus.py"
    folder.mkdir()
    loads = ["--model_name_or_path", str(folder), "--register", own]
    model_args = import_recipe("arguments").ModelArguments(model_name_or_path="plain", register=own)
    assert shlex.split(model_args.loading_options(str(folder))) == loads
    assert shlex.split(model_args.loading_options(None)) == ["--model_name_or_path", "plain", *loads[2:]]
    hub_args = import_recipe("embed").CheckpointArguments(str(folder), register=own)
    with pytest.raises(FileNotFoundError) as found:
        import_recipe("verify").load_threshold(hub_args, None)
    command = str(found.value).partition("first, ")[2].removesuffix(".")
    assert shlex.split(command) == ["dcal", "verify", *loads, "--calibrate", "--data_dir", "a_folder_of_identities"]


def test_the_home_folder_can_be_a_tilde(tmp_path, monkeypatch, import_recipe, parse_arguments):
    monkeypatch.setenv("HOME", str(tmp_path))
    Path(tmp_path, "run.yaml").write_text("model_name_or_path: ~/plain\ndata_dir: {train: ~/birds}\n")
    types = import_recipe("run_fgvc").ARGUMENTS
    argv = ["~/run.yaml", "--output-dir=~/out~1", "--distractor_dir", "~"]
    model_args, data_args, training_args = parse_arguments(types, argv)
    assert model_args.model_name_or_path == f"{tmp_path}/plain"
    assert training_args.output_dir == f"{tmp_path}/out~1" and data_args.distractor_dir == str(tmp_path)
    assert json.loads(data_args.data_dir) == {"train": "~/birds"}, "the loader replaces these"


def test_a_configuration_overrides_its_base(tmp_path, parse_arguments):
    @dataclass
    class Options:
        first: int = 0
        second: int = 0
        third: list[int] = field(default_factory=list)

    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "all.json").write_text('{"first": 1, "second": 1, "third": [1, 2]}')
    config = tmp_path / "own.yaml"
    config.write_text("base: base/all.json\nsecond: 2\nthird: null\n")
    assert parse_arguments((Options,), [str(config), "--first", "3"]) == (Options(3, 2, []),)
    config.write_text("base: missing.yaml")
    with pytest.raises(FileNotFoundError, match="missing.yaml, the base of .*own.yaml, does not exist"):
        parse_arguments((Options,), [str(config)])


LAUGHS = "a: &a [1, 1]\n" + "".join(f"{x}: &{x} [{9 * f'*{y}, '}]\n" for x, y in zip("bcdefghi", "abcdefgh"))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("own.yaml", "base: own.yaml", "own.yaml has the base own.yaml, which leads back to own.yaml"),
        ("own.yaml", "base: 3", "own.yaml has the base 3: it must be the path of another configuration"),
        ("own.yaml", "seed: 1\nsave_steps: 2\nseed: 3", "own.yaml cannot be read: the key seed occurs twice"),
        ("own.json", '{"seed": 1, "seed": 2}', "own.json cannot be read: the key seed occurs twice"),
        ("own.json", '{"seed": 1', "own.json cannot be read: Expecting ',' delimiter: line 1"),
        ("own.yaml", "seed: [1", "own.yaml cannot be read: while parsing a flow sequence"),
        ("own.yaml", "seed: \x00", "own.yaml cannot be read: unacceptable character"),
        ("own.yaml", LAUGHS, "own.yaml cannot be read: the alias *a is not supported: repeat the value"),
        ("own.json", "[" * 100_000, "own.json cannot be read: "),
        ("own.yaml", "? [seed]\n: 1", "own.yaml cannot be read: "),
        ("own.yaml", "- base: own.yaml\n? base", "own.yaml cannot be read: "),
        ("own.yaml", 'base: "a\\0.yaml"', "own.yaml has the base 'a\\x00.yaml': it must be the path"),
        ("own.yaml", "base: birds", "birds', the base of "),
        ("own.yaml", "- seed", "own.yaml must hold a mapping of option names to values"),
    ],
)
def test_an_unreadable_configuration_gets_a_one_line_error(tmp_path, parse_arguments, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        parse_arguments((), [str(tmp_path / name)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("seed: soon", "argument --seed: invalid int value: 'soon'"),
        ("speed: 1", "there is no option --speed, but --seed."),
        ("query_ratoi: 1", "there is no option --query_ratoi, but --query_ratio."),
        ("seed: {a: 2001-01-01}", "argument --seed: invalid int value: '{\"a\": \"2001-01-01\"}'"),
        ("seed: {2001-01-01: a}", "seed cannot be written as JSON: keys must be"),
    ],
)
def test_an_invalid_option_is_reported_with_its_configuration(tmp_path, parse_arguments, content, reason):
    @dataclass
    class Options:
        seed: int = 0
        query_ratio: float = 0.1

    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(ValueError) as error:
        parse_arguments((Options,), [str(tmp_path / "own.yaml")])
    assert str(error.value).startswith(str(tmp_path / "own.yaml")) and reason in str(error.value)


def test_json_may_be_indented_by_tabs_and_bases_must_not_form_a_cycle(tmp_path, parse_arguments):
    @dataclass
    class Options:
        first: int = 0

    # An editor of Windows writes a byte order mark.
    (tmp_path / "own.json").write_text('{\n\t"first": 1\n}', encoding="utf-8-sig")
    assert parse_arguments((Options,), [str(tmp_path / "own.json")]) == (Options(1),)
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    with pytest.raises(ValueError, match="b.yaml has the base a.yaml, which leads back to b.yaml"):
        parse_arguments((Options,), [str(tmp_path / "a.yaml")])


def test_a_missing_configuration_file_is_named(parse_arguments):
    with pytest.raises(FileNotFoundError, match="The configuration file missing.yaml does not exist."):
        parse_arguments((), ["missing.yaml"])


@pytest.mark.parametrize("preset", ["quickstart", "from_scratch"])
def test_the_configurations_that_train_from_scratch_parse(tmp_path, import_recipe, parse_arguments, preset):
    options = ["--data_dir", "birds", "--output_dir", str(tmp_path), "--use_cpu"]
    types = import_recipe("run_fgvc").ARGUMENTS
    model_args, _, training_args = parse_arguments(types, [str(CONFIGURATIONS / f"{preset}.yaml"), *options])
    backbone_config = AutoConfig.for_model(**json.loads(model_args.backbone_config))
    assert DCALConfig(backbone_config=backbone_config, image_size=64).grid == (8, 8)
    assert training_args.do_train


def test_class_weights_can_be_a_mapping(tmp_path, parse_arguments):
    (tmp_path / "config.yaml").write_text("class_weights: {robin: 2.0, 1: 0.5}\nuse_cpu: true\noutput_dir: out")
    (arguments,) = parse_arguments((DCALTrainingArguments,), [str(tmp_path / "config.yaml")])
    assert arguments.class_weights == {"robin": 2.0, "1": 0.5}


@pytest.mark.parametrize("name", ["here/nothing", "./nothing", "~/nothing", "a/b/c"])
def test_a_mistyped_path_is_not_a_hub_id(tmp_path, monkeypatch, import_recipe, name):
    check_source = import_recipe("loading").check_source
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "something").mkdir(parents=True)
    for there in ("here/something", "facebook/deit-tiny-patch16-224", "gpt2"):
        check_source(there)
    with pytest.raises(FileNotFoundError, match=f"There is no checkpoint {name}; check the path."):
        check_source(name)


@pytest.mark.parametrize("text", ["vit", "[1]", "[" * 9999])
@pytest.mark.parametrize(
    "recipe, option",
    [("run_fgvc", "backbone_config"), ("embed", "search_parameters"), ("search", "search_parameters")],
)
def test_an_option_that_is_no_json_object_is_named(import_recipe, recipe, option, text):
    """Before anything is read."""
    module = import_recipe(recipe)
    required = {"embed": {"output_dir": "a", "image_dir": "b"}}
    required["search"] = {"gallery_dir": "a", "images": [], "output_dir": "b"}
    types = {"run_fgvc": "ModelArguments", "embed": "GalleryArguments", "search": "SearchArguments"}
    arguments = getattr(module, types[recipe])
    with pytest.raises(ValueError, match=f"^--{option} takes a JSON object, such as '{{\"") as error:
        arguments(**required.get(recipe, {}), **{option: text})
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "text", ['{"hidden_size": 16}', '{"model_type": "vat"}', '{"model_type": "vit", "hidden_size": "a"}']
)
def test_an_encoder_that_transformers_cannot_configure_is_named(import_recipe, text):
    load_model, arguments = import_recipe("pretrained").load_model, import_recipe("run_fgvc").ModelArguments
    with pytest.raises(ValueError, match="^--backbone_config is no configuration of an encoder: ") as error:
        load_model(DCALForImageClassification, None, arguments(backbone_config=text), ["wren", "robin"])
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
