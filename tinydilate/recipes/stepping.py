"""One step: the gradient of a batch, if need be in parts, and the score of a network.

**The loss** is the surprise at the labels, summed over the pixels that count and divided by their
number *in the whole batch*: Caffe's SoftmaxWithLoss with "normalize". A batch that does not fit
into memory is computed in parts, one after the other. Each part's sum is divided by the number of
the whole batch, so the gradients add up to the same, but for rounding. (A mean for each part would
weigh a part with few labelled pixels as much as one with many. And dropout draws other numbers.)
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tinydilate import functional as F
from tinydilate import nn, optim
from tinydilate.autograd import no_grad, tensor
from tinydilate.classes import IGNORE, VOC
from tinydilate.data.crops import Batch
from tinydilate.metrics import Score, confusion_matrix
from tinydilate.recipes.table import Recipe


def batch_gradient(network: nn.Module, batch: Batch, parts: int = 1) -> float | None:
    """Add the gradient of a batch's loss to the parameters' ``.grad``.

    Parameters
    ----------
    network : nn.Module
        Images in, (B, C, h, w) scores out, as many as there are labels.
    batch : Batch
    parts : int
        In how many parts to compute it.

    Returns
    -------
    float or None
        The loss; None, and no gradient, where no label counts.
    """
    counted = int(np.count_nonzero(batch.labels != IGNORE))
    if counted == 0:
        return None
    device = next(network.parameters()).device
    total = 0.0
    for members in np.array_split(np.arange(len(batch.labels)), parts):
        labels = batch.labels[members]  # (b, h, w)
        if (labels == IGNORE).all():
            continue
        scores = network(tensor(batch.images[members], device=device))  # (b, C, h, w)
        summed = F.cross_entropy(scores, labels, ignore_index=IGNORE, reduction="sum")
        loss = summed * (1 / counted)
        loss.backward()
        total += loss.item()
    return total


# By a recipe's name for them.
OPTIMIZERS: dict[str, type[optim.Optimizer]] = {"sgd": optim.SGD, "adam": optim.Adam}


def make_optimizer(recipe: Recipe, network: nn.Module) -> optim.Optimizer:
    """SGD with momentum, or Adam; biases have a learning rate and a decay of their own."""
    learning = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    groups = optim.weights_and_biases(
        learning, recipe.lr, recipe.weight_decay, recipe.bias_lr_mult, recipe.bias_decay_mult
    )
    if recipe.optimizer == "adam":
        return optim.Adam(groups)
    return optim.SGD(groups, momentum=recipe.momentum)


def schedule_of(recipe: Recipe) -> optim.Schedule:
    """Factor on the learning rate, by the number of steps done."""
    if recipe.schedule == "step":
        return optim.stepped(recipe.step_every, recipe.step_gamma)
    return optim.constant()


def score_network(network: nn.Module, batches: Iterable[Batch], classes: tuple[str, ...]) -> Score:
    """Score a network on the labels that it is trained on: those of cells, or of pixels."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    matrix: NDArray[np.int64] = np.zeros((len(classes), len(classes)), np.int64)
    try:
        for images, labels in batches:
            with no_grad():
                scores = network(tensor(images, device=device))  # (B, C, h, w)
            matrix += confusion_matrix(labels, scores.argmax(1).numpy(), len(classes), IGNORE)
    finally:
        network.train(training)
    return Score.of(matrix, classes)


def tiny_step() -> None:
    """One step and one score of a tiny network with every kind of layer: calls every kernel."""
    rows = ("conv1 3 1 4", "pool1 pool", "conv2 3 2 4", "drop2 drop 0.5")  # field 12, stride 2
    recipe = Recipe(
        front_end="table", table=rows, context="basic", dilations=(1, 2), divisor=64, upsample=2
    )
    network = recipe.plan(VOC).build(rng=0)
    images = np.random.default_rng(0).standard_normal((2, 3, 26, 26), np.float32)
    batch = Batch(images, np.zeros((2, 16, 16), np.int64))
    batch_gradient(network, batch, parts=2)
    make_optimizer(recipe, network).step()
    make_optimizer(Recipe.of({**recipe.to_dict(), "optimizer": "adam"}), network).step()
    score_network(network, [batch], VOC.names)
