# /// script
# dependencies = ["dcal_hf[pictures]"]
# ///
"""Classifies photographs with a DCAL checkpoint; writes a table, a contact sheet and, optionally, attention overlays.

    python recipes/predict.py --model_name_or_path out/birds --images photographs one_more.jpg --output_dir answer

It writes `contact_sheet.jpg` and `predictions.csv`, with one line per photograph and class and the probabilities of
both branches together and of each. `--attention` adds the attention rollout over each photograph, in full resolution.

If each photograph is in a folder named after its class, `--labelled` also writes the mistakes, most confident first,
to `mistakes.csv` and `mistakes.jpg`, and `confusion_matrix.png`. `confused_pairs.jpg` shows an image of each of the
classes that are confused most often beside one of the class it is taken for, and where the model looked.
`--calibrated` applies the temperature that recipes/run_fgvc.py has fitted and saved beside the checkpoint:

    python recipes/predict.py --model_name_or_path out/birds --images birds/test --labelled --output_dir answer
"""

if __name__ == "__main__":
    from cli import run_script

    # Imports this file as a module, unless only its help is asked for, because the imports below take seconds.
    raise SystemExit(run_script(__file__))

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from arguments import parse_arguments, require_at_least
from common import set_up_logging
from embed import CheckpointArguments
from loading import load_classifier
from PIL import Image
from temperature import load_temperature
from torch import Tensor
from tqdm import tqdm
from transformers import BaseImageProcessor

from dcal_hf import DCALForImageClassification
from dcal_hf.data import open_image
from dcal_hf.data.folder import images_below
from dcal_hf.data.image_files import folder_name
from dcal_hf.errors import counted
from dcal_hf.files import save_table
from dcal_hf.metrics import confusion_matrix
from dcal_hf.training import class_names
from dcal_hf.transforms import EvalTransform


logger = logging.getLogger(__name__)

# Rows of confused_pairs.jpg.
PAIRS = 8
# Of the JPEG of an attention overlay.
OVERLAY_QUALITY = 90
# Of a photograph's name in that of its overlay: file systems take 255 bytes, and a character may have four.
NAME_CHARACTERS = 60


@dataclass
class PredictionArguments:
    """The photographs to classify, and the outputs to write."""

    images: list[str] = field(metadata={"help": "Photographs or folders of photographs."})
    output_dir: str = field(metadata={"help": "Folder for the tables and figures."})
    top_k: int = field(default=5, metadata={"help": "Number of classes per photograph in predictions.csv."})
    labelled: bool = field(
        default=False, metadata={"help": "Folder names are the true classes: write the mistakes, too."}
    )
    calibrated: bool = field(
        default=False,
        metadata={"help": "Divide the joint logits by the temperature that recipes/run_fgvc.py fitted."},
    )
    skip_broken: bool = field(
        default=False, metadata={"help": "Skip unreadable photographs with a warning instead of failing."}
    )
    attention: bool = field(default=False, metadata={"help": "Write an attention overlay of each photograph."})
    sheet_images: int = field(
        default=60,
        metadata={
            "help": "Photographs in contact_sheet.jpg, evenly spaced in the list; 0 for no figures and without "
            "matplotlib."
        },
    )
    mistake_images: int = field(default=12, metadata={"help": "Number of photographs in mistakes.jpg."})

    def __post_init__(self):
        require_at_least(1, self, "top_k")
        require_at_least(0, self, "sheet_images", "mistake_images")


ARGUMENTS = (PredictionArguments, CheckpointArguments)


@dataclass
class Prediction:
    """The prediction for one photograph.

    Args:
        probabilities (`dict` of `Tensor` of shape `(classes,)`): Of `"both"` branches together, and of each.
        rollout (`Tensor` of shape `(N,)`, *optional*), selected (`Tensor` of shape `(R,)`, *optional*):
            The attention rollout over patches, and the indices of the patches that GLCA selected.
        label (`int`, *optional*): The true class.
    """

    path: str
    probabilities: dict[str, Tensor]
    rollout: Tensor | None = None
    selected: Tensor | None = None
    label: int | None = None

    @property
    def best(self) -> int:
        return int(self.probabilities["both"].argmax())

    @property
    def confidence(self) -> float:
        return float(self.probabilities["both"].max())

    @property
    def is_right(self) -> bool | None:
        """None if the true class is unknown."""
        return None if self.label is None else self.best == self.label


def main() -> None:
    args, checkpoint_args = parse_arguments(ARGUMENTS)
    set_up_logging(logging.WARNING)
    logger.setLevel(logging.INFO)
    paths = find_images(args.images)
    model, processor = load_classifier(checkpoint_args)
    names = class_names(model)
    labels = folder_labels(paths, names) if args.labelled else [None] * len(paths)
    with_rollout = args.attention or (args.labelled and args.sheet_images > 0)
    temperature = load_temperature(model, checkpoint_args) if args.calibrated else 1.0
    options = {"temperature": temperature, "skip_broken": args.skip_broken}
    predictions = list(predict(model, processor, paths, labels, checkpoint_args, with_rollout, **options))
    if not predictions:
        raise ValueError(f"--images: of {counted(len(paths), 'photograph')}, none can be read.")
    output_dir = Path(args.output_dir)
    save_predictions(predictions, names, min(args.top_k, len(names)), output_dir / "predictions.csv")
    if args.labelled:
        save_mistakes(predictions, names, output_dir / "mistakes.csv")
    if args.sheet_images > 0:
        save_pictures(predictions, names, args, output_dir)
        if args.labelled:
            save_confused_pairs(predictions, names, processor, model.config.grid, output_dir / "confused_pairs.jpg")
    if args.attention:
        save_attention(predictions, processor, model.config.grid, output_dir / "attention")
    logger.info("%s: see %s", counted(len(predictions), "photograph"), output_dir)


def find_images(given: Sequence[str]) -> list[str]:
    """The paths of the given photographs, and of those in the given folders, in this order.

    Raises:
        FileNotFoundError: If a path does not exist.
    """
    paths = []
    for name in map(Path, given):
        if not name.exists():
            raise FileNotFoundError(f"--images: there is no photograph and no folder {name}.")
        # Not resolved: links, too, are in folders named after their classes.
        paths += map(str, images_below(name.absolute()) if name.is_dir() else [name])
    return paths


def class_folder(path: str) -> str:
    """The name of a photograph's folder, with `--labelled` its true class."""
    return folder_name(Path(path).absolute())


def folder_labels(paths: Sequence[str], names: Sequence[str]) -> list[int]:
    """The class index of each photograph, from the name of its folder.

    Raises:
        ValueError: If a folder is not named after a class of the model.
    """
    numbers = {name: label for label, name in enumerate(names)}
    folders = list(map(class_folder, paths))
    for path, folder in zip(paths, folders):
        if folder not in numbers:
            raise ValueError(
                f"--labelled: {path} lies in a folder that is named after none of the model's {len(names)} classes "
                f"({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}): rename it, or leave out --labelled."
            )
    return [numbers[folder] for folder in folders]


def predict(
    model: DCALForImageClassification,
    processor: BaseImageProcessor,
    paths: Sequence[str],
    labels: Sequence[int | None],
    args: CheckpointArguments,
    with_rollout: bool,
    temperature: float = 1.0,
    skip_broken: bool = False,
) -> Iterator[Prediction]:
    """Yields the prediction for each photograph, or each readable one, in order, with a progress bar."""
    with_rollout = with_rollout and model.config.has_cls
    transform = EvalTransform(processor, args.max_pixels)
    for start in tqdm(range(0, len(paths), args.batch_size), desc="Predicting", unit="batch"):
        pixels = dict(read_photographs(transform, paths[start:start + args.batch_size], skip_broken))
        if not pixels:
            continue
        pixel_values = torch.stack(list(pixels.values()))
        with torch.inference_mode():
            output = model(pixel_values.to(model.device, model.dtype), output_rollout=with_rollout)
        logits = {"both": output.logits / temperature, "sa": output.sa_logits, "glca": output.glca_logits}
        scores = {name: x.float().softmax(dim=-1).cpu() for name, x in logits.items() if x is not None}
        for row, place in enumerate(pixels):
            yield Prediction(
                paths[start + place],
                {name: x[row] for name, x in scores.items()},
                output.rollout[row].cpu() if with_rollout else None,
                None if output.local_query_indices is None else output.local_query_indices[row].cpu(),
                labels[start + place],
            )


def read_photographs(
    transform: EvalTransform, paths: Sequence[str], skip_broken: bool
) -> Iterator[tuple[int, Tensor]]:
    """Yields the place of each photograph and its pixel values (3, height, width).

    Raises:
        ValueError: If one cannot be read and `skip_broken` is false; otherwise, a warning is logged.
    """
    for place, path in enumerate(paths):
        try:
            yield place, transform({"image": [path]})["pixel_values"][0]
        except ValueError as error:
            if not skip_broken:
                raise
            logger.warning("%s", error)


def save_predictions(predictions: Sequence[Prediction], names: Sequence[str], top_k: int, path: Path) -> None:
    """Writes a table with one line per photograph and class, best class first."""
    branches = list(predictions[0].probabilities)
    rows = []
    for prediction in predictions:
        for rank, label in enumerate(prediction.probabilities["both"].topk(top_k).indices.tolist(), start=1):
            scores = (f"{prediction.probabilities[branch][label]:.4f}" for branch in branches)
            rows.append([prediction.path, rank, names[label], *scores])
    save_table(["image", "rank", "class", *(f"probability_{branch}" for branch in branches)], rows, path)


def mistakes(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The wrong predictions, most confident first."""
    wrong = [prediction for prediction in predictions if not prediction.is_right]
    return sorted(wrong, key=lambda prediction: -prediction.confidence)


def save_mistakes(predictions: Sequence[Prediction], names: Sequence[str], path: Path) -> None:
    """Writes the mistakes as a table, and logs the accuracy."""
    wrong = mistakes(predictions)
    rows = [[p.path, names[p.label], names[p.best], f"{p.confidence:.4f}"] for p in wrong]
    save_table(["image", "label", "prediction", "probability"], rows, path)
    right = len(predictions) - len(wrong)
    logger.info("%d of %d are right, %.1f %%", right, len(predictions), 100 * right / len(predictions))


def caption(prediction: Prediction, names: Sequence[str]) -> str:
    """The predicted class, the true one of a mistake, and the name of the file; the tables have them in full."""
    from dcal_hf.visualization.lettering import shortened

    lines = [f"{shortened(names[prediction.best])} {prediction.confidence:.2f}"]
    if prediction.is_right is False:
        lines.append(f"true: {shortened(names[prediction.label])}")
    return "\n".join([*lines, shortened(Path(prediction.path).name)])


def save_pictures(
    predictions: Sequence[Prediction], names: Sequence[str], args: PredictionArguments, output_dir: Path
) -> None:
    """Writes `contact_sheet.jpg` and, for labelled photographs, `mistakes.jpg` and `confusion_matrix.png`."""
    from dcal_hf.visualization import confusion_figure, contact_sheet, save_figure

    def save_sheet(chosen: Sequence[Prediction], name: str) -> None:
        figure = contact_sheet(
            [thumbnail(prediction.path) for prediction in chosen],
            [caption(prediction, names) for prediction in chosen],
            [prediction.is_right for prediction in chosen],
        )
        save_figure(figure, output_dir / name)

    save_sheet(evenly_spaced(predictions, args.sheet_images), "contact_sheet.jpg")
    if not args.labelled:
        return
    wrong = mistakes(predictions)[:args.mistake_images]
    if wrong:
        save_sheet(wrong, "mistakes.jpg")
    best, labels = ([getattr(p, name) for p in predictions] for name in ("best", "label"))
    # Classes that neither occur nor are predicted would only make the others too small to read.
    seen = sorted({*best, *labels})
    matrix = confusion_matrix(best, labels, len(names))[seen][:, seen]
    save_figure(confusion_figure(matrix, [names[label] for label in seen]), output_dir / "confusion_matrix.png")


def evenly_spaced(predictions: Sequence[Prediction], count: int) -> list[Prediction]:
    """At most `count` predictions in order, from all folders rather than from the first ones."""
    count = min(count, len(predictions))
    return [predictions[number * len(predictions) // count] for number in range(count)]


def confused_pairs(predictions: Sequence[Prediction]) -> list[tuple[Prediction, Prediction | None]]:
    """Examples of the classes that are confused, the most often confused ones first.

    Returns:
        For each true and predicted class, the most confident mistake, and the most confident photograph of the
        predicted class, a correct one if possible; None if no photograph shows this class.
    """
    wrong = mistakes(predictions)
    counts = Counter((prediction.label, prediction.best) for prediction in wrong)
    worst = {(prediction.label, prediction.best): prediction for prediction in reversed(wrong)}
    examples = {p.label: p for p in sorted(predictions, key=lambda p: (p.is_right, p.confidence))}
    return [(worst[pair], examples.get(pair[1])) for pair, _ in counts.most_common()]


def save_confused_pairs(
    predictions: Sequence[Prediction],
    names: Sequence[str],
    processor: BaseImageProcessor,
    grid: tuple[int, int],
    path: Path,
) -> None:
    """Writes the pairs of classes that are confused most often side by side, and where the model looked."""
    from dcal_hf.visualization import photograph_overlay, picture_table, save_figure

    def side(prediction: Prediction | None) -> list[tuple[Image.Image, str, bool | None] | None]:
        if prediction is None:
            return [None, None]
        photograph = thumbnail(prediction.path, 512)
        cells = [(photograph, caption(prediction, names), prediction.is_right), None]
        if prediction.rollout is not None:
            overlay = photograph_overlay(photograph, processor, prediction.rollout, grid, prediction.selected)
            cells[1] = (overlay, "", None)
        return cells

    looked = "where the model looked"
    if predictions[0].selected is not None:
        looked += " (frames: patches that GLCA reads)"
    headings = ["mistaken", looked, "of the predicted class", looked]
    rows = [side(wrong) + side(example) for wrong, example in confused_pairs(predictions)[:PAIRS]]
    # Without a rollout or any photograph of a predicted class, columns would be empty.
    kept = [column for column in range(len(headings)) if any(row[column] is not None for row in rows)]
    if rows:
        table = [[row[column] for column in kept] for row in rows]
        save_figure(picture_table(table, [headings[column] for column in kept]), path)


def thumbnail(path: str, size: int = 256) -> Image.Image:
    picture = open_again(path)
    picture.thumbnail((size, size))
    return picture


def open_again(path: str) -> Image.Image:
    """A photograph whose number of pixels [`predict`] has checked."""
    return open_image(path, sys.maxsize)


def save_attention(
    predictions: Sequence[Prediction], processor: BaseImageProcessor, grid: tuple[int, int], folder: Path
) -> None:
    """Writes a JPEG per photograph with its rollout, and frames around the patches that GLCA selected.

    Raises:
        ValueError: If the encoder has no rollout.
    """
    if predictions[0].rollout is None:
        raise ValueError("--attention: the encoder has no CLS token, so there is no rollout to draw.")
    folder.mkdir(parents=True, exist_ok=True)
    for number, prediction in enumerate(predictions):
        # Photographs in different folders may have the same name.
        path = folder / f"{number:05d}_{Path(prediction.path).stem[:NAME_CHARACTERS]}.jpg"
        # Thin frames keep their colour only without subsampling.
        overlay(prediction, processor, grid).save(path, quality=OVERLAY_QUALITY, subsampling=0)


def overlay(prediction: Prediction, processor: BaseImageProcessor, grid: tuple[int, int]) -> Image.Image:
    """The rollout over the photograph, with frames around the patches that GLCA selected."""
    from dcal_hf.visualization import photograph_overlay

    picture = open_again(prediction.path)
    return photograph_overlay(picture, processor, prediction.rollout, grid, prediction.selected)
