"""A gallery to search by image: embeddings in a faiss index and a table of their items, saved together."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import faiss
import numpy as np
import torch
from datasets import Dataset, Image, Value, concatenate_datasets, load_from_disk
from datasets.features.features import require_decoding

from ..errors import counted, one_line, reason_of
from ..integrity import Fields
from ..metrics.distances import DistanceMetric, as_tensor
from .atomic_folder import check_files, load_folder, save_folder
from .faiss_errors import faiss_reason, naming_index


FORMAT_VERSION = 1
DESCRIPTION_FILE, INDEX_FILE, IDS_FILE, ITEMS_FOLDER = "gallery.json", "index.faiss", "ids.npy", "items"
NORMALISATIONS = {"cosine": "l2", "euclidean": "none"}
SAVED_FIELDS = ("model_id", "model_name", "metric", "factory", "search_parameters")
DESCRIBED: Fields = {
    "model_id": str,
    "model_name": (str, NoneType),
    "metric": str,
    "factory": str,
    "search_parameters": dict,
    "dimension": int,
    "num_items": int,
    "files": dict,
}
IMAGE_RECORD = {"bytes": Value("binary"), "path": Value("string")}
# How many rows are normalised and added to faiss at a time.
ROWS_PER_CHUNK = 1 << 16


@dataclass
class GalleryIndex:
    """Embeddings in a faiss index, and the table of their items. Built by [`GalleryIndex.from_embeddings`].

    ```python
    >>> gallery = GalleryIndex.from_embeddings(
    ...     embed_images(model, image_processor, dataset), dataset, model_id=model_fingerprint(model)
    ... )
    >>> gallery.save("gallery")
    >>> gallery = GalleryIndex.load("gallery", model_id=model_fingerprint(model))
    >>> scores, items = gallery.search(embed_images(model, image_processor, queries), k=5)
    ```

    Args:
        index (`faiss.Index`): The embeddings, stored under `ids`.
        items (`datasets.Dataset` of `N` rows): The indexed items.
        ids (`np.ndarray` of shape `(N,)`, int64): The ID in `index` of each row of `items`, ascending.
        model_id (`str`):
            Identifies the model that computed the embeddings, such as [`~dcal_hf.retrieval.model_fingerprint`].
            Embeddings of other models cannot be compared.
        model_name (`str`, *optional*): The display name of that model; it is not compared.
        metric (`"cosine"` or `"euclidean"`): Cosine normalises embeddings to length 1 when they are added.
        factory (`str`): The faiss factory string of `index`.
        search_parameters (`dict[str, float]`): Parameters set by [`~GalleryIndex.set_search_parameters`].
    """

    index: faiss.Index
    items: Dataset
    ids: np.ndarray
    model_id: str
    model_name: str | None = None
    metric: DistanceMetric = "cosine"
    factory: str = "Flat"
    search_parameters: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_embeddings(
        cls,
        embeddings: np.ndarray | torch.Tensor,
        items: Dataset | Mapping[str, Sequence],
        *,
        model_id: str,
        model_name: str | None = None,
        factory: str = "Flat",
        metric: DistanceMetric = "cosine",
        search_parameters: Mapping[str, float] | None = None,
        training_size: int | None = None,
    ) -> "GalleryIndex":
        """Builds a gallery. An index that needs training (IVF, PQ) is trained on the embeddings.

        If the embeddings do not fit into memory, build the gallery from a representative sample and
        [`~GalleryIndex.add`] the rest in parts.

        Args:
            embeddings (`np.ndarray` or `torch.Tensor` of shape `(N, D)`):
                One row per item.
            items (`datasets.Dataset` or `Mapping` of columns):
                `N` rows with any columns. Image columns become records of path and bytes, which
                [`~dcal_hf.data.open_image`] reads; image files are not copied.
            model_id (`str`):
                Identifies the model; [`~GalleryIndex.load`] compares it.
            model_name (`str`, *optional*):
                The display name of the model.
            factory (`str`, *optional*, defaults to `"Flat"`):
                A faiss factory string: `"Flat"` is exact; `"HNSW32"`, `"IVF4096,PQ64"`, ... are approximate.
            metric (`"cosine"` or `"euclidean"`, *optional*, defaults to `"cosine"`):
                The metric to search by.
            search_parameters (`Mapping[str, float]`, *optional*):
                See [`~GalleryIndex.set_search_parameters`].
            training_size (`int`, *optional*):
                Number of randomly sampled embeddings to train the index on; all by default.

        Raises:
            ValueError: If the embeddings, items or options are invalid, or the embeddings too few to train the index.
        """
        if metric not in NORMALISATIONS:
            raise ValueError(f'The metric must be "cosine" or "euclidean", got {metric!r}.')
        vectors, items = _as_vectors(embeddings), _as_table(items)
        index = _empty_index(vectors.shape[1], factory)
        gallery = cls(index, items.select(range(0)), np.empty(0, np.int64), model_id, model_name, metric, factory)
        gallery.set_search_parameters(**(search_parameters or {}))
        gallery._train(vectors, training_size or len(vectors))
        gallery.add(vectors, items)
        return gallery

    @property
    def dimension(self) -> int:
        """The embedding dimension."""
        return self.index.d

    def __len__(self) -> int:
        return len(self.ids)

    def set_search_parameters(self, **parameters: float) -> None:
        """Sets faiss search-time parameters by name, such as `nprobe=16` (IVF) or `efSearch=64` (HNSW).

        They are saved with the gallery.

        Raises:
            ValueError: If the index has no such parameter, or it must be at least 1.
        """
        for name, value in parameters.items():
            if name.endswith(("nprobe", "efSearch")) and not 1 <= value < 2**31:
                raise ValueError(f"The search parameter {name!r} must be at least 1, got {value}.")
            try:
                faiss.ParameterSpace().set_index_parameter(self.index, name, value)
            except RuntimeError as error:
                raise ValueError(f"An index {self.factory!r} has no search parameter {name!r}.") from error
        self.search_parameters = {**self.search_parameters, **parameters}

    def add(self, embeddings: np.ndarray | torch.Tensor, items: Dataset | Mapping[str, Sequence]) -> None:
        """Appends items.

        Args:
            embeddings (`np.ndarray` or `torch.Tensor` of shape `(n, D)`): One row per item.
            items (`datasets.Dataset` or `Mapping` of columns): `n` rows with the columns of the gallery's items.

        Raises:
            ValueError: If they do not match each other or the gallery, or the index cannot add that many or any more
                (NSG); the gallery is then unchanged.
        """
        vectors, items = _as_vectors(embeddings, self.dimension), _as_table(items)
        if len(items) != len(vectors):
            raise ValueError(f"Each item needs one embedding, got {len(items)} items and {len(vectors)} embeddings.")
        if set(items.column_names) != set(self.items.column_names):
            raise ValueError(f"The gallery's items have columns {self.items.column_names}, not {items.column_names}.")
        items = concatenate_datasets([self.items, items])
        first = self.ids[-1] + 1 if len(self) else 0
        ids = np.arange(first, first + len(vectors))
        for start in range(0, len(vectors), ROWS_PER_CHUNK):
            part = slice(start, start + ROWS_PER_CHUNK)
            with naming_index(self.factory, f"add {counted(len(ids[part]), 'embedding')} to {len(self)}"):
                self.index.add_with_ids(self._normalised(vectors[part]), ids[part])
        self.items, self.ids = items, np.concatenate([self.ids, ids])

    def remove(self, rows: Sequence[int] | np.ndarray) -> None:
        """Removes items; later rows move up.

        Args:
            rows (`Sequence[int]` or `np.ndarray`): Rows of `items`, or a mask over them.

        Raises:
            IndexError: If a row does not exist.
            ValueError: If the index does not support removal (HNSW).
        """
        keep = np.delete(np.arange(len(self)), rows)
        try:
            self.index.remove_ids(np.setdiff1d(self.ids, self.ids[keep]))
        except RuntimeError as error:
            raise ValueError(
                f"An index {self.factory!r} cannot remove items: build a new one from the others, or use Flat or IVF."
            ) from error
        self.items, self.ids = self.items.select(keep), self.ids[keep]

    def search(
        self, queries: np.ndarray | torch.Tensor, k: int = 10
    ) -> tuple[np.ndarray, list[list[dict[str, Any]]]]:
        """Finds the items nearest to each query.

        Args:
            queries (`np.ndarray` or `torch.Tensor` of shape `(Q, D)`): Embeddings computed by the gallery's model.
            k (`int`, *optional*, defaults to 10): How many items to find; all if the gallery has fewer.

        Returns:
            `np.ndarray` of shape `(Q, k)`, float32: Scores, best first: cosine similarities (higher is nearer) or
            Euclidean distances (lower is nearer).
            `list` of `Q` lists of `dict`: The rows of `items` with these scores. An approximate index may find fewer
            than `k`; the remaining scores are NaN.

        Raises:
            ValueError: If the queries' dimension differs from the gallery's, `k` is below 1, or the gallery is empty.
        """
        scores, rows = self.search_rows(queries, k)
        return scores, [self.items.select(found[found >= 0]).to_list() for found in rows]

    def search_rows(self, queries: np.ndarray | torch.Tensor, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Like [`~GalleryIndex.search`], but returns row numbers of `items` (`(Q, k)`, int64, -1 for none)."""
        vectors = _as_vectors(queries, self.dimension)
        if k < 1 or not len(self):
            raise ValueError(f"A search needs k of at least 1 and items to find, got {k=} and {len(self)} items.")
        squares, ids = self.index.search(self._normalised(vectors), min(k, len(self)))
        rows = np.where(ids < 0, -1, np.searchsorted(self.ids, ids))
        # |q - g|² = 2 (1 - q·g) where |q| = |g| = 1.
        scores = 1 - squares / 2 if self.metric == "cosine" else np.sqrt(np.maximum(squares, 0))
        scores[rows < 0] = np.nan
        return scores, rows

    def distances(self, scores: np.ndarray) -> np.ndarray:
        """Converts scores to Euclidean distances; with the cosine metric, those of the normalised embeddings."""
        # |q - g|² = 2 (1 - q·g) where |q| = |g| = 1.
        return np.sqrt(np.maximum(2 - 2 * scores, 0)) if self.metric == "cosine" else scores

    def save(self, folder: str | os.PathLike) -> None:
        """Saves the index, items and a description with checksums to a folder, which appears only once complete.

        An existing gallery is replaced. `datasets.load_from_disk` reads the items, `faiss.read_index` the index.

        Args:
            folder (`str` or `os.PathLike`): The folder: new, empty, or an existing gallery.

        Raises:
            FileExistsError: If the folder contains anything else.
            BlockingIOError: If another process is saving the gallery; the message names it.
        """

        def write_files(new: Path) -> None:
            self.items.save_to_disk(new / ITEMS_FOLDER)
            faiss.write_index(self.index, str(new / INDEX_FILE))
            np.save(new / IDS_FILE, self.ids)

        save_folder(folder, DESCRIPTION_FILE, self._description(), write_files)

    @classmethod
    def load(
        cls, folder: str | os.PathLike, model_id: str | None = None, dimension: int | None = None
    ) -> "GalleryIndex":
        """Loads a saved gallery. Its table of items is memory-mapped.

        Args:
            folder (`str` or `os.PathLike`): The folder.
            model_id (`str`, *optional*): The model of the queries; checked if given.
            dimension (`int`, *optional*): The dimension of their embeddings; checked if given.

        Raises:
            FileNotFoundError: If the folder does not contain a gallery.
            ValueError: If the gallery is damaged, or of another model, dimension or format version.
            TimeoutError: If other processes keep replacing it.
        """
        return load_folder(
            folder,
            DESCRIPTION_FILE,
            FORMAT_VERSION,
            DESCRIBED,
            lambda folder, description: cls._load(folder, description, model_id, dimension),
        )

    @classmethod
    def _load(
        cls, folder: Path, description: dict[str, Any], model_id: str | None, dimension: int | None
    ) -> "GalleryIndex":
        if model_id not in (None, description["model_id"]):
            name = f" ({description['model_name']})" if description["model_name"] else ""
            model = one_line(description["model_id"] + name)
            raise ValueError(
                f"The gallery {folder} was embedded by model {model}, not by {model_id}: "
                "search it with that model, or embed the images again."
            )
        if dimension not in (None, description["dimension"]):
            raise ValueError(
                f"The gallery {folder} has embeddings of {description['dimension']} dimensions, not {dimension}."
            )
        check_files(folder, description["files"])
        gallery = cls(
            index=_read_index(folder),
            items=_read_items(folder),
            ids=np.load(folder / IDS_FILE, allow_pickle=False),
            **{name: description[name] for name in SAVED_FIELDS},
        )
        counts = {gallery.index.ntotal, len(gallery.items), len(gallery.ids), description["num_items"]}
        is_described = gallery.dimension == description["dimension"] and len(counts) == 1
        if gallery.metric not in NORMALISATIONS or not is_described:
            raise ValueError(f"{folder} is damaged: {DESCRIPTION_FILE} does not describe its files.")
        try:
            gallery.set_search_parameters(**gallery.search_parameters)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder} is damaged: {DESCRIPTION_FILE}: {reason_of(error)}.") from error
        return gallery

    def _description(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            **{name: getattr(self, name) for name in SAVED_FIELDS},
            "normalisation": NORMALISATIONS[self.metric],
            "dimension": self.dimension,
            "num_items": len(self),
        }

    def _train(self, vectors: np.ndarray, training_size: int) -> None:
        if self.index.is_trained:
            return
        if training_size < len(vectors):
            chosen = np.random.default_rng(0).choice(len(vectors), training_size, replace=False)
            vectors = vectors[np.sort(chosen)]
        with naming_index(self.factory, f"be trained on {counted(len(vectors), 'embedding')}"):
            self.index.train(self._normalised(vectors))

    def _normalised(self, vectors: np.ndarray) -> np.ndarray:
        if self.metric == "euclidean":
            return vectors
        return torch.nn.functional.normalize(torch.from_numpy(vectors)).numpy()


def _empty_index(dimension: int, factory: str) -> faiss.Index:
    """An index that stores vectors under given IDs: IVF does so itself, others are wrapped in an `IndexIDMap`.

    Its distance is Euclidean, which ranks normalised vectors as the cosine does. Inner products would not survive PCA,
    which centres the vectors.
    """
    try:
        index = faiss.index_factory(dimension, factory)
    except RuntimeError as error:
        message = f"faiss cannot create an index {factory!r} of {dimension} dimensions: {faiss_reason(error)}."
        raise ValueError(message) from error
    core = index
    while isinstance(core, faiss.IndexPreTransform):
        core = faiss.downcast_index(core.index)
    return index if isinstance(core, (faiss.IndexIVF, faiss.IndexIDMap)) else faiss.IndexIDMap(index)


def _read_index(folder: Path) -> faiss.Index:
    """Reads the index. An index may name a file with its vectors, which must not be one outside of the folder."""
    try:
        return faiss.read_index(str(folder / INDEX_FILE), faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        reason = one_line(faiss_reason(error))
        raise ValueError(f"{folder} is damaged: {INDEX_FILE} cannot be read: {reason}.") from error


def _read_items(folder: Path) -> Dataset:
    """Reads the table of items, whose images are only opened by [`~dcal_hf.data.open_image`]."""
    items = load_from_disk(str(folder / ITEMS_FOLDER))
    encoded = [name for name, feature in items.features.items() if require_decoding(feature)]
    if encoded:
        raise ValueError(f"{folder} is damaged: its items have encoded files in the column {one_line(encoded[0])}.")
    return items


def _as_vectors(embeddings: np.ndarray | torch.Tensor, dimension: int | None = None) -> np.ndarray:
    """Validates embeddings and converts them to a float32 matrix, without a copy if they already are one."""
    vectors = as_tensor(embeddings).to("cpu", torch.float32).contiguous().numpy()
    if vectors.ndim != 2 or 0 in vectors.shape or dimension not in (None, vectors.shape[-1]):
        width = "D" if dimension is None else dimension
        raise ValueError(f"Embeddings must have shape (N, {width}) with at least one row, got {vectors.shape}.")
    lengths = np.einsum("nd,nd->n", vectors, vectors)
    if not np.isfinite(lengths).all():
        raise ValueError(f"Embeddings must be finite, but row {np.isfinite(lengths).argmin()} is not.")
    return vectors


def _as_table(items: Dataset | Mapping[str, Sequence]) -> Dataset:
    table = items.with_format(None) if isinstance(items, Dataset) else Dataset.from_dict(dict(items))
    for name, feature in table.features.items():
        if isinstance(feature, Image):
            table = table.cast_column(name, IMAGE_RECORD)
        elif require_decoding(feature):
            raise ValueError(f"The items' column '{name}' has files in lists, or other than images: leave it out.")
    return table


__all__ = ["GalleryIndex"]
