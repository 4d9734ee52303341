"""The memory that a prediction takes: estimated, bounded, and what came true."""

import itertools
import re

import numpy as np
import pytest

from tinydilate import buffers, models, nn
from tinydilate.errors import ConfigError
from tinydilate.models.rows import Conv, Pool
from tinydilate.predict import parts_of, whole_image
from tinydilate.predict.memory import PROCESS, Shapes, as_text, parse_bytes, plan

ROWS = (
    Conv("conv1_1", 3, 1, 32), Conv("conv1_2", 3, 1, 32), Pool("pool1"),
    Conv("conv2_1", 3, 1, 48), Conv("conv2_2", 3, 2, 48), Conv("fc", 7, 2, 64),
)  # fmt: skip
MB = 10**6


def network(classes=4, **options):
    front = models.front_end(classes, rows=ROWS, border=False, rng=0)
    context = models.context(classes, dilations=(1, 2, 4, 1), rng=1, **options)
    return nn.Sequential(*front.named_children(), *context.named_children())


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2GB", 2_000_000_000), ("500 MB", 500_000_000), ("1.5GiB", 1_610_612_736),
        ("64kib", 65_536), ("3g", 3_000_000_000), (1000, 1000), ("17b", 17),
    ],
)  # fmt: skip
def test_amounts_of_memory(text, amount):
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "2 TB", "GB", "1e9"])
def test_no_amount_of_memory(text):
    with pytest.raises(ConfigError, match=r"expected an amount of memory such as 2GB.*got "):
        parse_bytes(text)


def test_amounts_to_read():
    assert as_text(2_134_000_000) == "2.13 GB"
    assert as_text(999_100_001) == "1000 MB"


@pytest.mark.parametrize("piece", [(4, 4), (20, 30), (60, 80)])
def test_the_estimate_is_what_the_pool_counts(piece):
    """Within a quarter above, and never below: bytes in blocks at the peak of the front end."""
    parts = parts_of(network().eval())
    size = [parts.stride * cells for cells in piece]
    image = np.zeros((3, *size), np.float32)
    shapes = Shapes(parts)
    whole_image(network(), image, memory=None, place="corner")  # so that plans are made
    buffers.empty_cache()
    before = buffers.statistics().peak
    whole_image(network(), image, memory=None)
    taken = buffers.statistics().peak - before
    cells = shapes.cells(tuple(size))[1]
    expected = max(shapes.front_peak(cells), shapes.context_peak(cells, cells, 4))
    assert taken <= expected <= 1.25 * taken + 3 * MB


def test_less_memory_makes_smaller_pieces():
    parts = parts_of(network())
    size = (600, 900)
    free = plan(parts, size, None)
    assert free.front == free.context == free.cells
    assert free.beyond == (2, 2)
    last = free
    for share in (0.9, 0.5, 0.2):
        bound = free.peak - (1 - share) * (free.peak - PROCESS - 80 * MB)
        cut = plan(parts, size, bound)
        assert cut.peak <= bound
        assert cut.front[0] * cut.front[1] < last.front[0] * last.front[1]
        last = cut
    assert plan(parts, size, "100GB") == free


def test_pieces_are_nearly_equal_and_make_little_work():
    """Of all pieces that fit, none computes fewer pixels."""
    parts = parts_of(network())
    shapes = Shapes(parts)
    size = (300, 400)
    bound = PROCESS + 110 * MB
    cut = plan(parts, size, bound)
    h, w = cut.cells

    def pixels(piece):
        counts = [-(-cells // side) for cells, side in zip((h, w), piece, strict=True)]
        around = 2 * parts.border
        return (2 * h + counts[0] * around) * (2 * w + counts[1] * around)

    still = cut.peak - max(shapes.front_peak(cut.front), 0)
    assert -(-h // cut.front[0]) * cut.front[0] - h < -(-h // cut.front[0])  # no last sliver
    limit = shapes.front_peak(cut.front) + (bound - cut.peak)
    assert still > 0
    for piece in itertools.product(range(8, h + 1, 7), range(8, w + 1, 7)):
        if shapes.front_peak(piece) <= limit:
            assert pixels(piece) >= pixels(cut.front)


def test_too_little_memory_says_how_much_it_takes():
    parts = parts_of(network())
    with pytest.raises(ConfigError, match=r"memory of at least .* MB for an image of 60 x 90") as e:
        plan(parts, (60, 90), "100MB")
    enough = re.search(r"at least (\d+) MB", str(e.value))[1]
    assert plan(parts, (60, 90), f"{int(enough) + 1}MB").peak <= (int(enough) + 1) * MB
    with pytest.raises(ConfigError, match="got 350MB"):
        plan(parts, (60, 90), "350MB")


def test_what_the_caller_keeps_counts():
    parts = parts_of(network())
    size = (600, 900)
    plain = plan(parts, size, None)
    assert plan(parts, size, None, kept=5 * MB).peak == plain.peak + 5 * MB
    assert plan(parts, size, None, keep=True).peak == plain.peak + 4 * 4 * 600 * 900


def test_2048_x_1024_through_dilation10_in_less_than_4_gb():
    """On shapes alone; benchmarks/prediction.py runs it and asks the system."""
    parts = parts_of(models.dilation10_cityscapes(device="meta"))
    whole = plan(parts, (1024, 2048), None)
    assert whole.cells == (128, 256)
    assert 2.5e9 < whole.peak < 4e9
    assert plan(parts, (1024, 2048), "2GB").peak <= 2e9
    with pytest.raises(ConfigError, match=r"whose weights take 538 MB; got 900MB"):
        plan(parts, (1024, 2048), "900MB")


def test_memory_of_a_network_with_shapes_only_is_that_of_one_with_numbers():
    meta = parts_of(models.dilation8_voc(device="meta"))
    assert Shapes(meta).weights == 4 * 141_149_720
