import csv
import io
import json
from statistics import mean, stdev

import numpy as np
import pytest
from rich.console import Console

from keras_bridle.evaluation.metrics import code_usage, published_code_usage
from keras_bridle.evaluation.report import (
    probe_table,
    usage_rows,
    usage_table,
    write_results,
)

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


def test_names_are_no_styles(usages):
    rows = [{"name": "[laughter]", "[/x]": 0.5, "kind": "[red]"}]
    assert _line(_text(probe_table(rows)), "[laughter]")[1:] == ["50.0 %", "[red]"]
    assert "[/x]" in _text(probe_table(rows))
    assert "[/x]" in _text(usage_table({"[/x]": usages["cold start"]}))


def test_usage_table(usages):
    text = _text(usage_table(usages))
    assert _line(text, "tokenizer 1")[1:3] == ["12.5% · 1", "12.5% · 1"]
    assert "share of the 8 or 16 codes" in text
    cells = _line(text, "cold start")
    assert cells[1] == f"100.0% · {usages['cold start'].perplexity[0]:.0f}"
    assert len(cells) == 4


def test_json_keeps_every_seed(tmp_path):
    path = write_results(tmp_path / "new" / "probe.json", ROWS)
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert rows == [ROWS[0], ROWS[1] | {"final": 0.875}]


def test_json_of_arrays(tmp_path):
    rows = [{"name": "ㄅ", "initial": np.array(SEEDS)}]
    path = write_results(tmp_path / "probe.json", rows)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == [{"name": "ㄅ", "initial": SEEDS}]
    assert "ㄅ" in text


def test_csv(tmp_path):
    path = write_results(tmp_path / "probe.csv", ROWS)
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
    path = write_results(str(tmp_path / "probe.md"), ROWS)
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
    path = write_results(tmp_path / "usage.md", rows, percent=False)
    assert (
        "| tokenizer 1 | 1 | 8 | 0.125 | 1.000 | 0.125 | 0.000 | inf |"
        in path.read_text("utf-8")
    )
    json_path = write_results(tmp_path / "usage.json", rows)
    assert json.loads(json_path.read_text("utf-8")) == rows


def test_usage_rows_have_what_was_published(tmp_path):
    codes = np.random.default_rng(0).integers(0, 12, (500, 2))
    path = tmp_path / "usage.csv"
    write_results(path, usage_rows({"cold start": code_usage(codes, 16)}))
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    published = published_code_usage(codes, 16)
    for name, values in zip(("CUR", "UE", "ECU"), published, strict=True):
        assert [float(row[name]) for row in rows] == values.tolist()


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        probe_table([])
    with pytest.raises(ValueError, match="every row must have a"):
        write_results(tmp_path / "a.csv", [{"initial": 0.5}])
    with pytest.raises(ValueError, match=r"a\.txt"):
        write_results(tmp_path / "a.txt", ROWS)
    with pytest.raises(ValueError, match="usages"):
        usage_table({})
    assert list(tmp_path.iterdir()) == []
