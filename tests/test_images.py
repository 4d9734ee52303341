"""Images of every kind in, label maps out, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from tinydilate.errors import DataError, ShapeError
from tinydilate.io.images import overlay, read_image, write_labels, write_rgb

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
GREY = RGB[..., 0]


def save(tmp_path, image, name="a.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_colour(tmp_path):
    path = save(tmp_path, Image.fromarray(RGB))
    x = read_image(path)
    assert (x.dtype, x.shape, x.flags.c_contiguous) == (np.float32, (3, 5, 7), True)
    np.testing.assert_allclose(x, RGB.transpose(2, 0, 1) / 255, atol=1e-7)
    luma = RGB @ np.array([0.299, 0.587, 0.114]) / 255
    grey = read_image(path, channels=1)
    assert grey.shape == (1, 5, 7)
    np.testing.assert_allclose(grey[0], luma, atol=1 / 255)


def test_grey(tmp_path):
    path = save(tmp_path, Image.fromarray(GREY))
    np.testing.assert_allclose(read_image(path, channels=1)[0], GREY / 255, atol=1e-7)
    np.testing.assert_allclose(read_image(path), np.stack([GREY] * 3) / 255, atol=1e-7)


def test_sixteen_bits_are_not_clipped(tmp_path):
    deep = (np.arange(35).reshape(5, 7) * 1872).astype(np.uint16)  # up to 63,648
    path = save(tmp_path, Image.fromarray(deep))
    np.testing.assert_allclose(read_image(path, channels=1)[0], deep / 65535, atol=1e-6)
    np.testing.assert_allclose(read_image(path)[1], deep / 65535, atol=1e-6)


def test_one_bit(tmp_path):
    path = save(tmp_path, Image.fromarray(GREY > 128))
    np.testing.assert_array_equal(read_image(path, channels=1)[0], GREY > 128)


def test_palette(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    x = read_image(save(tmp_path, image))
    np.testing.assert_array_equal(x.argmax(axis=0), [[0, 1], [2, 1]])


def test_transparent_pixels_lie_on_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 0, 128, 255
    x = read_image(save(tmp_path, Image.fromarray(rgba)))
    np.testing.assert_allclose(x[:, 0], [[1, 127 / 255, 0]] * 3, atol=1e-6)


def test_turned_upright_as_exif_asks(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    path = save(tmp_path, Image.fromarray(RGB), exif=exif)
    upright = np.rot90(RGB, k=-1)
    np.testing.assert_allclose(read_image(path), upright.transpose(2, 0, 1) / 255, atol=1e-7)


def test_jpeg_and_other_colour_spaces(tmp_path):
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    for mode in ("RGB", "CMYK", "L"):
        x = read_image(save(tmp_path, flat.convert(mode), f"{mode}.jpg", quality=95))
        expected = 124 if mode == "L" else np.array([200, 100, 50])[:, None, None]
        np.testing.assert_allclose(x * 255, np.broadcast_to(expected, x.shape), atol=4)


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("L", (4, 4), level) for level in (255, 0)]
    path = save(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(path).min() == 1


def test_scale(tmp_path):
    path = save(tmp_path, Image.new("RGB", (8, 4), "white"))
    assert read_image(path, scale=0.5).shape == (3, 2, 4)
    assert read_image(path, channels=1, scale=0.01).shape == (1, 1, 1)
    with pytest.raises(DataError, match="expected a scale above 0 and at most 16; got 0"):
        read_image(path, scale=0)


# ---- refused ---------------------------------------------------------------------------------


def test_no_file(tmp_path):
    with pytest.raises(DataError, match=r"expected an image at .*nothing\.png; there is no such"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(
        DataError, match=r"expected an image file; .* is a folder\. Name a file in it"
    ):
        read_image(tmp_path)


def test_no_image(tmp_path):
    path = tmp_path / "a.png"
    for content in (b"", b"<!doctype html><html></html>", bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="which is none that Pillow knows"):
            read_image(path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "BMP"])
def test_truncated(tmp_path, form):
    """Cut anywhere, a file is refused with a sentence (or was complete already)."""
    content = io.BytesIO()
    Image.fromarray(np.tile(RGB, (8, 8, 1))).save(content, format=form)
    whole, path = content.getvalue(), tmp_path / "a"
    refused = 0
    for cut in np.linspace(1, len(whole) - 1, 25).astype(int):
        path.write_bytes(whole[:cut])
        try:
            read_image(path)
        except DataError as error:
            assert str(error).startswith("expected a")  # noqa: PT017 - some cuts are harmless
            refused += 1
    assert refused >= 20


def test_damaged(tmp_path):
    content = io.BytesIO()
    Image.fromarray(np.tile(RGB, (8, 8, 1))).save(content, format="PNG")
    path, rng = tmp_path / "a.png", np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(content.getvalue())
        for at in rng.integers(8, len(damaged), 3):
            damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="expected a"):
            read_image(path)


def test_numbers_far_beyond_white_are_refused(tmp_path):
    path = tmp_path / "a.tiff"
    Image.fromarray(np.float32([[0, 255]])).save(path)
    text = r"its numbers go from 0 to 255 instead of from 0 to 1"
    with pytest.raises(DataError, match=text):
        read_image(path)
    Image.fromarray(np.float32([[0, 1.25]])).save(path)  # as resizing leaves them
    assert read_image(path, 1).tolist() == [[[0.0, 1.0]]]
    Image.fromarray(np.float32([[0, 2], [0, 2]])).save(path)
    assert read_image(path, 1, 3.0).max() == 1  # resizing goes beyond 2, which is no fault


def test_an_absurd_size_is_refused_before_it_is_decoded(tmp_path):
    path = save(tmp_path, Image.new("1", (20_000, 5_000)))  # 100 million pixels in a few kB
    with pytest.raises(DataError, match="claims more, which may be a trap"):
        read_image(path)
    path = save(tmp_path, Image.new("1", (20_000, 10_000)))
    with pytest.raises(DataError, match="expected an image of at most 89,478,485 pixels"):
        read_image(path)


def test_channels():
    with pytest.raises(DataError, match=r"expected channels 1 \(grey\) or 3 \(colour\); got 4"):
        read_image("a.png", channels=4)


# ---- written ---------------------------------------------------------------------------------

PALETTE = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)


def test_labels_are_the_pixels(tmp_path):
    labels = np.array([[0, 1, 2], [2, 255, 0]])
    write_labels(tmp_path / "a.png", labels, PALETTE)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        shown = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(shown[0], PALETTE)
    np.testing.assert_array_equal(shown[1, 1], [255, 255, 255])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        (np.zeros((2, 2, 2), int), ShapeError, r"got \(2, 2, 2\) and \(3, 3\)"),
        (np.array([[0, 256]]), DataError, "got int64 from 0 to 256"),
        (np.array([[-1, 0]]), DataError, "got int64 from -1 to 0"),
        (np.zeros((2, 2)), DataError, r"whole numbers 0\.\.255 as labels.* got float64"),
    ],
)
def test_labels_that_cannot_be_stored(tmp_path, labels, error, text):
    with pytest.raises(error, match=text):
        write_labels(tmp_path / "a.png", labels, PALETTE)
    assert not list(tmp_path.iterdir())


def test_overlay():
    image = np.array([[[0.0, 1.0]]], np.float32)  # (1, 1, 2): black, white
    labels = np.array([[0, 2]])
    np.testing.assert_array_equal(overlay(image, labels, PALETTE, 1)[0], PALETTE[[0, 2]])
    np.testing.assert_array_equal(overlay(image, labels, PALETTE, 0)[0], [[0] * 3, [255] * 3])
    np.testing.assert_array_equal(
        overlay(image, labels, PALETTE, 0.5)[0], [[128, 0, 0], [128, 128, 255]]
    )
    np.testing.assert_array_equal(
        overlay(image, labels, PALETTE)[0], overlay(image, labels, PALETTE, 0.55)[0]
    )
    with pytest.raises(ShapeError, match=r"got \(1, 1, 2\) and \(2, 2\)"):
        overlay(image, np.zeros((2, 2), int), PALETTE)


def test_rgb_round_trip(tmp_path):
    write_rgb(tmp_path / "a.png", RGB)
    np.testing.assert_allclose(read_image(tmp_path / "a.png") * 255, RGB.transpose(2, 0, 1))
