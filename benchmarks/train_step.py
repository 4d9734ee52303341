"""A whole training step of the demo's and of the published networks, beside PyTorch's.

The demo's step is what ``tinydilate train`` does: forward, upsampling to the image, cross entropy,
backward, Adam. The published step has the front end (134 million parameters) and the Basic context
on a crop of 500 x 500, a label for each of its 16 x 16 cells, and SGD with momentum. PyTorch gets
the same layers, weights, images and labels, with as many threads, in eager mode and, for the demo's
networks, with torch.compile, where that works. The scores of both sides are compared first: they
must agree, or the comparison is void.

    pip install torch
    python benchmarks/train_step.py --json train_step.json
    python benchmarks/train_step.py --only crop
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import memory
import numpy as np
import torch
from side_by_side import alternate, median, paired_ratio, parser, table, write_json

import tinydilate as td
from tinydilate import functional as F
from tinydilate import models, nn, optim
from tinydilate.config import Config
from tinydilate.data import digits

CLASSES = len(digits.CLASSES)


def as_torch(network: nn.Module) -> torch.nn.Sequential:
    """The same layers, in the same order, with the same weights, in PyTorch."""
    layers: list[torch.nn.Module] = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            window, (filters, channels) = layer.window, layer.weight.shape[:2]
            made = torch.nn.Conv2d(
                channels,
                filters,
                window.kernel,
                window.stride,
                window.before,
                window.dilation,
            )
            if layer.weight.device != "meta":  # where there are none
                with torch.no_grad():
                    made.weight.copy_(torch.tensor(layer.weight.data))
                    made.bias.copy_(torch.tensor(layer.bias.data))
            layers.append(made)
            if layer.relu:
                layers.append(torch.nn.ReLU())
        elif isinstance(layer, nn.ConvTranspose2d):
            window, (channels, per_group) = layer.window, layer.weight.shape[:2]
            layers.append(
                torch.nn.ConvTranspose2d(
                    channels,
                    per_group * layer.groups,
                    window.kernel,
                    window.stride,
                    window.before,
                    groups=layer.groups,
                    bias=False,
                )
            )
            if layer.weight.device != "meta":
                with torch.no_grad():
                    layers[-1].weight.copy_(torch.tensor(layer.weight.data))
        elif isinstance(layer, nn.ReflectionBorder):
            layers.append(torch.nn.ReflectionPad2d(layer.width))
        elif isinstance(layer, nn.MaxPool2d):
            layers.append(
                torch.nn.MaxPool2d(layer.kernel_size, layer.stride, ceil_mode=layer.ceil_mode)
            )
        elif isinstance(layer, nn.Dropout):
            layers.append(torch.nn.Dropout(layer.p))
        elif isinstance(layer, nn.ReLU):
            layers.append(torch.nn.ReLU())
        elif not list(layer.children()):
            raise TypeError(f"no PyTorch twin for {layer}")
    return torch.nn.Sequential(*layers)


class Problem(NamedTuple):
    """A network, what it is to learn, and how long it may take."""

    network: nn.Module
    images: Any
    labels: Any
    ours: Callable[..., Any]  # optimiser of a list of parameters
    theirs: Callable[..., Any]
    upsampled: bool  # whether there is a label for each pixel, or for each cell
    compiled: bool  # whether to try torch.compile as well, which takes its time
    calls: int  # steps in a block


def demo(network: nn.Module, batch: int) -> Problem:
    """The demo's scenes and Adam."""
    images, labels = digits.scenes("train", batch)
    ours, theirs = partial(optim.Adam, lr=1e-3), partial(torch.optim.Adam, lr=1e-3)
    return Problem(network, images, labels, ours, theirs, True, True, 5)


def crop() -> Problem:
    """The published front end and the Basic context on one crop."""
    ours = partial(optim.SGD, lr=1e-3, momentum=0.9)
    theirs = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)
    network = memory.crop_network(rng=0)
    return Problem(network, memory.image(500), memory.labels(), ours, theirs, False, False, 1)


def check_scores(problem: Problem, twin: torch.nn.Module) -> None:
    """Stop unless both sides compute the same scores; without dropout, which draws differently."""
    with td.no_grad():
        ours = problem.network.eval()(problem.images).numpy()
    with torch.no_grad():
        theirs = twin.eval()(torch.from_numpy(problem.images)).numpy()
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if not error < 1e-3:
        raise SystemExit(f"the scores differ by {error:.1e} of the largest: not the same network")
    problem.network.train()
    twin.train()


def our_step(problem: Problem) -> Callable[[], float]:
    """One step of tinydilate."""
    network, labels = problem.network, problem.labels
    optimizer = problem.ours(network.parameters())

    def step() -> float:
        optimizer.zero_grad()
        logits = network(problem.images)
        if problem.upsampled:
            logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear")
        loss = F.cross_entropy(logits, labels, ignore_index=digits.IGNORE)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def their_step(problem: Problem, network: Any) -> Callable[[], float]:
    """One step of PyTorch."""
    optimizer = problem.theirs(network.parameters())
    images = torch.from_numpy(problem.images)
    labels = torch.tensor(problem.labels.astype(np.int64))

    def step() -> float:
        optimizer.zero_grad()
        logits = network(images)
        if problem.upsampled:
            size = labels.shape[1:]
            logits = torch.nn.functional.interpolate(logits, size=size, mode="bilinear")
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=digits.IGNORE)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def compiled_step(problem: Problem) -> Callable[[], float] | str:
    """One step of PyTorch with a compiled network; or why there is none."""
    try:
        step = their_step(problem, torch.compile(as_torch(problem.network)))
        step()
    except Exception as error:  # no compiler, no headers, an unknown Python: many ways to fail
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]:.100}"
    return step


def measure(problem: Problem, repeats: int) -> dict[str, Any]:
    """Milliseconds of a step on each side, in turns, and the ratios of PyTorch's to ours."""
    twin = as_torch(problem.network)
    check_scores(problem, twin)
    sides: dict[str, Any] = {"torch": their_step(problem, twin)}
    failure = None
    if problem.compiled:
        step = compiled_step(problem)
        if isinstance(step, str):
            failure = step
        else:
            sides["compiled"] = step
    sides["tinydilate"] = our_step(problem)  # after the twins have copied the weights
    seconds = alternate(sides, repeats, problem.calls)
    figures: dict[str, Any] = {}
    for name, values in seconds.items():
        figures[f"{name}_ms"] = median(values) * 1e3
        if name != "tinydilate":
            figures[f"{name}_over_tinydilate"] = paired_ratio(values, seconds["tinydilate"])
    return figures if failure is None else {**figures, "compiled_failed": failure}


def main() -> None:
    """Time all sides and print the ratios."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--batch", type=int, default=16, help="scenes a step (default: 16)")
    arguments.add_argument("--only", default="", help="networks whose name contains this")
    options = arguments.parse_args()
    td.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    td.manual_seed(0)

    small = models.small_front_end(CLASSES)
    context = models.context(CLASSES, dilations=Config().dilations)
    both = nn.Sequential(models.small_front_end(CLASSES), context)
    problems = {
        "front end": lambda: demo(small, options.batch),
        "front end + context": lambda: demo(both, options.batch),
        "published, 500x500 crop": crop,
    }
    rows, all_figures = [], {}
    common = {"batch": options.batch, "threads": options.threads}
    for name, make in problems.items():
        if options.only not in name:
            continue
        problem = make()
        repeats = options.repeats if problem.calls > 1 else max(2, options.repeats // 3)
        figures = measure(problem, repeats)
        keys = ("tinydilate_ms", "torch_ms", "compiled_ms")
        times = [f"{figures[key]:.1f}" if key in figures else "-" for key in keys]
        keys = ("torch_over_tinydilate", "compiled_over_tinydilate")
        ratios = [f"{figures[key]:.2f}" if key in figures else "-" for key in keys]
        rows.append([name, *times, *ratios])
        all_figures[name] = figures
        write_json(options.json, {**common, **all_figures}, finished=False)
    header = ["training step", "ours ms", "PyTorch ms", "compiled ms", "PyTorch / ours"]
    print(f"batch {options.batch}, {options.threads} threads, medians of {options.repeats} blocks")
    print(table([*header, "compiled / ours"], rows))
    for name, figures in all_figures.items():
        if "compiled_failed" in figures:
            print(f"torch.compile failed for {name}: {figures['compiled_failed']}")
    write_json(options.json, {**common, **all_figures})


if __name__ == "__main__":
    main()
