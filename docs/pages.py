"""The parts of the documentation that are written from the source when it is built.

* One page for each module: its docstring, what it offers, and the source itself, with line numbers
  that links can point at. Pages of `tinydilate.functional` come out in `ops/`, others in `api/`.
* The directive ``op-table``: kernels and the devices that they run on, from the registry.
* The directive ``paper-to-code``: rows that name a place in the paper and the code that implements
  it. A name that is gone fails the build.

Nothing here has to be told about a new module: the list is read from the package's folder, its
order from the imports, that of the ops from the docstring of `tinydilate.functional`.
"""

from __future__ import annotations

import ast
import re
import shutil
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

import tinydilate
from tinydilate import absent
from tinydilate.autograd import FUNCTIONS
from tinydilate.kernel import KERNELS, Kernel
from tinydilate.see.explore import write_explorer

PACKAGE = Path(tinydilate.__file__).parent
DEVICES = ("numpy", "cpu", "cuda", "meta")

# ---- modules, their order and their pages ----------------------------------------------------


def source_path(module: str) -> Path:
    """``tinydilate.models.contexts`` -> ``.../tinydilate/models/contexts.py``."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(source_path(module).read_text(encoding="utf-8"))


def all_modules() -> list[str]:
    """Return the modules in reading order: each package in one piece, after those that it uses."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] != "__main__":
            names.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    names.remove("tinydilate")
    by_part: dict[str, set[str]] = {}
    for name in names:
        by_part.setdefault(part_of(name), set()).add(name)
    order = []
    for part in in_order({part: set().union(*map(imports, by_part[part])) for part in by_part}):
        package = f"tinydilate.{part}"
        inside = {name: imports(name) for name in by_part[part] - {package}}
        order += [package] * (package in names) + in_order(inside)
    return order


def in_reading_order(ops: list[str]) -> list[str]:
    """Sort the ops as the docstring of `tinydilate.functional` tells to read them.

    Raises
    ------
    LookupError
        If it names other pages than there are.
    """
    text = ast.get_docstring(tree("tinydilate.functional")) or ""
    named = " ".join(text.split()).partition("in this order: ")[2].partition(".")[0]
    order = [f"tinydilate.functional.{name}" for name in named.split(", ")]
    if sorted(order) != sorted(ops):
        raise LookupError(
            f"tinydilate.functional expected to name each page once; named: {named}. Differing: "
            f"{', '.join(sorted(set(order) ^ set(ops))) or 'a page named twice'}."
        )
    return order


def part_of(module: str) -> str:
    """``tinydilate.models.contexts`` -> ``models``."""
    return module.split(".")[1]


def imports(module: str) -> set[str]:
    """Names of what a module imports, at once or later: modules, and the parts that hold them."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tinydilate"):
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
            found.add(str(node.module))
    return found | {part_of(name) for name in found if "." in name}


def in_order(wants: dict[str, set[str]]) -> list[str]:
    """Sort names: each after those that it wants, and as near as can be to those that want it."""
    users: dict[str, set[str]] = {name: set() for name in sorted(wants, reverse=True)}
    for name, wanted in wants.items():
        for used in wanted & wants.keys() - {name}:
            users[used].add(name)
    return list(TopologicalSorter(users).static_order())[::-1]


def page_of(module: str) -> str:
    """Return the document that describes a module: ``ops/convolution``, ``api/models.contexts``."""
    name = module.removeprefix("tinydilate.")
    if name == "functional":
        return "ops/index"
    if name.startswith("functional."):
        return f"ops/{name.removeprefix('functional.')}"
    return f"api/{name}"


def write_pages(docs: Path) -> None:
    """Write `ops/` and `api/`; files that already say the same are left alone."""
    modules = [name for name in all_modules() if name != "tinydilate.functional"]
    pages = {page_of(name): module_page(name) for name in modules}
    ops = in_reading_order([name for name in modules if page_of(name).startswith("ops/")])
    pages["ops/index"] = OPS.format(pages=contents(ops))
    pages["api/index"] = API.format(pages=contents([name for name in modules if name not in ops]))
    for old in [*docs.glob("ops/*.md"), *docs.glob("api/*.md")]:
        if old.relative_to(docs).with_suffix("").as_posix() not in pages:
            old.unlink()
    for name, text in pages.items():
        write(docs / f"{name}.md", text)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def copy_tutorials(source: Path, target: Path) -> None:
    """Copy the tutorials, which live outside of the folder that Sphinx reads.

    Only the Markdown: beside it may lie notebooks that a reader has made of it. Their links lead to
    files of the repository; here they lead to the pages about those.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in source.glob("*.md"):
        text = re.sub(r"\]\(\.\./([^)]+)\)", link_to_page, path.read_text(encoding="utf-8"))
        (target / path.name).write_text(text, encoding="utf-8")


def link_to_page(link: re.Match[str]) -> str:
    """``../tinydilate/simd.py`` -> ``../api/simd.md``, and ``../docs/gpu.md`` -> ``../gpu.md``."""
    path = Path(link[1])
    if path.parts[0] == "docs":
        return f"](../{path.relative_to('docs').as_posix()})"
    return f"](../{page_of('.'.join(path.with_suffix('').parts))}.md)"


def contents(modules: list[str]) -> str:
    """List modules with the first sentence of each, and hand the same list to the navigation."""
    lines, names = [], [page_of(module).partition("/")[2] for module in modules]
    for module, name in zip(modules, names, strict=True):
        text = (ast.get_docstring(tree(module)) or "").partition("\n\n")[0].replace("\n", " ")
        lines.append(f"[{title(module)}]({name}.md)\n: {text}\n")
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *names, "```"])
    return "\n".join([*lines, toctree])


def title(module: str) -> str:
    """``convolution`` -> ``Convolution`` for an op's page; other modules by their import name."""
    name = module.removeprefix("tinydilate.")
    if name.startswith("functional."):
        return name.removeprefix("functional.").replace("_", " ").capitalize()
    return name


OPS = """\
# Ops

One op, one page. Every page is read in the same order: the definition, the NumPy reference that is
the specification, its twins for each device, the derivative, and the public function, which takes
the arguments of its namesake in `torch.nn.functional`.

The pages stand in the order in which they are best read.

{pages}

## Where each kernel runs

The columns are the implementations of a kernel: `numpy` is the reference; `cpu` has its loops in
Numba; `cuda` runs on a GPU; `meta` computes shapes only. A further name is a variant that can be
forced with `tinydilate.kernel.use`. `tinydilate ops` prints the same table.

```{{op-table}}
```
"""

API = """\
# Modules

Every module beside the ops, in the order in which they build on each other. At the end of each page
stands the source.

{pages}
"""


def module_page(module: str) -> str:
    """Write a module's page: its docstring first, its source last."""
    is_op = page_of(module).startswith("ops/")
    options = "" if is_op else "   :members:\n   :show-inheritance:\n"
    parts = [f"# {title(module)}", rst(f".. automodule:: {module}\n{options}")]
    if is_op:
        import_module(module)
        functions = [name for name, value in FUNCTIONS.items() if value.__module__ == module]
        described = "\n".join(f".. autofunction:: {module}.{name}" for name in functions)
        if functions:
            parts += ["## Functions", rst(described)]
        if any(kernel.__module__ == module for kernel in KERNELS.values()):
            parts += ["## Kernels", f"```{{op-table}} {module}\n```"]
    parts += ["## Source", f"```{{source-listing}} {module}\n```"]
    return "\n\n".join(parts) + "\n"


def rst(text: str) -> str:
    return f"```{{eval-rst}}\n{text}\n```"


# ---- places in the source --------------------------------------------------------------------


def line_of(module: str, name: str) -> int:
    """Line at which a module defines ``name``, such as ``Window.output_size``.

    Raises
    ------
    LookupError
        If it does not.
    """
    body: list[ast.stmt] = tree(module).body
    line = 0
    for part in name.split("."):
        node = next((node for node in body if part in defined_by(node)), None)
        if node is None:
            raise LookupError(f"{module} defines no {name}")
        line = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        body = getattr(node, "body", [])
    return line


def defined_by(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {name.id for target in targets for name in ast.walk(target) if is_name(name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name)


def link_to_source(domain: str, info: dict[str, str]) -> str | None:
    """Link from a description to its lines; every page that describes code is one folder deep."""
    try:
        line = line_of(info["module"], info["fullname"])
    except (LookupError, FileNotFoundError):
        return None
    return f"../{page_of(info['module'])}.html#L-{line}"


class SourceListing(SphinxDirective):
    """The source of a module, each line a target."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = source_path(self.arguments[0])
        self.env.note_dependency(path)
        style = HtmlFormatter(
            linenos="inline", linespans="L", lineanchors="", cssclass="highlight", wrapcode=True
        )
        html = highlight(path.read_text(encoding="utf-8"), PythonLexer(), style)
        where = nodes.paragraph("", "", nodes.literal("", relative(path)))
        box = nodes.raw("", f'<div class="page-source">{html}</div>', format="html")
        return [where, box]


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE.parent).as_posix()


# ---- the table of kernels --------------------------------------------------------------------


class OpTable(SphinxDirective):
    """Kernels and their implementations, each linked to its line; of one page, or of all."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = self.arguments[0] if self.arguments else None
        kernels = [k for k in KERNELS.values() if module in (None, k.__module__)]
        names = {name for kernel in kernels for name in kernel.implementations}
        columns = [*DEVICES, *sorted(names - set(DEVICES))]
        rows: list[list[Any]] = [["kernel", "meaning" if module else "page", *columns]]
        for kernel in kernels:
            second = meaning(kernel) if module else kernel.page.replace("_", " ")
            marks = [mark(kernel.implementations.get(name)) for name in columns]
            rows.append([nodes.literal("", kernel.name), second, *marks])
        return [table(rows, "op-table")]


def meaning(kernel: Kernel) -> str:
    """Return the first sentence of a kernel's docstring, as plain text."""
    text = " ".join((kernel.__doc__ or "").partition("\n\n")[0].split())
    return text.replace("`", "").replace("->", "→")


def mark(implementation: Any) -> nodes.Node:
    """Return a tick, linked to the code where it is a function of a page, or a dash."""
    if implementation is None:
        return nodes.Text("–")
    code = getattr(getattr(implementation, "rule", implementation), "__code__", None)
    module = getattr(getattr(implementation, "rule", implementation), "__module__", "")
    if code is None or source_path(module) != Path(code.co_filename):
        return nodes.Text("✓")
    target = f"../{page_of(module)}.html#L-{code.co_firstlineno}"
    return nodes.reference("", "✓", refuri=target, internal=True)


def table(rows: list[list[Any]], style: str) -> nodes.table:
    """Build a table of strings and nodes; the first row is its head."""
    group = nodes.tgroup(cols=len(rows[0]))
    group += [nodes.colspec(colwidth=1) for _ in rows[0]]
    built = []
    for cells in rows:
        row = nodes.row()
        for cell in cells:
            content = cell if isinstance(cell, list) else [cell]
            content = [nodes.Text(part) if isinstance(part, str) else part for part in content]
            row += nodes.entry("", nodes.paragraph("", "", *content))
        built.append(row)
    group += [nodes.thead("", built[0]), nodes.tbody("", *built[1:])]
    return nodes.table("", group, classes=[style])


# ---- from PyTorch to here --------------------------------------------------------------------


class Absent(SphinxDirective):
    """The tables of `tinydilate.absent`: names of PyTorch's, and what to write here."""

    def run(self) -> list[nodes.Node]:
        rows: list[list[Any]] = [["asked of", "in PyTorch", "here"]]
        for owner, names in absent.TABLES.items():
            alike: dict[str, list[str]] = {}
            for name, instead in names.items():
                alike.setdefault(instead, []).append(name)
            for instead, same in alike.items():
                here = nodes.Text(instead) if instead.endswith(".") else nodes.literal("", instead)
                named = [part for name in same for part in (nodes.literal("", name), ", ")][:-1]
                rows.append([owner, named, here])
        return [table(rows, "absent")]


# ---- from the paper to the code --------------------------------------------------------------


class PaperToCode(SphinxDirective):
    """Rows ``place | what it says | module:name, module:name``; ``tinydilate.`` is left out."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        rows: list[list[Any]] = [["paper", "what it says", "code"]]
        for number, text in enumerate(self.content):
            if not text.strip():
                continue
            place, meaning, names = (part.strip() for part in text.split(" | "))
            parsed, messages = self.parse_inline(meaning, lineno=self.lineno + number)
            rows.append([place, [*parsed, *messages], self.links(names)])
        return [table(rows, "paper-to-code")]

    def links(self, names: str) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        for entry in names.split(","):
            page, _, name = entry.strip().partition(":")
            module = f"tinydilate.{page}"
            try:
                path, line = source_path(module), line_of(module, name)
            except (LookupError, FileNotFoundError) as error:
                raise ExtensionError(
                    f"paper_to_code.md expected {module} to define {name}: {error}. "
                    "Name the code that took its place."
                ) from None
            self.env.note_dependency(path)
            root = "../" * self.env.docname.count("/")
            text = f"{relative(path).removeprefix('tinydilate/')}:{line}"
            link = nodes.reference("", "", refuri=f"{root}{page_of(module)}.html#L-{line}")
            link += nodes.literal("", name)
            found += [link, nodes.Text(" "), nodes.inline("", text, classes=["place"])]
            found.append(nodes.raw("", "<br>", format="html"))
        return found[:-1]


# ---- hooks -----------------------------------------------------------------------------------


def formulas(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Show an indented formula in a module's docstring letter by letter, not as a quotation."""
    if what != "module":
        return
    text, inside = [], False  # inside: a list, whose items may have indented paragraphs
    for number, line in enumerate(lines):
        indented = line.startswith("  ")
        if line and not indented:
            inside = line.startswith(("* ", "- ")) or line[:1].isdigit()
        follows_text = number > 0 and not lines[number - 1] and not inside
        opens = indented and follows_text and not previous(text).startswith("  ")
        if opens and not previous(text).endswith("::"):
            text += [".. code-block:: text", ""]
        text.append(line)
    lines[:] = text


def properties(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Undo what napoleon makes of "Number of taps: KH * KW.", which it takes for a type."""
    text = (obj.__doc__ or "") if isinstance(obj, property) else ""
    if text and "---" not in text:
        lines[:] = [*cleandoc(text).splitlines(), ""]


def skip_fields(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out "Alias for field number 0": the class's docstring says what its fields are."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def write_explorer_page(app: Sphinx, problem: Exception | None) -> None:
    """Put the interactive page beside the others, where explore.md shows it."""
    if problem is None and app.builder.format == "html":
        write_explorer(Path(app.outdir) / "explorer.html")


def previous(lines: list[str]) -> str:
    """Return the last line that is not empty."""
    return next((line for line in reversed(lines) if line), "")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("source-listing", SourceListing)
    app.add_directive("op-table", OpTable)
    app.add_directive("paper-to-code", PaperToCode)
    app.add_directive("absent", Absent)
    app.connect("autodoc-process-docstring", formulas)
    app.connect("autodoc-process-docstring", properties, priority=600)  # after napoleon, at 500
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("build-finished", write_explorer_page)
    return {"parallel_read_safe": True}
