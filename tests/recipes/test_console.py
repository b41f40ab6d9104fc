"""The exact output of the training recipes."""

import logging
from types import SimpleNamespace

import pytest


@pytest.fixture
def console(import_recipe):
    return import_recipe("console")


ARGS = SimpleNamespace(eval_strategy="epoch", disable_tqdm=True)
BRANCHES = ("sa", "glca", "pwca")


def run(callback, *events, max_steps=8, **args):
    """Calls the callback as the Trainer does; an event is (name, step, epoch, keyword arguments)."""
    state = SimpleNamespace(is_world_process_zero=True, max_steps=max_steps, num_train_epochs=2)
    for event, step, epoch, *kwargs in events:
        state.global_step, state.epoch = step, epoch
        arguments = SimpleNamespace(**{**vars(ARGS), **args})
        getattr(callback, event)(arguments, state, None, **(kwargs[0] if kwargs else {}))


def log(loss, **others):
    return {"logs": {"loss": loss, "loss_sa": loss + 1, "loss_glca": loss + 2, "learning_rate": 1e-3, **others}}


def test_the_line_of_an_epoch_has_mean_losses_and_metrics(console, capsys):
    callback = console.EpochLines(BRANCHES, "Top-1", "accuracy", console.result_rows(("sa", "glca")))
    scores = {"eval_accuracy": 0.5, "eval_sa_accuracy": 0.25, "eval_glca_accuracy": 0.125, "eval_loss": 9}
    run(
        callback,
        ("on_train_begin", 0, 0),
        ("on_epoch_begin", 0, 0),
        ("on_log", 3, 0.75, log(1.0)),
        ("on_log", 4, 1.0, log(5.0)),
        ("on_log", 4, 1.0, {"logs": scores}),
        ("on_epoch_begin", 4, 1.0),
        ("on_log", 8, 2.0, log(-12345.678)),
        ("on_train_end", 8, 2.0),
        ("on_log", 8, 2.0, {"logs": {"eval_accuracy": 0.9}}),
    )
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == "epoch loss SA GLCA PWCA | Top-1 SA GLCA | lr time".split()
    assert first.split()[:-1] == "1/2 2.0000 3.0000 4.0000 0.0000 | 50.00 25.00 12.50 | 1.0e-03".split()
    assert second.split()[:-1] == "2/2 -1.23e+04 -1.23e+04 -1.23e+04 0.0000 | | 1.0e-03".split()
    assert max(map(len, (header, first, second))) <= 100


def test_each_evaluation_within_an_epoch_has_a_line(console, capsys):
    callback = console.EpochLines(("sa",), "mAP", "map", console.result_rows(("sa",)))
    events = [("on_log", step, step / 4, {"logs": {"eval_map": step / 10}}) for step in (2, 4)]
    run(callback, ("on_train_begin", 0, 0), *events, ("on_train_end", 4, 1.0))
    header, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == "epoch loss | mAP | lr time".split()
    assert [line[:3] for line in lines] == [["0.5/2", "|", "20.00"], ["1/2", "|", "40.00"]]


def test_without_evaluation_there_are_no_metric_columns(console, capsys):
    callback = console.EpochLines(BRANCHES, "mAP", "map", console.result_rows(("sa", "glca")))
    run(callback, ("on_train_begin", 0, 0), ("on_log", 4, 1.0, log(1.0)), ("on_train_end", 4, 1.0), eval_strategy="no")
    assert [line.count("|") for line in capsys.readouterr().out.splitlines()] == [1, 1]


def test_results_table(console, capsys):
    names = ("map", "rank1", "rank5", "rank10", "minp", "r_precision", "map_at_r")
    metrics = {f"{prefix}{name}": number / 10 for prefix in ("", "sa_") for number, name in enumerate(names)}
    console.print_results("birds (3 queries)", "image-feature-extraction", {"SA": "sa_", "SA + GLCA": ""}, metrics)
    title, header, *rows = capsys.readouterr().out.strip().splitlines()
    assert title == "birds (3 queries), in %"
    assert header.split() == ["mAP", "Rank-1", "Rank-5", "Rank-10", "mINP", "R-precision", "MAP@R"]
    assert [row.split()[-7:] for row in rows] == [[f"{10 * number}.00" for number in range(7)]] * 2
    assert max(map(len, (header, *rows))) <= 100
    assert len({len(line) for line in (header, *rows)}) == 1


def test_one_has_no_plural(console):
    counts = [console.counted(number, "step") for number in (0, 1, 2, 1234)]
    assert counts == ["0 steps", "1 step", "2 steps", "1,234 steps"]


def test_only_existing_files_are_listed(console, tmp_path, capsys):
    (tmp_path / "README.md").write_text("")
    console.print_outputs(str(tmp_path), {"README.md": "the card", "attention.jpg": "where"}, {"dcal x": "Next"})
    assert capsys.readouterr().out.splitlines()[1:] == [
        "Open first:", f"  {tmp_path / 'README.md'}  the card", "Next:", "  dcal x"
    ]


def test_a_message_of_a_library_is_shown_once(import_recipe, monkeypatch, capsys):
    """huggingface_hub brings a handler of its own, and passes its messages on."""
    logger = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler()])
    import_recipe("common").set_up_logging(logging.WARNING)
    logger.warning("Retrying in 1s")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING huggingface_hub: Retrying in 1s")
