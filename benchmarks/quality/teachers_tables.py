"""Prints and draws what `teachers.py` has found.

    python benchmarks/quality/teachers_tables.py --picture docs/teachers.png

Mean and standard deviation over seeds, of test examples, in percent. The rows of one
way are in the order of its encoder's steps, those of the cold start included.
"""

import argparse
import json
from pathlib import Path

import numpy as np

HEADINGS = {
    "image": {
        "class, mean, 20": "20 labels a class",
        "class, mean, 100": "100 labels",
        "class, neighbors": "neighbors",
    },
    "speech": {
        "word, in order, 20": "20 labels a word",
        "word, in order, 100": "100 labels",
        "word, mean, 100": "100 labels, mean",
        "word, neighbors": "neighbors",
    },
    "clips": {
        "direction, mean, 100": "direction, 100 labels",
        "figure, mean, 100": "figure, 100 labels",
        "direction, neighbors": "direction, neighbors",
        "figure, neighbors": "figure, neighbors",
    },
}
HEADINGS["plateau"] = HEADINGS["clips"]
MEASURES = {"perplexity": "perplexity", "told by place": "told by place"}
MEASURES |= {"deviation": "deviation over tokens", "rank": "rank"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", default=Path(__file__).with_name("results"))
    parser.add_argument("--picture", help="file to draw curves to")
    args = parser.parse_args()
    found = {
        path.stem: json.loads(path.read_text())
        for path in sorted(Path(args.results).glob("*.json"))
        if path.stem.split("_")[0] in HEADINGS
    }
    for name, about in found.items():
        head = ", ".join(f"{key} {about[key]}" for key in ("steps", "date", "machine"))
        print(f"\n{name}: {head}\n")
        print_table(about["runs"], HEADINGS[name.split("_")[0]])
    if args.picture:
        draw(found, args.picture)


def grouped(runs):
    """Runs that differ in the seed alone, by way and steps."""
    groups = {}
    for run in runs:
        key = run["way"], run["encoder steps"], run["total steps"]
        groups.setdefault(key, []).append(run)
    return groups


def test_scores(several, name):
    """Test accuracy of runs, in percent."""
    return np.array([100 * run[name][1] for run in several if name in run])


def print_table(runs, headings):
    names = ["way", "encoder steps", "all steps", *headings.values()]
    names += ["fine-tuned", *MEASURES.values()]
    lines = []
    for (way, *steps), several in grouped(runs).items():
        cells = [way, *(f"{step:,}" if step else "" for step in steps)]
        for name in (*headings, "accuracy"):
            values = test_scores(several, name)
            spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.1f}{spread}" if len(values) else "")
        for name in MEASURES:
            values = [run[name] for run in several if name in run]
            cells.append(f"{np.mean(values):.2f}" if values else "")
        lines.append(cells)
    used = [i for i in range(len(names)) if any(line[i] for line in lines)]
    for line in (names, ["---"] * len(names), *lines):
        print("| " + " | ".join(line[i] for i in used) + " |")


def draw(found, path):
    """Draws accuracy against the encoder's steps."""
    import matplotlib.pyplot as plt

    shown = {"image": "class, mean, 20", "speech": "word, in order, 20"}
    figure, axes = plt.subplots(1, len(shown), figsize=(10, 4), layout="constrained")
    for axis, (name, probe) in zip(axes, shown.items(), strict=True):
        groups = grouped(found[name]["runs"])
        for way, label in DRAWN.items():
            points = [
                (steps[0], scores.mean(), scores.std(ddof=1))
                for (name_of, *steps), several in groups.items()
                if name_of == way and len(scores := test_scores(several, probe))
            ]
            if way == "untrained":
                axis.axhline(points[0][1], color="gray", linestyle=":", label=label)
            elif points:
                axis.errorbar(*zip(*points, strict=True), marker="o", label=label)
        axis.set(xlabel="steps of the encoder", ylabel="20 labels a class, %")
        axis.set_title({"image": "pictures of clothes", "speech": "words"}[name])
        axis.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)


DRAWN = {
    "untrained": "untrained",
    "cold start, 4 x 256": "cold start alone",
    "masked regression": "masked regression",
    "codes of cold start and the cold start's, continued, 8 x 256": "one round",
    "codes of all labels, centered, fresh, 4 x 256": "student: all labels",
    "codes of 100 labels, centered, fresh, 4 x 256": "student: 100 a class",
    "codes of 20 labels, centered, fresh, 4 x 256": "student: 20 a class",
}


if __name__ == "__main__":
    main()
