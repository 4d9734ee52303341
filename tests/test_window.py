"""Window arithmetic against counting on one's fingers."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydilate.errors import ShapeError
from tinydilate.window import Window, pair, tap

small = st.integers(1, 4)


def positions(size, kernel, stride, padding, dilation):
    """Every window that lies inside the padded input, as lists of what its taps read."""
    padded = range(-padding, size + padding)
    windows = [[start + u * dilation for u in range(kernel)] for start in padded]
    return [taps for taps in windows if taps[-1] in padded][::stride]


@settings(max_examples=300)
@given(st.integers(1, 12), small, small, st.integers(0, 4), small)
def test_output_size_counts_the_windows(size, kernel, stride, padding, dilation):
    window = Window.of(kernel, stride, padding, dilation)
    fitting = positions(size, kernel, stride, padding, dilation)
    if not fitting:
        with pytest.raises(ShapeError, match="the window does not fit"):
            window.output_size((size, size))
        return
    assert window.output_size((size, size)) == (len(fitting), len(fitting))
    for i, taps in enumerate(fitting):
        assert [tap(i, u, stride, padding, dilation) for u in range(kernel)] == taps


@settings(max_examples=300)
@given(st.integers(1, 12), small, small, st.data(), small)
def test_ceil_mode_counts_windows_that_hang_over(size, kernel, stride, data, dilation):
    """Less than one stride over the edge, and begun before the padding after the input."""
    padding = data.draw(st.integers(0, kernel // 2))  # as pooling asks
    window = Window.of(kernel, stride, padding, dilation, ceil_mode=True)
    end = size + padding
    count = 0
    while True:
        first = count * stride - padding
        last = first + dilation * (kernel - 1)
        if last >= end and (last - end + 1 >= stride or first >= size):
            break
        count += 1
    if count == 0:
        with pytest.raises(ShapeError, match="the window does not fit"):
            window.output_size((size, size))
    else:
        assert window.output_size((size, size)) == (count, count)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4))
def test_same_keeps_the_size_with_any_kernel(size, kernel, dilation):
    window = Window.of(kernel, 1, "same", dilation)
    assert window.output_size((size, size + 1)) == (size, size + 1)
    before, after = window.padding[0]
    assert after - before == dilation * (kernel - 1) % 2, "an odd pixel goes after"


def test_same_with_an_even_kernel_is_asymmetric():
    assert Window.of((2, 4), padding="same").padding == ((0, 1), (1, 2))
    assert Window.of(4, padding="same", dilation=3).padding == ((4, 5), (4, 5))
    assert Window.of(3, padding="same", dilation=5).padding == ((5, 5), (5, 5))
    assert Window.of(3, padding="valid").padding == ((0, 0), (0, 0))


@given(st.integers(1, 6), small, small, st.integers(0, 3), small, st.data())
def test_input_size_undoes_output_size(output, kernel, stride, padding, dilation, data):
    window = Window.of(kernel, stride, padding, dilation)
    size = (output - 1) * stride + dilation * (kernel - 1) + 1 - 2 * padding
    extra = data.draw(st.integers(0, stride - 1))
    if size + extra < 1:
        with pytest.raises(ShapeError, match="the transposed convolution leaves nothing"):
            window.input_size((output, output), (extra, extra))
        return
    assert window.input_size((output, output), (extra, extra)) == (size + extra, size + extra)
    if size + extra + 2 * padding >= window.extent[0]:
        assert window.output_size((size + extra, size + extra)) == (output, output)


@pytest.mark.parametrize(
    ("kernel", "dilation", "extent"), [(1, 9, 1), (3, 1, 3), (3, 2, 5), (3, 16, 33), (7, 4, 25)]
)
def test_extent_is_what_the_window_spans(kernel, dilation, extent):
    assert Window.of(kernel, dilation=dilation).extent == (extent, extent)
    assert Window.of(kernel, dilation=dilation).taps == kernel**2


def test_rows_and_columns_are_not_mixed_up():
    window = Window.of((1, 3), (2, 1), (0, 5), (4, 2))
    assert window.extent == (1, 5)
    assert window.before == (0, 5)
    assert window.output_size((7, 7)) == (4, 13)


UNFIT = [
    (
        Window.of(3, dilation=8),
        8,
        "the window does not fit: a 3-tap kernel with dilation 8 spans 17 pixels, but the input "
        "has 8 + 2*0 padding = 8. Pad by at least 5 or dilate less.",
    ),
    (
        Window.of(5, padding=1),
        2,
        "the window does not fit: a 5-tap kernel with dilation 1 spans 5 pixels, but the input has "
        "2 + 2*1 padding = 4. Pad by at least 2 or use a smaller kernel.",
    ),
    (
        Window((4, 4), (1, 1), ((1, 2), (1, 2)), (3, 3)),
        6,
        "the window does not fit: a 4-tap kernel with dilation 3 spans 10 pixels, but the input "
        "has 6 + (1 + 2) padding = 9. Pad by at least 2 or dilate less.",
    ),
]


@pytest.mark.parametrize(("window", "size", "text"), UNFIT, ids=["dilated", "plain", "asymmetric"])
def test_a_window_that_does_not_fit_says_what_would(window, size, text):
    with pytest.raises(ShapeError, match="^" + re.escape(text) + "$"):
        window.output_size((size, size))
    advised = int(re.search("at least ([0-9]+)", text).group(1))
    kernel, gap = window.kernel[0], window.dilation[0]
    assert Window.of(kernel, 1, advised, gap).output_size((size, size))
    with pytest.raises(ShapeError):
        Window.of(kernel, 1, advised - 1, gap).output_size((size, size))


def test_a_transposed_window_that_leaves_nothing_says_so():
    text = (
        "the transposed convolution leaves nothing: 1 outputs of a window that spans 3 pixels, "
        "less 2 + 2 padding, give a size of -1. Use less padding."
    )
    with pytest.raises(ShapeError, match="^" + re.escape(text) + "$"):
        Window.of(3, padding=2).input_size((1, 1))


@pytest.mark.parametrize("value", [1.0, "2", (1, 2, 3), (1,), None, True, (1, True), [2, 2.5]])
def test_pairs_are_integers(value):
    text = f"dilation should be an integer or a pair of integers, got {value!r}. Write dilation=2,"
    with pytest.raises(ShapeError, match="^" + re.escape(text)):
        pair(value, "dilation", 1)


def test_pairs_may_be_numpys_integers():
    np = pytest.importorskip("numpy")
    assert pair(np.int64(3), "stride", 1) == (3, 3)
    assert pair([np.int32(1), 2], "stride", 1) == (1, 2)


@pytest.mark.parametrize("value", [True, (True, 1), 1.0, (1, 2.0), (1, 2, 3), (1,), "1", None])
def test_the_short_way_lets_nothing_else_pass(value):
    with pytest.raises(ShapeError, match="stride should be an integer or a pair of integers"):
        Window.of(3, stride=value)


def test_pairs_of_every_kind_are_read_alike():
    one, two = np.int64(1), np.int64(2)
    pairs = ((1, 2), [1, 2], (one, two), (1, two))
    assert {Window.of(3, stride=steps).stride for steps in pairs} == {(1, 2)}
    assert Window.of(3, stride=two).stride == Window.of(3, stride=2).stride == (2, 2)
