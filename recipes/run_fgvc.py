# /// script
# dependencies = ["dcal_hf[pictures]"]
# ///
"""Fine-tunes a ViT with DCAL on fine-grained classes, evaluates it, and draws its attention.

On your own photographs, in folders `birds/train/<class>/*.jpg` (and `validation` and `test`, if available):

    python recipes/run_fgvc.py --do_train --do_eval --data_dir birds --output_dir out \
        --model_name_or_path facebook/deit-tiny-patch16-224 --image_size 448

From scratch on the built-in synthetic birds, with a configuration file (options after it override it):

    python recipes/run_fgvc.py recipes/configs/quickstart.yaml --output_dir out

On several GPUs:

    accelerate launch --multi_gpu recipes/run_fgvc.py birds.yaml
"""

if __name__ == "__main__":
    from cli import run_script

    # Imports this file as a module, unless only its help is asked for, because the imports below take seconds.
    raise SystemExit(run_script(__file__))

import os
from functools import partial
from pathlib import Path

import datasets
from arguments import ModelArguments, parse_arguments
from attention_examples import save_attention
from before import CHECK_FILE, check_data, common_folder, load_distractors, print_splits
from common import check_names, hyperparameters, model_card_facts, save_model_card, start_run, train
from console import print_epochs, print_outputs, print_results, result_rows
from fgvc_arguments import DataArguments
from pretrained import load_model
from scipy.special import softmax
from temperature import calibration_metrics, describe_calibration, main_scores, save_temperature
from transformers.trainer_utils import PredictionOutput

from dcal_hf import DCALForImageClassification, DCALTrainer, DCALTrainingArguments
from dcal_hf.data import load_fgvc, with_classes
from dcal_hf.errors import counted
from dcal_hf.files import save_table
from dcal_hf.metrics import ClassificationMetrics, confusion_matrix, save_confusion_matrix
from dcal_hf.model_card import ModelCardFacts
from dcal_hf.training import class_names
from dcal_hf.transforms import EvalTransform, TrainTransform, fine_grained_processor


# Files to open first, and their content.
OUTPUTS = {
    "README.md": "the model card: results, settings, how to load the model",
    "attention.jpg": "attention rollout and selected patches",
    "eval_predictions.csv": "the class and the prediction of each image",
    "eval_confusion_matrix.csv": "which classes are confused",
    "predict_predictions.csv": "the same for the test split",
    CHECK_FILE: "images with problems",
}

ARGUMENTS = (ModelArguments, DataArguments, DCALTrainingArguments)


def main() -> None:
    model_args, data_args, training_args = parse_arguments(ARGUMENTS)
    if not (training_args.do_train or training_args.do_eval or training_args.do_predict):
        raise ValueError("Nothing to do: give --do_train, --do_eval or --do_predict.")
    start_run(training_args, model_args.overwrite_output_dir)
    dataset = load_data(data_args, training_args)
    prepare = partial(fine_grained_processor, resize_ratio=data_args.resize_ratio)
    names = dataset["train"].features["label"].names
    # Before the images are checked, which takes longer, so that an option that does not fit is found first.
    model, processor = load_model(DCALForImageClassification, prepare, model_args, names, training_args.do_train)
    compute_metrics = ClassificationMetrics(("both", *model.config.inference_branches))
    check_names(training_args, class_names(model), ["loss", *compute_metrics.metric_names])
    dataset, distractors = prepare_data(dataset, model, data_args, training_args)
    dataset = datasets.DatasetDict({split: with_classes(part, class_names(model)) for split, part in dataset.items()})
    train_transform = TrainTransform(
        processor, data_args.auto_augment, data_args.color_jitter, data_args.random_erasing, data_args.max_pixels
    )
    train_dataset = None
    if training_args.do_train:
        train_dataset = dataset["train"].with_transform(train_transform)
        distractors = distractors and distractors.with_transform(train_transform)
    eval_transform = EvalTransform(processor, data_args.max_pixels)
    trainer = DCALTrainer(
        model,
        training_args,
        train_dataset=train_dataset,
        distractor_dataset=distractors,
        eval_dataset=dataset[data_args.eval_split].with_transform(eval_transform),
        processing_class=processor,
        compute_metrics=compute_metrics,
    )
    print_epochs(trainer, "Top-1", "accuracy")
    if training_args.do_train:
        train(trainer, model_args.overwrite_output_dir)
    output, data_folder = None, common_folder(dataset)
    if training_args.do_eval:
        output = evaluate(trainer, trainer.eval_dataset, "eval", data_folder, data_args.split_title())
    if training_args.do_predict:
        test = dataset["test"].with_transform(eval_transform)
        temperature = output and output.metrics.get("temperature")
        evaluate(trainer, test, "predict", data_folder, data_args.split_title("test"), temperature)
    if trainer.is_world_process_zero():
        report(trainer, dataset, output, model_args, data_args)
        model = model_args.loading_options(training_args.output_dir if training_args.do_train else None)
        print_outputs(training_args.output_dir, OUTPUTS, next_commands(model))
    if training_args.push_to_hub:
        trainer.push_to_hub(create_model_card=False)


def prepare_data(
    dataset: datasets.DatasetDict,
    model: DCALForImageClassification,
    data_args: DataArguments,
    training_args: DCALTrainingArguments,
) -> tuple[datasets.DatasetDict, datasets.Dataset | None]:
    """Loads the distractors, checks the images, and prints the sizes of the splits.

    Raises:
        ValueError: If the test split is missing, or images cannot be read.
    """
    distractors = load_distractors(data_args.distractor_dir, model, training_args)
    evaluates = training_args.do_eval or training_args.eval_strategy != "no"
    splits = dict.fromkeys(
        ["train"] * training_args.do_train + [data_args.eval_split] * evaluates + ["test"] * training_args.do_predict
    )
    if training_args.do_predict and "test" not in dataset:
        raise ValueError(f"--do_predict needs a test split, and {data_args.title} has none.")
    dataset, distractors = check_data(
        dataset, [*splits], "label", data_args, training_args, data_args.has_class_folders, distractors
    )
    if training_args.process_index == 0:
        print_splits(data_args.title, dataset, [*splits], "label", "classes")
    return dataset, distractors


def load_data(data_args: DataArguments, training_args: DCALTrainingArguments) -> datasets.DatasetDict:
    """Loads the splits, limited to the maximum numbers of images. Images stay encoded until a transform opens them.

    Raises:
        ValueError: If there is no split to evaluate on.
    """
    with training_args.main_process_first(desc="loading the data set"):
        dataset = load_fgvc(
            data_args.dataset_name or "imagefolder",
            data_args.folders,
            config_name=data_args.dataset_config_name,
            validation_fraction=data_args.train_val_split if data_args.eval_split == "validation" else 0.0,
            seed=data_args.split_seed,
            image_column=data_args.image_column_name,
            label_column=data_args.label_column_name,
            max_unpacked_bytes=data_args.max_unpacked_bytes,
            warn_duplicates=data_args.check_files == "off",
        )
    if data_args.eval_split not in dataset:
        hint = "; --train_val_split 0.15 takes one from train" if data_args.eval_split == "validation" else ""
        found = ", ".join(dataset) + hint
        raise ValueError(f"--eval_split {data_args.eval_split}: {data_args.title} has only {found}.")
    limits = {"train": data_args.max_train_samples, data_args.eval_split: data_args.max_eval_samples}
    for split, limit in limits.items():
        if limit is not None:
            shuffled = dataset[split].shuffle(seed=training_args.seed)
            dataset[split] = shuffled.select(range(min(limit, len(shuffled))))
    return dataset.cast_column("image", datasets.Image(decode=False))


def next_commands(model: str) -> dict[str, str]:
    """Commands that use the model, given the options that load it."""
    predict = f"dcal predict {model} --output_dir answer --images"
    return {
        f"{predict} photographs --attention": "Classify photographs, with attention overlays",
        f"{predict} labelled_photographs --labelled": "Show the mistakes, for folders named after the classes",
    }


def evaluate(
    trainer: DCALTrainer, dataset: datasets.Dataset, prefix: str, data_folder: str, title: str,
    temperature: float | None = None,
) -> PredictionOutput:
    """Evaluates a split, prints a table, and writes the metrics, the confusion matrix and the predictions.

    The split with the prefix `"eval"` determines the temperature; other splits are scaled by a given one.

    Returns:
        The output of `Trainer.predict`, with the metrics without their prefix.
    """
    output = trainer.predict(dataset, metric_key_prefix=prefix)
    fits = prefix == "eval"
    calibration = calibration_metrics(main_scores(output), output.label_ids, temperature, fits)
    metrics = {**output.metrics, f"{prefix}_samples": len(dataset)}
    metrics |= {f"{prefix}_{name}": value for name, value in calibration.items()}
    trainer.save_metrics(prefix, metrics)
    scores = {name.removeprefix(f"{prefix}_"): value for name, value in metrics.items()}
    if trainer.is_world_process_zero():
        save_predictions(output, dataset, Path(trainer.args.output_dir), prefix, data_folder)
        rows = result_rows(trainer.model.config.inference_branches)
        print_results(f"{title} ({counted(len(dataset), 'image')})", "image-classification", rows, scores)
        if fits:
            save_temperature(trainer.model, trainer.args.output_dir, calibration, title, len(dataset))
    return output._replace(metrics=scores)


def save_predictions(
    output: PredictionOutput, dataset: datasets.Dataset, output_dir: Path, prefix: str, data_folder: str
) -> None:
    """Writes `<prefix>_confusion_matrix.csv`, and `<prefix>_predictions.csv` with paths relative to `data_folder`."""
    names = dataset.features["label"].names
    scores = main_scores(output)
    predicted = scores.argmax(axis=1)
    save_confusion_matrix(
        confusion_matrix(predicted, output.label_ids, len(names)), names, output_dir / f"{prefix}_confusion_matrix.csv"
    )
    records = dataset.with_format(None)["image"]
    paths = [
        os.path.relpath(record["path"], data_folder) if record["bytes"] is None else record["path"]
        for record in records
    ]
    probabilities = softmax(scores, axis=1).max(axis=1)
    rows = zip(paths, output.label_ids, predicted, probabilities)
    save_table(
        ["image", "label", "prediction", "probability"],
        [(path, names[label], names[best], f"{probability:.4f}") for path, label, best, probability in rows],
        output_dir / f"{prefix}_predictions.csv",
    )


def report(
    trainer: DCALTrainer,
    dataset: datasets.DatasetDict,
    output: PredictionOutput | None,
    model_args: ModelArguments,
    data_args: DataArguments,
) -> None:
    """Writes the model card and `attention.jpg`."""
    args, config = trainer.args, trainer.model.config
    # The attention rollout needs a CLS token, which Swin does not have.
    if data_args.attention_images > 0 and config.has_cls:
        save_attention(trainer, output, data_args.attention_images, data_args.max_pixels)
    if output is None:
        return
    sizes = {f"{split} images": len(part) for split, part in dataset.items()}
    facts = ModelCardFacts(
        **model_card_facts(trainer, model_args),
        dataset=data_args.title,
        dataset_split=data_args.eval_split,
        dataset_layout=data_args.layout,
        data={**sizes, "classes": config.num_labels, "seed of the split, if not predefined": data_args.split_seed},
        metrics=output.metrics,
        branches=result_rows(config.inference_branches),
        hyperparameters=settings(trainer, data_args) if args.do_train else {},
        evaluation=describe_calibration(output.metrics),
    )
    save_model_card(trainer, facts)


def settings(trainer: DCALTrainer, data_args: DataArguments) -> dict[str, object]:
    """The hyperparameters that reproduce the training."""
    args = trainer.args
    return {
        **hyperparameters(trainer),
        "resize ratio": round(data_args.resize_ratio, 4),
        "RandAugment": data_args.auto_augment or "off",
        "colour jitter": data_args.color_jitter,
        "random erasing": data_args.random_erasing,
        "class weights": args.class_weights or "off",
        "logit adjustment": args.logit_adjustment,
        **({} if data_args.distractor_dir is None else {"distractors": Path(data_args.distractor_dir).name}),
    }
