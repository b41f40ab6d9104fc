"""The console command runs a recipe with its options, and prints one sentence for a mistake."""

import ast
import builtins
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from torch._utils import ExceptionWrapper
from transformers.trainer import TRAINER_STATE_NAME

from dcal_hf import DCALTrainingArguments
from dcal_hf.integrity import locked
from dcal_hf.training.checkpoints import begin_run, complete_manifest, write_manifest

from galleries import make
from helpers import noise_picture


RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def dcal(import_recipe, monkeypatch):
    """The command within this process."""
    cli = import_recipe("cli")

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["dcal", *arguments])
        cli.main()

    return run


def test_help_needs_neither_torch_nor_the_package():
    """So that it is fast. It lists every recipe and every configuration."""
    program = (
        "import runpy, sys\n"
        "for options in (['--help'], ['fgvc', '--help'], ['reid', 'quickstart_reid', '-h'], ['search', '--help']):\n"
        f"    sys.argv = ['dcal', *options]; runpy.run_path({str(RECIPES / 'cli.py')!r}, run_name='__main__')\n"
        "assert not {'torch', 'transformers', 'dcal_hf'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "  fgvc " in run.stdout and "  reid " in run.stdout
    assert all(path.stem in run.stdout for path in (RECIPES / "configs").glob("*.yaml"))
    # Examples as the command takes them.
    assert "\n    dcal fgvc quickstart --output_dir out\n" in run.stdout
    assert "\n    dcal search --model_name_or_path out --gallery_dir gallery" in run.stdout
    assert all(f"\nusage: dcal {command}" in run.stdout for command in ("fgvc", "reid", "search"))


def test_every_recipe_is_a_command(import_recipe):
    scripts = {script for script, _ in import_recipe("cli").COMMANDS.values()}
    runnable = {path.stem for path in RECIPES.glob("*.py") if "\n# dependencies = " in path.read_text()}
    assert scripts == runnable


def test_a_mistyped_command_suggests_the_nearest(dcal):
    with pytest.raises(SystemExit, match="there is no command 'serch': did you mean 'search'"):
        dcal("serch")
    with pytest.raises(SystemExit, match="there is no command 'xyz': choose one of fgvc, reid"):
        dcal("xyz")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["fgvc", "quickstrat"], "^dcal fgvc: There is no configuration 'quickstrat': did you mean 'quickstart'.$"),
        (["fgvc", "turtles"], "^dcal fgvc: There is no configuration 'turtles': give .* or one of .* quickstart"),
        (["fgvc", "quickstart", "--epochs", "3"], "^dcal fgvc: there is no option --epochs, but --num_train"),
        (["fgvc", "quickstart", "--seed", "x"], "^dcal fgvc: argument --seed: invalid int value: 'x'.$"),
        (["fgvc", "quickstart", "oops"], "^dcal fgvc: 'oops' belongs to no option"),
        (["fgvc", "from_scratch"], "^dcal fgvc: .*from_scratch.yaml, or an option after it: Give the images"),
        (
            ["fgvc", "quickstart", "--model_name_or_path", "out/birds"],
            "^dcal fgvc: .*quickstart.yaml: --backbone_config starts from scratch, .*: give only one of them.$",
        ),
        (["reid", "--do_train"], "^dcal reid: Give either --model_name_or_path"),
    ],
)
def test_a_mistake_prints_one_sentence(dcal, arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        dcal(*arguments)


def test_a_configuration_that_transformers_cannot_read_prints_one_sentence(dcal, tmp_path):
    (tmp_path / "config.json").write_text("{")
    noise_picture().save(tmp_path / "bird.png")
    with pytest.raises(SystemExit, match="^dcal predict: It looks like the config file at .* is not a valid JSON"):
        options = {"--model_name_or_path": tmp_path, "--images": tmp_path / "bird.png", "--output_dir": tmp_path}
        dcal("predict", *(str(part) for option in options.items() for part in option))


def test_every_error_that_is_raised_for_a_user_prints_one_sentence(import_recipe):
    """Of the others, TypeErrors are mistakes in code, KeyErrors are caught, and a KeyboardInterrupt is none."""
    raised = set()
    for folder in (RECIPES, RECIPES.parent / "dcal_hf"):
        for path in folder.rglob("*.py"):
            calls = (node.exc for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise))
            raised |= {getattr(call.func, "id", None) for call in calls if isinstance(call, ast.Call)}
    errors = {name: value for name, value in vars(builtins).items() if name in raised}
    assert {"ValueError", "FileNotFoundError", "BlockingIOError", "FloatingPointError"} <= errors.keys()
    others = {name for name, error in errors.items() if not issubclass(error, import_recipe("cli").MISTAKES)}
    assert others - {"KeyboardInterrupt"} == {
        "TypeError", "KeyError", "AttributeError", "NotImplementedError", "SystemExit"
    }


def test_a_folder_that_another_process_writes_prints_one_sentence(dcal, tmp_path):
    make(count=3).save(tmp_path / "gallery")
    remove = ("gallery", "remove", "--gallery_dir", str(tmp_path / "gallery"), "--rows", "0")
    with locked(tmp_path / ".gallery.lock", ""), pytest.raises(SystemExit, match="^dcal gallery: .*saved by process"):
        dcal(*remove)
    dcal(*remove)


@pytest.mark.parametrize("below", ["", "/answer"])
def test_an_output_folder_that_cannot_be_created_is_found_before_any_work(dcal, tmp_path, below):
    (tmp_path / "notes.txt").touch()
    options = {"model_name_or_path": "nobody/nothing", "images": "a.jpg", "output_dir": f"{tmp_path}/notes.txt{below}"}
    with pytest.raises(SystemExit, match=f"^dcal predict: --output_dir .*: {tmp_path}/notes.txt is a file; give "):
        dcal("predict", *(part for name, value in options.items() for part in (f"--{name}", value)))


@pytest.mark.parametrize("advice", ["", "--resume_from_checkpoint last resumes."])
def test_an_interruption_prints_one_sentence(dcal, import_recipe, monkeypatch, advice):
    def interrupted() -> None:
        raise KeyboardInterrupt(advice)

    monkeypatch.setattr(import_recipe("gallery"), "main", interrupted)
    with pytest.raises(SystemExit, match=f"^{f'dcal gallery: interrupted. {advice}'.strip()}$"):
        dcal("gallery", "show")


@pytest.mark.parametrize("complete", [True, False])
def test_only_a_training_with_a_complete_checkpoint_is_told_to_resume(import_recipe, tmp_path, complete):
    common, checkpoint = import_recipe("common"), tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    (checkpoint / TRAINER_STATE_NAME).write_text('{"global_step": 3}')
    write_manifest(checkpoint, begin_run(tmp_path, None, writes=True))
    if complete:
        complete_manifest(checkpoint)
    else:
        (checkpoint / TRAINER_STATE_NAME).unlink()
    args = DCALTrainingArguments(str(tmp_path), do_train=True)
    with pytest.raises(KeyboardInterrupt, match="^--resume_from_checkpoint last, " if complete else "^$"):
        common.train(SimpleNamespace(args=args, train=Mock(side_effect=KeyboardInterrupt)))
    resume = "resume it with --resume_from_checkpoint last, " if complete else ""
    with pytest.raises(ValueError, match=f"an earlier run: {resume}delete them with --overwrite_output_dir"):
        common.check_earlier_run(args, overwrite=False)


def test_an_error_of_a_worker_that_loads_data_prints_one_sentence(dcal, import_recipe, monkeypatch):
    def failed() -> None:
        try:
            raise ValueError("cannot read image a.jpg; remove or replace the file")
        except ValueError:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    monkeypatch.setattr(import_recipe("gallery"), "main", failed)
    with pytest.raises(SystemExit, match="^dcal gallery: cannot read image a.jpg; remove or replace the file$"):
        dcal("gallery", "show")


def test_debug_shows_the_traceback(dcal, monkeypatch):
    monkeypatch.setenv("DCAL_DEBUG", "1")
    with pytest.raises(FileNotFoundError, match="There is no configuration 'quickstrat'"):
        dcal("fgvc", "quickstrat")


def test_the_word_help_prints_the_help(dcal, capsys):
    dcal()
    commands = capsys.readouterr().out
    dcal("help")
    assert capsys.readouterr().out == commands
    dcal("search", "--help")
    options = capsys.readouterr().out
    dcal("help", "search")
    assert capsys.readouterr().out == options != commands


@pytest.mark.parametrize("script", ["run_fgvc", "gallery", "ablate"])
def test_a_script_prints_one_sentence_for_a_mistake_like_the_command(import_recipe, monkeypatch, script):
    def mistaken() -> None:
        raise ValueError("there is no option --epochs.")

    monkeypatch.setattr(import_recipe(script), "main", mistaken)
    monkeypatch.setattr(sys, "argv", [f"recipes/{script}.py", "--epochs", "3"])
    with pytest.raises(SystemExit, match=f"^{script}.py: there is no option --epochs.$"):
        runpy.run_path(str(RECIPES / f"{script}.py"), run_name="__main__")


def test_a_missing_option_prints_one_sentence(dcal, capsys):
    with pytest.raises(SystemExit) as stop:
        dcal("search", "--images", "a.jpg")
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1
    assert message.startswith("dcal search: the following arguments are required: --gallery_dir")
