"""Tables of measurements, written from benchmarks/results when the documentation is built.

The directive ``measured`` takes the name of a table below. A figure stands in one place only, the
file that a benchmark wrote, so no page can quote what was not measured. The role ``measured``
quotes one figure: its file, its path in the file, and how to write it, as in
``{measured}`conv_layers geometric_mean .2f` ``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from docutils import nodes
from pages import table
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective, SphinxRole

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
Rows = list[list[Any]]


@cache
def results(name: str) -> Any:
    """What a benchmark wrote, by the file's name without its ending."""
    path = RESULTS / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = ", ".join(sorted(p.stem for p in RESULTS.glob("*.json")))
        raise ExtensionError(
            f"expected {path.name} in benchmarks/results; it holds {there}. Run the benchmark with "
            f"--json benchmarks/results/{path.name}."
        ) from None


# ---- the tables ------------------------------------------------------------------------------


def layers(name: str) -> Rows:
    """GFLOP/s, share of the peak and ratio of each layer's passes, a row for each layer."""
    rows: dict[str, list[Any]] = {}
    for row in results(name)["rows"]:
        figures = f"{row['tinydilate_gflops']:.0f}, {row['share_of_peak']:.0%}, "
        rows.setdefault(row["layer"]["name"], [row["layer"]["name"]]).append(
            figures + f"{row['torch_over_tinydilate']:.2f}"
        )
    heads = ["layer", "forward", "by the input", "by the weights", "all three"]
    measured = max(len(row) for row in rows.values())  # the last, if a run left it out
    return [heads[:measured], *rows.values()]


def steps(name: str) -> Rows:
    """Seconds of a training step on both sides, and their ratios."""
    head = ["step", "tinydilate", "PyTorch, eager", "PyTorch, compiled"]
    rows: Rows = [[*head, "eager / tinydilate", "compiled / tinydilate"]]
    for what, figures in results(name).items():
        if isinstance(figures, dict) and "tinydilate_ms" in figures:
            sides = [figures.get(f"{side}_ms") for side in ("tinydilate", "torch", "compiled")]
            keys = [f"{side}_over_tinydilate" for side in ("torch", "compiled")]
            ratios = ["–" if key not in figures else f"{figures[key]:.2f}" for key in keys]
            rows.append([what, *map(milliseconds, sides), *ratios])
    return rows


def milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e3:.2f} s" if value >= 1e3 else f"{value:.0f} ms"


def ops(name: str) -> Rows:
    """Ops beside a copy and beside PyTorch."""
    rows: Rows = [["op", "shape", "ms", "GB/s", "of a copy", "PyTorch / tinydilate"]]
    for row in results(name)["ops"]:
        shape, of_copy = "x".join(map(str, row["shape"])), row["share_of_copy"]
        rate, ratio = row["tinydilate_gb_per_s"], row["torch_over_tinydilate"]
        time = f"{row['tinydilate_ms']:.2f}"
        rows.append([row["op"], shape, time, f"{rate:.0f}", f"{of_copy:.0%}", f"{ratio:.2f}"])
    return rows


def calls(name: str) -> Rows:
    """Microseconds of one call, without and with a graph."""
    head = ["one call on 1x1x8x8", "tinydilate, µs", "PyTorch, µs", "ratio"]
    found: dict[str, list[Any]] = {}
    for row in results(name)["calls"]:
        cells = found.setdefault(row["op"], [row["op"]])
        cells += [f"{row[f'{side}_us']:.1f}" for side in ("tinydilate", "torch")]
        cells.append(f"{row['tinydilate_over_torch']:.1f}")
    return [[*head, *(f"with a graph: {text}" for text in head[1:])], *found.values()]


def peaks(name: str) -> Rows:
    """Peaks of resident memory, in MiB."""
    what = {
        "forward": "published VOC network (141 M weights), forward, 900x900",
        "step": "published front end + Basic context, one training step, 500x500",
        "steps": "the same, three steps",
    }
    sides = {"tinydilate": "tinydilate", "tinydilate_compiling": "compiling", "torch": "PyTorch"}
    found = results(name)
    # Results of earlier versions of the program have no figure for the process that compiles.
    kept = [side for side in sides if f"{side}_bytes" in found["forward"]]
    rows: Rows = [["", *(f"{sides[side]}, MiB" for side in kept), "PyTorch / tinydilate"]]
    for key, text in what.items():
        peak = {side: found[key][f"{side}_bytes"] for side in kept}
        ratio = f"{peak['torch'] / peak['tinydilate']:.2f}"
        rows.append([text, *(f"{each / 2**20:,.0f}" for each in peak.values()), ratio])
    return rows


def starts(name: str) -> Rows:
    """Seconds of fresh processes."""
    rows = [[what, f"{value:.2f}"] for what, value in results(name)["seconds"].items()]
    return [["start", "seconds"], *rows]


def fields(name: str) -> Rows:
    """Seconds and memory of receptive fields."""
    found = results(name)["tasks"].items()
    rows = [[k, f"{v['seconds']:.2f}", f"{v['peak_bytes'] / 2**20:.0f}"] for k, v in found]
    return [["task", "seconds", "peak MiB"], *rows]


def roundings(name: str) -> Rows:
    """Errors beside float64: root mean square and largest."""
    rows: Rows = [["layer", "way", "forward", "by the input", "by the weights"]]
    for row in results(name)["rows"]:
        layer = f"{row['channels']} channels, dilation {row['dilation']}"
        errors = [f"{mean:.1e}, {most:.1e}" for mean, most in row["errors"].values()]
        rows.append([layer, row["way"], *errors])
    return rows


def loading(name: str) -> Rows:
    """Seconds that weights take to load, beside reading and copying their file."""
    seconds: dict[str, list[float]] = results(name)["seconds"]
    whole, pieces = seconds["read and copy"], seconds["read and copy, in pieces"]
    rows: Rows = [["", "seconds", "by read and copy", "by the same in pieces"]]
    for what, each in seconds.items():
        ratios = [
            median(ours / theirs for ours, theirs in zip(each, side, strict=True))
            for side in (whole, pieces)
        ]
        rows.append([what, f"{median(each):.2f}", *(f"{ratio:.2f}" for ratio in ratios)])
    return rows


def loading_peaks(name: str) -> Rows:
    """Memory that it takes, beyond what the process had before."""
    weights = results(name)["weight_bytes"]
    rows: Rows = [["", "MB", "beyond the weights, MB"]]
    for what, each in results(name)["peak_bytes_beyond_start"].items():
        beyond = "" if what == "convert" else f"{(each - weights) / 1e6:.0f}"
        rows.append([what, f"{each / 1e6:.0f}", beyond])
    return rows


def seeds(name: str) -> Rows:
    """Mean IoU of the demo's networks, seed by seed."""
    keys = ("front end", "front end alone", "with context", "context, dilation 1")
    found = results(name)
    counts = found["steps"]
    names = [
        f"front end, {counts['front end']} steps",
        f"front end, {counts['front end alone']} steps",
        f"front end + context, {counts['with context']} steps",
        "the same with every dilation 1",
    ]
    rows = [[str(run["seed"]), *(f"{run[key]:.3f}" for key in keys)] for run in found["runs"]]
    return [["seed", *names], *rows, ["mean", *(f"{found['mean'][key]:.3f}" for key in keys)]]


def poolings(name: str) -> Rows:
    """Mean IoU of the small networks that keep or delete their last pooling, seed by seed."""
    found = results(name)
    kinds = [key for key in found["runs"][0] if key != "seed"]
    rows = [[str(run["seed"]), *(f"{run[kind]:.3f}" for kind in kinds)] for run in found["runs"]]
    if "mean" in found:
        rows.append(["mean", *(f"{found['mean'][kind]:.3f}" for kind in kinds)])
    return [["seed", *kinds], *rows]


def forward(name: str) -> Rows:
    """Seconds and peak of a published network's forward pass on both sides."""
    found = results(name)
    rows: Rows = [["", "tinydilate", "PyTorch", "PyTorch / tinydilate"]]
    for what, key, scale, how, ratio in (
        ("seconds", "seconds", 1, ".2f", "torch_over_tinydilate"),
        ("peak of resident memory, MiB", "bytes", 2**20, ",.0f", "torch_over_tinydilate_bytes"),
    ):
        sides = [format(found[f"{side}_{key}"] / scale, how) for side in ("tinydilate", "torch")]
        rows.append([what, *sides, f"{found[ratio]:.2f}"])
    return rows


def seams(name: str) -> Rows:
    """How labels and probabilities differ by the distance to a seam."""
    found = results(name)
    rows: Rows = [["pixels to a seam", "other label", "probability, most", "front end alone, most"]]
    for here, alone in zip(found["context"]["bands"], found["front end"]["bands"], strict=True):
        figures = [f"{here['labels']:.2%}", f"{here['probability']:.3f}"]
        rows.append([here["pixels"], *figures, f"{alone['probability']:.1e}"])
    return rows


def predictions(name: str) -> Rows:
    """Memory that was promised and taken."""
    rows: Rows = [["network", "image", "--memory", "cells of a piece", "estimated", "taken"]]
    for case in results(name).values():
        if not isinstance(case, dict) or "estimate_bytes" not in case:
            continue  # the machine, and how many threads
        height, width = case["size"]
        row = [case["network"], f"{width} × {height}", case["memory"]]
        row.append(" × ".join(map(str, case["piece"])))
        row += [f"{case[key] / 1e9:.2f} GB" for key in ("estimate_bytes", "peak_bytes")]
        rows.append(row)
    return rows


def on_gpu(name: str) -> Rows:
    """TFLOP/s of a GPU, share of its rate and ratio of each layer's passes."""
    rows: dict[str, list[Any]] = {}
    for row in results(name)["layers"]["rows"]:
        figures = f"{row['tflops']:.1f}, {row['share_of_rate']:.0%}, "
        rows.setdefault(row["layer"], [row["layer"]]).append(
            figures + f"{row['torch_over_tinydilate']:.2f}"
        )
    return [["layer", "forward", "by the input", "by the weights"], *rows.values()]


def gpu_ops(name: str) -> Rows:
    """Ops on a GPU beside a copy and beside PyTorch."""
    rows: Rows = [["op", "call, ms", "card, ms", "GB/s", "of a copy", "PyTorch / tinydilate"]]
    for row in results("gpu")["ops"]["rows"]:
        of_copy, ratio = row["share_of_copy"], row["torch_over_tinydilate"]
        cells = [f"{row[key]:.3f}" for key in ("tinydilate_ms", "card_ms")]
        cells += [f"{row['gb_per_s']:,.0f}", f"{of_copy:.0%}"]
        rows.append([row["name"], *cells, f"{ratio:.2f}"])
    return rows


def gpu_networks(name: str) -> Rows:
    """Training steps, a prediction and launches on a GPU, and what the networks' arrays take."""
    rows: Rows = [["", "tinydilate, ms", "PyTorch / tinydilate", "at most, MiB"]]
    for part in ("networks", "launches"):
        for row in results("gpu")[part]["rows"]:
            ratio = f"{row['torch_over_tinydilate']:.2f}"
            peak = row.get("tinydilate_peak_mib")
            most = "" if peak is None else f"{peak:,.0f}"
            rows.append([row["name"], f"{row['tinydilate_ms']:.3f}", ratio, most])
    return rows


TABLES: dict[str, Callable[[str], Rows]] = {
    "conv_layers": layers,
    "conv_layers_direct": layers,
    "train_step": steps,
    "ops": ops,
    "calls": lambda _: calls("ops"),
    "memory": peaks,
    "startup": starts,
    "receptive_field": fields,
    "rounding": roundings,
    "demo_seeds": seeds,
    "seams": seams,
    "prediction": predictions,
    "weights": loading,
    "weights_memory": lambda _: loading_peaks("weights"),
    "poolings": poolings,
    "published": forward,
    "gpu": on_gpu,
    "gpu_tf32": on_gpu,
    "gpu_ops": gpu_ops,
    "gpu_networks": gpu_networks,
}


# ---- what pages write ------------------------------------------------------------------------


class Measured(SphinxDirective):
    """A table by its name, or by that of another processor's folder and its own."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]  # "memory", or "avx512/memory"
        kind = name.rpartition("/")[2]
        if kind not in TABLES:
            raise ExtensionError(f"expected one of the tables {', '.join(TABLES)}; got {kind!r}.")
        return [table(TABLES[kind](name), "measured")]


class Figure(SphinxRole):
    """One figure: ``file path.in.it format``."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        name, _, rest = self.text.partition(" ")
        path, _, how = rest.rpartition(" ")
        value = results(name)
        for key in path.split("."):
            value = value[key]
        return [nodes.Text(format(value, how))], []


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("measured", Measured)
    app.add_role("measured", Figure())
    return {"parallel_read_safe": True}
