# /// script
# dependencies = ["dcal_hf[pictures]"]
# ///
"""Trains a ViT with DCAL for re-identification, and evaluates it on query and gallery.

On a published data set in its official folders, as in the paper:

    python recipes/run_reid.py --do_train --do_eval --dataset_name market1501 --data_dir market \
        --model_name_or_path google/vit-base-patch16-224-in21k --image_size 256 128 --drop_path_rate 0.1 \
        --output_dir out

On your own photographs, in folders `turtles/<identity>/*.jpg`, or in a table with the columns image or path, identity
and (optionally) bbox, camera, date and split:

    python recipes/run_reid.py --do_train --do_eval --data_dir turtles --output_dir out ...
    python recipes/run_reid.py --do_train --do_eval --dataset_name turtles.csv --output_dir out ...

What is searched for, and in what, is the protocol: `disjoint` (individuals that are not trained on, the default),
`closed_set`, `open_set` or `time`, see dcal_hf/data/reid_protocols.py:

    python recipes/run_reid.py --do_train --do_eval --dataset_name turtles.csv --protocol open_set ...

To evaluate a trained model on another data set:

    python recipes/run_reid.py --do_eval --model_name_or_path out --dataset_name dukemtmc --data_dir duke \
        --rerank --flip_tta --output_dir out/duke

From scratch on the built-in synthetic birds, with a configuration file (options after it override it):

    python recipes/run_reid.py recipes/configs/quickstart_reid.yaml --output_dir out

On several GPUs:

    accelerate launch --multi_gpu recipes/run_reid.py turtles.yaml
"""

if __name__ == "__main__":
    from cli import run_script

    # Imports this file as a module, unless only its help is asked for, because the imports below take seconds.
    raise SystemExit(run_script(__file__))

from pathlib import Path

import datasets
from arguments import parse_arguments
from before import CHECK_FILE, check_data, check_reid_sizes, load_distractors, print_splits
from common import check_names, hyperparameters, model_card_facts, save_model_card, start_run, train
from console import print_epochs, print_outputs, print_results, result_rows
from pretrained import load_model
from ranked_lists import save_ranked_lists
from reid_arguments import DataArguments, ReIDModelArguments
from reid_protocol import (
    OPEN_PROTOCOLS,
    describe_evaluation,
    describe_identities,
    describe_open_set,
    is_same,
    prepare_open_set,
    warn_of_known_individuals,
)

from dcal_hf import DCALForReID, DCALReIDTrainer, DCALReIDTrainingArguments
from dcal_hf.data import column, load_reid, with_classes
from dcal_hf.model_card import ModelCardFacts
from dcal_hf.training import class_names, reid_metric_names
from dcal_hf.transforms import EvalTransform, ReIDTrainTransform, reid_processor


# Files to open first, and their content.
OUTPUTS = {
    "README.md": "the model card: results, settings, how to load the model",
    "ranked_lists.jpg": "queries and their best matches",
    "all_results.json": "all metrics, including verification thresholds",
    CHECK_FILE: "images with problems",
}

ARGUMENTS = (ReIDModelArguments, DataArguments, DCALReIDTrainingArguments)


def main() -> None:
    model_args, data_args, training_args = parse_arguments(ARGUMENTS)
    if not (training_args.do_train or training_args.do_eval):
        raise ValueError("Nothing to do: give --do_train or --do_eval.")
    start_run(training_args, model_args.overwrite_output_dir)
    dataset = load_data(data_args, training_args)
    names = dataset["train"].features["label"].names if training_args.do_train else None
    # Before the images are checked, which takes longer, so that an option that does not fit is found first.
    model, processor = load_model(DCALForReID, reid_processor, model_args, names)
    is_open = training_args.open_set or data_args.protocol in OPEN_PROTOCOLS
    metrics = reid_metric_names(model.config.inference_branches, training_args.rerank, is_open)
    check_names(training_args, names, metrics)
    dataset, distractors = prepare_data(dataset, model, data_args, training_args)
    prepare_open_set(dataset, data_args.protocol, training_args)
    if data_args.is_own and data_args.protocol == "disjoint" and not training_args.do_train:
        warn_of_known_individuals(model, dataset, model_args.model_name_or_path)
    train_dataset = None
    if training_args.do_train:
        dataset["train"] = with_classes(dataset["train"], class_names(model))
        train_transform = ReIDTrainTransform(
            processor,
            data_args.padding,
            data_args.random_erasing,
            data_args.horizontal_flip,
            data_args.affine,
            data_args.max_pixels,
        )
        train_dataset = dataset["train"].with_transform(train_transform)
        distractors = distractors and distractors.with_transform(train_transform)
    trainer = DCALReIDTrainer(
        model,
        training_args,
        train_dataset=train_dataset,
        distractor_dataset=distractors,
        eval_dataset={
            split: dataset[split].with_transform(EvalTransform(processor, data_args.max_pixels))
            for split in ("query", "gallery")
            if split in dataset
        },
        processing_class=processor,
    )
    print_epochs(trainer, "mAP", "map")
    if training_args.do_train:
        train(trainer, model_args.overwrite_output_dir)
    if training_args.do_eval:
        metrics = evaluate(trainer, data_args.title)
        if trainer.is_world_process_zero():
            report(trainer, dataset, metrics, model_args, data_args)
    if trainer.is_world_process_zero():
        model = model_args.loading_options(training_args.output_dir if training_args.do_train else None)
        print_outputs(training_args.output_dir, OUTPUTS, next_commands(model))
    if training_args.push_to_hub:
        trainer.push_to_hub(create_model_card=False)


def prepare_data(
    dataset: datasets.DatasetDict,
    model: DCALForReID,
    data_args: DataArguments,
    training_args: DCALReIDTrainingArguments,
) -> tuple[datasets.DatasetDict, datasets.Dataset | None]:
    """Loads the distractors, checks the images, and prints the sizes of the splits."""
    check_reid_sizes(dataset, training_args)
    distractors = load_distractors(data_args.distractor_dir, model, training_args)
    train_is_gallery = {"train", "gallery"} <= set(dataset) and is_same(dataset["train"], dataset["gallery"])
    splits = [split for split in dataset if split != "gallery" or not train_is_gallery]
    dataset, distractors = check_data(
        dataset, splits, "identity", data_args, training_args, data_args.has_identity_folders, distractors
    )
    if train_is_gallery:
        # Without what the check has left out.
        dataset["gallery"] = dataset["train"].remove_columns("label")
    if data_args.skip_broken:
        check_reid_sizes(dataset, training_args)
    if training_args.process_index == 0:
        print_splits(data_args.title, dataset, [*dataset], "identity", "identities")
    return dataset, distractors


def load_data(data_args: DataArguments, training_args: DCALReIDTrainingArguments) -> datasets.DatasetDict:
    """Loads the splits that are needed. Images stay encoded until a transform opens them."""
    evaluates = training_args.do_eval or training_args.eval_strategy != "no"
    if data_args.test_fraction is None:
        holds_all = data_args.protocol == "disjoint" and not training_args.do_train
        data_args.test_fraction = 1.0 if holds_all else 0.3
    splits = ["train"] * training_args.do_train + ["query", "gallery"] * evaluates
    with training_args.main_process_first(desc="loading the data set"):
        dataset = load_reid(
            data_args.dataset_name or "imagefolder",
            data_args.data_dir,
            splits=splits,
            protocol=data_args.protocol,
            camera_column=data_args.camera_column,
            include_val=data_args.include_val,
            test_fraction=data_args.test_fraction,
            query_fraction=data_args.query_fraction,
            seed=data_args.split_seed,
            max_unpacked_bytes=data_args.max_unpacked_bytes,
            warn_duplicates=data_args.check_files == "off",
        )
    return dataset.cast_column("image", datasets.Image(decode=False))


def next_commands(model: str) -> dict[str, str]:
    """Commands that use the model, given the options that load it."""
    return {
        f"dcal embed {model} --image_dir photographs --output_dir gallery": "Embed photographs into a gallery",
        f"dcal search {model} --gallery_dir gallery --images who.jpg --output_dir answer": "Search the gallery",
    }


def evaluate(trainer: DCALReIDTrainer, title: str) -> dict[str, float]:
    """Evaluates query and gallery, and prints a table.

    Returns:
        The metrics without their prefix.
    """
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    scores = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    if trainer.is_world_process_zero():
        asked = f"queries with a match: {scores['num_queries'] - scores['num_skipped']:,} of {scores['num_queries']:,}"
        print_results(f"{title} ({asked})", "image-feature-extraction", scored_rows(trainer), scores)
        if trainer.args.open_set:
            print(f"New individuals: {describe_open_set(scores, trainer.args.open_set_threshold)}.")
    return scores


def scored_rows(trainer: DCALReIDTrainer) -> dict[str, str]:
    """The rows of results; see [`result_rows`]."""
    rows = result_rows(trainer.model.config.inference_branches)
    *_, joint = rows
    return rows | ({f"{joint}, re-ranked": "reranked_"} if trainer.args.rerank else {})


def report(
    trainer: DCALReIDTrainer,
    dataset: datasets.DatasetDict,
    metrics: dict[str, float],
    model_args: ReIDModelArguments,
    data_args: DataArguments,
) -> None:
    """Writes the model card and `ranked_lists.jpg`."""
    args = trainer.args
    if data_args.ranked_queries > 0:
        save_ranked_lists(
            trainer,
            data_args.ranked_queries,
            data_args.ranked_matches,
            data_args.max_pixels,
            has_distractors=data_args.dataset_name in ("drawn", "market1501"),
        )
    facts = ModelCardFacts(
        **model_card_facts(trainer, model_args),
        dataset=data_args.title,
        dataset_split="query and gallery",
        dataset_layout=data_args.layout,
        data=describe_data(dataset, data_args),
        metrics=metrics,
        branches=scored_rows(trainer),
        hyperparameters=settings(trainer, data_args) if args.do_train else {},
        task="image-feature-extraction",
        evaluation=describe_evaluation(trainer, metrics, data_args.protocol, data_args.camera_column),
    )
    save_model_card(trainer, facts)


def describe_data(dataset: datasets.DatasetDict, data_args: DataArguments) -> dict[str, object]:
    """The size of each split, and facts that identify the version of the data set."""
    facts = {}
    for split, part in dataset.items():
        facts[f"{split} images, identities"] = f"{len(part)}, {describe_identities(part)}"
    query, camera_column = dataset["query"], data_args.camera_column
    cameras = "cameras" if camera_column is None else f"cameras (column {camera_column})"
    facts[cameras] = len(set(column(query, "camera_id"))) if "camera_id" in query.column_names else "unknown"
    if data_args.layout is not None:
        facts["folder of the first query"] = "/".join(Path(query[0]["image"]["path"]).parts[-3:-1])
    if data_args.dataset_name == "msmt17":
        facts["list_val in train"] = data_args.include_val
    if data_args.is_own:
        facts["seed of the split, if not predefined"] = data_args.split_seed
    return facts


def settings(trainer: DCALReIDTrainer, data_args: DataArguments) -> dict[str, object]:
    """The hyperparameters that reproduce the training."""
    args, config = trainer.args, trainer.model.config
    loss = config.identity_loss
    if loss == "arcface":
        loss += f", {config.arcface_subcenters} sub-centres, margin {config.arcface_margin:g}"
        loss += f", scale {config.arcface_scale:g}"
    rows = {
        **hyperparameters(trainer),
        "identity loss": loss,
        "images per identity": args.instances_per_identity,
        "padding": data_args.padding,
        "random erasing": data_args.random_erasing,
        "horizontal flip": data_args.horizontal_flip,
        "affine": data_args.affine,
        **({} if data_args.distractor_dir is None else {"distractors": Path(data_args.distractor_dir).name}),
    }
    if args.schedule == "transreid":
        rows |= {"optimiser": "SGD, momentum 0.9, biases at twice the rate", "schedule": "TransReID's, per epoch"}
    return rows
