"""What `import dcal_hf` imports, and what it imports on first access."""

import importlib
import json
import subprocess
import sys

import pytest


PROGRAM = """
import json, sys
import dcal_hf
print(json.dumps([name for name in ("faiss", "matplotlib", "evaluate") if name in sys.modules]))
"""


def test_optional_libraries_are_imported_on_first_access():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == []


@pytest.mark.parametrize("name", ["data", "metrics", "models", "retrieval", "training"])
def test_every_public_name_exists(name):
    package = importlib.import_module(f"dcal_hf.{name}")
    assert [public for public in package.__all__ if not hasattr(package, public)] == []
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing
