# /// script
# dependencies = ["dcal_hf[pictures]"]
# ///
"""Draws the attention of DCAL checkpoints side by side on the same photographs, such as a baseline and DCAL.

    python recipes/attention.py --models out/dcal --baseline out/sa --images photographs --output attention.jpg

`--count` photographs are sampled at random with `--seed`, so that they are not hand-picked. `--labelled` marks the
predictions that are right and wrong by the names of the photographs' folders.
"""

if __name__ == "__main__":
    from cli import run_script

    # Imports this file as a module, unless only its help is asked for, because the imports below take seconds.
    raise SystemExit(run_script(__file__))

import logging
import random
from dataclasses import dataclass, field
from pathlib import Path

from arguments import REGISTER_HELP, parse_arguments, require_at_least
from common import set_up_logging
from embed import CheckpointArguments
from loading import load_classifier, read_config, read_processor
from predict import class_folder, find_images, folder_labels, predict, thumbnail
from transformers import BaseImageProcessor

from dcal_hf import DCALForImageClassification
from dcal_hf.training import class_names


BASELINE = "baseline"


@dataclass
class AttentionArguments:
    """The checkpoints to compare, and the photographs."""

    models: list[str] = field(metadata={"help": "Hub IDs or folders of DCAL classifiers."})
    images: list[str] = field(metadata={"help": "Photographs or folders of photographs."})
    output: str = field(metadata={"help": "The figure to write."})
    names: list[str] | None = field(default=None, metadata={"help": "Names of the models in the figure."})
    baseline: str | None = field(
        default=None,
        metadata={
            "help": "Hub ID or folder of a model to draw first: a DCAL classifier, such as one of --branches sa, or a "
            "plain encoder, whose predictions are not shown."
        },
    )
    labelled: bool = field(
        default=False, metadata={"help": "Folder names are the true classes: mark right and wrong predictions."}
    )
    count: int = field(default=6, metadata={"help": "Number of photographs in the figure."})
    seed: int = field(default=0, metadata={"help": "Seed for sampling the photographs."})
    register: str | None = field(default=None, metadata={"help": REGISTER_HELP})

    def __post_init__(self):
        require_at_least(1, self, "count")
        if self.names is None:
            self.names = [Path(model).name for model in self.models]
        taken = {*self.names, *([BASELINE] if self.baseline is not None else [])}
        if len(self.names) != len(self.models) or len(taken) < len(self.names) + (self.baseline is not None):
            raise ValueError(
                f"--names needs a name for each of --models, all different and none of them {BASELINE!r} beside "
                f"--baseline, got {self.names}."
            )

    @property
    def sources(self) -> dict[str, str]:
        """Hub IDs or folders, keyed by name in the figure."""
        baseline = {} if self.baseline is None else {BASELINE: self.baseline}
        return {**baseline, **dict(zip(self.names, self.models))}


ARGUMENTS = (AttentionArguments,)


def main() -> None:
    from dcal_hf.visualization import attention_comparison, save_figure

    (args,) = parse_arguments(ARGUMENTS)
    set_up_logging(logging.WARNING)
    paths = find_images(args.images)
    chosen = random.Random(args.seed).sample(paths, min(args.count, len(paths)))
    rollouts, grids, processors, titles, correct = {}, {}, {}, {}, {}
    for name, source in args.sources.items():
        checkpoint_args = CheckpointArguments(model_name_or_path=source)
        model, processor, is_classifier = load_model(checkpoint_args, name == BASELINE)
        if not model.config.has_cls:
            raise ValueError(f"The encoder of {source} has no CLS token, so there is no attention rollout to draw.")
        names = class_names(model)
        labels = folder_labels(chosen, names) if args.labelled and is_classifier else [None] * len(chosen)
        predictions = list(predict(model, processor, chosen, labels, checkpoint_args, True))
        rollouts[name] = [prediction.rollout for prediction in predictions]
        titles[name] = [f"{names[p.best]} {p.confidence:.2f}" if is_classifier else "" for p in predictions]
        correct[name] = [p.is_right for p in predictions]
        grids[name], processors[name] = model.config.grid, processor
    truths = [f"true: {class_folder(path)}\n" if args.labelled else "" for path in chosen]
    figure = attention_comparison(
        [thumbnail(path, 512) for path in chosen],
        rollouts,
        grids,
        processors,
        titles,
        correct,
        [f"{truth}{Path(path).name}" for truth, path in zip(truths, chosen)],
    )
    save_figure(figure, args.output)


def load_model(
    args: CheckpointArguments, may_be_plain: bool
) -> tuple[DCALForImageClassification, BaseImageProcessor, bool]:
    """Loads a DCAL classifier or, for a baseline, a plain encoder.

    Returns:
        The model, its image processor, and whether its predictions mean anything.
    """
    name = args.model_name_or_path
    if not may_be_plain or read_config(name, **args.hub_kwargs).model_type == "dcal":
        return *load_classifier(args), True
    model = DCALForImageClassification.from_backbone(
        name, branches=("sa",), num_labels=2, pretrained_kwargs=args.hub_kwargs
    )
    return model.eval(), read_processor(name, **args.hub_kwargs), False
