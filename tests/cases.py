"""One list of cases for every op: what to call it with, and what must come out.

A `Case` names a public function, the kernels that it runs forwards and backwards, a Hypothesis
strategy that draws a `Call`, and an oracle written with SciPy or plain NumPy, which shares nothing
with the references on the pages. Everything that `test_ops.py` and `test_oracle.py` check walks
this list, so a new op gets all of it from one entry.

Windows are drawn from the output: its size first, then an input into which it fits. So no example
is thrown away, and dilation > 1 with more than one tap is common instead of rare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
import scipy.signal
import scipy.special
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinydilate
from tinydilate.kernel import KERNELS

SEED = 2016

# ---- what a case is --------------------------------------------------------------------------


class Call(NamedTuple):
    """Arguments of one call, in this order.

    Attributes
    ----------
    arrays : tuple of float64 arrays
        By which gradients are taken.
    options : dict
        By name. Floating-point arrays among them are converted to the dtype of the test.
    positional : tuple
        Options that are not given by name: the axes of permute, the index of getitem.
    """

    arrays: tuple[np.ndarray, ...]
    options: Mapping[str, Any] = MappingProxyType({})
    positional: tuple[Any, ...] = ()


class Case(NamedTuple):
    """One way of using one public function.

    Attributes
    ----------
    name : str
        Name of the test.
    function : str
        The public function, as in ``tinydilate.functional``.
    kernels : tuple of str
        The kernels that it runs, forwards and backwards.
    calls : strategy of Call
    oracle : callable
        The same arguments as the function, arrays in, array out.
    torch : str
        Its namesake.
    linear : tuple of int
        The arrays in which the result is linear (or linear plus a constant), the others fixed.
    batched : bool
        Whether the first array may come without its first axis, and the axis may be empty.
    differentiable : bool
        Whether it has gradients.
    listed : bool
        Whether the function takes the arrays as one list.
    """

    name: str
    function: str
    kernels: tuple[str, ...]
    calls: st.SearchStrategy[Call]
    oracle: Callable[..., Any]
    torch: str
    linear: tuple[int, ...] = ()
    batched: bool = False
    differentiable: bool = True
    listed: bool = False

    def run(self, function: Callable[..., Any], arrays: Any, call: Call) -> Any:
        """Call ``function`` (ours, the namesake or the oracle) with arrays in place of a call's."""
        tinydilate.manual_seed(SEED)  # each call meets the same chance
        first = (list(arrays),) if self.listed else tuple(arrays)
        dtype = np.dtype(str(arrays[0].dtype).removeprefix("torch."))
        options = {name: _in_dtype(value, dtype) for name, value in call.options.items()}
        return function(*first, *call.positional, **options)


def twins_of(name: str) -> Mapping[str, Callable[..., Any]]:
    """A kernel's implementations by name; none as long as there is a case and no kernel."""
    entry = KERNELS.get(name)
    return entry.implementations if entry else {}


def _in_dtype(value: Any, dtype: np.dtype) -> Any:
    floating = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(dtype) if floating else value


# ---- drawing numbers -------------------------------------------------------------------------


def normal(draw: Any, *shape: int) -> np.ndarray:
    """Random numbers around zero."""
    return np.asarray(generator(draw).normal(size=shape))


def generator(draw: Any) -> np.random.Generator:
    """NumPy's generator, seeded by Hypothesis: an array of random numbers is one draw."""
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


def apart(draw: Any, *shape: int, least: float = 0.0) -> np.ndarray:
    """Random numbers of which no two are closer than 0.02, and none is closer to 0 than 0.01.

    So no step of a gradient check crosses the kink of a relu or of a maximum. With ``least`` they
    are all above it.
    """
    count = int(np.prod(shape))
    steps = 0.02 * (np.arange(count) + 0.5)
    values = least + steps if least else steps * np.where(np.arange(count) % 2, -1, 1)
    return generator(draw).permutation(values).reshape(shape)


def away_from_zero(draw: Any, *shape: int) -> np.ndarray:
    """Random numbers of both signs with magnitudes between 0.5 and 2: safe to divide by."""
    rng = generator(draw)
    return np.asarray(rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], shape))


def above_zero(draw: Any, *shape: int) -> np.ndarray:
    """Random numbers between 0.5 and 2."""
    return np.asarray(np.abs(away_from_zero(draw, *shape)))


shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)
batches = st.sampled_from([1, 2, 3, 0])


@st.composite
def elementwise(draw: Any, *kinds: Callable[..., np.ndarray]) -> Call:
    """One array of each kind, of shapes that broadcast."""
    found = draw(
        hnp.mutually_broadcastable_shapes(num_shapes=len(kinds), max_dims=3, max_side=4)
        if len(kinds) > 1
        else shapes.map(lambda shape: _Shapes([shape]))
    )
    arrays = [kind(draw, *shape) for kind, shape in zip(kinds, found.input_shapes, strict=True)]
    return Call(tuple(arrays))


class _Shapes(NamedTuple):
    input_shapes: list[tuple[int, ...]]


# ---- drawing windows -------------------------------------------------------------------------


class Axis(NamedTuple):
    """A window along one axis, with an input that it fits into."""

    kernel: int
    stride: int
    padding: int
    dilation: int
    output: int
    size: int


@st.composite
def axes(draw: Any, strided: bool = True, three_taps: bool = False) -> Axis:
    """Draw the output size first, then the window, then a fitting input.

    Windows of ``three_taps`` get outputs that need more than one of Winograd's tiles.
    """
    output = draw(st.integers(1, 13 if three_taps else 4))
    kernel = 3 if three_taps else draw(st.sampled_from([3, 2, 1, 4, 3]))
    dilation = draw(st.sampled_from([2, 1, 3]))
    stride = draw(st.sampled_from([1, 2, 3])) if strided else 1
    left_over = draw(st.integers(0, stride - 1))  # pixels at the end that no window reaches
    padded_size = (output - 1) * stride + dilation * (kernel - 1) + 1 + left_over
    padding = draw(st.integers(0, min((padded_size - 1) // 2, 3)))
    return Axis(kernel, stride, padding, dilation, output, padded_size - 2 * padding)


@st.composite
def pooling_axes(draw: Any, touching: bool, ceil_mode: bool, dilated: bool) -> Axis:
    """As `axes`, with the padding at most half the kernel and a pixel in every window.

    With ``touching`` windows the stride is the kernel's size. In ceil_mode a last window may hang
    over the edge, even the only one.
    """
    output = draw(st.integers(1, 4))
    kernel = draw(st.sampled_from([3, 2, 1, 4]))
    dilation = draw(st.sampled_from([2, 1, 3])) if dilated else 1
    stride = kernel if touching else draw(st.sampled_from([1, 2, 3]))
    left_over = draw(st.integers(1 - stride if ceil_mode else 0, stride - 1))
    padded_size = max(1, (output - 1) * stride + dilation * (kernel - 1) + 1 + left_over)
    padding = draw(st.integers(0, min((padded_size - 1) // 2, kernel // 2)))
    size = padded_size - 2 * padding
    starts = windows_along(size, kernel, stride, padding, dilation, ceil_mode)
    if not all(any(0 <= y + u * dilation < size for u in range(kernel)) for y in starts):
        padding, size = 0, padded_size  # a window whose taps step over the whole image
    return Axis(kernel, stride, padding, dilation, len(starts), size)


def windows_along(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> list[int]:
    """First position of each window along one axis, found by laying one after the other."""
    starts, y = [], -padding
    while True:
        last = y + dilation * (kernel - 1)
        over = last - (size + padding - 1)  # how far it hangs over the padded edge
        if over > 0 and not (ceil_mode and over < stride and y < size):
            return starts
        starts.append(y)
        y += stride


def as_option(draw: Any, rows: int, columns: int) -> int | tuple[int, int]:
    """An int where both are the same, now and then; a pair otherwise."""
    return rows if rows == columns and draw(st.booleans()) else (rows, columns)


def window_options(draw: Any, rows: Axis, columns: Axis, *names: str) -> dict[str, Any]:
    """``stride=``, ``padding=``, ``dilation=`` (and ``kernel_size=``) of two axes."""
    return {
        name: as_option(draw, getattr(rows, field), getattr(columns, field))
        for name in names
        for field in [name.removesuffix("_size")]
    }


# ---- convolution -----------------------------------------------------------------------------


@st.composite
def convolutions(draw: Any, named: bool = False, nine_taps: bool = False) -> Call:
    """Draw input, weight, perhaps a bias; ``named`` pads by "same" or "valid".

    With ``nine_taps`` the kernel is 3x3 and the stride 1, as in most layers of most networks.
    """
    kind = axes(strided=not (named or nine_taps), three_taps=nine_taps)
    rows, columns = draw(kind), draw(kind)
    groups, per_group, each = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
    )
    options = window_options(draw, rows, columns, "stride", "padding", "dilation")
    options["groups"] = groups
    size = rows.size, columns.size
    if named:
        options["padding"] = draw(st.sampled_from(["same", "valid"]))
        size = (
            (rows.output, columns.output)
            if options["padding"] == "same"
            else (size[0] + 2 * rows.padding, size[1] + 2 * columns.padding)
        )
    x = normal(draw, draw(batches), groups * per_group, *size)
    w = normal(draw, groups * each, per_group, rows.kernel, columns.kernel)
    arrays = (x, w, normal(draw, groups * each)) if draw(st.booleans()) else (x, w)
    return Call(arrays, options)


def pairs(value: Any) -> tuple[int, int]:
    """(rows, columns) of an int or a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


def stuffed(w: np.ndarray, gaps: Any) -> np.ndarray:
    """(..., KH, KW) with ``gap - 1`` zeros between neighbours: the filter that we never build."""
    down, across = pairs(gaps)
    height, width = w.shape[-2:]
    out = np.zeros((*w.shape[:-2], down * (height - 1) + 1, across * (width - 1) + 1), w.dtype)
    out[..., ::down, ::across] = w
    return out


def margins(padding: Any, kernel: Any, dilation: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right)) of a padding argument."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(pairs(kernel), pairs(dilation), strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)
    return tuple((p, p) for p in pairs(padding))


def conv2d_oracle(
    x: Any,
    w: Any,
    b: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> np.ndarray:
    """SciPy's correlation with a kernel that has zeros between its taps, plane by plane."""
    down, across = pairs(stride)
    x = np.pad(x, ((0, 0), (0, 0), *margins(padding, w.shape[2:], dilation)))
    w = stuffed(w, dilation)
    per_group, each = w.shape[1], len(w) // groups
    size = [have - need + 1 for have, need in zip(x.shape[2:], w.shape[2:], strict=True)]
    out = np.zeros((len(x), len(w), *size), x.dtype)
    for n, f in np.ndindex(len(x), len(w)):
        for c in range(per_group):
            plane = x[n, f // each * per_group + c]
            out[n, f] += scipy.signal.correlate2d(plane, w[f, c], mode="valid")
    out = out[:, :, ::down, ::across]
    return out if b is None else out + np.reshape(b, (1, -1, 1, 1))


def conv2d_relu_oracle(*arrays: Any, relu: bool, **options: Any) -> np.ndarray:
    return np.maximum(conv2d_oracle(*arrays, **options), 0)


@st.composite
def rectified_convolutions(draw: Any) -> Call:
    """Whole numbers plus a bias of one half: no sum is nearer to the kink than that."""
    call = draw(convolutions())
    arrays, options = call.arrays, call.options
    x, w = (np.round(2 * array) for array in arrays[:2])
    bias = np.round(2 * normal(draw, len(w))) + 0.5
    return Call((x, w, bias), {**options, "relu": True})


# ---- transposed convolution ------------------------------------------------------------------


@st.composite
def transposed_convolutions(draw: Any) -> Call:
    rows, columns = (
        axis._replace(padding=min(axis.padding, max(0, axis.dilation * (axis.kernel - 1) // 2)))
        for axis in (draw(axes()), draw(axes()))
    )  # at most half of what one pixel spreads over, so that something is left
    extra = [draw(st.integers(0, max(a.stride, a.dilation) - 1)) for a in (rows, columns)]
    groups, per_group, each = (draw(st.integers(1, 2)) for _ in range(3))
    options = window_options(draw, rows, columns, "stride", "padding", "dilation")
    options |= {"output_padding": as_option(draw, *extra), "groups": groups}
    x = normal(draw, draw(batches), groups * each, rows.output, columns.output)
    w = normal(draw, groups * each, per_group, rows.kernel, columns.kernel)
    arrays = (x, w, normal(draw, groups * per_group)) if draw(st.booleans()) else (x, w)
    return Call(arrays, options)


def conv_transpose2d_oracle(
    x: Any,
    w: Any,
    b: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> np.ndarray:
    """Zeros between the pixels, zeros between the taps, and SciPy's full convolution."""
    x, w = stuffed(x, stride), stuffed(w, dilation)
    per_group, each = w.shape[1], len(w) // groups
    size = [a + b - 1 for a, b in zip(x.shape[2:], w.shape[2:], strict=True)]
    out = np.zeros((len(x), groups * per_group, *size))
    for n, c in np.ndindex(*x.shape[:2]):
        for f in range(per_group):
            plane = scipy.signal.convolve2d(x[n, c], w[c, f], mode="full")
            out[n, c // each * per_group + f] += plane
    (more_y, more_z), (p, q) = pairs(output_padding), pairs(padding)
    out = np.pad(out, ((0, 0), (0, 0), (0, more_y), (0, more_z)))
    out = out[:, :, p : out.shape[2] - p, q : out.shape[3] - q]
    return out if b is None else out + np.reshape(b, (1, -1, 1, 1))


# ---- matrix products -------------------------------------------------------------------------


@st.composite
def products(draw: Any) -> Call:
    """Vectors, matrices and batches of matrices."""
    found = draw(
        hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=2, max_side=4)
    )
    return Call(tuple(normal(draw, *shape) for shape in found.input_shapes))


@st.composite
def layers(draw: Any) -> Call:
    """A fully connected layer on any number of axes, perhaps with a single filter."""
    *before, channels = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    filters = draw(st.sampled_from([(3,), (1,), ()]))
    arrays = [normal(draw, *before, channels), normal(draw, *filters, channels)]
    if filters and draw(st.booleans()):  # PyTorch's own single filter takes no bias
        arrays.append(normal(draw, *filters))
    return Call(tuple(arrays))


def linear_oracle(x: Any, w: Any, b: Any = 0.0) -> Any:
    return np.einsum("...c,fc->...f", x, w) + b if w.ndim == 2 else np.dot(x, w) + b


# ---- windows written as columns --------------------------------------------------------------


def read_by_taps(size: tuple[int, int], options: dict[str, Any]) -> np.ndarray:
    """(KH, KW, OH, OW): number of the pixel that each tap reads, -1 in the padding."""
    down, across = pairs(options["dilation"])
    numbers = np.arange(size[0] * size[1]).reshape(size)
    numbers = np.pad(numbers, margins(options["padding"], None, None), constant_values=-1)
    kernel = pairs(options["kernel_size"])
    window = (down * (kernel[0] - 1) + 1, across * (kernel[1] - 1) + 1)
    view = np.lib.stride_tricks.sliding_window_view(numbers, window)
    steps = pairs(options["stride"])
    return view[:: steps[0], :: steps[1], ::down, ::across].transpose(2, 3, 0, 1)


def unfold_oracle(x: Any, **options: Any) -> np.ndarray:
    """The pixels by their numbers."""
    numbers = read_by_taps(x.shape[2:], options)
    pixels = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])
    pixels = np.append(pixels, np.zeros((*x.shape[:2], 1)), axis=2)
    rows = x.shape[1] * numbers.shape[0] * numbers.shape[1]
    return pixels[:, :, numbers].reshape(len(x), rows, numbers[0, 0].size)


def fold_oracle(x: Any, output_size: Any, **options: Any) -> np.ndarray:
    """Each pixel's number counted, with the columns as weights."""
    size = pairs(output_size)
    numbers = read_by_taps(size, options).ravel()
    inside = numbers >= 0
    taps = pairs(options["kernel_size"])
    channels = x.shape[1] // (taps[0] * taps[1])
    out = np.zeros((len(x), channels, *size))
    for n, c in np.ndindex(len(x), channels):
        column = x[n].reshape(channels, -1)[c]
        total = np.bincount(numbers[inside], column[inside], minlength=size[0] * size[1])
        out[n, c] = total.reshape(size)
    return out


@st.composite
def unfoldings(draw: Any) -> Call:
    rows, columns = draw(axes()), draw(axes())
    x = normal(draw, draw(batches), draw(st.integers(1, 3)), rows.size, columns.size)
    names = "kernel_size", "stride", "padding", "dilation"
    return Call((x,), window_options(draw, rows, columns, *names))


@st.composite
def foldings(draw: Any) -> Call:
    rows, columns = draw(axes()), draw(axes())
    channels = draw(st.integers(1, 3))
    taps = rows.kernel * columns.kernel
    x = normal(draw, draw(batches), channels * taps, rows.output * columns.output)
    options = window_options(draw, rows, columns, "kernel_size", "stride", "padding", "dilation")
    return Call((x,), {"output_size": as_option(draw, rows.size, columns.size), **options})


# ---- pooling ---------------------------------------------------------------------------------


@st.composite
def poolings(draw: Any, kind: str) -> Call:
    """Draw for max_pool2d (dilation) or avg_pool2d (count_include_pad, divisor_override)."""
    ceil_mode, touching = draw(st.booleans()), draw(st.booleans())
    axis = pooling_axes(touching, ceil_mode, dilated=kind == "max")
    rows, columns = draw(axis), draw(axis)
    names = ["kernel_size", "padding"]
    names += [] if touching else ["stride"]
    names += ["dilation"] if kind == "max" else []
    options = {**window_options(draw, rows, columns, *names), "ceil_mode": ceil_mode}
    if kind == "avg":
        options["count_include_pad"] = draw(st.booleans())
        if draw(st.booleans()):
            options["divisor_override"] = draw(st.integers(1, 5))
    x = apart(draw, draw(batches), draw(st.integers(1, 3)), rows.size, columns.size)
    return Call((x,), options)


def pooled(
    x: np.ndarray,
    reduce: Callable[..., Any],
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> np.ndarray:
    """``reduce(pixels, padded)`` of each window: its pixels, and how many taps fit the padding."""
    k, p, d = pairs(kernel_size), pairs(padding), pairs(dilation)
    s = k if stride is None else pairs(stride)
    starts = [
        windows_along(x.shape[2 + axis], k[axis], s[axis], p[axis], d[axis], ceil_mode)
        for axis in (0, 1)
    ]
    out = np.zeros((*x.shape[:2], len(starts[0]), len(starts[1])))
    for n, c, i, j in np.ndindex(*out.shape):
        taps = [
            [starts[axis][at] + u * d[axis] for u in range(k[axis])]
            for axis, at in ((0, i), (1, j))
        ]
        inside = [[y for y in taps[axis] if 0 <= y < x.shape[2 + axis]] for axis in (0, 1)]
        padded = [[y for y in taps[axis] if y < x.shape[2 + axis] + p[axis]] for axis in (0, 1)]
        out[n, c, i, j] = reduce(x[n, c][np.ix_(*inside)], len(padded[0]) * len(padded[1]))
    return out


def max_pool2d_oracle(x: Any, **options: Any) -> np.ndarray:
    return pooled(x, lambda pixels, padded: pixels.max(), **options)


def avg_pool2d_oracle(
    x: Any, count_include_pad: bool = True, divisor_override: Any = None, **options: Any
) -> np.ndarray:
    def mean(pixels: np.ndarray, padded: int) -> float:
        return pixels.sum() / (divisor_override or (padded if count_include_pad else pixels.size))

    return pooled(x, mean, **options)


# ---- padding and resizing --------------------------------------------------------------------


@st.composite
def paddings(draw: Any, mode: str) -> Call:
    """Draw a padding for the last axes, negative numbers (crops) among it."""
    if mode == "constant":
        shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))
        count = draw(st.integers(1, len(shape)))
    else:
        count = draw(st.integers(1, 3))
        shape = draw(hnp.array_shapes(min_dims=count + 1, max_dims=count + 2, max_side=5))
    pad = []
    for size in reversed(shape[len(shape) - count :]):
        most = size - 1 if mode == "reflect" else 4
        before = draw(st.integers(-(size - 1), most))
        pad += [before, draw(st.integers(max(1 - size - min(before, 0), 1 - size), most))]
        if mode != "constant" and size + pad[-1] + pad[-2] < 1:
            pad[-1] = 0
    options = {"pad": tuple(pad), "mode": mode}
    if mode == "constant":
        options["value"] = draw(st.sampled_from([0.0, -1.5]))
    return Call((normal(draw, *shape),), options)


def pad_oracle(x: Any, pad: Any, mode: str, value: float = 0.0) -> np.ndarray:
    """NumPy's padding, one axis after the other; then the crop."""
    for number in range(len(pad) // 2):
        axis, (before, after) = x.ndim - 1 - number, pad[2 * number : 2 * number + 2]
        widths = [(0, 0)] * x.ndim
        widths[axis] = max(before, 0), max(after, 0)
        how = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}[mode]
        x = np.pad(x, widths, how, **({"constant_values": value} if mode == "constant" else {}))
        keep = [slice(None)] * x.ndim
        keep[axis] = slice(max(-before, 0), x.shape[axis] - max(-after, 0))
        x = x[tuple(keep)]
    return x


@st.composite
def resizings(draw: Any, mode: str) -> Call:
    """Draw sizes, or factors whose steps are exact in float32 too."""
    x = normal(
        draw, draw(batches), draw(st.integers(1, 2)), *(draw(st.integers(1, 5)) for _ in "HW")
    )
    options: dict[str, Any] = {"mode": mode}
    if draw(st.booleans()):
        size = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
        options["size"] = as_option(draw, *size)
    else:
        factors = [
            draw(st.sampled_from([f for f in (2.0, 1.0, 4.0, 2.5, 0.5) if size * f >= 1]))
            for size in x.shape[2:]
        ]
        options["scale_factor"] = as_option(draw, *factors)
    if mode == "bilinear":
        options["align_corners"] = draw(st.booleans())
    return Call((x,), options)


def interpolate_oracle(
    x: Any, mode: str, size: Any = None, scale_factor: Any = None, align_corners: Any = None
) -> np.ndarray:
    """SciPy's linear interpolation at the centres of the output's pixels; indexing for nearest."""
    places = []
    for axis in (0, 1):
        have = x.shape[2 + axis]
        if size is None:
            factor = scale_factor if isinstance(scale_factor, float) else scale_factor[axis]
            count, step = int(have * factor), 1 / factor
        else:
            count = pairs(size)[axis]
            step = have / count
        i = np.arange(count)
        if align_corners:
            places.append(i * (have - 1) / max(count - 1, 1))
        elif mode == "bilinear":
            places.append(np.clip((i + 0.5) * step - 0.5, 0, have - 1))
        else:
            exact = i * have // count if size is not None else np.floor(i * step)
            places.append(np.minimum(exact, have - 1).astype(int))
    if mode == "nearest":
        return x[:, :, places[0][:, None], places[1]]
    out = np.zeros((*x.shape[:2], len(places[0]), len(places[1])))
    at = np.meshgrid(*places, indexing="ij")
    for n, c in np.ndindex(*x.shape[:2]):
        out[n, c] = scipy.ndimage.map_coordinates(x[n, c], at, order=1, mode="nearest")
    return out


# ---- shaping ---------------------------------------------------------------------------------


@st.composite
def reshapings(draw: Any) -> Call:
    """The same number of elements in other axes, one of them perhaps -1."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=4))
    sizes, left = [], int(np.prod(shape))
    for _ in range(draw(st.integers(0, 3))):
        size = draw(st.sampled_from([n for n in range(1, left + 1) if left % n == 0]))
        sizes.append(size)
        left //= size
    if left > 1 or not shape:
        sizes.append(left)
    if sizes and draw(st.booleans()):
        sizes[draw(st.integers(0, len(sizes) - 1))] = -1
    return Call((normal(draw, *shape),), positional=(tuple(sizes),))


@st.composite
def flattenings(draw: Any) -> Call:
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=3))
    first = draw(st.integers(0, len(shape) - 1))
    last = draw(st.integers(first, len(shape) - 1)) - draw(st.sampled_from([0, len(shape)]))
    return Call((normal(draw, *shape),), {"start_dim": first, "end_dim": last})


def flatten_oracle(x: Any, start_dim: int, end_dim: int) -> np.ndarray:
    end = end_dim % x.ndim
    return x.reshape(*x.shape[:start_dim], -1, *x.shape[end + 1 :])


@st.composite
def permutations(draw: Any) -> Call:
    shape = draw(shapes)
    dims = draw(st.permutations(range(len(shape))))
    return Call((normal(draw, *shape),), positional=(tuple(dims),))


@st.composite
def transpositions(draw: Any) -> Call:
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    axis = st.integers(-len(shape), len(shape) - 1)
    return Call((normal(draw, *shape),), positional=(draw(axis), draw(axis)))


@st.composite
def indexings(draw: Any) -> Call:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=5))
    index = draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    return Call((normal(draw, *shape),), positional=(index,))


@st.composite
def joinings(draw: Any) -> Call:
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=3))
    dim = draw(st.integers(0, len(shape) - 1))
    sizes = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    arrays = [normal(draw, *shape[:dim], size, *shape[dim + 1 :]) for size in sizes]
    return Call(tuple(arrays), {"dim": dim - draw(st.sampled_from([0, len(shape)]))})


# ---- reduction -------------------------------------------------------------------------------


@st.composite
def reductions(draw: Any, kind: Callable[..., np.ndarray], several: bool = True) -> Call:
    """No axes named (all of them), one, or several."""
    shape = draw(shapes)
    x = kind(draw, *shape)
    if not shape or draw(st.booleans()):
        return Call((x,))
    axis = st.integers(0, len(shape) - 1)
    if several and draw(st.booleans()):
        dim = tuple(draw(st.lists(axis, min_size=1, unique=True)))
    else:
        dim = draw(axis) - draw(st.sampled_from([0, len(shape)]))
    return Call((x,), {"dim": dim, "keepdim": draw(st.booleans())})


def by_numpy(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reduction of NumPy, taking dim and keepdim."""

    def oracle(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        return function(x, axis=dim, keepdims=keepdim)

    return oracle


# ---- softmax and its loss --------------------------------------------------------------------


@st.composite
def softmaxes(draw: Any) -> Call:
    """Scores up to a thousand: without the largest taken away, their exponentials overflow."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    x = normal(draw, *shape) + draw(st.sampled_from([0.0, 1000.0, -1000.0]))
    return Call((x,), {"dim": draw(st.integers(-len(shape), len(shape) - 1))})


@st.composite
def losses(draw: Any) -> Call:
    """Scores and labels for (N, C, H, W), (N, C) or one pixel; some labels ignored, never all."""
    classes, ignored = draw(st.integers(1, 5)), draw(st.sampled_from([255, -100, 0]))
    shape = draw(st.sampled_from([(2, classes, 3, 4), (3, classes), (classes,), (1, classes, 5)]))
    pixels = (*shape[:1], *shape[2:]) if len(shape) > 1 else ()
    rng = generator(draw)
    target = np.asarray(rng.integers(0, classes, pixels))
    if draw(st.booleans()):
        target = np.where(rng.random(pixels) < 0.4, ignored, target)
        if (target == ignored).all():
            target.reshape(-1)[:1] = classes - 1 if ignored == 0 else 0
    if (target == ignored).all():  # one class, and that one is ignored
        ignored = -100
        target = np.zeros_like(target)
    options: dict[str, Any] = {
        "target": target.astype(np.int64),
        "ignore_index": ignored,
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
    }
    if draw(st.booleans()):
        options["weight"] = above_zero(draw, classes)
    return Call((2 * normal(draw, *shape),), options)


def cross_entropy_oracle(
    x: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """The definition, pixel by pixel, with SciPy's log_softmax."""
    axis = min(1, x.ndim - 1)
    classes = x.shape[axis]
    weight = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    log_p = scipy.special.log_softmax(x, axis=axis)
    result, divisor = np.zeros(target.shape), 0.0
    for place in np.ndindex(*target.shape):
        label = int(target[place])
        if label == ignore_index:
            continue
        logs = log_p[(place[0], slice(None), *place[1:])] if place else log_p
        should = (1 - label_smoothing) * (np.arange(classes) == label) + label_smoothing / classes
        result[place] = -np.sum(weight * should * logs)
        divisor += weight[label]
    if reduction == "none":
        return result
    return result.sum() / (divisor if reduction == "mean" else 1.0)


@st.composite
def soft_losses(draw: Any) -> Call:
    """Scores and, for every pixel, a probability for each class."""
    classes = draw(st.integers(1, 4))
    shape = draw(st.sampled_from([(2, classes, 2, 3), (3, classes), (classes,)]))
    target = above_zero(draw, *shape)
    target = target / target.sum(axis=min(1, len(shape) - 1), keepdims=True)
    options: dict[str, Any] = {
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
    }
    if draw(st.booleans()):
        options["weight"] = above_zero(draw, classes)
    return Call((normal(draw, *shape), target), options)


def soft_cross_entropy_oracle(
    x: Any, target: Any, weight: Any = None, reduction: str = "mean", label_smoothing: float = 0.0
) -> Any:
    axis = min(1, x.ndim - 1)
    classes = x.shape[axis]
    weight = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    weight = weight.reshape(-1, *(1,) * (x.ndim - axis - 1))
    target = (1 - label_smoothing) * target + label_smoothing / classes
    result = -(weight * target * scipy.special.log_softmax(x, axis=axis)).sum(axis=axis)
    return {"none": result, "sum": result.sum(), "mean": result.mean()}[reduction]


# ---- dropout ---------------------------------------------------------------------------------


def split_mix(key: int, number: int) -> int:
    """SplitMix64 in Python's own integers: number ``number`` of the stream that starts at key."""
    z = (key + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def dropout_oracle(x: Any, p: float, training: bool) -> np.ndarray:
    """Element by element; the first call under `SEED`."""
    if not training:
        return x
    key = split_mix(split_mix(SEED, 0), 0)
    kept = [split_mix(key, n) / 2**64 >= p for n in range(x.size)]
    return np.where(np.reshape(kept, x.shape), x / (1 - p) if p < 1 else 0.0, 0.0)


@st.composite
def droppings(draw: Any) -> Call:
    options = {"p": draw(st.sampled_from([0.5, 0.1, 0.0, 1.0])), "training": draw(st.booleans())}
    return Call((normal(draw, *draw(shapes)),), options)


# ---- the list --------------------------------------------------------------------------------

CASES = [
    Case(
        "add",
        "add",
        ("add_forward", "sum_to_shape"),
        elementwise(normal, normal),
        np.add,
        "torch.add",
        linear=(0, 1),
    ),
    Case(
        "sub",
        "sub",
        ("sub_forward", "neg_forward", "sum_to_shape"),
        elementwise(normal, normal),
        np.subtract,
        "torch.sub",
        linear=(0, 1),
    ),
    Case(
        "neg",
        "neg",
        ("neg_forward",),
        elementwise(normal),
        np.negative,
        "torch.neg",
        linear=(0,),
    ),
    Case(
        "mul",
        "mul",
        ("mul_forward", "sum_to_shape"),
        elementwise(normal, normal),
        np.multiply,
        "torch.mul",
        linear=(0, 1),
    ),
    Case(
        "div",
        "div",
        ("div_forward", "mul_forward", "neg_forward", "sum_to_shape"),
        elementwise(normal, away_from_zero),
        np.divide,
        "torch.div",
        linear=(0,),
    ),
    Case(
        "pow",
        "pow",
        ("pow_forward", "pow_slope_base", "pow_slope_exponent", "mul_forward", "sum_to_shape"),
        elementwise(above_zero, normal),
        np.power,
        "torch.pow",
    ),
    Case("exp", "exp", ("exp_forward", "mul_forward"), elementwise(normal), np.exp, "torch.exp"),
    Case(
        "log", "log", ("log_forward", "div_forward"), elementwise(above_zero), np.log, "torch.log"
    ),
    Case(
        "relu",
        "relu",
        ("relu_forward", "relu_backward"),
        elementwise(apart),
        lambda x: x * (x > 0),
        "torch.nn.functional.relu",
    ),
    Case(
        "unfold",
        "unfold",
        ("unfold_forward", "fold_forward"),
        unfoldings(),
        unfold_oracle,
        "torch.nn.functional.unfold",
        linear=(0,),
        batched=True,
    ),
    Case(
        "fold",
        "fold",
        ("fold_forward", "unfold_forward"),
        foldings(),
        fold_oracle,
        "torch.nn.functional.fold",
        linear=(0,),
        batched=True,
    ),
    Case(
        "conv2d",
        "conv2d",
        ("conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight", "sum_to_shape"),
        convolutions(),
        conv2d_oracle,
        "torch.nn.functional.conv2d",
        linear=(0, 1),
        batched=True,
    ),
    Case(
        "conv2d-3x3",
        "conv2d",
        ("conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight", "sum_to_shape"),
        convolutions(nine_taps=True),
        conv2d_oracle,
        "torch.nn.functional.conv2d",
        linear=(0, 1),
        batched=True,
    ),
    Case(
        "conv2d-named-padding",
        "conv2d",
        ("conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight", "sum_to_shape"),
        convolutions(named=True),
        conv2d_oracle,
        "torch.nn.functional.conv2d",
        linear=(0, 1),
        batched=True,
    ),
    Case(
        "conv2d-relu",
        "conv2d",
        (
            "conv2d_forward",
            "conv2d_grad_input",
            "conv2d_grad_weight",
            "relu_backward",
            "sum_to_shape",
        ),
        rectified_convolutions(),
        conv2d_relu_oracle,
        "",
        batched=True,
    ),
    Case(
        "max_pool2d",
        "max_pool2d",
        ("max_pool2d_forward", "max_pool2d_backward"),
        poolings("max"),
        max_pool2d_oracle,
        "torch.nn.functional.max_pool2d",
        batched=True,
    ),
    Case(
        "avg_pool2d",
        "avg_pool2d",
        ("avg_pool2d_forward", "avg_pool2d_backward"),
        poolings("avg"),
        avg_pool2d_oracle,
        "torch.nn.functional.avg_pool2d",
        linear=(0,),
        batched=True,
    ),
    *(
        Case(
            f"pad-{mode}",
            "pad",
            ("pad_forward", "pad_backward"),
            paddings(mode),
            pad_oracle,
            "torch.nn.functional.pad",
            linear=(0,),
        )
        for mode in ("constant", "reflect", "replicate")
    ),
    Case(
        "interpolate-nearest",
        "interpolate",
        ("pad_forward", "pad_backward"),
        resizings("nearest"),
        interpolate_oracle,
        "torch.nn.functional.interpolate",
        linear=(0,),
    ),
    Case(
        "interpolate-bilinear",
        "interpolate",
        ("bilinear_forward", "bilinear_backward"),
        resizings("bilinear"),
        interpolate_oracle,
        "torch.nn.functional.interpolate",
        linear=(0,),
    ),
    Case("reshape", "reshape", (), reshapings(), np.reshape, "torch.reshape", linear=(0,)),
    Case("flatten", "flatten", (), flattenings(), flatten_oracle, "torch.flatten", linear=(0,)),
    Case(
        "permute",
        "permute",
        ("copy_view", "place_view"),
        permutations(),
        np.transpose,
        "torch.permute",
        linear=(0,),
    ),
    Case(
        "transpose",
        "transpose",
        ("copy_view", "place_view"),
        transpositions(),
        np.swapaxes,
        "torch.transpose",
        linear=(0,),
    ),
    Case(
        "getitem",
        "getitem",
        ("copy_view", "place_view"),
        indexings(),
        lambda x, index: x[index],
        "",  # PyTorch has no negative steps
        linear=(0,),
    ),
    Case(
        "cat",
        "cat",
        ("cat_forward", "copy_view"),
        joinings(),
        lambda arrays, dim: np.concatenate(arrays, axis=dim),
        "torch.cat",
        linear=(0,),
        listed=True,
    ),
    Case(
        "sum",
        "sum",
        ("sum_to_shape", "copy_view"),
        reductions(normal),
        by_numpy(np.sum),
        "torch.sum",
        linear=(0,),
    ),
    Case(
        "mean",
        "mean",
        ("sum_to_shape", "copy_view", "div_forward"),
        reductions(normal),
        by_numpy(np.mean),
        "torch.mean",
        linear=(0,),
    ),
    Case(
        "max",
        "max",
        ("max_forward", "max_backward", "copy_view", "place_view"),
        reductions(apart),
        by_numpy(np.max),
        "torch.amax",
    ),
    Case(
        "argmax",
        "argmax",
        ("argmax_forward", "copy_view"),
        reductions(apart, several=False),
        by_numpy(np.argmax),
        "torch.argmax",
        differentiable=False,
    ),
    Case(
        "softmax",
        "softmax",
        ("softmax_forward", "softmax_backward"),
        softmaxes(),
        lambda x, dim: scipy.special.softmax(x, axis=dim),
        "torch.nn.functional.softmax",
    ),
    Case(
        "log_softmax",
        "log_softmax",
        ("log_softmax_forward", "log_softmax_backward"),
        softmaxes(),
        lambda x, dim: scipy.special.log_softmax(x, axis=dim),
        "torch.nn.functional.log_softmax",
    ),
    Case(
        "cross_entropy",
        "cross_entropy",
        (
            "cross_entropy_forward",
            "cross_entropy_backward",
            "mean_loss",
            "sum_to_shape",
        ),
        losses(),
        cross_entropy_oracle,
        "torch.nn.functional.cross_entropy",
    ),
    Case(
        "cross_entropy-probabilities",
        "cross_entropy",
        (
            "log_softmax_forward",
            "log_softmax_backward",
            "neg_forward",
            "mul_forward",
            "add_forward",
            "div_forward",
            "sum_to_shape",
            "copy_view",
        ),
        soft_losses(),
        soft_cross_entropy_oracle,
        "torch.nn.functional.cross_entropy",
        linear=(1,),
    ),
    Case(
        "dropout",
        "dropout",
        ("dropout_forward",),
        droppings(),
        dropout_oracle,
        "",  # another generator: chance cannot be compared number by number
        linear=(0,),
    ),
    Case(
        "conv_transpose2d",
        "conv_transpose2d",
        (
            "conv2d_forward",
            "conv2d_grad_input",
            "conv2d_grad_weight",
            "pad_forward",
            "pad_backward",
            "add_forward",
            "sum_to_shape",
        ),
        transposed_convolutions(),
        conv_transpose2d_oracle,
        "torch.nn.functional.conv_transpose2d",
        linear=(0, 1),
        batched=True,
    ),
    Case(
        "matmul",
        "matmul",
        ("matmul_forward", "copy_view", "sum_to_shape"),
        products(),
        np.matmul,
        "torch.matmul",
        linear=(0, 1),
    ),
    Case(
        "linear",
        "linear",
        ("matmul_forward", "copy_view", "place_view", "add_forward", "sum_to_shape"),
        layers(),
        linear_oracle,
        "torch.nn.functional.linear",
        linear=(0, 1),
    ),
]
