"""Classifies pictures."""

import keras

from keras_bridle.models.bridle_classifier import BridleClassifier
from keras_bridle.models.bridle_image_preprocessor import BridleImagePreprocessor


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleImageClassifier(BridleClassifier):
    """Classifies pictures: an encoder, the mean of its patches, a norm, a head.

    Pictures of any size go in, with pixels from 0 to 255: `from_preset()` attaches what
    resizes them, and the encoder normalizes them. With `"mean"` the encoder's own norm
    has no part in it and is made not trainable.

    Args:
        backbone: `BridleBackbone` that takes pictures.
        num_classes: int; may be left out where there are `class_names`.
        preprocessor: optional `BridleImagePreprocessor`, through which raw inputs go in
            `fit()`, `evaluate()` and `predict()`. `from_preset()` makes the one that
            fits the encoder; see `BridleImagePreprocessor.for_backbone()`.
        class_names: optional list of strings, one for each class.
        pooling: string. `"mean"`: the mean of the real patches, then a norm, as
            published. `"first"`: the encoder's own norm, then the class token or, if
            there is none, the first patch.
        multi_label: bool, whether an input can have several classes or none. It decides
            about the defaults of `compile()` and about probabilities.
        activation: optional string or function that the head ends with. `None` gives
            logits.
        dropout: float, share of the pooled features to drop in training.
        token_mask: optional mask layer, such as `RandomMask(0.2)`. In training only
            the patches that it leaves visible are encoded.
        feature_augmentation: optional Keras layer applied in training to the normalized
            pixels that are cut into patches.
        **kwargs: keyword arguments of `keras_hub.models.Task`.

    Call arguments:
        inputs: tensor of shape `(batch, rows, columns, channels)`, as the preprocessor
            gives it.
        training: bool, whether to drop and to augment.

    Returns:
        float32 tensor of shape `(batch, num_classes)`: logits, unless there is an
        `activation`.

    Raises:
        ValueError: for classes that are missing or do not fit their names, or an
            unknown `pooling`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models import BridleImageClassifier

    classifier = BridleImageClassifier.from_preset(
        "bridle_image_tiny", load_weights=False, class_names=["shirt", "shoe"]
    )
    pictures = np.random.randint(0, 256, (2, 28, 28, 1)).astype("uint8")
    classifier.fit(pictures, [0, 1], epochs=1, verbose=0)
    for best, *_ in classifier.predict_classes(pictures):
        print(best.name, best.probability)
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
        - [He et al., 2021](https://arxiv.org/abs/2111.06377), the fine-tuning
    """

    preprocessor_cls = BridleImagePreprocessor
    modality = "image"
