"""Every block of the documentation: its commands and programs run, or at least the options of its commands exist."""

import re
from pathlib import Path

import pytest

from processes import run_script
from readme_blocks import PAGES, QUOTATIONS, ROOT, blocks, commands, script_and_arguments, why_not_run
from readme_world import make_world, save_trained


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [(block.place, command) for block in BLOCKS if block.language == "bash" for command in commands(block)]
RUNNABLE = {block.page for block in BLOCKS if block.language == "python"}
RUNNABLE |= {place.partition(":")[0] for place, command in COMMANDS if why_not_run(command) is None}


class Parsed(Exception):
    pass


def test_each_block_has_an_end_and_a_language_that_is_tested():
    assert {block.language for block in BLOCKS} <= {"bash", "python", *QUOTATIONS}
    fences = sum(len(re.findall(r"^\s*(?:```|~~~)", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len(BLOCKS)


@pytest.mark.parametrize("place, command", COMMANDS, ids=[place for place, _ in COMMANDS])
def test_the_options_of_a_command_exist(import_recipe, monkeypatch, tmp_path, place, command):
    found = script_and_arguments(command)
    if found is None:
        assert why_not_run(command) is not None, f"{place} runs an unknown program: {command}"
        extras = re.findall(r'^ +"(\w+)": \[|^EXTRAS\["(\w+)"\]', (ROOT / "setup.py").read_text(), re.MULTILINE)
        assert set(re.findall(r"\[(\w+)\]", command)) <= {name for names in extras for name in names}
        return
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "config.yaml").write_text("base: recipes/configs/quickstart.yaml")
    monkeypatch.chdir(tmp_path)
    script, arguments = found
    name = Path(script).stem
    if name == "cli":
        name = import_recipe("cli").COMMANDS[arguments.pop(0)][0]
    recipe = import_recipe(name)
    parse = recipe.parse_arguments

    def parse_and_stop(*args, **kwargs):
        parse(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(recipe, "parse_arguments", parse_and_stop)
    monkeypatch.setattr("sys.argv", [script, *arguments])
    with pytest.raises(Parsed):
        recipe.main()


@pytest.mark.parametrize("page", sorted(RUNNABLE))
@pytest.mark.parametrize("is_slow", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["quick", "slow"])
def test_commands_and_programs_run_as_written(tmp_path, monkeypatch, page, is_slow):
    """From first to last in one process and folder; without those that take long, their models are there already."""
    make_world(tmp_path / "world")
    if not is_slow:
        save_trained(tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    run_script(ROOT / "tests" / "readme_blocks.py", page, *([] if is_slow else ["--quick"]))
