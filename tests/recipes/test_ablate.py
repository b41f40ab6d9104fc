"""Ablations: runs, skipped runs, and the report."""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch
import yaml
from scipy import stats
from transformers import AutoImageProcessor, ViTImageProcessor

from dcal_hf import DCALForImageClassification, DCALModel

from helpers import TINY_VIT


ROOT = Path(__file__).parents[2]
ABLATION = {
    "recipe": "run_fgvc.py",
    "config": "config.yaml",
    "metrics": ["accuracy"],
    "reference": "sa",
    "seeds": [0, 1],
    "arms": {"sa": {"branches": ["sa"]}, "dcal": {"num_train_epochs": 3}},
}
CONFIG = {"do_train": True, "num_train_epochs": 2, "eval_strategy": "epoch", "load_best_model_at_end": True}


@pytest.fixture
def ablate(import_recipe):
    return import_recipe("ablate")


@pytest.fixture
def report(import_recipe):
    return import_recipe("ablation_report")


@pytest.fixture
def calls(ablate, monkeypatch) -> list[dict]:
    """Records the options of each run instead of running the recipe, and writes results."""
    seen = []

    def call(recipe, options, *others):
        seen.append(dict(options))
        folder = Path(options["output_dir"])
        folder.mkdir(parents=True)
        if options.get("seed") == 13:
            raise RuntimeError("out of luck")
        scores = {"eval_accuracy": 0.5 + options.get("seed", 0) / 10, "eval_glca_accuracy": 0.25}
        history = [{"loss": 2.0, "loss_sa": 1.75}, {"loss": 3.0, "loss_sa": 1.5}, {"train_loss": 2.5}]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        results = {"train_steps_per_second": 4.0, **scores}
        (folder / "all_results.json").write_text(json.dumps(results))
        return False

    monkeypatch.setattr(ablate, "call", call)
    return seen


@pytest.fixture
def run_main(ablate, monkeypatch, tmp_path):
    own_handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A shell starts commands in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(*arguments: str, **changes: object) -> None:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        (tmp_path / "ablation.yaml").write_text(yaml.safe_dump({**ABLATION, **changes}, sort_keys=False))
        command = ["ablate.py", str(tmp_path / "ablation.yaml"), "--output_dir", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        ablate.main()

    yield run
    for number, handler in own_handlers.items():
        signal.signal(number, handler)


def test_every_arm_runs_with_every_seed(run_main, calls, tmp_path):
    run_main("--data_dir", "birds", "--jobs", "2")
    assert {(Path(options["output_dir"]).name, options["seed"]) for options in calls} == {
        ("sa-0", 0), ("sa-1", 1), ("dcal-0", 0), ("dcal-1", 1)
    }
    by_name = {Path(options["output_dir"]).name: options for options in calls}
    assert by_name["sa-1"]["branches"] == ["sa"] and "branches" not in by_name["dcal-1"]
    assert by_name["sa-1"]["num_train_epochs"] == 2 and by_name["dcal-1"]["num_train_epochs"] == 3
    assert all(options["data_dir"] == "birds" for options in calls)
    assert (tmp_path / "out" / "report.png").stat().st_size > 0


def test_no_epoch_is_selected(run_main, calls):
    run_main()
    assert {(options["load_best_model_at_end"], options["eval_strategy"]) for options in calls} == {(False, "no")}


def test_finished_runs_are_skipped(run_main, calls, tmp_path):
    run_main("--seeds", "0")
    assert len(calls) == 2
    run_main("--arms", "dcal")
    assert [Path(options["output_dir"]).name for options in calls[2:]] == ["dcal-1"]
    run_main()
    assert len(calls) == 4
    lines = (tmp_path / "out" / "results.csv").read_text().splitlines()
    assert lines[0] == "arm,seed,digest,seconds,loss,accuracy,glca_accuracy" and len(lines) == 5
    assert lines[-1].startswith("sa,1,") and lines[-1].endswith(",0.2500,1.5000,0.600000,0.250000")


def test_a_run_with_other_options_is_rejected(run_main, calls):
    run_main()
    changed = {**ABLATION["arms"], "dcal": {"num_train_epochs": 4}}
    for arguments in [(), ("--report",), ("--arms", "sa")]:
        with pytest.raises(ValueError, match="results.csv has a run of 'dcal' with seed 0 and other options: delete"):
            run_main(*arguments, arms=changed)


def test_a_failed_run_is_reported_and_the_others_continue(run_main, calls, tmp_path):
    with pytest.raises(SystemExit, match="2 runs failed:\n.*seed 13: out of luck"):
        run_main(seeds=[0, 13, 1])
    assert len((tmp_path / "out" / "results.csv").read_text().splitlines()) == 5
    with pytest.raises(SystemExit, match="^1 run failed:\n"):
        run_main("--arms", "sa", seeds=[0, 13, 1])


def test_a_failed_run_shows_its_last_line(ablate, monkeypatch, tmp_path):
    (tmp_path / "recipe.py").write_text("print('Checked 3 images.')\nraise SystemExit('recipe.py: no such folder.')")
    monkeypatch.setattr(ablate, "RECIPES", tmp_path)
    with pytest.raises(ChildProcessError, match="exit status 1: recipe.py: no such folder. All .*sa-0/log.txt.$"):
        ablate.call("recipe.py", {"output_dir": str(tmp_path / "sa-0")}, 1, Event())


def test_a_killed_run_resumes_from_a_complete_checkpoint(ablate, monkeypatch, tmp_path):
    (tmp_path / "recipe.py").write_text("import sys\nprint(*sys.argv[1:])")
    monkeypatch.setattr(ablate, "RECIPES", tmp_path)
    folder = tmp_path / "sa-0"
    run = ("recipe.py", {"output_dir": str(folder)}, 1, Event())
    assert not ablate.call(*run)
    (folder / "checkpoint-3").mkdir()  # killed while the first checkpoint was written
    assert not ablate.call(*run)
    monkeypatch.setattr(ablate, "last_checkpoint", lambda folder: f"{folder}/checkpoint-3")
    assert ablate.call(*run)
    commands = (folder / "log.txt").read_text().splitlines()
    assert commands[0] == commands[1] == f"{folder}/config.yaml --overwrite_output_dir"
    assert commands[2] == f"{folder}/config.yaml --resume_from_checkpoint {folder}/checkpoint-3"


@pytest.mark.parametrize("changes", [{}, {"encoder": "config.yaml"}], ids=["runs", "encoder"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_running_recipes(run_main, ablate, monkeypatch, tmp_path, number, changes):
    """The signal reaches only this process, unlike Ctrl-C in a terminal."""
    started = tmp_path / "started"
    (tmp_path / "run_fgvc.py").write_text(
        f"import os, time\nprint(os.getpid(), file=open({str(started)!r}, 'a'), flush=True)\ntime.sleep(60)"
    )
    monkeypatch.setattr(ablate, "RECIPES", tmp_path)
    jobs = 1 if changes else 2

    def send() -> None:
        deadline = time.monotonic() + 30
        while not (started.exists() and started.read_text().count("\n") == jobs) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = Thread(target=send)
    sender.start()
    with pytest.raises(KeyboardInterrupt, match="^The same command continues"):
        run_main("--jobs", str(jobs), "--encoder_data_dir", "images", **changes)
    sender.join()
    numbers = [int(line) for line in started.read_text().splitlines()]
    assert len(numbers) == jobs
    for process in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.parametrize(
    "changes, arguments, sentence",
    [
        ({"reference": "plain"}, (), "'plain', in reference or labels, is not one of the arms sa, dcal"),
        ({"labels": {"plain": "ViT"}}, (), "'plain', in reference or labels, is not one of the arms"),
        ({"arm": {}}, (), "is not an ablation file: it lacks .* and has the unknown \\['arm'\\]"),
        ({}, ("--arms", "both"), "the arms of .*ablation.yaml are sa, dcal"),
        ({"encoder": "config.yaml"}, (), "give its images with --encoder_data_dir"),
        ({"arms": {"sa": {"data_dir": "$NOWHERE"}}}, (), "'sa' needs the environment variable \\$NOWHERE: set it"),
        ({"arms": {"sa": {"data_dir": "/a/${NOWHERE}/b"}}}, (), "needs the environment variable \\${NOWHERE}: set it"),
        ({}, ("--report",), "has no run of the reference 'sa' to compare with yet"),
    ],
)
def test_mistakes_raise_clear_errors(run_main, calls, changes, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        run_main(*arguments, **changes)
    assert calls == []


def test_the_encoder_is_trained_once_for_all_runs(run_main, calls, ablate, monkeypatch, tmp_path):
    saved = []
    monkeypatch.setattr(ablate, "save_encoder", lambda checkpoint, folder: saved.append((checkpoint, folder)))
    run_main("--encoder_data_dir", "clothes", encoder="config.yaml", seeds=[0])
    out = tmp_path / "out"
    assert saved == [(out / "encoder_run", out / "encoder")]
    assert calls[0]["data_dir"] == "clothes" and calls[0]["output_dir"] == str(out / "encoder_run")
    assert [options["model_name_or_path"] for options in calls[1:]] == [str(out / "encoder")] * 2


def test_registrations_are_run_for_the_encoder_too(run_main, calls, ablate, monkeypatch, tmp_path):
    path, ran = tmp_path / "registrations_of_an_ablation.py", []
    path.write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(ablate, "save_encoder", lambda checkpoint, folder: ran.append(path.stem in sys.modules))
    run_main("--encoder_data_dir", "clothes", "--register", str(path), encoder="config.yaml", seeds=[0])
    assert [options["register"] for options in calls] == [str(path)] * 3
    assert ran == [True]
    del sys.modules[path.stem]


@pytest.mark.parametrize("model_type", ["vit", "timm_wrapper"])
def test_the_saved_encoder_can_be_fine_tuned(ablate, backbone_configs, model_type, tmp_path):
    config = backbone_configs["vit" if model_type == "vit" else "timm_deit"]
    model = DCALForImageClassification.from_backbone(config, (48, 32), num_labels=3, branches=("sa",)).eval()
    model.save_pretrained(tmp_path / "run")
    ViTImageProcessor().save_pretrained(tmp_path / "run")
    ablate.save_encoder(tmp_path / "run", tmp_path / "encoder")
    assert AutoImageProcessor.from_pretrained(tmp_path / "encoder").size
    start = DCALModel.from_backbone(tmp_path / "encoder").eval()
    pixel_values = torch.randn(2, 3, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(start(pixel_values).sa_embedding, model(pixel_values).embeddings, rtol=0, atol=0)


def test_the_interval_equals_a_paired_t_test(report):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 7))
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    found = report.paired_difference(dict(enumerate(first)), {**dict(enumerate(second)), 99: 5.0})
    assert found.n == 7
    np.testing.assert_allclose([found.mean - found.margin, found.mean + found.margin], expected)


def test_one_seed_has_no_interval(report):
    difference = report.paired_difference({0: 2.0}, {0: 1.5})
    assert difference.mean == 0.5 and math.isnan(difference.margin) and report.interval(difference) == "+0.5"


def test_rows_round_trip(report, tmp_path):
    rows = [
        report.Row("sa", 0, "ab12", 0.25, 1.5, {"accuracy": 0.5}),
        report.Row("dcal", 0, "cd34", math.nan, 2.5, {"accuracy": 0.625, "glca_accuracy": 0.75}),
    ]
    report.save_rows(rows, tmp_path / "results.csv")
    text = (tmp_path / "results.csv").read_text()
    assert "dcal,0,cd34,,2.5" in text
    report.save_rows(report.read_rows(tmp_path / "results.csv"), tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_text() == text
    resumed, plain = report.read_rows(tmp_path / "results.csv")
    assert plain == rows[0] and resumed.scores == rows[1].scores and math.isnan(resumed.seconds)
    lines = report.table([plain, resumed], {"sa": "Plain", "dcal": "dcal"}, "sa", "accuracy").splitlines()
    assert "both - Plain" in lines[0]
    assert lines[2] == "| Plain | 1 | 50.0 |  |  |  |  | 1.50 | 1.00 |"
    assert lines[3] == "| dcal | 1 | 62.5 |  | 75.0 | +12.5 |  | 2.50 |  |"


@pytest.mark.parametrize(("seeds", "width"), [(2, 0), (3, 8.2805)])
def test_the_figure_shows_intervals_from_three_seeds_on(report, tmp_path, monkeypatch, seeds, width):
    """Those of two seeds would hide them: t(0.975, 1) = 12.71, and t(0.975, 2) = 4.303."""
    figures = []
    monkeypatch.setattr("dcal_hf.visualization.save_figure", lambda figure, path: figures.append(figure))
    rows = [report.Row("sa", seed, "", 0.25, 1.5, {"accuracy": 0.5}) for seed in range(seeds)]
    # Differences of 0, 5/3 and 10/3 points, with a standard error of 0.962.
    rows += [report.Row("dcal", seed, "", 0.25, 1.5, {"accuracy": 0.5 + seed / 60}) for seed in range(seeds)]
    report.write_report(rows, {"sa": "sa", "dcal": "dcal"}, "sa", ["accuracy"], tmp_path)
    (low, high), = figures[0].axes[0].containers[0][2][0].get_segments()
    assert high[0] - low[0] == pytest.approx(width, abs=1e-3)


def test_the_report_shows_the_arms_that_have_run(report, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("dcal_hf.visualization.save_figure", lambda figure, path: figures.append(figure))
    scores = {"sa": {"accuracy": 0.5, "kappa": 0.25}, "dcal": {"accuracy": 0.75, "kappa": 0.125}}
    rows = [report.Row(arm, 0, "ab12", 0.25, 1.5, scores[arm]) for arm in ("sa", "dcal")]
    arms = {"sa": "sa", "later": "Later", "dcal": "DCAL, 30 epochs"}
    report.write_report(rows[:1], arms, "sa", ["accuracy"], tmp_path)
    assert figures == [] and "report.png" not in (tmp_path / "report.md").read_text()
    report.write_report(rows, arms, "sa", ["accuracy", "kappa"], tmp_path)
    axes = figures[0].axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["DCAL, 30 epochs"]
    # A metric without a title is one of a recipe of one's own.
    assert [panel.get_xlabel() for panel in axes] == ["Top-1", "kappa"]
    assert [panel.containers[0][0].get_xdata().tolist() for panel in axes] == [[25.0], [-12.5]]
    assert figures[0].get_supxlabel().startswith("Points above sa ")
    # One branch is all there is.
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["both"]
    text = (tmp_path / "report.md").read_text()
    assert "![Differences](report.png)" in text and "## Top-1\n" in text and "later" not in text.lower()
    assert "| DCAL, 30 epochs | 1 |" in text and "of sa with the same seed" in text


ABLATIONS = [path for path in (ROOT / "recipes" / "ablations").glob("*.yaml") if "recipe:" in path.read_text()]


@pytest.mark.parametrize("path", sorted(ABLATIONS), ids=lambda path: path.stem)
def test_the_options_of_bundled_ablations_exist(ablate, import_recipe, path, tmp_path):
    """Each arm's options are parsed as the recipe would parse them."""
    ablation = ablate.Ablation.read(path)
    recipe = import_recipe(ablation.recipe.removesuffix(".py"))
    extra = {"data_dir": "images", "use_cpu": True}
    for run in ablate.plan(ablation, path, tmp_path, extra):
        if ablation.encoder is not None:
            run.options["model_name_or_path"] = "encoder"
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(dict(run.options)))
        _, data_args, training_args = recipe.parse_arguments(recipe.ARGUMENTS, [str(config)])
        assert training_args.seed == run.seed and data_args.data_dir == "images"


@pytest.mark.slow
def test_end_to_end(ablate, monkeypatch, tmp_path):
    """Two arms and an encoder with the real recipes. The second call skips all runs."""
    tiny = {"do_train": True, "do_eval": True, "dataset_name": "drawn", "max_train_samples": 32, "use_cpu": True}
    tiny |= {"max_eval_samples": 20, "image_size": 48, "num_train_epochs": 1, "attention_images": 0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny))
    (tmp_path / "encoder.yaml").write_text(yaml.safe_dump({**tiny, "branches": ["sa"], "backbone_config": TINY_VIT}))
    arms = {"sa": {"branches": ["sa"]}, "dcal": {}}
    (tmp_path / "ablation.yaml").write_text(
        yaml.safe_dump({**ABLATION, "arms": arms, "seeds": [0], "encoder": "encoder.yaml"})
    )
    out = tmp_path / "out"
    command = ["ablate.py", str(tmp_path / "ablation.yaml"), "--output_dir", str(out), "--encoder_data_dir", "none"]
    monkeypatch.setattr(sys, "argv", command)
    ablate.main()
    assert "| dcal | 1 |" in (out / "report.md").read_text()
    written = (out / "dcal-0" / "all_results.json").stat().st_mtime_ns
    ablate.main()
    assert (out / "dcal-0" / "all_results.json").stat().st_mtime_ns == written
