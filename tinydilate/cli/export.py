"""``export``: a network and its weights for PyTorch, for ONNX, or as safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinydilate.cli.common import columns, command, parse_size, show
from tinydilate.cli.networks import MODELS, network_of
from tinydilate.cli.runs import add_network
from tinydilate.errors import ConfigError, meant

if TYPE_CHECKING:
    from tinydilate.exporting import Source, Written


def add(commands: Any) -> None:
    """The command export."""
    parser = command(commands, "export", _export, "Write a network for other programs", _EXPORT)
    parser.add_argument(
        "source", metavar="SOURCE",
        help="a run folder, a checkpoint, converted published weights, or the name of a network: "
        + ", ".join(MODELS),
    )  # fmt: skip
    parser.add_argument("--onnx", metavar="FILE", help="weights and graph, for ONNX engines")
    parser.add_argument("--pth", metavar="FILE", help="a state dictionary, for torch.load")
    parser.add_argument("--safetensors", metavar="FILE", help="weights with a note about them")
    add_network(parser)
    parser.add_argument(
        "--border", action="store_true",
        help="have a published network, or that of a recipe, reflect the image about its edges "
        "itself (default: images come with their border, 186 pixels for the published)",
    )  # fmt: skip
    parser.add_argument(
        "--classes", type=int, metavar="C", help="of a network by name (default: its own)"
    )
    graph = parser.add_argument_group("the ONNX graph")
    graph.add_argument(
        "--size", metavar="HxW", help="height and width of the input (default: suits the network)"
    )
    graph.add_argument(
        "--dynamic", metavar="AXIS,...", default="",
        help="axes that may have any size, of batch, height and width (default: none)",
    )  # fmt: skip
    graph.add_argument(
        "--opset", type=int, metavar="N", help="version of the operators, 15 to 21 (default: 17)"
    )


_EXPORT = (
    "At least one of --onnx, --pth and --safetensors. A network by name has weights of a random "
    "start, to look at its graph. docs/exports.md says how to load the files."
)


def _export(arguments: argparse.Namespace) -> int:
    from tinydilate.exporting import write_exports
    from tinydilate.io.onnx import OPSET

    for option in ("size", "dynamic", "opset"):
        if arguments.onnx is None and getattr(arguments, option) not in (None, ""):
            raise ConfigError(
                f"expected --onnx FILE with --{option}, which is of the graph; got none. Add it, "
                f"or leave --{option} out."
            )
    source = _source(arguments)
    shape = source.input_shape
    if arguments.size is not None:
        shape = (*shape[:-2], *parse_size(arguments.size))
    written = write_exports(
        source,
        onnx=arguments.onnx,
        pth=arguments.pth,
        safetensors=arguments.safetensors,
        input_shape=shape,
        dynamic=[axis.strip() for axis in arguments.dynamic.split(",") if axis.strip()],
        opset=OPSET if arguments.opset is None else arguments.opset,
        progress=True,
    )
    value = {"weights": source.origin, "files": [each._asdict() for each in written]}
    show(value, arguments.json, lambda: _table(source, written))
    return 0


def _source(arguments: argparse.Namespace) -> Source:
    from tinydilate.exporting import Source, open_source, with_border
    from tinydilate.io.conversion import describe
    from tinydilate.models import PUBLISHED

    name = arguments.source
    if name not in MODELS:
        _refuse(arguments.classes is not None, "--classes", "a network by name", name)
        hint = meant(name, MODELS)
        if hint and not Path(name).exists():
            raise ConfigError(
                f"expected a run folder, a file of weights or the name of a network; got {name!r}."
                f"{hint}"
            )
        return open_source(name, arguments.network, arguments.border)
    _refuse(arguments.network is not None, "--network", "a run folder", name)
    _refuse(arguments.border and name not in PUBLISHED, "--border", "a published network", name)
    build = argparse.Namespace(model=name, classes=arguments.classes, size=None)
    network, shape = network_of(build, "cpu")
    note = {"published": describe(name)} if name in PUBLISHED else {"model": {"name": name}}
    source = Source(network, note, shape, "a random start")
    return with_border(source, PUBLISHED[name]) if arguments.border else source


def _refuse(given: bool, option: str, what: str, name: str) -> None:
    if given:
        raise ConfigError(f"expected {option} with {what}; got {name}. Leave {option} out.")


def _table(source: Source, written: list[Written]) -> str:
    rows = [("file", "kind", "bytes")]
    rows += [(each.path, each.kind, f"{each.size:,}") for each in written]
    lines = [columns(rows, right=(2,)), "", f"Weights: {source.origin}."]
    for graph in (each.graph for each in written if each.graph):
        for title in ("inputs", "outputs"):
            told = (f"{name} {_shape(shape)}" for name, shape in graph[title].items())
            lines.append(f"{title.capitalize()}: {', '.join(told)}.")
        operators = (f"{count} {kind}" for kind, count in graph["operators"].items())
        lines.append(f"Operators (opset {graph['opset']}): {', '.join(operators)}.")
    return "\n".join(lines)


def _shape(shape: list[Any]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
