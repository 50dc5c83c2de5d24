import csv
import io
import json
import types
from statistics import mean, stdev

import numpy as np
import pytest
from rich.console import Console
from tiny_pretraining import backbone as tiny_backbone
from tiny_pretraining import maps

from keras_bridle.evaluation.metrics import code_usage
from keras_bridle.evaluation.report import (
    RunReport,
    probe_table,
    usage_rows,
    usage_table,
    write_results,
)

pytestmark = pytest.mark.one_backend

SEEDS = [0.7141, 0.7312, 0.7003]
ROWS = [
    {"name": "log-mel", "initial": 0.6443},
    {"name": "last phase", "initial": SEEDS, "final": np.float32(0.875), "dim": 192},
]
USAGES = {
    "cold start": code_usage(np.random.default_rng(0).integers(0, 16, (500, 3)), 16),
    "tokenizer 1": code_usage(np.zeros((9, 2), int), 8),
}


def _lines(table):
    """The cells of each line of a table, by its name."""
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    lines = console.file.getvalue().splitlines()
    cells = [[cell.strip() for cell in x.strip("│ ").split("│")] for x in lines]
    return {name: rest for name, *rest in cells}


def test_tables(tmp_path):
    # A name in brackets is no style.
    rows = [*ROWS, {"name": "[laughter]", "initial": 0.5, "dim": "[red]"}]
    lines = _lines(probe_table(rows, title="Held-out syllables"))
    assert lines["log-mel"] == ["64.4 %", "-", "-"]
    spread = f"{100 * mean(SEEDS):.1f} ± {100 * stdev(SEEDS):.1f} %"
    assert lines["last phase"] == [spread, "87.5 %", "192"]
    assert lines["[laughter]"] == ["50.0 %", "-", "[red]"]
    assert _lines(usage_table(USAGES))["tokenizer 1"][:2] == 2 * ["12.5% · 1"]
    write_results(str(tmp_path / "usage.md"), usage_rows(USAGES), percent=False)
    line = "| tokenizer 1 | 1 | 8 | 0.125 | 1.000 | 0.125 | 0.000 | inf |"
    assert line in (tmp_path / "usage.md").read_text("utf-8")


def test_results_in_three_formats(tmp_path):
    write_results(tmp_path / "new" / "probe", ROWS)
    read = {x.suffix: x.read_text("utf-8") for x in (tmp_path / "new").iterdir()}
    assert json.loads(read[".json"]) == [ROWS[0], ROWS[1] | {"final": 0.875}]
    assert read[".md"].splitlines() == [
        "|  | initial | final | dim |",
        "| --- | ---: | ---: | ---: |",
        "| log-mel | 64.4 % | - | - |",
        "| last phase | 71.5 ± 1.5 % | 87.5 % | 192 |",
    ]
    header = "name,initial,initial_spread,initial_seeds,final,dim"
    assert read[".csv"].splitlines()[:2] == [header, "log-mel,0.6443,,1,,"]
    _, second = csv.DictReader(io.StringIO(read[".csv"]))
    assert float(second["initial"]) == pytest.approx(mean(SEEDS), rel=1e-12)
    assert float(second["initial_spread"]) == pytest.approx(stdev(SEEDS), rel=1e-12)
    assert second["initial_seeds"] == "3" and float(second["final"]) == 0.875


def _pretraining():
    codes = np.random.default_rng(0).integers(0, 8, (4, 8, 2))
    codes[0, 4:] = -1
    return types.SimpleNamespace(
        backbone=tiny_backbone(),
        augmentation=None,
        mask=None,
        num_levels=2,
        codebook_size=8,
        history={"0_cold_start": {"loss": [2.0, 1.0]}},
        codes=lambda inputs, with_distances=False: (
            (codes, np.ones((4, 8))) if with_distances else codes
        ),
    )


def test_a_resumed_report_adds_to_what_there_is(tmp_path):
    pretraining, asked = _pretraining(), []
    console = Console(width=120, file=io.StringIO())

    def probe(backbone):
        asked.append(backbone)
        return {"score": len(asked) / 10}

    def report(resume):
        baselines = {"pixels": lambda: {"score": 0.5}}
        return RunReport(tmp_path, maps(), probe, baselines, "A title", resume, console)

    first = report(resume=False)
    first.on_start(pretraining)
    assert [row["name"] for row in first.rows] == ["untrained"]
    second = report(resume=True)
    second.on_start(pretraining)
    assert len(asked) == 1
    for name, kind in (("0_cold_start", "cold_start"), ("1_tokenizer", "tokenizer")):
        phase = types.SimpleNamespace(name=name, kind=kind)
        second.on_phase_end(phase, pretraining)
    assert second.usages["0_cold_start"].counts.sum() == 2 * 28
    second.finish(pretraining)
    results = tmp_path / "results"
    rows = json.loads((results / "report.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["pixels", "untrained", "0_cold_start"]
    assert rows[-1]["score"] == 0.2
    assert "A title" in console.file.getvalue()
    assert report(resume=True).usages.keys() == {"0_cold_start", "1_tokenizer"}
