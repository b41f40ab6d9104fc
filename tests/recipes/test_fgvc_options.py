"""Options of run_fgvc.py that cannot work end with one sentence, before the images are read."""

import re
from pathlib import Path

import pytest

from fgvc_runs import config_file, make_folder


@pytest.fixture
def run_main(run_recipe):
    def run(tmp_path: Path, *arguments: str, **options: object) -> None:
        run_recipe("run_fgvc", config_file(tmp_path, **options), *arguments)

    return run


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ([], {"data_dir": "."}, "Nothing to do: give --do_train, --do_eval or --do_predict."),
        (["--do_train"], {}, "Give the images: --dataset_name, --data_dir (a folder of splits) or --train_dir."),
        (["--do_train"], {"data_dir": "nowhere"}, "the folder nowhere does not exist"),
        (["--do_train"], {"data_dir": ".", "backbone_config": None}, "Give either --model_name_or_path"),
        (["--do_train"], {"data_dir": ".", "no_such_option": 1}, "no_such_option"),
        (["--do_train"], {"data_dir": ".", "image_size": [1, 2, 3]}, "--image_size takes one or two numbers of pix"),
        (["--do_eval"], {"dataset_name": "drawn", "image_size": 20}, "must be a multiple of the backbone's patch"),
        (["--do_eval"], {"dataset_name": "drawn", "max_eval_samples": 0}, "--max_eval_samples 0: it must be at least"),
        (["--do_eval"], {"dataset_name": "drawn", "resize_ratio": 0.9}, "--resize_ratio 0.9: it must be at least 1"),
        (["--do_eval", "--eval_split", "val"], {"dataset_name": "drawn"}, "--eval_split val: drawn has only train"),
    ],
)
@pytest.mark.usefixtures("few_drawn")
def test_invalid_options_raise_clear_errors(tmp_path, run_main, arguments, options, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(sentence)):
        run_main(tmp_path, *arguments, **options)


def test_an_image_that_breaks_in_training_names_the_option(tmp_path, run_main):
    folder = make_folder(tmp_path / "birds")
    cut = folder / "train" / "wren" / "2.png"
    cut.write_bytes(cut.read_bytes()[:-300])
    options = {"data_dir": str(folder), "check_files": "header", "disable_tqdm": True}
    with pytest.raises(ValueError, match="^cannot read image .*2.png: .*; remove .* --check_files full --skip_broken"):
        run_main(tmp_path, "--do_train", **options)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"metric_for_best_model": "acc"}, "metric_for_best_model='acc' is no metric of the evaluation: it has loss"),
        ({"metric_for_best_model": "pwca_accuracy"}, "metric_for_best_model='pwca_accuracy' is no metric"),
        ({"class_weights": {"wrenn": 2.0}}, "class_weights names 'wrenn', which is no class: the classes are "),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 must be at least 1."),
        ({"image_size": 20}, "must be a multiple of the backbone's patch"),
        ({"local_query_ratio": 2.0}, "local_query_ratio"),
        ({"random_erasing": 1.5}, "--random_erasing 1.5: it must be from 0 to 1."),
        ({"resume_from_checkpoint": "last"}, "No complete checkpoint in"),
        ({"resume_from_checkpoint": "nowhere"}, "There is no checkpoint nowhere to resume from"),
        ({"distractor_dir": ".", "branches": ["sa"]}, "need PWCA, but the model has no such branch: leave them out"),
        ({"distractor_dir": ".", "pair_sampling": "half"}, "pair_sampling='half' chooses other distractors than"),
    ],
)
@pytest.mark.usefixtures("few_drawn")
def test_options_are_checked_before_the_images(tmp_path, run_main, capsys, option, sentence):
    options = {"dataset_name": "drawn", "eval_strategy": "epoch", "disable_tqdm": True, **option}
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(sentence)):
        run_main(tmp_path, "--do_train", **options)
    assert "Checked" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "title"),
    [("birds.tar.gz", "birds"), ("birds.zip", "birds"), ("birds.v2/", "birds.v2"), ("org/birds", None)],
)
def test_the_data_set_is_named_after_its_folder_or_archive(tmp_path, import_recipe, file, title):
    path = tmp_path / file
    if title is None:
        path = Path(file)
    elif file.endswith("/"):
        path.mkdir()
    else:
        path.touch()
    assert import_recipe("common").dataset_title(str(path), None, None) == (title or file)
