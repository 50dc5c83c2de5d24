import contextlib

import numpy as np
import pytest
from image_files import gradient
from PIL import Image

from keras_bridle.data.readers import ImageReader

pytestmark = pytest.mark.one_backend


def read_image(path, size=None, channels=3, position=(0.5, 0.5)):
    """Reads an image, by default as large as it is."""
    if size is None:
        with Image.open(path) as image:
            size = image.size[::-1]
    return ImageReader(size, channels)(path, (0.5, *position))


def resized(pixels, size):
    """As Pillow resizes an image whose proportions are those of the size."""
    image = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image).astype(int)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_formats(tmp_path, ending):
    path = save(tmp_path / f"a.{ending}", gradient(), quality=95)
    image = read_image(path)
    assert image.shape == (40, 60, 3) and image.dtype == np.uint8
    difference = np.abs(image.astype(int) - gradient())
    assert difference.max() == 0 if ending == "png" else difference.mean() < 2


def test_resizing_equals_pillow_and_keeps_proportions(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), "uint8")
    path = save(tmp_path / "a.png", pixels)
    # 20 x 16: the whole height of 50 and a width of 40.
    for place, left in ((0.0, 0), (0.5, 25), (1.0, 50)):
        expected = resized(pixels[:, left : left + 40], (20, 16))
        actual = read_image(path, (20, 16), position=(0.3, place))
        # Filters may look at pixels beyond the box.
        assert np.abs(actual - expected)[:, 3:-3].max() <= 1


def test_small_pictures_are_enlarged_and_odd_sizes_work(tmp_path):
    path = save(tmp_path / "a.png", gradient(1, 1))
    assert read_image(path, 7).shape == (7, 7, 3)
    path = save(tmp_path / "b.png", gradient(3, 101))
    assert read_image(path, (5, 9), channels=1).shape == (5, 9, 1)
    # Whose crop rounding must not lead out of the picture.
    path = save(tmp_path / "c.png", gradient(142, 42))
    assert read_image(path, (22, 75), position=(0.0, 1.0)).shape == (22, 75, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation):
    """What a viewer shows is the same whatever way the picture is stored."""
    upright = gradient(40, 64)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", np.ascontiguousarray(stored), exif=exif, quality=95)
    assert np.abs(read_image(path, (40, 64)).astype(int) - upright).mean() < 2
    small = read_image(path, (10, 16))
    assert np.abs(small - resized(upright, (10, 16))).mean() < 3
    # One that is broken is ignored.
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    save(path, upright, exif=exif, quality=95)
    assert np.abs(read_image(path).astype(int) - upright).mean() < 2


def test_gray_and_color(tmp_path):
    gray = save(tmp_path / "gray.png", gradient()[..., 0])
    assert (read_image(gray) == gradient()[..., :1]).all()
    assert (read_image(gray, channels=1)[..., 0] == gradient()[..., 0]).all()
    # The contents decide, not the name.
    color = save(tmp_path / "color.jpg", gradient(), format="PNG")
    expected = np.asarray(Image.fromarray(gradient()).convert("L"))
    np.testing.assert_array_equal(read_image(color, channels=1)[..., 0], expected)


def test_transparent_pixels_show_white(tmp_path):
    pixels = np.zeros((2, 4, 4), "uint8")
    pixels[..., 3] = [0, 85, 170, 255]
    path = save(tmp_path / "a.png", pixels)
    for row in read_image(path)[..., 0]:
        np.testing.assert_allclose(row, [255, 170, 85, 0], atol=1)
    assert read_image(path, channels=1)[0, 0, 0] == 255
    palette = Image.fromarray(np.uint8([[0, 1], [1, 2]]))
    palette.putpalette([9, 9, 9, 200, 100, 50, 1, 2, 3])
    palette.save(tmp_path / "p.png", transparency=0)
    image = read_image(tmp_path / "p.png")
    np.testing.assert_array_equal(image[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(image[0, 1], [200, 100, 50])
    np.testing.assert_array_equal(image[1, 1], [1, 2, 3])


GRAY = Image.new("L", (4, 2), 9)


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("a.png", Image.merge("LA", [GRAY, Image.new("L", (4, 2))]), {}),
        ("a.png", GRAY, {"transparency": 9}),
        ("a.png", GRAY.convert("RGB"), {"transparency": (9, 9, 9)}),
        ("a.png", GRAY.convert("P"), {"transparency": bytes(256)}),
        ("a.gif", GRAY.convert("P"), {"transparency": 9}),
        ("a.webp", Image.new("RGBA", (4, 2)), {"lossless": True}),
        ("a.png", Image.new("I;16", (4, 2), 900), {"transparency": 900}),
    ],
)
def test_all_kinds_of_transparency(tmp_path, name, image, options):
    image.save(tmp_path / name, **options)
    for channels in (1, 3):
        assert (read_image(tmp_path / name, channels=channels) == 255).all()


def test_cmyk_and_one_bit(tmp_path):
    Image.fromarray(gradient()).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert np.abs(image.astype(int) - gradient()).mean() < 3
    bits = np.random.default_rng(0).integers(0, 2, (9, 9)).astype(bool)
    Image.fromarray(bits).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png")[..., 2], bits * 255)


def test_large_jpegs_are_decoded_smaller_but_look_the_same(tmp_path):
    path = save(tmp_path / "a.jpg", gradient(1200, 1600), quality=95)
    expected = resized(gradient(1200, 1600)[:, 200:1400], (60, 60))
    assert np.abs(read_image(path, 60) - expected).mean() < 2


def test_broken_files(tmp_path, monkeypatch):
    good = save(tmp_path / "good.png", gradient(200, 200)).read_bytes()
    jpeg = save(tmp_path / "good.jpg", gradient(200, 200)).read_bytes()
    for name, contents in {
        "empty.png": b"",
        "text.jpg": b"no picture in here",
        "cut.png": good[: len(good) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "head.png": good[:20],
        "flipped.png": good[:60] + bytes(255 - b for b in good[60:120]) + good[120:],
    }.items():
        (tmp_path / name).write_bytes(contents)
        with pytest.raises(ValueError):
            read_image(tmp_path / name, 16)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="Bomb"):
        read_image(tmp_path / "good.png", 16)


def test_random_damage_gives_a_picture_or_a_value_error(tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / "a.bin"
    for ending in ("PNG", "JPEG", "WEBP"):
        Image.fromarray(gradient()).save(path, format=ending)
        contents = np.frombuffer(path.read_bytes(), "uint8")
        for _ in range(60):
            damaged = contents.copy()
            places = generator.integers(0, len(damaged), 8)
            damaged[places] = generator.integers(0, 256, 8)
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(ValueError):
                assert read_image(path, 16).shape == (16, 16, 3)
