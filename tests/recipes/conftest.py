"""Runs recipes in this process, because a new process needs seconds to import torch."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from dcal_hf.data import synthetic_fgvc, synthetic_reid


RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="session")
def import_recipe() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of `recipes` or `recipes/benchmarks` by name."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for folder in (RECIPES, RECIPES / "benchmarks"):
            monkeypatch.syspath_prepend(str(folder))
        yield importlib.import_module


@pytest.fixture(scope="session")
def run_recipe(import_recipe) -> Callable[..., None]:
    """Runs a recipe by name with a command line."""

    def run(name: str, *arguments: object) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
            import_recipe(name).main()

    return run


@pytest.fixture
def few_drawn(monkeypatch) -> None:
    """Replaces the built-in data set `drawn` by a few images."""
    monkeypatch.setattr("dcal_hf.data.fgvc.synthetic_fgvc", lambda: synthetic_fgvc(20, 10, 10))
    monkeypatch.setattr("dcal_hf.data.reid.synthetic_reid", lambda: synthetic_reid(6, 5, 3, 3, 4))
