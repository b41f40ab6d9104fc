"""The results of an ablation: a table of runs, and the report made from it (Markdown and a figure)."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from dcal_hf.files import save_table, write_atomically
from dcal_hf.model_card import COLUMNS


if TYPE_CHECKING:
    from matplotlib.axes import Axes


BRANCHES = {"": "both", "sa_": "SA", "glca_": "GLCA"}
# In the figure, in the same order: Okabe and Ito's palette.
BRANCH_COLORS = ("#000000", "#0072b2", "#e69f00")
# Between the branches of an arm, relative to that between the arms.
LINE_DISTANCE = 0.2
CONFIDENCE = 0.95
# Of fewer seeds, the figure has no interval, which would hide the others: that of two is 12.7 standard errors.
MIN_SEEDS = 3
METRIC_TITLES = {key: title for columns in COLUMNS.values() for title, key in columns.items()}


@dataclass(frozen=True)
class Row:
    """The results of one run.

    Args:
        digest (`str`): Hash of the run's options.
        seconds (`float`): Per training step; NaN for a resumed run, which timed only some steps.
        loss (`float`): The last logged training loss of SA, unweighted.
        scores (`dict`): Metrics in [0, 1]; those of a branch are prefixed with its name (`"sa_accuracy"`).
    """

    arm: str
    seed: int
    digest: str
    seconds: float
    loss: float
    scores: dict[str, float]


def save_rows(rows: Sequence[Row], path: Path) -> None:
    """Writes a CSV table, one line per run; metrics that a run lacks, as those of a missing branch, are empty."""
    metrics = sorted({name for row in rows for name in row.scores})
    lines = [
        (
            row.arm,
            row.seed,
            row.digest,
            "" if np.isnan(row.seconds) else f"{row.seconds:.4f}",
            f"{row.loss:.4f}",
            *(f"{row.scores[name]:.6f}" if name in row.scores else "" for name in metrics),
        )
        for row in sorted(rows, key=lambda row: (row.seed, row.arm))
    ]
    save_table(["arm", "seed", "digest", "seconds", "loss", *metrics], lines, path)


def read_rows(path: Path) -> list[Row]:
    """Reads the rows that `save_rows` wrote; none if the file does not exist yet."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [
            Row(
                line.pop("arm"),
                int(line.pop("seed")),
                line.pop("digest"),
                float(line.pop("seconds") or "nan"),
                float(line.pop("loss")),
                {name: float(value) for name, value in line.items() if value},
            )
            for line in csv.DictReader(file)
        ]


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences between two arms, with its confidence interval (Student's t over the seeds).

    Args:
        mean (`float`), margin (`float`): The interval is `mean - margin` to `mean + margin`; NaN if there are too few.
        n (`int`): Number of seeds that both arms have.
    """

    mean: float
    margin: float
    n: int


def paired_difference(values: dict[int, float], reference: dict[int, float]) -> Difference:
    """`mean_s(x_s - y_s)` over the seeds s that both mappings from seed to value have."""
    seeds = sorted(set(values) & set(reference))
    differences = np.array([values[seed] - reference[seed] for seed in seeds])
    n = len(seeds)
    if n < 2:
        return Difference(differences.mean() if n else np.nan, np.nan, n)
    margin = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * differences.std(ddof=1) / np.sqrt(n)
    return Difference(differences.mean(), margin, n)


def by_seed(rows: Sequence[Row], arm: str, metric: str) -> dict[int, float]:
    """A metric in per cent by seed, for the runs of an arm that have it."""
    return {row.seed: 100 * row.scores[metric] for row in rows if row.arm == arm and metric in row.scores}


def spread(values: dict[int, float]) -> str:
    """Formats mean and standard deviation."""
    if not values:
        return ""
    numbers = np.array(list(values.values()))
    return f"{numbers.mean():.1f}" + (f" ± {numbers.std(ddof=1):.1f}" if len(numbers) > 1 else "")


def interval(difference: Difference) -> str:
    """Formats a difference as `+1.2 [+0.3, +2.1]`."""
    if difference.n == 0:
        return ""
    if difference.n == 1:
        return f"{difference.mean:+.1f}"
    low, high = difference.mean - difference.margin, difference.mean + difference.margin
    return f"{difference.mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def time_ratio(rows: Sequence[Row], arm: str, reference: str) -> str:
    """Median over the seeds of the ratio of an arm's seconds per step to the reference's."""
    seconds = {(row.arm, row.seed): row.seconds for row in rows}
    ratios = [
        seconds[arm, seed] / seconds[reference, seed]
        for name, seed in seconds
        if name == arm and (reference, seed) in seconds
    ]
    ratios = [ratio for ratio in ratios if np.isfinite(ratio)]
    return f"{np.median(ratios):.2f}" if ratios else ""


def table(rows: Sequence[Row], labels: Mapping[str, str], reference: str, metric: str) -> str:
    """A Markdown table with one line per arm; `labels` are the names of all arms in it."""
    name = labels[reference]
    header = ["arm", "n", *BRANCHES.values(), f"both - {name}", f"SA - {name}", "loss", "step"]
    baseline = by_seed(rows, reference, metric)
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for arm, label in labels.items():
        values = {branch: by_seed(rows, arm, f"{branch}{metric}") for branch in BRANCHES}
        losses = [row.loss for row in rows if row.arm == arm]
        if not losses:
            continue
        is_reference = arm == reference
        lines.append(
            [
                label,
                str(len(values[""])),
                *(spread(values[branch]) for branch in BRANCHES),
                "" if is_reference else interval(paired_difference(values[""], baseline)),
                "" if is_reference else interval(paired_difference(values["sa_"], baseline)),
                f"{np.mean(losses):.2f}",
                time_ratio(rows, arm, reference),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


NOTES = """\
- Per cent, mean ± standard deviation over n seeds, of the weights of the last epoch. **both**: SA and GLCA together,
  or the one that there is.
- **- {reference}**: mean of the paired differences with its 95 % interval
  (Student's t over the seeds that both have). An interval that holds zero proves no difference.
- **loss**: SA's training loss at the end of the run, unweighted: where it is still high, training was too short.
  **step**: median of the seconds per step, divided by those of {reference} with the same seed."""


def write_report(
    rows: Sequence[Row], labels: Mapping[str, str], reference: str, metrics: Sequence[str], folder: Path
) -> None:
    """Writes `report.md`, and `report.png` with the differences if an arm can be compared.

    Args:
        labels (mapping from `str` to `str`): The name of each arm in the report, in order.

    Raises:
        ValueError: If the reference has no run.
    """
    if not any(row.arm == reference for row in rows):
        raise ValueError(f"{folder}/results.csv has no run of the reference '{reference}' to compare with yet.")
    titles = {metric: METRIC_TITLES.get(metric, metric) for metric in metrics}
    parts = [f"# {folder.resolve().name}"]
    parts += [f"## {title}\n\n{table(rows, labels, reference, metric)}" for metric, title in titles.items()]
    differences = {
        title: {label: shown_differences(rows, arm, reference, metric) for arm, label in labels.items()}
        for metric, title in titles.items()
    }
    compared = [label for label in labels.values() if any(arms[label] for arms in differences.values())]
    if compared:
        parts.append("![Differences](report.png)")
        shown = {title: {label: arms[label] for label in compared} for title, arms in differences.items()}
        plot(shown, labels[reference], folder / "report.png")
    write_atomically(folder / "report.md", "\n\n".join([*parts, NOTES.format(reference=labels[reference])]) + "\n")


def plot(differences: Mapping[str, Mapping[str, Mapping[str, Difference]]], reference: str, path: Path) -> None:
    """Plots paired differences to the reference with their confidence intervals.

    Args:
        differences: Metric -> arm -> branch -> difference. Each metric has a panel, with one line per arm.
    """
    from matplotlib.figure import Figure

    from dcal_hf.visualization import save_figure

    arms = next(iter(differences.values()))
    figure = Figure(figsize=(4 + 3 * len(differences), 1.2 + 0.5 * len(arms)), layout="constrained")
    panels = figure.subplots(1, len(differences), sharey=True, squeeze=False)[0]
    for axes, (metric, found) in zip(panels, differences.items(), strict=True):
        draw_differences(axes, found)
        axes.set_xlabel(metric)
    panels[0].set_yticks(range(len(arms)), [*arms])
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    unit = f"Points above {reference} (95 % intervals of {MIN_SEEDS} or more paired seeds)"
    figure.supxlabel(unit, fontsize="medium")
    handles = {line.get_label(): line for axes in panels for line in axes.containers}
    shown = {name: handles[name] for name in BRANCHES.values() if name in handles}
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=len(shown), frameon=False)
    save_figure(figure, path)


def draw_differences(axes: "Axes", arms: Mapping[str, Mapping[str, Difference]]) -> None:
    """Draws one panel of [`plot`]: one line per arm, and the branches of an arm below each other."""
    for (branch, name), color in zip(BRANCHES.items(), BRANCH_COLORS, strict=True):
        shown = [
            (place + LINE_DISTANCE * ([*found].index(branch) - (len(found) - 1) / 2), found[branch])
            for place, found in enumerate(arms.values())
            if branch in found
        ]
        if shown:
            places, values = zip(*shown)
            margins = [difference.margin if difference.n >= MIN_SEEDS else 0 for difference in values]
            means = [difference.mean for difference in values]
            axes.errorbar(means, places, xerr=margins, fmt="o", color=color, capsize=3, label=name)
    axes.axvline(0, color="grey", linewidth=1, zorder=0)


def shown_differences(rows: Sequence[Row], arm: str, reference: str, metric: str) -> dict[str, Difference]:
    """The differences of another arm to the reference by branch, without a branch that is all there is."""
    if arm == reference:
        return {}
    baseline = by_seed(rows, reference, metric)
    values = {branch: by_seed(rows, arm, f"{branch}{metric}") for branch in BRANCHES}
    found = {branch: x for branch, x in values.items() if branch == "" or x != values[""]}
    differences = {branch: paired_difference(x, baseline) for branch, x in found.items()}
    return {branch: difference for branch, difference in differences.items() if difference.n > 0}
