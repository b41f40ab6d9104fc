import io
import logging
import multiprocessing

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from tqdm import tqdm
from transformers import ViTConfig, ViTImageProcessor

from dcal_hf import DCALForReID
from dcal_hf.data import protocol_columns, synthetic_reid
from dcal_hf.metrics import distance_metrics, retrieval_metrics
from dcal_hf.retrieval.query_expansion import expand_queries
from dcal_hf.retrieval.reranking import rerank
from dcal_hf.training import check_best_metric, last_checkpoint
from dcal_hf.training.reid_trainer import DCALReIDTrainer, transreid_factor
from dcal_hf.training.reid_training_args import DCALReIDTrainingArguments
from dcal_hf.transforms import EvalTransform, ReIDTrainTransform, reid_processor

from helpers import TINY_SIZES, RememberSaved, assert_same_weights, train_until_killed


SIDE = 16
PROCESSOR = reid_processor(ViTImageProcessor(), (SIDE, SIDE))
CONFIG = ViTConfig(image_size=SIDE, initializer_range=0.3, **TINY_SIZES)


@pytest.fixture(scope="module")
def dataset() -> DatasetDict:
    return synthetic_reid(6, 5, 3, 3, 4, SIDE)


@pytest.fixture
def make_trainer(dataset):
    def make(output_dir, callbacks=(), model_kwargs=None, **arguments) -> DCALReIDTrainer:
        torch.manual_seed(0)
        evaluated = EvalTransform(PROCESSOR)
        model = DCALForReID.from_backbone(CONFIG, num_labels=6, **(model_kwargs or {}))
        arguments = {
            "output_dir": str(output_dir),
            "per_device_train_batch_size": 6,
            "per_device_eval_batch_size": 8,
            "instances_per_identity": 2,
            "num_train_epochs": 3,
            "logging_steps": 1,
            "save_steps": 4,
            "use_cpu": True,
            "disable_tqdm": True,
            **arguments,
        }
        return DCALReIDTrainer(
            model,
            DCALReIDTrainingArguments(**arguments),
            train_dataset=dataset["train"].with_transform(ReIDTrainTransform(PROCESSOR, padding=2)),
            eval_dataset={name: dataset[name].with_transform(evaluated) for name in ("query", "gallery")},
            processing_class=PROCESSOR,
            callbacks=list(callbacks),
        )

    return make


class Batches:
    """Records the labels and pairs of every training batch, with a hook on the model."""

    def __init__(self, trainer):
        self.labels, self.pairs = [], []
        trainer.model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.labels.append(kwargs["labels"].tolist())
        self.pairs.append(kwargs["labels"][kwargs["pairs"]].tolist())


@torch.no_grad()
def embed(model, dataset, flip=False) -> torch.Tensor:
    """Embeds one image at a time, independently of the trainer."""
    processed = [PROCESSOR(image.convert("RGB"), return_tensors="pt")["pixel_values"] for image in dataset["image"]]
    parts = [model(pixels.flip(-1) if flip else pixels).embeddings for pixels in processed]
    return torch.cat(parts)


def protocol(dataset) -> dict[str, list]:
    return {
        f"{split}_{short}": dataset[split][name][:]
        for split in ("query", "gallery")
        for short, name in (("ids", "identity"), ("cameras", "camera_id"))
    }


def assert_metrics(found: dict, expected: dict, prefix: str) -> None:
    names = [name for name in expected if name.startswith(("map", "minp", "r_precision", "rank"))]
    assert len(names) == 8
    assert {name: found[prefix + name] for name in names} == pytest.approx({name: expected[name] for name in names})


@pytest.mark.parametrize(("epoch", "rate"), [(1, 1.664e-3), (5, 7.966e-3), (60, 4.008e-3), (119, 1.74e-5)])
def test_learning_rates_equal_transreids(epoch, rate):
    # The published figures have three or four digits.
    assert 0.008 * transreid_factor(epoch, 120) == pytest.approx(rate, rel=2e-3)


def test_the_learning_rate_is_constant_per_epoch_and_doubled_for_biases(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path, num_train_epochs=120)
    trainer.create_optimizer_and_scheduler(num_training_steps=120 * 7)
    main, biases, log_vars = trainer.optimizer.param_groups
    assert {group["weight_decay"] for group in (main, biases)} == {1e-4} and log_vars["weight_decay"] == 0
    assert [parameter is trainer.model.loss_weights.log_vars for parameter in log_vars["params"]] == [True]
    assert {group["momentum"] for group in (main, biases)} == {0.9}
    bias_ids = {id(parameter) for name, parameter in trainer.model.named_parameters() if name.endswith("bias")}
    assert {id(parameter) for parameter in biases["params"]} == bias_ids
    assert len(main["params"]) + len(biases["params"]) + 1 == len(list(trainer.model.parameters()))
    for step in range(120 * 7):
        expected = 0.008 * transreid_factor(step // 7 + 1, 120)
        assert (main["lr"], biases["lr"]) == pytest.approx((expected, 2 * expected))
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


def test_defaults_depend_on_the_schedule(tmp_path):
    transreid = DCALReIDTrainingArguments(str(tmp_path), use_cpu=True)
    assert (transreid.optim, transreid.learning_rate, transreid.max_grad_norm) == ("sgd", 0.008, 0)
    assert (transreid.num_train_epochs, transreid.train_batch_size, transreid.instances_per_identity) == (120, 64, 4)
    assert transreid.pair_sampling == "inter_class" and transreid.metric_for_best_model == "map"
    own = DCALReIDTrainingArguments(str(tmp_path), schedule="trainer", max_grad_norm=0.5, use_cpu=True)
    assert (own.optim, own.weight_decay, own.max_grad_norm) == ("adamw_torch_fused", 0.05, 0.5)
    assert own.learning_rate == pytest.approx(5e-4 * 64 / 512)


def test_the_trainers_own_optimiser_and_schedule(tmp_path, make_trainer):
    arguments = {"schedule": "trainer", "learning_rate": 1e-3, "lr_scheduler_type": "linear", "warmup_steps": 0}
    trainer = make_trainer(tmp_path, optim="adamw_torch", max_steps=4, save_strategy="no", **arguments)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.AdamW)
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    decayed = trainer.get_decay_parameter_names(trainer.model)
    assert not any("neck" in name for name in decayed)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"schedule": "other"}, "schedule='other' is unknown; choose one of transreid, trainer."),
        ({"optim": "adamw_torch"}, "give --schedule trainer to train with adamw_torch"),
        ({"label_smoothing_factor": 0.1}, "without label smoothing"),
    ],
)
def test_invalid_options_raise_clear_errors(tmp_path, kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        DCALReIDTrainingArguments(str(tmp_path), use_cpu=True, **kwargs)


def test_a_best_metric_that_is_not_evaluated_is_refused_before_training(tmp_path, make_trainer):
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    with pytest.raises(ValueError, match="metric_for_best_model='loss' is no metric .*: it has map, .* glca_rank1"):
        make_trainer(tmp_path, metric_for_best_model="loss", **options).train()
    for valid in ({"metric_for_best_model": "eval_glca_rank1", **options}, {"metric_for_best_model": "loss"}):
        trainer = make_trainer(tmp_path, **valid)
        check_best_metric(trainer.args, trainer.evaluation_metrics())


def test_batches_contain_several_images_per_identity(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path, save_strategy="no")
    batches = Batches(trainer)
    trainer.train()
    assert len(batches.labels) == 3 * (54 // 6)
    for labels, pairs in zip(batches.labels, batches.pairs):
        assert np.unique(labels, return_counts=True)[1].tolist() == [2, 2, 2]
        assert len(pairs) == 3 and all(first != second for first, second in pairs)
    assert [log["unpaired_images"] for log in trainer.state.log_history if "unpaired_images" in log] == [0, 0, 0]
    assert batches.labels[:9] != batches.labels[9:18] != batches.labels[18:]


def test_query_and_gallery_have_separate_progress_bars(tmp_path, make_trainer, monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, file=io.StringIO(), **kwargs)
            bars.append(self)

    monkeypatch.setattr("transformers.trainer_callback.tqdm", Bar)
    make_trainer(tmp_path, disable_tqdm=False, per_device_eval_batch_size=4).evaluate()
    assert [bar.n for bar in bars] == [bar.total for bar in bars] and len(bars) == 2


@pytest.mark.parametrize(("strategy", "same"), [("intra_class", 3), ("half", 1), ("any", None)])
def test_partners_in_a_batch_of_identities_satisfy_the_strategy(tmp_path, make_trainer, strategy, same):
    trainer = make_trainer(tmp_path, pair_sampling=strategy, num_train_epochs=1, save_strategy="no")
    batches = Batches(trainer)
    trainer.train()
    counts = [sum(first == second for first, second in pairs) for pairs in batches.pairs]
    assert set(counts) == {same} if same is not None else len(set(counts)) > 1
    assert all(np.unique(labels, return_counts=True)[1].tolist() == [2, 2, 2] for labels in batches.labels)


@pytest.mark.parametrize("kwargs", [{}, {"gradient_accumulation_steps": 2, "save_steps": 2}])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, make_trainer, kwargs):
    """Killed in the middle of the second epoch, with augmentation and stochastic depth; equal bit for bit."""
    model_kwargs = {"drop_path_rate": 0.3}
    uninterrupted = make_trainer(tmp_path / "uninterrupted", model_kwargs=model_kwargs, **kwargs)
    uninterrupted.train()

    killed_at = 8 if kwargs else 14
    killed = make_trainer(tmp_path / "killed", model_kwargs=model_kwargs, **kwargs)
    train_until_killed(killed, killed_at)
    resumed = make_trainer(tmp_path / "killed", model_kwargs=model_kwargs, **kwargs)
    batches = Batches(resumed)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "killed"))

    assert resumed.state.global_step == uninterrupted.state.global_step
    assert 0 < len(batches.labels) < 27
    assert_same_weights(uninterrupted.model.state_dict(), resumed.model.state_dict())


def test_evaluation_equals_metrics_of_embeddings_computed_one_by_one(tmp_path, make_trainer, dataset, caplog):
    trainer = make_trainer(tmp_path)
    with caplog.at_level(logging.WARNING):
        metrics = trainer.evaluate()
    assert caplog.records == []
    query, gallery = (embed(trainer.model.eval(), dataset[name]) for name in ("query", "gallery"))
    np.testing.assert_allclose(trainer.embeddings["gallery"], gallery, atol=1e-6)

    expected = retrieval_metrics(query, gallery, **protocol(dataset))
    assert_metrics(metrics, expected, "eval_")
    assert metrics["eval_num_queries"] == 15 and metrics["eval_num_skipped"] == 0
    for part, name in ((slice(0, 16), "sa"), (slice(16, 32), "glca")):
        halves = (torch.nn.functional.normalize(features[:, part]) for features in (query, gallery))
        assert_metrics(metrics, retrieval_metrics(*halves, **protocol(dataset)), f"eval_{name}_")
    assert not any(name.startswith("eval_reranked") for name in metrics)


def test_flip_expansion_and_reranking_against_their_definitions(tmp_path, make_trainer, dataset):
    trainer = make_trainer(
        tmp_path, flip_tta=True, query_expansion=3, query_expansion_alpha=2.0, rerank=True
    )
    metrics = trainer.evaluate()
    timing = {"eval_runtime", "eval_samples_per_second", "epoch"}
    assert {f"eval_{name}" for name in trainer.evaluation_metrics()} == metrics.keys() - timing
    sides = {}
    for name in ("query", "gallery"):
        both = [embed(trainer.model.eval(), dataset[name], flip) for flip in (False, True)]
        sides[name] = torch.nn.functional.normalize(sum(both)).double().numpy()
    expanded = []
    for vector in sides["query"]:
        similarities = sides["gallery"] @ vector
        nearest = np.argsort(-similarities)[:3]
        mean = vector + sum(similarities[i].clip(0) ** 2 * sides["gallery"][i] for i in nearest)
        expanded.append(mean / np.linalg.norm(mean))
    query, gallery = np.array(expanded, dtype=np.float32), sides["gallery"].astype(np.float32)
    assert_metrics(metrics, retrieval_metrics(query, gallery, **protocol(dataset)), "eval_")
    assert_metrics(metrics, distance_metrics(rerank(query, gallery), **protocol(dataset)), "eval_reranked_")


def test_plain_expansion_is_the_mean_and_keeps_lengths():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(300, 6)), rng.normal(size=(50, 6))
    expanded = expand_queries(query, gallery, 4).numpy()
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    for before, after in zip(query, expanded):
        mean = (before + gallery[np.argsort(-unit @ before)[:4]].sum(axis=0)) / 5
        np.testing.assert_allclose(after, mean * np.linalg.norm(before) / np.linalg.norm(mean))


@pytest.mark.parametrize("arguments", [(0,), (6,), (2, -1.0)])
def test_invalid_expansion_raises_a_clear_error(arguments):
    with pytest.raises(ValueError, match="takes from 1 to 5 gallery items, and an alpha of at least 0"):
        expand_queries(np.eye(5), np.eye(5), *arguments)


def test_unnormalised_embeddings_are_not_normalised_for_search(tmp_path, make_trainer, dataset):
    model_kwargs = {"normalize_embeddings": False, "inference_branches": ["sa"], "neck_feature": "after"}
    trainer = make_trainer(tmp_path, model_kwargs=model_kwargs)
    torch.nn.init.uniform_(trainer.model.dcal.necks["sa"].weight)
    metrics = trainer.evaluate(metric_key_prefix="test")
    query, gallery = (embed(trainer.model.eval(), dataset[name]) for name in ("query", "gallery"))
    assert query.norm(dim=1).std() > 1e-3
    assert_metrics(metrics, retrieval_metrics(query, gallery, **protocol(dataset)), "test_")
    assert not any(name.startswith("test_sa_") for name in metrics)


def test_without_cameras_only_the_query_itself_is_ignored(tmp_path, make_trainer, dataset):
    """The gallery contains every query, and another image of some individuals."""
    query = dataset["query"].remove_columns("camera_id")
    gallery = Dataset.from_list(query.to_list(), features=query.features)
    columns = protocol_columns(query, gallery)
    assert columns["query_images"] == columns["gallery_images"] and len(set(columns["query_images"])) == 15
    assert "query_cameras" not in columns
    trainer = make_trainer(tmp_path)
    sets = {"query": query, "gallery": gallery}
    metrics = trainer.evaluate({name: part.with_transform(EvalTransform(PROCESSOR)) for name, part in sets.items()})
    rows = np.arange(15)
    features = embed(trainer.model.eval(), query)
    ids = query["identity"][:]
    expected = retrieval_metrics(features, features, ids, ids, query_images=rows, gallery_images=rows)
    assert_metrics(metrics, expected, "eval_")


def test_the_checkpoint_with_the_best_map_is_restored(tmp_path, make_trainer):
    remember = RememberSaved()
    trainer = make_trainer(
        tmp_path, [remember], max_steps=6, save_steps=2, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True,
    )
    trainer.score = lambda sets, maps=iter([0.1, 0.9, 0.5]): {"map": next(maps)}
    trainer.train()
    assert trainer.state.best_metric == 0.9
    assert_same_weights(trainer.model.state_dict(), remember.weights[4])


def test_workers_of_an_evaluation_end_with_it(tmp_path, make_trainer):
    """Also persistent ones: accelerate holds every dataloader, so that each evaluation would add workers."""
    arguments = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer, before = make_trainer(tmp_path, **arguments), multiprocessing.active_children()
    assert trainer.evaluate()["eval_map"] == make_trainer(tmp_path).evaluate()["eval_map"]
    assert set(multiprocessing.active_children()) <= set(before)


def test_only_dataloaders_that_are_used_again_keep_their_workers(tmp_path, make_trainer, dataset):
    trainer = make_trainer(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    assert trainer.get_train_dataloader().persistent_workers
    assert trainer.get_eval_dataloader("query") is trainer.get_eval_dataloader("query")
    assert trainer.get_eval_dataloader("query").persistent_workers
    assert not trainer.get_test_dataloader(dataset["query"]).persistent_workers


def test_training_needs_identities(tmp_path, make_trainer, dataset):
    trainer = make_trainer(tmp_path)
    trainer.labelled_dataset = dataset["train"].remove_columns("label")
    with pytest.raises(ValueError, match="^DCALReIDTrainer needs the class of every training image: give"):
        trainer.get_train_dataloader()


def test_evaluation_needs_query_and_gallery(tmp_path, make_trainer, dataset):
    with pytest.raises(ValueError, match="Evaluation needs eval_dataset="):
        make_trainer(tmp_path).evaluate(dataset["query"])
