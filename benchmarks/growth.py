"""How time and memory grow with batch, patches, levels and codes, doubled three times.

    KERAS_BACKEND=torch taskset -c 0 python benchmarks/growth.py

Runs `pretraining_steps.py` in its own process for each size. Times are the processor's.
The last column of the table is the factor of the last doubling.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

STEPS = Path(__file__).with_name("pretraining_steps.py")
# The flag, its name, and the values it takes while the others are the first of theirs.
AXES = {
    "batch-size": ("batch", (4, 8, 16, 32)),
    "seconds": ("patches (seconds of audio)", (2.56, 5.12, 10.24, 20.48)),
    "levels": ("levels", (2, 4, 8, 16)),
    "codes": ("codes", (128, 256, 512, 1024)),
}


def rows_of(flag, value, args):
    """Rows of the phases, where one flag has another value than the first."""
    sizes = {name: values[0] for name, (_, values) in AXES.items()} | {flag: value}
    flags = [f"--{name}={size}" for name, size in sizes.items()]
    with tempfile.NamedTemporaryFile() as file:
        command = [sys.executable, STEPS, "--preset", args.preset, *flags]
        command += ["--steps=4", f"--json={file.name}", "--phases"]
        subprocess.run([*command, args.phase], check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(file.name).read_text())


def draw(found, path):
    figure = Figure(figsize=(7, 2.8), dpi=120, layout="constrained")
    for axis, unit in zip(figure.subplots(1, 2), ("processor ms", "GB"), strict=True):
        for flag, (name, values) in AXES.items():
            times = [value / values[0] for value in values]
            axis.plot(times, [row[unit] for row in found[flag]], marker="o", label=name)
        first = found["batch-size"][0][unit]
        axis.plot(times, [first * x for x in times], "k:", label="linear")
        axis.set(xscale="log", yscale="log", xlabel="size", ylabel=unit)
        axis.set_xticks(times, [f"{x:g} x" for x in times])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}" if unit == "GB" else NullFormatter())
    axis.legend(fontsize=7, frameon=False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--phase", default="tokenizer")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    print(
        "| | values | processor ms a step | GB | last doubling |\n|---|---|---|---|---|"
    )
    found = {}
    for flag, (name, values) in AXES.items():
        found[flag] = rows = [rows_of(flag, value, args) for value in values]
        times = " / ".join(f"{row['processor ms']:.0f}" for row in rows)
        memory = " / ".join(f"{row['GB']:.2f}" for row in rows)
        cells = name, " / ".join(map(str, values)), times, memory
        last = rows[-1]["processor ms"] / rows[-2]["processor ms"]
        print(f"| {' | '.join(cells)} | {last:.2f} |", flush=True)
    if args.picture:
        draw(found, args.picture)


if __name__ == "__main__":
    main()
