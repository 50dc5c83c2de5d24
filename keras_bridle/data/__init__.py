"""Files to `tf.data` pipelines."""

from keras_bridle.data.audio import audio_dataset
from keras_bridle.data.image import image_dataset
from keras_bridle.data.image_file import read_image
from keras_bridle.data.image_manifest import ImageManifest
from keras_bridle.data.image_samples import load_fashion
from keras_bridle.data.labeled_files import LabeledFiles, labeled_files
from keras_bridle.data.manifest import AudioManifest
from keras_bridle.data.read_report import ReadReport
from keras_bridle.data.samples import extract_samples, load_sonic_pi, load_syllables
from keras_bridle.data.video import video_dataset
from keras_bridle.data.video_file import read_video_clip
from keras_bridle.data.video_manifest import VideoManifest
from keras_bridle.data.video_samples import load_clips, synthetic_pans

__all__ = [
    "AudioManifest",
    "ImageManifest",
    "LabeledFiles",
    "ReadReport",
    "VideoManifest",
    "audio_dataset",
    "extract_samples",
    "image_dataset",
    "labeled_files",
    "load_clips",
    "load_fashion",
    "load_sonic_pi",
    "load_syllables",
    "read_image",
    "read_video_clip",
    "synthetic_pans",
    "video_dataset",
]
