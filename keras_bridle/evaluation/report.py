"""Tables and reports of runs."""

import csv
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from keras_bridle.config import ArgumentError
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
from keras_bridle.training.checkpoint import atomic_file


def probe_table(rows, title="Probe accuracy", digits=1, caption=None):
    """Builds a `rich.table.Table` with one line per row and one column per metric.

    `rows` are dicts with a `"name"`. Floats from 0 to 1 are shown in percent, sequences
    of them (one for each seed) as mean and standard deviation, the rest as it is.
    """
    table = Table(title=title, caption=caption)
    table.add_column("", no_wrap=True)
    metrics = _metrics(rows)
    for metric in metrics:
        table.add_column(escape(metric), justify="right", no_wrap=True)
    for row in rows:
        cells = [_format(row.get(metric), digits) for metric in metrics]
        # A class may be called [laughter], which would be taken for a style.
        table.add_row(*map(escape, [row["name"], *cells]))
    return table


def usage_table(usages):
    """Builds a table of a dict from phase to `CodeUsage`: levels and their usage."""
    rows = [
        {
            "name": name,
            **{
                f"level {level + 1}": f"{usage.usage[level]:.1%} · "
                f"{usage.perplexity[level]:.0f}"
                for level in range(len(usage.usage))
            },
        }
        for name, usage in usages.items()
    ]
    sizes = sorted({usage.counts.shape[1] for usage in usages.values()})
    caption = f"share of the {' or '.join(map(str, sizes))} codes used · perplexity"
    return probe_table(rows, "Code usage", caption=caption)


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
    """Writes rows as for `probe_table` as JSON, CSV and Markdown beside each other.

    A path that ends in `.json`, `.csv` or `.md` gets that file alone. JSON keeps every
    value; CSV has mean, `_spread` and number (`_seeds`) of several; Markdown has the
    cells of `probe_table`.
    """
    if not rows:
        raise ArgumentError("rows", "one or more", rows)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_one = path.suffix in _FORMS
    for ending in [path.suffix] if is_one else _FORMS:
        file = path if is_one else path.with_name(path.name + ending)
        with file.open("w", newline="", encoding="utf-8") as stream:
            _FORMS[ending](stream, rows, percent)


def _as_json(file, rows, percent):
    text = json.dumps(rows, indent=2, ensure_ascii=False, default=lambda x: x.tolist())
    file.write(text + "\n")


def _as_csv(file, rows, percent):
    flat_rows, columns = [{"name": row["name"]} for row in rows], ["name"]
    for metric in _metrics(rows):
        several = any(np.ndim(row.get(metric)) for row in rows)
        columns.append(metric)
        if several:
            columns += [f"{metric}_spread", f"{metric}_seeds"]
        for row, flat in zip(rows, flat_rows, strict=True):
            flat[metric] = row.get(metric)
            if several and flat[metric] is not None:
                values = np.atleast_1d(np.asarray(flat[metric], "float64"))
                flat[metric] = float(values.mean())
                spread = float(values.std(ddof=1)) if len(values) > 1 else None
                flat |= {f"{metric}_spread": spread, f"{metric}_seeds": len(values)}
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(flat_rows)


def _as_markdown(file, rows, percent):
    metrics = _metrics(rows)
    lines = [["", *metrics], ["---", *["---:"] * len(metrics)]]
    for row in rows:
        cells = (_format(row.get(x), 1 if percent else 3, percent) for x in metrics)
        lines.append([row["name"], *cells])
    file.writelines(f"| {' | '.join(cells)} |\n" for cells in lines)


_FORMS = {".json": _as_json, ".csv": _as_csv, ".md": _as_markdown}


def _metrics(rows):
    """The metrics of all rows in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row if key != "name"))


def _format(value, digits=1, percent=True):
    if value is None:
        return "-"
    if isinstance(value, (str, bool, int, np.integer)):
        return str(value)
    factor, unit = (100, " %") if percent else (1, "")
    values = factor * np.asarray(value, "float64").reshape(-1)
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}{unit}"


def report_predictions(predictions, class_names, folder, name="test", console=None):
    """Scores `Predictions`, and writes and shows their tables and confusions.

    `folder` gets `metrics` and `per_class`, the scores as `predictions.npz`, and
    `confusion.png` where examples have one class each.
    """
    folder = Path(folder)
    metrics = classification_metrics(
        predictions.labels, predictions.scores, class_names
    )
    rows = [{"name": name, **metrics.summary()}]
    write_results(folder / "metrics", rows)
    write_results(folder / "per_class", metrics.per_class)
    np.savez(folder / "predictions.npz", **predictions._asdict())
    if metrics.confusion is not None:
        path = folder / "confusion.png"
        plot_confusion_matrix(metrics.confusion, path, class_names)
    if console is not None:
        if len(class_names) <= 60:
            console.print(probe_table(metrics.per_class, "By class"))
        console.print(probe_table(rows, "Held-out examples"))
    return metrics


class RunReport:
    """Collects the results of a run phase by phase, shows and writes them.

    `InterleavedPretraining.fit()` takes its methods `on_start` and `on_phase_end`.

    Args:
        directory: string or path of the run; results go to its folder `results`.
        inputs: array of raw inputs, whose codes are counted after each phase.
        probe: optional function of a backbone that returns a dict from a probe's name
            to its accuracy.
        baselines: optional dict from a name to a function that returns such a dict.
        title: string, above the table of probes.
        resume: bool, whether to add to what an earlier run has collected.
        console: optional `rich.console.Console`.
    """

    def __init__(
        self,
        directory,
        inputs,
        probe=None,
        baselines=None,
        title="Probe accuracy",
        resume=False,
        console=None,
    ):
        self.folder = Path(directory) / "results"
        self.inputs = inputs
        self.probe = probe
        self.baselines = dict(baselines or {})
        self.title = title
        self.console = console or Console()
        self.rows = []
        self.usages = {}
        self._state_path = self.folder / "report.json"
        if resume and self._state_path.exists():
            state = json.loads(self._state_path.read_text())
            self.rows = state["rows"]
            for name, usage in state["usages"].items():
                self.usages[name] = CodeUsage(*map(np.asarray, usage))

    def _add_row(self, name, accuracies):
        rows = {row["name"]: row for row in self.rows}
        rows[name] = {"name": name, **accuracies}
        self.rows = list(rows.values())
        self._save()

    def on_start(self, pretraining):
        """Adds what there is before any training; a resumed run has it already."""
        known = {row["name"] for row in self.rows}
        for name, baseline in self.baselines.items():
            if name not in known:
                self._add_row(name, baseline())
        if self.probe is not None and "untrained" not in known:
            self._add_row("untrained", self.probe(pretraining.backbone))

    def on_phase_end(self, phase, pretraining):
        """Probes the encoder and counts the codes."""
        codes = pretraining.codes(self.inputs)
        # After the axes of example and patch come levels, and soft codes of each.
        is_real = codes.reshape(*codes.shape[:2], -1)[..., 0] >= 0
        usage = code_usage(codes[is_real], pretraining.codebook_size)
        self.usages[phase.name] = usage
        self._save()
        if self.probe is not None and phase.kind != "tokenizer":
            self._add_row(phase.name, self.probe(pretraining.backbone))

    def _save(self):
        usages = {name: [x.tolist() for x in u] for name, u in self.usages.items()}
        state = {"rows": self.rows, "usages": usages}
        with atomic_file(self._state_path) as unfinished:
            unfinished.write_text(json.dumps(state, indent=2) + "\n")

    def finish(self, pretraining):
        """Writes all results and plots, and prints the tables."""
        draw_codes(pretraining, self.inputs, self.folder)
        plot_history(pretraining.history, self.folder / "history.png")
        if self.usages:
            last = list(self.usages.values())[-1]
            plot_code_usage(last, self.folder / "code_usage.png")
            rows = usage_rows(self.usages)
            write_results(self.folder / "code_usage", rows, percent=False)
            self.console.print(usage_table(self.usages))
        if self.rows:
            write_results(self.folder / "probes", self.rows)
            self.console.print(probe_table(self.rows, self.title))
