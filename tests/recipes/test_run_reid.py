"""The recipe with a command line and a folder in Market-1501's layout, and the files it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from PIL import Image
from transformers import AutoConfig, AutoModel, ViTConfig, ViTImageProcessor, ViTModel

from dcal_hf import DCALConfig, DCALForReID

from helpers import TINY_SIZES
from processes import run_script
from reid_runs import TINY, config_file, make_market, save_noise


ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "run_reid.py"
RANKS = ("map", "map_trapezoid", "minp", "rank1", "rank5", "rank10")


@pytest.fixture
def recipe(import_recipe):
    return import_recipe("run_reid")


@pytest.fixture
def run_main(run_recipe):
    def run(tmp_path: Path, *arguments: str, **options: object) -> None:
        run_recipe("run_reid", config_file(tmp_path, **options), *arguments)

    return run


@pytest.fixture
def untrained(tmp_path, recipe) -> Path:
    """A saved model with random weights."""
    torch.manual_seed(0)
    types = (recipe.ReIDModelArguments,)
    size = ["--image_size", "16", "8"]
    (model_args,) = recipe.parse_arguments(types, ["--backbone_config", json.dumps(TINY), *size])
    model, processor = recipe.load_model(DCALForReID, recipe.reid_processor, model_args, list("abcd"))
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_arcface_is_an_option_of_the_model(tmp_path, recipe):
    arguments = ["--identity_loss", "arcface", "--arcface_subcenters", "2", "--arcface_margin", "0.3"]
    model_args = recipe.parse_arguments(recipe.ARGUMENTS, [config_file(tmp_path), *arguments])[0]
    model, _ = recipe.load_model(DCALForReID, recipe.reid_processor, model_args, list("abcd"))
    config = model.config
    assert (config.identity_loss, config.arcface_subcenters, config.arcface_margin) == ("arcface", 2, 0.3)
    assert model.classifiers["sa"].weight.shape == (4 * 2, TINY["hidden_size"])


def test_train_and_evaluate(tmp_path):
    market = make_market(tmp_path / "market_c3")
    evaluation = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    config = config_file(
        tmp_path, data_dir=str(market), num_train_epochs=2, ranked_queries=3, ranked_matches=4, logging_steps=1,
        license="cc-by-4.0", affine=7, **evaluation,
    )
    run = run_script(RECIPE, config, "--do_train", "--do_eval", "--rerank")
    assert "PWCA" in run.stdout
    out = tmp_path / "out"

    results = read_json(out / "all_results.json")
    assert {f"eval_{part}{name}" for part in ("", "sa_", "glca_", "reranked_") for name in RANKS} <= set(results)
    assert (results["eval_num_queries"], results["eval_num_skipped"], results["train_samples"]) == (4, 1, 24)
    state = read_json(out / "trainer_state.json")
    assert state["best_metric"] == results["eval_map"] == max(
        log["eval_map"] for log in state["log_history"] if "eval_map" in log
    )

    card = ModelCard.load(out / "README.md")
    reported = {(result.metric_name, result.metric_value) for result in card.data.eval_results}
    assert ("mAP (SA + GLCA)", results["eval_map"]) in reported
    assert ("Rank-1 (SA + GLCA, re-ranked)", results["eval_reranked_rank1"]) in reported
    for fact in (
        "| train images, identities | 24, 4 |", "| gallery images, identities | 21, 4 |", "| market_c3/query |",
        "4; excluded: 1 without a match in the gallery", '"step" AP', "before the BatchNorm neck, L2-normalised",
        "on market_c3 (in the layout of market1501), query", "The best epoch was selected by mAP on the same images",
        "gallery items with the identity and camera of the query, as in Market-1501.", "k-reciprocal, k1 20",
        "| image size | 16 x 8 |", "| schedule | TransReID's, per epoch |", "| affine | 7.0 |",
    ):
        assert fact in card.text
    assert str(tmp_path) not in card.text and card.data.license == "cc-by-4.0"
    with Image.open(out / "ranked_lists.jpg") as picture:
        assert min(picture.size) > 100
    processor = read_json(out / "preprocessor_config.json")
    assert processor["size"] == {"height": 16, "width": 8} and not processor["do_center_crop"]
    assert AutoModel.from_pretrained(out).config.label2id == {"1": 0, "2": 1, "3": 2, "4": 3}


def test_evaluating_a_checkpoint_on_another_data_set(tmp_path, run_main, untrained, monkeypatch, capsys):
    lists = {}
    monkeypatch.setattr("dcal_hf.visualization.ranked_list", lambda *args, **kwargs: lists.update(kwargs) or Figure())
    source = {"backbone_config": None, "image_size": None, "model_name_or_path": str(untrained)}
    source |= {"ranked_queries": 9, "ranked_matches": 3}
    run_main(tmp_path, "--do_eval", data_dir=str(make_market(tmp_path / "other", first=40)), **source)
    results = read_json(tmp_path / "out" / "all_results.json")
    assert results["eval_num_queries"] == 4 and not (tmp_path / "out" / "model.safetensors").exists()
    assert 0 < results["eval_map"] < 1 and f"dcal embed --model_name_or_path {untrained} " in capsys.readouterr().out
    # The figure shows the same results, without junk.
    assert [title.partition("\n")[0] for title in lists["query_title"]] == ["44", "45", "46", "130"]
    assert lists["query_title"][3] == "130\nno match in the gallery"
    assert {name for row in lists["titles"] for name in row} <= {"44", "45", "46", "distractor"}
    ranks = [
        int(title.partition("\nfirst match: rank ")[2] or 1 + marks.index(True))
        for title, marks in zip(lists["query_title"][:3], lists["correct"])
    ]
    for rank in (1, 5, 10):
        assert np.mean([found <= rank for found in ranks]) == pytest.approx(results[f"eval_rank{rank}"])
    assert any("rank" in title for title in lists["query_title"]), "the seed finds every match at once"


def test_two_processes_resume_and_evaluate_like_one(tmp_path, run_main):
    options = {"data_dir": str(make_market(tmp_path / "market")), "save_steps": 1, "num_train_epochs": 2}
    # Embeddings after the neck, whose running means must be the same in all processes.
    options |= {"neck_feature": "after", "flip_tta": True, "rerank": True}
    run_script(RECIPE, config_file(tmp_path, **options), "--do_train", processes=2)
    uninterrupted = (tmp_path / "out" / "model.safetensors").read_bytes()
    for step in (5, 6):  # as if killed after the first step of the second epoch
        (tmp_path / "out" / f"checkpoint-{step}" / "trainer_state.json").unlink()
    (tmp_path / "out" / "model.safetensors").unlink()
    arguments = ["--do_train", "--do_eval", "--resume_from_checkpoint", "last"]
    run_script(RECIPE, config_file(tmp_path, **options), *arguments, processes=2)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == uninterrupted

    source = {"backbone_config": None, "image_size": None, "model_name_or_path": str(tmp_path / "out")}
    run_main(tmp_path, "--do_eval", "--output_dir", str(tmp_path / "alone"), **options, **source)
    both, alone = (read_json(tmp_path / folder / "eval_results.json") for folder in ("out", "alone"))
    timing = {"eval_runtime", "eval_samples_per_second", "epoch"}
    assert both.keys() - timing == alone.keys() - timing and "eval_reranked_map" in alone
    assert {name: both[name] for name in alone if name not in timing} == {
        name: value for name, value in alone.items() if name not in timing
    }


def test_a_custom_folder_with_the_trainers_schedule(tmp_path, run_main):
    for identity in range(8):
        for number in range(5):
            save_noise(tmp_path / "turtles" / f"turtle {identity}" / f"{number}.png", identity, number)
    arguments = ["--do_train", "--do_eval", "--schedule", "trainer", "--lr_scheduler_type", "linear"]
    folder = {"dataset_name": None, "data_dir": str(tmp_path / "turtles")}
    run_main(tmp_path, *arguments, "--optim", "adamw_torch", "--learning_rate", "1e-3", ranked_queries=2, **folder)
    out = tmp_path / "out"
    text = (out / "README.md").read_text()
    assert "folder of the first query" not in text
    assert "Ignored: only the query's own image, because cameras are unknown." in text
    for fact in (
        "; all have a match in the gallery.", "| cameras | unknown |", "| optimiser | adamw_torch |",
        "| schedule | linear, warm-up 0.05 |", "| encoder | vit, 2 blocks, width 16 |",
    ):
        assert fact in text
    assert (out / "ranked_lists.jpg").exists()
    assert all(name.startswith("turtle ") for name in read_json(out / "config.json")["label2id"])


@pytest.mark.parametrize("fraction", [None, 0.3])
def test_evaluation_only_uses_all_individuals_by_default(
    tmp_path, run_main, recipe, untrained, fraction, caplog
):
    for identity in range(14):
        for number in range(5):
            save_noise(tmp_path / "turtles" / "abcdefghijklmn"[identity] / f"{number}.png", identity, number)
    source = {"backbone_config": None, "image_size": None, "model_name_or_path": str(untrained)}
    options = {"dataset_name": None, "data_dir": str(tmp_path / "turtles"), "disable_tqdm": True, **source}
    run_main(tmp_path, "--do_eval", **options, **({} if fraction is None else {"test_fraction": fraction}))
    count = 14 if fraction is None else 4
    assert read_json(tmp_path / "out" / "all_results.json")["eval_num_queries"] == count
    assert f"{count} of 14 identities are held out" in caplog.text
    # The checkpoint was trained on a, b, c and d.
    assert ("was trained on individuals with 4 of these 14 names" in caplog.text) == (fraction is None)


@pytest.mark.parametrize("protocol", ["closed_set", "open_set"])
def test_a_table_by_another_protocol(tmp_path, run_main, run_recipe, protocol, caplog):
    """Two animals in each photograph; from the table to the gallery and the pictures."""
    rows = ["path,identity,bbox,date"]
    for number in range(24):
        pair = [f"turtle {(number + 4 * place) % 8}" for place in range(2)]
        save_noise(tmp_path / "turtles" / f"{number}.png", number % 4, number)
        rows += [f'{number}.png,{name},"[0, {12 * place}, 12, 12]",' for place, name in enumerate(pair)]
    save_noise(tmp_path / "turtles" / "unknown.png", 9, 0)
    (tmp_path / "turtles" / "broken.png").write_text("no image")
    rows += ["unknown.png,unknown,,", "broken.png,turtle 0,,"]
    table = tmp_path / "turtles" / "turtles.csv"
    table.write_text("\n".join(rows))
    options = {"dataset_name": str(table), "protocol": protocol, "instances_per_identity": 2, "disable_tqdm": True}
    best = {"eval_strategy": "epoch", "metric_for_best_model": "baks" if protocol == "open_set" else "map"}
    run_main(tmp_path, "--do_train", "--do_eval", "--skip_broken", **options, **best, ranked_queries=2)
    results, card = read_json(tmp_path / "out" / "all_results.json"), (tmp_path / "out" / "README.md").read_text()
    assert 0 <= results["eval_map_at_r"] <= results["eval_r_precision"] <= 1
    assert (tmp_path / "out" / "ranked_lists.jpg").exists()
    if protocol == "closed_set":
        assert results["train_samples"] == 40 and results["eval_num_queries"] == 8 and "eval_baks" not in results
        # What is broken is left out of the gallery, too.
        assert all(f"| {split} images, identities | 40, 8 |" in card for split in ("train", "gallery"))
        assert "- Protocol: closed set: the gallery is train" in card
        assert "query: 8 images of 8 individuals; gallery: 41 images of 8 individuals" in caplog.text
    else:
        # 2 of 8 individuals with 6 images each, the unknown one, and one image of each of the others.
        assert (results["eval_num_new"], results["eval_num_known"]) == (13, 6)
        assert results["eval_baks_baus"] == pytest.approx((results["eval_baks"] * results["eval_baus"]) ** 0.5)
        assert "| query images, identities | 19, 8 (and 1 unknown individual) |\n" in card
        assert "- Protocol: open set:" in card and f"AUROC {100 * results['eval_auroc_new']:.2f} %" in card
        run_main(
            tmp_path, "--do_eval", "--skip_broken", **options, model_name_or_path=str(tmp_path / "out"),
            backbone_config=None, image_size=None, open_set_threshold=1e9, output_dir=str(tmp_path / "far"),
        )
        # Everything is nearer than that, so nothing is new.
        assert read_json(tmp_path / "far" / "all_results.json")["eval_baus"] == 0


def test_distractors_from_a_folder(tmp_path, run_main):
    others = make_market(tmp_path / "others", first=30) / "query"
    (others / "broken.jpg").write_bytes(b"no image")
    options = {"data_dir": str(make_market(tmp_path / "market")), "disable_tqdm": True, "logging_steps": 1}
    with pytest.raises(ValueError, match="1 of .* images cannot be read, the first is .*broken.jpg"):
        run_main(tmp_path, "--do_train", "--distractor_dir", str(others), **options)
    run_main(tmp_path, "--do_train", "--skip_broken", "--distractor_dir", str(others), **options)
    history = read_json(tmp_path / "out" / "trainer_state.json")["log_history"]
    assert all(line["loss_pwca"] > 0 for line in history if "loss" in line) and "loss" in history[0]


def test_fine_tuning_an_encoder_and_then_other_identities(tmp_path, run_main):
    ViTModel(ViTConfig(image_size=32, initializer_range=0.3, **TINY_SIZES)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(image_mean=[0.4] * 3).save_pretrained(tmp_path / "vit")
    source = {"backbone_config": None, "model_name_or_path": str(tmp_path / "vit")}
    run_main(tmp_path, "--do_train", data_dir=str(make_market(tmp_path / "market")), max_steps=1, **source)
    processor = read_json(tmp_path / "out" / "preprocessor_config.json")
    assert processor["size"] == {"height": 16, "width": 8} and processor["image_mean"] == [0.4] * 3
    assert not (tmp_path / "out" / "README.md").exists()

    for identity in range(8):
        save_noise(tmp_path / "others" / f"{identity % 4}" / f"{identity}.png", identity % 4, identity)
        save_noise(tmp_path / "others" / f"{identity % 4 + 4}" / f"{identity}.png", identity % 4 + 4, identity)
    source = {"backbone_config": None, "model_name_or_path": str(tmp_path / "out"), "ignore_mismatched_sizes": True}
    source |= {"dataset_name": None, "data_dir": str(tmp_path / "others"), "output_dir": str(tmp_path / "next")}
    with pytest.raises(ValueError, match=r"--image_size: .* takes images of 16 x 8 pixels, .*; leave out the option"):
        run_main(tmp_path, "--do_train", test_fraction=0.2, max_steps=1, image_size=16, **source)
    run_main(tmp_path, "--do_train", test_fraction=0.2, max_steps=1, **source)
    assert len(read_json(tmp_path / "next" / "config.json")["id2label"]) > 4


@pytest.mark.parametrize("arguments", [["--freeze_backbone"], ["--layer_decay", "0.75"], ["--lora_rank", "2"]])
def test_parameter_efficient_fine_tuning_saves_a_plain_model(tmp_path, run_main, arguments):
    run_main(tmp_path, "--do_train", *arguments, data_dir=str(make_market(tmp_path / "market")))
    _, report = DCALForReID.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_a_broken_image_is_named(tmp_path, run_main, untrained):
    broken = make_market(tmp_path / "market") / "query" / "0005_c1s1_000009_00.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    source = {"backbone_config": None, "image_size": None, "model_name_or_path": str(untrained)}
    options = {"data_dir": str(tmp_path / "market"), "disable_tqdm": True, **source}
    with pytest.raises(ValueError, match=f"1 of 25 images cannot be read, the first is {broken}: .* --skip_broken"):
        run_main(tmp_path, "--do_eval", **options)
    run_main(tmp_path, "--do_eval", "--skip_broken", **options)
    assert read_json(tmp_path / "out" / "all_results.json")["eval_num_queries"] == 3


@pytest.mark.parametrize("preset", ["quickstart_reid", "from_scratch_reid"])
def test_a_configuration_from_scratch_parses(tmp_path, recipe, preset):
    preset = ROOT / "recipes" / "configs" / f"{preset}.yaml"
    types = (recipe.ReIDModelArguments, recipe.DataArguments, recipe.DCALReIDTrainingArguments)
    options = [str(preset), "--data_dir", "turtles", "--output_dir", str(tmp_path), "--use_cpu"]
    model_args, _, training_args = recipe.parse_arguments(types, options)
    backbone_config = AutoConfig.for_model(**json.loads(model_args.backbone_config))
    assert DCALConfig(backbone_config=backbone_config, image_size=64).grid == (8, 8)
    assert training_args.do_train
