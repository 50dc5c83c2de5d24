"""Tables and reports of runs."""

import csv
import dataclasses
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from keras_bridle.config import check
from keras_bridle.data.files import printable
from keras_bridle.evaluation.metrics import (
    CodeUsage,
    classification_metrics,
    code_usage,
)
from keras_bridle.evaluation.plots import (
    draw_codes,
    plot_code_usage,
    plot_confusion_matrix,
    plot_history,
)
from keras_bridle.training.checkpoint import write_json

ENDINGS = (".json", ".csv", ".md")
# Converts arrays and NumPy numbers for JSON.
to_list = operator.methodcaller("tolist")


def probe_table(rows, title="Probe accuracy", digits=1, caption=None):
    """Builds a `rich.table.Table` with one line per row and one column per metric.

    `rows` are dicts with a `"name"`. Floats from 0 to 1 are shown in percent, sequences
    of them (one for each seed) as mean and standard deviation, the rest as it is.
    """
    table = Table(title=title, caption=caption)
    header, *lines = _cells(rows, digits)
    table.add_column("", no_wrap=True)
    for metric in header[1:]:
        table.add_column(escape(metric), justify="right", no_wrap=True)
    for line in lines:
        # rich would take a class name like [laughter] for a style.
        table.add_row(*(escape(printable(cell)) for cell in line))
    return table


def usage_table(usages):
    """Builds a table of a dict from phase to `CodeUsage`: levels and their usage."""
    rows: dict[str, dict] = {name: {"name": name} for name in usages}
    for row in usage_rows(usages):
        cell = f"{row['usage']:.1%} · {row['perplexity']:.0f}"
        rows[row["name"]][f"level {row['level']}"] = cell
    sizes = sorted({usage.counts.shape[1] for usage in usages.values()})
    caption = f"share of the {' or '.join(map(str, sizes))} codes used · perplexity"
    return probe_table(list(rows.values()), "Code usage", caption=caption)


def usage_rows(usages):
    """Turns a dict from phase to `CodeUsage` into rows, one for each level."""
    return [
        {
            "name": name,
            "level": level + 1,
            "codes": usage.counts.shape[1],
            "usage": float(usage.usage[level]),
            "perplexity": float(usage.perplexity[level]),
            **{key: float(values[level]) for key, values in usage.published().items()},
        }
        for name, usage in usages.items()
        for level in range(len(usage.usage))
    ]


def write_results(path, rows, percent=True):
    """Writes rows as for `probe_table` as JSON, CSV and Markdown.

    A path that ends in `.json`, `.csv` or `.md` selects one. JSON has all values; CSV
    has the mean, `_spread` and number (`_seeds`) of several values; Markdown has the
    cells of `probe_table`. Returns the path.
    """
    check(rows, "rows", "one or more", rows)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(path.name + ending) for ending in ENDINGS]
    for file in [path] if path.suffix in ENDINGS else files:
        with file.open("w", -1, "utf-8", "surrogateescape", newline="") as stream:
            if file.suffix == ".json":
                json.dump(rows, stream, indent=2, ensure_ascii=False, default=to_list)
            elif file.suffix == ".csv":
                _write_csv(stream, rows)
            else:
                header, *lines = _cells(rows, 1 if percent else 3, percent)
                rule = ["---", *["---:"] * len(header[1:])]
                for line in (header, rule, *lines):
                    cells = (x.replace("|", "\\|").replace("\n", " ") for x in line)
                    stream.write(f"| {' | '.join(cells)} |\n")
    return path


def _write_csv(stream, rows):
    columns, flat_rows = ["name"], [{"name": row["name"]} for row in rows]
    for metric in _metrics(rows):
        columns.append(metric)
        several = any(np.ndim(row.get(metric)) for row in rows)
        if several:
            columns += [f"{metric}_spread", f"{metric}_seeds"]
        for row, flat in zip(rows, flat_rows, strict=True):
            flat[metric] = row.get(metric)
            if several and flat[metric] is not None:
                mean, spread, count = _statistics(flat[metric])
                flat |= {f"{metric}_spread": spread, f"{metric}_seeds": count}
                flat[metric] = mean
    writer = csv.DictWriter(stream, columns)
    writer.writeheader()
    writer.writerows(flat_rows)


def _statistics(values):
    """Returns the mean, standard deviation (or `None`) and number of values."""
    values = np.asarray(values, "float64").reshape(-1)
    spread = float(values.std(ddof=1)) if len(values) > 1 else None
    return float(values.mean()), spread, len(values)


def _metrics(rows):
    """Lists the metrics of all rows in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row if key != "name"))


def _cells(rows, digits=1, percent=True):
    """Yields the header and the lines of a table, as lists of strings."""
    metrics = _metrics(rows)
    yield ["", *metrics]
    for row in rows:
        yield [row["name"], *(_cell(row.get(x), digits, percent) for x in metrics)]


def _cell(value, digits, percent):
    if value is None:
        return "-"
    if isinstance(value, (str, bool, int, np.integer)):
        return str(value)
    factor, unit = (100, " %") if percent else (1, "")
    mean, spread, _ = _statistics(value)
    spread = "" if spread is None else f" ± {factor * spread:.{digits}f}"
    return f"{factor * mean:.{digits}f}{spread}{unit}"


def report_predictions(predictions, class_names, folder, name="test", console=None):
    """Scores `Predictions`, and writes and shows their tables and confusions.

    `folder` gets `metrics` and `per_class`, the scores as `predictions.npz`, and
    `confusion.png` where examples have one class each.
    """
    folder = Path(folder)
    labels, scores = predictions.labels, predictions.scores
    metrics = classification_metrics(labels, scores, class_names)
    rows = [{"name": name, **metrics.summary()}]
    write_results(folder / "metrics", rows)
    write_results(folder / "per_class", metrics.per_class)
    np.savez(folder / "predictions.npz", **predictions._asdict())
    if metrics.confusion is not None:
        plot_confusion_matrix(metrics.confusion, folder / "confusion.png", class_names)
    if console is not None:
        if len(class_names) <= 60:
            console.print(probe_table(metrics.per_class, "By class"))
        console.print(probe_table(rows, "Held-out examples"))
    return metrics


@dataclasses.dataclass
class RunReport:
    """Collects the results of a run phase by phase, shows and writes them.

    `InterleavedPretraining.fit()` takes its methods `on_start` and `on_phase_end`.

    Args:
        directory: string or path of the run; results go to its folder `results`.
        inputs: array of raw inputs to count codes of after each phase.
        probe: optional function of a backbone that returns a dict from a probe's name
            to its accuracy.
        baselines: optional dict from a name to a function that returns such a dict.
        title: string, above the table of probes.
        resume: bool, whether to continue an earlier report.
        console: optional `rich.console.Console`.
    """

    directory: Any
    inputs: np.ndarray
    probe: Callable | None = None
    baselines: dict[str, Callable] | None = None
    title: str = "Probe accuracy"
    resume: bool = False
    console: Console | None = None

    def __post_init__(self):
        self.folder = Path(self.directory, "results")
        self.rows, self.usages = [], {}
        self._state_path = self.folder / "report.json"
        if self.resume and self._state_path.exists():
            state = json.loads(self._state_path.read_text())
            self.rows = state["rows"]
            for name, usage in state["usages"].items():
                self.usages[name] = CodeUsage(*map(np.asarray, usage))

    def _add_row(self, name, accuracies):
        others = [row for row in self.rows if row["name"] != name]
        self.rows = [*others, {"name": name, **accuracies}]
        self.rows.sort(key=lambda row: row["name"] not in (self.baselines or {}))
        self._save()

    def _add_missing(self, name, probe, *args):
        """Adds a row, unless a resumed run has it."""
        if probe is not None and all(row["name"] != name for row in self.rows):
            self._add_row(name, probe(*args))

    def on_start(self, pretraining):
        """Probes the untrained encoder; baselines can wait until training is over."""
        self._add_missing("untrained", self.probe, pretraining.backbone)

    def on_phase_end(self, phase, pretraining):
        """Probes the encoder and counts the codes."""
        codes = pretraining.codes(self.inputs)
        # Axes: example, patch, level and, for soft quantizers, code.
        is_real = codes.reshape(*codes.shape[:2], -1)[..., 0] >= 0
        self.usages[phase.name] = code_usage(codes[is_real], pretraining.codebook_size)
        self._save()
        if self.probe is not None and phase.kind != "tokenizer":
            self._add_row(phase.name, self.probe(pretraining.backbone))

    def _save(self):
        usages = {name: [x.tolist() for x in u] for name, u in self.usages.items()}
        write_json(self._state_path, {"rows": self.rows, "usages": usages})

    def finish(self, pretraining):
        """Probes the baselines, writes all results and plots, and prints the tables."""
        for name, baseline in (self.baselines or {}).items():
            self._add_missing(name, baseline)
        draw_codes(pretraining, self.inputs, self.folder)
        plot_history(pretraining.history, self.folder / "history.png")
        console = self.console or Console()
        if self.usages:
            plot_code_usage([*self.usages.values()][-1], self.folder / "code_usage.png")
            write_results(self.folder / "code_usage", usage_rows(self.usages), False)
            console.print(usage_table(self.usages))
        if self.rows:
            write_results(self.folder / "probes", self.rows)
            console.print(probe_table(self.rows, self.title))
