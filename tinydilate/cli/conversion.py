"""``convert``: weights of others, written as ours."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tinydilate.cli.common import columns, command, show

if TYPE_CHECKING:
    from tinydilate.io.conversion import Conversion


def add(commands: Any) -> None:
    """The command convert."""
    parser = command(commands, "convert", _convert, "Convert weights to safetensors", _CONVERT)
    parser.add_argument(
        "source", metavar="IN", help=".caffemodel, .pth, .npz or safetensors, told by the content"
    )
    parser.add_argument("target", metavar="OUT", help="file to write, such as voc.safetensors")
    parser.add_argument(
        "--as", dest="network", metavar="NETWORK",
        help="what the weights are for: dilation8_voc, dilation8_camvid, dilation7_kitti, "
        "dilation10_cityscapes or vgg16 (default: told by the names of the layers)",
    )  # fmt: skip
    parser.add_argument(
        "--part", default="whole", choices=("whole", "front end"),
        help="of the network named by --as, all or the front end alone (default: whole)",
    )  # fmt: skip
    parser.add_argument(
        "--colours", choices=("torchvision", "caffe"),
        help="what a file with torchvision's names was trained on: red, green, blue from 0 to 1, "
        "or blue, green, red from 0 to 255 (default: torchvision)",
    )  # fmt: skip


_CONVERT = (
    "Nothing in the file is carried out. Every layer of the network has to be there, in its shape; "
    "the table says where each came from."
)


def _convert(arguments: argparse.Namespace) -> int:
    from tinydilate.io.conversion import convert_weights

    done = convert_weights(
        arguments.source, arguments.target, arguments.network,
        part=arguments.part, colours=arguments.colours, progress=True,
    )  # fmt: skip
    show(done.to_dict(), arguments.json, lambda: _table(done))
    return 0


def _table(done: Conversion) -> str:
    report = done.report
    rows = [["array", "shape", "in the file", "shape there", "numbers"]]
    for each in report.loaded:
        shapes = [" x ".join(map(str, shape)) for shape in (each.shape, each.source_shape)]
        rows.append([each.name, shapes[0], each.source, shapes[1], each.dtype])
    kind = done.network or "none of the paper's networks: converted as it is"
    lines = [columns(rows), "", f"{report.path} ({report.format}): {kind}"]
    if report.folded:
        lines.append("Colours: torchvision's were put into conv1_1, which takes Caffe's now")
    if report.missing:
        lines.append(f"Not in the file, and fixed in the network: {', '.join(report.missing)}")
    if report.left_over:
        lines.append(f"Left over: {', '.join(report.left_over)}")
    lines += [f"SHA-256 of the source: {done.sha256}", f"Written: {done.target}"]
    return "\n".join(lines)
