"""Writes the model card of a trained model: README.md with metadata for the Hub."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .files import write_atomically
from .version import __version__


TEMPLATE = Path(__file__).with_name("model_card_template.md")
BRANCHES = {"SA": "sa_", "GLCA": "glca_", "SA + GLCA": ""}
# For each task, the metrics in the results table (title and key), and the tags on the Hub.
COLUMNS = {
    "image-classification": {"Top-1": "accuracy", "Top-5": "top5_accuracy", "Class mean": "class_mean_accuracy"},
    "image-feature-extraction": {
        "mAP": "map", "Rank-1": "rank1", "Rank-5": "rank5", "Rank-10": "rank10", "mINP": "minp",
        "R-precision": "r_precision", "MAP@R": "map_at_r",
    },
}
TAGS = {
    "image-classification": ["dcal", "fine-grained", "vision-transformer"],
    "image-feature-extraction": ["dcal", "re-identification", "image-retrieval", "vision-transformer"],
}
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "timm")


@dataclass(frozen=True)
class ModelCardFacts:
    """The facts in a model card.

    Args:
        model_name (`str`):
            Name of the model: its repository on the Hub, or any other name.
        dataset (`str`):
            Display name of the data set.
        metrics (`Mapping[str, float]`):
            The results, from 0 to 1. A key is the prefix of a branch followed by the key of a metric.
        hyperparameters (`Mapping[str, object]`):
            Names and values of the hyperparameters; empty if the model was only evaluated.
        data (`Mapping[str, object]`):
            Names and values of facts about the data, such as the number of images and the seed of the split.
        task (`str`, *optional*, defaults to `"image-classification"`):
            Name of the task on the Hub; `"image-feature-extraction"` for re-identification.
        branches (`Mapping[str, str]`, *optional*):
            The rows of the results table: title and prefix of the metrics.
        base_model (`str`, *optional*):
            The backbone that training started from. If it is a local folder, the card contains only the last part of
            the path, and the metadata do not mention it.
        dataset_id (`str`, *optional*):
            Repository of the data set on the Hub.
        dataset_split (`str`, *optional*):
            The evaluated split.
        dataset_layout (`str`, *optional*):
            The published data set whose layout the data set has. It may be a different data set in that layout.
        chosen_by (`str`, *optional*):
            The metric that selected the best epoch, if it was selected on the evaluated images.
        license (`str`, *optional*):
            Identifier of the licence of the weights on the Hub. By default the card claims none, because the licence
            depends on the terms of the data set and the base model.
        evaluation (`str`, *optional*):
            The evaluation settings, in Markdown.
        registered_encoder (`str`, *optional*):
            `model_type` of the backbone if dcal_hf has no adapter for it: the repository's code cannot load it.
    """

    model_name: str
    dataset: str
    metrics: Mapping[str, float]
    hyperparameters: Mapping[str, object]
    data: Mapping[str, object]
    task: str = "image-classification"
    branches: Mapping[str, str] = field(default_factory=BRANCHES.copy)
    base_model: str | None = None
    dataset_id: str | None = None
    dataset_split: str | None = None
    dataset_layout: str | None = None
    chosen_by: str | None = None
    license: str | None = None
    evaluation: str = ""
    registered_encoder: str | None = None

    def __post_init__(self):
        keys = [prefix + key for prefix in self.branches.values() for key in COLUMNS[self.task].values()]
        missing = [key for key in keys if key not in self.metrics]
        if missing:
            raise ValueError(
                f"The model card needs the metrics {', '.join(missing)}, got {', '.join(self.metrics)}."
            )


def write_model_card(
    output_dir: str | os.PathLike, facts: ModelCardFacts, template: str | os.PathLike = TEMPLATE
) -> Path:
    """Writes `README.md` atomically.

    Args:
        output_dir (`str` or `os.PathLike`):
            The folder of the saved model; it is created if it does not exist.
        facts (`ModelCardFacts`):
            The content of the card.
        template (`str` or `os.PathLike`, *optional*):
            Another Jinja template. Its variables are `card_data`, `facts`, `model` (its name as a string of Python)
            and, in Markdown, `where`, `chosen_by`, `results`, `data`, `training` and `versions`.

    Returns:
        `Path`: the path of the card.
    """
    dataset = _link(facts.dataset, facts.dataset_id, "datasets/")
    layout = {} if facts.dataset_layout is None else {"layout": facts.dataset_layout}
    card = ModelCard.from_template(
        _card_data(facts),
        template_path=template,
        facts=facts,
        # A string of JSON is one of Python, too.
        model=json.dumps(facts.model_name, ensure_ascii=False),
        where=_where(facts),
        chosen_by=facts.chosen_by and _metric_title(facts.chosen_by, facts.task),
        results=_results(facts),
        data=_table(("", ""), {"Data set": dataset, **layout, **facts.data}.items()),
        training=_table(("Setting", "Value"), _settings(facts.base_model, facts.hyperparameters).items()),
        versions=_table(("Package", "Version"), framework_versions().items()),
    )
    return write_atomically(Path(output_dir, "README.md"), f"{card}\n")


def _card_data(facts: ModelCardFacts) -> ModelCardData:
    columns = COLUMNS[facts.task]
    return ModelCardData(
        model_name=facts.model_name,
        base_model=facts.base_model if facts.base_model and _is_hub_id(facts.base_model) else None,
        library_name="transformers",
        license=facts.license,
        pipeline_tag=facts.task,
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        metrics=list(columns.values()),
        tags=TAGS[facts.task],
        eval_results=[
            EvalResult(
                task_type=facts.task,
                dataset_type=facts.dataset_id or facts.dataset,
                dataset_name=facts.dataset,
                dataset_split=facts.dataset_split,
                metric_type=key,
                metric_name=f"{title} ({branch})",
                metric_value=float(facts.metrics[prefix + key]),
            )
            for branch, prefix in facts.branches.items()
            for title, key in columns.items()
        ],
    )


def framework_versions() -> dict[str, str]:
    """Versions of dcal_hf and of the packages that training depends on, or `"not installed"`."""
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


def _where(facts: ModelCardFacts) -> str:
    where = facts.dataset
    if facts.dataset_layout is not None:
        where += f" (in the layout of {facts.dataset_layout})"
    return where if facts.dataset_split is None else f"{where}, {facts.dataset_split}"


def _metric_title(name: str, task: str) -> str:
    """The title of a metric in the results table; its name if it has no column."""
    name = name.removeprefix("eval_")
    return {key: title for title, key in COLUMNS[task].items()}.get(name, name)


def _results(facts: ModelCardFacts) -> str:
    columns = COLUMNS[facts.task]
    rows = [
        (branch, *(f"{100 * facts.metrics[prefix + key]:.2f}" for key in columns.values()))
        for branch, prefix in facts.branches.items()
    ]
    return _table(("Branch", *columns), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


__all__ = ["COLUMNS", "ModelCardFacts", "framework_versions", "write_model_card"]
