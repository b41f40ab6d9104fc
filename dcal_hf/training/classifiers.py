"""Changes the classes of a fine-tuned model; classes with the same name keep their weights."""

from collections.abc import Sequence

import torch
from torch import nn

from ..classes import class_names, name_classes
from ..models.modeling_dcal import DCALPreTrainedModel


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


__all__ = ["set_classes"]
