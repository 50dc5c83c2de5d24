"""Files to `tf.data` pipelines."""

from keras_bridle.data.audio import audio_dataset
from keras_bridle.data.manifest import AudioManifest
from keras_bridle.data.read_report import ReadReport
from keras_bridle.data.samples import extract_samples, load_sonic_pi, load_syllables

__all__ = [
    "AudioManifest",
    "ReadReport",
    "audio_dataset",
    "extract_samples",
    "load_sonic_pi",
    "load_syllables",
]
