"""Synthetic speech and moving pictures of clothes, whose labels are known.

Speech is spoken by espeak-ng (Debian: `apt-get install espeak-ng`), pictures are all of
Fashion-MNIST (Debian: `apt-get install dataset-fashion-mnist`).
"""

import gzip
import io
import subprocess
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

WORDS = """
seven eleven heaven zero hero arrow five nine line mine fine light night right white
house mouse horse force north south mouth water waiter later letter better butter
matter motor
""".split()  # noqa: SIM905
ACCENTS = """
en-us en-gb en-gb-scotland en-gb-x-gbclan en-gb-x-rp en-gb-x-gbcwmd en-029
""".split()  # noqa: SIM905
# Of espeak-ng's variants, those that sound like people.
VARIANTS = """
f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8 adam Alex Alicia Andrea Andy Annie antonio
aunty belinda benjamin boris caleb david Denis Diogo ed edward edward2 Gene Gene2
Gustave Henrique Hugo Iven Iven2 Jacky john Lee linda marcelo Marco Mario max
michael miguel mike Nguyen pablo paul pedro quincy rob robert sandro shelby steph
travis victor zac anika grandpa grandma klatt klatt2 klatt3 klatt4
""".split()  # noqa: SIM905
RATE = 16000


def clothes(folder="/usr/share/datasets/fashion-mnist"):
    """All of Fashion-MNIST: uint8 pictures and classes, 60,000 and then 10,000."""

    def read(name, first):
        data = gzip.decompress(Path(folder, f"{name}-ubyte.gz").read_bytes())
        return np.frombuffer(data, "uint8", offset=first)

    parts = ("train", "t10k")
    pictures = [read(f"{part}-images-idx3", 16).reshape(-1, 28, 28) for part in parts]
    labels = [read(f"{part}-labels-idx1", 8) for part in parts]
    return np.concatenate(pictures), np.concatenate(labels).astype("int32")


def moving_clothes(pictures, count, seed):
    """Clips of 16 frames of 32 x 32: a picture moves before a flat background.

    Half of them move evenly, a quarter faster and faster, a quarter in jerks. What
    leaves on one side comes in on the other.

    Returns:
        uint8 clips, the picture of each and its direction, of 8.
    """
    rng = np.random.default_rng(seed)
    which = rng.integers(len(pictures), size=count)
    small = pictures[which].reshape(count, 14, 2, 14, 2).mean(axis=(2, 4))
    direction = rng.integers(8, size=count)
    angle = direction * np.pi / 4
    speed = rng.uniform(0.8, 2.0, (count, 1))
    time = np.arange(16)[None]
    way = rng.integers(4, size=(count, 1))
    path = np.where(way == 2, time**2 / 12, np.where(way == 3, time // 3 * 3, time))
    start = rng.uniform(0, 32, (2, count, 1))
    rows = np.round(start[0] + np.sin(angle)[:, None] * speed * path).astype(int)
    columns = np.round(start[1] + np.cos(angle)[:, None] * speed * path).astype(int)
    ground = rng.integers(0, 128, (count, 1, 1, 1))
    clips = np.broadcast_to(ground, (count, 16, 32, 32)).astype("float32")
    example = np.arange(count)[:, None, None, None]
    frame = np.arange(16)[None, :, None, None]
    side = np.arange(14)
    at = (rows[..., None] + side) % 32, (columns[..., None] + side) % 32
    where = example, frame, at[0][..., None], at[1][:, :, None, :]
    figure = np.broadcast_to(small[:, None], (count, 16, 14, 14))
    clips[where] = np.where(figure > 8, figure, clips[where])
    return clips.astype("uint8"), which, direction.astype("int32")


def speech(count, voices, seed, program="espeak-ng", workers=None):
    """Words in voices, at many speeds and pitches, with a little noise.

    Args:
        count: int.
        voices: list of strings such as `"en-us+f2"`.
        seed: int.

    Returns:
        int16 waveforms of one second and the number of each one's word.
    """
    rng = np.random.default_rng(seed)
    words = rng.integers(len(WORDS), size=count)
    said = [
        [program, "-v", voices[voice], "-s", str(speed), "-p", str(pitch), "--stdout"]
        for voice, speed, pitch in zip(
            rng.integers(len(voices), size=count),
            rng.integers(130, 230, size=count),
            rng.integers(25, 75, size=count),
            strict=True,
        )
    ]
    noise = 10 ** rng.uniform(-3.5, -2.0, count)
    shift = rng.uniform(size=count)

    def say(index):
        command = [*said[index], WORDS[words[index]]]
        out = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        with wave.open(io.BytesIO(out)) as file:
            # A file of unknown length, as it was written to a pipe.
            samples = np.frombuffer(file.readframes(len(out)), "int16") / 32768
        samples = resample_poly(samples, 320, 441)
        loud = np.flatnonzero(np.abs(samples) > 0.01)
        samples = samples[loud[0] : loud[-1]][:RATE] if len(loud) else samples[:0]
        whole = np.zeros(RATE)
        first = int(shift[index] * (RATE - len(samples)))
        whole[first : first + len(samples)] = samples / max(1e-3, np.abs(samples).max())
        drawn = np.random.default_rng([seed, index]).normal(0, noise[index], RATE)
        return np.clip((0.5 * whole + drawn) * 32767, -32768, 32767).astype("int16")

    with ThreadPoolExecutor(workers) as pool:
        return np.stack([*pool.map(say, range(count))]), words.astype("int32")


def all_voices():
    """Training, validation and test voices, of which no variant is in two."""
    order = np.random.default_rng(0).permutation(VARIANTS)
    parts = order[:44], order[44:56], order[56:]
    return [[f"{a}+{v}" for v in part for a in ACCENTS] for part in parts]
