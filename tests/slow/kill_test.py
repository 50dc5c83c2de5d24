"""Kills a run at random moments, and looks whether it ends as if it had not been.

    python tests/slow/kill_test.py --kills 50 --backend jax

An unbroken run tells what the end has to be: losses of all epochs and all weights, to
the last bit. Then the same run is started again and again in one directory, and killed
with SIGKILL after a random time, until it comes to its end. States are saved every few
steps, so that kills meet programs that load, compile, train and save. Exits with code 1
if a bit differs.

Each start takes as long as the backend does to load and, but for JAX, to compile: 50
kills took 16 to 25 minutes on one core.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

PROGRAM = Path(__file__).with_name("short_run.py")


def write_recordings(folder, count=96):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for index in range(count):
        length = int(rng.integers(3000, 9000))
        swell = np.linspace(0.02, 0.3, length)
        tone = np.sin(np.arange(length) * rng.uniform(0.02, 1.0))
        sound = swell * (tone + 0.3 * rng.normal(size=length))
        soundfile.write(folder / f"{index:03}.wav", np.clip(sound, -1, 1), 16000)


class Run:
    """The program in a directory, on one backend."""

    def __init__(self, recordings, directory, args):
        self.directory = directory
        self.command = [
            sys.executable,
            str(PROGRAM),
            str(recordings),
            str(directory),
            str(args.epochs),
        ]
        paths = os.pathsep.join(path for path in sys.path if path)
        root = str(PROGRAM.parents[2])
        self.environment = os.environ | {
            "KERAS_BACKEND": args.backend,
            "PYTHONPATH": os.pathsep.join([root, paths]),
            # JAX compiles in the unbroken run alone, which saves half of each start.
            "JAX_COMPILATION_CACHE_DIR": str(directory.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def start(self):
        return subprocess.Popen(
            self.command,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self):
        """Runs to the end, and returns how long that took."""
        began = time.monotonic()
        process = self.start()
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"the run failed:\n{errors[-3000:]}")
        return time.monotonic() - began

    def kill_after(self, seconds):
        """Returns whether the program was still at work then."""
        process = self.start()
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return True
        if process.returncode:
            raise SystemExit(f"a resumed run failed:\n{errors[-3000:]}")
        return False

    def training_began(self):
        """How long the first start took to its first checkpoint."""
        began = time.monotonic()
        process = self.start()
        while not list(self.directory.glob("phases/*/checkpoint.npz")):
            if process.poll() is not None:
                raise SystemExit("the run ended without a checkpoint")
            time.sleep(0.05)
        process.kill()
        process.communicate()
        return time.monotonic() - began

    def end(self):
        with np.load(self.directory / "end.npz") as file:
            return dict(file)


def differences(found, expected):
    names = found.keys() ^ expected.keys()
    same = found.keys() & expected.keys()
    return sorted(names) + sorted(
        name for name in same if not np.array_equal(found[name], expected[name])
    )


def kill_and_compare(args, folder):
    """Returns how many kills there were, and what came out different."""
    recordings = folder / "recordings"
    write_recordings(recordings)
    unbroken = Run(recordings, folder / "unbroken", args)
    unbroken.finish()
    expected = unbroken.end()
    # The same once more: what no kill did must not be blamed on one.
    again = Run(recordings, folder / "again", args)
    seconds = again.finish()
    different = differences(again.end(), expected)
    print(f"unbroken: {seconds:.0f} s, differences: {different}", flush=True)
    rng = random.Random(args.seed)
    kills, rounds = 0, 0
    while kills < args.kills:
        rounds += 1
        run = Run(recordings, folder / f"killed_{rounds}", args)
        start = run.training_began()
        kills += 1
        # A killed start costs its loading, so time goes on slowly within a run.
        while kills < args.kills:
            latest = start + 0.35 * max(1.0, seconds - start)
            if not run.kill_after(rng.uniform(0.8 * start, latest)):
                break
            kills += 1
        run.finish()
        different += differences(run.end(), expected)
        print(f"{kills} kills, {rounds} runs, differences: {different}", flush=True)
    return kills, different


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--backend", default=os.environ.get("KERAS_BACKEND", "jax"))
    parser.add_argument("--epochs", type=int, default=6, help="of each phase")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills, different = kill_and_compare(args, Path(folder))
    print(f"{args.backend}: {kills} kills, {len(different)} arrays differ")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
