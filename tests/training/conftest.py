from collections.abc import Callable

import pytest
import torch

from dcal_hf import DCALForImageClassification, DCALTrainer, DCALTrainingArguments
from dcal_hf.metrics import ClassificationMetrics

from helpers import branches_for


@pytest.fixture
def make_trainer() -> Callable[..., DCALTrainer]:
    """Creates a trainer of a tiny classifier with all branches that its encoder supports."""

    def make(
        output_dir, config, model_kwargs=None, *, train_dataset, eval_dataset, processing_class=None, callbacks=(),
        **arguments,
    ) -> DCALTrainer:
        torch.manual_seed(0)
        model_kwargs = {"num_labels": 3, **branches_for(config), **(model_kwargs or {})}
        model = DCALForImageClassification.from_backbone(config, **model_kwargs)
        arguments = {"per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True, **arguments}
        return DCALTrainer(
            model,
            DCALTrainingArguments(str(output_dir), **arguments),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=ClassificationMetrics(("both", *model.config.inference_branches)),
            callbacks=list(callbacks),
        )

    return make
