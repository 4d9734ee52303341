"""Bad input to the ops is refused at the door, with a sentence that says what to do."""

import re

import numpy as np
import pytest

import tinydilate
import tinydilate.functional as F
from tinydilate import tensor
from tinydilate.errors import (
    ConfigError,
    DataError,
    DeviceError,
    DtypeError,
    GraphError,
    PositionError,
    ShapeError,
)
from tinydilate.functional.padding import reflect_border


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape)


# What is wrong, the call, the error's class, and the whole text.
ERRORS = [
    (
        "the window does not fit",
        lambda: F.conv2d(zeros(1, 1, 8, 8), zeros(1, 1, 3, 3), dilation=8),
        ShapeError,
        "the window does not fit: a 3-tap kernel with dilation 8 spans 17 pixels, but the input "
        "has 8 + 2*0 padding = 8. Pad by at least 5 or dilate less.",
    ),
    (
        "dilation 0",
        lambda: F.conv2d(zeros(1, 1, 8, 8), zeros(1, 1, 3, 3), dilation=0),
        ShapeError,
        "dilation should be at least 1, got 0. An ordinary window has dilation=1.",
    ),
    (
        "negative dilation along one axis",
        lambda: F.conv2d(zeros(1, 1, 8, 8), zeros(1, 1, 3, 3), dilation=(1, -2)),
        ShapeError,
        "dilation should be at least 1, got (1, -2). An ordinary window has dilation=1.",
    ),
    (
        "stride 0",
        lambda: F.conv2d(zeros(1, 1, 8, 8), zeros(1, 1, 3, 3), stride=0),
        ShapeError,
        "stride should be at least 1, got 0. An ordinary window has stride=1.",
    ),
    (
        "negative padding",
        lambda: F.conv2d(zeros(1, 1, 8, 8), zeros(1, 1, 3, 3), padding=-1),
        ShapeError,
        "padding should be at least 0, got -1.",
    ),
    (
        "padding by an unknown name",
        lambda: F.conv2d(zeros(1, 1, 8, 8), zeros(1, 1, 3, 3), padding="full"),
        ShapeError,
        'padding should be an integer, a pair, "same" or "valid", got \'full\'.',
    ),
    (
        '"same" with a stride',
        lambda: F.conv2d(zeros(1, 1, 8, 8), zeros(1, 1, 3, 3), stride=2, padding="same"),
        ShapeError,
        'padding="same" keeps the size, so it needs stride 1, got stride (2, 2). Give the padding '
        "as a number.",
    ),
    (
        "half a stride",
        lambda: F.conv2d(zeros(1, 1, 8, 8), zeros(1, 1, 3, 3), stride=1.5),
        ShapeError,
        "stride should be an integer or a pair of integers, got 1.5. Write stride=2, or "
        "stride=(2, 1) for rows and columns.",
    ),
    (
        "an image without channels",
        lambda: F.conv2d(zeros(8, 8), zeros(1, 1, 3, 3)),
        ShapeError,
        "conv2d expected the shape (N, C, H, W) or (C, H, W); got (8, 8). Reshape it, or add what "
        "is missing in front with x[None, None].",
    ),
    (
        "a weight without channels",
        lambda: F.conv2d(zeros(1, 8, 8), zeros(3, 3)),
        ShapeError,
        "conv2d expected the shape (F, C/groups, KH, KW) for its weight; got (3, 3). Reshape it, "
        "or add what is missing in front with x[None, None].",
    ),
    (
        "images of too many axes",
        lambda: F.max_pool2d(zeros(1, 1, 1, 8, 8), 2),
        ShapeError,
        "max_pool2d expected the shape (N, C, H, W) or (C, H, W); got (1, 1, 1, 8, 8). Reshape it.",
    ),
    (
        "a weight for other channels",
        lambda: F.conv2d(zeros(1, 3, 8, 8), zeros(2, 4, 3, 3)),
        ShapeError,
        "expected a weight for 3 channels (3 input channels in 1 group); got one for 4. "
        "The weight's second axis is channels / groups.",
    ),
    (
        "groups that do not divide",
        lambda: F.conv2d(zeros(1, 3, 8, 8), zeros(2, 3, 3, 3), groups=2),
        ShapeError,
        "expected channels and filters that divide into 2 groups; got 3 channels and 2 filters. "
        "Choose groups that divides both.",
    ),
    (
        "groups 0",
        lambda: F.conv2d(zeros(1, 3, 8, 8), zeros(2, 3, 3, 3), groups=0),
        ShapeError,
        "groups should be an integer of at least 1, got 0.",
    ),
    (
        "a bias for other filters",
        lambda: F.conv2d(zeros(1, 3, 8, 8), zeros(2, 3, 3, 3), zeros(3)),
        ShapeError,
        "expected a bias of shape (2,), one number a filter; got (3,).",
    ),
    (
        "two dtypes",
        lambda: F.conv2d(zeros(1, 1, 8, 8).astype(np.float32), zeros(1, 1, 3, 3)),
        DtypeError,
        "expected tensors of one dtype, float32 or float64; got float32 and float64. Convert one "
        "of them, for example with .to(np.float32).",
    ),
    (
        "two devices",
        lambda: F.add(tensor([1.0]), tensor([1.0], device="meta")),
        DeviceError,
        "expected tensors on one device; got one of shape (1,) on cpu and one of shape (1,) on "
        'meta. Move the one that is on cpu, and the module, if it is a module\'s: .to("meta").',
    ),
    (
        "shapes that do not broadcast",
        lambda: F.add(zeros(2, 3), zeros(2)),
        ShapeError,
        "expected shapes that broadcast; got (2, 3) and (2,). Counted from the last axis, two "
        "sizes must be equal or one of them 1: reshape one of them.",
    ),
    (
        "columns of another image",
        lambda: F.fold(zeros(1, 9, 5), 4, 3),
        ShapeError,
        "fold expected (N, C*9, 2*2) for a window of 9 taps on an image of (4, 4); got (1, 9, 5). "
        "Check output_size and the window.",
    ),
    (
        "matmul of a number",
        lambda: F.matmul(zeros(2, 2), 3.0),
        ShapeError,
        "matmul expected vectors, matrices or batches of them; got shapes (2, 2) and (). To "
        "multiply by a number, write *.",
    ),
    (
        "matmul of sizes that differ",
        lambda: F.matmul(zeros(2, 3), zeros(2, 3)),
        ShapeError,
        "matmul expected the last axis of the first as long as the last axis but one of the "
        "second; got 3 and 2 (shapes (2, 3) and (2, 3)). Transpose one of them?",
    ),
    (
        "a weight of linear for other channels",
        lambda: F.linear(zeros(2, 3), zeros(4, 5)),
        ShapeError,
        "linear expected an input (..., C) and a weight (F, C); got (2, 3) and (4, 5). The "
        "weight's last axis is the input's: one row of weights for each filter.",
    ),
    (
        "a bias of linear for other filters",
        lambda: F.linear(zeros(2, 3), zeros(4, 3), zeros(3)),
        ShapeError,
        "expected a bias of shape (4,), one number a filter; got (3,).",
    ),
    (
        "conv_transpose2d, weight the other way round",
        lambda: F.conv_transpose2d(zeros(1, 2, 4, 4), zeros(3, 2, 3, 3)),
        ShapeError,
        "expected a weight of shape (C, F/groups, KH, KW) for an input of 2 channels and at "
        "least one pixel; got (3, 2, 3, 3) for an input of shape (1, 2, 4, 4). The weight's "
        "first axis is the input's channels, unlike in conv2d.",
    ),
    (
        "output_padding too large",
        lambda: F.conv_transpose2d(
            zeros(1, 2, 4, 4), zeros(2, 3, 3, 3), stride=2, output_padding=2
        ),
        ShapeError,
        "output_padding should be less than stride or dilation, got 2 with stride 2 and "
        "dilation 1. More rows or columns would be empty: pad the output instead.",
    ),
    (
        "pooling padded by more than half",
        lambda: F.max_pool2d(zeros(1, 1, 8, 8), 2, padding=2),
        ShapeError,
        "pooling expected a padding of at most (1, 1), half its kernel of (2, 2); got (2, 2)."
        " Pad less, or take a larger kernel.",
    ),
    (
        "pooling with a window that does not fit",
        lambda: F.avg_pool2d(zeros(1, 1, 2, 2), 3),
        ShapeError,
        "the window does not fit: a 3-tap kernel with dilation 1 spans 3 pixels, but the "
        "input has 2 + 2*0 padding = 2. Pad by at least 1 or use a smaller kernel.",
    ),
    (
        "pooling without pixels",
        lambda: F.max_pool2d(zeros(1, 1, 0, 4), 2),
        ShapeError,
        "max_pool2d expected images with pixels; got shape (1, 1, 0, 4).",
    ),
    (
        "divisor_override 0",
        lambda: F.avg_pool2d(zeros(1, 1, 4, 4), 2, divisor_override=0),
        ShapeError,
        "avg_pool2d expected a number other than 0 as its divisor_override; got 0. Leave it out to "
        "divide by the number of pixels.",
    ),
    (
        "divisor_override that is no number",
        lambda: F.avg_pool2d(zeros(1, 1, 4, 4), 2, divisor_override=np.array(3)),
        ShapeError,
        "avg_pool2d expected a number other than 0 as its divisor_override; got array(3). Leave it "
        "out to divide by the number of pixels.",
    ),
    (
        "an unknown padding mode",
        lambda: F.pad(zeros(4, 4), (1, 1), mode="circular"),
        ShapeError,
        'pad expected a mode out of "constant", "reflect", "replicate"; got \'circular\'.',
    ),
    (
        "an odd number of paddings",
        lambda: F.pad(zeros(4, 4), (1,)),
        ShapeError,
        "pad expected (before, after) for the last axis, then for the one before it, and so "
        "on; got (1,). For an image write (left, right, top, bottom).",
    ),
    (
        "a reflection wider than the axis",
        lambda: F.pad(zeros(1, 4, 4), (4, 0), mode="reflect"),
        ShapeError,
        'pad with mode="reflect" needs less padding than the axis is long; got (4, 0) along '
        "axis 2 of 4. Use functional.padding.reflect_border, which reflects repeatedly.",
    ),
    (
        "a crop larger than the axis",
        lambda: F.pad(zeros(4, 4), (-3, -2)),
        ShapeError,
        'pad with mode="constant" cannot add (-3, -2) to axis 1 of 4: it would crop more than'
        " there is. Crop less, or give a longer input.",
    ),
    (
        "interpolate without a size",
        lambda: F.interpolate(zeros(1, 1, 4, 4)),
        ShapeError,
        "interpolate expected either size or scale_factor; got neither. Write size=(64, 64), "
        "or scale_factor=2.",
    ),
    (
        "interpolate with both",
        lambda: F.interpolate(zeros(1, 1, 4, 4), size=2, scale_factor=2),
        ShapeError,
        "interpolate expected either size or scale_factor; got both. Write size=(64, 64), or "
        "scale_factor=2.",
    ),
    (
        "align_corners of nearest",
        lambda: F.interpolate(zeros(1, 1, 4, 4), size=2, align_corners=True),
        ShapeError,
        'interpolate with mode="nearest" blends nothing, so it has no align_corners; got '
        'True. Leave it out, or use mode="bilinear".',
    ),
    (
        "scaled to nothing",
        lambda: F.interpolate(zeros(1, 1, 4, 4), scale_factor=0.2),
        ShapeError,
        "scale_factor should leave at least one pixel, got 0.2, which makes (0, 0) of (4, 4)."
        " Scale less, or give the size.",
    ),
    (
        "reshape to another number",
        lambda: F.reshape(zeros(2, 3), 4, 2),
        ShapeError,
        "reshape expected sizes for 6 elements (shape (2, 3)); got (4, 2), which hold 8. The "
        "product of the sizes must be the same.",
    ),
    (
        "two unknown sizes",
        lambda: F.reshape(zeros(2, 3), -1, -1),
        ShapeError,
        "reshape expected sizes of at least 0, at most one of them -1; got (-1, -1). Write "
        "the sizes out, and -1 for the one that follows from the others.",
    ),
    (
        "permute naming an axis twice",
        lambda: F.permute(zeros(2, 3), 0, 0),
        ShapeError,
        "permute expected each of 2 axes once; got (0, 0) for shape (2, 3). To exchange two "
        "axes, use transpose.",
    ),
    (
        "an axis that is not there",
        lambda: F.sum(zeros(2, 3), 2),
        ShapeError,
        "sum expected an axis from -2 to 1, since the tensor has 2; got 2.",
    ),
    (
        "an axis named twice",
        lambda: F.sum(zeros(2, 3), (0, -2)),
        ShapeError,
        "sum expected each axis once; got dim=(0, -2). Name it once.",
    ),
    (
        "a maximum of nothing",
        lambda: F.max(zeros(2, 0), 1),
        ShapeError,
        "max expected at least one number to choose from; got shape (2, 0), empty along the "
        "axes (1,). A sum of nothing is 0, but a maximum of nothing is nothing.",
    ),
    (
        "cat of nothing",
        lambda: F.cat([]),
        ShapeError,
        "cat expected at least one tensor, with axes; got 0 of them. Reshape numbers to (1,).",
    ),
    (
        "cat of shapes that differ",
        lambda: F.cat([zeros(2, 3), zeros(2, 4)], 0),
        ShapeError,
        "cat expected shapes that differ along axis 0 only; got (2, 3) and, as tensor 1, (2, "
        "4). Reshape or cut one of them.",
    ),
    (
        "an index beyond the end",
        lambda: tensor(zeros(2, 3))[2],
        PositionError,
        "expected an index from -2 to 1 along axis 0 of shape (2, 3); got 2.",
    ),
    (
        "branches whose maps differ",
        lambda: tensor(zeros(1, 4, 30, 30)) + tensor(zeros(1, 4, 28, 28)),
        ShapeError,
        "expected maps of one size; got (1, 4, 30, 30) and (1, 4, 28, 28). Pad the layers of the "
        'smaller one (padding="same"), or crop the larger one: x[:, :, 1:-1, 1:-1].',
    ),
    (
        "indexing by an array",
        lambda: tensor(zeros(2, 3))[np.array([0])],
        ShapeError,
        "expected an index of integers, slices, None and ...; got ndarray. Indexing by "
        "arrays, lists and masks is for NumPy: index .numpy(), or multiply by a mask.",
    ),
    (
        "a label out of range",
        lambda: F.cross_entropy(zeros(1, 3, 2, 2), np.full((1, 2, 2), 3)),
        DataError,
        "expected labels from 0 to 2, or -100 (ignore_index) for pixels that do not count; "
        "got 3 at (0, 0, 0). Labels count from 0: subtract 1, or give the network an output more; "
        "or pass ignore_index=3 if it is no class.",
    ),
    (
        "a label far out of range",
        lambda: F.cross_entropy(zeros(1, 3, 2, 2), np.full((1, 2, 2), 255)),
        DataError,
        "expected labels from 0 to 2, or -100 (ignore_index) for pixels that do not count; "
        "got 255 at (0, 0, 0). Map it to a class, or pass ignore_index=255.",
    ),
    (
        "a negative label",
        lambda: F.cross_entropy(zeros(2, 3), np.array([0, -1])),
        DataError,
        "expected labels from 0 to 2, or -100 (ignore_index) for pixels that do not count; "
        "got -1 at (1,). Map it to a class, or pass ignore_index=-1.",
    ),
    (
        "a label that would be ignored if it were read as a signed number",
        lambda: F.cross_entropy(zeros(2, 3), np.array([0, 2**64 - 100], np.uint64)),
        DataError,
        "expected labels from 0 to 2, or -100 (ignore_index) for pixels that do not count; "
        "got 9223372036854775807 at (1,). Map it to a class, or pass "
        "ignore_index=9223372036854775807.",
    ),
    (
        "an ignore_index that no label can be",
        lambda: F.cross_entropy(zeros(2, 3), np.array([0, 1]), ignore_index=2**63),
        ConfigError,
        "ignore_index should be a number that a label can be, of 64 bits; got 9223372036854775808.",
    ),
    (
        "labels of another shape",
        lambda: F.cross_entropy(zeros(1, 3, 2, 2), np.zeros((1, 2), int)),
        ShapeError,
        "cross_entropy expected labels of shape (1, 2, 2), the scores' (1, 3, 2, 2) without "
        "its class axis, or probabilities of shape (1, 3, 2, 2); got int64 of shape (1, 2). "
        "Labels hold class numbers: one-hot integers become labels by .argmax along the class"
        " axis.",
    ),
    (
        "labels that are not whole",
        lambda: F.cross_entropy(zeros(2, 3), zeros(2)),
        DtypeError,
        "cross_entropy expected integer labels from 0 to 2; got float64. Make them with "
        "np.array([...]), or convert them with .to(np.int64) or, an array, .astype(np.int64). "
        "Probabilities take the shape of the scores, (2, 3).",
    ),
    (
        "a function of NumPy's within the graph",
        lambda: np.mean(tensor(zeros(2, 3), requires_grad=True)),
        GraphError,
        "expected a tensor outside the graph for np.mean; got one that requires grad, which NumPy "
        "would not keep up. Take a function of tinydilate.functional, or x.detach().",
    ),
    (
        "a universal function of NumPy's within the graph",
        lambda: np.maximum(tensor(zeros(2, 3), requires_grad=True), 0),
        GraphError,
        "expected a tensor outside the graph for np.maximum; got one that requires grad, which "
        "NumPy would not keep up. Take a function of tinydilate.functional, or x.detach().",
    ),
    (
        "a list of tensors for NumPy",
        lambda: np.stack([zeros(2), tensor(zeros(2), requires_grad=True)]),
        GraphError,
        "expected a tensor outside the graph for np.stack; got one that requires grad, which NumPy "
        "would not keep up. Take a function of tinydilate.functional, or x.detach().",
    ),
    (
        "NumPy's word for dim",
        lambda: tensor(zeros(2, 3)).mean(axis=1),
        DtypeError,
        "expected dim, as in PyTorch; got NumPy's axis. Write x.mean(dim=1).",
    ),
    (
        "NumPy's word for keepdim",
        lambda: tensor(zeros(2, 3)).sum(0, keepdims=True),
        DtypeError,
        "expected keepdim, as in PyTorch; got NumPy's keepdims. Write x.sum(0, keepdim=True).",
    ),
    (
        "class weights of another number",
        lambda: F.cross_entropy(zeros(2, 3), np.zeros(2, int), zeros(2)),
        ShapeError,
        "expected class weights of shape (3,), one number a class; got (2,).",
    ),
    (
        "an unknown reduction",
        lambda: F.cross_entropy(zeros(2, 3), np.zeros(2, int), reduction="avg"),
        ConfigError,
        'reduction should be "mean", "sum" or "none", got \'avg\'.',
    ),
    (
        "dropout with p above 1",
        lambda: F.dropout(zeros(2), 1.5),
        ConfigError,
        "dropout expected a probability p from 0 to 1; got 1.5.",
    ),
    (
        "a seed that is not one",
        lambda: tinydilate.manual_seed(-1),
        ConfigError,
        "expected an integer of at least 0 and below 2**64 as seed; got -1.",
    ),
    (
        "a border of negative width",
        lambda: reflect_border(zeros(1, 4, 4), -1, 0, 0, 0),
        ShapeError,
        "reflect_border expected borders of at least 0 pixels; got (-1, 0, 0, 0). Crop by "
        "indexing: image[..., 1:-1, 1:-1].",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "text"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS]
)
def test_bad_input_is_refused_with_advice(call, error, text):
    with pytest.raises(error, match="^" + re.escape(text) + "$"):
        call()


def test_a_refusal_is_also_the_built_in_error_that_numpys_users_expect():
    for error, builtin in (
        (ShapeError, ValueError),
        (DtypeError, TypeError),
        (DeviceError, RuntimeError),
        (DataError, ValueError),
        (ConfigError, ValueError),
        (PositionError, IndexError),
    ):
        assert issubclass(error, builtin)
        assert issubclass(error, tinydilate.errors.TinydilateError)


def test_every_sentence_ends():
    for name, _, _, text in ERRORS:
        assert text[-1] in ".?", name


@pytest.mark.parametrize("name", ["stride", "dilation", "groups"])
@pytest.mark.parametrize("value", [True, 1.0, (True, 1), (1.0, 1.0)])
def test_what_was_remembered_of_1_does_not_let_pass_what_equals_1(name, value):
    x, w = np.ones((1, 2, 5, 5), np.float32), np.ones((2, 2, 3, 3), np.float32)
    for one in (1, (1, 1)) if name != "groups" else (1,):
        F.conv2d(x, w, **{name: one})
    with pytest.raises(ShapeError, match=f"{name} should be"):
        F.conv2d(x, w, **{name: value})


@pytest.mark.parametrize("value", [True, 2.0, (2, True), (2.0, 2.0)])
def test_a_pooling_window_is_remembered_for_whole_numbers_only(value):
    x = np.ones((1, 1, 6, 6), np.float32)
    F.max_pool2d(x, 2, 1)
    F.max_pool2d(x, (2, 1), (2, 2))
    for name in ("kernel_size", "stride"):
        with pytest.raises(ShapeError, match=f"{name} should be an integer"):
            F.max_pool2d(x, **{"kernel_size": 2, name: value})
