"""The graph of a small expression, as DOT text and as a picture.

A computed tensor points to the op that made it, and the op to its inputs (see autograd). Followed
back to the leaves, this is the graph that ``backward`` walks. Here it is only looked at.

The picture is laid out in four steps, as most programs that draw graphs do it (Sugiyama, Tagawa
and Toda 1981): every node gets a layer, the longest path from the leaves; edges that cross a layer
get a point there; each layer is sorted by where its neighbours stand, so that few edges cross; and
nodes move sideways towards their neighbours as far as they have room.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tinydilate.autograd import Tensor
from tinydilate.errors import GraphError
from tinydilate.see import canvas

MOST_NODES = 200  # beyond that a picture is no help

# ---- the graph -------------------------------------------------------------------------------


@dataclass(eq=False)
class Node:
    """An op with its result, a leaf, or (while the picture is laid out) a point of an edge."""

    name: str
    shape: tuple[int, ...] | None = None
    op: bool = False
    value: bool = False  # a constant whose name is its value
    requires_grad: bool = False
    inputs: list[Node] = field(default_factory=list)
    layer: int = 0
    x: float = 0.0
    width: float = 0.0

    @property
    def lines(self) -> list[str]:
        """What is written in it, line by line."""
        if self.value or self.shape is None:
            return [self.name]
        shape = str(self.shape) if self.shape else "one number"
        wants = self.requires_grad and not self.op
        return [self.name, shape, *(["requires grad"] if wants else [])]


def graph_of(
    tensor: Tensor, names: Mapping[str, Any] | None = None, most: int | None = None
) -> list[Node]:
    """Nodes of the graph that ends in ``tensor``: leaves before what uses them, the result last.

    Parameters
    ----------
    tensor : Tensor
    names : mapping from names to tensors or arrays, optional
    most : int, optional
        Number of nodes at which to give up.

    Raises
    ------
    GraphError
        If ``tensor`` is not one, its graph was used up by ``backward``, or has too many nodes.
    """
    if not isinstance(tensor, Tensor):
        raise GraphError(
            f"expected a Tensor, the result of an expression; got {type(tensor).__name__}. "
            "Make the leaves with tinydilate.tensor(..., requires_grad=True)."
        )
    results = _results(tensor, most)
    known = {id(value): name for name, value in (names or {}).items()}
    nodes: dict[int, Node] = {}  # by the op, or by the leaf
    leaves = 0
    for result in results:
        name = known.get(id(result)) or known.get(id(result.data))
        if result.op is None:
            value = "" if name else _value(result)
            leaves += not (name or value)
            node = Node(name or value or f"leaf {leaves}", result.shape, value=bool(value))
            node.requires_grad = result.requires_grad
            nodes[id(result)] = node
        else:
            kind = type(result.op).__name__
            label = f"{name} = {kind}" if name else kind
            inputs = [nodes[_key(value)] for value in result.op.inputs]
            nodes[id(result.op)] = Node(label, result.shape, op=True, inputs=inputs)
    return list(nodes.values())


def _key(tensor: Tensor) -> int:
    return id(tensor if tensor.op is None else tensor.op)


def _results(tensor: Tensor, most: int | None) -> list[Tensor]:
    """Every tensor of the graph once, each after all that it was computed from."""
    found: dict[int, Tensor] = {}
    waiting = [tensor]
    while waiting:
        result = waiting.pop()
        if _key(result) in found:
            continue
        found[_key(result)] = result
        if most is not None and len(found) > most:
            raise GraphError(
                f"expected a small expression to draw, of at most {most} ops and leaves; got a "
                "larger one. Draw one layer or one step of it, or pass dot(tensor) to Graphviz."
            )
        if result.op is not None:
            if result.op.used_up:
                raise GraphError(
                    "expected a graph that still stands; got one that backward has used up. Draw "
                    "it first, or write backward(retain_graph=True)."
                )
            waiting.extend(reversed(result.op.inputs))
    # Ops are numbered as they are made, so each comes after its inputs; leaves come first.
    leaves = [result for result in found.values() if result.op is None]
    computed = [(result.op, result) for result in found.values() if result.op is not None]
    computed.sort(key=lambda pair: pair[0].number)
    return leaves + [result for _, result in computed]


def _value(tensor: Tensor) -> str:
    """A constant's value, if it is one number."""
    if tensor.size != 1 or tensor.requires_grad or tensor.device == "meta":
        return ""
    return f"{tensor.item():.4g}"


# ---- DOT -------------------------------------------------------------------------------------


def dot(tensor: Tensor, names: Mapping[str, Any] | None = None) -> str:
    """The graph that ends in ``tensor``, in the language of Graphviz.

    Parameters
    ----------
    tensor : Tensor
        The result of an expression.
    names : mapping from names to tensors or arrays, optional
        What to call leaves and results, for example ``{"x": x, "w": w}``.

    Returns
    -------
    str
        Ops are boxes with the shape of their result, leaves are ellipses, and an edge leads from
        each input to its op.

    Raises
    ------
    GraphError
        If ``tensor`` is not one, or its graph was used up by ``backward``.
    """
    nodes = graph_of(tensor, names)
    number = {id(node): n for n, node in enumerate(nodes)}
    text = ["digraph expression {", '  node [fontname="Helvetica"];']
    for n, node in enumerate(nodes):
        shape = 'shape=box, style="rounded"' if node.op else "shape=ellipse"
        label = r"\n".join(_escaped(line) for line in node.lines)
        text.append(f'  n{n} [{shape}, label="{label}"];')
    for n, node in enumerate(nodes):
        text += [f"  n{number[id(value)]} -> n{n};" for value in node.inputs]
    return "\n".join([*text, "}"]) + "\n"


def _escaped(text: str) -> str:
    """Text within a DOT string: a backslash or a quote would end it or mean something else."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", r"\n")


# ---- layout ----------------------------------------------------------------------------------

_HEIGHT, _GAP, _STEP = 0.62, 0.3, 1.12  # inches: a node, between nodes, from layer to layer
_TITLE, _SMALL = 10.0, 8.0  # points


@dataclass(eq=False)
class Edge:
    """From an input through the points that it has in the layers between, to its op."""

    path: list[Node]


def layout(nodes: list[Node]) -> tuple[list[list[Node]], list[Edge]]:
    """Give every node its layer, width and x; return the layers and the edges."""
    for node in nodes:
        node.layer = 1 + max((value.layer for value in node.inputs), default=-1)
        first, *rest = node.lines
        wide = canvas.text_width(first, _TITLE, bold=True)
        wide = max([wide, *(canvas.text_width(line, _SMALL) for line in rest)])
        least = 0.6 if node.value else 0.9
        node.width = max(least, wide + 0.3 if node.op else 1.3 * wide + 0.2)
    _pull_leaves(nodes)
    layers: list[list[Node]] = [[] for _ in range(1 + max(node.layer for node in nodes))]
    for node in nodes:
        layers[node.layer].append(node)
    edges = [Edge(_points(value, node, layers)) for node in nodes for value in node.inputs]
    before, after = _neighbours(edges)
    _reduce_crossings(layers, before, after)
    _place(layers, before, after)
    return layers, edges


def _pull_leaves(nodes: list[Node]) -> None:
    """Put each leaf right above the first op that uses it: a late weight need not start on top."""
    users: dict[int, int] = {}
    for node in nodes:
        for value in node.inputs:
            users[id(value)] = min(node.layer, users.get(id(value), node.layer))
    for node in nodes:
        if not node.op:
            node.layer = users.get(id(node), 1) - 1


def _points(start: Node, end: Node, layers: list[list[Node]]) -> list[Node]:
    """An edge as its two ends and a point in each layer between them."""
    points = [Node("", layer=n, width=0.1) for n in range(start.layer + 1, end.layer)]
    for point in points:
        layers[point.layer].append(point)
    return [start, *points, end]


Links = dict[int, list[Node]]  # node -> its neighbours in the layer before, or after


def _neighbours(edges: list[Edge]) -> tuple[Links, Links]:
    before: Links = {}
    after: Links = {}
    for edge in edges:
        for upper, lower in pairwise(edge.path):
            before.setdefault(id(lower), []).append(upper)
            after.setdefault(id(upper), []).append(lower)
    return before, after


def _reduce_crossings(layers: list[list[Node]], before: Links, after: Links) -> None:
    """Sweep down and up, sorting each layer by the mean rank of its neighbours; keep the best."""
    best, fewest = [list(layer) for layer in layers], _crossings(layers, before)
    for sweep in range(12):
        if fewest == 0:
            break
        links, down = (before, True) if sweep % 2 == 0 else (after, False)
        for above, layer in _pairs(layers, down):
            rank = {id(node): n for n, node in enumerate(above)}
            mean = {
                id(node): float(np.mean([rank[id(other)] for other in links[id(node)]]))
                if id(node) in links
                else float(n)  # without neighbours there it stays about where it is
                for n, node in enumerate(layer)
            }
            layer.sort(key=lambda node: mean[id(node)])
        count = _crossings(layers, before)
        if count < fewest:
            best, fewest = [list(layer) for layer in layers], count
    for layer, order in zip(layers, best, strict=True):
        layer[:] = order


def _pairs(layers: list[list[Node]], down: bool) -> Iterator[tuple[list[Node], list[Node]]]:
    """(the layer to look at, the layer to change), from the top or from the bottom."""
    order = layers if down else layers[::-1]
    yield from pairwise(order)


def _crossings(layers: list[list[Node]], before: Links) -> int:
    """Pairs of edges between neighbouring layers that cross."""
    total = 0
    for above, layer in _pairs(layers, down=True):
        rank = {id(node): n for n, node in enumerate(above)}
        ends = [
            (rank[id(other)], n)
            for n, node in enumerate(layer)
            for other in before.get(id(node), [])
        ]
        upper, lower = np.array(ends or [(0, 0)]).T
        total += int(np.sum((upper[:, None] < upper) & (lower[:, None] > lower)))
    return total


def _place(layers: list[list[Node]], before: Links, after: Links) -> None:
    """Move nodes sideways to the mean of their neighbours, as far as order and gaps allow."""
    for layer in layers:
        _spread(layer, [0.0] * len(layer))
    for sweep in range(24):
        down = sweep % 2 == 0
        for _, layer in _pairs(layers, down):
            wanted = []
            for node in layer:
                others = (before if down else after).get(id(node), [])
                wanted.append(float(np.mean([n.x for n in others])) if others else node.x)
            _spread(layer, wanted)
    left = min(node.x - node.width / 2 for layer in layers for node in layer)
    for layer in layers:
        for node in layer:
            node.x -= left


def _spread(layer: list[Node], wanted: list[float]) -> None:
    """Closest positions to those wanted, by least squares, that keep the order and the gaps."""
    from scipy.optimize import isotonic_regression

    half = np.array([node.width / 2 for node in layer])
    steps = half[:-1] + half[1:] + _GAP
    offset = np.concatenate([[0.0], np.cumsum(steps)])
    # Less their least distances the positions need only not decrease.
    for node, x in zip(
        layer, isotonic_regression(np.array(wanted) - offset).x + offset, strict=True
    ):
        node.x = float(x)


# ---- the picture -----------------------------------------------------------------------------


def draw(tensor: Tensor, path: Path | str, names: Mapping[str, Any] | None = None) -> None:
    """Draw the graph that ends in ``tensor`` as a PNG.

    Ops are boxes with the shape of their result, leaves are ellipses: blue ones require grad, grey
    dashed ones are constants. The computation runs downwards; ``backward`` walks upwards.

    Parameters
    ----------
    tensor : Tensor
        The result of an expression of at most 200 ops and leaves.
    path : path
        Of the PNG; an earlier one is replaced.
    names : mapping from names to tensors or arrays, optional
        What to call leaves and results, for example ``{"x": x, "w": w}``.

    Raises
    ------
    GraphError
        If ``tensor`` is not one, its graph is too large, or was used up by ``backward``.
    DataError
        If the file cannot be written.
    """
    nodes = graph_of(tensor, names, MOST_NODES)
    layers, edges = layout(nodes)
    width = max(node.x + node.width / 2 for layer in layers for node in layer)
    margin = 0.25
    height = (len(layers) - 1) * _STEP + _HEIGHT
    figure, axes = canvas.sheet(width + 2 * margin, height + 2 * margin)
    middle = {
        id(node): (node.x + margin, margin + _HEIGHT / 2 + node.layer * _STEP)
        for layer in layers
        for node in layer
    }
    for edge, end_x in _arrivals(edges):
        _draw_edge(axes, [middle[id(node)] for node in edge.path], end_x + margin)
    for node in nodes:
        _draw_node(axes, node, *middle[id(node)], last=node is nodes[-1])
    canvas.save(figure, path, dpi=round(max(60, min(150, 3000 / max(width, height)))))


def _arrivals(edges: list[Edge]) -> Iterator[tuple[Edge, float]]:
    """Each edge with the x where it meets its op: side by side, in the order they come from."""
    coming: dict[int, list[Edge]] = {}
    for edge in edges:
        coming.setdefault(id(edge.path[-1]), []).append(edge)
    for group in coming.values():
        end = group[0].path[-1]
        group.sort(key=lambda edge: edge.path[-2].x)
        room = min(0.45 * end.width, 0.3 * (len(group) - 1))
        for edge, shift in zip(group, np.linspace(-room / 2, room / 2, len(group)), strict=True):
            yield edge, end.x + (float(shift) if len(group) > 1 else 0.0)


def _draw_edge(axes: Any, points: list[tuple[float, float]], end_x: float) -> None:
    """A smooth curve that leaves downwards, passes its points upright, and arrives downwards."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    half = _HEIGHT / 2
    stops = [(points[0][0], points[0][1] + half)]
    for x, y in points[1:-1]:  # straight through the height of the layer's nodes
        stops += [(x, y - half), (x, y + half)]
    stops.append((end_x, points[-1][1] - half))
    vertices, codes = [stops[0]], [Curve.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(stops):
        bend = (y0 + y1) / 2
        vertices += [(x0, bend), (x1, bend), (x1, y1)]
        codes += [Curve.CURVE4] * 3
    arrow = FancyArrowPatch(path=Curve(vertices, codes), arrowstyle="-|>", mutation_scale=9)
    arrow.set(color="#555555", linewidth=1.1, capstyle="round")
    axes.add_patch(arrow)


def _draw_node(axes: Any, node: Node, x: float, y: float, last: bool) -> None:
    from matplotlib.patches import Ellipse, FancyBboxPatch

    if node.op:
        corner, radius = (x - node.width / 2, y - _HEIGHT / 2), 0.12
        style = f"round,pad=0,rounding_size={radius}"
        patch: Any = FancyBboxPatch(corner, node.width, _HEIGHT, boxstyle=style)
        colour, fill = canvas.ORANGE, 0.16
    else:
        height = 0.44 if node.value else _HEIGHT + 0.1
        y += (_HEIGHT - height) / 2 if node.value else 0  # low, where its edge begins
        patch = Ellipse((x, y), node.width, height)
        colour, fill = (canvas.BLUE, 0.13) if node.requires_grad else ("#888888", 0.06)
        patch.set_linestyle("-" if node.requires_grad else (0, (4, 2.5)))
    patch.set(facecolor=canvas.tinted(colour, fill), edgecolor=colour)
    patch.set_linewidth(2.4 if last else 1.3)  # the result stands out
    axes.add_patch(patch)
    first, *rest = node.lines
    rows = ([0.0], [-0.09, 0.1], [-0.165, 0.02, 0.165])[len(rest)]  # inches from the middle
    for line, (text, dy) in enumerate(zip([first, *rest], rows, strict=True)):
        axes.text(
            x, y + dy, text, ha="center", va="center_baseline", family=canvas.TEXT_FONT,
            fontsize=_SMALL if line else _TITLE, weight="normal" if line else "bold",
            color="#555555" if line else canvas.INK, parse_math=False,
        )  # fmt: skip
