"""Pictures: a graph's nodes and edges, its layout, and the drawings of windows."""

import itertools
import re
import time

import numpy as np
import pytest
from drawn import drawn, hexes, rgb
from PIL import Image

import tinydilate as td
from tinydilate import functional as F
from tinydilate.errors import DataError, GraphError, ShapeError
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


BLUE, WHITE = rgb("#0072B2"), (255, 255, 255)
SIDE = 0.4  # inches: a square


def placed(axes, pattern):
    """(text, x, y) of what is written and matches."""
    texts = [(text.get_text(), *text.get_position()) for text in axes.texts]
    return [each for each in texts if re.fullmatch(pattern, each[0])]


def grids(axes):
    """Of each grid from left to right, {number: y} of its rows and {number: x} of its columns."""
    labels = placed(axes, r"\d+")
    top = min(y for _, _, y in labels)
    edges = sorted({x for _, x, y in labels if y > top})
    for left, right in itertools.pairwise([*edges, np.inf]):
        rows = {int(row): y for row, x, y in labels if x == left}
        yield rows, {int(column): x for column, x, y in labels if y == top and left < x < right}


def square_at(rows, columns, x, y):
    """Row and column of the square around a place; those of the padding lie below 0 or beyond."""
    return round((y - rows[0]) / SIDE), round((x - columns[0]) / SIDE)


def filled(drawing, rows, columns):
    """The squares of a grid that are not white, {(row, column): colour}."""
    (axes,) = drawing.figure.axes
    x, y = np.meshgrid([*columns.values()], [*rows.values()])
    colours = drawing.colours(axes, x - 0.15, y - 0.15)  # beside what is written
    found = {place: tuple(colours[place].tolist()) for place in np.ndindex(x.shape)}
    return {place: colour for place, colour in found.items() if colour != WHITE}


WINDOW = Window.of((3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1))


def window_drawn(output):
    return drawn(lambda path: draw_window(WINDOW, (5, 6), output, path))


@pytest.mark.parametrize("output", [(0, 2), (2, 1), (4, 3)])
def test_taps_bear_their_numbers_where_they_read(output):
    i, j = output
    drawing = window_drawn(output)
    (axes,) = drawing.figure.axes
    (rows, columns), (down, across) = grids(axes)
    read = {(u, v): (i + 2 * u - 2, 2 * j + v - 1) for u in range(3) for v in range(2)}
    found = {text: square_at(rows, columns, x, y) for text, x, y in placed(axes, r"\d,\d")}
    assert found == {f"{u},{v}": place for (u, v), place in read.items()}
    inside = {(y, z) for y, z in read.values() if 0 <= y < 5 and 0 <= z < 6}
    assert filled(drawing, rows, columns) == dict.fromkeys(inside, BLUE)
    assert (len(down), len(across)) == (5, 4)
    assert filled(drawing, down, across) == {output: BLUE}
    hatched = {
        square_at(rows, columns, *np.add(patch.get_xy(), SIDE / 2))
        for patch in axes.patches
        if patch.get_hatch() and hexes(patch.get_edgecolor()) == ["#0072b2"]
    }
    assert hatched == {*read.values()} - inside


def test_a_frame_shows_the_windows_extent_and_a_beam_its_output():
    (axes,) = window_drawn((2, 1)).figure.axes
    (rows, columns), (down, across) = grids(axes)
    (frame,) = (p for p in axes.patches if hexes(p.get_edgecolor()) == ["#d55e00"])
    top, left = rows[0] - SIDE / 2, columns[1] - SIDE / 2
    slack = 0.02
    np.testing.assert_allclose(frame.get_xy(), (left, top), atol=slack)
    size = frame.get_width(), frame.get_height()
    np.testing.assert_allclose(size, (2 * SIDE, 5 * SIDE), atol=2 * slack)
    ends = {tuple(line.get_xydata()[-1].round(3)) for line in axes.get_lines()}
    edge = across[1] - SIDE / 2
    assert ends == {(round(edge, 3), round(down[2] + side, 3)) for side in (-SIDE / 2, SIDE / 2)}


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ((2, 1), "output (2, 1) reads 6 pixels"),
        ((0, 2), "output (0, 2) reads 4 pixels; 2 taps lie in the padding"),
        ((0, 0), "output (0, 0) reads 2 pixels; 4 taps lie in the padding"),
    ],
)
def test_a_note_counts_what_an_output_reads(output, sentence):
    (axes,) = window_drawn(output).figure.axes
    assert sentence in [text.get_text() for text in axes.texts]


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


def matrix_of(axes):
    """{"u,v": y} of the rows and {"i,j": x} of the columns."""
    labels = placed(axes, r"\d,\d")
    left, top = min(x for _, x, _ in labels), min(y for _, _, y in labels)
    rows = {tap: y for tap, x, y in labels if x == left}
    return rows, {output: x for output, x, y in labels if y == top}


def test_im2col_writes_each_number_where_the_definition_has_it():
    image = 10.5 + np.arange(30).reshape(5, 6)
    (axes,) = drawn(lambda path: draw_im2col(image, WINDOW, path)).figure.axes
    written = {(round(x, 3), round(y, 3)): text for text, x, y in placed(axes, r".*")}
    rows, columns = next(grids(axes))
    assert (len(rows), len(columns)) == image.shape
    for y, z in np.ndindex(image.shape):
        assert written[round(columns[z], 3), round(rows[y], 3)] == f"{image[y, z]}"
    padded = np.pad(image, ((2, 2), (1, 1)))
    rows, columns = matrix_of(axes)
    assert (len(rows), len(columns)) == (3 * 2, 5 * 4)
    for (tap, down), (output, across) in itertools.product(rows.items(), columns.items()):
        (u, v), (i, j) = (map(int, text.split(",")) for text in (tap, output))
        desired = f"{padded[i + 2 * u, 2 * j + v]:g}"
        assert written[round(across, 3), round(down, 3)] == desired, (tap, output)


def test_im2col_shows_windows_and_columns_in_the_same_colours():
    size = 4, 5
    drawing = drawn(lambda path: draw_im2col(np.full(size, 0.5), Window.of(3), path))
    (axes,) = drawing.figure.axes
    rows, columns = matrix_of(axes)
    colour_of = {}
    for output, x in columns.items():
        y = np.array([*rows.values()]) - 0.15  # above what is written
        (colour_of[output],) = {tuple(at) for at in drawing.colours(axes, x, y).tolist()}
    chosen = [output for output, colour in colour_of.items() if colour != WHITE]
    assert chosen == ["0,0", "0,1", "1,2"]  # the first, the middle, the last
    assert len({colour_of[output] for output in chosen}) == 3
    rows, columns = next(grids(axes))
    for y, z in np.ndindex(size):
        corners = [map(int, output.split(",")) for output in chosen]
        reads = [0 <= y - i < 3 and 0 <= z - j < 3 for i, j in corners]
        strips = max(1, sum(reads))  # of equal width, one for each that reads the pixel
        x = columns[z] + SIDE * ((np.arange(strips) + 0.5) / strips - 0.5)
        colours = drawing.colours(axes, x, rows[y] - 0.15).tolist()
        desired = [colour_of[output] for output in itertools.compress(chosen, reads)] or [WHITE]
        assert [*map(tuple, colours)] == desired, (y, z)


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
