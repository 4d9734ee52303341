"""Pictures: a graph's nodes and edges, its layout, and the drawings of windows."""

import itertools
import time

import numpy as np
import pytest
from PIL import Image

import tinydilate as td
from tinydilate import functional as F
from tinydilate.errors import DataError, GraphError, ShapeError
from tinydilate.see import canvas
from tinydilate.see.graph import dot, draw, graph_of, layout
from tinydilate.see.windows import draw_im2col, draw_window
from tinydilate.window import Window


@pytest.fixture
def leaf():
    return td.tensor(2.0, requires_grad=True)


def small_network():
    image = np.ones((1, 1, 8, 8), np.float32)
    weight = td.tensor(np.ones((2, 1, 3, 3), np.float32), requires_grad=True)
    bias = td.tensor(np.zeros(2, np.float32), requires_grad=True)
    hidden = F.relu(F.conv2d(image, weight, bias, padding=2, dilation=2))
    result = F.max_pool2d(hidden, 2) * F.avg_pool2d(hidden, 2)
    return result, {"image": image, "weight": weight, "bias": bias, "hidden": hidden}


def colours(path):
    """How many colours a picture has, and its size: a blank one has a single colour."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    return len(np.unique(pixels @ np.array([1, 256, 65536]))), picture.size


# ---- the graph -------------------------------------------------------------------------------


def test_dot_names_every_node_and_draws_every_edge():
    result, names = small_network()
    text = dot(result, names)
    for name in ("image", "weight", "bias", "hidden = ReLU", "Convolution", "MaxPool", "AvgPool"):
        assert f'label="{name}\\n' in text, name
    assert text.count(" -> ") == 3 + 1 + 2 + 2  # conv, relu, the two poolings, their product
    assert "(1, 2, 8, 8)" in text  # of the convolution
    assert "(1, 2, 4, 4)" in text  # of the poolings
    assert text.count("shape=ellipse") == 3
    assert text.count("requires grad") == 2


def test_a_diamond_is_drawn_once_and_both_its_edges_are(leaf):
    b = leaf + leaf
    c = b * b
    text = dot(c, {"a": leaf})
    assert text.count("label=") == 3
    assert text.count("n0 -> n1;") == 2
    assert text.count("n1 -> n2;") == 2


def test_dot_escapes_what_would_end_a_string(leaf):
    text = dot(leaf * leaf, {'the "first"\\N': leaf})
    assert r'label="the \"first\"\\N\none number' in text


def test_a_constant_shows_its_value_and_an_unnamed_leaf_gets_a_number(leaf):
    text = dot((leaf * 2.5) + td.tensor(np.ones(3, np.float32)))
    assert 'label="2.5"' in text
    assert 'label="leaf 1\\none number\\nrequires grad"' in text
    assert 'label="leaf 2\\n(3,)"' in text


def test_arrays_can_be_named_as_well_as_tensors(leaf):
    array = np.ones(3, np.float32)
    assert 'label="array\\n(3,)"' in dot(leaf * array, {"array": array})


def test_meta_tensors_can_be_drawn(tmp_path):
    x = td.tensor(np.ones((1, 1, 4, 4), np.float32), requires_grad=True, device="meta")
    result = F.relu(x) * 2
    assert "(1, 1, 4, 4)" in dot(result)
    draw(result, tmp_path / "meta.png")


def test_a_leaf_alone_is_a_graph(leaf, tmp_path):
    assert dot(leaf).count("label=") == 1
    draw(leaf, tmp_path / "leaf.png")
    assert colours(tmp_path / "leaf.png")[0] > 10


def test_every_input_stands_above_its_op_and_boxes_do_not_overlap():
    result, names = small_network()
    layers, edges = layout(graph_of(result, names))
    for edge in edges:
        assert [node.layer for node in edge.path] == list(
            range(edge.path[0].layer, edge.path[-1].layer + 1)
        )
    for layer in layers:
        for left, right in itertools.pairwise(layer):
            assert right.x - right.width / 2 >= left.x + left.width / 2 + 0.1


def test_a_ladder_is_laid_out_without_a_crossing():
    # Two chains side by side, made alternately, joined at the end.
    left, right = (td.tensor(1.0, requires_grad=True) for _ in range(2))
    a, b = left, right
    for _ in range(4):
        b, a = F.relu(b), F.relu(a)
    layers, _ = layout(graph_of(a + b))
    chain_of = {}
    for layer in layers[1:]:
        for node in layer:
            for value in node.inputs:
                chain_of[id(node)] = chain_of.get(id(value), id(value))
    orders = {tuple(chain_of[id(node)] for node in layer) for layer in layers[1:-1]}
    assert len(orders) == 1


def test_a_late_leaf_stands_right_above_its_op(leaf):
    x = leaf
    for _ in range(5):
        x = F.relu(x)
    late = td.tensor(3.0, requires_grad=True)
    nodes = graph_of(x * late, {"late": late})
    layout(nodes)
    by_name = {node.name: node for node in nodes}
    assert by_name["late"].layer == by_name["Mul"].layer - 1


def test_the_picture_of_a_graph_is_written_and_not_blank(tmp_path):
    result, names = small_network()
    path = tmp_path / "graph.png"
    draw(result, path, names)
    count, (width, height) = colours(path)
    assert count > 50
    assert width > 400
    assert height > width  # six layers of at most three nodes
    assert [entry.name for entry in tmp_path.iterdir()] == ["graph.png"]


def test_the_same_graph_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        result, names = small_network()
        draw(result, tmp_path / name, names)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_deep_graph_is_refused_at_once_and_can_still_be_written_as_dot(leaf, tmp_path):
    x = leaf
    for _ in range(10_000):
        x = x + 1
    begin = time.process_time()
    with pytest.raises(GraphError, match="at most 200 ops and leaves; got a larger one"):
        draw(x, tmp_path / "deep.png")
    assert time.process_time() - begin < 0.5
    assert not list(tmp_path.iterdir())
    assert dot(x).count("Add") == 10_000


def test_a_graph_that_backward_used_up_is_refused(leaf):
    result = leaf * leaf
    result.backward()
    with pytest.raises(GraphError, match=r"backward has used up. Draw it first"):
        dot(result)


def test_only_tensors_have_a_graph():
    with pytest.raises(GraphError, match="expected a Tensor, the result of an expression; got int"):
        dot(3)


def test_a_picture_that_cannot_be_written_is_a_sentence(leaf, tmp_path):
    with pytest.raises(DataError, match="expected to write"):
        draw(leaf, tmp_path / "no such folder" / "graph.png")


# ---- windows ---------------------------------------------------------------------------------


def share_of(path, colour, spread=0.02):
    """Part of a picture's pixels that have a colour."""
    from matplotlib.colors import to_rgb

    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")) / 255
    return np.mean(np.abs(pixels - to_rgb(colour)).max(axis=2) < spread)


def test_taps_inside_are_filled_and_those_in_the_padding_are_hatched(tmp_path):
    window = Window.of(3, padding=1)
    draw_window(window, (5, 5), (2, 2), tmp_path / "middle.png")
    draw_window(window, (5, 5), (0, 0), tmp_path / "corner.png")
    blue = {name: share_of(tmp_path / f"{name}.png", canvas.BLUE) for name in ("middle", "corner")}
    # Ten blue squares (nine taps, one output) against five (four taps, one output).
    assert 1.7 < blue["middle"] / blue["corner"] < 2.2


def test_dilation_spreads_the_frame_not_the_number_of_taps(tmp_path):
    draw_window(Window.of(3, padding=2), (7, 7), (4, 4), tmp_path / "1.png")
    draw_window(Window.of(3, padding=2, dilation=2), (9, 9), (4, 4), tmp_path / "2.png")
    areas = [
        share_of(tmp_path / name, canvas.BLUE) * np.prod(colours(tmp_path / name)[1])
        for name in ("1.png", "2.png")
    ]
    assert areas[1] == pytest.approx(areas[0], rel=0.05)
    frames = [share_of(tmp_path / name, canvas.VERMILION) for name in ("1.png", "2.png")]
    assert frames[1] > 1.1 * frames[0]


def test_a_small_window_leaves_room_for_its_note(tmp_path):
    draw_window(Window.of(2, padding=1), (1, 1), (0, 0), tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert (pixels[:, -20:] == 255).all()  # nothing is cut off at the right


@pytest.mark.parametrize(
    ("size", "output", "sentence"),
    [
        ((5, 5), (5, 0), r"expected one of the 5x5 outputs; got \(5, 0\)"),
        ((5, 5), (0, -1), r"expected one of the 5x5 outputs; got \(0, -1\)"),
        ((40, 40), (0, 0), "expected at most 32 pixels along each axis, padding included; got 42"),
    ],
)
def test_windows_that_cannot_be_drawn(tmp_path, size, output, sentence):
    with pytest.raises(ShapeError, match=sentence):
        draw_window(Window.of(3, padding=1), size, output, tmp_path / "window.png")
    assert not list(tmp_path.iterdir())


def test_im2col_shows_windows_and_columns_in_the_same_colours(tmp_path):
    path = tmp_path / "im2col.png"
    draw_im2col(np.zeros((7, 7)), Window.of(3, stride=2), path)
    assert colours(path)[0] > 50
    # Two of the three chosen windows share no pixel with another: 9 taps, twice drawn.
    for colour in (canvas.tinted(canvas.ORANGE, 0.45), canvas.GREEN):
        assert share_of(path, colour) > 0.01


def test_im2col_of_one_output_and_of_a_window_that_hangs_over(tmp_path):
    draw_im2col(np.arange(9.0).reshape(3, 3), Window.of(3), tmp_path / "one.png")
    window = Window.of(2, stride=2, ceil_mode=True)
    draw_im2col(np.arange(9.0).reshape(3, 3), window, tmp_path / "over.png")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("image", "window", "sentence"),
    [
        (
            np.zeros((1, 4, 4)),
            Window.of(2),
            r"expected an image of shape \(H, W\); got \(1, 4, 4\)",
        ),
        (np.zeros((10, 10)), Window.of(2), "at most 36 taps and 64 outputs; got 4 and 81"),
        (np.zeros((2, 2)), Window.of(3), "the window does not fit"),
    ],
)
def test_column_matrices_that_cannot_be_drawn(tmp_path, image, window, sentence):
    with pytest.raises(ShapeError, match=sentence):
        draw_im2col(image, window, tmp_path / "im2col.png")
    assert not list(tmp_path.iterdir())
