"""Tables and reports of runs."""

import csv
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from keras_bridle.evaluation.metrics import (
    CodeUsage,
    classification_metrics,
    code_usage,
    published_usage_of_counts,
)
from keras_bridle.evaluation.plots import (
    draw_codes,
    plot_code_usage,
    plot_confusion_matrix,
    plot_history,
)
from keras_bridle.training.checkpoint import atomic_file


def probe_table(rows, title="Probe accuracy", digits=1):
    """Builds a table with one line per network and one column per metric.

    Args:
        rows: list of dicts. `"name"` is the first column; every other key is a
            metric: a float from 0 to 1 (shown in percent), a sequence of such
            floats, one for each seed (shown as mean and standard deviation), None or
            a missing key (shown as a dash), or a string or an int (shown as it is).
        title: string, above the table.
        digits: int, decimals of the percentages.

    Returns:
        A `rich.table.Table`.

    Raises:
        ValueError: if there are no rows, or one has no name.

    Example:
    ```python
    import rich
    from keras_bridle.evaluation.report import probe_table

    rows = [
        {"name": "log-mel", "initial": 0.64},
        {"name": "encoder", "initial": [0.71, 0.73, 0.72], "final": [0.8, 0.8, 0.9]},
    ]
    rich.print(probe_table(rows))
    ```
    """
    _check_rows(rows)
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    metrics = _metrics(rows)
    for metric in metrics:
        table.add_column(escape(metric), justify="right")
    for row in rows:
        cells = [format_metric(row.get(metric), digits) for metric in metrics]
        # A class may be called [laughter], which would be taken for a style.
        table.add_row(*map(escape, [row["name"], *cells]))
    return table


def usage_table(usages, title="Code usage"):
    """Builds a table of how many codes of each level are in use.

    Args:
        usages: dict from a name (a phase, say) to what `code_usage` returns.
        title: string, above the table.

    Returns:
        A `rich.table.Table`; each cell has the share of codes that occur and the
        perplexity.

    Raises:
        ValueError: if `usages` is empty.

    Example:
    ```python
    import numpy as np
    import rich
    from keras_bridle.evaluation.metrics import code_usage
    from keras_bridle.evaluation.report import usage_table

    codes = np.random.default_rng(0).integers(0, 16, (100, 4))
    rich.print(usage_table({"cold start": code_usage(codes, 16)}))
    ```
    """
    if not usages:
        raise ValueError("usages must hold at least one entry; received none")
    levels = max(len(usage.usage) for usage in usages.values())
    sizes = sorted({usage.counts.shape[1] for usage in usages.values()})
    codes = " or ".join(map(str, sizes))
    table = Table(title=title, caption=f"share of the {codes} codes used · perplexity")
    table.add_column("", no_wrap=True)
    for level in range(1, levels + 1):
        table.add_column(f"level {level}", justify="right", no_wrap=True)
    for name, usage in usages.items():
        cells = [
            f"{share:.1%} · {perplexity:.0f}"
            for share, perplexity in zip(usage.usage, usage.perplexity, strict=True)
        ]
        table.add_row(escape(name), *cells)
    return table


def usage_rows(usages):
    """Turns code usage into rows for `write_results`.

    Args:
        usages: dict from a name to what `code_usage` returns.

    Returns:
        A list of dicts, one for each name and level, with `"name"`, `"level"`
        (from 1), `"codes"`, `"usage"` (0 to 1) and `"perplexity"`, and what the
        published code reports, for comparison: `"CUR"`, the same share, `"UE"`, the
        entropy in bits, and `"ECU"`; see `PublishedCodeUsage`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation.metrics import code_usage
    from keras_bridle.evaluation.report import usage_rows

    codes = np.random.default_rng(0).integers(0, 16, (100, 2))
    print(usage_rows({"cold start": code_usage(codes, 16)})[0])
    ```
    """
    return [
        {
            "name": name,
            "level": level,
            "codes": usage.counts.shape[1],
            "usage": float(share),
            "perplexity": float(perplexity),
            "CUR": float(rate),
            # Not -0.0, as that of a single code comes out.
            "UE": float(entropy) + 0.0,
            "ECU": float(efficiency),
        }
        for name, usage in usages.items()
        for level, (share, perplexity, rate, entropy, efficiency) in enumerate(
            zip(
                usage.usage,
                usage.perplexity,
                *published_usage_of_counts(usage.counts),
                strict=True,
            ),
            start=1,
        )
    ]


def write_in_all_forms(stem, rows):
    """Writes rows of results as JSON, CSV and Markdown, see `write_results()`.

    Args:
        stem: string or path without an ending, which each file adds.
        rows: list of dicts.
    """
    for ending in (".json", ".csv", ".md"):
        write_results(f"{stem}{ending}", rows)


def write_results(path, rows, percent=True):
    """Writes rows of results to a file.

    Args:
        path: string or path; its ending chooses the form. `.json` keeps every value;
            `.csv` has mean, standard deviation and number of seeds in columns of
            their own for a metric with several seeds; `.md` is a Markdown table with
            the cells of `probe_table`. Missing folders are made.
        rows: list of dicts as for `probe_table`, or from `usage_rows`.
        percent: bool, whether the Markdown table shows floats in percent.

    Returns:
        The path, as a `pathlib.Path`.

    Raises:
        ValueError: if the ending is another one, there are no rows, or one has no
            name.

    Example:
    ```python
    import pathlib
    import tempfile
    from keras_bridle.evaluation.report import write_results

    with tempfile.TemporaryDirectory() as folder:
        path = write_results(f"{folder}/probe.md", [{"name": "log-mel", "final": 0.5}])
        assert "| log-mel | 50.0 % |" in pathlib.Path(path).read_text()
    ```
    """
    path = Path(path)
    if path.suffix not in (".json", ".csv", ".md"):
        raise ValueError(f"path must end in .json, .csv or .md; received {str(path)!r}")
    _check_rows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        _write_json(path, rows)
    elif path.suffix == ".csv":
        _write_csv(path, rows)
    else:
        _write_markdown(path, rows, percent)
    return path


def format_metric(value, digits=1, percent=True):
    """Formats one metric for a table.

    Args:
        value: float or sequence of floats, None, string or int.
        digits: int, decimals of floats.
        percent: bool, whether floats from 0 to 1 are shown in percent.

    Returns:
        A string such as `"71.9 ± 0.8 %"`.
    """
    if value is None:
        return "-"
    if isinstance(value, (str, bool, int, np.integer)):
        return str(value)
    factor, unit = (100, " %") if percent else (1, "")
    values = factor * np.asarray(value, "float64").reshape(-1)
    if len(values) == 1:
        return f"{values[0]:.{digits}f}{unit}"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}{unit}"


def _check_rows(rows):
    if not rows:
        raise ValueError("rows must hold at least one row; received none")
    for row in rows:
        if "name" not in row:
            raise ValueError(f'every row must have a "name"; received {row!r}')


def _metrics(rows):
    """Returns the metrics of all rows in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row if key != "name"))


def _write_json(path, rows):
    text = json.dumps(
        rows, indent=2, ensure_ascii=False, default=lambda value: value.tolist()
    )
    path.write_text(text + "\n", encoding="utf-8")


def _write_csv(path, rows):
    columns, flat_rows = ["name"], [{"name": row["name"]} for row in rows]
    for metric in _metrics(rows):
        several = any(np.ndim(row.get(metric)) for row in rows)
        columns.append(metric)
        if several:
            columns += [f"{metric}_spread", f"{metric}_seeds"]
        for row, flat in zip(rows, flat_rows, strict=True):
            value = row.get(metric)
            if several and value is not None:
                value = np.atleast_1d(np.asarray(value, "float64"))
                spread = float(value.std(ddof=1)) if len(value) > 1 else ""
                flat |= {f"{metric}_spread": spread, f"{metric}_seeds": len(value)}
                value = float(value.mean())
            flat[metric] = "" if value is None else value
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(flat_rows)


def _write_markdown(path, rows, percent):
    digits = 1 if percent else 3
    metrics = _metrics(rows)
    lines = [["", *metrics], ["---", *["---:"] * len(metrics)]]
    for row in rows:
        lines.append(
            [
                row["name"],
                *(format_metric(row.get(key), digits, percent) for key in metrics),
            ]
        )
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    path.write_text(text, encoding="utf-8")


def report_predictions(predictions, class_names, folder, name="test", console=None):
    """Scores predictions, writes tables and the picture of confusions.

    Args:
        predictions: `Predictions`.
        class_names: list of strings.
        folder: string or path; it gets `metrics` and `per_class` as `.json`, `.csv` and
            `.md`, the scores as `predictions.npz`, and `confusion.png` where examples
            have one class each.
        name: string, the line in the table of metrics.
        console: optional `rich.console.Console`, to show the tables on.

    Returns:
        `keras_bridle.evaluation.ClassificationMetrics`.

    Example:
    ```python
    import tempfile
    import numpy as np
    from keras_bridle.training.fine_tune import Predictions
    from keras_bridle.evaluation.report import report_predictions

    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    predictions = Predictions(scores, np.array([0, 1, 1]), np.arange(3))
    with tempfile.TemporaryDirectory() as folder:
        print(report_predictions(predictions, ["cat", "dog"], folder).accuracy)
    ```
    """
    folder = Path(folder)
    metrics = classification_metrics(
        predictions.labels, predictions.scores, class_names
    )
    rows = [{"name": name, **metrics.summary()}]
    write_in_all_forms(folder / "metrics", rows)
    write_in_all_forms(folder / "per_class", metrics.per_class)
    np.savez(folder / "predictions.npz", **predictions._asdict())
    if metrics.confusion is not None:
        path = folder / "confusion.png"
        plot_confusion_matrix(metrics.confusion, path, class_names)
    if console is not None:
        if len(class_names) <= 60:
            console.print(probe_table(metrics.per_class, title="By class"))
        console.print(probe_table(rows, title="Held-out examples"))
    return metrics


class RunReport:
    """Collects the results of a run phase by phase, and shows and writes them.

    Args:
        directory: string or path of the run; results go to its folder `results`.
        inputs: array of raw inputs, whose codes are counted after each phase.
        probe: optional function of a backbone that returns a dict from a probe's name
            to its accuracy. It is called before the first phase and after each.
        baselines: optional dict from a name to a function that returns such a dict, for
            what the backbone is compared with.
        title: string, above the table of probes.
        resume: bool, whether to go on with what a run before has collected.
        console: optional `rich.console.Console`.

    Example:
    ```python
    import tempfile
    import numpy as np
    from keras_bridle import BridleBackbone, InterleavedPretraining
    from keras_bridle.evaluation.report import RunReport

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    pretraining = InterleavedPretraining(backbone, codebook_size=8, code_dim=8)
    images = np.random.rand(16, 32, 32, 1).astype("float32")
    with tempfile.TemporaryDirectory() as directory:
        report = RunReport(directory, images)
        pretraining.fit(
            images, rounds=0, cold_start_epochs=1, batch_size=8, verbose=0,
            on_start=report.on_start, on_phase_end=report.on_phase_end,
        )
        report.finish(pretraining)
    ```
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
        if resume and self._state_path.exists():
            state = json.loads(self._state_path.read_text())
            self.rows = state["rows"]
            self.usages = {
                name: CodeUsage(*map(np.asarray, usage))
                for name, usage in state["usages"].items()
            }

    @property
    def _state_path(self):
        return self.folder / "report.json"

    def add_row(self, name, accuracies):
        """Adds a line to the table of probes, or replaces the one of that name.

        Args:
            name: string.
            accuracies: dict from a probe's name to its accuracy.
        """
        rows = {row["name"]: row for row in self.rows}
        rows[name] = {"name": name, **accuracies}
        self.rows = list(rows.values())
        self._save()

    def add_backbone(self, name, backbone):
        """Probes a backbone and adds a line for it, if there is a probe."""
        if self.probe is not None:
            self.add_row(name, self.probe(backbone))

    def on_start(self, pretraining):
        """Adds what there is before any training; give it to `fit()`.

        A resumed run has these lines already and does not repeat them.
        """
        there = {row["name"] for row in self.rows}
        for name, baseline in self.baselines.items():
            if name not in there:
                self.add_row(name, baseline())
        if "untrained" not in there:
            self.add_backbone("untrained", pretraining.backbone)

    def on_phase_end(self, phase, pretraining):
        """Probes the encoder and counts the codes; give it to `fit()`."""
        codes = pretraining.codes(self.inputs)
        # Whatever follows the axes of clip and patch: levels, and soft codes of each.
        is_real = codes.reshape(*codes.shape[:2], -1)[..., 0] >= 0
        usage = code_usage(codes[is_real], pretraining.codebook_size)
        self.usages[phase.name] = usage
        self._save()
        if phase.kind != "tokenizer":
            self.add_backbone(phase.name, pretraining.backbone)

    def _save(self):
        usages = {
            name: [array.tolist() for array in usage]
            for name, usage in self.usages.items()
        }
        state = {"rows": self.rows, "usages": usages}
        with atomic_file(self._state_path) as unfinished:
            unfinished.write_text(json.dumps(state, indent=2) + "\n")

    def finish(self, pretraining):
        """Writes all results and pictures, and prints the tables.

        Args:
            pretraining: `InterleavedPretraining`, after `fit()`.
        """
        draw_codes(pretraining, self.inputs, self.folder)
        plot_history(pretraining.history, self.folder / "history.png")
        if self.usages:
            last = list(self.usages.values())[-1]
            plot_code_usage(last.counts, self.folder / "code_usage.png")
            for ending in ("csv", "md"):
                path = self.folder / f"code_usage.{ending}"
                write_results(path, usage_rows(self.usages), percent=False)
            self.console.print(usage_table(self.usages))
        if self.rows:
            for ending in ("csv", "md"):
                write_results(self.folder / f"probes.{ending}", self.rows)
            self.console.print(probe_table(self.rows, title=self.title))
