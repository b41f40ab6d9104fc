"""Runs the blocks of a page of documentation, in order, in one process and the current folder.

    python readme_blocks.py README.md [--quick]
"""

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("recipes/*.md"), *ROOT.glob("recipes/ablations/*.md")])
# Of the commands that no test runs as they are, why, and of the recipes among them the options are parsed.
NOT_RUN = {
    r"-m venv |pip install |-m pytest": "It installs packages and runs the tests: the CI does.",
    r"--multi_gpu": "It needs several GPUs.",
    r"recipes/ablate\.py": "It trains many models, for hours.",
    r"recipes/configs/(cub200|veri776)_": "It needs a published data set: test_presets takes a step of each preset.",
    r"out/grocery_\w+": "It needs the checkpoints of an ablation.",
    r"demo": "It serves pages until it is stopped.",
}
# What takes longer than a few seconds: training and export, and programs that read what those write.
SLOW = r"recipes/run_(fgvc|reid)\.py|trainer\.train\(\)|\.onnx"
# Languages of blocks that are neither commands nor programs.
QUOTATIONS = ("bibtex",)


class Block(NamedTuple):
    """A fenced block and where it is."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(name, text[:match.start()].count("\n") + 1, match["language"], match["text"])
        for match in re.finditer(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def commands(block: Block) -> Iterator[str]:
    """The commands of a shell block, each on one line."""
    lines = block.text.replace("\\\n", " ").splitlines()
    for line in lines:
        yield from (command.strip() for command in line.split("&&") if command.strip())


def why_not_run(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, command)), None)


def script_and_arguments(command: str) -> tuple[str, list[str]] | None:
    """The recipe that a command runs and its arguments; None if it runs another program."""
    words = shlex.split(command, comments=True)
    if words[0] == "dcal":
        return "recipes/cli.py", words[1:]
    scripts = [number for number, word in enumerate(words) if word.startswith("recipes/") and word.endswith(".py")]
    return (words[scripts[0]], words[scripts[0] + 1:]) if scripts else None


def run(command: str) -> None:
    """Runs the command of a recipe in this process."""
    script, arguments = script_and_arguments(command)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(ROOT / "recipes"))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise


def main(page: str, *options: str) -> None:
    from readme_world import few_images, names_of_programs

    few_images()
    namespace = names_of_programs()
    for block in blocks(ROOT / page):
        for text in commands(block) if block.language == "bash" else [block.text] * (block.language == "python"):
            if why_not_run(text) is not None or ("--quick" in options and re.search(SLOW, text)):
                continue
            print(f"== {block.place}\n{text}", file=sys.stderr, flush=True)
            if block.language == "bash":
                run(text)
            else:
                exec(compile(text, block.place, "exec"), namespace)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(*sys.argv[1:])
