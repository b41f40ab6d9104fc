"""Trainer for re-identification: identity-balanced batches, TransReID's schedule, evaluation on query and gallery."""

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer_utils import speed_metrics

from ..data.columns import protocol_columns
from ..metrics.open_set import gallery_threshold, open_set_metrics
from ..metrics.retrieval import distance_metrics, retrieval_metrics
from ..retrieval.embedding import embed_batch
from ..retrieval.query_expansion import expand_queries
from .class_balance import read_labels
from .parameter_groups import parameter_groups
from .processes import on_main_process
from .reid_training_args import DCALReIDTrainingArguments
from .samplers import IdentityBalancedSampler
from .trainer import DCALTrainer


MOMENTUM = 0.9
BIAS_FACTOR = 2
WARMUP_EPOCHS = 5
FIRST_FACTOR = 0.01
LAST_FACTOR = 0.002


class DCALReIDTrainer(DCALTrainer):
    """[`DCALTrainer`] for [`DCALForReID`].

    Args:
        model (`DCALForReID`)
        args (`DCALReIDTrainingArguments`)
        train_dataset (`datasets.Dataset`, *optional*):
            Has a column label (identities from 0) and a transform that returns `pixel_values` and `labels`.
        eval_dataset (`dict` of `datasets.Dataset`, *optional*):
            `{"query": ..., "gallery": ...}`, each with the columns image, identity and, if known, camera_id, and a
            transform that returns `pixel_values`.
        kwargs: As in `transformers.Trainer`.

    Attributes:
        embeddings (`dict` of `np.ndarray` of shape `(N, dim)`): Query and gallery embeddings of the last evaluation.
    """

    args: DCALReIDTrainingArguments
    args_class = DCALReIDTrainingArguments

    def __init__(
        self,
        model: nn.Module | None = None,
        args: DCALReIDTrainingArguments | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: dict[str, Dataset] | None = None,
        **kwargs: Any,
    ):
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self.embeddings: dict[str, np.ndarray] = {}

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> IdentityBalancedSampler:
        sampler = IdentityBalancedSampler(
            self.training_labels(),
            self._train_batch_size,
            self.args.instances_per_identity,
            self.data_seed,
            batches_per_step=self.args.world_size * self.args.gradient_accumulation_steps,
            pair_sampling=self.pair_sampling,
        )
        self.listeners["sampler"] = sampler
        return sampler

    def training_labels(self) -> np.ndarray:
        """The identity of each training image (N,), read without the transform.

        Raises:
            ValueError: If the data set has no label column.
        """
        return read_labels(self.labelled_dataset, type(self).__name__)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Creates TransReID's SGD with twice the learning rate for biases, or the optimiser of the arguments."""
        if self.args.schedule == "trainer":
            return super().create_optimizer(model)
        if self.optimizer is None:
            model = self.model if model is None else model
            names = [name for name, _ in model.named_parameters()]
            kinds = {name: "bias" for name in names if name.endswith("bias")}
            kinds |= {name: "log_vars" for name in names if name.endswith("log_vars")}
            rate = self.args.learning_rate
            self.optimizer = torch.optim.SGD(
                [
                    {
                        "params": group.parameters,
                        "lr": group.scale * rate * (BIAS_FACTOR if group.kind == "bias" else 1),
                        "weight_decay": 0.0 if group.kind == "log_vars" else self.args.weight_decay,
                    }
                    for group in parameter_groups(model, kinds, self.args.layer_decay)
                ],
                lr=rate,
                momentum=MOMENTUM,
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Creates TransReID's schedule, with one learning rate per epoch (1 / `num_train_epochs` of the steps), or the
        scheduler of the arguments.
        """
        if self.args.schedule == "trainer":
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            factor = partial(_factor_of_step, num_steps=num_training_steps, num_epochs=self.args.num_train_epochs)
            self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor, None]:
        """Embeddings (B, dim), float32."""
        pixel_values, batch_size = self._prepare_inputs(inputs)["pixel_values"], self.args.eval_batch_size
        with self.compute_loss_context_manager():
            embeddings = embed_batch(model, pixel_values, batch_size)
            if self.args.flip_tta:
                embeddings = self.normalized((embeddings + embed_batch(model, pixel_values.flip(-1), batch_size)) / 2)
        return None, embeddings, None

    def evaluate(
        self,
        eval_dataset: dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Embeds query and gallery on all processes, and scores them on the first.

        Args:
            eval_dataset (`dict` of `datasets.Dataset`, *optional*): Replaces the `eval_dataset` of the trainer.
            metric_key_prefix (`str`): Prefix of the metric names.

        Returns:
            `dict[str, float]`: the metrics of [`score`], and the runtime.

        Raises:
            ValueError: If query or gallery is missing, or no query can be scored.
        """
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(sets, dict) or set(sets) != {"query", "gallery"}:
            raise ValueError('Evaluation needs eval_dataset={"query": ..., "gallery": ...}.')
        self._memory_tracker.start()
        start = time.time()
        self.embeddings = {name: self.embed(dataset, name) for name, dataset in sets.items()}
        scores = on_main_process(lambda: self.score(sets))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        metrics.update(speed_metrics(metric_key_prefix, start, num_samples=sum(map(len, sets.values()))))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def embed(self, dataset: Dataset, description: str = "Embedding") -> np.ndarray:
        """Embeddings (N, dim) of a data set in order, on every process."""
        if self.args.world_size > 1:
            # The running statistics of the necks differ between processes after a step; those of the first are saved.
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        # The Trainer may cache the evaluation dataloader, and would then return that of the other set.
        loader = self.get_test_dataloader(dataset)
        embeddings = self.evaluation_loop(loader, description, prediction_loss_only=False).predictions
        # Otherwise the progress bar of the queries would count the gallery, too.
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, {})
        return embeddings

    def score(self, sets: dict[str, Dataset]) -> dict[str, float | int]:
        """Scores the last embeddings.

        Returns the metrics of the full embedding, `map`, ...; if it has two branches, those of each branch, `sa_map`
        and `glca_map`, ...; with `rerank` those of the re-ranked full embedding, `reranked_map`, ...; and with
        `open_set` those of [`~dcal_hf.metrics.open_set_metrics`] and `open_set_threshold`. Thresholds, true positive
        rates, open-set metrics and numbers of queries are those of the full embedding only.
        """
        columns = protocol_columns(sets["query"], sets["gallery"])
        parts = self.branch_parts()
        metrics = retrieval_metrics(*parts[""], **columns)
        for prefix, part in parts.items():
            if prefix:
                metrics |= _ranking(prefix, retrieval_metrics(*part, **columns, fprs=()))
        if self.args.rerank:
            from ..retrieval.reranking import rerank  # imports faiss

            metrics |= _ranking("reranked_", distance_metrics(rerank(*parts[""]), **columns, fprs=()))
        return metrics | self.score_open_set(*parts[""], columns) if self.args.open_set else metrics

    def score_open_set(self, query: Tensor, gallery: Tensor, columns: dict[str, list]) -> dict[str, float | int]:
        """Scores which queries are of new individuals; `columns` are those of [`protocol_columns`]."""
        threshold, gallery_ids = self.args.open_set_threshold, columns["gallery_ids"]
        if threshold is None:
            threshold = gallery_threshold(gallery.cpu().numpy(), gallery_ids, columns.get("gallery_cameras"))
        metrics = open_set_metrics(query, gallery, columns["query_ids"], gallery_ids, threshold)
        return metrics | {"open_set_threshold": threshold}

    def evaluation_metrics(self) -> list[str]:
        return reid_metric_names(self.model.config.inference_branches, self.args.rerank, self.args.open_set)

    def branch_parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Query and gallery features of the full embedding (key `""`) and, if it has two branches, of each branch."""
        both = [torch.from_numpy(self.embeddings[name]).to(self.args.device) for name in ("query", "gallery")]
        parts, branches = {"": tuple(both)}, self.model.config.inference_branches
        if len(branches) > 1:
            chunks = [features.chunk(len(branches), dim=1) for features in both]
            parts |= {f"{name}_": tuple(map(self.normalized, part)) for name, *part in zip(branches, *chunks)}
        if self.args.query_expansion == 0:
            return parts
        k, alpha = self.args.query_expansion, self.args.query_expansion_alpha
        return {name: (expand_queries(*part, k, alpha), part[1]) for name, part in parts.items()}

    def normalized(self, embeddings: Tensor) -> Tensor:
        """Normalises embeddings (N, dim) to length 1 if the model does so."""
        return nn.functional.normalize(embeddings) if self.model.config.normalize_embeddings else embeddings


def reid_metric_names(branches: Sequence[str], rerank: bool, open_set: bool) -> list[str]:
    """Names of the metrics of an evaluation with these inference branches, found by scoring two images."""
    images, ids = torch.eye(2), [0, 1]
    metrics = retrieval_metrics(images, images, ids, ids)
    prefixes = [f"{name}_" for name in branches if len(branches) > 1] + ["reranked_"] * rerank
    ranking = retrieval_metrics(images, images, ids, ids, fprs=())
    names = [*metrics, *(name for prefix in prefixes for name in _ranking(prefix, ranking))]
    if open_set:
        names += [*open_set_metrics(images, images, [0, 2], ids, 1.0), "open_set_threshold"]
    return names


def transreid_factor(epoch: int, num_epochs: float) -> float:
    """Factor of TransReID's learning rate in an epoch, counted from 1.

    Linear warm-up from 1 % over 5 epochs, then a cosine over *all* epochs, not shifted by the warm-up, down to 0.2 %
    (`solver/scheduler_factory.py` of https://github.com/damo-cv/TransReID).
    """
    if epoch < WARMUP_EPOCHS:
        return FIRST_FACTOR + (1 - FIRST_FACTOR) * epoch / WARMUP_EPOCHS
    return LAST_FACTOR + (1 - LAST_FACTOR) * (1 + math.cos(math.pi * min(epoch / num_epochs, 1))) / 2


def _factor_of_step(step: int, num_steps: int, num_epochs: float) -> float:
    return transreid_factor(int(step * num_epochs / num_steps) + 1, num_epochs)


def _ranking(prefix: str, metrics: dict[str, float | int]) -> dict[str, float]:
    return {prefix + name: value for name, value in metrics.items() if not name.startswith("num_")}


__all__ = ["DCALReIDTrainer", "reid_metric_names", "transreid_factor"]
