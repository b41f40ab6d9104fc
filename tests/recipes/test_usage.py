"""`--help` is read from the source code; it must agree with the parser of the argument classes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import yaml
from transformers import HfArgumentParser


RECIPES = Path(__file__).parents[2] / "recipes"


def calls(import_recipe) -> list[tuple[str, tuple[type, ...]]]:
    """Every recipe (and subcommand) with its argument classes."""
    found = []
    for script, _ in import_recipe("cli").COMMANDS.values():
        module = import_recipe(script)
        assert hasattr(module, "ARGUMENTS"), f"usage.py reads the options of {script}.py from its ARGUMENTS"
        arguments = module.ARGUMENTS
        found += [(script, types) for types in (arguments.values() if isinstance(arguments, dict) else [arguments])]
    return found


def test_every_option_is_listed_once_with_the_default_and_the_help_of_the_parser(import_recipe):
    usage = import_recipe("usage")
    for script, types in calls(import_recipe):
        groups = [group for cls in types for group in usage.option_groups(RECIPES / f"{script}.py", cls.__name__)]
        options = {option.name: option for _, group in groups for option in group}
        assert len(options) == sum(len(group) for _, group in groups)
        parser = HfArgumentParser(types)
        actions = {action.dest: action for action in reversed(parser._actions) if action.dest != "help"}
        assert options.keys() == actions.keys(), script
        for name, option in options.items():
            action = actions[name]
            assert option.required == action.required, name
            assert option.help == " ".join((action.help or "").split()), name
            assert option.default in (None, "", action.default), name
            known = [field.default for cls in types for field in dataclasses.fields(cls) if field.name == name]
            plain = isinstance(known[0], (str, int, float)) and name != "optim"
            assert not plain or option.default is not None, name


def test_groups_of_the_recipe_come_first_and_those_of_transformers_last(import_recipe):
    text = import_recipe("usage").help_text(RECIPES / "run_reid.py", "dcal reid")
    body = text[text.index("\nEmbedding"):]
    titles = [line for line in body.splitlines() if line.endswith(":") and not line.startswith(" ")]
    names = "Embedding Model DCAL Data Check Re-identification DCAL Training All".split()
    assert [title.split()[0].rstrip(":") for title in titles] == names
    assert body.index("  --instances_per_identity") < body.index("  --output_dir") < body.index("  --adam_beta1")
    assert max(map(len, body.splitlines())) <= 100


def test_required_options_are_marked_and_in_the_first_line(import_recipe):
    text = import_recipe("usage").help_text(RECIPES / "search.py", "dcal search")
    first = text.partition("\n\n")[0]
    assert first.startswith("usage: dcal search [CONFIGURATION] --gallery_dir TEXT --images TEXT ...")
    assert text.count("(required)") == 4


def test_scripts_print_their_help_before_they_import_torch():
    """So that it is fast."""
    program = (
        "import runpy, sys\n"
        "for script, *options in ([path, '--help'] for path in sys.argv[1:]):\n"
        "    sys.argv = [script, *options]\n"
        "    try:\n"
        "        runpy.run_path(script, run_name='__main__')\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code\n"
        "assert not {'torch', 'transformers', 'dcal_hf'} & set(sys.modules)"
    )
    scripts = [path for path in sorted(RECIPES.glob("*.py")) if "\n# dependencies = " in path.read_text()]
    # As Python does for a script.
    environment = {**os.environ, "PYTHONPATH": str(RECIPES)}
    run = subprocess.run([sys.executable, "-c", program, *scripts], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert all(f"usage: python recipes/{script.name} " in run.stdout for script in scripts)
    assert "usage: python recipes/verify.py [IMAGES ...] --model_name_or_path TEXT" in run.stdout
    assert "usage: python recipes/gallery.py {add,remove,show} [--option value ...]" in run.stdout


def test_a_file_in_the_help_can_be_copied(import_recipe):
    text = import_recipe("usage").help_text(RECIPES / "ablate.py", "dcal ablate")
    (ablation,) = (paragraph for paragraph in text.split("\n\n") if paragraph.startswith("    recipe:"))
    keys = yaml.safe_load(ablation)
    assert (keys["recipe"], keys["metrics"], keys["reference"]) == ("run_fgvc.py", ["accuracy"], "sa")
    assert " \\\n        --encoder_data_dir clothing-small" in text


def test_a_subcommand_has_a_help_of_its_own(import_recipe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gallery.py", "remove", "--help"])
    import_recipe("cli").run_script(str(RECIPES / "gallery.py"))
    printed = capsys.readouterr().out
    assert printed.startswith("usage: python recipes/gallery.py remove ") and "  --rows INTEGER ..." in printed


def test_the_help_of_the_command_shows_what_can_be_typed_where_only_the_wheel_is_installed(import_recipe):
    commands = import_recipe("cli").COMMANDS
    names = {script: name for name, (script, _) in commands.items()}
    texts = {}
    for script, name in names.items():
        arguments = import_recipe(script).ARGUMENTS
        for subcommand in arguments if isinstance(arguments, dict) else [None]:
            text = import_recipe("usage").help_text(RECIPES / f"{script}.py", f"dcal {name}", subcommand, names)
            assert "recipes/" not in text, name
            texts[name] = text
    assert "\n    dcal fgvc --do_train --do_eval --data_dir birds" in texts["fgvc"]
    assert "\n    accelerate launch --multi_gpu --no_python dcal reid turtles.yaml\n" in texts["reid"]
    assert "\n    accelerate launch --no_python dcal embed --model_name_or_path out" in texts["embed"]
    assert "\n    dcal ablate grocery_components --data_dir grocery" in texts["ablate"]
    assert "dcal verify" in texts["search"]
