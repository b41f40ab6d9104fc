"""Options of run_reid.py that cannot work end with one sentence, before the images are read."""

import re
from pathlib import Path

import pytest

from reid_runs import config_file, save_noise


@pytest.fixture
def run_main(run_recipe):
    def run(tmp_path: Path, *arguments: str, **options: object) -> None:
        run_recipe("run_reid", config_file(tmp_path, **options), *arguments)

    return run


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"metric_for_best_model": "acc"}, "metric_for_best_model='acc' is no metric of the evaluation: it has map, "),
        ({"instances_per_identity": 3}, "does not divide into identities"),
        ({"query_expansion": 999}, "--query_expansion 999: the gallery has "),
    ],
)
@pytest.mark.usefixtures("few_drawn")
def test_options_are_checked_before_the_images(tmp_path, run_main, capsys, option, sentence):
    options = {"dataset_name": "drawn", "disable_tqdm": True, "eval_strategy": "epoch", **option}
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run_main(tmp_path, "--do_train", **options)
    assert "Checked" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ([], {"data_dir": "."}, "Nothing to do: give --do_train or --do_eval."),
        (["--do_train"], {"dataset_name": None}, "Give the images: --dataset_name, or --data_dir"),
        (["--do_train"], {}, "'market1501' needs data_dir"),
        (["--do_eval"], {"data_dir": "nowhere"}, "the folder nowhere does not exist; check data_dir"),
        (["--do_train"], {"dataset_name": "drawn", "no_such_option": 1}, "no_such_option"),
        (["--do_train"], {"dataset_name": "drawn", "image_size": 20}, "must be a multiple of the backbone's patch"),
        (["--do_train"], {"dataset_name": "drawn", "neck_feature": "beside"}, "neck_feature='beside' is unknown"),
        (["--do_train"], {"dataset_name": "drawn", "instances_per_identity": 3}, "does not divide into identities"),
        (["--do_train"], {"dataset_name": "drawn", "instances_per_identity": 0}, "instances_per_identity=0 must be"),
        (["--do_eval"], {"dataset_name": "drawn", "query_expansion": 999}, "--query_expansion 999: the gallery has "),
        (["--do_eval"], {"dataset_name": "drawn", "query_expansion": -1}, "query_expansion=-1 and query_expansion_a"),
        (["--do_eval"], {"dataset_name": "drawn", "ranked_matches": 0}, "--ranked_matches 0: it must be at least 1"),
        (["--do_train"], {"dataset_name": "drawn", "optim": "adamw_torch"}, "give --schedule trainer"),
        (["--do_train", "--resume_from_checkpoint", "last"], {"dataset_name": "drawn"}, "No complete checkpoint in"),
    ],
)
@pytest.mark.usefixtures("few_drawn")
def test_invalid_options_raise_clear_errors(tmp_path, run_main, arguments, options, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(sentence)):
        run_main(tmp_path, *arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--do_train", "--test_fraction", "1"], "turtles to train on: choose another"),
        (["--do_train", "--do_eval", "--test_fraction", "0"], "turtles to test on: choose another"),
        (["--do_eval", "--test_fraction", "1.5"], "--test_fraction 1.5: it must be from 0 to 1."),
        (["--do_eval", "--test_fraction", "-0.1"], "--test_fraction -0.1: it must be from 0 to 1."),
        (["--do_eval", "--test_fraction", "nan"], "--test_fraction nan: it must be from 0 to 1."),
    ],
)
def test_a_fraction_that_leaves_no_identity_raises_a_clear_error(tmp_path, run_main, arguments, sentence):
    for identity in range(4):
        for number in range(3):
            save_noise(tmp_path / "turtles" / f"{identity}" / f"{number}.png", identity, number)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run_main(tmp_path, *arguments, dataset_name=None, data_dir=str(tmp_path / "turtles"))


def test_new_individuals_need_a_threshold_and_queries(tmp_path, run_main):
    """Before training. Of each individual in the gallery there is one image, so no threshold can be chosen."""
    rows = ["image,identity,split"]
    for number in range(6):
        save_noise(tmp_path / f"{number}.png", number, number)
        rows.append(f"{number}.png,{number % 3},{'query' if number > 2 else 'train'}")
    save_noise(tmp_path / "new.png", 7, 7)
    for name, more in {"closed": [], "open": ["new.png,7,query"]}.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(rows + more))
    options = {"instances_per_identity": 2, "dataset_name": str(tmp_path / "open.csv"), "protocol": "open_set"}
    with pytest.raises(ValueError, match="no two images of one individual .* give --open_set_threshold"):
        run_main(tmp_path, "--do_train", "--do_eval", **options)
    options |= {"dataset_name": str(tmp_path / "closed.csv"), "protocol": "closed_set"}
    with pytest.raises(ValueError, match="--open_set needs queries of individuals that the gallery lacks"):
        run_main(tmp_path, "--do_train", "--do_eval", "--open_set", **options)
