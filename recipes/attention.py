# /// script
# dependencies = ["dcal_hf[pictures]"]
# ///
"""Draws the attention of several DCAL checkpoints side by side on the same photographs, such as a baseline and DCAL.

    python recipes/attention.py --models out/sa out/dcal --names baseline DCAL --images photographs \
        --output attention.png

`--count` photographs are sampled at random with `--seed`, so that they are not hand-picked.
"""

import logging
import random
from dataclasses import dataclass, field
from pathlib import Path

from arguments import parse_arguments
from common import set_up_logging
from embed import CheckpointArguments
from predict import find_images, load_classifier, predict, thumbnail


@dataclass
class AttentionArguments:
    """The checkpoints to compare, and the photographs."""

    models: list[str] = field(metadata={"help": "Hub IDs or folders of DCAL classifiers."})
    images: list[str] = field(metadata={"help": "Photographs or folders of photographs."})
    output: str = field(metadata={"help": "The figure to write."})
    names: list[str] | None = field(default=None, metadata={"help": "Names of the checkpoints in the figure."})
    count: int = field(default=6, metadata={"help": "Number of photographs in the figure."})
    seed: int = field(default=0, metadata={"help": "Seed for sampling the photographs."})

    def __post_init__(self):
        if self.names is None:
            self.names = [Path(model).name for model in self.models]
        if len(self.names) != len(self.models) or len(set(self.names)) < len(self.names):
            raise ValueError(f"--names: {len(self.models)} models need as many different names, got {self.names}.")


def main() -> None:
    from dcal_hf.visualization import attention_comparison, save_figure

    (args,) = parse_arguments((AttentionArguments,))
    set_up_logging(logging.WARNING)
    paths = find_images(args.images)
    chosen = random.Random(args.seed).sample(paths, min(args.count, len(paths)))
    rollouts, grids, processors, titles = {}, {}, {}, {}
    for name, folder in zip(args.names, args.models):
        checkpoint_args = CheckpointArguments(model_name_or_path=folder)
        model, processor = load_classifier(checkpoint_args)
        if not model.config.has_cls:
            raise ValueError(f"--models: the encoder of {folder} has no CLS token, so there is no attention rollout.")
        predictions = list(predict(model, processor, chosen, [None] * len(chosen), checkpoint_args, True))
        rollouts[name] = [prediction.rollout for prediction in predictions]
        titles[name] = [f"{model.config.id2label[p.best]} {p.confidence:.2f}" for p in predictions]
        grids[name], processors[name] = model.config.grid, processor
    photographs = [thumbnail(path, 512) for path in chosen]
    save_figure(attention_comparison(photographs, rollouts, grids, processors, titles), args.output)


if __name__ == "__main__":
    main()
