import ast
import importlib.metadata
import math
import os

import numpy as np
import pytest
from huggingface_hub import ModelCard

import dcal_hf
from dcal_hf import model_card
from dcal_hf.model_card import ModelCardFacts, framework_versions, write_model_card


METRICS = {
    "accuracy": np.float64(0.846), "top5_accuracy": 0.9712, "class_mean_accuracy": 0.8444,
    "sa_accuracy": 0.843, "sa_top5_accuracy": 0.9701, "sa_class_mean_accuracy": 0.8411,
    "glca_accuracy": np.float32(0.8125), "glca_top5_accuracy": 0.9695, "glca_class_mean_accuracy": 0.83,
}
FACTS = {
    "model_name": "someone/dcal-deit-tiny-cub",
    "dataset": "CUB-200-2011",
    "metrics": METRICS,
    "hyperparameters": {"learning rate": 5e-4, "betas": (0.9, 0.999), "a|b": "first\nsecond"},
    "data": {"Training images": 5994, "Validation images": 5794, "Classes": 200, "Split seed": 42},
}
HUB = {
    "base_model": "facebook/deit-tiny-patch16-224",
    "dataset_id": "someone/cub200",
    "dataset_split": "test",
}


def written(path, **facts):
    return ModelCard.load(write_model_card(path, ModelCardFacts(**{**FACTS, **facts})))


def section(card, title):
    return card.text.split(f"\n## {title}\n\n")[1].split("\n## ")[0].strip()


def table(card, title):
    lines = [line for line in section(card, title).splitlines() if line.startswith("|")]
    head, rule, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert rule == ["---"] * len(head)
    return head, rows


def test_header(tmp_path):
    header = written(tmp_path, license="apache-2.0", **HUB).data.to_dict()
    header.pop("model-index")
    assert header == {
        "base_model": "facebook/deit-tiny-patch16-224",
        "datasets": ["someone/cub200"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "metrics": ["accuracy", "top5_accuracy", "class_mean_accuracy"],
        "pipeline_tag": "image-classification",
        "tags": ["dcal", "fine-grained", "vision-transformer"],
    }


def test_results_in_the_metadata(tmp_path):
    data = written(tmp_path, **HUB).data
    assert data.model_name == "someone/dcal-deit-tiny-cub"
    found = [(result.metric_name, result.metric_type, result.metric_value) for result in data.eval_results]
    assert found == [
        ("Top-1 (SA)", "accuracy", 0.843),
        ("Top-5 (SA)", "top5_accuracy", 0.9701),
        ("Class mean (SA)", "class_mean_accuracy", 0.8411),
        ("Top-1 (GLCA)", "accuracy", 0.8125),
        ("Top-5 (GLCA)", "top5_accuracy", 0.9695),
        ("Class mean (GLCA)", "class_mean_accuracy", 0.83),
        ("Top-1 (SA + GLCA)", "accuracy", 0.846),
        ("Top-5 (SA + GLCA)", "top5_accuracy", 0.9712),
        ("Class mean (SA + GLCA)", "class_mean_accuracy", 0.8444),
    ]
    for result in data.eval_results:
        assert (result.task_type, result.dataset_name) == ("image-classification", "CUB-200-2011")
        assert (result.dataset_type, result.dataset_split) == ("someone/cub200", "test")


def test_results_in_the_table(tmp_path):
    card = written(tmp_path, **HUB)
    assert table(card, "Results") == (
        ["Branch", "Top-1", "Top-5", "Class mean"],
        [
            ["SA", "84.30", "97.01", "84.11"],
            ["GLCA", "81.25", "96.95", "83.00"],
            ["SA + GLCA", "84.60", "97.12", "84.44"],
        ],
    )
    assert section(card, "Results").startswith("All results are in %, on CUB-200-2011, test.")


def test_data_and_settings(tmp_path):
    card = written(tmp_path, **HUB)
    assert table(card, "Data")[1] == [
        ["Data set", "[CUB-200-2011](https://huggingface.co/datasets/someone/cub200)"],
        ["Training images", "5994"],
        ["Validation images", "5794"],
        ["Classes", "200"],
        ["Split seed", "42"],
    ]
    base = "facebook/deit-tiny-patch16-224"
    assert table(card, "Training")[1] == [
        ["base model", f"[{base}](https://huggingface.co/{base})"],
        ["learning rate", "0.0005"],
        ["betas", "(0.9, 0.999)"],
        ["a\\|b", "first second"],
    ]


def test_versions(tmp_path):
    rows = dict(table(written(tmp_path), "Versions")[1])
    assert list(rows) == ["dcal_hf", "torch", "transformers", "datasets", "accelerate", "timm"]
    assert rows["torch"] == importlib.metadata.version("torch")
    assert rows["transformers"] == importlib.metadata.version("transformers")


def test_missing_package_is_listed(monkeypatch):
    monkeypatch.setattr(model_card, "PACKAGES", ("torch", "no-such-package"))
    versions = framework_versions()
    assert versions == {
        "dcal_hf": dcal_hf.__version__,
        "torch": importlib.metadata.version("torch"),
        "no-such-package": "not installed",
    }


@pytest.mark.parametrize("task", ["image-classification", "image-feature-extraction"])
def test_usage_does_not_need_dcal_hf(tmp_path, task):
    """`tests/test_hub.py` runs it."""
    metrics = {prefix + key: 0.5 for prefix in ("", "sa_", "glca_") for key in model_card.COLUMNS[task].values()}
    usage = section(written(tmp_path, task=task, metrics=metrics), "How to use")
    code, words = usage.removeprefix("```python\n").split("\n```\n")
    compile(code, "usage", "exec")
    assert len([line for line in code.splitlines() if line]) <= 5
    assert f'pipeline("{task}", model="someone/dcal-deit-tiny-cub"' in code
    assert "import dcal_hf" not in code and "trust_remote_code" in code
    assert "saved with the weights" in words


@pytest.mark.parametrize("task", ["image-classification", "image-feature-extraction"])
def test_the_usage_registers_an_encoder_that_dcal_hf_does_not_have(tmp_path, task):
    metrics = {prefix + key: 0.5 for prefix in ("", "sa_", "glca_") for key in model_card.COLUMNS[task].values()}
    usage = section(written(tmp_path, task=task, metrics=metrics, registered_encoder="vit_msn"), "How to use")
    code, words = usage.removeprefix("```python\n").split("\n```\n")
    compile(code, "usage", "exec")
    assert 'dcal_hf.register_encoder("vit_msn", ' in code and "trust_remote_code" not in usage
    assert "--register" in words


@pytest.mark.parametrize("name", ["my \"best\" model", "c:\\birds", "two\nlines", "\u9ce5"])
def test_the_usage_names_the_folder_of_any_name(tmp_path, name):
    usage = section(written(tmp_path, model_name=name), "How to use")
    calls = [node for node in ast.walk(ast.parse(usage.split("```")[1].removeprefix("python\n")))
             if isinstance(node, ast.keyword) and node.arg == "model"]
    assert [call.value.value for call in calls] == [name]


def test_paper_is_cited(tmp_path):
    citation = section(written(tmp_path), "Citation")
    for fact in ("{Zhu, Haowei and", "4692--4702", "{2022}", "(CVPR)", "arxiv.org/abs/2205.02151"):
        assert fact in citation
    title = "Dual Cross-Attention Learning for Fine-Grained Visual Categorization and Object Re-Identification"
    assert f"title     = {{{title}}}" in citation
    assert citation.count("{") == citation.count("}")


def test_model_from_scratch_on_local_data(tmp_path):
    card = written(tmp_path)
    header = card.data.to_dict()
    assert "base_model" not in header and "datasets" not in header
    assert {result.dataset_type for result in card.data.eval_results} == {"CUB-200-2011"}
    assert table(card, "Training")[1][0] == ["base model", "none, trained from scratch"]
    assert table(card, "Data")[1][0] == ["Data set", "CUB-200-2011"]


@pytest.mark.parametrize("relative", [False, True])
def test_local_base_model_does_not_reveal_its_path(tmp_path, monkeypatch, relative):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private" / "deit").mkdir(parents=True)
    base_model = "private/deit" if relative else str(tmp_path / "private" / "deit")
    card = written(tmp_path, base_model=base_model)
    assert "base_model" not in card.data.to_dict()
    assert table(card, "Training")[1][0] == ["base model", "deit"]
    assert "private" not in card.content


def test_no_licence_is_claimed_by_default(tmp_path):
    assert "license" not in written(tmp_path).data.to_dict()
    assert written(tmp_path, license="cc-by-nc-4.0").data.license == "cc-by-nc-4.0"


def test_a_layout_is_not_the_data_set(tmp_path):
    card = written(tmp_path, dataset="omniglot-reid", dataset_layout="market1501", dataset_split="query")
    results = section(card, "Results")
    assert results.startswith("All results are in %, on omniglot-reid (in the layout of market1501), query.\n\n|")
    assert table(card, "Data")[1][:2] == [["Data set", "omniglot-reid"], ["layout", "market1501"]]
    assert {result.dataset_name for result in card.data.eval_results} == {"omniglot-reid"}


def test_selecting_the_epoch_on_the_evaluated_images_is_mentioned(tmp_path):
    words = section(written(tmp_path, chosen_by="accuracy", **HUB), "Results")
    first = "All results are in %, on CUB-200-2011, test."
    assert words.startswith(f"{first}\nThe best epoch was selected by Top-1 on the same images")
    assert "selected by loss on" in section(written(tmp_path, chosen_by="eval_loss", **HUB), "Results")
    assert "selected" not in section(written(tmp_path, **HUB), "Results")


def test_the_card_of_an_evaluation_tells_nothing_about_the_training(tmp_path):
    card = written(tmp_path, hyperparameters={})
    assert section(card, "Training").startswith("This run only evaluated the model. The model's own card describes")
    assert "from scratch" not in card.text and "branches that this model was trained with" not in card.text


def test_a_model_from_scratch_has_no_terms_of_a_base_model(tmp_path):
    terms = [section(written(tmp_path, **facts), "Limitations") for facts in ({}, {"base_model": HUB["base_model"]})]
    assert ["base model" in text for text in terms] == [False, True]


def test_reid_card(tmp_path):
    keys = ("map", "rank1", "rank5", "rank10", "minp", "r_precision", "map_at_r")
    values = {"": (0.875, 0.947, 0.96, 0.97, 0.5, 0.6, 0.55), "sa_": (0.87, 0.943, 0.95, 0.96, 0.4, 0.3, 0.25)}
    card = written(
        tmp_path,
        task="image-feature-extraction",
        metrics={prefix + key: value for prefix, row in values.items() for key, value in zip(keys, row)},
        branches={"SA": "sa_", "SA + GLCA": ""},
        evaluation="- Protocol: {as is}.",
        license="mit",
    )
    header = card.data.to_dict()
    assert (header["pipeline_tag"], header["license"]) == ("image-feature-extraction", "mit")
    assert header["tags"] == ["dcal", "re-identification", "image-retrieval", "vision-transformer"]
    assert header["metrics"] == list(keys)
    assert table(card, "Results") == (
        ["Branch", "mAP", "Rank-1", "Rank-5", "Rank-10", "mINP", "R-precision", "MAP@R"],
        [
            ["SA", "87.00", "94.30", "95.00", "96.00", "40.00", "30.00", "25.00"],
            ["SA + GLCA", "87.50", "94.70", "96.00", "97.00", "50.00", "60.00", "55.00"],
        ],
    )
    assert [result.metric_value for result in card.data.eval_results] == [*values["sa_"], *values[""]]
    assert {result.task_type for result in card.data.eval_results} == {"image-feature-extraction"}
    assert "Searching for people affects their rights" in section(card, "Limitations")
    assert section(card, "Evaluation") == "- Protocol: {as is}."


def test_custom_template(tmp_path):
    text = "---\n{{ card_data }}\n---\n# {{ facts.model_name }} for {{ where }}\n{{ results }}"
    (tmp_path / "own.md").write_text(text)
    path = write_model_card(tmp_path, ModelCardFacts(**FACTS), tmp_path / "own.md")
    assert ModelCard.load(path).text.startswith("# someone/dcal-deit-tiny-cub for CUB-200-2011\n| Branch |")


def test_prefixed_metrics_of_one_branch(tmp_path):
    metrics = {f"eval_{name}": METRICS[name] for name in ("accuracy", "top5_accuracy", "class_mean_accuracy")}
    card = written(tmp_path, metrics={**metrics, "eval_loss": math.nan}, branches={"SA": "eval_"})
    assert table(card, "Results")[1] == [["SA", "84.60", "97.12", "84.44"]]


def test_missing_metric_is_named(tmp_path):
    with pytest.raises(ValueError, match="needs the metrics sa_accuracy, .*, got accuracy"):
        ModelCardFacts(**{**FACTS, "metrics": {"accuracy": 0.5}})


def test_card_is_replaced_atomically(tmp_path, monkeypatch):
    folder = tmp_path / "new" / "model"
    path = write_model_card(folder, ModelCardFacts(**FACTS))
    assert path == folder / "README.md"
    first = path.read_text()
    write_model_card(folder, ModelCardFacts(**{**FACTS, "model_name": "Möwe: #1"}))
    assert os.listdir(folder) == ["README.md"]
    assert ModelCard.load(path).data.model_name == "Möwe: #1"

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_model_card(folder, ModelCardFacts(**FACTS))
    assert ModelCard.load(path).data.model_name == "Möwe: #1"
    assert "Möwe" not in first
