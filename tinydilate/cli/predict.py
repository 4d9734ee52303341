"""``predict``: label images with the demo's networks or with published weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinydilate.cli.common import add_device, columns, command, show
from tinydilate.cli.runs import add_network
from tinydilate.errors import ConfigError, program

if TYPE_CHECKING:
    from tinydilate.predict import Options, Prediction


def add(commands: Any) -> None:
    """The command predict."""
    title = "Label every pixel of images, of the images in a folder, of an animation"
    _add_predict(command(commands, "predict", _predict, title, _PREDICT))


_PREDICT = (
    "The network is the first PATH, a run folder or a checkpoint, or that of --weights. Writes "
    "NAME-labels.png, whose pixels are class numbers with a palette, and NAME-overlay.png; of an "
    "animated GIF, both as GIF. The demo network knows bright strokes on a dark ground, digits of "
    "24 to 30 pixels; see --scale and --invert."
)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", metavar="PATH", nargs="+",
        help="the network, unless --weights names it; then images and folders of images, where "
        "NAME-labels.png and NAME-overlay.png beside an image NAME are left out",
    )  # fmt: skip
    parser.add_argument(
        "--weights", metavar="FILE",
        help="a checkpoint, such as converted published weights (default: the first PATH)",
    )  # fmt: skip
    add_network(parser)
    parser.add_argument(
        "--out", metavar="FOLDER",
        help="where the results go (default: beside the image; in FOLDER/predicted for a folder)",
    )  # fmt: skip
    parser.add_argument(
        "--method", choices=("whole", "original"), default="whole",
        help="the whole image without seams, or in tiles as the published code does (default: "
        "whole)",
    )  # fmt: skip
    parser.add_argument(
        "--memory", metavar="SIZE",
        help="most memory to take, as in 2GB: smaller pieces of the image (default: 4GB)",
    )  # fmt: skip
    parser.add_argument(
        "--overlay", action=argparse.BooleanOptionalAction, default=True,
        help="write the colours laid over the image, too (default: yes)",
    )  # fmt: skip
    parser.add_argument(
        "--probabilities", action="store_true",
        help="write NAME-probabilities.npz, float16 (classes, H, W), too (default: no)",
    )  # fmt: skip
    parser.add_argument(
        "--classes", metavar="NAMES",
        help="label only these, as in person,car; other pixels get 255, none (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--legend", action="store_true",
        help="write legend.png, the classes' names and colours, too (default: no)",
    )  # fmt: skip
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="resize images first (default: 1)"
    )
    parser.add_argument(
        "--invert", action="store_true", help="exchange black and white first (default: no)"
    )
    add_device(parser)


def _predict(arguments: argparse.Namespace) -> int:
    from tinydilate.predict import load_any, predict_files

    paths = list(arguments.paths)
    weights = arguments.weights or paths.pop(0)
    if not paths:
        raise ConfigError(
            f"expected images to label behind the network {weights}; got none. Write "
            f"{program()} predict NETWORK IMAGE."
        )
    options = _options(arguments)
    trained = load_any(weights, arguments.network, arguments.device)
    found = predict_files(trained, paths, arguments.out, options, progress="predicting")
    legend = None
    if arguments.legend:
        from tinydilate.see.legend import draw_legend

        legend = found[0].labels.parent / "legend.png"
        draw_legend(legend, trained.recipe.classes, trained.recipe.palette, options.classes)
    value = {
        "checkpoint": str(trained.path),
        "legend": None if legend is None else str(legend),
        "predictions": [_as_json(prediction) for prediction in found],
    }
    show(value, arguments.json, lambda: _table(found, legend))
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    from tinydilate.predict import Options
    from tinydilate.predict.memory import MEMORY, parse_bytes

    if arguments.memory is not None:
        parse_bytes(arguments.memory)  # refused before anything is loaded
        if arguments.method == "original":
            raise ConfigError(
                "expected --memory with the method whole, which cuts images to fit; got it with "
                "original, whose tiles have one size. Leave one of them out."
            )
    names = [name.strip() for name in (arguments.classes or "").split(",")]
    return Options(
        scale=arguments.scale,
        invert=arguments.invert,
        method=arguments.method,
        memory=arguments.memory or MEMORY,
        overlay=arguments.overlay,
        probabilities=arguments.probabilities,
        classes=tuple(name for name in names if name),
    )


def _as_json(prediction: Prediction) -> dict[str, Any]:
    files = {
        name: None if path is None else str(path)
        for name, path in prediction._asdict().items()
        if name != "shares"
    }
    return {**files, "shares": prediction.shares}


def _table(found: Sequence[Prediction], legend: Path | None) -> str:
    """Part of the pixels that each class got, on average over the images; the files' names."""
    shares: dict[str, float] = {}
    for prediction in found:
        for name, share in prediction.shares.items():
            shares[name] = shares.get(name, 0) + share / len(found)
    largest = sorted(shares.items(), key=lambda item: -item[1])
    rows = [("class", "pixels"), *((name, f"{share:.1%}") for name, share in largest if share)]
    if (rest := 1 - sum(shares.values())) > 1e-6:  # with --classes
        rows.append(("none of these", f"{rest:.1%}"))
    written = [
        str(path)
        for prediction in found
        for path in (prediction.labels, prediction.overlay, prediction.probabilities)
        if path is not None
    ] + ([] if legend is None else [str(legend)])
    files = " and ".join(written) if len(written) < 3 else ", ".join(written)
    if len(found) > 1:
        folders = " and ".join(sorted({str(prediction.labels.parent) for prediction in found}))
        files = f"{len(written)} files for {len(found)} images to {folders}"
    return f"{columns(rows, right=(1,))}\n\nWrote {files}."
