"""``rf``: receptive fields as tables, pictures and an interactive page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tinydilate.cli.common import FAILED, columns, command, show
from tinydilate.cli.networks import MODELS, STACK, add_build, add_dilations, network_of
from tinydilate.errors import ConfigError, FieldError

_RF = (
    "Name a network to see what each of its layers sees of the image, or one of the other words. "
    "Each has a --help of its own."
)


def add(commands: Any) -> None:
    """Models and actions are sub-commands side by side, so no model can hide an action."""
    title = "Show, check and draw receptive fields"
    parser = commands.add_parser(
        "rf", help=title, description=f"{title}. {_RF}", allow_abbrev=False
    )
    what = parser.add_subparsers(title="what to show", metavar="MODEL", required=True)
    told = {name: about for name, (about, _) in MODELS.items()}
    for name, about in {**told, STACK: "3x3 layers with the dilations given"}.items():
        sub = command(what, name, _rf_show, f"Fields of {about}")
        sub.set_defaults(model=name)
        add_dilations(sub) if name == STACK else add_build(sub)
        _add_rf_show(sub)
    command(what, "claims", _rf_claims, "Check what the paper says of fields", _CLAIMS)
    verify = command(what, "verify", _rf_verify, "Check a network's analysis by measuring")
    _add_chosen(verify)
    verify.add_argument(
        "--method", default="gradient", choices=("gradient", "impulse"),
        help="how to measure (default: gradient)",
    )  # fmt: skip
    counts = command(what, "effective", _rf_effective, "Show how much each pixel counts")
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
    explore = command(what, "explore", _rf_explore, "Write the interactive page", _EXPLORE)
    explore.add_argument(
        "--out", default="fields.html", metavar="FILE", help="the page (default: fields.html)"
    )


_CLAIMS = "Each is analysed and measured; the exit code is 1 if one does not hold."
_EXPLORE = "One file that works offline: change layers and see what their outputs read."


def _add_chosen(parser: argparse.ArgumentParser) -> None:
    """A network by its name, for an action that takes any."""
    parser.add_argument(
        "model", metavar="MODEL", choices=(*MODELS, STACK),
        help=f"one of {', '.join(MODELS)} and {STACK}",
    )  # fmt: skip
    add_build(parser)
    add_dilations(parser, size=False)


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


def _rf_show(arguments: argparse.Namespace) -> int:
    from tinydilate.receptive_field import analyse, format_table
    from tinydilate.receptive_field.analysis import and_output, layer_as_dict

    network, size = network_of(arguments)
    image = None
    if arguments.image is not None:
        from tinydilate.io.images import read_image

        if arguments.layer is None or arguments.png is None:
            raise ConfigError("expected --layer and --png with --image: it is drawn on that image.")
        image = read_image(arguments.image)  # (3, H, W)
        size = (*size[:2], *image.shape[1:])
    analysis = analyse(network, size)
    rows = and_output([*analysis], analysis)
    layers = rows if arguments.layer is None else [analysis[arguments.layer]]
    written = _rf_files(arguments, network, size, analysis, image)

    def table() -> str:
        lines = format_table(analysis).splitlines()
        known = zip(rows, lines[2:], strict=True)
        kept = [line for layer, line in known if any(layer is one for one in layers)]
        more = [] if arguments.layer is None else ["", *_about(layers[0])]
        files = ["", *written] if written else []
        return "\n".join([*lines[:2], *kept, *more, *files])

    value = {"input_size": list(size), "layers": [layer_as_dict(layer) for layer in layers]}
    show(value, arguments.json, table)
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

        link = _page_link(network, size)
        write_explorer(arguments.html)
        address = Path(arguments.html).resolve().as_uri() + link
        written.append(f"Wrote {arguments.html}. Open {address}")
    return written


def _page_link(network: Any, size: tuple[int, ...]) -> str:
    """A network's convolutions and poolings in the words of the page's links; see explore.html."""
    from tinydilate import models, nn

    if isinstance(network, models.FCN):
        raise ConfigError(
            "expected a network of layers in one line with --html, which is all that the page can "
            "show; got one that adds the scores of several layers. Draw it with --png."
        )
    words = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
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
    elif arguments.model == STACK:
        draw_coverage(arguments.png, [[layer.window.dilation[0] for layer in network]])
    else:
        draw_growth(arguments.png, {arguments.model: network}, size)


def _rf_claims(arguments: argparse.Namespace) -> int:
    from tinydilate.receptive_field import claims

    found = claims(progress=True)

    def table() -> str:
        rows: list[tuple[str, ...]] = [("claim", "claimed", "analysed", "measured", "")]
        for claim in found:
            numbers = [str(n) for n in (claim.claimed, claim.analysed, claim.measured)]
            rows.append((claim.name, *numbers, "agree" if claim.agrees else "DIFFER"))
        held = sum(claim.agrees for claim in found)
        return f"{columns(rows)}\n\n{held} of {len(found)} claims agree."

    show([claim._asdict() for claim in found], arguments.json, table)
    return 0 if all(claim.agrees for claim in found) else FAILED


def _rf_verify(arguments: argparse.Namespace) -> int:
    from tinydilate.receptive_field import verify

    network, size = _with_room(arguments)
    found = verify(network, size, arguments.method, progress=True)
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
    show(value, arguments.json, lambda: str(found))
    return 0 if found.agrees else FAILED


def _rf_effective(arguments: argparse.Namespace) -> int:
    from tinydilate.receptive_field import closed_form_sigma, effective

    network, size = _with_room(arguments)
    weights, about = arguments.weights, f"{arguments.draws} draws of {arguments.weights} weights"
    if arguments.trained is not None:
        network, weights, about = _trained(arguments), "own", f"trained, {arguments.draws} images"
    elif weights == "start":
        network, weights = network_of(arguments, device="cpu")[0], "own"
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

    show(value, arguments.json, table)
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

    network, size = network_of(arguments)
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
    show({"page": address}, arguments.json, lambda: f"Wrote {arguments.out}. Open {address}")
    return 0
