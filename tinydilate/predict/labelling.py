"""Labelling a stack of images of one size, and scoring the labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tinydilate.autograd import Tensor, no_grad, tensor
from tinydilate.device import Array
from tinydilate.metrics import Score, confusion_matrix
from tinydilate.nn import Module


def beside(network: Module, images: Array | Tensor) -> Tensor:
    """Images as a tensor on the device where the network's parameters are."""
    first = next(network.parameters(), None)
    return tensor(images, device=None if first is None else first.device)


@contextmanager
def evaluating(network: Module) -> Iterator[None]:
    """Put a network into evaluation mode, and afterwards back into the mode that it had."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def label_maps(
    network: Module, images: Array, batch: int = 32, progress: str = ""
) -> NDArray[np.uint8]:
    """The most likely class of every pixel: (N, C, H, W) -> uint8 (N, H, W).

    ``progress`` is the title of a bar; none is shown without it.
    """
    labels = np.empty((len(images), *images.shape[2:]), np.uint8)
    with evaluating(network), no_grad():
        for part in _batches(len(images), batch, progress):
            scores = network(beside(network, images[part]))  # (B, classes, H, W)
            labels[part] = scores.argmax(1).numpy()
    return labels


def _batches(count: int, batch: int, progress: str) -> Iterator[slice]:
    bar = tqdm(total=count, desc=progress, unit="image", leave=False, disable=not progress)
    with bar:
        for start in range(0, count, batch):
            part = slice(start, min(count, start + batch))
            yield part
            bar.update(part.stop - part.start)


def score(
    network: Module,
    images: Array,
    labels: Array,
    classes: Sequence[str],
    batch: int = 32,
    progress: str = "",
) -> Score:
    """Score a network's labels against the true ones, (N, C, H, W) and (N, H, W)."""
    found = label_maps(network, images, batch, progress)
    return Score.of(confusion_matrix(labels, found, len(classes)), classes)
