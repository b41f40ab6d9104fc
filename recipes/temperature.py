"""Calibrated probabilities of a classifier: the expected calibration error, and the temperature that lowers it.

Temperature scaling (Guo et al., ICML 2017) divides the joint logits of the branches by a number fitted on images that
are not in the training set. It changes the confidences, but not the predictions.
"""

import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from arguments import HubArguments
from loading import find_calibration
from scipy.special import softmax
from transformers.trainer_utils import PredictionOutput

from dcal_hf import DCALForImageClassification
from dcal_hf.errors import one_line
from dcal_hf.files import write_atomically
from dcal_hf.integrity import parse_description
from dcal_hf.metrics import expected_calibration_error, fit_temperature
from dcal_hf.models import DCALPreTrainedModel
from dcal_hf.retrieval import model_fingerprint


logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
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
    facts |= {"model_id": model_fingerprint(model)}
    write_atomically(path, json.dumps({"format_version": FORMAT_VERSION, **facts}, indent=2) + "\n")


def load_temperature(model: DCALPreTrainedModel, args: HubArguments) -> float:
    """Reads the temperature of a checkpoint.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the model has no classifiers, or the temperature is damaged or was fitted for other weights.
    """
    if not isinstance(model, DCALForImageClassification):
        raise ValueError(
            f"--calibrated scales the probabilities of a classifier, and {args.model_name_or_path} is none: leave out "
            "the option."
        )
    folder, model_id = shlex.quote(args.model_name_or_path), model_fingerprint(model)
    advice = f"fit it first, dcal fgvc --do_eval --data_dir birds {args.loading_options()} --output_dir {folder}"
    path = find_calibration(args, TEMPERATURE_FILE, advice)
    with path.open("rb") as file:
        facts = parse_description(file, path, FORMAT_VERSION, {"temperature": (float, int), "model_id": str})
    if not 0 < facts["temperature"] <= sys.float_info.max:
        raise ValueError(
            f"{path.parent} is damaged: {TEMPERATURE_FILE} has a temperature that is not positive and finite."
        )
    if facts["model_id"] != model_id:
        raise ValueError(
            f"The temperature in {path} was fitted for model {one_line(facts['model_id'])}, not for {model_id}: fit "
            "it again."
        )
    return facts["temperature"]


def describe_calibration(metrics: Mapping[str, float]) -> str:
    """The calibration results for the model card, in Markdown."""
    text = f"- Expected calibration error (15 bins): {100 * metrics['ece']:.2f} %"
    if "temperature" in metrics:
        helps = metrics["ece_scaled"] < metrics["ece"]
        text += (
            f"; {100 * metrics['ece_scaled']:.2f} %{'' if helps else ', so not better,'} if the logits are divided by "
            f"the temperature {metrics['temperature']:.4g}, which was fitted on the same images and is saved in "
            f"{TEMPERATURE_FILE}{'' if helps else ': predict without --calibrated'}"
        )
    return f"{text}."
