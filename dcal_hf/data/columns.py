"""Reads columns of data sets without their transforms, so that no image is decoded."""

import hashlib

from datasets import Dataset, Image


def column(dataset: Dataset, name: str) -> list:
    """Reads a column without the transform, so that no image is opened."""
    return dataset.with_format(None)[name][:]


def image_records(dataset: Dataset) -> list[dict]:
    """The images of a data set as stored, `{"path": ..., "bytes": ...}`."""
    return dataset.with_format(None).cast_column("image", Image(decode=False))["image"][:]


def image_names(dataset: Dataset) -> list[str]:
    """Names of images that need not be opened: their paths, or hashes of the files if these are stored in the set.

    Parts of one image, by the column bbox, have different names.
    """
    names = [
        record["path"] if record["bytes"] is None else hashlib.sha256(record["bytes"]).hexdigest()
        for record in image_records(dataset)
    ]
    if "bbox" in dataset.column_names:
        names = [f"{name} {box}" for name, box in zip(names, column(dataset, "bbox"))]
    return names


def protocol_columns(query: Dataset, gallery: Dataset) -> dict[str, list]:
    """Identities and, if both sets have them, cameras, as arguments of [`~dcal_hf.metrics.retrieval_metrics`].

    Without cameras, the names of the images keep a query from finding itself.
    """
    sets = {"query": query, "gallery": gallery}
    columns = {f"{name}_ids": column(dataset, "identity") for name, dataset in sets.items()}
    if all("camera_id" in dataset.column_names for dataset in sets.values()):
        return columns | {f"{name}_cameras": column(dataset, "camera_id") for name, dataset in sets.items()}
    return columns | {f"{name}_images": image_names(dataset) for name, dataset in sets.items()}


__all__ = ["column", "image_names", "image_records", "protocol_columns"]
