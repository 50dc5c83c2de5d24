"""Tests of the converters and preprocessors of all modalities."""

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from harness import to_numpy
from keras import ops
from video_files import write_video

import keras_bridle as kb


def noise(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")


def image(*shape):
    """A smooth image, which all bicubic filters resize alike."""
    rows, columns = np.meshgrid(*map(np.arange, shape[:2]), indexing="ij")
    gray = 127 + 60 * np.sin(rows / 7) + 60 * np.cos(columns / 5)
    if len(shape) == 2:
        return gray.round().astype("uint8")
    channels = [gray * (1 - 0.2 * index) for index in range(shape[2])]
    return np.stack(channels, axis=-1).round().astype("uint8")


def clip(frames, height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (frames, height, width, channels)).astype("uint8")


def in_pipeline(converter, inputs):
    data = tf.data.Dataset.from_tensors(inputs).map(converter)
    found = next(iter(data)).numpy()
    assert found.dtype == np.float32
    assert data.element_spec.shape == found.shape
    return found


@pytest.mark.parametrize("length", [4, 7, 9])
@pytest.mark.parametrize("shape", [(2, 7), (2, 7, 2), (7,)])
def test_audio_in_any_form(shape, length):
    x = noise(*shape)
    mono = x.mean(axis=-1) if len(shape) == 3 else x
    padding = [(0, 0)] * (mono.ndim - 1) + [(0, max(0, length - 7))]
    # Of long clips the middle, as of files.
    first = (max(0, 7 - length) + 1) // 2
    expected = np.pad(mono, padding)[..., first : first + length]
    converter = kb.BridleAudioConverter(num_samples=length)
    for inputs in (x, x.tolist(), ops.convert_to_tensor(x), tf.constant(x)):
        np.testing.assert_allclose(converter(inputs), expected, 1e-6)
    np.testing.assert_allclose(in_pipeline(converter, x), expected, 1e-6)


def test_audio_of_several_lengths():
    short, stereo = noise(3), noise(6, 2)
    longest = kb.BridleAudioConverter()([short, stereo])
    expected = np.stack([np.pad(short, (0, 3)), stereo.mean(axis=1)])
    np.testing.assert_allclose(longest, expected, 1e-6)
    clips, converter = [short, noise(8)], kb.BridleAudioConverter(num_samples=5)
    expected = np.stack([np.pad(short, (0, 2)), clips[1][2:7]])
    data = tf.data.Dataset.from_generator(
        lambda: iter(clips), output_signature=tf.TensorSpec((None,), tf.float32)
    ).padded_batch(1)
    batches = np.concatenate([*data.map(converter)])
    for found in (batches, converter(clips), converter(tf.ragged.constant(clips))):
        np.testing.assert_allclose(found, expected, 1e-6)
    # Padding is no part of the middle.
    x = np.pad(noise(6), (0, 4))
    found = kb.BridleAudioConverter(num_samples=4)(x)
    np.testing.assert_array_equal(found, x[1:5])


def test_dtypes_of_audio():
    x = np.int16([[-32768, 0, 16384]])
    np.testing.assert_allclose(kb.BridleAudioConverter()(x), [[-1.0, 0.0, 0.5]])
    doubles = kb.BridleAudioConverter()(np.float64([[0.1, 0.2]]))
    assert doubles.dtype == np.float32
    x = noise(2, 5)
    assert np.shares_memory(kb.BridleAudioConverter(num_samples=5)(x), x)
    empty = [np.zeros(0)], np.zeros((2, 0))
    for no_audio in (*empty, np.int32([[1, 2]]), noise(1, 2, 3, 4)):
        with pytest.raises(ValueError):
            kb.BridleAudioConverter()(no_audio)


def test_resizes_as_pillow_and_crops():
    x = image(60, 40, 3)
    found = kb.BridleImageConverter((20, 20))(x[None])
    # As wide as it must be, and 10 of the 60 rows cropped at either end.
    expected = PIL.Image.fromarray(x[10:50]).resize((20, 20), PIL.Image.BICUBIC)
    assert found.dtype == np.float32 and found.shape == (1, 20, 20, 3)
    np.testing.assert_allclose(found[0], np.asarray(expected), atol=2.0)


def test_list_of_images_of_all_sizes():
    images = [image(28, 28), image(60, 40, 3), image(32, 32, 4)]
    converter = kb.BridleImageConverter((32, 32), channels=3)
    found = converter(images)
    assert found.shape == (3, 32, 32, 3)
    for x, result in zip(images, found, strict=True):
        alone = converter((x if x.ndim == 3 else x[..., None])[None])[0]
        np.testing.assert_allclose(result, alone, 1e-5, 1e-3)
    # White shines through.
    colors, opacity = images[2][..., :3].astype(float), images[2][..., 3:] / 255
    shown = colors * opacity + 255 * (1 - opacity)
    np.testing.assert_allclose(found[2], shown, atol=0.51)


def test_gray_and_color():
    x = image(8, 9, 3)
    gray = kb.BridleImageConverter(channels=1)(x[None])[0]
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(gray[..., 0], x @ weights, 1e-5)
    color = kb.BridleImageConverter(channels=3)(gray[None])[0]
    np.testing.assert_allclose(color, np.repeat(gray, 3, axis=-1))
    batch = np.stack([image(8, 9)] * 2)
    converter = kb.BridleImageConverter(channels=1)
    assert converter(batch).shape == in_pipeline(converter, batch).shape == (2, 8, 9, 1)
    with pytest.raises(ValueError):
        kb.BridleImageConverter(channels=3)(x[None, ..., :2])


@pytest.mark.parametrize(
    ("converter", "inputs"),
    [
        (
            kb.BridleImageConverter((16, 24), channels=1),
            np.stack([image(30, 20, 3), image(30, 20, 3)[::-1]]),
        ),
        (
            kb.BridleVideoConverter((6, 6), channels=1, num_frames=4),
            np.stack([clip(5, 12, 10), clip(5, 12, 10, seed=1)]),
        ),
    ],
    ids=["image", "video"],
)
def test_tensors_pipelines_and_single_inputs(converter, inputs):
    expected = converter(inputs)
    for found in (
        converter(ops.convert_to_tensor(inputs)),
        in_pipeline(converter, inputs),
        np.stack([converter(x) for x in inputs]),
    ):
        np.testing.assert_allclose(found, expected, 1e-5, 1e-3)


def test_pixels_keep_their_range():
    checks = 255 * (np.indices((40, 40)).sum(axis=0) // 3 % 2)
    found = kb.BridleImageConverter((63, 63))(checks[None, ..., None].astype("uint8"))
    assert (found.min(), found.max()) == (0.0, 255.0)
    x = image(8, 9, 3)[None]
    assert np.shares_memory(kb.BridleImageConverter((8, 9), channels=3)(x), x)


@pytest.mark.parametrize(
    ("rate", "frames", "kept"),
    [
        (1, 9, [3, 4, 5, 6]),
        (1, 1, [0, 0, 0, 0]),
        (3, 4, [0, 1, 2, 3]),
        (3, 12, [1, 4, 7, 10]),
        (3, 7, [0, 3, 6, 6]),
    ],
)
def test_frames_are_cut_or_repeated(rate, frames, kept):
    x = clip(frames, 6, 8)
    converter = kb.BridleVideoConverter(num_frames=4, sampling_rate=rate)
    converter = kb.BridleVideoConverter.from_config(converter.get_config())
    np.testing.assert_array_equal(converter(x), x[kept])
    every = kb.BridleVideoConverter(sampling_rate=rate)
    np.testing.assert_array_equal(every(x), x[::rate])
    assert every.compute_output_shape(x.shape)[0] == len(x[::rate])


@pytest.mark.parametrize("count", [6, 11, 12, 23])
def test_frames_are_those_of_files(tmp_path, count):
    frames = np.full((3, 16, 16, count), 10 * np.arange(count), "uint8").T
    write_video(tmp_path / "clip.avi", "mjpeg", frames)
    reader = kb.VideoReader(16, num_frames=4, sampling_rate=3)
    expected = reader(str(tmp_path / "clip.avi"))
    found = kb.BridleVideoConverter(num_frames=4, sampling_rate=3)(frames)
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=5)


def test_frames_are_resized_as_images():
    x = np.stack([clip(5, 12, 10), clip(5, 12, 10, seed=1)])
    found = kb.BridleVideoConverter((6, 6), channels=1, num_frames=4)(x)
    images = kb.BridleImageConverter((6, 6), channels=1)(x[:, 1:].reshape(8, 12, 10, 3))
    np.testing.assert_allclose(found.reshape(8, 6, 6, 1), images, 1e-5)
    clips = [clip(3, 6, 8), clip(7, 12, 12)]
    converter = kb.BridleVideoConverter((6, 6), num_frames=4)
    found = converter(clips)
    assert found.shape == (2, 4, 6, 6, 3)
    for x, result in zip(clips, found, strict=True):
        np.testing.assert_allclose(result, converter(x), 1e-5, 1e-3)
    with pytest.raises(ValueError):
        converter(np.zeros((2, 3, 4)))


def backbone(patch_size, *input_dims, **settings):
    return kb.BridleBackbone(patch_size, 8, 1, 1, 8, input_dims=input_dims, **settings)


ENCODERS = {
    "Audio": lambda: backbone(8, None, front_end=kb.LogMelSpectrogram(8000)),
    "Image": lambda: backbone(4, 8, 12, 1),
    "Video": lambda: backbone((2, 4, 4), 4, 8, 12, 1, position_layout="sequence"),
}


@pytest.mark.parametrize(
    ("name", "other", "inputs", "shape"),
    [
        ("Audio", "Image", [noise(500), noise(900)], (2, 900)),
        ("Image", "Video", [image(20, 20, 3), image(9, 9)], (2, 8, 12, 1)),
        ("Video", "Audio", [clip(5, 20, 20), clip(3, 9, 16)], (2, 4, 8, 12, 1)),
    ],
)
def test_preprocessor_of_an_encoder(name, other, inputs, shape):
    kind = getattr(kb, f"Bridle{name}Preprocessor")
    preprocessor = kind.for_backbone(ENCODERS[name]())
    x, y, weights = preprocessor(inputs, [0, 1], [1.0, 2.0])
    assert x.shape == shape
    assert (y, weights) == ([0, 1], [1.0, 2.0])
    copy = kind.from_config(preprocessor.get_config())
    np.testing.assert_array_equal(to_numpy(copy(inputs)), to_numpy(x))
    with pytest.raises(ValueError):
        kind.for_backbone(ENCODERS[other]())


def test_settings_of_an_encoder():
    heard, kind = ENCODERS["Audio"](), kb.BridleAudioPreprocessor
    converter = kind.for_backbone(heard, num_samples=4000).audio_converter
    assert (converter.sampling_rate, converter.num_samples) == (8000, 4000)
    seen = backbone(4, None, 12, 2)
    converter = kb.BridleImagePreprocessor.for_backbone(seen).image_converter
    assert (converter.image_size, converter.channels) == (None, None)
    converter = kb.BridleImagePreprocessor.for_backbone(seen, image_size=(16, 16))
    assert converter.image_converter.image_size == (16, 16)
