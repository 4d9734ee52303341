"""The tutorials run from top to bottom, ask before they answer, and cannot be guessed."""

import ast
import copy
import os
import re
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pytest

import tinydilate
import tinydilate.functional as F
from tinydilate import Op, absent, nn, optim

FOLDER = Path(__file__).parents[1] / "tutorials"
FROM_PYTORCH = FOLDER.parent / "docs" / "different_from_pytorch.md"
TUTORIALS = sorted(FOLDER.glob("[0-9]*.md"))

CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONS = re.compile(r"\A---\n(.*?)^---\n", re.MULTILINE | re.DOTALL)
PREDICTION = re.compile(r"^> ✎ \*\*Predict\.\*\*", re.MULTILINE)
EXERCISE = re.compile(r"^### Exercise (\d\.\d): .*\(about (\d+) lines?\)$", re.MULTILINE)
IMAGE = re.compile(r'<img src="([^"]+)" width="\d+" alt="([^"]+)">')

each_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=[path.stem for path in TUTORIALS])


def to_play(path):
    """A page with kernels for the GPU runs on one, or in the simulator: `make simulator`."""
    on_gpu = "cuda.jit" in path.read_text(encoding="utf-8")
    return pytest.param(path, id=path.stem, marks=[pytest.mark.gpu] * on_gpu)


each_played_tutorial = pytest.mark.parametrize("path", [to_play(p) for p in TUTORIALS])


class Cell(NamedTuple):
    """A code cell: the line of the file at which its code begins, its options, its code."""

    line: int
    options: str
    code: str


def cells(path, after=0):
    """The code cells of a tutorial, those after a position in its text."""
    text = path.read_text(encoding="utf-8")
    for found in CELL.finditer(text, after):
        options = OPTIONS.match(found[1])
        start = found.start(1) + (options.end() if options else 0)
        line = text.count("\n", 0, start) + 1
        yield Cell(line, options[1] if options else "", text[start : found.end(1)])


def run(path, folder):
    """Execute all cells in one namespace; a traceback names the line in the tutorial's own file."""
    namespace = {"__name__": "tutorial"}
    plt.switch_backend("agg")
    # Pictures are saved where the reader is; what a page sets in the environment ends with it.
    with chdir(folder), patch.dict(os.environ):
        for cell in cells(path):
            lead = "\n" * (cell.line - 1)
            exec(compile(lead + cell.code, str(path), "exec"), namespace)
    plt.close("all")
    return namespace


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Run a tutorial once; the tests that ask again get the names that it left."""
    namespaces = {}

    def play(path):
        if path not in namespaces:
            folder = tmp_path_factory.mktemp(path.stem)
            namespaces[path] = run(path, folder)
            namespaces[path]["pictures"] = {picture.name for picture in folder.iterdir()}
        return namespaces[path]

    return play


def test_there_are_tutorials_and_the_index_lists_them():
    assert [path.stem[0] for path in TUTORIALS] == [str(n + 1) for n in range(len(TUTORIALS))]
    assert len(TUTORIALS) >= 7
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^(\d_\w+)$", index, re.MULTILINE)
    assert listed == [path.stem for path in TUTORIALS]
    assert re.findall(r"\]\((\d_\w+)\.md\)", index) == listed


@each_played_tutorial
def test_it_runs_and_draws_the_pictures_that_it_shows(path, played, capsys):
    shown = IMAGE.findall(path.read_text(encoding="utf-8"))
    assert {name for name, _ in shown} == played(path)["pictures"]
    assert all(len(description.split()) > 5 for _, description in shown)


@each_tutorial
def test_its_cells_are_short_and_fit_the_page(path):
    for cell in cells(path):
        lines = cell.code.splitlines()
        room = 90 if "hide" in cell.options else 92  # letters; a folded cell has a frame
        assert len(lines) <= 30, f"{path.name}:{cell.line} has {len(lines)} lines"
        assert max(map(len, lines)) <= room, f"{path.name}:{cell.line} is too broad"


@each_tutorial
def test_each_prediction_is_followed_by_a_folded_answer_that_checks_it(path):
    text = path.read_text(encoding="utf-8")
    predictions = [found.start() for found in PREDICTION.finditer(text)]
    assert len(predictions) >= 4
    answers = {next(cells(path, after=start)) for start in predictions}
    assert len(answers) == len(predictions)  # each has an answer of its own
    assert {cell for cell in cells(path) if "hide-cell" in cell.options} == answers
    for answer in answers:
        assert re.search(r"^ *(assert|print)\b", answer.code, re.MULTILINE)


@each_played_tutorial
def test_each_exercise_is_of_the_size_that_it_says(path, played, capsys):
    text = path.read_text(encoding="utf-8")
    exercises = list(EXERCISE.finditer(text))
    assert len(exercises) == text.count("### Exercise") >= 2
    for found in exercises:
        assert found[1][0] == path.name[0]
        following = list(cells(path, after=found.end()))
        place = next(n for n, cell in enumerate(following) if "hide-input" in cell.options)
        stub = "\n".join(cell.code for cell in following[:place])
        solution = following[place].code
        (check,) = re.findall(r"^def (check_\w+)\(", stub, re.MULTILINE)
        assert re.search(rf"^# {check}\(", stub, re.MULTILINE)  # the line for the student
        assert re.search(rf"^{check}\(", solution, re.MULTILINE)
        size = sum(body_lines(node) for node in ast.parse(solution).body[:1])
        assert size <= int(found[2]) + 2, f"exercise {found[1]} says {found[2]}, takes {size}"
        assert check in played(path)


def body_lines(node):
    """Lines of code that a student has to write: function bodies, without their docstrings."""
    functions = [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef)]
    bodies = [f.body[1:] if ast.get_docstring(f) else f.body for f in functions]
    return sum(statements[-1].end_lineno - statements[0].lineno + 1 for statements in bodies)


def named(number):
    """A tutorial by its number."""
    return TUTORIALS[number - 1]


def test_layers_are_counted_from_one_in_the_picture_of_growth(played, capsys):
    stack = played(named(6))["stack"]([1, 2])
    assert [name for name, _ in stack.named_children()] == ["layer1", "layer2"]


def test_the_picture_of_labels_says_which_colour_is_which_digit(played, tmp_path, capsys):
    names = played(named(7))
    with patch.object(plt, "close"):
        names["draw"](1, tmp_path / "a.png")
    (legend,) = plt.gcf().legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == [*names["digits"].CLASSES, "does not count"]
    plt.close("all")


# ---- the checks of the exercises can fail ----------------------------------------------------


def logistic(slope):
    class Wrong(Op):
        def forward(self, x):
            self.s = 1 / (1 + np.exp(-x))
            return self.s

        def backward(self, grad):
            return grad * slope(self.s)

    return Wrong


def oldest_first(result):
    gradients, waiting = {}, {result.op: np.ones_like(result.data)}
    while waiting:
        op = min(waiting, key=lambda op: op.number)
        for source, part in zip(op.inputs, op.input_gradients(waiting.pop(op)), strict=True):
            book, key = (gradients, source) if source.op is None else (waiting, source.op)
            book[key] = book.get(key, 0) + part
    return gradients


def turned(w):
    return w.data[:, :, ::-1, ::-1]


def weight_gradient(x, G, dilation):
    columns = F.unfold(x, 3, dilation=dilation).data
    return (G.reshape(len(G), -1) @ columns.T).reshape(len(G), len(x), 3, 3)


def widest_tile(registers, key=lambda m, v: m * v / (m + v)):
    sizes = range(1, registers)
    tiles = [(m, v) for m in sizes for v in sizes if m * v + v + 1 <= registers]
    return max(tiles, key=lambda tile: key(*tile))


def blocks_for_phases(ordinary, row, dilation):
    return np.concatenate([ordinary(part) for part in np.array_split(row, dilation)])


def in_one_piece(me, threads, rows, columns):
    pixels = list(np.ndindex(rows, columns))
    each = -(-len(pixels) // threads)
    return pixels[me * each : (me + 1) * each]


def field_of(dilations, taps):
    seen = {0}
    for d in dilations:
        seen = {place + tap * d for place in seen for tap in taps}
    return seen


def strided_extent(layers):
    jumps = np.cumprod([1, *(stride for _, stride, _ in layers)])
    return 1 + sum((k - 1) * d * j for (k, _, d), j in zip(layers, jumps, strict=False))


def dilated(layers, doubling, grown=lambda d: 2 * d):
    dilation, found = 1, []
    for layer in layers:
        dilation = grown(dilation) if layer in doubling else dilation
        found += [dilation] if layer == "conv" else []
    return found


NO_ANSWER = (AssertionError, AttributeError, IndexError, TypeError, ValueError)

# Wrong answers that students, and this field's libraries, have really given.
WRONG = {
    "check_output_size": [
        lambda size, k, s, p, d: (size + 2 * p - d * (k - 1) - 1) // s,  # no place for the first
        lambda size, k, s, p, d: (size + p - d * (k - 1) - 1) // s + 1,  # padding on one side
        lambda size, k, s, p, d: (size + 2 * p - d * k) // s + 1,  # extent d*k
        lambda size, k, s, p, d: (size + 2 * p - (d * k - 1)) // s + 1,  # extent d*k - 1
        lambda size, k, s, p, d: (size + 2 * p - k) // s + 1,  # dilation forgotten
        lambda size, k, s, p, d: -(-(size + 2 * p - d * (k - 1) - 1) // s) + 1,  # rounded up
    ],
    "check_extent": [
        lambda dilations: 1 + sum(dilations),
        lambda dilations: 2 ** (len(dilations) + 1) - 1,  # right for 1, 2, 4 only
        lambda dilations: 2 * sum(dilations),
        lambda dilations: 2 * max(dilations) + 1,
    ],
    "check_sorted_walk": [oldest_first],
    "check_logistic": [
        logistic(lambda s: s),
        logistic(lambda s: 1 - s),
        logistic(lambda s: -s * (1 - s)),
        logistic(lambda s: 1.001 * s * (1 - s)),
    ],
    "check_convolution": [
        lambda x, w, d: F.conv2d(x, turned(w), dilation=d),  # taps counted backwards
        lambda x, w, d: F.conv2d(x, w, padding=d, dilation=d),
        lambda x, w, d: F.conv2d(x, w, dilation=1),
    ],
    "check_weight_gradient": [
        lambda x, G, d: weight_gradient(x, G, d)[:, :, ::-1, ::-1],
        lambda x, G, d: weight_gradient(x, G, d).swapaxes(2, 3),
        lambda x, G, d: weight_gradient(x, G, d) / G[0].size,  # the mean over pixels
        lambda x, G, d: weight_gradient(x, abs(G), d),
    ],
    "check_best_tile": [
        lambda registers: (registers - 2, 1),  # as tall as it can be
        lambda registers: (1, (registers - 1) // 2),  # as wide
        lambda registers: (8, 3),
        lambda registers: widest_tile(registers + 1),  # no register for the weight
        lambda registers: widest_tile(registers, key=lambda m, v: m * v),  # the most sums
    ],
    "check_dilated_row": [
        lambda ordinary, row, d: ordinary(row),
        lambda ordinary, row, d: np.repeat(ordinary(row[::d]), d)[: len(row) - 2 * d],
        blocks_for_phases,
        lambda ordinary, row, d: np.concatenate([ordinary(row[p::d]) for p in range(d)]),
    ],
    "check_fair_share": [
        in_one_piece,  # each thread a stripe: fair, and not coalesced
        lambda me, threads, rows, columns: [divmod(me, columns)],  # as if there were enough
        lambda me, threads, rows, columns: [
            (n % rows, n // rows)
            for n in range(me, rows * columns, threads)  # down the columns
        ],
        lambda me, threads, rows, columns: list(np.ndindex(rows, columns)) if me == 0 else [],
    ],
    "check_output_of": [
        lambda block, thread, threads, d: block * threads + thread,
        lambda block, thread, threads, d: block * threads + thread * d,
        lambda block, thread, threads, d: block % d + thread * d,  # the first part again and again
        lambda block, thread, threads, d: (block * threads + thread) * d,
    ],
    "check_field": [
        lambda dilations: range(-sum(dilations), sum(dilations) + 1),  # all that it spans
        lambda dilations: {sign * d for d in dilations for sign in (-1, 0, 1)},  # no paths
        lambda dilations: field_of(dilations, (0, 1)),  # to one side only
        lambda dilations: field_of(dilations, (-1, 1)),  # the middle tap forgotten
    ],
    "check_strided_extent": [
        lambda layers: 1 + sum((k - 1) * d for k, _, d in layers),  # strides forgotten
        lambda layers: 1 + sum((k - 1) * d * s for k, s, d in layers),  # a layer's own stride
        lambda layers: strided_extent(layers[::-1]),  # the last layer first
        lambda layers: strided_extent([(k, s, 1) for k, s, _ in layers]),
    ],
    "check_dilations": [
        lambda layers: [1] * layers.count("conv"),  # poolings gone, and nothing else
        lambda layers: dilated(layers, ("gone", "pool")),  # for poolings that are there as well
        lambda layers: dilated(layers, ("gone",), lambda d: d + 1),
        lambda layers: dilated(layers[::-1], ("gone",))[::-1],  # before it, not behind
    ],
    "check_middle": [
        lambda field, step, border, i: i * step,  # where the labels were taken
        lambda field, step, border, i: i * step + (field - 1) / 2,  # of the bordered image
        lambda field, step, border, i: i * step - border + field / 2,
        lambda field, step, border, i: i * step - border + (field - 1) // 2,
        lambda field, step, border, i: (i - border) * step + (field - 1) / 2,
    ],
}


@each_played_tutorial
def test_what_is_wrong_does_not_pass(path, played, capsys):
    names = played(path)
    checks = {name: value for name, value in names.items() if name.startswith("check_")}
    assert checks
    for name, check in checks.items():
        (stub,) = (names[key] for key in names if key.lower() == name.removeprefix("check_"))
        for guess in (stub, lambda *_: 0, lambda *_: 1, lambda *_: np.ones(1), lambda *a: a[0]):
            with pytest.raises(NO_ANSWER):
                check(guess)
        for wrong in WRONG[name]:
            with pytest.raises(AssertionError) as stop:
                check(wrong)
            assert len(str(stop.value)) > 10, f"{name} says nothing about what it expected"


LINKS = {
    (path.name, link)
    for path in FOLDER.glob("*.md")
    for link in re.findall(r"\]\((\w+\.md|\.\./[\w./-]+)\)", path.read_text(encoding="utf-8"))
}


@pytest.mark.parametrize(("page", "link"), sorted(LINKS))
def test_a_link_leads_somewhere_without_building_the_documentation(page, link):
    assert (FOLDER / page).parent.joinpath(link).exists()


# What the last table of docs/different_from_pytorch.md tells the reader to write.
INSTEAD = re.compile(r"^\| `[^|]*\| (`.*) \|$", re.MULTILINE)


def test_the_page_for_those_who_know_pytorch_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(FROM_PYTORCH, tmp_path)
    instead = FROM_PYTORCH.read_text(encoding="utf-8").partition("## What is not here")[2]
    lines = [code for row in INSTEAD.findall(instead) for code in re.findall(r"`([^`]+)`", row)]
    assert len(lines) == 3
    for line in lines:
        assert eval(line, names) is not None, line
    names["save_checkpoint"]("net.safetensors", names["net"].state_dict())
    names |= {"y": names["x"], "maps": tinydilate.tensor(np.zeros((1, 1, 8, 8), np.float32))}
    names |= {"optim": optim, "optimizer": optim.SGD(names["net"].parameters(), 0.1)}
    names |= {"self": nn.ReLU(), "module": nn.ReLU()}
    lines = {line for table in absent.TABLES.values() for line in table.values()}
    for line in sorted(lines):
        if not line.endswith(".") and '.to("cuda")' not in line:
            exec(line, names | {"net": copy.deepcopy(names["net"])})
