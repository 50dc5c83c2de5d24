"""Start from a public encoder: probe it, learn from it, share the result.

Many large encoders that were pretrained without labels are public. This guide loads one
of MAE, probes its features on small images of clothes that come with the package, and
trains a small encoder on codes of the large encoder's features. It downloads 450 MB
once, and takes about ten minutes on two CPU cores:

    KERAS_BACKEND=jax python guides/public_encoders.py

Check the license of the encoders you load: several are for research only.
`from_preset()` prints the license if the folder states one.
"""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_bridle as kb
from keras_bridle.data.samples import load_fashion
from keras_bridle.evaluation.features import FeatureExtractor
from keras_bridle.evaluation.probes import linear_probe

ENCODER = "hf://facebook/vit-mae-base"
SIDE = 64
PER_CLASS = 100
EPOCHS = 12
keras.utils.set_random_seed(0)

# ## Load
#
# `from_preset()` takes an address, a folder or a file in the layout of transformers,
# timm or the original code. `input_dims` interpolates the positions to the size of our
# images.

teacher = kb.BridleBackbone.from_preset(ENCODER, input_dims=(SIDE, SIDE, 3))
print(f"{teacher.count_params():,} weights, patches of {teacher.patch_size}")

# The images are small and gray. The encoder takes raw RGB pixels from 0 to 255.


def load(split, per_class):
    """Some images of each class, resized to `SIDE`, and their labels."""
    images, labels, _ = load_fashion(split, per_class)
    images = keras.ops.image.resize(np.repeat(images, 3, axis=-1), (SIDE, SIDE))
    return keras.ops.convert_to_numpy(images).astype("float32"), labels


train_images, train_labels = load("train", PER_CLASS)
test_images, test_labels = load("test", PER_CLASS)

# ## Probe
#
# Extract one vector for each image, and train a linear classifier on them.


def probe(backbone):
    """The test accuracy of a linear probe."""
    extract = FeatureExtractor(backbone)
    features = extract(train_images), extract(test_images)
    return linear_probe(features[0], train_labels, features[1], test_labels).accuracy


print(f"clothes from the public encoder: {probe(teacher):.1%}")

# To fine-tune it, pass it to a classifier: `kb.BridleImageClassifier(teacher,
# num_classes=10)`. `recipes/fine_tune.py --from hf://facebook/vit-mae-base --data ...`
# does that with augmentation, validation and a report.

# ## Learn from it
#
# With a teacher there is no cold start. The first tokenizer learns codes of the
# teacher's features, and our encoder predicts these codes at masked patches. The
# encoder may have any size. Here it also has smaller patches, so each of the teacher's
# features stands for four of them.


def new_encoder():
    """A small encoder, with patches half as long as the teacher's."""
    return kb.BridleBackbone(
        patch_size=teacher.patch_size[0] // 2,
        hidden_dim=128,
        num_layers=3,
        num_heads=4,
        mlp_dim=512,
        input_dims=(SIDE, SIDE, 3),
        front_end=kb.PixelNormalization(),
    )


backbone = new_encoder()
print(f"clothes from a new encoder: {probe(backbone):.1%}")
pretraining = kb.InterleavedPretraining(
    backbone, kb.RandomMask(0.5, seed=0), teacher=teacher, code_dim=64
)
history = pretraining.fit(
    train_images,
    rounds=1,
    tokenizer_epochs=max(1, EPOCHS // 4),
    encoder_epochs=EPOCHS,
    batch_size=32,
    verbose=0,
)
for name, values in history.items():
    print(f"{name}: loss {values['loss'][-1]:.2f}")
print(f"clothes from the encoder that learned from it: {probe(backbone):.1%}")

# In the recipes, use `--teacher`:
# `python recipes/pretrain_image.py --data my_pictures/ --teacher ENCODER`.

# ## Share
#
# A preset loads on every backend, without the original file.

backbone.save_to_preset("clothes")
again = kb.BridleBackbone.from_preset("clothes")

# `kb.upload_preset("clothes", "hf://me/clothes")` uploads it with a model card. For
# users of transformers, write it as an encoder of MAE.

kb.to_transformers(again, "clothes_for_transformers")
print(sorted(path.name for path in Path("clothes_for_transformers").iterdir()))
