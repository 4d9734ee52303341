"""A recipe: everything that one stage of training depends on, as a table of options.

The recipes of this folder are TOML files, one for each stage of the paper and of its code, in which
every number has its source beside it. They are read as strictly as a configuration: an unknown key,
a wrong kind of value or a value out of range is refused in one sentence.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinydilate.classes import Classes
from tinydilate.data.opening import KINDS
from tinydilate.errors import ConfigError, meant
from tinydilate.io.feature_file import DTYPES
from tinydilate.models import DILATIONS, Plan
from tinydilate.models.contexts import PADDINGS
from tinydilate.models.plans import CONTEXTS, FRONT_ENDS
from tinydilate.options import Options, option, read_options

FOLDER = Path(__file__).parent
STARTS = ("nothing", "vgg-16", "front end", "network")
LEARNS = ("front end", "context", "all")
MIRRORS = ("none", "image", "features")


@dataclass(frozen=True)
class Recipe(Options):
    """One stage of training. The defaults are those of the paper's code, fyu/dilation."""

    title: str = option("", "what is trained on what, for people")
    source: str = option("", "where the numbers stand")

    # What is learnt from.
    train: tuple[str, ...] = option(("folder:train",), "data sets to learn from, each KIND:SPLIT")
    validation: str = option("folder:val", "data set to score on, KIND:SPLIT")
    size: tuple[int, ...] = option((), "height and width to resize images to", 1, length=(0, 2))
    crop: int = option(500, "height and width of a crop in pixels, with its border", 1, 2**14)
    mirror: str = option("image", "what is flipped in half of the draws", choices=MIRRORS)
    label_shape: tuple[int, ...] = option(
        (), "height and width of stored feature maps in cells", 1, length=(0, 2)
    )
    feature_dtype: str = option("float32", "numbers of stored feature maps", choices=DTYPES)

    # The network.
    front_end: str = option("vgg-16", "table of the front end", choices=(*FRONT_ENDS, "table"))
    table: tuple[str, ...] = option((), 'rows of the front end "table"', length=(0, 1_000))
    context: str = option("none", "the context module", choices=CONTEXTS)
    dilations: tuple[int, ...] = option(DILATIONS, "of the context's 3x3 layers", 1)
    padding: str = option("layers", "where the context module pads", choices=PADDINGS)
    prefix: str = option("ctx", "how the names of the context's layers begin")
    final_name: str = option("final", "name of the front end's last layer")
    divisor: float = option(
        1.0, "what a fixed first layer divides pixels by, 1 for none", 1e-3, 1e4
    )
    upsample: int = option(0, "factor of a fixed upsampling at the end, 0 for none", 0, 65)

    # Where it starts.
    learns: str = option("all", "which part changes", choices=LEARNS)
    start: str = option("nothing", "what --init has to hold", choices=STARTS)
    fresh: tuple[str, ...] = option(
        (), "layers that start anew, such as final or ctx_*", length=(0, 1_000)
    )
    final_std: float = option(0.001, "width of the Gaussian start of the front end's last layer", 0)
    noise: float = option(0.01, "on the identity that the context module starts from", 0)
    absolute_noise: bool = option(False, "whether noise is sigma itself")

    # Steps.
    batch: int = option(14, "images in a step", 1)
    iter_size: int = option(1, "parts that a step's batch is computed in, one after the other", 1)
    steps: int = option(60_000, "steps in all", 1)
    lr: float = option(1e-4, "learning rate", 0)
    optimizer: str = option("sgd", "rule of the steps", choices=("sgd", "adam"))
    momentum: float = option(0.9, "of sgd: part of the last step that is taken again", 0, 1)
    weight_decay: float = option(5e-4, "pull of the weights towards zero", 0)
    bias_lr_mult: float = option(2.0, "learning rate of biases by that of weights", 0)
    bias_decay_mult: float = option(0.0, "weight decay of biases by that of weights", 0)
    schedule: str = option("constant", "course of the learning rate", choices=("constant", "step"))
    step_every: int = option(100_000, 'steps after which the schedule "step" multiplies', 1)
    step_gamma: float = option(0.1, "what it multiplies by", 0)

    # The run.
    seed: int = option(0, "makes first weights, the order of images, crops and dropout", 0)
    validate_every: int = option(2_000, "steps between two points of the validation curve", 1)
    validate_images: int = option(50, "images that are scored for it", 1)
    save_every: int = option(2_000, "steps between two checkpoints", 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_together(self)

    def plan(self, classes: Classes) -> Plan:
        """The network for a data set's classes."""
        return Plan(
            classes,
            self.front_end,
            self.table,
            self.context,
            self.dilations,
            self.padding,
            self.prefix,
            self.final_name,
            self.upsample,
            self.divisor,
        )

    @property
    def heat(self) -> float:
        """What a steady gradient's steps add up to in the end with sgd: lr / (1 - momentum).

        The paper's settings look scattered, but 1e-3 with momentum 0.9 and 1e-4 with momentum 0.99
        are the same 0.01. With 1e-3 and 0.99, ten times that, training diverges (fyu/dilation,
        issue 25).
        """
        return self.lr / (1 - self.momentum)


def kind_and_split(which: str) -> tuple[str, str]:
    """``"voc:val"`` -> ``("voc", "val")``.

    Raises
    ------
    ConfigError
        If it is written in another way, or there is no such kind.
    """
    kind, _, split = which.partition(":")
    if not (kind and split):
        raise ConfigError(
            f"expected data sets as KIND:SPLIT, for example voc:trainaug; got {which!r}."
        )
    if kind not in KINDS:
        raise ConfigError(
            f"expected data sets of a kind out of {', '.join(KINDS)}; got {kind!r} in {which!r}."
        )
    return kind, split


def _check_together(recipe: Recipe) -> None:
    """Refuse options that are fine alone but make no sense together."""
    for which in (*recipe.train, recipe.validation):
        kind_and_split(which)
    for name in ("size", "label_shape"):
        if len(getattr(recipe, name)) == 1:
            raise ConfigError(
                f"expected {name} to be [height, width], or []; got {list(getattr(recipe, name))}."
            )
    if recipe.learns != "front end" and recipe.context == "none":
        raise ConfigError(
            f'expected a context module where learns is "{recipe.learns}"; got context = "none". '
            'Write context = "basic", or learns = "front end".'
        )
    if recipe.learns == "front end" and recipe.context != "none":
        raise ConfigError(
            'expected no context module where learns is "front end"; got context = '
            f'"{recipe.context}". Write context = "none"; the next stage adds it.'
        )
    if recipe.mirror == "features" and recipe.learns != "context":
        raise ConfigError(
            'expected mirror = "image" or "none" where images are the input; got "features", which '
            'is for stored features: learns = "context".'
        )
    if (recipe.front_end == "table") != bool(recipe.table):
        raise ConfigError(
            'expected rows in table where front_end is "table", and none elsewhere; got '
            f'front_end = "{recipe.front_end}" and {len(recipe.table)} rows.'
        )
    if recipe.iter_size > recipe.batch:
        raise ConfigError(
            f"expected iter_size to be at most batch, {recipe.batch}; got {recipe.iter_size}. It "
            "is the number of parts that the batch is computed in; the batch stays as it is."
        )


# ---- reading ---------------------------------------------------------------------------------


def recipe_names() -> tuple[str, ...]:
    """The recipes that come with tinydilate, in the order in which a data set's stages follow."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def recipe_path(name: str) -> Path:
    """The file of a recipe: one that comes with tinydilate by its name, or any by its path.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if name in recipe_names():
        return FOLDER / f"{name}.toml"
    if Path(name).suffix == ".toml" or Path(name).exists():
        return Path(name)
    hint = meant(name, recipe_names()) or " `tinydilate recipe list` shows them."
    raise ConfigError(f"expected the name of a recipe or a TOML file; got {name!r}.{hint}")


def read_recipe(name: str, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe, with some of its keys set to other values.

    Parameters
    ----------
    name : str
        One of `recipe_names`, or the path of a TOML file.
    settings : texts such as ``"batch=4"``

    Raises
    ------
    ConfigError
        If there is no such recipe, or it or a setting makes no sense.
    """
    path = recipe_path(name)
    Recipe.read(path)  # so that a complaint about the file names it
    changed = dict(read_setting(text) for text in settings)
    return Recipe.of({**read_options(path), **changed}, "--set" if changed else str(path))


def read_setting(text: str) -> tuple[str, Any]:
    """``"batch=4"`` -> ``("batch", 4)``; the value is written as in TOML, but texts need no quotes.

    Raises
    ------
    ConfigError
        If there is no key or no value.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not (key and equals and value):
        raise ConfigError(f"expected --set KEY=VALUE, for example batch=4; got {text!r}.")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return key, value
    if len(parsed) != 1:
        raise ConfigError(f"expected one key in --set, for example batch=4; got {text!r}.")
    return key, parsed["value"]
