"""Runs the file of `--register`, with which users register encoders and pair strategies of their own."""

import importlib
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from dcal_hf.errors import reason_of


def register_first(argv: Sequence[str]) -> None:
    """Runs the file that `--register` names, before the other options are parsed: their choices may depend on it.

    Raises:
        FileNotFoundError, ImportError: As [`register_from`].
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    # A missing value is left to the parser of all options.
    parser.add_argument("--register", nargs="?", type=Path)
    path = parser.parse_known_args(argv)[0].register
    if path is not None:
        register_from(path)


def register_from(path: Path) -> None:
    """Imports a file as a module. Its folder becomes importable, so that processes that load data find it, too.

    Raises:
        FileNotFoundError: If there is no such Python file.
        ImportError: If it fails, or another module has its name.
    """
    if path.suffix != ".py" or not path.is_file():
        raise FileNotFoundError(f"--register {path}: there is no such Python file.")
    sys.path.append(str(path.resolve().parent))
    try:
        module = importlib.import_module(path.stem)
    except Exception as error:
        raise ImportError(f"--register {path}: {type(error).__name__}: {reason_of(error)}") from error
    if Path(getattr(module, "__file__", None) or "").resolve() != path.resolve():
        raise ImportError(f"--register {path}: there is another module {path.stem}; rename the file.")


def with_neighbours(path: Path) -> set[Path]:
    """The file of `--register`, which has run, and the modules and packages of its folder that are imported."""
    folder, found = path.resolve().parent, {path.resolve()}
    for name, module in sys.modules.items():
        file = Path(getattr(module, "__file__", None) or "").resolve()
        if file.is_relative_to(folder):
            top = folder / file.relative_to(folder).parts[0]
            # Not a virtual environment in the folder, whose name is that of none of its modules.
            if top.stem == name.partition(".")[0]:
                found.add(top)
    return found
