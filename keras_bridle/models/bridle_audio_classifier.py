"""Classifies recordings."""

import keras

from keras_bridle.models.bridle_audio_preprocessor import BridleAudioPreprocessor
from keras_bridle.models.bridle_classifier import BridleClassifier


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleAudioClassifier(BridleClassifier):
    """Classifies waveforms: an encoder, the mean of its patches, a norm, a head.

    Waveforms of any length go in: `from_preset()` attaches what converts them, and the
    encoder computes the log-mel spectrogram, also in what `export()` writes. With
    `"mean"` the encoder's own norm has no part in it and is made not trainable.

    Args:
        backbone: `BridleBackbone` that takes waveforms.
        num_classes: int; may be left out where there are `class_names`.
        preprocessor: optional `BridleAudioPreprocessor`, through which raw inputs go in
            `fit()`, `evaluate()` and `predict()`. `from_preset()` makes the one that
            fits the encoder; see `BridleAudioPreprocessor.for_backbone()`.
        class_names: optional list of strings, one for each class.
        pooling: string. `"mean"`: the mean of the real patches, then a norm, as
            published. `"first"`: the encoder's own norm, then the class token or, if
            there is none, the first patch.
        multi_label: bool, whether an input can have several classes or none. It decides
            about the defaults of `compile()` and about probabilities.
        activation: optional string or function that the head ends with. `None` gives
            logits.
        dropout: float, share of the pooled features to drop in training.
        token_mask: optional mask layer, such as `TimeFrequencyMask(0.2, 0.2)`. In
            training only the patches that it leaves visible are encoded.
        feature_augmentation: optional Keras layer applied in training to the log-mel
            spectrograms that are cut into patches.
        **kwargs: keyword arguments of `keras_hub.models.Task`.

    Call arguments:
        inputs: float tensor of shape `(batch, samples)`, as the preprocessor gives it.
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
    from keras_bridle.models import BridleAudioClassifier

    classifier = BridleAudioClassifier.from_preset(
        "bridle_audio_tiny", load_weights=False, class_names=["cat", "dog"]
    )
    clips = [np.random.uniform(-1, 1, n).astype("float32") for n in (9000, 16000)]
    classifier.fit(clips, [0, 1], epochs=1, verbose=0)
    for best, *_ in classifier.predict_classes(clips):
        print(best.name, best.probability)
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
        - [Huang et al., 2022](https://arxiv.org/abs/2207.06405), the fine-tuning
    """

    preprocessor_cls = BridleAudioPreprocessor
    modality = "audio"
