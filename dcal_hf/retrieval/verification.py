"""Verification of individuals: a threshold on the distance of two embeddings, calibrated on labelled images."""

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from ..errors import one_line
from ..files import write_atomically
from ..integrity import parse_description
from ..metrics.distances import FeatureDistances
from ..metrics.protocol import JUNK_IDENTITY, Column, RetrievalProtocol
from ..metrics.retrieval import QUERIES_PER_CHUNK, Smallest, num_accepted
from ..version import __version__


FORMAT_VERSION = 1
VERIFICATION_FILE = "verification.json"


@dataclass(frozen=True)
class VerificationThreshold:
    """A threshold on the Euclidean distance of two embeddings, and how it was calibrated. Built by [`calibrate`].

    Args:
        threshold (`float`): Two images show the same individual if their embeddings are nearer than this.
        false_accept_rate (`float`): At most this share of the pairs of different individuals is nearer.
        true_accept_rate (`float`): This share of the pairs of the same individual is nearer.
        num_images (`int`): Number of calibration images.
        num_identities (`int`): Number of individuals in them, without distractors.
        num_same_pairs (`int`): Number of pairs of the same individual.
        num_different_pairs (`int`): Number of pairs of different individuals.
        dataset (`str`): Display name of the data set.
        model_id (`str`): Identifies the model that computed the embeddings; see [`model_fingerprint`].
        date (`str`): The day of the calibration (UTC).
        dcal_hf_version (`str`): The version of this library.
    """

    threshold: float
    false_accept_rate: float
    true_accept_rate: float
    num_images: int
    num_identities: int
    num_same_pairs: int
    num_different_pairs: int
    dataset: str
    model_id: str
    date: str
    dcal_hf_version: str

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes `verification.json` into a checkpoint folder, and returns its path."""
        content = json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2)
        return write_atomically(Path(folder, VERIFICATION_FILE), content + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike, model_id: str) -> "VerificationThreshold":
        """Reads the `verification.json` of a checkpoint.

        Args:
            folder (`str` or `os.PathLike`): The checkpoint folder.
            model_id (`str`): The [`model_fingerprint`] of the model in it.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If it is damaged, of another format version, or calibrated for another model.
        """
        folder, path = Path(folder), Path(folder, VERIFICATION_FILE)
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path}.")
        with path.open("rb") as file:
            types = {field.name: (float, int) if field.type is float else field.type for field in fields(cls)}
            description = parse_description(file, path, FORMAT_VERSION, types)
        if not abs(description["threshold"]) <= sys.float_info.max:
            raise ValueError(f"{folder} is damaged: {VERIFICATION_FILE} has a threshold that is not finite.")
        if description["model_id"] != model_id:
            raise ValueError(
                f"The threshold in {folder / VERIFICATION_FILE} was calibrated for model "
                f"{one_line(description['model_id'])}, not for {model_id}: calibrate again with this model."
            )
        return cls(**{field.name: description[field.name] for field in fields(cls)})


def calibrate(
    embeddings: np.ndarray,
    identities: Column,
    cameras: Column | None = None,
    images: Column | None = None,
    *,
    distractor_ids: Sequence[int] = (),
    false_accept_rate: float = 0.01,
    dataset: str,
    model_id: str,
) -> VerificationThreshold:
    """Finds the largest threshold at which the false-accept rate does not exceed a limit.

    Each pair of images counts once. Two images show the same individual if they match by the [`RetrievalProtocol`]: by
    two cameras, and not copies of one image. Images of identity -1 are dropped. The distance matrix is never held in
    memory.

    Args:
        embeddings (`np.ndarray` of shape `(N, D)`):
            The embeddings of the images.
        identities, cameras, images (`np.ndarray` or `Sequence` of shape `(N,)`):
            The individual on each image and, optionally, its camera and a name of it, as in [`RetrievalProtocol`].
        distractor_ids (`Sequence[int]`, *optional*):
            Identities that do not stand for one individual, such as Market-1501's 0: two images of such an identity
            count neither as the same individual nor as different ones.
        false_accept_rate (`float`, *optional*, defaults to 0.01):
            The largest allowed share of pairs of different individuals below the threshold, between 0 and 1.
        dataset, model_id (`str`):
            Display name of the data set, and the [`model_fingerprint`] of the model.

    Returns:
        [`VerificationThreshold`]

    Raises:
        ValueError: If there is no pair of the same individual, or too few pairs of different ones for the rate, or if
            the rate or the columns are invalid.
    """
    protocol, kept = _protocol(identities, cameras, images, len(embeddings))
    is_distractor = np.isin(protocol.query_ids, distractor_ids)
    num_different = _num_different_pairs(protocol.query_ids)
    allowed = _num_allowed(false_accept_rate, num_different, dataset)
    same, different = _squared_distances(np.asarray(embeddings)[kept], protocol, is_distractor, allowed + 1)
    if not len(same):
        raise ValueError(
            f"{dataset} has no pair of images of the same individual{'' if cameras is None else ' by two cameras'}: "
            "give at least two images of some individuals."
        )
    return VerificationThreshold(
        threshold=math.sqrt(max(different[allowed], 0.0)),
        false_accept_rate=false_accept_rate,
        true_accept_rate=float((same < different[allowed]).mean()),
        num_images=len(kept),
        num_identities=len(np.unique(protocol.query_ids[~is_distractor])),
        num_same_pairs=len(same),
        num_different_pairs=num_different,
        dataset=dataset,
        model_id=model_id,
        date=datetime.now(timezone.utc).date().isoformat(),
        dcal_hf_version=__version__,
    )


def pair_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Euclidean distances (N,), float64, between paired embeddings (N, D) of first and second images."""
    return np.linalg.norm(np.asarray(first, np.float64) - np.asarray(second, np.float64), axis=1)


def _protocol(
    identities: Column, cameras: Column | None, images: Column | None, length: int
) -> tuple[RetrievalProtocol, np.ndarray]:
    """The protocol of a set that is searched with its own images, without junk, and the indices of what remains."""
    for column in (identities, cameras, images):
        if column is not None and np.shape(column) != (length,):
            raise ValueError(
                f"There must be one entry for each of {length} embeddings, got an array of {np.shape(column)}."
            )
    kept = np.flatnonzero(np.asarray(identities) != JUNK_IDENTITY)
    identities, cameras, images = (
        None if column is None else np.asarray(column)[kept] for column in (identities, cameras, images)
    )
    protocol = RetrievalProtocol(
        identities, identities, cameras, cameras, query_images=images, gallery_images=images
    )
    return protocol, kept


def _num_different_pairs(identities: np.ndarray) -> int:
    _, counts = np.unique(identities, return_counts=True)
    return int(len(identities) ** 2 - (counts ** 2).sum()) // 2


def _num_allowed(false_accept_rate: float, num_different: int, dataset: str) -> int:
    """The number of pairs of different individuals that may be accepted.

    Raises:
        ValueError: If the rate is not between 0 and 1, or so low that it is none.
    """
    if not 0 < false_accept_rate < 1:
        raise ValueError(f"The false-accept rate must be above 0 and below 1, got {false_accept_rate:g}.")
    allowed = num_accepted(false_accept_rate, num_different)
    if allowed < 1:
        raise ValueError(
            f"A false-accept rate of {false_accept_rate:g} needs at least {math.ceil(1 / false_accept_rate):,} pairs "
            f"of images of different individuals, and {dataset} has {num_different:,}: give more images, or a higher "
            "rate."
        )
    return allowed


def _squared_distances(
    embeddings: np.ndarray, protocol: RetrievalProtocol, is_distractor: np.ndarray, num_nearest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances of all valid pairs of the same individual, and, ascending, of the nearest different pairs.

    Args:
        embeddings: (N, D).
        protocol: Of these images, each of them as query and as gallery item.
        is_distractor: (N,), bool.
        num_nearest: How many pairs of different individuals to return.
    """
    identities = protocol.query_ids
    # In double precision, since a small distance is the difference of large numbers.
    embeddings = embeddings.astype(np.float64)
    distances = FeatureDistances(embeddings, embeddings)
    same_pairs, different_pairs = [], Smallest(num_nearest)
    for start in range(0, len(embeddings), QUERIES_PER_CHUNK):
        rows = distances.rows(np.arange(start, min(start + QUERIES_PER_CHUNK, len(embeddings))))
        for index, row in enumerate(rows, start):
            later = slice(index + 1, None)
            different_pairs.add(row[later][identities[later] != identities[index]])
            if not is_distractor[index]:
                matches = protocol.matches(index)
                same_pairs.append(row[matches[matches > index]])
    return np.concatenate(same_pairs or [np.empty(0)]), different_pairs.values()


__all__ = ["VERIFICATION_FILE", "VerificationThreshold", "calibrate", "pair_distances"]
