"""Changes the classes of a fine-tuned model; classes with the same name keep their weights."""

from collections.abc import Sequence

import torch
from torch import nn

from ..models.modeling_dcal import DCALPreTrainedModel


def class_names(model: DCALPreTrainedModel) -> list[str]:
    """The classes of a model, in the order of its logits."""
    return [model.config.id2label[number] for number in range(model.config.num_labels)]


def has_class_names(model: DCALPreTrainedModel) -> bool:
    """Whether the classes have names other than the defaults of transformers (`LABEL_0`, ...)."""
    return class_names(model) != [f"LABEL_{number}" for number in range(model.config.num_labels)]


def name_classes(model: DCALPreTrainedModel, names: Sequence[str]) -> None:
    """Sets the class names of a model, in the order of its logits."""
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}


@torch.no_grad()
def set_classes(model: DCALPreTrainedModel, names: Sequence[str]) -> None:
    """Changes the classes of a model. Call it before creating the optimiser, since the classifiers are replaced.

    In every classifier, the row of a class that the model already has by name is kept, and the row of a new class is
    initialized as in a new model; with ArcFace, these are the rows of its sub-centres. Classes missing from `names`
    are dropped.

    Args:
        model (`DCALForImageClassification` or `DCALForReID`)
        names (sequence of `str`): The classes, in the order of the new logits.
    """
    before = class_names(model)
    known = {name: number for number, name in enumerate(before)}
    kept = [number for number, name in enumerate(names) if name in known]
    rows = [known[names[number]] for number in kept]
    heads = {name: head for name, head in model.named_modules() if _is_classifier(name, head)}
    name_classes(model, names)
    for name, old in heads.items():
        new = model.make_classifier().to(old.weight)
        model.set_submodule(name, new)
        model._init_weights(new)
        for parameter, source in zip(new.parameters(), old.parameters()):
            # A class has one row, or several adjacent ones.
            parameter.view(len(names), -1)[kept] = source.view(len(before), -1)[rows]


def _is_classifier(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and "classifier" in name


__all__ = ["class_names", "has_class_names", "name_classes", "set_classes"]
