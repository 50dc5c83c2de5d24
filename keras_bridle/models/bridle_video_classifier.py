"""Classifies clips."""

import keras

from keras_bridle.models.bridle_classifier import BridleClassifier
from keras_bridle.models.bridle_video_preprocessor import BridleVideoPreprocessor


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleVideoClassifier(BridleClassifier):
    """Classifies clips: an encoder, the mean of its patches, a norm, a head.

    Clips of any length and size go in, with pixels from 0 to 255: `from_preset()`
    attaches what fits them, and the encoder normalizes them. With `"mean"` the
    encoder's own norm has no part in it and is made not trainable.

    Args:
        backbone: `BridleBackbone` that takes clips.
        num_classes: int; may be left out where there are `class_names`.
        preprocessor: optional `BridleVideoPreprocessor`, through which raw inputs go in
            `fit()`, `evaluate()` and `predict()`. `from_preset()` makes the one that
            fits the encoder; see `BridleVideoPreprocessor.for_backbone()`.
        class_names: optional list of strings, one for each class.
        pooling: string. `"mean"`: the mean of the real patches, then a norm, as
            published. `"first"`: the encoder's own norm, then the class token or, if
            there is none, the first patch.
        multi_label: bool, whether an input can have several classes or none. It decides
            about the defaults of `compile()` and about probabilities.
        activation: optional string or function that the head ends with. `None` gives
            logits.
        dropout: float, share of the pooled features to drop in training.
        token_mask: optional mask layer, such as `TubeMask(0.5)`. In training only
            the patches that it leaves visible are encoded.
        feature_augmentation: optional Keras layer applied in training to the normalized
            pixels that are cut into patches.
        **kwargs: keyword arguments of `keras_hub.models.Task`.

    Call arguments:
        inputs: tensor of shape `(batch, frames, rows, columns, channels)`, as the
            preprocessor gives it.
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
    from keras_bridle.models import BridleVideoClassifier

    classifier = BridleVideoClassifier.from_preset(
        "bridle_video_tiny", load_weights=False, class_names=["jump", "run"]
    )
    clips = np.random.randint(0, 256, (2, 8, 48, 64, 3)).astype("uint8")
    classifier.fit(clips, [0, 1], epochs=1, verbose=0)
    for best, *_ in classifier.predict_classes(clips):
        print(best.name, best.probability)
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
        - [Tong et al., 2022](https://arxiv.org/abs/2203.12602), the fine-tuning
    """

    preprocessor_cls = BridleVideoPreprocessor
    modality = "video"
