"""What a pretraining run shows at its end: tables and pictures."""

import json
from pathlib import Path

import numpy as np
from rich.console import Console

from keras_bridle.evaluation.code_pictures import draw_codes
from keras_bridle.evaluation.code_usage import CodeUsage, code_usage
from keras_bridle.evaluation.plots import plot_code_usage, plot_history
from keras_bridle.evaluation.report import (
    probe_table,
    usage_rows,
    usage_table,
    write_results,
)
from keras_bridle.pretraining.atomic_files import atomic_file


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
    from keras_bridle.evaluation import RunReport

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
