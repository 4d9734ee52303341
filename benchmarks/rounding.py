"""How far float32 convolutions round, each way of computing them beside float64.

A 3x3 layer of C channels and C filters on a map of 56x56, standard normal input, weights and output
gradient. The error is the root mean square of the differences, and the largest of them, each
divided by the root mean square of the float64 result. No clock is involved: any machine with the
same vector width gives the same figures. The last way rounds what is multiplied to TF32, as the
tensor cores of a GPU do if they are allowed to; here the processor adds up.

    python benchmarks/rounding.py --json rounding.json
"""

from __future__ import annotations

from typing import Any

import numpy as np
from side_by_side import parser, table, write_json

import tinydilate as td
from tinydilate.functional import convolution
from tinydilate.gpu_tf32 import as_tf32
from tinydilate.window import Window

WAYS = {"direct": "cpu:direct", "F(2x2,3x3)": "cpu:winograd2", "F(4x4,3x3)": "cpu:winograd4"}
SIZE = 56


def passes(x: Any, w: Any, grad: Any, window: Window) -> dict[str, Any]:
    """Forward pass and both gradients."""
    return {
        "forward": convolution.conv2d_forward(x, w, None, window),
        "grad_input": convolution.conv2d_grad_input(grad, w, x.shape[2:], window),
        "grad_weight": convolution.conv2d_grad_weight(x, grad, window),
    }


def errors(channels: int, dilation: int) -> dict[str, dict[str, tuple[float, float]]]:
    """(root mean square, largest) relative error for each way and each pass."""
    random = np.random.default_rng(0)
    window = Window.of(3, 1, dilation, dilation)
    maps, kernels = (1, channels, SIZE, SIZE), (channels, channels, 3, 3)
    single = [random.standard_normal(shape, np.float32) for shape in (maps, kernels, maps)]
    with td.use("cpu:direct"):
        exact = passes(*(array.astype(np.float64) for array in single), window)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for way, implementation in [*WAYS.items(), ("TF32", "cpu:direct")]:
        numbers = [as_tf32(array) for array in single] if way == "TF32" else single
        with td.use(implementation):
            results = passes(*numbers, window)
        found[way] = {}
        for name, result in results.items():
            scale = np.sqrt(np.mean(exact[name] ** 2))
            difference = np.abs(result - exact[name]) / scale
            found[way][name] = float(np.sqrt(np.mean(difference**2))), float(difference.max())
    return found


def main() -> None:
    """Print and write the table."""
    arguments = parser(__doc__.splitlines()[0])
    options = arguments.parse_args()
    td.set_num_threads(options.threads)
    rows, figures = [], []
    for channels, dilation in ((32, 1), (128, 1), (128, 4), (512, 1)):
        for way, by_pass in errors(channels, dilation).items():
            cells = [f"{middle:.1e}  {largest:.1e}" for middle, largest in by_pass.values()]
            rows.append([f"{channels} channels, dilation {dilation}", way, *cells])
            figures.append(
                {"channels": channels, "dilation": dilation, "way": way, "errors": by_pass}
            )
    print("root mean square and largest error, beside the root mean square of the result")
    print(table(["layer", "way", "forward", "grad_input", "grad_weight"], rows))
    write_json(options.json, {"rows": figures})


if __name__ == "__main__":
    main()
