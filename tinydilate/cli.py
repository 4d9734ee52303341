"""The command ``tinydilate``: reading arguments, calling the library, printing.

What a command needs is imported inside it, so that ``--help`` answers at once. Tables go to stdout,
with ``--json`` as JSON and nothing else; progress and errors go to stderr. What is wrong with the
input is said in one sentence, with exit code 2. Ctrl-C ends with exit code 130.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tinydilate import __version__
from tinydilate.config import PLACES, Config, add_arguments, given_options, read_options
from tinydilate.errors import ConfigError, FieldError, TinydilateError, program

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0 means done, 1 that doctor found something broken or a claim or check of a receptive field
    failed, 2 bad input, 130 Ctrl-C.
    """
    try:
        parsed = make_parser().parse_args(arguments)
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        return _complain(str(stop) or "stopped.", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `tinydilate ops | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TinydilateError as error:
        return _complain(str(error), BAD_INPUT)
    except MemoryError as error:
        return _complain(
            f"expected enough memory; there is not ({error}). Take smaller or fewer images, or a "
            "smaller batch.",
            BAD_INPUT,
        )
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}.", BAD_INPUT)


def _complain(sentence: str, code: int) -> int:
    print(f"tinydilate: {sentence}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one sentence, instead of printing the usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is left over here, where the command is known, not in the parser above."""
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            near = difflib.get_close_matches(rest[0].split("=")[0], self._option_string_actions, 1)
            meant = f". Did you mean {near[0]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(rest)}{meant}")
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        stop = "" if message.endswith(("?", ".")) else "."
        raise ConfigError(f"{message}{stop} Run {self.prog} --help for what there is.")


def make_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = _Parser(
        prog="tinydilate",
        description="Dilated convolutions from scratch: train, look, understand.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tinydilate {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = partial(_command, commands)
    _add_train(command("train", _train, "Train the networks of the demo", _TRAIN))
    _add_eval(command("eval", _eval, "Score trained networks on scenes"))
    _add_predict(command("predict", _predict, "Label every pixel of an image file", _PREDICT))
    _add_summary(command("summary", _summary, "Show the layers of a network", _SUMMARY))
    _add_rf(commands)
    command("ops", _ops, "Show which kernel exists on which device")
    _add_warmup(command("warmup", _warmup, "Compile the kernels now rather than when needed"))
    command("doctor", _doctor, "Check this installation and say what to do")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], title: str, more: str = ""
) -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = commands.add_parser(
        name, help=title, description=f"{title}. {more}".strip(), allow_abbrev=False
    )
    sub.set_defaults(run=run)
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return sub


def _print(value: Any, as_json: bool, table: Callable[[], str]) -> None:
    print(json.dumps(value, indent=2) if as_json else table())


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of text in columns, the first row as a header; ``right`` are the columns of numbers."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


# ---- train -----------------------------------------------------------------------------------

_TRAIN = (
    "Stage 1 trains the front end, stage 2 the context module on the frozen front end, stage 3 "
    "both; then, for comparison, the front end alone for as many steps. Ctrl-C saves."
)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="runs/demo", metavar="FOLDER", help="the run folder (default: runs/demo)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the interrupted run in the folder"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="a TOML file of options such as batch = 16 (default: none)"
    )
    add_arguments(parser.add_argument_group("what to train (each can stand in the file, too)"))


def _train(arguments: argparse.Namespace) -> int:
    # The command line has the last word, then the file, then the defaults.
    options = read_options(arguments.config) if arguments.config else {}
    Config.of(options, arguments.config or "")  # so that a complaint names the file
    options |= given_options(arguments)
    if arguments.resume:
        kept = Path(arguments.out) / "config.toml"
        options = (read_options(kept) if kept.exists() else {}) | options
    config = Config.of(options)

    from tinydilate.train import train

    results = train(config, arguments.out, arguments.resume)
    _print(results, arguments.json, lambda: results_table(results, arguments.out))
    return 0


def results_table(results: dict[str, Any], folder: str) -> str:
    """What a run found, to read."""
    rows: list[Sequence[str]] = [("network", "steps", "parameters", "mean IoU", "pixel accuracy")]
    told = {
        "front": "front end",
        "context": "front end (frozen) + context",
        "joint": "front end + context",
        "alone": "front end, more steps",
    }
    for name, network in results["networks"].items():
        scores = [f"{network[key]:.3f}" for key in ("mean_iou", "pixel_accuracy")]
        counts = [f"{network[key]:,}" for key in ("steps", "parameters")]
        rows.append((f"{name}: {told[name]}", *counts, *scores))
    classes = results["classes"]
    rival = {
        "alone": "the front end alone, trained for as many steps",
        "front": "the front end after stage 1, trained for fewer steps",
    }[results["compared_with"]]
    place = shlex.quote(folder)
    return (
        f"{columns(rows, right=(1, 2, 3, 4))}\n\n"
        f"Mean IoU over {len(classes)} classes, background included: {', '.join(classes)}.\n"
        f"On {results['config']['test_scenes']} test scenes (the curves: on "
        f"{results['config']['validation_scenes']} validation scenes).\n"
        f"Context gains {results['gain']:+.3f} over {rival}.\n\n"
        f"Look at {folder}/predictions.png and {folder}/curves.png. Label an image:\n"
        f"{program()} predict {place} {place}/example.png"
    )


# ---- eval ------------------------------------------------------------------------------------


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a run folder or a network's checkpoint")
    _add_network(parser)
    parser.add_argument(
        "--split", default="test", choices=("train", "validation", "test"),
        help="whose handwriting (default: test)",
    )  # fmt: skip
    parser.add_argument("--count", type=int, default=300, metavar="N", help="scenes (default: 300)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of them (default: 0)")
    _add_device(parser)


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--network", choices=("joint", "context", "alone", "front"),
        help="which of a run folder's networks (default: the first of these that is there)",
    )  # fmt: skip


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="cpu", choices=PLACES, help="where to compute (default: cpu)"
    )


def _eval(arguments: argparse.Namespace) -> int:
    from tinydilate.data import digits
    from tinydilate.predict import load_network, score

    trained = load_network(arguments.path, arguments.network, arguments.device)
    size = trained.recipe.config.scene_size
    images, labels = digits.scenes(arguments.split, arguments.count, arguments.seed, size=size)
    found = score(trained.network, images, labels, trained.recipe.classes, progress="scoring")

    def table() -> str:
        rows = [("class", "IoU")]
        for name, iou in zip(found.classes, found.iou, strict=True):
            rows.append((name, f"{iou:.3f}" if iou == iou else "absent"))  # only nan is not itself
        return f"{trained.path}\n\n{columns(rows, right=(1,))}\n\n{found}"

    _print({"checkpoint": str(trained.path), **found.to_dict()}, arguments.json, table)
    return 0


# ---- predict ---------------------------------------------------------------------------------

_PREDICT = (
    "Writes NAME-labels.png, whose pixels are class numbers with a palette, and NAME-overlay.png. "
    "The demo network knows bright strokes on a dark ground, digits of 24 to 30 pixels; see "
    "--scale and --invert."
)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a run folder or a network's checkpoint")
    parser.add_argument("image", metavar="IMAGE", help="a PNG, JPEG or other image file")
    _add_network(parser)
    parser.add_argument(
        "--out", metavar="FOLDER", help="where the results go (default: beside the image)"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="resize the image first (default: 1)"
    )
    parser.add_argument(
        "--invert", action="store_true", help="exchange black and white first (default: no)"
    )
    _add_device(parser)


def _predict(arguments: argparse.Namespace) -> int:
    from tinydilate.predict import load_network, predict_file

    trained = load_network(arguments.path, arguments.network, arguments.device)
    found = predict_file(trained, arguments.image, arguments.out, arguments.scale, arguments.invert)

    def table() -> str:
        shares = sorted(found.shares.items(), key=lambda item: -item[1])
        rows = [("class", "pixels"), *((name, f"{share:.1%}") for name, share in shares if share)]
        return f"{columns(rows, right=(1,))}\n\nWrote {found.labels} and {found.overlay}."

    value = {
        "checkpoint": str(trained.path),
        "labels": str(found.labels),
        "overlay": str(found.overlay),
        "shares": found.shares,
    }
    _print(value, arguments.json, table)
    return 0


# ---- summary ---------------------------------------------------------------------------------

_SUMMARY = "Sends shapes without numbers through the network, so size costs no memory."

# What can be shown: how to build it (on the meta device) and the size of an input that suits it.
_MODELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "demo": ("the demo's network: small front end and context", (1, 1, 64, 64)),
    "demo-front": ("the demo's front end alone", (1, 1, 64, 64)),
    "front-end": ("VGG-16 with its last poolings deleted (section 4)", (1, 3, 500, 500)),
    "context-basic": ("the context module, Basic (Table 1)", (1, 21, 64, 64)),
    "context-large": ("the context module, Large (Table 1)", (1, 21, 64, 64)),
    "voc": ("front end and Large context, as for VOC 2012", (1, 3, 500, 500)),
}


def _add_summary(parser: argparse.ArgumentParser) -> None:
    names = "; ".join(f"{name}: {what}" for name, (what, _) in _MODELS.items())
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default="demo", choices=tuple(_MODELS),
        help=f"{names} (default: demo)",
    )  # fmt: skip
    _add_build(parser)


def _add_build(parser: argparse.ArgumentParser) -> None:
    """What decides how a network comes out, beside its name."""
    parser.add_argument(
        "--classes", type=int, metavar="C",
        help="number of classes (default: 11 for the demo's networks, else 21)",
    )  # fmt: skip
    parser.add_argument(
        "--size", metavar="HxW", help="height and width of the input (default: suits the network)"
    )


def _summary(arguments: argparse.Namespace) -> int:
    from tinydilate.see.summary import format_table, summarise, to_json

    summary = summarise(*_network(arguments))
    print(to_json(summary) if arguments.json else format_table(summary))
    return 0


def _network(arguments: argparse.Namespace, device: str = "meta") -> tuple[Any, tuple[int, ...]]:
    """The network that is asked for, and the size of its input (N, C, H, W)."""
    from tinydilate import models

    name, config = arguments.model, Config()
    if name == _STACK:
        return _stack(arguments, device)
    classes = (11 if name.startswith("demo") else 21) if arguments.classes is None else (
        arguments.classes
    )  # fmt: skip
    count, channels, height, width = _MODELS[name][1]
    if arguments.size is not None:
        height, width = _size(arguments.size)
    if name.startswith("context"):
        channels = classes
        network: Any = models.context(classes, name.removeprefix("context-"), device=device)
    elif name == "front-end":
        network = models.front_end(classes, device=device)
    elif name == "voc":
        network = models.FrontEndWithContext(
            models.front_end(classes, device=device),
            models.context(classes, "large", device=device),
        )
    else:
        front = models.small_front_end(classes, device=device)
        dilations = config.dilations
        context = models.context(classes, config.variant, dilations, device=device)
        network = models.FrontEndWithContext(front, context if name == "demo" else None)
    return network, (count, channels, height, width)


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"expected --size as in 500x500; got {text!r}.")
    return int(parts[0]), int(parts[-1])


# ---- rf --------------------------------------------------------------------------------------

_RF = (
    "Name a network to see what each of its layers sees of the image, or one of the other words. "
    "Each has a --help of its own."
)
_STACK = "stack"


def _add_rf(commands: Any) -> None:
    """Models and actions are sub-commands side by side, so no model can hide an action."""
    title = "Show, check and draw receptive fields"
    parser = commands.add_parser(
        "rf", help=title, description=f"{title}. {_RF}", allow_abbrev=False
    )
    what = parser.add_subparsers(title="what to show", metavar="MODEL", required=True)
    told = {name: about for name, (about, _) in _MODELS.items()}
    for name, about in {**told, _STACK: "3x3 layers with the dilations given"}.items():
        sub = _command(what, name, _rf_show, f"Fields of {about}")
        sub.set_defaults(model=name)
        _add_dilations(sub) if name == _STACK else _add_build(sub)
        _add_rf_show(sub)
    _command(what, "claims", _rf_claims, "Check what the paper says of fields", _CLAIMS)
    verify = _command(what, "verify", _rf_verify, "Check a network's analysis by measuring")
    _add_chosen(verify)
    verify.add_argument(
        "--method", default="gradient", choices=("gradient", "impulse"),
        help="how to measure (default: gradient)",
    )  # fmt: skip
    counts = _command(what, "effective", _rf_effective, "Show how much each pixel counts")
    _add_chosen(counts)
    weights = counts.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights", default="random", choices=("random", "uniform", "start"),
        help="drawn anew, all equal, or those that training starts from (default: random)",
    )  # fmt: skip
    weights.add_argument(
        "--trained", metavar="PATH",
        help="a run folder or a checkpoint: demo or demo-front as it learnt (default: none)",
    )  # fmt: skip
    counts.add_argument(
        "--draws", type=int, default=10, metavar="N",
        help="of images, and of random weights, to take the mean over (default: 10)",
    )  # fmt: skip
    counts.add_argument("--png", metavar="FILE", help="draw the heat map (default: no picture)")
    explore = _command(what, "explore", _rf_explore, "Write the interactive page", _EXPLORE)
    explore.add_argument(
        "--out", default="fields.html", metavar="FILE", help="the page (default: fields.html)"
    )


_CLAIMS = "Each is analysed and measured; the exit code is 1 if one does not hold."
_EXPLORE = "One file that works offline: change layers and see what their outputs read."


def _add_chosen(parser: argparse.ArgumentParser) -> None:
    """A network by its name, for an action that takes any."""
    parser.add_argument(
        "model", metavar="MODEL", choices=(*_MODELS, _STACK),
        help=f"one of {', '.join(_MODELS)} and {_STACK}",
    )  # fmt: skip
    _add_build(parser)
    _add_dilations(parser, size=False)


def _add_dilations(parser: argparse.ArgumentParser, size: bool = True) -> None:
    parser.add_argument(
        "--dilations", default="1,2,4", metavar="D,D,...",
        help="of a stack's layers (default: 1,2,4)",
    )  # fmt: skip
    if size:
        parser.add_argument(
            "--size", metavar="HxW", help="height and width of the input (default: suits the stack)"
        )


def _add_rf_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layer", metavar="NAME", help="this layer alone, and what its outputs see (default: all)"
    )
    parser.add_argument(
        "--png", metavar="FILE",
        help="draw the growth; of a stack taps and holes; with --layer the field on an image "
        "(default: no picture)",
    )  # fmt: skip
    parser.add_argument(
        "--image", metavar="FILE",
        help="to draw a layer's field on; its size becomes the input's (default: handwriting)",
    )  # fmt: skip
    parser.add_argument("--gif", metavar="FILE", help="draw the growth, moving (default: none)")
    parser.add_argument(
        "--html", metavar="FILE",
        help="write the interactive page and print the address that shows this network "
        "(default: no page)",
    )  # fmt: skip


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
        height, width = _size(arguments.size)
    return nn.Sequential(*build(plain_rows(dilations), 1, device=device)), (1, 1, height, width)


def _rf_show(arguments: argparse.Namespace) -> int:
    from tinydilate.receptive_field import analyse, format_table
    from tinydilate.receptive_field.analysis import layer_as_dict

    network, size = _network(arguments)
    image = None
    if arguments.image is not None:
        from tinydilate.io.images import read_image

        if arguments.layer is None or arguments.png is None:
            raise ConfigError("expected --layer and --png with --image: it is drawn on that image.")
        image = read_image(arguments.image)  # (3, H, W)
        size = (*size[:2], *image.shape[1:])
    analysis = analyse(network, size)
    layers = [*analysis] if arguments.layer is None else [analysis[arguments.layer]]
    written = _rf_files(arguments, network, size, analysis, image)

    def table() -> str:
        lines = format_table(analysis).splitlines()
        rows = zip(analysis, lines[2:], strict=True)
        kept = [line for layer, line in rows if any(layer is one for one in layers)]
        more = [] if arguments.layer is None else ["", *_about(layers[0])]
        files = ["", *written] if written else []
        return "\n".join([*lines[:2], *kept, *more, *files])

    value = {"input_size": list(size), "layers": [layer_as_dict(layer) for layer in layers]}
    _print(value, arguments.json, table)
    return 0


def _about(layer: Any) -> list[str]:
    """What one layer's outputs see, in sentences."""
    if layer.reason is not None:
        return [f"No field: {layer.reason}."]
    rows, columns = layer.size
    middle, corner = (rows // 2, columns // 2), (0, 0)
    (top, left), mask = layer.field_of(middle)
    last = top + mask.shape[0] - 1, left + mask.shape[1] - 1
    holes = f"; {layer.holes:,} holes" if layer.holes else "; no holes"
    return [
        f"Output {middle} sees {mask.sum():,} of the {mask.size:,} pixels from ({top}, {left}) to "
        f"{last}{holes}.",
        f"Output {corner} has {layer.outside(corner):.0%} of its field outside of the image.",
    ]


def _rf_files(
    arguments: argparse.Namespace, network: Any, size: tuple[int, ...], analysis: Any, image: Any
) -> list[str]:
    """Write the pictures and the page that are asked for; a sentence about each."""
    written = []
    if arguments.png is not None:
        _rf_png(arguments, network, size, analysis, image)
        written.append(f"Wrote {arguments.png}.")
    if arguments.gif is not None:
        from tinydilate.see.fields import animate_growth

        animate_growth(arguments.gif, analysis)
        written.append(f"Wrote {arguments.gif}.")
    if arguments.html is not None:
        from tinydilate.see.explore import write_explorer

        write_explorer(arguments.html)
        address = Path(arguments.html).resolve().as_uri() + _page_link(network, size)
        written.append(f"Wrote {arguments.html}. Open {address}")
    return written


def _page_link(network: Any, size: tuple[int, ...]) -> str:
    """A network's convolutions and poolings in the words of the page's links; see explore.html."""
    from tinydilate import nn

    words = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            window = module.window
            kind, maps = "m", ""
            if isinstance(module, nn.Conv2d):
                kind, maps = "c", f"f{module.out_channels}"
            reads = f"{window.kernel[0]}d{window.dilation[0]}s{window.stride[0]}p{window.before[0]}"
            words.append(f"{kind}{reads}{maps}")
    return f"#stack={'.'.join(words)}&channels={size[1]}&size={max(size[2:])}"


def _rf_png(
    arguments: argparse.Namespace, network: Any, size: tuple[int, ...], analysis: Any, image: Any
) -> None:
    from tinydilate.see.fields import draw_coverage, draw_field, draw_growth

    if arguments.layer is not None:
        if image is None:
            from tinydilate.data import digits

            # A scene as large as the longer side, cut to the input's size.
            scene = digits.scenes("test", 1, size=max(32, *size[2:]))[0][0, 0]
            draw_field(arguments.png, analysis[arguments.layer], scene[: size[2], : size[3]])
        else:
            draw_field(arguments.png, analysis[arguments.layer], image.transpose(1, 2, 0))
    elif arguments.model == _STACK:
        draw_coverage(arguments.png, [[layer.window.dilation[0] for layer in network]])
    else:
        draw_growth(arguments.png, {arguments.model: network}, size)


def _rf_claims(arguments: argparse.Namespace) -> int:
    from tinydilate.receptive_field import claims

    found = claims()

    def table() -> str:
        rows: list[tuple[str, ...]] = [("claim", "claimed", "analysed", "measured", "")]
        for claim in found:
            numbers = [str(n) for n in (claim.claimed, claim.analysed, claim.measured)]
            rows.append((claim.name, *numbers, "agree" if claim.agrees else "DIFFER"))
        held = sum(claim.agrees for claim in found)
        return f"{columns(rows)}\n\n{held} of {len(found)} claims agree."

    _print([claim._asdict() for claim in found], arguments.json, table)
    return 0 if all(claim.agrees for claim in found) else FAILED


def _rf_verify(arguments: argparse.Namespace) -> int:
    from tinydilate.receptive_field import verify

    network, size = _with_room(arguments)
    found = verify(network, size, arguments.method)
    value = {
        "method": found.method,
        "agrees": found.agrees,
        "layers": [
            {
                "name": check.layer.name,
                "outputs": [list(output) for output in check.outputs],
                "counterexample": check.counterexample and check.counterexample._asdict(),
            }
            for check in found.checks
        ],
    }
    _print(value, arguments.json, lambda: str(found))
    return 0 if found.agrees else FAILED


def _rf_effective(arguments: argparse.Namespace) -> int:
    from tinydilate.receptive_field import closed_form_sigma, effective

    network, size = _with_room(arguments)
    weights, about = arguments.weights, f"{arguments.draws} draws of {arguments.weights} weights"
    if arguments.trained is not None:
        network, weights, about = _trained(arguments), "own", f"trained, {arguments.draws} images"
    elif weights == "start":
        network, weights = _network(arguments, device="cpu")[0], "own"
        about = f"as training starts, {arguments.draws} images"
    found = effective(network, size, weights=weights, draws=arguments.draws)
    try:
        closed = closed_form_sigma(network, size)
    except FieldError:  # no chain of windows: the measurement stands alone
        closed = None
    if arguments.png is not None:
        from tinydilate.see.fields import draw_effective

        draw_effective(arguments.png, found, closed and closed[1], f"{arguments.model}: {about}")
    value = {
        "extent": list(found.layer.extent),
        "sigma": list(found.sigma),
        "closed_form_sigma": closed and list(closed),
        "pixels_of_95.45_percent": list(found.width()),
    }

    def table() -> str:
        rows = [("", "rows", "columns"), ("extent", *map(str, found.layer.extent))]
        rows.append(("sigma, measured", *(f"{sigma:.2f}" for sigma in found.sigma)))
        if closed:
            rows.append(("sigma, closed form", *(f"{sigma:.2f}" for sigma in closed)))
        rows.append(("pixels that hold 95.45 %", *map(str, found.width())))
        wrote = f"\n\nWrote {arguments.png}." if arguments.png else ""
        return columns(rows, right=(1, 2)) + wrote

    _print(value, arguments.json, table)
    return 0


def _trained(arguments: argparse.Namespace) -> Any:
    """The demo's network with the weights of a run."""
    from tinydilate.predict import load_network

    if not arguments.model.startswith("demo"):
        raise ConfigError(
            f"expected demo or demo-front with --trained; got {arguments.model}. Runs train these."
        )
    is_run = Path(arguments.trained).is_dir()
    name = "alone" if is_run and arguments.model == "demo-front" else None
    found = load_network(arguments.trained, name)
    if found.recipe.context != (arguments.model == "demo"):
        raise ConfigError(
            f"expected the weights of {arguments.model}; {found.path} holds a network "
            f"{'with' if found.recipe.context else 'without'} context. Name the other one."
        )
    return found.network


_ROOM = 256  # pixels a side; larger images take minutes and gigabytes, so they have to be asked for


def _with_room(arguments: argparse.Namespace) -> tuple[Any, tuple[int, ...]]:
    """The network, and an input that holds the whole field of an output in the middle."""
    from tinydilate.receptive_field import analyse

    network, size = _network(arguments)
    if arguments.size is None:
        output = analyse(network, size).output
        # An output's place may be off the middle by as much as the coarsest stride.
        sides = [
            max(have, 16 + extent) for have, extent in zip(size[2:], output.extent, strict=True)
        ]
        size = (*size[:2], *sides) if max(sides) <= _ROOM else size
    return network, size


def _rf_explore(arguments: argparse.Namespace) -> int:
    from tinydilate.see.explore import write_explorer

    write_explorer(arguments.out)
    address = Path(arguments.out).resolve().as_uri()
    _print({"page": address}, arguments.json, lambda: f"Wrote {arguments.out}. Open {address}")
    return 0


# ---- ops -------------------------------------------------------------------------------------

_DEVICES = ("numpy", "cpu", "cuda", "meta")


def _ops(arguments: argparse.Namespace) -> int:
    import tinydilate.optim  # noqa: F401 - its kernels are part of the table
    from tinydilate.kernel import KERNELS

    pages: dict[str, list[Any]] = {}
    for kernel in KERNELS.values():
        pages.setdefault(kernel.page, []).append(kernel)
    value = {
        page: {kernel.name: sorted(kernel.implementations) for kernel in kernels}
        for page, kernels in pages.items()
    }

    def table() -> str:
        rows: list[tuple[str, ...]] = [("page", "kernel", *_DEVICES, "variants")]
        for page, kernels in pages.items():
            for kernel in kernels:
                has = kernel.implementations
                others = ", ".join(name for name in has if name not in _DEVICES)
                marks = ["yes" if device in has else "-" for device in _DEVICES]
                rows.append((page if kernel is kernels[0] else "", kernel.name, *marks, others))
        totals = [sum(d in k.implementations for k in KERNELS.values()) for d in _DEVICES]
        rows.append((f"{len(pages)} pages", f"{len(KERNELS)} kernels", *map(str, totals), ""))
        return columns(rows)

    _print(value, arguments.json, table)
    return 0


# ---- warmup ----------------------------------------------------------------------------------


def _add_warmup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--again", action="store_true", help="even if they are compiled already (default: no)"
    )


def _warmup(arguments: argparse.Namespace) -> int:
    from tinydilate.compiling import cache_folder
    from tinydilate.kernel import KERNELS
    from tinydilate.train import tiny_steps
    from tinydilate.warmup import every_kernel, warm_up

    again = arguments.again
    seconds = warm_up("training-adam", lambda: tiny_steps(Config()), again=again)
    seconds += warm_up("all", every_kernel, again=again)
    folder = cache_folder()
    value = {
        "seconds": round(seconds, 3),
        "kernels": len(KERNELS),
        "folder": None if folder is None else str(folder),
    }

    def table() -> str:
        if folder is None:
            return "Kernels work, but there is no folder to keep them in; see tinydilate doctor."
        done = f"compiled in {seconds:.1f} s" if seconds else "compiled before"
        return f"{len(KERNELS)} kernels {done}; machine code in {folder}."

    _print(value, arguments.json, table)
    return 0


# ---- doctor ----------------------------------------------------------------------------------


def _doctor(arguments: argparse.Namespace) -> int:
    from tinydilate.doctor import examine

    findings = examine()

    def table() -> str:
        rows = [("", "what", "found")]
        for finding in findings:
            rows.append((finding.mark, finding.what, finding.found))
        advice = [f"{f.what}: {f.next_step}" for f in findings if f.next_step]
        return "\n".join([columns(rows), *([""] if advice else []), *advice])

    _print([finding._asdict() for finding in findings], arguments.json, table)
    return FAILED if any(finding.mark == "fail" for finding in findings) else 0
