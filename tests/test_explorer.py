"""The interactive page: what is in the file; in a browser, that it counts and behaves right."""

import itertools
import json
import math
import re
import shutil
import time
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tinydilate.errors import DataError
from tinydilate.models import DILATIONS, DILATIONS_7, DILATIONS_10
from tinydilate.see.explore import GRIDDING, as_data, examples, explorer_html, write_explorer

ROOT = Path(__file__).parents[1]
CASES = json.loads((Path(__file__).parent / "field_cases.json").read_text(encoding="utf-8"))

# ---- the file, without a browser ---------------------------------------------------------------


class Elements(HTMLParser):
    """All elements of a page with their attributes, and the text of each script."""

    def __init__(self, page):
        super().__init__()
        self.found, self.scripts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.lasttag == "script":
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def page():
    return explorer_html()


def test_the_page_needs_nothing_beside_it(page):
    assert not re.search(r"https?://|//cdn|@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket", page)
    for tag, attributes in Elements(page).found:
        for name in ("src", "href", "action", "data", "poster"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), f"<{tag} {name}={value}>"
    assert "default-src 'none'" in page  # and the browser is told to load nothing


def test_the_page_makes_no_markup_out_of_text(page):
    script = Elements(page).scripts[-1]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", script)
    assert "new Function" not in script


def test_the_examples_arrive_whole(page):
    scripts = Elements(page).scripts
    assert len(scripts) == 2
    assert json.loads(scripts[0]) == examples()
    assert "EXAMPLES<" not in page


def test_examples_are_those_of_the_models():
    dilations = {
        example["name"].split(",")[0]: tuple(
            layer["dilation"] for layer in example["layers"] if layer["kernel"] == 3
        )
        for example in examples()
        if "context module" in example["name"] and "Large" not in example["name"]
    }
    assert dilations == {
        "Table 1": DILATIONS,
        "Dilation7": DILATIONS_7,
        "Dilation8": DILATIONS,
        "Dilation10": DILATIONS_10,
    }
    (front,) = (e for e in examples() if e["name"].startswith("Front end"))
    assert front["size"] == 512 + 2 * 186
    assert [layer["kind"] for layer in front["layers"]].count("pool") == 3


def test_data_can_never_be_markup():
    text = as_data(["</script><script>alert(1)</script>", "<!--", "a & b"])
    assert not set(text) & set("<>&")
    assert json.loads(text) == ["</script><script>alert(1)</script>", "<!--", "a & b"]


def test_it_is_written_whole_or_not_at_all(tmp_path, page):
    write_explorer(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(DataError, match=r"expected to write [\d,]+ bytes to .*Make its folder"):
        write_explorer(tmp_path / "nowhere" / "page.html")


def test_browser_tests_are_left_out_unless_asked_for():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "not browser" in settings["tool"]["pytest"]["addopts"][-1]
    assert any(
        "playwright" in need for need in settings["project"]["optional-dependencies"]["browser"]
    )


# ---- in a browser ------------------------------------------------------------------------------

browser = pytest.mark.browser
MILLISECONDS = 100  # a change with 200 layers


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium: the system's own, or the one that Playwright has installed."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright: pip install tinydilate[browser]"
    )
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    with api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next(filter(None, map(shutil.which, names)), own if Path(own).exists() else None)
        if path is None:
            pytest.skip("needs Chromium: install it, or run python -m playwright install chromium")
        # The sandbox wants rights that a container often has not; the only page is our own file.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    write_explorer(path)
    return path.as_uri()


@pytest.fixture
def visit(chromium, address):
    """Open the page with a link; afterwards: nothing was loaded, nothing complained."""
    contexts, heard, asked = [], [], []

    def open_page(link="", **options):
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: asked.append(request.url.partition("#")[0]))
        page.goto(address + link)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert heard == []
    assert set(asked) <= {address}


def link_of(layers, channels=1, size=64):
    """The link that the page itself would write."""

    def text(layer):
        parts = [("d", layer["dilation"], 1), ("s", layer["stride"], 1), ("p", layer["padding"], 0)]
        kind = {"conv": "c", "pool": "m"}[layer["kind"]]
        return (
            kind + str(layer["kernel"]) + "".join(f"{a}{v}" for a, v, usual in parts if v != usual)
        )

    return f"#stack={'.'.join(map(text, layers))}&channels={channels}&size={size}"


def plain(*dilations, kernel=3):
    return [
        {
            "kind": "conv",
            "kernel": kernel,
            "dilation": d,
            "stride": 1,
            "padding": d * (kernel - 1) // 2,
        }
        for d in dilations
    ]


def go(page, link):
    """Follow a link within the page and wait for its turn, unless the page is there already."""
    page.evaluate(
        "link => location.hash === link || new Promise(done => { addEventListener('hashchange', "
        "() => setTimeout(done), { once: true }); location.hash = link; })",
        link,
    )


def value(page, name):
    return float(page.get_attribute(f"#n-{name}", "data-value"))


def error_of(page):
    return page.inner_text("#error")


def wait_for(page, place, text):
    """Sentences come when the pointer has rested for a moment."""
    page.locator(place).filter(has_text=text).wait_for(timeout=5000)


def columns_of(page):
    """The set of columns that the page says are read: "0-4, 6" as numbers."""
    text = page.inner_text("#columns")
    runs = [] if text == "none" else [run.split("–") for run in text.split(", ")]
    return {y for run in runs for y in range(int(run[0]), int(run[-1]) + 1)}


def read_by(layers, size, output):
    """Columns that an output reads, by the tap rule, layer by layer; padding reads nothing."""
    sizes = [size]
    for layer in layers:
        extent = layer["dilation"] * (layer["kernel"] - 1) + 1
        sizes.append((sizes[-1] + 2 * layer["padding"] - extent) // layer["stride"] + 1)
    seen = {output}
    for layer, side in zip(reversed(layers), reversed(sizes[:-1]), strict=True):
        taps = range(layer["kernel"])
        seen = {
            i * layer["stride"] - layer["padding"] + u * layer["dilation"]
            for i in seen
            for u in taps
        }
        seen = {y for y in seen if 0 <= y < side}
    return seen


@browser
def test_the_numbers_of_every_case(visit):
    page = visit()
    for case in CASES:
        go(page, link_of(case["layers"], size=4096))
        assert error_of(page) == "", case["name"]
        found = [value(page, name) for name in ("extent", "stride", "centre", "reached")]
        expected = [case[name] for name in ("extent", "stride", "centre", "reached")]
        assert found == expected, case["name"]
        share = float(page.get_attribute("#n-reached", "data-share"))
        assert math.isclose(share, case["share_2d"], rel_tol=1e-12), case["name"]


@browser
def test_every_example_opens_and_its_link_leads_back(visit, address):
    page, other = visit(), visit()
    for number, example in enumerate(examples()):
        page.select_option("#example", str(number))
        assert error_of(page) == ""
        assert page.inner_text("#about") == example["about"]
        link = page.input_value("#link")
        assert link.startswith(address + "#stack=")
        go(other, "#" + link.partition("#")[2])
        assert other.input_value("#example") == str(number)
        for name in ("extent", "parameters", "macs", "sigma", "size"):
            assert value(other, name) == value(page, name)


@browser
def test_what_the_papers_networks_cost_and_see(visit):
    page = visit()
    names = [example["name"] for example in examples()]

    def choose(start):
        page.select_option(
            "#example", str(next(n for n, name in enumerate(names) if start in name))
        )

    choose("Basic")
    assert value(page, "parameters") == 28392
    assert value(page, "macs") == 64 * 21 * 21 * 64 * 64  # 64 C*C weights at each of 64 x 64 cells
    assert abs(value(page, "sigma") - 15.12) < 0.005
    assert "56 of the 67 pixels" in page.inner_text("#effective-say")
    choose("Large")
    assert value(page, "parameters") == 6803139
    choose("Front end")
    assert (value(page, "extent"), value(page, "stride"), value(page, "size")) == (380, 8, 64)
    assert value(page, "centre") == 189.5
    assert abs(value(page, "sigma") - 69.14) < 0.005
    assert "248 of the 380 pixels" in page.inner_text("#effective-say")
    assert value(page, "parameters") == 134_346_581 - (4096 * 21 + 21)  # all but the last layer
    choose("front end and context")
    assert value(page, "extent") == 908


@browser
def test_hovering_shows_what_that_output_reads(visit):
    stacks = [
        (plain(1, 2, 4), 32),
        (plain(2, 2, 2), 32),
        (plain(1, 2, 9), 32),
        ([{"kind": "conv", "kernel": 3, "dilation": 2, "stride": 2, "padding": 2},
          {"kind": "pool", "kernel": 2, "dilation": 1, "stride": 2, "padding": 0}], 48),
    ]  # fmt: skip
    page = visit()
    for layers, size in stacks:
        go(page, link_of(layers, size=size))
        box = page.locator("#map").bounding_box()
        for across, down in [(0.3, 0.5), (0.5, 0.6), (0.72, 0.4)]:
            spot = {"x": across * box["width"], "y": down * box["height"]}
            page.locator("#map").hover(position=spot)
            page.evaluate("() => new Promise(requestAnimationFrame)")
            row, column = map(int, page.get_attribute("#map", "data-output").split(","))
            assert columns_of(page) == read_by(layers, size, column)
        rows, columns = len(read_by(layers, size, row)), len(columns_of(page))
        wait_for(page, "#map-say", f"({row}, {column}) reads {rows} × {columns}")


@browser
def test_an_output_at_the_border_reads_less(visit):
    layers = plain(1, 2, 4)
    page = visit(link_of(layers, size=32))
    page.fill("#row", "0")
    page.fill("#column", "31")
    assert columns_of(page) == read_by(layers, 32, 31) == set(range(24, 32))
    wait_for(page, "#map-say", "fall on padding")


@browser
def test_the_keyboard_chooses_holds_and_lets_go(visit):
    layers = plain(2, 2, 2)
    page = visit(link_of(layers, size=32))
    page.focus("#map")
    page.keyboard.press("Home")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Shift+ArrowRight"):
        page.keyboard.press(key)
    assert page.get_attribute("#map", "data-output") == "1,12"
    assert columns_of(page) == read_by(layers, 32, 12)

    # From row 1 three of seven paths back to it lead through padding above the image.
    page.keyboard.press("Enter")
    wait_for(page, "#pixel-say", "Pixel (1, 12) is read along 4 × 7 = 28 paths")
    page.keyboard.press("ArrowRight")
    wait_for(page, "#pixel-say", "(1, 13) is a hole: no path leads to it")
    assert page.get_attribute("#map", "data-output") == "1,12"
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#map", "data-output") == "1,11"
    page.focus("#tree")
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#map", "data-output") == "1,10"


@browser
def test_sliders_move_the_dilations(visit):
    page = visit(link_of(plain(1, 1, 1), size=32))
    sliders = page.locator("#layers input[type=range]")
    for layer, dilation in enumerate((2, 4, 8)):
        sliders.nth(layer).fill(str(dilation))
    assert (value(page, "extent"), value(page, "reached")) == (29, 15)
    assert value(page, "size") == 32  # the padding has followed
    assert "26.8 %" in page.inner_text("#holes-exact")
    page.uncheck("#follow")
    sliders.nth(2).fill("1")
    assert value(page, "size") == 32 + 14
    sliders.nth(0).focus()
    page.keyboard.press("ArrowLeft")
    assert value(page, "extent") == 1 + 2 * (1 + 4 + 1)


@browser
def test_the_rule_stands_beside_the_exact_answer(visit):
    page = visit()

    def distance(rates):  # Wang et al., section 3.2, written anew
        found = rates[-1]
        for rate in rates[-2:0:-1]:
            found = max(found - 2 * rate, found - 2 * (found - rate), rate)
        return found

    for rates in [*(rates for rates, _ in GRIDDING), *itertools.product((1, 2, 3, 5), repeat=3)]:
        go(page, link_of(plain(*rates), size=32))
        layers = plain(*rates)
        holed = len(read_by(layers, 64, 32)) < 1 + 2 * sum(rates)
        accepted = distance(rates) <= 3
        text = page.inner_text("#rule")
        assert f"M₂ = {distance(rates)} is" in text
        assert ("it accepts" in text) == accepted, rates
        assert ("it agrees" in text) == (accepted != holed), rates
        assert ("field has holes" in page.inner_text("#summary")) == holed, rates
    go(page, link_of([*plain(1), {**plain(1)[0], "stride": 2}], size=32))
    assert "does not apply" in page.inner_text("#rule")


@browser
def test_layers_can_be_edited_and_seen_from(visit):
    page = visit("#stack=&channels=3&size=32")
    assert "Without a layer" in page.inner_text("#summary")
    page.click("#add-conv")
    page.click("#add-pool")
    page.click("#add-conv")
    assert page.locator("#layers li").count() == 3
    assert (value(page, "extent"), value(page, "stride")) == (
        12,
        2,
    )  # a new layer doubles the dilation
    page.locator("#depth").fill("1")
    assert value(page, "extent") == 3
    page.click("[aria-label='Remove layer 2']")
    assert page.evaluate("document.activeElement.ariaLabel") == "Remove layer 2"
    page.click("[aria-label='Move layer 2 up']")
    assert page.input_value("#link").endswith("#stack=c3d2p2.c3p1&channels=3&size=32")
    page.click("#numbers summary")
    cells = page.locator("#table tr").last.inner_text().split("\t")
    assert cells[2:8] == ["7", "7", "100 %", "100 %", "1", "0"]


@browser
def test_wrong_numbers_are_refused_in_a_sentence_and_undone(visit):
    page = visit(link_of(plain(1, 2), size=32))
    page.locator("#layers details").first.evaluate("element => (element.open = true)")
    kernel = page.locator("[aria-label='Layer 1, kernel']")
    for wrong in ("0", "99", "2.5", "-3", ""):
        kernel.fill(wrong)
        assert re.search("Expected kernel, a whole number from 1 to 31; got ", error_of(page))
        assert kernel.get_attribute("aria-invalid") == "true"
        assert value(page, "extent") == 7  # the last stack that made sense
    kernel.blur()
    assert kernel.input_value() == "3"
    kernel.fill("5")
    assert error_of(page) == ""
    assert value(page, "extent") == 9
    page.fill("#size", "1")
    page.uncheck("#follow")
    page.locator("[aria-label='Layer 1, padding']").fill("0")
    page.locator("#layers details").nth(1).evaluate("element => (element.open = true)")
    page.locator("[aria-label='Layer 2, padding']").fill("0")
    wait_for(page, "#map-say", "one output needs 9")


HOSTILE = {
    "#stack=<img src=x onerror=alert(1)>": "did not understand “",
    "#stack=<svg>": "layer 1 is “",
    "#stack=c3&<script>alert(1)</script>": "did not understand “",
    "#stack=c3&size=64&size=65": "did not understand “size=65”",
    "#stack=c3&__proto__=1": "did not understand “__proto__=1”",
    "#stack=c3&constructor": "did not understand “constructor”",
    "#size=64": "this one has none",
    "#stack=c0": "Layer 1: Expected kernel, a whole number from 1 to 31; got 0.",
    "#stack=c3d99999": "Layer 1: Expected dilation",
    "#stack=c3p1.c3s99": "Layer 2: Expected stride",
    "#stack=c3p5000": "Layer 1: Expected padding",
    "#stack=m2s2f3": "a pooling has no maps of its own",
    "#stack=c3f0": "Layer 1: Expected maps",
    "#stack=c3d-1": "layer 1 is “c3d-1”",
    "#stack=c3d1.5": "layer 2 is “5”",
    "#stack=c3e9": "layer 1 is “c3e9”",
    "#stack=c%33": "layer 1 is “c%33”",
    "#stack=c3&size=1e3": "Expected size",
    "#stack=c3&size=99999": "Expected size, a whole number from 1 to 4,096; got 99999.",
    "#stack=c3&channels=": "Expected channels",
    "#stack=" + ".".join(["c3"] * 257): "Expected at most 256 layers; got 257.",
    "#stack=" + "c3." * 4000: "Expected a link of at most 8,192 letters",
    "#stack=" + ".".join(["c31d1024s16"] * 40): "Expected a field of at most 9,007,199,254,740,991",
}  # fmt: skip


@browser
def test_bad_links_get_a_sentence_and_the_first_example(visit):
    for link, expected in HOSTILE.items():
        page = visit(link)
        said = error_of(page)
        assert said.startswith("This link does not work. ") or "field of at most" in said, link
        assert expected in said, link
        assert value(page, "extent") == 67
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 2
    page = visit(link_of(plain(1, 2)))
    go(page, "#stack=zzz")  # a bad link within the page keeps the stack that is there
    assert "layer 1 is “zzz”" in error_of(page)
    assert value(page, "extent") == 7


@browser
def test_a_link_followed_just_after_a_change_is_not_lost(visit):
    """The page writes its own link a moment after a change, and must not overwrite a newer one."""
    page = visit(link_of(plain(1, 2)))
    moves = "history.replaceState(null, '', toLink(state.stack))"  # as the late write does
    page.evaluate(f"link => {{ location.hash = link; {moves}; }}", link_of(plain(1, 2, 4)))
    page.locator("#n-extent[data-value='15']").wait_for(timeout=5000)


@browser
def test_large_stacks_are_answered_without_being_drawn(visit):
    page = visit("#stack=" + ".".join(["c9d1024p4096"] * 12) + "&channels=1&size=4096")
    assert value(page, "extent") == 1 + 12 * 8 * 1024
    assert "not counted" in page.inner_text("#n-reached")
    wait_for(page, "#map-say", "too large to draw")


@browser
@pytest.mark.parametrize("width", [320, 390, 768, 900, 1280])
def test_no_width_scrolls_sideways(visit, width):
    phone = width < 700
    page = visit("", viewport={"width": width, "height": 640}, is_mobile=phone, has_touch=phone)
    for number in range(len(examples())):
        page.select_option("#example", str(number))
        page.evaluate("document.querySelectorAll('details').forEach(d => (d.open = true))")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@browser
def test_a_finger_chooses_and_then_holds(visit):
    layers = plain(1, 2, 4)
    options = {"viewport": {"width": 320, "height": 640}, "is_mobile": True, "has_touch": True}
    page = visit(link_of(layers, size=32), **options)
    spot = {"x": 100, "y": 120}
    page.locator("#map").tap(position=spot)
    row, column = map(int, page.get_attribute("#map", "data-output").split(","))
    assert (row, column) != (16, 16)
    assert columns_of(page) == read_by(layers, 32, column)
    page.locator("#map").tap(position=spot)
    wait_for(page, "#pixel-say", "Held.")


@browser
def test_every_control_has_a_name_and_can_be_reached(visit):
    page = visit()
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, select, canvas')].filter(e => "
        "!e.closest('[aria-hidden=true]') && !e.ariaLabel && !e.labels?.length "
        "&& !e.textContent.trim() && !e.getAttribute('aria-labelledby')).map(e => e.outerHTML)"
    )
    assert nameless == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.ariaLabel"))
    assert seen[:4] == ["example", "size", "channels", "follow"]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # where the focus is can be seen
    live = page.evaluate("[...document.querySelectorAll('[aria-live=polite]')].map(e => e.id)")
    assert live == ["summary", "map-say", "pixel-say"]


@browser
def test_dark_pages_are_dark_and_text_stands_out(visit):
    for scheme, dark in (("light", False), ("dark", True)):
        page = visit("", color_scheme=scheme)
        colours = page.evaluate(
            "['paper', 'card', 'ink', 'muted', 'vermilion'].map(n => "
            "getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim())"
        )
        paper, card, *texts = map(luminance, colours)
        assert (paper < 0.1) == dark
        for text in texts:
            for ground in (paper, card):
                bright, dim = max(text, ground), min(text, ground)
                assert (bright + 0.05) / (dim + 0.05) >= 4.5  # WCAG, level AA


def luminance(colour):
    """Relative luminance of "#rrggbb", as WCAG defines it."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


TIMED = """
dilation => new Promise(done => {
  const slider = document.querySelectorAll("#layers input[type=range]")[100];
  const began = performance.now();
  slider.value = dilation;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
})
"""


@browser
@pytest.mark.parametrize("width", [320, 1280])
def test_a_change_with_200_layers_takes_less_than_100_ms(visit, width):
    """From the slider to the next frame laid out and painted: the best of several changes."""
    page = visit(link_of(plain(*[1, 2] * 100)), viewport={"width": width, "height": 800})
    assert value(page, "extent") == 601
    times = []
    for change in range(8):
        times.append(page.evaluate(TIMED, 3 + change % 2))
        time.sleep(0.05)  # let other processes of a busy machine have their turn
    assert value(page, "extent") == 601 + 2 * 3
    assert min(times) < MILLISECONDS, times
