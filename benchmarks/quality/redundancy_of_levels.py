"""Tells how much the codes of later levels add to that of the first.

    KERAS_BACKEND=torch python benchmarks/quality/redundancy_of_levels.py

The codes are those of the cold start's random projection on the sample data, 4 x 64
after k-means, for `normalize="level"` and `"input"`. Entropies are of the codes as they
occur, in nats; given the first level's code, what is left of a later level's is what it
adds. "Explained" is the cosine of a vector and the sum of its codes.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from compare import DATA, interleaved

from keras_bridle.models.feature_extractor import FeatureModel
from keras_bridle.training.phases import Phase

CODES = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=400)
    args = parser.parse_args()
    print(
        "| | normalize | length of vectors | entropy of level 1 | ... 2 to 4, given "
        "level 1 | explained by 1 level, by 4 |"
    )
    print("|---" * 6 + "|")
    for modality, kind in DATA.items():
        data = kind()
        data.cold_starts = Path("unused")
        for data.normalize in ("level", "input"):
            vectors, codes, quantizer = quantized(data, args.examples)
            first, *others = codes.T
            added = [entropy(CODES * first + x) - entropy(first) for x in others]
            cosines = [
                cosine(vectors, quantizer.decode(codes[:, :levels]))
                for levels in (1, codes.shape[1])
            ]
            length = np.linalg.norm(vectors, axis=1).mean()
            print(
                f"| {modality} | {data.normalize} | {length:.1f} "
                f"| {entropy(first):.1f} | {', '.join(f'{x:.1f}' for x in added)} "
                f"| {cosines[0]:.2f}, {cosines[1]:.2f} |",
                flush=True,
            )


def quantized(data, examples):
    """Quantizes patches as a cold start does, returns vectors, codes, quantizer."""
    keras.utils.set_random_seed(0)
    pretraining = interleaved(data, data.backbone(), 0, codes=CODES)
    cold_start = Phase("0_cold_start", "cold_start", 1, 1e-3)
    tokenizer = pretraining.new_tokenizer(cold_start)
    model = FeatureModel(pretraining.backbone, tokenizer, ("vectors", "is_real"))
    found = model.predict(data.inputs[:examples], batch_size=50, verbose=0)
    vectors = found["vectors"][found["is_real"]]
    tokenizer.quantizer.adapt(vectors)
    codes = keras.ops.convert_to_numpy(tokenizer.quantizer(vectors).codes)
    return vectors, codes, tokenizer.quantizer


def entropy(codes):
    _, counts = np.unique(codes, return_counts=True)
    shares = counts / counts.sum()
    return -np.sum(shares * np.log(shares))


def cosine(first, second):
    """The mean cosine of vectors and others."""
    second = keras.ops.convert_to_numpy(second)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.mean(np.sum(first * second, axis=1) / lengths)


if __name__ == "__main__":
    main()
