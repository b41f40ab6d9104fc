"""`dcal`: the recipes as a single command.

    dcal fgvc quickstart                      # a bundled configuration, by name
    dcal reid my_turtles.yaml --seed 1        # or your own file
    dcal embed --help

It imports nothing of the package itself; each recipe imports what it needs when it runs. Here and in
`python recipes/...`, a user error ends with one sentence, and so does Ctrl-C; `DCAL_DEBUG=1` shows the traceback.
"""

import difflib
import os
import sys
import textwrap
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path


RECIPES = Path(__file__).parent
COMMANDS = {
    "fgvc": ("run_fgvc", "fine-tune and evaluate a classifier of look-alike classes"),
    "reid": ("run_reid", "train and evaluate an embedding that tells individuals apart"),
    "predict": ("predict", "classify photographs: a table, a contact sheet, where the model looked"),
    "attention": ("attention", "draw where several models look on the same photographs"),
    "embed": ("embed", "embed a folder of images into a gallery"),
    "search": ("search", "search a gallery by image"),
    "gallery": ("gallery", "add images to a gallery, remove some, show it"),
    "verify": ("verify", "tell whether two images show the same individual"),
    "export": ("export", "write a model as ONNX, compared with torch"),
    "demo": ("demo", "show a model in the browser, or write a Hugging Face Space"),
    "ablate": ("ablate", "compare options of a recipe over paired seeds"),
}
# Errors whose message is enough for a user: mistakes, files that cannot be read or written, a run that diverged.
MISTAKES = (ValueError, OSError, ImportError, FloatingPointError)


def usage() -> str:
    lines = [f"  {name:<9} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    names = sorted(path.stem for path in (RECIPES / "configs").glob("*.yaml"))
    return "\n".join(
        [
            "usage: dcal COMMAND [CONFIGURATION] [--option value ...]",
            "",
            "commands (dcal COMMAND --help lists the options):",
            *lines,
            "",
            textwrap.fill("bundled configurations: " + ", ".join(names), 100, subsequent_indent="  "),
        ]
    )


def main() -> None:
    """Entry point of the console script."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    command, *options = arguments
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(COMMANDS)}."
        raise SystemExit(f"dcal: there is no command '{command}': {hint}")
    # Make sibling modules importable, as when the script is run directly, and show the command in its usage.
    sys.path.insert(0, str(RECIPES))
    sys.argv = [f"dcal {command}", *options]
    script, _ = COMMANDS[command]
    run(script, f"dcal {command}", {recipe: name for name, (recipe, _) in COMMANDS.items()})


def run_script(path: str) -> None:
    """Runs a recipe that was started as a script, given its path."""
    script = Path(path)
    run(script.stem, f"python recipes/{script.name}")


def run(script: str, command: str, names: Mapping[str, str] | None = None) -> None:
    """Runs a recipe with the options of `sys.argv`, or prints its help, without importing it and so torch.

    Args:
        script (`str`): The name of its module.
        command (`str`): The command that runs it.
        names (mapping from `str` to `str`, *optional*): As in `help_text`.

    Raises:
        SystemExit: With one sentence, for a mistake of the user or an interruption.
    """
    program, *options = sys.argv
    try:
        if {"-h", "--help"} & set(options):
            print(import_module("usage").help_text(RECIPES / f"{script}.py", command, options[0], names), end="")
        else:
            import_module(script).main()
    except (*MISTAKES, KeyboardInterrupt) as error:
        if os.environ.get("DCAL_DEBUG"):
            raise
        reason = f"interrupted. {error}".strip() if isinstance(error, KeyboardInterrupt) else own_message(str(error))
        raise SystemExit(f"{Path(program).name}: {reason}") from None


def own_message(text: str) -> str:
    """The message of an error without the traceback that torch puts before it, if a worker that loads data failed."""
    if "\nOriginal Traceback" not in text:
        return text
    return text.rstrip().rpartition("\n")[2].partition(": ")[2]


if __name__ == "__main__":
    main()
