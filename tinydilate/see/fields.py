"""Pictures of receptive fields: growth, coverage with its holes, the field on an image, its weight.

Every number in them comes from `tinydilate.receptive_field`. What an output sees is drawn dark,
what it spans and does not see pale and crossed out, so that a print in grey says the same.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinydilate import nn
from tinydilate.device import Array
from tinydilate.errors import ConfigError, FieldError, ShapeError
from tinydilate.field import Slide, line_of
from tinydilate.io.files import write_bytes
from tinydilate.receptive_field.analysis import Analysis, Layer, Patch, analyse, bits_to_mask
from tinydilate.receptive_field.effective_field import EffectiveField
from tinydilate.receptive_field.hybrid_rule import largest_gap
from tinydilate.see import canvas
from tinydilate.see.canvas import BLUE, INK, ORANGE, PALE, SKY, TEXT_FONT, VERMILION
from tinydilate.window import Pair

MOST_LAYERS = 8  # side by side in one row
MOST_CELLS = 40  # pixels a side that are drawn as squares, with crosses and dots
SEEN, HOLE, BEYOND = BLUE, "#F7D9C8", "#FFFFFF"
_LINES = (BLUE, VERMILION, INK)
_MARKS = ("o", "s", "^")


def _figure(width: float, height: float) -> Any:
    """An empty figure that lays its axes out by itself."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _write(axes: Any, x: float, y: float, text: str, **style: Any) -> None:
    given = {"fontsize": 8, "family": TEXT_FONT, "color": INK, "parse_math": False, **style}
    axes.text(x, y, text, **given)


def _bare(axes: Any) -> None:
    """Take away ticks and frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, fontsize=9.5, family=TEXT_FONT, color=INK, loc="left", parse_math=False)


# ---- growth ----------------------------------------------------------------------------------


class Step(NamedTuple):
    """A point of the growth: layers that see equally far, their field, the parameters so far."""

    names: tuple[str, ...]
    extent: int
    parameters: int

    @property
    def label(self) -> str:
        """Such as ``fc1 to final: 67``."""
        between = " to " if len(self.names) > 2 else ", "
        return f"{between.join(dict.fromkeys([self.names[0], self.names[-1]]))}: {self.extent}"


def growth(model: nn.Module, input_size: Sequence[int]) -> list[Step]:
    """How the field grows along the rows, layer by layer; layers that add nothing join the last.

    Raises
    ------
    FieldError
        If no layer has a field.
    """
    analysis = analyse(model, input_size, misaligned="union")
    modules = dict(model.named_modules())
    steps: list[Step] = []
    counted: set[int] = set()
    total = 0
    for layer in analysis.layers:
        fresh = [p for p in modules[layer.name].parameters() if id(p) not in counted]
        counted.update(map(id, fresh))
        total += sum(parameter.size for parameter in fresh)
        if layer.has_fields:
            name, extent = layer.name.rpartition(".")[2], layer.extent[0]
            if steps and steps[-1].extent == extent:
                steps[-1] = Step((*steps[-1].names, name), extent, steps[-1].parameters)
            else:
                steps.append(Step((name,), extent, total))
    if not steps:
        raise FieldError("expected a network with layers that have a field; got none.")
    return steps


def draw_growth(
    path: Path | str, networks: Mapping[str, nn.Module], input_size: Sequence[int]
) -> None:
    """Draw how the field grows: nested squares, and field against parameters.

    Parameters
    ----------
    path : path
        Of the PNG; an earlier one is replaced.
    networks : mapping from titles to nn.Module
        The squares are those of the first; up to three are compared on the right.
    input_size : sequence of int
        (N, C, H, W).

    Raises
    ------
    ConfigError
        If there are none, or more than three.
    FieldError
        If a network has no layer with a field.
    DataError
        If the file cannot be written.
    """
    if not isinstance(networks, Mapping):
        raise ConfigError(
            f"expected networks by their titles; got {type(networks).__name__}. Write "
            '{"my network": network}.'
        )
    if not 1 <= len(networks) <= len(_LINES):
        raise ConfigError(f"expected from 1 to {len(_LINES)} networks; got {len(networks)}.")
    grown = {title: growth(network, input_size) for title, network in networks.items()}
    figure = _figure(9.5, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    first = next(iter(grown))
    _draw_nested(left, grown[first])
    _title(left, f"{first}: what an output of each layer spans")
    _draw_curves(right, grown)
    canvas.save(figure, path)


def _draw_nested(axes: Any, steps: Sequence[Step]) -> None:
    """Squares about one centre, the largest first, each with a line to its label."""
    from matplotlib.patches import Rectangle

    largest = max(step.extent for step in steps)
    order = sorted(steps, key=lambda step: -step.extent)
    every = -(-len(order) // 24)  # more labels than that cannot be read
    labelled = list(range(len(order) - 1, -1, -every))[::-1]
    for rank, step in enumerate(order):
        half = step.extent / 2
        tint = canvas.tinted(BLUE, 0.08 + 0.8 * rank / max(1, len(order) - 1))
        square = Rectangle(
            (-half, -half), 2 * half, 2 * half, facecolor=tint, edgecolor=INK, lw=0.7
        )
        axes.add_patch(square)
        if rank in labelled:
            place = largest * (0.5 - (labelled.index(rank) + 0.5) / len(labelled))
            xs, ys = (half, 0.56 * largest, 0.6 * largest), (half, place, place)
            axes.plot(xs, ys, color=INK, lw=0.5)
            _write(axes, 0.615 * largest, place, step.label, va="center")
    axes.set_xlim(-0.52 * largest, 1.12 * largest)
    axes.set_ylim(-0.52 * largest, 0.52 * largest)
    axes.set_aspect("equal", anchor="W")
    _bare(axes)


def _draw_curves(axes: Any, grown: Mapping[str, Sequence[Step]]) -> None:
    """Field (logarithmic) against parameters (linear), a mark for each layer that adds to it."""
    for (title, steps), colour, mark in zip(grown.items(), _LINES, _MARKS, strict=False):
        xs, ys = [step.parameters for step in steps], [step.extent for step in steps]
        axes.plot(xs, ys, color=colour, marker=mark, markersize=4.5, linewidth=1.6, label=title)
    extents = [step.extent for steps in grown.values() for step in steps]
    low, high = int(log2(min(extents))), int(log2(max(extents))) + 1
    axes.set_yscale("log", base=2)
    axes.set_yticks(
        [2**n for n in range(low, high + 1)], [f"{2**n:,}" for n in range(low, high + 1)]
    )
    axes.set_yticks([], minor=True)
    axes.set_ylim(2 ** (log2(min(extents)) - 0.4), 2 ** (log2(max(extents)) + 0.4))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.set_xlabel("parameters of the layers so far", fontsize=9)
    axes.set_ylabel("pixels along one axis", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#E6E6E6")
    axes.spines[["top", "right"]].set_visible(False)
    if len(grown) > 1:
        axes.legend(frameon=False, fontsize=8.5, loc="best")
    _title(axes, "field against parameters; a mark is a layer")


def _short(number: float) -> str:
    """A number of parameters in few letters."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:g} {unit}"
    return f"{number:g}"


# ---- taps and coverage -----------------------------------------------------------------------


def draw_coverage(path: Path | str, stacks: Sequence[Sequence[int]], kernel: int = 3) -> None:
    """Draw what stacks of dilated layers see, layer by layer, with taps and holes marked.

    One row a stack, one panel a layer: dots are the taps of that layer, each of which hands on all
    that the layer before saw. Below stands what the hybrid-dilation rule says of the stack (see
    `tinydilate.receptive_field.hybrid_rule`) beside the exact answer.

    Parameters
    ----------
    path : path
        Of the PNG; an earlier one is replaced.
    stacks : sequence of sequences of int
        The dilations of each stack, such as ``[(2, 2, 2), (1, 2, 4)]``; strides are 1.
    kernel : int
        Taps along an axis, in every layer.

    Raises
    ------
    ConfigError
        If a stack has no layers or more than eight, or a number is below 1.
    DataError
        If the file cannot be written.
    """
    for stack in stacks:
        _check_stack(stack, kernel)
    if not stacks:
        raise ConfigError(
            "expected at least one stack of dilations, such as [(2, 2, 2)]; got none."
        )
    columns = max(len(stack) for stack in stacks)
    cells = 2 + max(len(_field_along(stack, kernel)) for stack in stacks)
    side = min(2.7, 11 / columns)
    figure = _figure(max(7.4, columns * side), len(stacks) * (side + 0.85) + 0.35)
    parts = figure.subfigures(len(stacks), 1, squeeze=False)[:, 0]
    for part, stack in zip(parts, stacks, strict=True):
        part.suptitle(_verdict(stack, kernel), fontsize=10, family=TEXT_FONT, x=0.01, ha="left")
        panels = part.subplots(1, columns, squeeze=False)[0]
        for number, axes in enumerate(panels, 1):
            _bare(axes)
            if number <= len(stack):
                seen = _field_along(stack[:number], kernel)
                taps = (np.arange(kernel) - (kernel - 1) / 2) * stack[number - 1]
                _draw_map(axes, Patch((0, 0), np.outer(seen, seen)), cells, taps)
                _title(axes, f"layer {number}, dilation {stack[number - 1]}\n{_counted(seen)}")
    figure.legend(
        handles=_map_legend(), loc="outside lower center", ncols=3, frameon=False, fontsize=8.5
    )
    canvas.save(figure, path)


def _check_stack(dilations: Sequence[int], kernel: int) -> None:
    whole = all(isinstance(n, int | np.integer) and n >= 1 for n in (*dilations, kernel))
    if not whole or not 1 <= len(dilations) <= MOST_LAYERS:
        raise ConfigError(
            f"expected from 1 to {MOST_LAYERS} dilations and a kernel, whole numbers of at least "
            f"1; got {tuple(dilations)!r} and {kernel!r}."
        )


def _field_along(dilations: Sequence[int], kernel: int) -> Array:
    """Which pixels of its extent a stack sees along an axis, bool."""
    line = line_of(Slide(kernel, 1, 0, int(dilation)) for dilation in dilations)
    return bits_to_mask(line.phases[0].bits)


def _counted(seen: Array) -> str:
    """Pixels of the square of a field."""
    reached, box = int(seen.sum()) ** 2, len(seen) ** 2
    return f"all of {len(seen)}×{len(seen)}" if reached == box else f"{reached} of {box} pixels"


def _verdict(dilations: Sequence[int], kernel: int) -> str:
    """The rule of thumb beside the truth."""
    seen = _field_along(dilations, kernel)
    holes = len(seen) - int(seen.sum())
    name = f"dilations {', '.join(map(str, dilations))}"
    exact = f"{name}: {seen.sum()} of {len(seen)} pixels along an axis, {holes or 'no'} holes"
    if len(dilations) < 2:
        return exact
    gap = largest_gap(dilations)
    passes = gap <= kernel
    judged = f"M₂ = {gap} {'≤' if passes else '>'} K = {kernel}, so {'no ' if passes else ''}holes"
    wrong = ": wrong here" if passes == bool(holes) else ""
    return f"{exact}\nhybrid-dilation rule: {judged}{wrong}"


def _draw_map(axes: Any, patch: Patch, side: int, taps: Array | None = None) -> None:
    """Draw a field in the middle of a square of ``side`` pixels: seen, holes, and the last taps.

    Positions are centred at 0.
    """
    from matplotlib.colors import to_rgb

    height, width = patch.mask.shape
    image = np.where(patch.mask[:, :, None], to_rgb(SEEN), to_rgb(HOLE))
    extent = (-width / 2, width / 2, height / 2, -height / 2)
    axes.imshow(image, extent=extent, interpolation="nearest", zorder=1)
    axes.set_xlim(-side / 2, side / 2)
    axes.set_ylim(side / 2, -side / 2)
    size = 72 * 2.2 / side  # points a pixel, about
    if taps is not None:
        ys, xs = (part.ravel() for part in np.meshgrid(taps, taps, indexing="ij"))
        diameter = max(0.55 * size, 2.2)
        axes.scatter(xs, ys, s=diameter**2, color="white", edgecolors=INK, linewidths=0.8, zorder=4)
    if side > MOST_CELLS:
        return
    for edge in np.arange(side + 1) - side / 2:
        axes.plot([edge, edge], [-side / 2, side / 2], color="#DDDDDD", lw=0.4, zorder=2)
        axes.plot([-side / 2, side / 2], [edge, edge], color="#DDDDDD", lw=0.4, zorder=2)
    rows, columns = np.nonzero(~patch.mask)
    axes.scatter(
        columns - (width - 1) / 2, rows - (height - 1) / 2, marker="x", s=(0.42 * size) ** 2,
        color=VERMILION, linewidths=min(1.0, 0.09 * size), zorder=3,
    )  # fmt: skip


def _map_legend() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch as Square

    dot: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": INK}
    cross: dict[str, Any] = {"marker": "x", "markeredgecolor": VERMILION, "markersize": 6}
    return [
        Square(facecolor=SEEN, label="seen by the output"),
        Line2D([], [], linestyle="", label="hole: spanned, not seen", **cross),
        Line2D([], [], linestyle="", label="tap of the layer", **dot),
    ]


# ---- on an image -----------------------------------------------------------------------------


def draw_field(
    path: Path | str, layer: Layer, image: Array, output: Sequence[int] | None = None
) -> None:
    """Draw what an output in the middle sees of an image, and beside it one in the corner.

    What is seen keeps its light and turns blue; the rest is dimmed. A frame shows the field's box;
    where it hangs over the image's border it is hatched.

    Parameters
    ----------
    path : path
        Of the PNG; an earlier one is replaced.
    layer : Layer
        Of an analysis of images of this size.
    image : (H, W) or (H, W, 3)
        Of any range; its darkest level is drawn black, its lightest white.
    output : (int, int), optional
        Row and column of the output to the left; by default the one in the middle.

    Raises
    ------
    ShapeError
        If the image has another size than the one analysed.
    PositionError
        If there is no such output.
    DataError
        If the file cannot be written.
    """
    if not isinstance(layer, Layer):
        raise ConfigError(
            f"expected a layer of an analysis; got {type(layer).__name__}. Take one by its name, "
            'analysis["conv"], or analysis.output.'
        )
    image = np.asarray(image)
    if image.ndim not in (2, 3) or image.shape[:2] != layer.image_size:
        raise ShapeError(
            "expected an image of the size that was analysed, "
            f"{layer.image_size[0]} x {layer.image_size[1]}; got {image.shape}. "
            "Analyse the network at this size, or resize the image."
        )
    rows, columns = layer.size
    middle = (rows // 2, columns // 2) if output is None else (int(output[0]), int(output[1]))
    shown = list(dict.fromkeys([middle, (0, 0)]))
    masks = [layer.seen_by(place) for place in shown]
    figure = _figure(4.7 * len(shown), 5.3)
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.95))  # titles of two lines
    levels = (image - image.min()) / max(float(np.ptp(image)), 1e-9)
    for axes, place, mask in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, masks,
                                 strict=True):  # fmt: skip
        _draw_on_image(axes, layer, levels, place, mask)
        _bare(axes)
    figure.legend(
        handles=_image_legend(), loc="outside lower center", ncols=4, frameon=False, fontsize=8.5
    )
    canvas.save(figure, path)


def _draw_on_image(axes: Any, layer: Layer, image: Array, output: Pair, mask: Array) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    colours = np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
    seen = 0.45 * np.array(to_rgb(SKY)) + 0.55 * colours
    shown = np.where(mask[:, :, None], seen, 0.08 + 0.5 * colours)
    (top, left), whole = layer.field_of(output)
    height, width = whole.shape
    box: dict[str, Any] = {"xy": (left - 0.5, top - 0.5), "width": width, "height": height}
    axes.add_patch(
        Rectangle(**box, facecolor="#F4F4F4", edgecolor=PALE, hatch="////", linewidth=0, zorder=0)
    )
    axes.imshow(shown, interpolation="nearest", zorder=1)
    axes.add_patch(
        Rectangle(**box, fill=False, edgecolor=VERMILION, linewidth=1.6, linestyle=(0, (4, 2)),
                  zorder=3)
    )  # fmt: skip
    centre = top + (height - 1) / 2, left + (width - 1) / 2
    axes.plot(centre[1], centre[0], "+", color=VERMILION, markersize=9, markeredgewidth=2, zorder=4)
    rows, columns = layer.image_size
    margin = 0.03 * max(rows, columns)
    around = max(height, width, 12)  # of a large image only what lies about the field
    axes.set_xlim(
        max(left - around, min(left, 0) - margin),
        min(left + width + around, max(left + width, columns) + margin),
    )
    axes.set_ylim(
        min(top + height + around, max(top + height, rows) + margin),
        max(top - around, min(top, 0) - margin),
    )
    outside = layer.outside(output)
    beyond = f"; {outside:.0%} of its field lies outside" if outside else ""
    _title(
        axes,
        f"{layer.name}, output {output}: field {height}×{width}\n"
        f"sees {mask.sum():,} pixels of the image{beyond}",
    )


def _image_legend() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch as Square

    cross: dict[str, Any] = {"marker": "+", "markeredgecolor": VERMILION, "markeredgewidth": 2}
    return [
        Square(facecolor=SKY, label="seen"),
        Square(facecolor="#4D4D4D", label="not seen (dimmed)"),
        Square(fill=False, edgecolor=VERMILION, linestyle="--", label="the field's box"),
        Line2D([], [], linestyle="", label="its centre", **cross),
    ]


# ---- the effective field ---------------------------------------------------------------------


def draw_effective(
    path: Path | str, field: EffectiveField, closed_form: float | None = None, title: str = ""
) -> None:
    """Draw how much each pixel counts, beside the box of the field in theory.

    Parameters
    ----------
    path : path
        Of the PNG; an earlier one is replaced.
    field : EffectiveField
    closed_form : float, optional
        Sigma along the columns by `closed_form_sigma`, drawn as a Gaussian where it applies.
    title : str
        Which network, and which weights.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    from matplotlib.patches import Rectangle

    seen = field.layer.line(1).seen(field.output[1])
    (top, left), whole = field.layer.field_of(field.output)
    figure = _figure(9.5, 4.5)
    map_axes, axes = figure.subplots(1, 2, width_ratios=(1, 1.25))
    share = np.sqrt(field.heat / field.heat.max())  # as the eye would have it: far ones show, too
    drawn = map_axes.imshow(share, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    bar = figure.colorbar(drawn, ax=map_axes, location="right", shrink=0.75, aspect=25)
    bar.set_ticks([0, 0.1**0.5, 0.3**0.5, 0.6**0.5, 1], labels=["0", "0.1", "0.3", "0.6", "1"])
    bar.set_label("how much a pixel counts, the largest = 1", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    map_axes.add_patch(
        Rectangle((left - 0.5, top - 0.5), whole.shape[1], whole.shape[0], fill=False,
                  edgecolor=ORANGE, linestyle=(0, (4, 2)), linewidth=1.6)
    )  # fmt: skip
    height, width = field.heat.shape
    map_axes.set_xlim(min(left, 0) - 2.5, max(left + whole.shape[1], width) + 1.5)
    map_axes.set_ylim(max(top + whole.shape[0], height) + 1.5, min(top, 0) - 2.5)
    _bare(map_axes)
    _title(map_axes, f"{title or field.layer.name}\ndashed: the field, {seen.extent} pixels wide")
    _draw_profile(axes, field, (seen.first, seen.last), closed_form)
    canvas.save(figure, path)


def _draw_profile(axes: Any, field: EffectiveField, span: Pair, closed_form: float | None) -> None:
    """The heat summed over rows, with sigma to either side, and the closed form."""
    profile, sigma = field.along(1), field.sigma[1]
    centre = (span[0] + span[1]) / 2
    mean, places = field.centre[1] - centre, np.arange(len(profile)) - centre
    axes.fill_between(places, profile, step="mid", color=canvas.tinted(BLUE, 0.35), linewidth=0)
    axes.step(places, profile, where="mid", color=BLUE, linewidth=1.3, label="measured")
    if closed_form:
        bell = np.exp(-(places**2) / (2 * closed_form**2)) / (closed_form * np.sqrt(2 * np.pi))
        label = f"Gaussian of the closed form, σ = {closed_form:.2f}"
        axes.plot(places, bell, color=VERMILION, linestyle="--", linewidth=1.5, label=label)
    peak = float(profile.max())
    axes.annotate(
        "", (mean - sigma, 0.12 * peak), (mean + sigma, 0.12 * peak),
        arrowprops={
            "arrowstyle": "<->", "color": INK, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0,
        },
    )  # fmt: skip
    told = f"±σ = ±{sigma:.2f}"
    _write(axes, mean, 0.15 * peak, told, ha="center", fontsize=9)
    for edge in (span[0] - 0.5, span[1] + 0.5):
        axes.axvline(edge - centre, ymax=0.85, color=INK, linestyle=(0, (4, 2)), linewidth=1)
    extent = span[1] - span[0] + 1
    _title(axes, f"summed over rows: 95.45 % of it in {field.width()[1]} of {extent} pixels")
    axes.set_xlabel("columns from the field's centre", fontsize=9)
    axes.set_ylabel("share of the whole", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_ylim(0, 1.25 * peak)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, loc="upper center", ncols=2)


# ---- the animation ---------------------------------------------------------------------------


def animate_growth(path: Path | str, analysis: Analysis, seconds: float = 1.0) -> None:
    """Write a GIF in which the field grows, a frame for each layer that adds to it.

    On the left what the layer's output sees, in orange what it sees more than the layer before; on
    the right the curve of the extents.

    Parameters
    ----------
    path : path
        Of the GIF; an earlier one is replaced.
    analysis : Analysis
    seconds : float
        For each layer; the last one stays three times as long.

    Raises
    ------
    FieldError
        If no layer has a field.
    DataError
        If the file cannot be written.
    """
    from PIL import Image

    layers = list(_that_grow(analysis))
    if not layers:
        raise FieldError("expected a network with layers that have a field; got none.")
    # Those of output 0, which are then laid upon one another at their centres.
    fields = [layer.field_of((0, 0)) for layer in layers]
    seen = _seen_before([field.mask for field in fields])
    frames = [_frame(layers, fields, seen[number], number) for number in range(len(layers))]
    shared = Image.fromarray(np.concatenate(frames)).quantize(128, dither=Image.Dither.NONE)
    pictures = [
        Image.fromarray(frame).quantize(palette=shared, dither=Image.Dither.NONE)
        for frame in frames
    ]
    milliseconds = [round(1000 * seconds)] * (len(pictures) - 1) + [round(3000 * seconds)]
    content = io.BytesIO()
    pictures[0].save(
        content, format="GIF", save_all=True, append_images=pictures[1:], loop=0,
        duration=milliseconds, disposal=1,
    )  # fmt: skip
    write_bytes(path, content.getvalue())


def _that_grow(analysis: Iterable[Layer]) -> Iterable[Layer]:
    """The layers that see more than the one before."""
    before = None
    for layer in analysis:
        if layer.has_fields:
            now = layer.extent, layer.reached
            if now != before:
                yield layer
            before = now


def _seen_before(masks: Sequence[Array]) -> list[Array]:
    """For each mask, which of its pixels an earlier one has: one of them, for networks branch."""
    sides = [max(mask.shape[axis] for mask in masks) for axis in (0, 1)]
    union = np.zeros(sides, bool)
    found = []
    for mask in masks:
        rows, columns = (
            slice((side - size) // 2, (side - size) // 2 + size)
            for side, size in zip(sides, mask.shape, strict=True)
        )
        found.append(union[rows, columns].copy())
        union[rows, columns] |= mask
    return found


def _frame(layers: Sequence[Layer], fields: Sequence[Patch], before: Array, number: int) -> Array:
    """One picture as uint8 (rows, columns, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    layer, patch = layers[number], fields[number]
    figure = _figure(8, 4.2)
    drawing: Any = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.05))
    side = max(max(mask.shape) for _, mask in fields) + 2
    _draw_new(left, patch, before, side)
    holes = f", {layer.holes:,} holes" if layer.holes else ""
    _title(
        left,
        f"{layer.name} ({layer.type})\nsees {layer.reached:,} pixels{holes}",
    )
    left.set_xlabel("orange: seen by no layer before" + ("; ×: hole" if holes else ""), fontsize=9)
    extents = [one.extent[0] for one in layers]
    at = np.arange(1, len(layers) + 1)
    right.plot(at, extents, color=PALE, marker="o", markersize=3, linewidth=1)
    right.plot(at[: number + 1], extents[: number + 1], color=BLUE, marker="o", linewidth=1.8)
    right.annotate(
        f"{extents[number]}", (at[number], extents[number]), xytext=(-4, 5),
        textcoords="offset points", ha="right", fontsize=10, color=INK, weight="bold",
    )  # fmt: skip
    right.set_yscale("log", base=2)
    ticks = [2**n for n in range(1, int(log2(max(extents))) + 2)]
    right.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    right.set_xticks(at[:: max(1, len(at) // 10)])
    right.set_xlim(0.3, len(layers) + 0.7)
    right.set_ylim(0.7 * min(extents), 1.6 * max(extents))
    right.set_xlabel("layers, those that add to the field", fontsize=9)
    _title(right, "extent: pixels along one axis")
    right.grid(axis="y", color="#E6E6E6")
    right.spines[["top", "right"]].set_visible(False)
    figure.set_dpi(90)
    drawing.draw()
    return np.asarray(drawing.buffer_rgba())[:, :, :3].copy()


def _draw_new(axes: Any, patch: Patch, before: Array, side: int) -> None:
    """A field, with what was not seen before in another colour."""
    from matplotlib.colors import to_rgb

    _bare(axes)
    _draw_map(axes, patch, side)
    new = patch.mask & ~before
    colours = np.zeros((*new.shape, 4))
    colours[new] = (*to_rgb(ORANGE), 1)
    height, width = new.shape
    extent = (-width / 2, width / 2, height / 2, -height / 2)
    axes.imshow(colours, extent=extent, interpolation="nearest", zorder=1.5)
    axes.set_xlim(-side / 2, side / 2)
    axes.set_ylim(side / 2, -side / 2)
