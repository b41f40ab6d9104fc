"""Evaluation protocols in the re-identification recipe: checks of the data, and text of the model card."""

import logging

import datasets
from ranked_lists import identity_name

from dcal_hf import DCALForReID, DCALReIDTrainer, DCALReIDTrainingArguments
from dcal_hf.data import PROTOCOLS, column, image_names, protocol_columns
from dcal_hf.data.reid import known_identities
from dcal_hf.errors import counted
from dcal_hf.metrics import RetrievalProtocol
from dcal_hf.training import class_names


logger = logging.getLogger(__name__)

# Protocols that ask for new individuals, if there are any.
OPEN_PROTOCOLS = ("open_set", "time")


def is_same(first: datasets.Dataset, second: datasets.Dataset) -> bool:
    """Whether two splits contain the same images, as train and gallery do in some protocols."""
    return column(first, "identity") == column(second, "identity") and image_names(first) == image_names(second)


def shows_new(dataset: datasets.DatasetDict) -> bool:
    """Whether there are queries of individuals that the gallery lacks."""
    return {"query", "gallery"} <= set(dataset) and not set(column(dataset["query"], "identity")) <= set(
        column(dataset["gallery"], "identity")
    )


def prepare_open_set(dataset: datasets.DatasetDict, protocol: str, training_args: DCALReIDTrainingArguments) -> None:
    """Enables open-set metrics if a protocol has new individuals, and checks that they can be computed.

    Raises:
        ValueError: If no query shows a new individual, or no threshold can be chosen on the gallery.
    """
    has_new = shows_new(dataset)
    training_args.open_set |= protocol in OPEN_PROTOCOLS and has_new
    if not training_args.open_set or not {"query", "gallery"} <= set(dataset):
        return
    if not has_new:
        raise ValueError(
            "--open_set needs queries of individuals that the gallery lacks, and there are none; --protocol open_set "
            "makes such queries of your own images."
        )
    gallery = RetrievalProtocol(**protocol_columns(dataset["gallery"], dataset["gallery"]))
    has_pair = any(len(gallery.matches(item)) > 0 for item in range(len(gallery.gallery_ids)))
    if training_args.open_set_threshold is None and not has_pair:
        raise ValueError(
            "The gallery has no two images of one individual (by two cameras, where cameras are given) to choose the "
            "threshold for new individuals on: give --open_set_threshold."
        )


def warn_of_known_individuals(model: DCALForReID, dataset: datasets.DatasetDict, source: str | None) -> None:
    """Warns if the checkpoint was trained on individuals of the same names as those to evaluate."""
    identities = {identity for part in dataset.values() for identity in column(part, "identity")}
    individuals = {identity_name(dataset["gallery"], identity) for identity in identities}
    known = individuals & set(class_names(model))
    if known:
        logger.warning(
            "%s was trained on individuals with %d of these %d names. Scores on training individuals are too high; "
            "--test_fraction 0.3 evaluates only those that training holds out by default",
            source,
            len(known),
            len(individuals),
        )


def describe_identities(part: datasets.Dataset) -> str:
    """The number of individuals in a split; each image of an unknown one counts apart."""
    known = known_identities(part)
    unknown = len(set(column(part, "identity"))) - len(known)
    return f"{len(known)} (and {counted(unknown, 'unknown individual')})" if unknown else str(len(known))


def describe_evaluation(
    trainer: DCALReIDTrainer, metrics: dict[str, float], protocol: str, camera_column: str | None
) -> str:
    """The evaluation settings as a Markdown list."""
    args, config = trainer.args, trainer.model.config
    expansion = "off"
    if args.query_expansion > 0:
        expansion = f"{args.query_expansion} items, alpha {args.query_expansion_alpha:g}"
    ignored = "only the query's own image, because cameras are unknown"
    if "camera_id" in trainer.eval_dataset["query"].column_names:
        ignored = "gallery items with the identity and camera of the query, as in Market-1501"
        ignored += f". The column {camera_column} stands for the camera" if camera_column else ""
    matched = "all have a match in the gallery"
    if metrics["num_skipped"]:
        matched = f"excluded: {metrics['num_skipped']} without a match in the gallery"
    facts = {
        "Protocol": PROTOCOLS[protocol],
        "Ignored": ignored,
        "Queries": f"{metrics['num_queries']}; {matched}",
        "mAP": 'mean over the queries of the mean precision at each match ("step" AP); with the trapezoidal rule: '
        f"{100 * metrics['map_trapezoid']:.2f} %",
        "Feature": f"{config.neck_feature} the BatchNorm neck, "
        f"{'L2-normalised' if config.normalize_embeddings else 'not normalised'}; ranked by Euclidean distance",
        "Flip test-time augmentation": "on" if args.flip_tta else "off",
        "Query expansion": expansion,
        "Re-ranking": "k-reciprocal, k1 20, k2 6, lambda 0.3, in a separate row" if args.rerank else "off",
    }
    if args.open_set:
        facts["New individuals"] = describe_open_set(metrics, args.open_set_threshold)
    return "\n".join(f"- {name}: {fact}." for name, fact in facts.items())


def describe_open_set(metrics: dict[str, float], given: float | None) -> str:
    """BAKS, BAUS and AUROC with their threshold; `given` is the threshold of the command line."""
    baks, baus, both, auroc = (100 * metrics[name] for name in ("baks", "baus", "baks_baus", "auroc_new"))
    return (
        f"{counted(metrics['num_known'], 'query', 'queries')} of individuals in the gallery, {metrics['num_new']} of "
        f"new ones. Balanced accuracy on known samples (BAKS) {baks:.2f} %, on unknown samples (BAUS) {baus:.2f} %, "
        f"geometric mean {both:.2f} %, AUROC {auroc:.2f} %. A query is new unless an item is nearer than "
        f"{metrics['open_set_threshold']:.4f}, {'chosen on the gallery alone' if given is None else 'as given'}"
    )
