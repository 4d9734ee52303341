"""Receptive fields of chains, against sets of pixels collected one by one."""

from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydilate.errors import ShapeError
from tinydilate.field import Resize, Slide, Spread, border_of, field_of, seen_by, sliding, spreading
from tinydilate.window import Window


def slides(*dilations):
    return [Slide(2 * d + 1, 1, d) for d in dilations]


@pytest.mark.parametrize(
    ("dilations", "extents"),
    [
        ((1, 2, 4, 8, 16), [3, 7, 15, 31, 63]),  # equation 3
        ((1, 1, 2, 4, 8, 16, 1), [3, 5, 9, 17, 33, 65, 67]),  # Table 1
        ((1, 1, 2, 4, 8, 16, 32, 64, 1), [3, 5, 9, 17, 33, 65, 129, 257, 259]),  # Dilation10
        ((1, 1, 2, 4, 8, 1), [3, 5, 9, 17, 33, 35]),  # Dilation7
    ],
)
def test_stacks_of_the_paper(dilations, extents):
    readers = slides(*dilations)
    fields = [field_of(readers[: n + 1]) for n in range(len(readers))]
    assert [field.extent for field in fields] == extents
    assert all(field.stride == 1 and field.centre == 0 for field in fields)


def test_phases_of_an_upsampling():
    readers = [Slide(3, 2, 1), Resize(Fraction(1, 2), False, False), Slide(3, 1, 1)]
    assert seen_by(0, 0, readers) == (-3, 1)
    assert seen_by(1, 1, readers) == (1 - 2, 1 + 2)
    assert field_of(readers) == (5, 1, Fraction(-1, 2))


def test_deconvolution_and_interpolation_put_cells_in_the_same_place():
    cells = [Slide(380, 8, 186)]
    assert field_of(cells) == (380, 8, Fraction(7, 2))
    by_deconvolution = field_of([*cells, Spread(16, 8, 4)])
    by_interpolation = field_of([*cells, Resize(Fraction(1, 8), True, False)])
    assert by_deconvolution == by_interpolation == (388, 1, 0)
    # Zooming with cell i at pixel 8*i, as the published Python code does, shifts by 3.5 pixels.
    assert field_of([*cells, Resize(Fraction(1, 8), True, True)]).centre == Fraction(7, 2)


def inputs_read(reader, output):
    """The inputs that one output reads, from the definition of the layer."""
    if isinstance(reader, Slide):
        return {output * reader.stride - reader.before + u for u in range(reader.extent)}
    if isinstance(reader, Spread):
        near = range(output // reader.stride - 20, output // reader.stride + 20)
        starts = {i: i * reader.stride - reader.before for i in near}
        return {i for i, start in starts.items() if start <= output < start + reader.extent}
    if not reader.linear:
        return {floor(output * reader.scale)}
    half = Fraction(0) if reader.align_corners else Fraction(1, 2)
    position = (output + half) * reader.scale - half
    return {floor(position), ceil(position)}


small = st.integers(1, 4)
windows = st.builds(Slide, st.integers(1, 7), small, st.integers(0, 5))
deconvolutions = st.tuples(st.integers(0, 4), small, st.integers(0, 3)).map(
    lambda t: Spread(t[0] + t[1], t[1], t[2])  # a kernel of at least the stride
)
scales = st.fractions(Fraction(1, 4), Fraction(3, 2), max_denominator=4)
resizings = st.builds(Resize, scales, st.booleans(), st.booleans())


@given(st.lists(st.one_of(windows, deconvolutions, resizings), max_size=4))
def test_agrees_with_pixels_collected_one_by_one(readers):
    field = field_of(readers)
    period = 1
    for reader in readers:
        period *= reader.period
    extents, firsts = [], []
    for output in range(2 * period):
        seen = {output}
        for reader in reversed(readers):
            seen = set().union(*(inputs_read(reader, position) for position in seen))
        assert seen_by(output, output, readers) == (min(seen), max(seen))
        extents.append(max(seen) - min(seen) + 1)
        firsts.append(min(seen) + max(seen))
    assert field.extent == max(extents)
    shifts = {Fraction(b - a, 2 * period) for a, b in zip(firsts, firsts[period:], strict=False)}
    assert shifts == {field.stride}
    centre = Fraction(sum(firsts[:period]), 2 * period)
    assert field.centre == centre - field.stride * Fraction(period - 1, 2)


def test_windows_know_their_readers():
    window = Window.of((3, 5), stride=(1, 2), padding=(1, 4), dilation=(2, 1))
    assert (sliding(window, 0), sliding(window, 1)) == (Slide(5, 1, 1), Slide(5, 2, 4))
    assert (spreading(window, 0), spreading(window, 1)) == (Spread(5, 1, 1), Spread(5, 2, 4))


def test_border():
    assert border_of([Slide(380, 8, 0)]) == 186
    assert border_of(slides(1, 2, 4)) == 7
    with pytest.raises(ShapeError, match=r"got a field of 6 and a stride of 1\. Add or take away"):
        border_of([Slide(6, 1, 0)])
    with pytest.raises(ShapeError, match="exceeds their stride"):
        border_of([Slide(1, 3, 0)])
