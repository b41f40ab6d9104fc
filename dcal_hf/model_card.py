"""The model card of a trained model: README.md with the metadata that the Hub reads."""

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .files import write_atomically
from .version import __version__


BRANCHES = MappingProxyType({"SA": "sa_", "GLCA": "glca_", "SA + GLCA": ""})
CLASSIFICATION_COLUMNS = MappingProxyType(
    {"Top-1": "accuracy", "Top-5": "top5_accuracy", "Class mean": "class_mean_accuracy"}
)
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "timm")

DESCRIPTION = """
Dual Cross-Attention Learning (DCAL) teaches a vision transformer to tell near-identical objects apart. Beside
self-attention (SA) it has two more ways of attending. Global-local cross-attention (GLCA) takes the patches to
which attention rollout gives most weight, and lets only their queries attend to the whole image, in a block with a
classifier of its own. Pair-wise cross-attention (PWCA) lets an image attend to a second, distracting image at the same
time; it regularises training and is removed for inference. Which of the three this model was trained with is told
under Training, and which answer at inference under Results.
"""

LIMITATIONS = """
- The model knows the classes of its training data only, and names one of them for any picture whatever.
- The results hold for pictures like those of the data set named above; other cameras, crops and places lower them.
- The weights inherit the terms and the biases of that data set and of the base model's pretraining data.
- Attention rollout shows what the model drew on. It is no proof of why the model decided as it did.
"""

CLASSIFICATION_USAGE = """
```python
import dcal_hf  # makes the Auto classes know the model
from transformers import AutoModelForImageClassification, pipeline

model = AutoModelForImageClassification.from_pretrained("{model}")
print(pipeline("image-classification", model="{model}")("image.jpg"))
```
"""

CITATION = """
```bibtex
@inproceedings{zhu2022dual,
  title     = {Dual Cross-Attention Learning for Fine-Grained Visual Categorization and Object Re-Identification},
  author    = {Zhu, Haowei and Ke, Wenjing and Li, Dong and Liu, Ji and Tian, Lu and Shan, Yi},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {4692--4702},
  year      = {2022}
}
```

Paper: [arXiv 2205.02151](https://arxiv.org/abs/2205.02151).
"""


def write_model_card(
    output_dir: str | os.PathLike,
    *,
    model_name: str,
    dataset: str,
    metrics: Mapping[str, float],
    hyperparameters: Mapping[str, object],
    data: Mapping[str, object],
    task: str = "image-classification",
    base_model: str | None = None,
    dataset_id: str | None = None,
    dataset_split: str | None = None,
    branches: Mapping[str, str] = BRANCHES,
    columns: Mapping[str, str] = CLASSIFICATION_COLUMNS,
    usage: str = CLASSIFICATION_USAGE,
    limitations: str = LIMITATIONS,
    sections: Mapping[str, str] = MappingProxyType({}),
    tags: Sequence[str] = ("dcal", "fine-grained", "vision-transformer"),
    license: str = "apache-2.0",
) -> Path:
    """Writes `README.md`, which appears under its name only once it is complete.

    The defaults describe a classifier of fine-grained classes. A re-identification model gives its own `task`,
    `columns` (`{"mAP": "map", "Rank-1": "rank1"}`), `usage`, `limitations` and `tags`.

    Args:
        output_dir (`str` or `os.PathLike`):
            The folder of the saved model; it is made if it does not exist.
        model_name (`str`):
            The model's name, or its repository on the Hub, by which `usage` loads it.
        dataset (`str`):
            The data set's name, for people.
        metrics (`Mapping[str, float]`):
            The results, as shares from 0 to 1: for each branch and column, the key is the branch's prefix followed by
            the column's key.
        hyperparameters (`Mapping[str, object]`):
            Names and values of the training's settings.
        data (`Mapping[str, object]`):
            Facts about the data, such as the numbers of images and classes and the seed of the split.
        task (`str`, *optional*, defaults to `"image-classification"`):
            The Hub's name of the task.
        base_model (`str`, *optional*):
            The backbone that training started from. Only one that is named as on the Hub goes into the metadata; of a
            local folder the card tells the last part of the path.
        dataset_id (`str`, *optional*):
            The data set's repository on the Hub.
        dataset_split (`str`, *optional*):
            The split that the results are on.
        branches (`Mapping[str, str]`, *optional*):
            The rows of the results: their titles, and the prefixes of their metrics.
        columns (`Mapping[str, str]`, *optional*):
            The columns of the results: their titles, and the keys of their metrics.
        usage, limitations (`str`, *optional*):
            The two sections in Markdown. `{model}` in `usage` stands for `model_name`.
        sections (`Mapping[str, str]`, *optional*):
            Titles and Markdown of further sections.
        tags (`Sequence[str]`, *optional*):
            The card's tags.
        license (`str`, *optional*, defaults to `"apache-2.0"`):
            The licence of the weights, as the Hub abbreviates it.

    Returns:
        `Path`: the card.

    Raises:
        ValueError: If a branch lacks the metric of a column.
    """
    missing = [prefix + key for prefix in branches.values() for key in columns.values() if prefix + key not in metrics]
    if missing:
        raise ValueError(f"The model card needs the metrics {', '.join(missing)}; it was given {', '.join(metrics)}.")
    header = ModelCardData(
        model_name=model_name,
        base_model=base_model if base_model and _is_hub_id(base_model) else None,
        library_name="transformers",
        license=license,
        pipeline_tag=task,
        datasets=[dataset_id] if dataset_id else None,
        metrics=list(columns.values()),
        tags=list(tags),
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=dataset_id or dataset,
                dataset_name=dataset,
                dataset_split=dataset_split,
                metric_type=key,
                metric_name=f"{title} ({branch})",
                metric_value=float(metrics[prefix + key]),
            )
            for branch, prefix in branches.items()
            for title, key in columns.items()
        ],
    )
    body = {
        "Results": _results(metrics, branches, columns, dataset, dataset_split),
        "Data": _table(("", ""), {"Data set": _link(dataset, dataset_id, "datasets/"), **data}.items()),
        "Training": _table(("Setting", "Value"), _settings(base_model, hyperparameters).items()),
        "Versions": _table(("Package", "Version"), framework_versions().items()),
        "How to use": usage.replace("{model}", model_name),
        "Limitations": limitations,
        **sections,
        "Citation": CITATION,
    }
    text = "\n\n".join(f"## {title}\n\n{content.strip()}" for title, content in body.items())
    card = ModelCard(f"---\n{header.to_yaml()}\n---\n\n# {model_name}\n{DESCRIPTION}\n{text}\n")
    return write_atomically(Path(output_dir, "README.md"), str(card))


def framework_versions() -> dict[str, str]:
    """Returns this package's version, and that of each that training rests on, or `"not installed"`."""
    return {"dcal_hf": __version__} | {package: _installed_version(package) for package in PACKAGES}


def _installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).is_dir()


def _link(title: str, repo_id: str | None, kind: str = "") -> str:
    return f"[{title}](https://huggingface.co/{kind}{repo_id})" if repo_id else title


def _settings(base_model: str | None, hyperparameters: Mapping[str, object]) -> dict[str, object]:
    if base_model is None:
        return {"base model": "none, trained from scratch", **hyperparameters}
    name = _link(base_model, base_model) if _is_hub_id(base_model) else Path(base_model).name
    return {"base model": name, **hyperparameters}


def _results(
    metrics: Mapping[str, float],
    branches: Mapping[str, str],
    columns: Mapping[str, str],
    dataset: str,
    dataset_split: str | None,
) -> str:
    rows = [
        (branch, *(f"{100 * metrics[prefix + key]:.2f}" for key in columns.values()))
        for branch, prefix in branches.items()
    ]
    where = f"{dataset}, {dataset_split}" if dataset_split else dataset
    return f"In %, on {where}.\n\n{_table(('Branch', *columns), rows)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


__all__ = ["framework_versions", "write_model_card"]
