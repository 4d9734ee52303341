"""The ops beside the convolutions: how near they come to a plain copy, and what a call costs.

First table: ops that do little arithmetic, forwards and backwards, on maps of the networks. GB/s
count the bytes that the definition must read and write, each array once. The limit is a plain copy
of as many bytes between two arrays that are in use already, measured in the same turns. Neither
side runs autograd here.

Second table: one call of a public function on a tiny image, checks included, where arithmetic
costs nothing: microseconds without and with the recording of a graph.

    pip install torch
    python benchmarks/ops.py --json ops.json
    python benchmarks/ops.py --only pool
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from side_by_side import alternate, median, paired_ratio, parser, table, write_json

import tinydilate as td
from tinydilate import functional as F
from tinydilate import optim
from tinydilate.compiling import jit
from tinydilate.functional.padding import reflect_border
from tinydilate.kernel import KERNELS, Launch, watching
from tinydilate.threads import share

aten = torch.ops.aten
BIG, SMALL = (1, 64, 498, 498), (8, 64, 64, 64)  # conv1_1 of a 500x500 crop; a batch of small maps
DEMO, BASIC = (16, 11, 64, 64), (1, 21, 66, 66)  # the demo's logits; the Basic context's maps
PARAMETERS = 10_000_000


class Row(NamedTuple):
    """One op on one size: what both sides run, and the bytes that it must move."""

    name: str
    shape: tuple[int, ...]
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    bytes: int
    exact: bool = True  # whether the results are to be compared


def numbers(shape: tuple[int, ...], seed: int = 0) -> Any:
    """Random float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def size_of(*arrays: Any) -> int:
    """Bytes of some arrays together."""
    return sum(array.nbytes for array in arrays)


def both_ways(
    name: str,
    forward: Callable[[Any], Any],
    x: Any,
    theirs: Callable[[Any], Any],
    theirs_back: Callable[[Any], Any],
    saved: int = 0,
    only_backward: int = 0,
) -> Iterator[Row]:
    """Rows of an op's forward pass and of the kernel calls that its backward pass consists of.

    ``saved`` are the bytes that the forward pass must write, and the backward pass read, beside
    its result; ``only_backward`` those that the backward pass alone reads.
    """
    leaf = td.tensor(x, requires_grad=True)
    out = forward(leaf)
    grad = numbers(out.shape, 1)
    calls: list[Launch] = []
    with watching(calls.append):
        out.backward(grad)
    kernels = [(KERNELS[call.kernel], call.arguments) for call in calls]
    plain = td.tensor(x)
    t, t_grad = torch.from_numpy(x), torch.from_numpy(grad)
    moved = size_of(x, out.data) + saved
    yield Row(f"{name} forward", x.shape, lambda: forward(plain), lambda: theirs(t), moved)
    yield Row(
        f"{name} backward",
        x.shape,
        lambda: [kernel(*arguments) for kernel, arguments in kernels][-1],
        lambda: theirs_back(t_grad),
        moved + only_backward,
    )


def pooling(shape: tuple[int, ...]) -> Iterator[Row]:
    """Maxima and means."""
    x = numbers(shape)
    t = torch.from_numpy(x)
    for kernel, stride, padding in ((2, 2, 0), (3, 2, 1)):
        geometry = [kernel] * 2, [stride] * 2, [padding] * 2
        _, where = aten.max_pool2d_with_indices(t, *geometry)
        yield from both_ways(
            f"max_pool {kernel}x{kernel}/{stride}",
            lambda x, options=(kernel, stride, padding): F.max_pool2d(x, *options),
            x,
            lambda t, g=geometry: aten.max_pool2d_with_indices(t, *g)[0],
            lambda grad, g=geometry, where=where: aten.max_pool2d_with_indices_backward(
                grad, t, *g, [1, 1], False, where
            ),
            saved=where.numel() * 8,
        )
        yield from both_ways(
            f"avg_pool {kernel}x{kernel}/{stride}",
            lambda x, options=(kernel, stride, padding): F.avg_pool2d(x, *options),
            x,
            lambda t, g=geometry: aten.avg_pool2d(t, *g),
            lambda grad, g=geometry: aten.avg_pool2d_backward(grad, t, *g, False, True, None),
        )


def losses(shape: tuple[int, ...]) -> Iterator[Row]:
    """The cross-entropy with labels, and the softmax."""
    x = numbers(shape)
    labels = np.random.default_rng(1).integers(0, shape[1], (shape[0], *shape[2:]))
    t, t_labels = torch.from_numpy(x), torch.from_numpy(labels)
    leaf = t.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(leaf, t_labels)
    per_pixel = labels.size * x.itemsize
    yield from both_ways(
        "cross_entropy",
        lambda x: F.cross_entropy(x, labels),
        x,
        lambda t: torch.nn.functional.cross_entropy(t, t_labels),
        lambda grad: torch.autograd.grad(loss, leaf, grad, retain_graph=True)[0],
        saved=labels.nbytes + 2 * per_pixel,  # each pixel's peak and total
        only_backward=x.nbytes,  # reads the scores and writes their gradient
    )
    probabilities = torch.softmax(t, 1)
    yield from both_ways(
        "softmax",
        lambda x: F.softmax(x, 1),
        x,
        lambda t: torch.softmax(t, 1),
        lambda grad: aten._softmax_backward_data(grad, probabilities, 1, torch.float32),
        only_backward=x.nbytes,
    )


def borders(shape: tuple[int, ...], width: int) -> Iterator[Row]:
    """Padding by zeros and by reflection."""
    x, edges = numbers(shape), [width] * 4
    t = torch.from_numpy(x)
    yield from both_ways(
        f"pad zeros {width}",
        lambda x: F.pad(x, edges),
        x,
        lambda t: aten.constant_pad_nd(t, edges),
        lambda grad: aten.constant_pad_nd(grad, [-width] * 4),
    )
    yield from both_ways(
        f"pad reflect {width}",
        lambda x: reflect_border(x, *edges),
        x,
        lambda t: aten.reflection_pad2d(t, edges),
        lambda grad: aten.reflection_pad2d_backward(grad, t, edges),
    )


def resizing(shape: tuple[int, ...], factor: int) -> Iterator[Row]:
    """Enlarging."""
    x, size = numbers(shape), [factor * pixels for pixels in shape[2:]]
    yield from both_ways(
        f"bilinear x{factor}",
        lambda x: F.interpolate(x, size=size, mode="bilinear"),
        x,
        lambda t: aten.upsample_bilinear2d(t, size, False),
        lambda grad: aten.upsample_bilinear2d_backward(grad, size, shape, False),
    )
    yield from both_ways(
        f"nearest x{factor}",
        lambda x: F.interpolate(x, size=size),
        x,
        lambda t: aten.upsample_nearest2d(t, size),
        lambda grad: aten.upsample_nearest2d_backward(grad, size, shape),
    )


def elementwise(shape: tuple[int, ...]) -> Iterator[Row]:
    """The rectifier, a sum of two maps, and the gradient of a bias."""
    x, other = numbers(shape), td.tensor(numbers(shape, 1))
    t, t_other = torch.from_numpy(x), torch.from_numpy(other.data)
    out = torch.relu(t)
    yield from both_ways(
        "relu",
        F.relu,
        x,
        torch.relu,
        lambda grad: aten.threshold_backward(grad, out, 0),
        only_backward=x.nbytes,
    )
    ours = td.tensor(x)
    moved = 3 * x.nbytes
    yield Row("add", shape, lambda: F.add(ours, other), lambda: torch.add(t, t_other), moved)
    sums, filters = KERNELS["sum_to_shape"], (1, shape[1], 1, 1)
    yield Row(
        "bias gradient",
        shape,
        lambda: sums(x, filters).reshape(-1),
        lambda: t.sum((0, 2, 3)),
        x.nbytes,
    )


def optimisers() -> Iterator[Row]:
    """One step on 10 million parameters; in place, so every call's numbers differ."""
    for name, ours, theirs, arrays in (
        ("SGD, momentum 0.9", optim.SGD, torch.optim.SGD, 5),  # reads w, g, v; writes w, v
        ("Adam", optim.Adam, torch.optim.Adam, 7),  # reads w, g, m, s; writes w, m, s
    ):
        options = {"lr": 1e-3} | ({"momentum": 0.9} if ours is optim.SGD else {})
        w = td.tensor(numbers((PARAMETERS,)), requires_grad=True)
        w.grad = td.tensor(numbers((PARAMETERS,), 1))
        t = torch.nn.Parameter(torch.from_numpy(w.data.copy()))
        t.grad = torch.from_numpy(w.grad.data.copy())
        steps = ours([w], **options).step, theirs([t], **options).step
        yield Row(name, (PARAMETERS,), *steps, arrays * w.data.nbytes, exact=False)


def rows() -> Iterator[Row]:
    """Every row of the first table."""
    for shape in (BIG, SMALL):
        yield from pooling(shape)
        yield from elementwise(shape)
    for shape in (DEMO, BASIC):
        yield from losses(shape)
    yield from borders(BIG, 10)
    yield from borders(SMALL, 10)
    yield from borders((1, 3, 500, 500), 186)  # the front end's border
    yield from resizing((16, 11, 32, 32), 2)
    yield from resizing(BASIC, 8)
    yield from optimisers()


def copying(count: int) -> Callable[[], None]:
    """A plain copy, shared among the threads, that reads and writes ``count`` bytes together."""
    source, target = np.ones(count // 8, np.float32), np.ones(count // 8, np.float32)
    return lambda: share(_copy, len(source), source, target, least=16_384)


@jit
def _copy(start: int, stop: int, source: Any, target: Any) -> None:
    source, target = source[start:stop], target[start:stop]
    for n in range(len(source)):
        target[n] = source[n]


def difference(ours: Any, theirs: Any) -> float:
    """Largest difference of two results, as a share of the largest number."""
    mine = ours.data if isinstance(ours, td.Tensor) else ours
    other = theirs.numpy()
    mine = np.asarray(mine).reshape(other.shape)
    return float(np.abs(mine - other).max() / np.abs(other).max())


def memory_bound(repeats: int, only: str) -> list[dict[str, Any]]:
    """Print and return the first table."""
    cells, figures = [], []
    for row in rows():
        if only not in row.name:
            continue
        if row.exact and (error := difference(row.ours(), row.theirs())) > 1e-4:
            raise SystemExit(f"{row.name} {row.shape}: the results differ by {error:.1e}")
        sides = {"tinydilate": row.ours, "torch": row.theirs, "copy": copying(row.bytes)}
        seconds = alternate(sides, repeats, max(1, min(100, int(3e8 / row.bytes))), pause=0.01)
        rate = {side: row.bytes / median(taken) / 1e9 for side, taken in seconds.items()}
        ratio = paired_ratio(seconds["torch"], seconds["tinydilate"])
        of_copy = paired_ratio(seconds["copy"], seconds["tinydilate"])
        figures.append(
            {
                "op": row.name,
                "shape": row.shape,
                "megabytes": row.bytes / 1e6,
                "tinydilate_ms": median(seconds["tinydilate"]) * 1e3,
                "torch_ms": median(seconds["torch"]) * 1e3,
                "tinydilate_gb_per_s": rate["tinydilate"],
                "torch_gb_per_s": rate["torch"],
                "copy_gb_per_s": rate["copy"],
                "share_of_copy": of_copy,
                "torch_over_tinydilate": ratio,
            }
        )
        cells.append(
            [
                row.name,
                "x".join(map(str, row.shape)),
                f"{median(seconds['tinydilate']) * 1e3:.3f}",
                f"{rate['tinydilate']:.1f}",
                f"{rate['copy']:.1f}",
                f"{of_copy:.2f}",
                f"{ratio:.2f}",
            ]
        )
    header = ["op", "shape", "ms", "GB/s", "copy GB/s", "of the copy", "PyTorch / ours"]
    print(table(header, cells))
    found = summed_up(figures)
    least, mean = found["smallest_ratio"], found["geometric_mean"]
    print(f"\n{found['rows']} rows, ratio at least {least:.2f}, geometric mean {mean:.2f}\n")
    return figures


def calls() -> dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]]:
    """Functions of both sides, and the arrays that both are called with."""
    x, w, b = numbers((1, 1, 8, 8)), numbers((1, 1, 3, 3)), numbers((1,))
    theirs = torch.nn.functional
    return {
        "conv2d 3x3": (
            lambda x, w, b: F.conv2d(x, w, b, padding=1),
            lambda x, w, b: theirs.conv2d(x, w, b, padding=1),
            (x, w, b),
        ),
        "add": (F.add, torch.add, (x, x)),
        "mul": (F.mul, torch.mul, (x, x)),
        "relu": (F.relu, torch.relu, (x,)),
        "max_pool2d": (lambda x: F.max_pool2d(x, 2), lambda x: theirs.max_pool2d(x, 2), (x,)),
        "sum": (F.sum, torch.sum, (x,)),
    }


def overhead(repeats: int) -> list[dict[str, Any]]:
    """Print and return the second table."""
    cells, figures = [], []
    for name, (ours, theirs, arrays) in calls().items():
        for recording in (False, True):
            mine = [td.tensor(array.copy(), requires_grad=recording) for array in arrays]
            other = [torch.tensor(array, requires_grad=recording) for array in arrays]
            with nullcontext() if recording else torch.no_grad():
                sides = {
                    "tinydilate": lambda ours=ours, mine=mine: ours(*mine),
                    "torch": lambda theirs=theirs, other=other: theirs(*other),
                }
                seconds = alternate(sides, repeats, calls=2000, pause=0.0)
            microseconds = {side: median(taken) * 1e6 for side, taken in seconds.items()}
            quotient = 1 / paired_ratio(seconds["torch"], seconds["tinydilate"])
            figures.append(
                {
                    "op": name,
                    "recording": recording,
                    "tinydilate_us": microseconds["tinydilate"],
                    "torch_us": microseconds["torch"],
                    "tinydilate_over_torch": quotient,
                }
            )
            cells.append(
                [
                    name,
                    "yes" if recording else "no",
                    *(f"{microseconds[side]:.2f}" for side in sides),
                    f"{quotient:.2f}",
                ]
            )
    header = ["one call on 1x1x8x8", "recording", "our us", "PyTorch us", "ours / PyTorch"]
    print(table(header, cells))
    return figures


def summed_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the first table's ratios come to."""
    ratios = [row["torch_over_tinydilate"] for row in rows]
    return {
        "geometric_mean": math.exp(sum(map(math.log, ratios)) / len(ratios)),
        "smallest_ratio": min(ratios),
        "below_0_95": sum(ratio < 0.95 for ratio in ratios),
        "rows": len(ratios),
    }


def main() -> None:
    """Print both tables."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--only", default="", help="rows of the first table that contain this")
    options = arguments.parse_args()
    td.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, medians of {options.repeats} blocks\n")
    bound = memory_bound(options.repeats, options.only)
    small = overhead(options.repeats)
    found = {"threads": options.threads, **summed_up(bound), "ops": bound, "calls": small}
    write_json(options.json, found)


if __name__ == "__main__":
    main()
