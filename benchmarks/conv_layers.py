"""Convolution layers of the networks, one by one, beside PyTorch's and beside the processor's peak.

For each layer the forward pass, the gradient by the input, the gradient by the weights, and all
three in a row are timed, both sides in turns, without autograd on either side. GFLOP/s count the
multiplications and additions of the definition, 2 * N * F * OH * OW * C * KH * KW, whatever the
algorithm: Winograd's may pass the peak. The peak is what a register tile reaches whose factors stay
in the first-level cache; it is measured in the same turns.

    pip install torch
    python benchmarks/conv_layers.py --json conv_layers.json
    python benchmarks/conv_layers.py --direct --json conv_layers_direct.json
"""

from __future__ import annotations

import argparse
import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from layers import LAYERS, Layer, arrays_for
from side_by_side import (
    alternate,
    arithmetic,
    median,
    paired_ratio,
    parser,
    table,
    write_json,
)

import tinydilate as td
from tinydilate.functional import convolution

PASSES = ("forward", "grad_input", "grad_weight", "all")


def our_passes(layer: Layer, arrays: tuple[Any, ...]) -> dict[str, Any]:
    """The passes as tinydilate runs them."""
    x, w, b, grad = arrays
    window, size = layer.window, x.shape[2:]
    passes = {
        "forward": lambda: convolution.conv2d_forward(x, w, b, window),
        "grad_input": lambda: convolution.conv2d_grad_input(grad, w, size, window),
        "grad_weight": lambda: convolution.conv2d_grad_weight(x, grad, window),
    }
    return {**passes, "all": lambda: [run() for run in passes.values()]}


def their_passes(layer: Layer, arrays: tuple[Any, ...]) -> dict[str, Any]:
    """The passes as PyTorch runs them; the masks keep a pass from computing another's result."""
    x, w, b, grad = (torch.from_numpy(array) for array in arrays)
    geometry = ([1, 1], [layer.padding] * 2, [layer.dilation] * 2, False, [0, 0], 1)

    def backward(mask: list[bool]) -> Any:
        return torch.ops.aten.convolution_backward(grad, x, w, [len(w)], *geometry, mask)

    def forward() -> Any:
        return torch.ops.aten.convolution(x, w, b, *geometry)

    return {
        "forward": forward,
        "grad_input": lambda: backward([True, False, False]),
        "grad_weight": lambda: backward([False, True, False]),
        "all": lambda: (forward(), backward([True, True, False])),
    }


def agree(ours: Any, theirs: Any) -> float:
    """Largest difference of two results, as a share of the largest number."""
    theirs = theirs[0] if isinstance(theirs, tuple) and theirs[0] is not None else theirs
    theirs = theirs[1] if isinstance(theirs, tuple) else theirs
    theirs = theirs.numpy()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def main() -> None:
    """Read the options and compare."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--only", default="", help="layers whose name contains this")
    arguments.add_argument(
        "--passes", nargs="+", default=PASSES, choices=PASSES, metavar="PASS", help="only these"
    )
    arguments.add_argument(
        "--direct", action="store_true", help="multiply directly: no Winograd transforms"
    )
    options = arguments.parse_args()
    with td.use("cpu:direct") if options.direct else nullcontext():
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Time every pass of every layer and print the table."""
    td.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, medians of {options.repeats} blocks")
    rows, figures = [], []
    for layer in (layer for layer in LAYERS if options.only in layer.name):
        arrays = arrays_for(layer)
        ours, theirs = our_passes(layer, arrays), their_passes(layer, arrays)
        cells = [layer.name]
        for name in options.passes:
            if name != "all" and (error := agree(ours[name](), theirs[name]())) > 1e-3:
                raise SystemExit(f"{layer.name}, {name}: the results differ by {error:.1e}")
            flop = layer.flop * (3 if name == "all" else 1)
            calls = max(1, min(20, int(4e9 / flop)))
            peak, peak_flop = arithmetic(min(max(flop, 2e8), 4e9))
            sides = {"tinydilate": ours[name], "peak": peak, "torch": theirs[name]}
            repeats = options.repeats if flop < 2e10 else max(3, options.repeats // 2)
            seconds = alternate(sides, repeats, calls)
            mine, other = median(seconds["tinydilate"]), median(seconds["torch"])
            ratio = paired_ratio(seconds["torch"], seconds["tinydilate"])
            share_of_peak = flop / peak_flop * paired_ratio(seconds["peak"], seconds["tinydilate"])
            figures.append(
                {
                    "layer": layer._asdict(),
                    "pass": name,
                    "gflop": flop / 1e9,
                    "tinydilate_ms": mine * 1e3,
                    "torch_ms": other * 1e3,
                    "tinydilate_gflops": flop / mine / 1e9,
                    "torch_gflops": flop / other / 1e9,
                    "share_of_peak": share_of_peak,
                    "peak_gflops": peak_flop / median(seconds["peak"]) / 1e9,
                    "torch_over_tinydilate": ratio,
                }
            )
            cells.append(f"{flop / mine / 1e9:.0f} {share_of_peak:4.0%} {ratio:5.2f}")
        print("  ".join(cell.ljust(20) for cell in cells), flush=True)
        rows.append(cells)
        write_json(options.json, together(options, figures), finished=False)
    found = together(options, figures)
    print("\nGFLOP/s, share of the peak, PyTorch's time / ours")
    print(table(["layer", *options.passes], rows))
    smallest, mean = found["smallest_ratio"], found["geometric_mean"]
    print(f"\n{len(figures)} rows, ratio at least {smallest:.2f}, geometric mean {mean:.2f}")
    write_json(options.json, found)


def together(options: argparse.Namespace, figures: list[dict[str, Any]]) -> Any:
    """The rows so far, and what they have in common."""
    ratios = [row["torch_over_tinydilate"] for row in figures]
    return {
        "threads": options.threads,
        "winograd": not options.direct,
        "peak_gflops": max(row["peak_gflops"] for row in figures),
        "geometric_mean": math.exp(sum(map(math.log, ratios)) / len(ratios)),
        "smallest_ratio": min(ratios),
        "rows": figures,
    }


if __name__ == "__main__":
    main()
