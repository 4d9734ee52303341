"""A whole training step of the demo's networks, beside PyTorch's on the same machine.

The step is what ``tinydilate train`` does: forward, upsampling to the image, cross entropy,
backward, Adam. PyTorch gets the same layers, weights, images and labels, in eager mode with as many
threads. The first loss of both sides is printed: it must agree, or the comparison is void.

    pip install torch
    python benchmarks/train_step.py --json train_step.json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def our_step(network: nn.Module, images: Any, labels: Any) -> Callable[[], float]:
    """One step of tinydilate."""
    optimizer = optim.Adam(network.parameters(), lr=1e-3)

    def step() -> float:
        optimizer.zero_grad()
        logits = F.interpolate(network(images), size=labels.shape[1:], mode="bilinear")
        loss = F.cross_entropy(logits, labels, ignore_index=digits.IGNORE)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def their_step(network: torch.nn.Module, images: Any, labels: Any) -> Callable[[], float]:
    """One step of PyTorch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    batch, target = torch.tensor(images), torch.tensor(labels.astype(np.int64))

    def step() -> float:
        optimizer.zero_grad()
        logits = torch.nn.functional.interpolate(
            network(batch), size=labels.shape[1:], mode="bilinear"
        )
        loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=digits.IGNORE)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    """Time both sides and print the ratios."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--batch", type=int, default=16, help="scenes a step (default: 16)")
    options = arguments.parse_args()
    td.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    images, labels = digits.scenes("train", options.batch)

    td.manual_seed(0)
    front_end = models.small_front_end(CLASSES)
    context = models.context(CLASSES, dilations=Config().dilations)
    both = nn.Sequential(models.small_front_end(CLASSES), context)
    rows, figures = [], {}
    for name, network in {"front end": front_end, "front end + context": both}.items():
        ours = our_step(network, images, labels)
        theirs = their_step(as_torch(network), images, labels)
        first = ours(), theirs()
        if abs(first[0] - first[1]) > 1e-4 * abs(first[1]):
            raise SystemExit(f"{name}: first losses differ, {first}: not the same computation")
        seconds = alternate({"tinydilate": ours, "torch": theirs}, options.repeats)
        ratio = paired_ratio(seconds["torch"], seconds["tinydilate"])
        mine, other = median(seconds["tinydilate"]), median(seconds["torch"])
        rows.append([name, f"{mine * 1e3:.1f}", f"{other * 1e3:.1f}", f"{ratio:.2f}"])
        figures[name] = {
            "tinydilate_ms": mine * 1e3,
            "torch_ms": other * 1e3,
            "torch_over_tinydilate": ratio,
            "first_loss": first,
        }
    header = ["training step", "tinydilate ms", "PyTorch ms", "PyTorch / ours"]
    print(f"batch {options.batch}, {options.threads} threads, medians of {options.repeats} blocks")
    print(table(header, rows))
    write_json(options.json, {"batch": options.batch, "threads": options.threads, **figures})


if __name__ == "__main__":
    main()
