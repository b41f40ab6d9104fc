"""The metrics loaded by path with `evaluate`, offline and without dcal_hf."""

import json
import os
import subprocess
import sys

import pytest

from dcal_hf.metrics import FineGrainedAccuracy, RetrievalMAP, fine_grained_accuracy, retrieval_map


PROGRAM = """
import evaluate, json, sys
sys.modules["dcal_hf"] = None
metrics = {path: evaluate.load(path) for path in sys.argv[2:]}
inputs = json.loads(sys.argv[1])
print(json.dumps({metric.name: metric.compute(**inputs[metric.name]) for metric in metrics.values()}))
"""
INPUTS = {
    "fine_grained_accuracy": {
        "predictions": [[0.9, 0.1, 0.0], [0.6, 0.3, 0.1], [0.2, 0.8, 0.0], [0.5, 0.1, 0.4]],
        "references": [0, 1, 1, 2],
    },
    "retrieval_map": {
        "predictions": [[0.0, 1.0], [0.0, 0.9], [0.5, 0.5], [0.1, 1.0], [1.0, 0.0]],
        "references": [7, 7, 8, 7, 8],
        "is_query": [True, False, True, False, False],
        "cameras": [0, 0, 1, 1, 2],
    },
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("stranger")
    caches = {"HF_HOME": str(folder), "HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    paths = [fine_grained_accuracy.__file__, retrieval_map.__file__]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(INPUTS), *paths],
        env=os.environ | caches, cwd=folder, capture_output=True, text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("metric", [FineGrainedAccuracy, RetrievalMAP])
def test_metric_by_path_offline_and_without_the_package(answers, metric):
    here = metric(keep_in_memory=True)
    assert answers[here.name] == pytest.approx(here.compute(**INPUTS[here.name]))
