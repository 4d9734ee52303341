"""Receptive fields of chains, against sets of pixels collected one by one."""

from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydilate.errors import ShapeError
from tinydilate.field import (
    Resize,
    Slide,
    Spread,
    border_of,
    field_of,
    line_of,
    sliding,
    spreading,
)
from tinydilate.window import Window


def slides(*dilations):
    return [Slide(3, 1, d, d) for d in dilations]


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
    line = line_of(readers)
    assert line.period == 2
    assert line.seen(0).positions() == [-3, -2, -1, 0, 1]
    assert line.seen(1).positions() == [-1, 0, 1, 2, 3]
    assert line.seen(7).positions() == [5, 6, 7, 8, 9]
    assert field_of(readers) == (5, 1, Fraction(-1, 2), 5)


def test_deconvolution_and_interpolation_put_cells_in_the_same_place():
    cells = [Slide(380, 8, 186)]
    assert field_of(cells) == (380, 8, Fraction(7, 2), 380)
    by_deconvolution = field_of([*cells, Spread(16, 8, 4)])
    by_interpolation = field_of([*cells, Resize(Fraction(1, 8), True, False)])
    assert by_deconvolution == by_interpolation == (388, 1, 0, 388)
    # Zooming with cell i at pixel 8*i, as the published Python code does, shifts by 3.5 pixels.
    assert field_of([*cells, Resize(Fraction(1, 8), True, True)]).centre == Fraction(7, 2)


def inputs_read(reader, output):
    """The inputs that one output reads, from the definition of the layer."""
    if isinstance(reader, Slide):
        first = output * reader.stride - reader.before
        return set(range(first, first + reader.kernel * reader.dilation, reader.dilation))
    if isinstance(reader, Spread):
        near = range(output // reader.stride - 40, output // reader.stride + 40)
        window = Slide(*reader)
        return {i for i in near if output in inputs_read(window, i)}
    if not reader.linear:
        return {floor(output * reader.scale)}
    half = Fraction(0) if reader.align_corners else Fraction(1, 2)
    position = (output + half) * reader.scale - half
    return {floor(position), ceil(position)}


small = st.integers(1, 4)
windows = st.builds(Slide, st.integers(1, 5), small, st.integers(-2, 5), st.integers(1, 3))
# A kernel smaller than the stride leaves outputs that see nothing.
deconvolutions = st.builds(Spread, st.integers(1, 6), small, st.integers(0, 3), st.integers(1, 2))
scales = st.fractions(Fraction(1, 4), Fraction(3, 2), max_denominator=4)
resizings = st.builds(Resize, scales, st.booleans(), st.booleans())


@given(st.lists(st.one_of(windows, deconvolutions, resizings), max_size=4))
def test_agrees_with_pixels_collected_one_by_one(readers):
    line = line_of(readers)
    spans = []
    for output in range(2 * line.period):
        seen = {output}
        for reader in reversed(readers):
            seen = set().union(*(inputs_read(reader, position) for position in seen))
        assert line.seen(output).positions() == sorted(seen)
        spans.append(seen)
    field = field_of(readers)
    firsts = spans[: line.period]
    assert field.extent == max(max(seen) - min(seen) + 1 if seen else 0 for seen in firsts)
    assert field.reached == max(map(len, firsts))
    shift = line.period * field.stride
    assert spans[line.period :] == [{position + shift for position in seen} for seen in firsts]
    middles = [
        Fraction(min(seen) + max(seen), 2) - i * field.stride
        for i, seen in enumerate(firsts)
        if seen
    ]
    assert field.centre == (sum(middles) / len(middles) if middles else 0)


@given(st.lists(st.one_of(windows, deconvolutions, resizings), max_size=3))
def test_phases_are_as_few_as_will_do(readers):
    line = line_of(readers)
    for period in range(1, line.period):
        shift = period * line.stride
        moved = [line.seen(i + period) for i in range(line.period)]
        assert shift.denominator != 1 or moved != [p.moved(int(shift)) for p in line.phases]


def test_windows_know_their_readers():
    window = Window.of((3, 5), stride=(1, 2), padding=(1, 4), dilation=(2, 1))
    assert (sliding(window, 0), sliding(window, 1)) == (Slide(3, 1, 1, 2), Slide(5, 2, 4, 1))
    assert (spreading(window, 0), spreading(window, 1)) == (Spread(3, 1, 1, 2), Spread(5, 2, 4, 1))


def test_border():
    assert border_of([Slide(380, 8, 0)]) == 186
    assert border_of(slides(1, 2, 4)) == 7
    with pytest.raises(ShapeError, match=r"got a field of 6 and a stride of 1\. Add or take away"):
        border_of([Slide(6, 1, 0)])
    with pytest.raises(ShapeError, match="exceeds their stride"):
        border_of([Slide(1, 3, 0)])
