"""The site in docs/ as a reader meets it, in headless Chromium: it loads, fits, can be read and searched, in light, in dark and on a phone.

ASYMCL_SITE names another folder to test, such as a copy of docs/ that was broken on purpose."""

import importlib
import inspect
import json
import os
import posixpath
import re
import shutil
import threading
import tomllib
from collections import Counter
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
import torch

from fastai.callback.core import Callback

from asymcl.losses import asymmetric_focal_contrastive_loss

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the site is tested with playwright, which is not installed"
)
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
)
BROWSER = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
if not BROWSER:
    pytest.skip("the site is tested in Chromium, which is not installed", allow_module_level=True)

ROOT = Path(__file__).parent.parent
SITE = Path(os.environ.get("ASYMCL_SITE", ROOT / "docs")).resolve()
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Documentation"]
FOLDER = urlsplit(
    ADDRESS
).path  # the published site is not at the root of its host, and 404.html relies on that
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
PATIENCE = 120_000  # milliseconds: on a busy machine a page takes long, and that is no fault of it
playwright.expect.set_options(timeout=PATIENCE)

PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html"))
NOTEBOOKS = sorted(
    p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
)
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
VIEWS = {
    "light": ("light", WIDE),
    "dark": ("dark", WIDE),
    "phone": ("light", NARROW),
    "dark phone": ("dark", NARROW),
}
PAGE_VIEWS = ["light", "dark", "phone"]
QUICK = {("light", "index.html"), ("dark", "tutorials/start.html"), ("phone", "api/losses.html")}

# What ends right of the column of text, outside boxes that scroll. Formulas count as a whole: their parts may stand out by a pixel.
TOO_WIDE = """() => {
  const root = document.documentElement, main = document.querySelector("main"), found = [];
  if (root.scrollWidth > root.clientWidth) found.push(`the page is ${root.scrollWidth} px wide in a window of ${root.clientWidth} px`);
  const limit = Math.round(main.getBoundingClientRect().right);
  const look = element => {
    const right = Math.round(element.getBoundingClientRect().right);
    if (right > limit) found.push(`${element.outerHTML.slice(0, 120)} ends at ${right} px, the text at ${limit} px`);
    else if (getComputedStyle(element).overflowX === "visible" && !element.matches("math")) [...element.children].forEach(look);
  };
  look(main);
  return found;
}"""
CUT_CODE = """() => [...document.querySelectorAll("main div.sourceCode pre")]
  .filter(box => box.scrollWidth > box.clientWidth + 1)
  .map(box => `code is cut: ${box.textContent.slice(0, 60)}`)"""
EMPTY_PICTURES = (
    "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
)
# A heading's formulas stand in the table of contents once more
FORMULAS = """() => {
  const count = (root, what) => root ? root.querySelectorAll(what).length : 0, main = document.querySelector("main");
  const listed = [...document.querySelectorAll("#TOC a")].map(a => document.getElementById(decodeURIComponent(a.hash.slice(1))));
  return {text: count(main, "math"), contents: count(document.querySelector("#TOC"), "math"), broken: count(document, "merror"),
          headings: listed.reduce((sum, target) => sum + count(target.querySelector("h1, h2, h3, h4, h5, h6") || target, "math"), 0)};
}"""
# Contrast takes most of the time, and axe looks at each element anew. So a formula becomes one piece of text, in its own colour, and each
# colour of a program stays where it comes first, with the first line of each block: a fifth of the elements, and all the colours.
THIN_OUT = """() => {
  document.querySelectorAll("math").forEach(formula => formula.replaceWith(formula.textContent));
  const seen = new Set();
  for (const token of document.querySelectorAll("code span[class]:not(:has(*))")) {
    const colour = getComputedStyle(token).color + token.closest("code").parentElement.className;
    if (seen.has(colour)) token.replaceWith(token.textContent);
    seen.add(colour);
  }
  document.querySelectorAll("pre code > span:not(:first-child):not(:has(span))").forEach(line => line.remove());
}"""


class Handler(SimpleHTTPRequestHandler):
    "Serves the site where it will be published, and 404.html for what is not there, as GitHub Pages does"

    protocol_version = "HTTP/1.1"

    def handle(self):
        "Serve one reader, who may leave before a file has come in full"
        with suppress(ConnectionError):
            super().handle()

    def translate_path(self, path):
        "The file at an address"
        return (
            super().translate_path(path.removeprefix(FOLDER.rstrip("/")))
            if path.startswith(FOLDER)
            else ""
        )

    def send_error(self, code, message=None, explain=None):
        "Answer with the site's own page"
        body = (SITE / "404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        "Stay silent"


@pytest.fixture(scope="module")
def base():
    "Address of the site on this machine"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=SITE)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{FOLDER}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()


class Visit:
    "A reader's window, and what went wrong in it so far"

    def __init__(self, browser, base, view):
        scheme, size = VIEWS[view]
        # without transitions, whose colours half-way would be measured
        self.context = browser.new_context(
            color_scheme=scheme, viewport=size, reduced_motion="reduce"
        )
        self.context.set_default_timeout(PATIENCE)
        self.page, self.base, self.problems = self.context.new_page(), base, []
        self.page.on(
            "console",
            lambda message: (
                message.type == "error" and self.problems.append(f"console: {message.text}")
            ),
        )
        self.page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        self.page.on(
            "request",
            lambda request: (
                request.url.startswith(base) or self.problems.append(f"asks for {request.url}")
            ),
        )
        self.page.on("requestfailed", self.failed)
        self.page.on(
            "response",
            lambda response: (
                response.status >= 400
                and self.problems.append(f"{response.status}: {response.url}")
            ),
        )

    def failed(self, request):
        "Note a request without an answer, unless it was given up because the reader went on to another page"
        if "ERR_ABORTED" not in request.failure:
            self.problems.append(f"{request.failure}: {request.url}")

    def open(self, name):
        "Load a page of the site, its fonts included; returns its status"
        response = self.page.goto(self.base + name)
        self.page.evaluate("document.fonts.ready")
        return response.status

    @property
    def where(self):
        "The page that is open, without its fragment"
        return self.page.url.removeprefix(self.base).partition("#")[0]


@pytest.fixture
def visit(browser, base):
    "Opens a window in one of VIEWS, and closes it after the test"
    visits = []

    def start(view="light"):
        visits.append(Visit(browser, base, view))
        return visits[-1]

    yield start
    for one in visits:
        one.context.close()


def formulas_written(notebook):
    "How many formulas the text of a notebook has, outside its code; no docstring of the package has any"
    text = "\n\n".join(
        "".join(c["source"])
        for c in json.loads(notebook.read_text())["cells"]
        if c["cell_type"] == "markdown"
    )
    text = re.sub(
        r"^ *(```+|~~~+).*?^ *\1|(`+)(?!`).+?(?<!`)\2(?!`)|\\\$",
        "",
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    return len(re.findall(r"\$\$.+?\$\$|\$[^$]+\$", text, flags=re.DOTALL))


def formula_problems(page, written):
    "What is wrong with the formulas of an open page whose notebook has `written` of them"
    seen = page.evaluate(FORMULAS)
    problems = (
        [] if seen["text"] == written else [f"{seen['text']} formulas, the notebook has {written}"]
    )
    if seen["contents"] != seen["headings"]:
        problems.append(
            f"{seen['contents']} formulas in the table of contents, {seen['headings']} in its headings"
        )
    if seen["broken"]:
        problems.append(f"{seen['broken']} formulas that Temml could not read")
    if "$$" in page.inner_text("body"):
        problems.append("a formula shown as its source: $$")
    return problems


def axe_problems(page, serious=False):
    "Violations by axe-core: of the rules of contrast and alternative text, or of every rule whose breach is serious; changes the page"
    options = {"resultTypes": ["violations"]}
    if not serious:
        options["runOnly"] = ["color-contrast", "image-alt"]
    page.evaluate(THIN_OUT)
    found = axe.Axe().run(page, options=options).response["violations"]
    return [
        f"{v['id']}: {node['target']}: {' '.join(node['failureSummary'].split())}"
        for v in found
        if not serious or v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]


def look(visit, written):
    "What is wrong with the page a visit has open, but for what axe measures"
    page = visit.page
    pictures = [f"empty picture {p}" for p in page.evaluate(EMPTY_PICTURES)]
    cut = page.evaluate(TOO_WIDE) + page.evaluate(CUT_CODE)
    return visit.problems + pictures + cut + formula_problems(page, written)


@pytest.mark.parametrize(
    "view, name",
    [
        pytest.param(view, name, marks=() if (view, name) in QUICK else pytest.mark.browser)
        for view in PAGE_VIEWS
        for name in PAGES
    ],
)
def test_page_loads_fits_and_can_be_read(visit, view, name):
    notebook = (ROOT / "nbs" / name).with_suffix(".ipynb")
    reader = visit(view)
    assert reader.open(name) == 200
    problems = look(reader, formulas_written(notebook) if notebook.exists() else 0)
    if view != "phone":
        problems += axe_problems(
            reader.page
        )  # slow; what only a phone shows is measured with its menus
    assert not problems, f"{name}, {view}:\n" + "\n".join(problems)


FAULTS = {
    "document.querySelector('main p').style.color = '#999'": "color-contrast",
    "document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=favicon.svg>')": "image-alt",
    "document.querySelector('main p').style.width = '3000px'": "ends at",
    "const code = document.querySelector('main .sourceCode code'); code.style.whiteSpace = 'pre'; "
    "code.append('x'.repeat(300))": "code is cut",
    "document.querySelector('header').style.width = '3000px'": "the page is",
    "document.querySelector('main p').innerHTML += '<math></math>'": "the notebook has",
    "document.querySelector('#TOC a').innerHTML = '<math></math>'": "in the table of contents",
    "document.querySelector('main p').innerHTML += '<math><merror>x</merror></math>'": "could not read",
    "document.querySelector('main p').append('$$x$$')": "a formula shown as its source",
    "fetch('nowhere.css')": "404: ",
    "fetch('http://elsewhere.example/').catch(() => 0)": "asks for http://elsewhere.example/",
    "setTimeout(() => { throw new Error('lost') }); new Promise(done => setTimeout(done, 50))": "script: lost",
    "console.error('lost')": "console: lost",
    "new Promise(done => { const i = new Image; i.onerror = done; i.alt = i.src = 'x.png'; document.body.append(i) })": "empty picture",
}


@pytest.mark.browser
@pytest.mark.parametrize("script", FAULTS)
def test_a_fault_is_found(visit, script):
    reader = visit()
    reader.open("index.html")
    reader.page.evaluate(script)
    problems = look(reader, formulas_written(ROOT / "nbs/index.ipynb")) + axe_problems(reader.page)
    assert any(FAULTS[script] in p for p in problems)


def test_formulas_are_counted_outside_code(tmp_path):
    text = "$a$ and $b\n+c$\n\n$$\nd\n$$\n\n`$x$` ``$y`$`` \\$ 5\n\n```python\ncost = '$z$'\n```\n\n$e$"
    cells = [
        {"cell_type": "markdown", "source": [text]},
        {"cell_type": "code", "source": ["# $f$"]},
    ]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    assert formulas_written(tmp_path / "n.ipynb") == 4


@pytest.mark.browser
def test_home_has_no_serious_fault_by_any_rule_of_axe(visit):
    reader = visit()
    reader.open("index.html")
    problems = axe_problems(reader.page, serious=True)
    assert not problems, "\n".join(problems)


@pytest.mark.browser
@pytest.mark.parametrize("view", ["light", "dark"])
def test_search_finds_the_loss(visit, view):
    reader = visit(view)
    page = reader.page

    def search():
        reader.open("tutorials/samplers.html")
        page.get_by_role("searchbox").fill("AFCL")
        return (
            page.locator("a.search-result[href*='api/losses.html']").filter(has_text="AFCL").first
        )

    search().click()
    page.wait_for_url("**/api/losses.html*")
    assert "AFCL" in page.inner_text("main")
    playwright.expect(search()).to_be_in_viewport()
    assert not reader.problems + axe_problems(page)


@pytest.mark.browser
@pytest.mark.parametrize("term", ["AFCL", "eta", "TwoStageLearner", "label_issues"])
def test_search_puts_names_and_terms_first(visit, term):
    reader = visit()
    reader.open("index.html")
    reader.page.get_by_role("searchbox").fill(term)
    first = reader.page.locator("a.search-result .search-result-title").first
    playwright.expect(first).to_have_text(term)
    assert not reader.problems


def test_texts_of_the_search_have_no_tex():
    texts = [section["text"] for section in json.loads((SITE / "search.json").read_text())]
    assert not [text for text in texts if re.search(r"\\(eta|gamma|frac|cdot|tau)\b", text)]


EXPLORE = ROOT / "nbs/explanations/explore.ipynb"


@pytest.fixture
def explore(visit):
    "Opens a window with what the notebook of the explorable shows, from its saved outputs"
    cells = json.loads(EXPLORE.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    shown = ["".join(output["data"].get("text/html", "")) for output in outputs]

    def start(view="light"):
        reader = visit(view)
        reader.page.set_content(f"<!doctype html><main>{''.join(shown)}</main>")
        return reader

    return start


def test_explorable_shows_its_script(explore):
    script = explore().page.locator("main > script").first.text_content()
    assert script.strip() == (EXPLORE.parent / "explore.js").read_text().strip()


def test_explorable_agrees_with_the_figures_of_the_library(explore):
    page = explore().page
    known = json.loads(page.locator("#explore-figures").text_content())
    assert len(known["figures"]) > 30
    for figures in known["figures"]:
        settings = figures.pop("settings")
        found = page.evaluate(
            "([settings, cosines]) => explore.figures(settings, cosines, [settings.eta])",
            [settings, known["cosines"]],
        )
        found["shares"] = found["shares"][0]
        assert found.keys() == figures.keys()
        for name, values in figures.items():
            torch.testing.assert_close(
                torch.tensor(found[name], dtype=torch.float64),
                torch.tensor(values, dtype=torch.float64),
                rtol=0,
                atol=1e-6,
                msg=lambda text, name=name, settings=settings: f"{name}, {settings}: {text}",
            )


@pytest.mark.parametrize("averaging", ["pairs", "batch"])
def test_explorable_has_the_loss_of_the_library_for_its_own_batch(explore, averaging):
    options = dict(gamma=1.5, eta=40, temperature=0.1, averaging=averaging)
    batch, figures = explore().page.evaluate(
        "settings => [explore.layout(settings), explore.figures(settings, [], [])]",
        options | dict(rare=7, anchor="frequent", angle=75),
    )
    angles = torch.tensor(batch["angles"], dtype=torch.float64)
    points = torch.stack([angles.cos(), angles.sin()], 1)
    loss = asymmetric_focal_contrastive_loss(points, torch.tensor(batch["labels"]), **options)
    assert figures["loss"] == pytest.approx(loss.item(), rel=0, abs=1e-6)


def test_explorable_works_with_the_keyboard(explore):
    reader = explore()
    page = reader.page
    eta = page.get_by_label("eta", exact=True)
    anchor = page.get_by_role("slider", name="Angle of the anchor")
    eta.press("End")
    anchor.press("ArrowRight")
    assert anchor.get_attribute("aria-valuenow") == "102"
    figures = page.evaluate("explore.figures({...explore.START, eta: 300, angle: 102}, [], [300])")
    shown = [page.locator(f".share-{name}").text_content() for name in ("own", "at")]
    assert shown == [f"{share:.1%}" for share in figures["shares"][0]]
    cells = page.locator(".forces td").all_text_contents()
    rows = [f"{x:+.4f}".replace("-", "−") for row in figures["forces"][::-1] for x in row]
    assert cells == rows
    page.get_by_role("button", name="Reset").press("Enter")
    assert (eta.input_value(), anchor.get_attribute("aria-valuenow")) == ("0", "100")
    assert not reader.problems


def middle(locator):
    "Centre of an element in the window"
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_anchor_of_the_explorable_can_be_dragged_with_the_mouse(explore):
    page = explore().page
    anchor = page.get_by_role("slider", name="Angle of the anchor")
    x, y = middle(page.locator(".circle"))
    page.mouse.move(*middle(anchor))
    page.mouse.down()
    page.mouse.move(x - 80, y, steps=4)
    page.mouse.up()
    page.mouse.move(x, y + 80)
    assert anchor.get_attribute("aria-valuenow") == "180"


def test_anchor_of_the_explorable_can_be_dragged_with_a_finger_on_a_phone(explore):
    reader = explore("phone")
    page = reader.page
    anchor = page.get_by_role("slider", name="Angle of the anchor")
    anchor.scroll_into_view_if_needed()
    before = page.evaluate("scrollY")
    finger = page.context.new_cdp_session(page)

    def touch(kind, *places):
        points = [dict(x=x, y=y) for x, y in places]
        finger.send("Input.dispatchTouchEvent", dict(type=kind, touchPoints=points))

    (x, y), (start_x, start_y) = middle(page.locator(".circle")), middle(anchor)
    touch("touchStart", (start_x, start_y))
    for part in (0.25, 0.5, 0.75, 1):  # to the bottom of the circle
        touch("touchMove", (start_x + part * (x - start_x), start_y + part * (y + 80 - start_y)))
    touch("touchEnd")
    assert anchor.get_attribute("aria-valuenow") == "270" and page.evaluate("scrollY") == before
    assert not reader.problems + page.evaluate(TOO_WIDE)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chosen_theme_stays(visit, scheme):
    reader = visit(scheme)
    page = reader.page

    def dark():
        return (
            page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        )

    reader.open("index.html")
    assert dark() == (scheme == "dark")
    page.get_by_title("Toggle dark mode").click()
    assert dark() != (scheme == "dark")
    page.reload()
    assert dark() != (scheme == "dark")
    sidebar = page.locator("#quarto-sidebar")
    sidebar.get_by_text("Losses, models, metrics").click()  # opens the group
    sidebar.get_by_text("Fused losses").click()
    page.wait_for_url("**/api/fused.html")
    assert dark() != (scheme == "dark") and not reader.problems


@pytest.mark.browser
@pytest.mark.parametrize("view", ["phone", "dark phone"])
def test_menus_open_on_a_phone(visit, view):
    reader = visit(view)
    page = reader.page
    reader.open("tutorials/samplers.html")
    page.get_by_label("Toggle navigation").click()
    playwright.expect(page.get_by_role("searchbox")).to_be_in_viewport()
    page.get_by_label("Toggle sidebar navigation").click()
    sidebar = page.locator("#quarto-sidebar")
    playwright.expect(sidebar.get_by_text("A drop-in loss")).to_be_in_viewport()
    assert not axe_problems(page)
    sidebar.get_by_text("Losses, models, metrics").click()  # leads to the first page of the group
    page.wait_for_url("**/api/losses.html")
    page.get_by_label("Toggle sidebar navigation").click()
    item = sidebar.get_by_text("Fused losses")
    playwright.expect(item).to_be_in_viewport()
    assert not axe_problems(page)
    item.click()
    page.wait_for_url("**/api/fused.html")
    assert not reader.problems


@pytest.mark.browser
def test_next_and_previous_lead_through_all_pages(visit):
    reader, seen = visit(), ["index.html"]
    page = reader.page
    reader.open("index.html")
    while page.locator(".nav-page-next a").count():
        page.locator(".nav-page-next a").click()
        page.wait_for_url(lambda url: not url.endswith(seen[-1]))
        assert (
            page.evaluate("document.querySelector('.nav-page-previous a').href")
            == reader.base + seen[-1]
        )
        seen.append(reader.where)
    assert sorted([*seen, "404.html"]) == PAGES and not reader.problems


@pytest.mark.browser
@pytest.mark.parametrize("address", ["nowhere.html", "api/no/such/page.html"])
def test_unknown_address_gets_a_page_that_leads_on(visit, address):
    reader = visit()
    assert reader.open(address) == 404
    others = [
        p for p in reader.problems if address not in p and not p.startswith("console")
    ]  # the address itself fails, nothing else
    assert not others and reader.page.inner_text("h1") == "Page not found"
    reader.page.get_by_role("link", name="home page").click()
    reader.page.wait_for_url(reader.base + "index.html")


def test_every_notebook_has_its_page_and_the_sitemap_lists_all():
    expected = sorted(
        n.relative_to(ROOT / "nbs").with_suffix(".html").as_posix() for n in NOTEBOOKS
    )
    assert sorted([*expected, "404.html"]) == PAGES
    entries = ElementTree.parse(SITE / "sitemap.xml").iterfind(".//{*}loc")
    assert sorted(e.text for e in entries) == [ADDRESS + name for name in expected]


def sidebar(name):
    "Entries of the sidebar of a page: list of (address from the root of the site, label)"
    text = (SITE / name).read_text()
    found = re.findall(
        r'<a href="([^"#]+)" class="sidebar-item-text[^"]*"><span class="menu-text">(.*?)</span>',
        text,
    )
    found += re.findall(
        r'<a class="sidebar-item-text[^"]*" href="([^"#]+)"><span class="menu-text">(.*?)</span>',
        text,
    )
    return {
        (posixpath.normpath(posixpath.join(posixpath.dirname(name), href)), label)
        for href, label in found
    }


def test_no_two_entries_of_the_sidebar_have_one_label():
    entries = set().union(*map(sidebar, PAGES))
    pages = {href: label for href, label in entries}
    assert set(pages) == set(PAGES) - {"404.html"}
    titles = [
        re.search("<title>(.*?) – asymcl|<title>asymcl", (SITE / name).read_text())
        for name in pages
    ]
    assert all(titles)
    labels = [label for _, label in entries]
    assert not [label for label, n in Counter(labels).items() if n > 1]


def test_closed_sections_of_the_sidebar_lead_to_their_first_page():
    links = dict((label, href) for href, label in sidebar("tutorials/start.html"))
    assert links["API reference"] == "reference/losses.html"
    assert links["Explanations"] == "explanations/glossary.html"
    assert "asymcl.losses" not in links and links["Your own images"] == "tutorials/own_images.html"


def test_llms_txt_lists_every_page_but_the_sources_as_text():
    links = re.findall(r"\]\(([^)]+)\)", (SITE / "llms.txt").read_text())
    pages = [name for name in PAGES if name != "404.html" and not name.startswith("api/")]
    assert sorted(links) == sorted(ADDRESS + name.replace(".html", ".llms.md") for name in pages)
    for link in links:
        text = (SITE / link.removeprefix(ADDRESS)).read_text()
        assert text.startswith("# ") and "AUTOGENERATED" not in text
        near = [a for a in re.findall(r"\]\(([^)#\s]+)", text) if not urlsplit(a).scheme]
        folder = (SITE / link.removeprefix(ADDRESS)).parent
        assert not [a for a in near if not (folder / a).exists()]


REFERENCE = sorted((ROOT / "nbs/reference").glob("*.ipynb"))


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.stem)
def test_every_public_name_has_an_entry_with_an_example(path):
    module = importlib.import_module(f"asymcl.{path.stem}")
    cells = json.loads(path.read_text())["cells"]
    heads = [re.match(r"## ([\w.]+)", "".join(cell["source"])) for cell in cells]
    found = {
        head[1]: after["cell_type"] for head, after in zip(heads, cells[1:], strict=False) if head
    }
    assert set(module.__all__) <= set(found)
    assert set(found.values()) == {"code"}
    text = (SITE / "reference" / path.name).with_suffix(".html").read_text()
    assert not [bad for bad in ("__main__", "built-in function", "factory&gt;") if bad in text]
    ends = [f'data-anchor-id="{name.lower()}"' for name in found]
    starts = sorted(map(text.index, ends)) + [len(text)]
    for name, end in zip(found, ends, strict=True):
        begin = text.index(end)
        entry = text[begin : starts[starts.index(begin) + 1]]
        place, _, last = f"{module.__name__}.{name}".rpartition(".")
        thing = getattr(importlib.import_module(place), last)
        is_class = inspect.isclass(thing) and thing.__name__ == last
        if inspect.isfunction(thing) or is_class and not issubclass(thing, Exception | Callback):
            parameters = inspect.signature(thing).parameters.values()
            written = [str(p.replace(annotation=p.empty)).partition("=")[0] for p in parameters]
            assert not [p for p in written if f"<td><code>{p}</code></td>" not in entry], name
