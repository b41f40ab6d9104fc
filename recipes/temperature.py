"""Calibrated probabilities of a classifier: the expected calibration error, and the temperature that lowers it.

Temperature scaling (Guo et al., ICML 2017) divides the joint logits of the branches by a number fitted on images that
are not in the training set. It changes the confidences, but not the predictions.
"""

import json
import logging
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from transformers.trainer_utils import PredictionOutput
from transformers.utils import cached_file

from dcal_hf import DCALForImageClassification
from dcal_hf.files import write_atomically
from dcal_hf.metrics import expected_calibration_error, fit_temperature
from dcal_hf.retrieval import model_fingerprint


logger = logging.getLogger(__name__)

TEMPERATURE_FILE = "temperature.json"


def main_scores(output: PredictionOutput) -> np.ndarray:
    """Logits of all branches together."""
    return output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions


def calibration_metrics(
    logits: np.ndarray, labels: np.ndarray, temperature: float | None, fits: bool
) -> dict[str, float]:
    """Expected calibration error of logits (N, classes): `ece`, and with a temperature `ece_scaled`.

    Args:
        temperature (`float`, *optional*): A temperature that was fitted on other images.
        fits (`bool`): Whether to fit it on these images instead. A warning is logged if they do not determine one.
    """
    if fits:
        try:
            temperature = fit_temperature(logits, labels)
        except ValueError as error:
            logger.warning("No temperature is fitted. %s", error)
    metrics = {"ece": expected_calibration_error(softmax(logits, axis=1), labels)}
    if temperature is None:
        return metrics
    scaled = expected_calibration_error(softmax(logits / temperature, axis=1), labels)
    return {**metrics, "temperature": temperature, "ece_scaled": scaled}


def save_temperature(
    model: DCALForImageClassification,
    folder: str | os.PathLike,
    metrics: Mapping[str, float],
    dataset: str,
    num_images: int,
) -> None:
    """Writes `temperature.json` to the checkpoint folder, or removes that of earlier weights if none was fitted.

    Args:
        metrics (`Mapping[str, float]`): Those of [`calibration_metrics`].
        dataset (`str`), num_images (`int`): The images that the temperature was fitted on.
    """
    path = Path(folder, TEMPERATURE_FILE)
    if "temperature" not in metrics:
        path.unlink(missing_ok=True)
        return
    facts = {name: metrics[name] for name in ("temperature", "ece", "ece_scaled")}
    facts |= {"dataset": dataset, "num_images": num_images, "date": datetime.now(timezone.utc).date().isoformat()}
    write_atomically(path, json.dumps({**facts, "model_id": model_fingerprint(model)}, indent=2) + "\n")


def load_temperature(model: DCALForImageClassification, name: str, **hub_kwargs: Any) -> float:
    """Reads the temperature of a checkpoint.

    Args:
        name (`str`): Folder or Hub id of the checkpoint.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or was fitted for other weights.
    """
    try:
        path = cached_file(name, TEMPERATURE_FILE, **hub_kwargs)
    except OSError as error:
        raise FileNotFoundError(
            f"{name} has no {TEMPERATURE_FILE}: fit its temperature first, by recipes/run_fgvc.py --do_eval with "
            f"--model_name_or_path {name} and --output_dir {name}."
        ) from error
    try:
        facts = json.loads(Path(path).read_text(encoding="utf-8"))
        temperature, model_id = float(facts["temperature"]), facts["model_id"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: fit the temperature again.") from error
    if model_id != model_fingerprint(model) or not 0 < temperature < float("inf"):
        raise ValueError(f"The temperature in {path} was fitted for {model_id}, not for these weights: fit it again.")
    return temperature


def describe_calibration(metrics: Mapping[str, float]) -> str:
    """The calibration results for the model card, in Markdown."""
    text = f"- Expected calibration error (15 bins): {100 * metrics['ece']:.2f} %"
    if "temperature" in metrics:
        text += (
            f"; {100 * metrics['ece_scaled']:.2f} % if the logits are divided by the temperature "
            f"{metrics['temperature']:.4g}, which was fitted on the same images and is saved in {TEMPERATURE_FILE}"
        )
    return f"{text}."
