"""The page of recipes/demo.py, and of the Space that it writes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from arguments import HubArguments
from datasets import Dataset
from embed import CheckpointArguments, image_parts
from loading import default_device, load_checkpoint
from PIL import Image
from predict import Prediction, overlay, predict
from search import caption, has_calibrated_scale, search
from temperature import load_temperature
from transformers import BaseImageProcessor, PreTrainedModel
from verify import load_threshold, measure, verdict

from dcal_hf import DCALForImageClassification
from dcal_hf.data import open_image
from dcal_hf.errors import counted
from dcal_hf.retrieval import GalleryIndex, VerificationThreshold, embed_images, model_fingerprint
from dcal_hf.transforms import EvalTransform


if TYPE_CHECKING:
    import gradio

TOP_CLASSES, TOP_MATCHES = 5, 12
# In pixels of the page.
PICTURE_HEIGHT = 480
BRANCH_TITLES = {"both": "SA and GLCA", "sa": "SA", "glca": "GLCA"}
# Small photographs fill their frames, too.
CSS = ".picture img { width: 100%; height: 100%; object-fit: contain; }"
LEGEND = "Bright: what the class token attends to."
LEGEND_OF_PATCHES = " Frames: the patches that GLCA reads."


@dataclass
class Demo:
    """A checkpoint and what the page does with it. Photographs are given by their paths.

    Args:
        gallery (`GalleryIndex`, *optional*): The gallery to search.
        threshold (`VerificationThreshold`, *optional*): The threshold calibrated for the checkpoint.
        temperature (`float`): Divides the logits of both branches together.
    """

    model: PreTrainedModel
    processor: BaseImageProcessor
    args: CheckpointArguments
    title: str
    gallery: GalleryIndex | None = None
    threshold: VerificationThreshold | None = None
    temperature: float = 1.0

    @property
    def is_classifier(self) -> bool:
        return isinstance(self.model, DCALForImageClassification)

    def classify(self, path: str) -> tuple[dict[str, dict[str, float]], Image.Image | None]:
        """The probability of each class, of both branches together and of each, and the attention."""
        (prediction,) = predict(self.model, self.processor, [path], [None], self.args, True, self.temperature)
        names = self.model.config.id2label
        answers = {
            branch: {names[label]: probability for label, probability in enumerate(probabilities.tolist())}
            for branch, probabilities in prediction.probabilities.items()
        }
        return answers, None if prediction.rollout is None else self.draw(prediction)

    def compare(self, first: str, second: str) -> tuple[str, Image.Image | None, Image.Image | None]:
        """Whether two photographs show the same individual, and the attention on each."""
        (distance,) = measure(self.model, self.processor, image_parts([first, second]), self.args)
        if self.threshold is None:
            answer = f"Distance {distance:.4f}. No threshold has been calibrated for this model (`dcal verify`)."
        else:
            answer = verdict(distance, self.threshold)
            answer = f"{answer[0].upper()}{answer[1:]}."
        return answer, self.look(first), self.look(second)

    def search(self, path: str) -> tuple[str, list[tuple[Image.Image, str]]]:
        """A sentence about the nearest item of the gallery, and the nearest items with captions."""
        queries = Dataset.from_dict({"image": [path]})
        embeddings = embed_images(self.model, self.processor, queries, **self.args.reader_kwargs)
        (matches,) = search(self.gallery, embeddings, TOP_MATCHES)
        answer = f"The nearest of {counted(len(self.gallery), 'image')} has a distance of {matches[0].distance:.4f}."
        limit = self.search_threshold
        if limit is not None:
            known = matches[0].distance < limit
            answer += f" {'Probably known' if known else 'Probably a new individual'} (threshold {limit:.4f})."
        found = [
            (open_image(match.image, self.args.max_pixels, match.bbox), f"{match.distance:.3f}\n{caption(match)}")
            for match in matches
        ]
        return answer, found

    @property
    def search_threshold(self) -> float | None:
        """The calibrated threshold, if distances in the gallery are those that it was calibrated on."""
        has_threshold = self.threshold is not None and has_calibrated_scale(self.gallery, self.model)
        return self.threshold.threshold if has_threshold else None

    @torch.inference_mode()
    def look(self, path: str) -> Image.Image | None:
        """The attention over a photograph; None if the encoder has no CLS token."""
        if not self.model.config.has_cls:
            return None
        (pixel_values,) = EvalTransform(self.processor, self.args.max_pixels)({"image": [path]})["pixel_values"]
        output = self.model(pixel_values[None].to(self.model.device, self.model.dtype), output_rollout=True)
        selected = None if output.local_query_indices is None else output.local_query_indices[0].cpu()
        return self.draw(Prediction(path, {}, output.rollout[0].cpu(), selected))

    def draw(self, prediction: Prediction) -> Image.Image:
        return overlay(prediction, self.processor, self.model.config.grid)


def load_demo(
    hub_args: HubArguments,
    gallery_dir: str | Path | None = None,
    title: str | None = None,
    calibrated: bool = False,
) -> Demo:
    """Loads the checkpoint, the gallery, with `calibrated` the temperature, and the threshold if there is one."""
    args = CheckpointArguments(**vars(hub_args))
    model, processor = load_checkpoint(args, classifies=True)
    demo = Demo(model.to(default_device()), processor, args, title or Path(args.model_name_or_path).name)
    if calibrated:
        demo.temperature = load_temperature(model, args)
    if gallery_dir is not None:
        demo.gallery = GalleryIndex.load(gallery_dir, model_fingerprint(model))
    try:
        demo.threshold = load_threshold(args, model)
    except FileNotFoundError:
        # Not calibrated: distances are shown without a decision.
        pass
    return demo


def page(demo: Demo) -> "gradio.Blocks":
    """The page: a tab for each thing that the checkpoint can do."""
    import gradio

    with gradio.Blocks(title=demo.title, analytics_enabled=False) as blocks:
        gradio.Markdown(f"# {demo.title}")
        if demo.is_classifier:
            with gradio.Tab("Classify"):
                add_classification(demo)
        else:
            with gradio.Tab("Compare"):
                add_comparison(demo)
        if demo.gallery is not None:
            with gradio.Tab("Search"):
                add_search(demo)
    return blocks


def add_classification(demo: Demo) -> None:
    import gradio

    branches = demo.model.config.inference_branches
    shown = ["both", *branches] if len(branches) > 1 else ["both"]
    with gradio.Row():
        given = photograph("Photograph")
        attention = picture("Attention", demo)
    with gradio.Row():
        titles = BRANCH_TITLES if len(branches) > 1 else {"both": BRANCH_TITLES[branches[0]]}
        if demo.temperature != 1:
            titles = {**titles, "both": f"{titles['both']}, calibrated"}
        labels = [gradio.Label(label=titles[branch], num_top_classes=TOP_CLASSES) for branch in shown]

    def classify(path: str | None) -> list[Any]:
        if path is None:
            return [None] * (1 + len(shown))
        answers, drawn = demo.classify(path)
        return [drawn, *(answers[branch] for branch in shown)]

    given.change(as_errors(classify), given, [attention, *labels], api_name="classify")


def add_comparison(demo: Demo) -> None:
    import gradio

    with gradio.Row():
        given = [photograph("First photograph"), photograph("Second photograph")]
    answer = plain_text()
    with gradio.Row():
        drawn = [picture("Attention on the first", demo), picture("Attention on the second", demo)]

    def compare(first: str | None, second: str | None) -> list[Any]:
        return [None] * 3 if first is None or second is None else list(demo.compare(first, second))

    gradio.on([one.change for one in given], as_errors(compare), given, [answer, *drawn], api_name="compare")


def add_search(demo: Demo) -> None:
    import gradio

    given = photograph("Who is this?")
    answer = plain_text()
    found = gradio.Gallery(label="The nearest images", columns=6, object_fit="contain")

    def find(path: str | None) -> list[Any]:
        return [None, None] if path is None else list(demo.search(path))

    given.change(as_errors(find), given, [answer, found], api_name="search")


def plain_text() -> "gradio.Textbox":
    """A place for an answer. Markdown would load the pictures that a name in a checkpoint's files refers to."""
    import gradio

    return gradio.Textbox(label="Answer", interactive=False)


def photograph(label: str) -> "gradio.Image":
    """A place to drop a photograph. Its file is passed on unopened, so that it is read as everywhere else."""
    import gradio

    sources, options = ["upload", "clipboard"], {"height": PICTURE_HEIGHT, "elem_classes": "picture"}
    place = gradio.Image(label=label, type="filepath", sources=sources, **options)
    # gradio's own opens the file with Pillow, and answers only "Error" if that fails. For a subclass, gradio would
    # write a stub file beside this one.
    place.preprocess = lambda payload: payload and payload.path
    return place


def picture(label: str, demo: Demo) -> "gradio.Image":
    import gradio

    config = demo.model.config
    with gradio.Column():
        options = {"height": PICTURE_HEIGHT, "elem_classes": "picture", "visible": config.has_cls}
        drawn = gradio.Image(label=label, interactive=False, **options)
        has_frames = "glca" in config.inference_branches and config.reads_local_queries
        gradio.Markdown(LEGEND + (LEGEND_OF_PATCHES if has_frames else ""), visible=config.has_cls)
    return drawn


def as_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shows the sentence of a mistake, such as of an image that cannot be read, on the page.

    Photographs are named as they were given: their paths are those of gradio's copies.
    """
    import gradio

    @wraps(function)
    def call(*args: str | None) -> Any:
        try:
            return function(*args)
        except ValueError as error:
            sentence = str(error)
            for path in filter(None, args):
                sentence = sentence.replace(path, Path(path).name)
            # The page would render HTML, such as in the name of a file.
            raise gradio.Error(escape(sentence, quote=False), print_exception=False) from error

    return call
