"""Names of the classes of a model, which its configuration holds."""

from collections.abc import Sequence

from transformers import PreTrainedModel


def class_names(model: PreTrainedModel) -> list[str]:
    """The classes of a model, in the order of its logits."""
    return [model.config.id2label[number] for number in range(model.config.num_labels)]


def has_class_names(model: PreTrainedModel) -> bool:
    """Whether the classes have names other than the defaults of transformers (`LABEL_0`, ...)."""
    return class_names(model) != [f"LABEL_{number}" for number in range(model.config.num_labels)]


def name_classes(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Sets the class names of a model, in the order of its logits."""
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}


__all__ = ["class_names", "has_class_names", "name_classes"]
