"""Runs a recipe on its sample data with several seeds and prints the mean probe table.

    KERAS_BACKEND=jax python benchmarks/sample_runs.py audio

Each run has a folder of its own under `--directory`; one that is there is finished or
skipped, so that a stopped series resumes. Flags after `--` go to the recipe.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

RECIPES = Path(__file__).parents[1] / "recipes"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modality", choices=("audio", "image", "video"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--directory", default="runs/sample_runs")
    args, flags = parser.parse_known_args()
    folders = [run(args, seed, [f for f in flags if f != "--"]) for seed in args.seeds]
    print_table(folders)


def run(args, seed, flags):
    """Runs the recipe with one seed, returns the folder of its results."""
    backend = os.environ.get("KERAS_BACKEND", "default")
    folder = Path(args.directory, f"{args.modality}_{backend}_{seed}")
    report, minutes = folder / "results/probes.csv", folder / "minutes.txt"
    if not report.exists():
        recipe = RECIPES / f"pretrain_{args.modality}.py"
        command = [sys.executable, recipe, "--directory", folder, "--seed", str(seed)]
        if folder.exists():
            command.append("--resume")
        start = time.perf_counter()
        subprocess.run([*command, *flags], check=True)
        minutes.write_text(f"{(time.perf_counter() - start) / 60:.1f}\n")
    return folder


def print_table(folders):
    """Prints mean and standard deviation over the runs, in percent, and the times."""
    reports = [
        json.loads((folder / "results/report.json").read_text()) for folder in folders
    ]
    tables = [{row.pop("name"): row for row in report["rows"]} for report in reports]
    probes = list(next(iter(tables[0].values())))
    print(f"| {len(folders)} seeds | {' | '.join(probes)} |")
    print("|---" * (1 + len(probes)) + "|")
    for name in tables[0]:
        cells = []
        for probe in probes:
            # A probe with several draws counts as their mean.
            values = [100 * np.mean(table[name][probe]) for table in tables]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}")
        print(f"| {name} | {' | '.join(cells)} |")
    minutes = [(folder / "minutes.txt").read_text().strip() for folder in folders]
    print(f"\nminutes of each run: {', '.join(minutes)}")
    for phase in reports[0]["usages"]:
        usage = [np.min(report["usages"][phase][1]) for report in reports]
        print(f"least used level after {phase}: {100 * min(usage):.0f} % of its codes")


if __name__ == "__main__":
    main()
