"""``summary``: the layers of a network; and which networks can be named in commands."""

from __future__ import annotations

import argparse
from typing import Any

from tinydilate.cli.common import command, parse_size
from tinydilate.config import Config
from tinydilate.errors import ConfigError
from tinydilate.models import PUBLISHED


def add(commands: Any) -> None:
    """The command summary."""
    _add_summary(command(commands, "summary", _summary, "Show the layers of a network", _SUMMARY))


_SUMMARY = "Sends shapes without numbers through the network, so size costs no memory."

# What can be shown: what it is, and the size of an input that suits it.
MODELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "demo": ("the demo's network: small front end and context", (1, 1, 64, 64)),
    "demo-front": ("the demo's front end alone", (1, 1, 64, 64)),
    "front-end": ("VGG-16 with its last poolings deleted (section 4)", (1, 3, 500, 500)),
    "context-basic": ("the context module, Basic (Table 1)", (1, 21, 64, 64)),
    "context-large": ("the context module, Large (Table 1)", (1, 21, 64, 64)),
    "voc": ("front end and Large context, as for VOC 2012", (1, 3, 500, 500)),
    **{
        name: (f"the published network for {each.classes.dataset}", (1, 3, *each.input_size))
        for name, each in PUBLISHED.items()
    },
    "pooled-front-end": ("the front end with poolings kept, at stride 1", (1, 3, 500, 500)),
    "deeplab-large-fov": ("DeepLab-LargeFOV (Table 2)", (1, 3, 321, 321)),
    "fcn-8s": ("FCN-8s, all poolings and skips (Table 2)", (1, 3, 500, 500)),
    "small-pooled-front-end": ("the demo's front end with pool2 at stride 1", (1, 1, 64, 64)),
    "small-large-fov": ("DeepLab-LargeFOV for small images", (1, 1, 64, 64)),
    "small-fcn": ("FCN with one skip for small images", (1, 1, 64, 64)),
}


def _add_summary(parser: argparse.ArgumentParser) -> None:
    names = "; ".join(f"{name}: {what}" for name, (what, _) in MODELS.items())
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default="demo", choices=tuple(MODELS),
        help=f"{names} (default: demo)",
    )  # fmt: skip
    add_build(parser)


def add_build(parser: argparse.ArgumentParser) -> None:
    """What decides how a network comes out, beside its name."""
    parser.add_argument(
        "--classes", type=int, metavar="C",
        help="number of classes (default: 11 for the demo's and the small networks, the published "
        "networks' own, else 21)",
    )  # fmt: skip
    parser.add_argument(
        "--size", metavar="HxW", help="height and width of the input (default: suits the network)"
    )


def _summary(arguments: argparse.Namespace) -> int:
    from tinydilate.see.summary import format_table, summarise, to_json

    summary = summarise(*network_of(arguments))
    print(to_json(summary) if arguments.json else format_table(summary))
    return 0


def network_of(arguments: argparse.Namespace, device: str = "meta") -> tuple[Any, tuple[int, ...]]:
    """The network that is asked for, and the size of its input (N, C, H, W)."""
    name = arguments.model
    if name == STACK:
        return _stack(arguments, device)
    count, channels, height, width = MODELS[name][1]
    if arguments.size is not None:
        height, width = parse_size(arguments.size)
    classes = _classes(name, arguments.classes)
    if name.startswith("context"):
        channels = classes
    return _build(name, classes, device), (count, channels, height, width)


def _classes(name: str, given: int | None) -> int:
    if name not in PUBLISHED:
        small = name.startswith(("demo", "small"))
        return given if given is not None else 11 if small else 21
    own = len(PUBLISHED[name].classes.names)
    if given not in (None, own):
        raise ConfigError(
            f"expected {name} with its {own} classes; got --classes {given}. Leave --classes out, "
            "or name voc or front-end, which take any number."
        )
    return own


def _build(name: str, classes: int, device: str) -> Any:
    from tinydilate import models

    config = Config()
    comparisons: dict[str, Any] = {
        "pooled-front-end": models.pooled_front_end,
        "deeplab-large-fov": models.deeplab_large_fov,
        "fcn-8s": models.fcn_8s,
        "small-pooled-front-end": models.small_pooled_front_end,
        "small-large-fov": models.small_large_fov,
        "small-fcn": models.small_fcn,
    }
    if name in PUBLISHED:
        return PUBLISHED[name].build(device=device)
    if name in comparisons:
        return comparisons[name](classes, device=device)
    if name.startswith("context"):
        return models.context(classes, name.removeprefix("context-"), device=device)
    if name == "front-end":
        return models.front_end(classes, device=device)
    if name == "voc":
        return models.FrontEndWithContext(
            models.front_end(classes, device=device),
            models.context(classes, "large", device=device),
        )
    front = models.small_front_end(classes, device=device)
    context = models.context(classes, config.variant, config.dilations, device=device)
    return models.FrontEndWithContext(front, context if name == "demo" else None)


STACK = "stack"  # in place of a network: layers with the dilations given


def add_dilations(parser: argparse.ArgumentParser, size: bool = True) -> None:
    """The options of a stack."""
    parser.add_argument(
        "--dilations", default="1,2,4", metavar="D,D,...",
        help="of a stack's layers (default: 1,2,4)",
    )  # fmt: skip
    if size:
        parser.add_argument(
            "--size", metavar="HxW", help="height and width of the input (default: suits the stack)"
        )


def _stack(arguments: argparse.Namespace, device: str) -> tuple[Any, tuple[int, ...]]:
    """3x3 layers of one map, with a size at which their whole field lies in the image."""
    from tinydilate import nn
    from tinydilate.models.rows import build, plain_rows

    parts = [part.strip() for part in arguments.dilations.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            "expected --dilations, whole numbers of at least 1, as in 1,2,4; "
            f"got {arguments.dilations!r}."
        )
    dilations = [int(part) for part in parts]
    height = width = max(64, 1 + 2 * sum(dilations))
    if arguments.size is not None:
        height, width = parse_size(arguments.size)
    return nn.Sequential(*build(plain_rows(dilations), 1, device=device)), (1, 1, height, width)
