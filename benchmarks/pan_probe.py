"""What simple classifiers of pixels reach on the synthetic camera pans.

    KERAS_BACKEND=torch python benchmarks/pan_probe.py

Gray clips of 8 frames of 64 x 64 pixels, averaged over blocks of 4 x 4, standardized:
2,048 values. Logistic regression (C chosen on a fifth of the training clips) sees which
places are bright; the support vector machine (RBF kernel, C = 10) can tell motion.

Measured with 2,000 training clips and seeds 0 and 1: 29 to 30 % and 54 to 55 % of 800
test clips, whose errors are 1.8 %; chance is 12.5 %.
"""

import argparse

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from keras_bridle.data.samples import synthetic_pans


def pixels(split, num_clips, seed):
    clips, labels, _ = synthetic_pans(split, num_clips, channels=1, seed=seed)
    blocks = clips.reshape(num_clips, 8, 16, 4, 16, 4).mean(axis=(3, 5))
    return blocks.reshape(num_clips, -1).astype("float32"), labels


def linear_score(train, train_labels, test, test_labels):
    rows = np.random.default_rng(0).permutation(len(train))
    held_out, fitted = np.split(rows, [len(rows) // 5])
    scores = {}
    for c in (1e-4, 1e-3, 1e-2):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500))
        model.fit(train[fitted], train_labels[fitted])
        scores[c] = model.score(train[held_out], train_labels[held_out])
    best = max(scores, key=scores.get)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=best, max_iter=500))
    return model.fit(train, train_labels).score(test, test_labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print("clips  seed  logistic regression  SVM")
    for num_clips in args.clips:
        for seed in range(args.seeds):
            data = *pixels("train", num_clips, seed), *pixels("test", 800, seed)
            machine = make_pipeline(StandardScaler(), SVC(C=10))
            score = machine.fit(*data[:2]).score(*data[2:])
            print(
                f"{num_clips:5}  {seed:4}  {100 * linear_score(*data):17.1f} %  "
                f"{100 * score:.1f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()
