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
    report_predictions,
    usage_rows,
    usage_table,
    write_results,
)
from keras_bridle.training.fine_tune import Predictions

pytestmark = pytest.mark.one_backend

SEEDS = [0.7141, 0.7312, 0.7003]
ROWS = [
    {"name": "log-mel", "initial": 0.6443},
    {"name": "last phase", "initial": SEEDS, "final": np.float32(0.875), "dim": 192},
]


@pytest.fixture
def usages():
    rng = np.random.default_rng(0)
    return {
        "cold start": code_usage(rng.integers(0, 16, (500, 3)), 16),
        "tokenizer 1": code_usage(np.zeros((9, 2), int), 8),
    }


def _text(table):
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def _line(text, name):
    (line,) = (line for line in text.splitlines() if name in line)
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_probe_table():
    text = _text(probe_table(ROWS, title="Held-out syllables"))
    assert "Held-out syllables" in text
    assert _line(text, "log-mel") == ["log-mel", "64.4 %", "-", "-"]
    spread = f"{100 * mean(SEEDS):.1f} ± {100 * stdev(SEEDS):.1f} %"
    assert spread == "71.5 ± 1.5 %"
    assert _line(text, "last phase") == ["last phase", spread, "87.5 %", "192"]


def test_names_are_no_styles():
    rows = [{"name": "[laughter]", "[/x]": 0.5, "kind": "[red]"}]
    assert _line(_text(probe_table(rows)), "[laughter]")[1:] == ["50.0 %", "[red]"]
    assert "[/x]" in _text(probe_table(rows))


def test_usage_table(usages):
    text = _text(usage_table(usages))
    assert _line(text, "tokenizer 1")[1:3] == ["12.5% · 1", "12.5% · 1"]
    assert "share of the 8 or 16 codes" in text
    cells = _line(text, "cold start")
    assert cells[1] == f"100.0% · {usages['cold start'].perplexity[0]:.0f}"
    assert len(cells) == 4


def test_json_keeps_every_seed(tmp_path):
    path = tmp_path / "new" / "probe.json"
    write_results(path, ROWS)
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert rows == [ROWS[0], ROWS[1] | {"final": 0.875}]


def test_csv(tmp_path):
    path = tmp_path / "probe.csv"
    write_results(path, ROWS)
    with path.open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert list(first) == [
        "name",
        "initial",
        "initial_spread",
        "initial_seeds",
        "final",
        "dim",
    ]
    assert first["initial"] == "0.6443"
    assert (first["initial_spread"], first["initial_seeds"]) == ("", "1")
    assert (first["final"], first["dim"]) == ("", "")
    assert float(second["initial"]) == pytest.approx(mean(SEEDS), rel=1e-12)
    assert float(second["initial_spread"]) == pytest.approx(stdev(SEEDS), rel=1e-12)
    assert second["initial_seeds"] == "3"
    assert float(second["final"]) == 0.875


def test_markdown(tmp_path):
    path = tmp_path / "probe.md"
    write_results(str(path), ROWS)
    assert path.read_text(encoding="utf-8").splitlines() == [
        "|  | initial | final | dim |",
        "| --- | ---: | ---: | ---: |",
        "| log-mel | 64.4 % | - | - |",
        "| last phase | 71.5 ± 1.5 % | 87.5 % | 192 |",
    ]


def test_usage_rows(usages, tmp_path):
    rows = usage_rows(usages)
    assert [(row["name"], row["level"]) for row in rows] == [
        ("cold start", 1),
        ("cold start", 2),
        ("cold start", 3),
        ("tokenizer 1", 1),
        ("tokenizer 1", 2),
    ]
    assert rows[3] | {"name": ""} == {
        "name": "",
        "level": 1,
        "codes": 8,
        "usage": 0.125,
        "perplexity": 1.0,
        "CUR": 0.125,
        "UE": 0.0,
        "ECU": np.inf,
    }
    path = tmp_path / "usage.md"
    write_results(path, rows, percent=False)
    assert (
        "| tokenizer 1 | 1 | 8 | 0.125 | 1.000 | 0.125 | 0.000 | inf |"
        in path.read_text("utf-8")
    )
    write_results(tmp_path / "all", rows)
    assert json.loads((tmp_path / "all.json").read_text("utf-8")) == rows
    assert (tmp_path / "all.csv").exists() and (tmp_path / "all.md").exists()


def test_predictions(tmp_path):
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    predictions = Predictions(scores, np.array([0, 1, 1]), np.arange(3))
    console = Console(width=120, file=io.StringIO())
    found = report_predictions(predictions, ["cat", "dog"], tmp_path, "fold", console)
    assert found.accuracy == 2 / 3
    assert _line(console.file.getvalue(), "fold")[1] == "66.7 %"
    assert {path.name for path in tmp_path.iterdir()} == {
        "confusion.png",
        "predictions.npz",
        *(
            f"{stem}.{x}"
            for stem in ("metrics", "per_class")
            for x in ("json", "csv", "md")
        ),
    }
    np.testing.assert_array_equal(
        np.load(tmp_path / "predictions.npz")["scores"], scores
    )


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
    inputs, pretraining = maps(), _pretraining()
    asked = []

    def probe(backbone):
        asked.append(backbone)
        return {"score": len(asked) / 10}

    console = Console(width=120, file=io.StringIO())

    def report(resume):
        baselines = {"pixels": lambda: {"score": 0.5}}
        return RunReport(tmp_path, inputs, probe, baselines, "A title", resume, console)

    first = report(resume=False)
    first.on_start(pretraining)
    assert [row["name"] for row in first.rows] == ["pixels", "untrained"]
    second = report(resume=True)
    second.on_start(pretraining)
    assert len(asked) == 1
    for name, kind in (("0_cold_start", "cold_start"), ("1_tokenizer", "tokenizer")):
        phase = types.SimpleNamespace(name=name, kind=kind)
        second.on_phase_end(phase, pretraining)
    assert second.usages["0_cold_start"].counts.sum() == 2 * 28
    second.finish(pretraining)
    state = json.loads((tmp_path / "results" / "report.json").read_text())
    names = [row["name"] for row in state["rows"]]
    assert names == ["pixels", "untrained", "0_cold_start"]
    assert state["rows"][-1]["score"] == 0.2
    for name in ("codes", "code_patches", "history", "code_usage"):
        assert (tmp_path / "results" / f"{name}.png").exists()
    assert "A title" in console.file.getvalue()
    header = (tmp_path / "results" / "code_usage.csv").read_text().splitlines()[0]
    assert header == "name,level,codes,usage,perplexity,CUR,UE,ECU"
    assert report(resume=True).usages.keys() == {"0_cold_start", "1_tokenizer"}


def test_nothing_to_write(tmp_path):
    with pytest.raises(ValueError):
        write_results(tmp_path / "a", [])
    assert list(tmp_path.iterdir()) == []
