"""The model card of a trained model: README.md with the metadata that the Hub reads."""

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
# Of each task, titles and keys of what its results are told in, and what the Hub finds it by.
COLUMNS = {
    "image-classification": {"Top-1": "accuracy", "Top-5": "top5_accuracy", "Class mean": "class_mean_accuracy"},
    "image-feature-extraction": {
        "mAP": "map", "Rank-1": "rank1", "Rank-5": "rank5", "Rank-10": "rank10", "mINP": "minp"
    },
}
TAGS = {
    "image-classification": ["dcal", "fine-grained", "vision-transformer"],
    "image-feature-extraction": ["dcal", "re-identification", "image-retrieval", "vision-transformer"],
}
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "timm")


@dataclass(frozen=True)
class ModelCardFacts:
    """What a model card tells of a model.

    Args:
        model_name (`str`):
            The model's name, or its repository on the Hub, by which it is loaded.
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
            The Hub's name of the task; `"image-feature-extraction"` for re-identification.
        branches (`Mapping[str, str]`, *optional*):
            The rows of the results: their titles, and the prefixes of their metrics.
        base_model (`str`, *optional*):
            The backbone that training started from. Only one that is named as on the Hub goes into the metadata; of a
            local folder the card tells the last part of the path.
        dataset_id (`str`, *optional*):
            The data set's repository on the Hub.
        dataset_split (`str`, *optional*):
            The split that the results are on.
        dataset_layout (`str`, *optional*):
            The published set whose folders the data set is laid out like: it need not be that set.
        chosen_by (`str`, *optional*):
            The metric by which the best epoch was chosen on the images that the results are on, if it was.
        license (`str`, *optional*):
            The licence of the weights, as the Hub abbreviates it. None is claimed if not given: what the data set and
            the base model allow is for people to say.
        evaluation (`str`, *optional*):
            How the results were come by, in Markdown.
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

    def __post_init__(self):
        keys = [prefix + key for prefix in self.branches.values() for key in COLUMNS[self.task].values()]
        missing = [key for key in keys if key not in self.metrics]
        if missing:
            raise ValueError(
                f"The model card needs the metrics {', '.join(missing)}; it was given {', '.join(self.metrics)}."
            )


def write_model_card(
    output_dir: str | os.PathLike, facts: ModelCardFacts, template: str | os.PathLike = TEMPLATE
) -> Path:
    """Writes `README.md`, which appears under its name only once it is complete.

    Args:
        output_dir (`str` or `os.PathLike`):
            The folder of the saved model; it is made if it does not exist.
        facts (`ModelCardFacts`):
            What the card tells.
        template (`str` or `os.PathLike`, *optional*):
            A Jinja template for another text. It gets `card_data`, `facts` and, as Markdown, `where`, `results`,
            `data`, `training` and `versions`.

    Returns:
        `Path`: the card.
    """
    dataset = _link(facts.dataset, facts.dataset_id, "datasets/")
    layout = {} if facts.dataset_layout is None else {"layout": f"that of {facts.dataset_layout}"}
    card = ModelCard.from_template(
        _card_data(facts),
        template_path=template,
        facts=facts,
        where=_where(facts),
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


def _where(facts: ModelCardFacts) -> str:
    where = facts.dataset
    if facts.dataset_layout is not None:
        where += f" (in the layout of {facts.dataset_layout})"
    return where if facts.dataset_split is None else f"{where}, {facts.dataset_split}"


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


__all__ = ["ModelCardFacts", "framework_versions", "write_model_card"]
