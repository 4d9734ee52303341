"""Pictures of a training run: how it went, and what the networks see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinydilate.classes import IGNORE
from tinydilate.data.digits import IGNORE_COLOUR, PALETTE
from tinydilate.device import Array
from tinydilate.see.canvas import BLUE, INK, PALE, VERMILION, save

_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_WITH, _ALONE = BLUE, VERMILION
# Around mistakes: bright on every class's colour, and unlike the white of what does not count.
_MISTAKE = "#00CCFF"


class StageLike(Protocol):
    """What a picture needs to know of a stage of training."""

    @property
    def name(self) -> str:
        """Name in the log."""

    @property
    def title(self) -> str:
        """Name for people."""

    @property
    def start(self) -> str:
        """Name of the stage that it continues, or ""."""

    @property
    def steps(self) -> int:
        """Its length."""


def _figure(width: float, height: float) -> Any:
    """An empty figure that lays its axes out by itself."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


# ---- curves ----------------------------------------------------------------------------------


def smoothed(values: Array, memory: float = 0.95) -> Array:
    """Running mean that forgets: each value's weight falls by ``memory`` a step."""
    result = np.empty(len(values))
    total = weight = 0.0
    for n, value in enumerate(values):
        total, weight = memory * total + value, memory * weight + 1
        result[n] = total / weight
    return result


def draw_curves(
    path: Path | str,
    log: Sequence[Mapping[str, Any]],
    stages: Sequence[StageLike],
    classes: Sequence[str],
) -> None:
    """Draw loss and validation mean IoU of both branches over the steps.

    Parameters
    ----------
    path : path
        Of the PNG.
    log : sequence of dict
        The lines of a run's log.jsonl.
    stages : sequence of Stage
        In the run's order. The comparison "alone" is drawn beside the stages it competes with.
    classes : sequence of str
        What the mean is taken over.
    """
    figure = _figure(9.5, 6.4)
    upper, lower = figure.subplots(2, 1, sharex=True)
    begin = _beginnings(stages)
    _draw_losses(upper, log, begin, np.log(len(classes)))
    _draw_scores(lower, log, stages, begin)
    _mark_stages((upper, lower), stages, begin)
    upper.set_ylabel("loss (thick: running mean)")
    upper.annotate(
        "Jumps: each stage has a fresh optimiser.",
        (0, 0),
        xycoords="axes fraction",
        xytext=(6, 6),
        textcoords="offset points",
        fontsize=8,
        color="#777777",
    )
    upper.annotate(
        f"ln {len(classes)}: knowing nothing",
        (1, np.log(len(classes))),
        xycoords=("axes fraction", "data"),
        xytext=(-4, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color="#777777",
    )
    lower.set_ylabel(f"validation mean IoU, {len(classes)} classes")
    lower.set_xlabel("step")
    end = max(begin[stage.name] + stage.steps for stage in stages)
    lower.set_xlim(-0.01 * end, 1.02 * end)
    for axes in (upper, lower):
        axes.grid(axis="y", color="#EEEEEE")
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path, dpi=130)


def _colour(stage: str) -> str:
    return {"front": INK, "alone": _ALONE}.get(stage, _WITH)


def _draw_losses(
    axes: Any, log: Sequence[Mapping[str, Any]], begin: Mapping[str, int], ignorance: float
) -> None:
    """Loss of every step, pale, and its running mean; ``ignorance`` is where it starts, ln C."""
    lowest = 1.0
    for name, start in begin.items():
        steps, losses = _series(log, name, "loss", start)
        mean = smoothed(losses)
        axes.plot(steps, losses, color=_colour(name), alpha=0.15, linewidth=0.7)
        axes.plot(steps, mean, color=_colour(name), linewidth=1.8)
        lowest = min([lowest, *mean])
    axes.axhline(ignorance, color=PALE, linewidth=1, linestyle=":")
    axes.set_yscale("log")  # so that halving the loss looks the same early and late
    ticks = [tick for tick in _TICKS if tick > 0.5 * lowest]
    axes.set_ylim(min(0.7 * lowest, 0.5), 1.4 * ignorance)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)


def _draw_scores(
    axes: Any,
    log: Sequence[Mapping[str, Any]],
    stages: Sequence[StageLike],
    begin: Mapping[str, int],
) -> None:
    """Validation mean IoU; each stage's line goes on from where the one before it ended."""
    labels = {
        "front": "front end, stage 1",
        "joint": "front end + context",
        "alone": "front end alone, as many steps",
    }
    ends: dict[str, tuple[Array, Array]] = {"": (np.zeros(0), np.zeros(0))}
    for stage in stages:
        steps, scores = _series(log, stage.name, "validation_mean_iou", begin[stage.name])
        steps = np.append(ends[stage.start][0], steps)
        scores = np.append(ends[stage.start][1], scores)
        ends[stage.name] = steps[-1:], scores[-1:]
        axes.plot(
            steps,
            scores,
            color=_colour(stage.name),
            linewidth=1.8,
            marker="o",
            markersize=3.5,
            label=labels.get(stage.name),
        )
    axes.set_ylim(0, 1)
    axes.legend(loc="lower right", frameon=False)


def _beginnings(stages: Sequence[StageLike]) -> dict[str, int]:
    """Step at which each stage begins, counted along the branch that it belongs to."""
    begin: dict[str, int] = {}
    length = {stage.name: stage.steps for stage in stages}
    for stage in stages:
        begin[stage.name] = begin[stage.start] + length[stage.start] if stage.start else 0
    return begin


def _series(
    log: Sequence[Mapping[str, Any]], stage: str, key: str, begin: int
) -> tuple[Array, Array]:
    """Steps and values of a stage's lines in the log that have a value of this name."""
    entries = [entry for entry in log if entry["stage"] == stage and entry.get(key) is not None]
    steps = np.array([entry["step"] + begin for entry in entries], dtype=float)
    return steps, np.array([entry[key] for entry in entries], dtype=float)


def _mark_stages(
    axes: Sequence[Any], stages: Sequence[StageLike], begin: Mapping[str, int]
) -> None:
    """Write each stage of the upper branch above its stretch of the steps."""
    branch = [stage for stage in stages if stage.name != "alone"]
    for number, stage in enumerate(branch, start=1):
        start = begin[stage.name]
        for part in axes:
            if start:
                part.axvline(start, color=PALE, linewidth=0.8)
        axes[0].annotate(
            f"{number} {stage.title}", (start + stage.steps / 2, 1),
            xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points",
            ha="center", va="bottom", fontsize=9, color=INK,
        )  # fmt: skip


# ---- predictions -----------------------------------------------------------------------------


def coloured(labels: Array) -> NDArray[np.uint8]:
    """Labels (H, W) -> their colours, uint8 (H, W, 3); pixels that do not count are white."""
    colours = np.full((256, 3), IGNORE_COLOUR, np.uint8)
    colours[: len(PALETTE)] = PALETTE
    return colours[labels]


def draw_predictions(
    path: Path | str,
    images: Array,
    truth: Array,
    predictions: Mapping[str, Array],
    classes: Sequence[str],
) -> None:
    """Draw a sheet: one column a scene; image, truth, and for each network labels and mistakes.

    Parameters
    ----------
    path : path
        Of the PNG.
    images : (N, H, W)
        Grey levels in [0, 1].
    truth : integers (N, H, W)
    predictions : mapping from titles to integers (N, H, W)
    classes : sequence of str
    """
    rows = 2 + len(predictions)
    ground = classes.index("background")
    width = max(9.0, 1.75 * len(images) + 0.6)  # the legend needs some of it
    figure = _figure(width, 1.8 * rows + 0.55)
    grid = figure.subplots(rows, len(images), squeeze=False)
    for n, column in enumerate(grid.T):
        column[0].imshow(images[n], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        column[1].imshow(coloured(truth[n]), interpolation="nearest")
        for axes, labels in zip(column[2:], predictions.values(), strict=True):
            _draw_mistakes(axes, labels[n], truth[n], ground)
    titles = ["image", "truth", *predictions]
    for axes, title in zip(grid[:, 0], titles, strict=True):
        axes.set_ylabel(title, fontsize=10)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_visible(False)
    _legend(figure, classes)
    save(figure, path, dpi=130)


def _draw_mistakes(axes: Any, labels: Array, truth: Array, ground: int) -> None:
    """Labels in colour, a line around what is wrong, the share of the strokes that is right.

    Of the background almost everything is always right, so it does not enter the share.
    """
    counted = truth != IGNORE
    wrong = counted & (labels != truth)
    axes.imshow(coloured(labels), interpolation="nearest")
    if wrong.any():
        axes.contour(wrong, levels=[0.5], colors=[_MISTAKE], linewidths=0.9)
    strokes = counted & (truth != ground)
    right = (strokes & ~wrong).sum() / max(1, strokes.sum())
    axes.set_xlabel(f"{right:.0%} of the strokes right", fontsize=8, labelpad=2)


def _legend(figure: Any, classes: Sequence[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colours = [*PALETTE[: len(classes)].tolist(), IGNORE_COLOUR]
    handles: list[Any] = [
        Patch(facecolor=(r / 255, g / 255, b / 255), edgecolor=INK, linewidth=0.4, label=name)
        for (r, g, b), name in zip(colours, [*classes, "does not count"], strict=True)
    ]
    handles.append(Line2D([], [], color=_MISTAKE, linewidth=1.5, label="around mistakes"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False,
        fontsize=9, handlelength=1.1, handletextpad=0.4, columnspacing=1.1,
    )  # fmt: skip
