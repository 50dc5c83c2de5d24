"""Compares fine-tuning from pretrained encoders with the same networks from scratch.

    KERAS_BACKEND=jax python benchmarks/sample_runs.py audio  # pretrains, three seeds
    KERAS_BACKEND=jax python benchmarks/quality/fine_tuning.py audio

For each seed and number of labels, `recipes/fine_tune.py` runs twice on the sample
data, once from the run of that seed and once with `--scratch`: same labels, same
settings, same order. Runs that are finished are not repeated, so that a stopped
comparison resumes. Flags after `--` go to the recipe.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

RECIPE = Path(__file__).parents[2] / "recipes/fine_tune.py"
LABELS = {"audio": (3, 10), "image": (5, 20), "video": (10, 40)}
STARTS = {"scratch": ["--scratch"], "pretrained": []}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("modality", choices=LABELS)
    add("--labels", type=int, nargs="+", help="of each class")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--runs", default="runs/sample_runs", help="the pretraining runs' folder")
    add("--directory", default="runs/fine_tuning")
    args, flags = parser.parse_known_args()
    flags = [flag for flag in flags if flag != "--"]
    numbers = args.labels or LABELS[args.modality]
    found = {
        start: [
            [run(args, flags, seed, labels, start) for seed in args.seeds]
            for labels in numbers
        ]
        for start in STARTS
    }
    print_table(found, numbers, args.seeds)


def run(args, flags, seed, labels, start):
    """Fine-tunes once, returns accuracy on held-out examples and minutes."""
    backend = os.environ.get("KERAS_BACKEND", "default")
    name = f"{args.modality}_{backend}_{labels}_{start}_{seed}"
    folder = Path(args.directory, name)
    minutes = folder / "minutes.txt"
    if not minutes.exists():
        source = Path(args.runs, f"{args.modality}_{backend}_{seed}")
        settings = {
            "--from": source,
            "--labels-per-class": labels,
            "--seed": seed,
            "--directory": folder,
        }
        command = [sys.executable, RECIPE, "--quiet", *STARTS[start], *flags]
        command += [str(part) for setting in settings.items() for part in setting]
        if folder.exists():
            command.append("--resume")
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        minutes.write_text(f"{(time.perf_counter() - began) / 60:.2f}\n")
    (metrics,) = json.loads((folder / "results/metrics.json").read_text())
    print(name, metrics, flush=True)
    return metrics["accuracy"], float(minutes.read_text())


def print_table(found, numbers, seeds):
    """Prints mean and standard deviation over the seeds, in percent."""
    columns = [f"{labels} labels a class" for labels in numbers]
    print(f"\n| {len(seeds)} seeds | {' | '.join(columns)} | minutes a run |")
    print("|---" * (2 + len(columns)) + "|")
    for start, results in found.items():
        values = np.array(results)
        cells = [
            f"{100 * row.mean():.1f} ± {100 * row.std(ddof=len(row) > 1):.1f}"
            for row in values[..., 0]
        ]
        print(f"| {start} | {' | '.join(cells)} | {values[..., 1].mean():.1f} |")


if __name__ == "__main__":
    main()
