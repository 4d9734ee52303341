"""Draw docs/_static/growth.svg: how the receptive field grows when the dilation doubles.

    python scripts/draw_growth.py

One panel a layer, after the paper's Figure 1: the nine taps that the layer reads, and behind them
the pixels of the image that its output can see. Everything is computed from `tinydilate.window` and
`tinydilate.field`; the greys and blues read on white and on black.
"""

from __future__ import annotations

from pathlib import Path

from tinydilate.field import field_of, sliding
from tinydilate.window import Window, tap

TARGET = Path(__file__).resolve().parent.parent / "docs" / "_static" / "growth.svg"
DILATIONS = (1, 2, 4)
PIXELS = 17  # drawn along each axis
CELL, SIDE, MARGIN = 14, 11, 26  # a pixel with its gap, without it; room for the label
SEEN, UNSEEN, TAP, CENTRE, TEXT = "#7fb3d9", "#8a97a6", "#14507f", "#e4572e", "#7a8794"


def panel(left: int, dilations: tuple[int, ...]) -> list[str]:
    """Draw the window of the last layer, and what the stack of all of them sees."""
    window = Window.of(3, dilation=dilations[-1])
    extent = field_of([sliding(Window.of(3, dilation=d), axis=0) for d in dilations]).extent
    centre = PIXELS // 2
    taps = {centre + tap(0, u, 1, window.dilation[0], window.dilation[0]) for u in range(3)}
    seen, unseen, dots = "", "", []
    for y in range(PIXELS):
        for z in range(PIXELS):
            x0, y0 = left + z * CELL, MARGIN + y * CELL
            square = f"M{x0} {y0}h{SIDE}v{SIDE}h-{SIDE}z"
            if max(abs(y - centre), abs(z - centre)) <= extent // 2:
                seen += square
            else:
                unseen += square
            if y in taps and z in taps:
                colour = CENTRE if (y, z) == (centre, centre) else TAP
                cx, cy = x0 + SIDE / 2, y0 + SIDE / 2
                dots.append(f'<circle cx="{cx}" cy="{cy}" r="4.5" fill="{colour}"/>')
    shapes = [
        f'<path d="{unseen}" fill="{UNSEEN}" opacity="0.18"/>',
        f'<path d="{seen}" fill="{SEEN}" opacity="0.75"/>',
        *dots,
    ]
    label = f"dilation {dilations[-1]}: sees {extent} × {extent}"
    middle = left + PIXELS * CELL / 2
    shapes.append(f'<text x="{middle}" y="14" text-anchor="middle">{label}</text>')
    return shapes


def main() -> None:
    step = PIXELS * CELL + MARGIN
    shapes = []
    for number in range(len(DILATIONS)):
        shapes += panel(number * step, DILATIONS[: number + 1])
    width, height = len(DILATIONS) * step - MARGIN, MARGIN + PIXELS * CELL
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="14" fill="{TEXT}">'
    )
    TARGET.write_text("\n".join([head, *shapes, "</svg>\n"]), encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
