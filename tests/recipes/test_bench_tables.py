"""The committed tables against what their scripts write."""

from collections import defaultdict
from pathlib import Path

import pytest


# By report: the documented command.
COMMANDS = {
    "cost": ["bench_cost"],
    "data": ["bench_data", "--speeds", "1.11", "0.92"],
    "gallery": ["bench_gallery"],
    "memory": ["bench_model", "--report", "memory"],
    "model": ["bench_model", "--repeats", "5", "--steps", "2"],
    "retrieval": ["bench_retrieval"],
    "switches": ["bench_model", "--report", "switches", "--shapes", "deit_tiny", "--steps", "2"],
}


def outline(report: str) -> list[str]:
    """The headings and the headers of the tables, in order."""
    lines = report.splitlines()
    return [
        line for line, following in zip(lines, [*lines[1:], ""])
        if line.startswith("#") or following.startswith("| ---")
    ]


@pytest.fixture
def harness(import_recipe):
    return import_recipe("harness")


def test_every_committed_table_has_its_command(harness):
    assert {path.stem for path in Path(harness.__file__).parent.glob("*.md")} == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_new_run_writes_the_committed_tables(harness, run_recipe, monkeypatch, tmp_path, name):
    """The same headings, columns and notes; every measured number is replaced by 1."""
    figures = defaultdict(lambda: 1.0)
    monkeypatch.setattr(harness, "measure", lambda cases, *_: dict.fromkeys(cases, figures))
    run_recipe(*COMMANDS[name], "--output", tmp_path / "report.md")
    committed = Path(harness.__file__).with_name(f"{name}.md").read_text()
    written = (tmp_path / "report.md").read_text()
    assert outline(written) == outline(committed) and len(outline(written)) > 1
    assert written.split(harness.NOTES)[1:] == committed.split(harness.NOTES)[1:]
