"""One list of cases for every op: what to call it with, and what must come out.

A `Case` names a public function, the kernels that it runs forwards and backwards, a Hypothesis
strategy that draws a `Call`, and an oracle written with SciPy or plain NumPy, which shares nothing
with the references on the pages. Everything that `test_ops.py` and `test_oracle.py` check walks
this list, so a new op gets all of it from one entry.

Windows are drawn from the output: its size first, then an input into which it fits. So no example
is thrown away, and dilation > 1 with more than one tap is common instead of rare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
import scipy.signal
import scipy.special
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

# ---- what a case is --------------------------------------------------------------------------


class Call(NamedTuple):
    """Arguments of one call: float64 arrays, by which gradients are taken, and the options."""

    arrays: tuple[np.ndarray, ...]
    options: dict[str, Any]


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

    def run(self, function: Callable[..., Any], arrays: Any, options: dict[str, Any]) -> Any:
        """Call ``function`` (ours, the namesake or the oracle) in the manner of this case."""
        return function(list(arrays), **options) if self.listed else function(*arrays, **options)


# ---- drawing numbers -------------------------------------------------------------------------


def normal(draw: Any, *shape: int) -> np.ndarray:
    """Random numbers around zero."""
    return np.asarray(generator(draw).normal(size=shape))


def generator(draw: Any) -> np.random.Generator:
    """Numbers come from NumPy, seeded by Hypothesis: their values rarely matter, their places do."""
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
    return Call(tuple(arrays), {})


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
def axes(
    draw: Any, strided: bool = True, padded: bool = True, half: bool = False, ceil: bool = False
) -> Axis:
    """Draw the output size first, then the window, then a fitting input.

    ``half`` keeps the padding to half of the kernel, as pooling asks; with ``ceil`` the output is
    what ceil_mode makes of the input.
    """
    output = draw(st.integers(1, 4))
    kernel = draw(st.sampled_from([3, 2, 1, 4, 3]))
    dilation = draw(st.sampled_from([2, 1, 3]))
    stride = draw(st.sampled_from([1, 2, 3])) if strided else 1
    extent = dilation * (kernel - 1) + 1
    left_over = draw(st.integers(0, stride - 1))  # pixels at the end that no window reaches
    padded_size = (output - 1) * stride + extent + left_over
    most = min((padded_size - 1) // 2, kernel // 2 if half else 3)
    padding = draw(st.integers(0, most)) if padded else 0
    size = padded_size - 2 * padding
    if ceil and left_over and output * stride < size + padding:
        output += 1  # a last window that hangs over the edge and begins inside
    return Axis(kernel, stride, padding, dilation, output, size)


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
def convolutions(draw: Any, named: bool = False, relu: bool = False) -> Call:
    """Draw input, weight, perhaps a bias; ``named`` pads by "same" or "valid"."""
    rows, columns = draw(axes(strided=not named)), draw(axes(strided=not named))
    groups, per_group, each = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
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
    x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
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
    arrays, options = draw(convolutions())
    x, w = (np.round(2 * array) for array in arrays[:2])
    bias = np.round(2 * normal(draw, len(w))) + 0.5
    return Call((x, w, bias), {**options, "relu": True})


# ---- windows written as columns --------------------------------------------------------------


def read_by_taps(size: tuple[int, int], options: dict[str, Any]) -> np.ndarray:
    """(KH, KW, OH, OW): number of the pixel that each tap of each output reads, -1 in the padding."""
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
    Case("log", "log", ("log_forward", "div_forward"), elementwise(above_zero), np.log, "torch.log"),
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
        ("conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight", "relu_backward", "sum_to_shape"),
        rectified_convolutions(),
        conv2d_relu_oracle,
        "",
        batched=True,
    ),
]
