"""Builds the documentation site in docs/ and README.md from the notebooks, without Quarto.

    pip install -e '.[dev]'     # once: nbdev finds the package's own names through its entry point
    python tools/docs.py        # needs node and npm too

The steps: nbdev processes the notebooks into _proc/ (saved outputs are kept, pictures in at most 256 colours; only imports,
exported cells and the signatures they document are evaluated), smalldocs turns _proc/ into pages, KaTeX typesets their formulas, the pages
are checked, and only then is docs/ replaced and README.md written from nbs/index.ipynb.

The build fails, with everything it found, on a warning of smalldocs, a formula that KaTeX cannot read or that was not
recognised as one, a link left as text, output to stderr, an image without alternative text, a link or anchor that leads
nowhere inside the site, anything that a page would fetch from another host, and a notebook that nbs/sidebar.yml does not list.
"""

import base64
import html
import importlib
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.metadata import entry_points
from operator import attrgetter
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import yaml
from PIL import Image
from nbdev.config import get_config
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs
from smalldocs import config, layout, llms, site

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
EXPECTED_WARNINGS = (  # keys that nbdev writes for Quarto and smalldocs has no use for
    "unknown key format-links",
    "format commonmark is not built",
    ": output-file is not read",
)
DOWNLOADS = ("tutorials", "explanations")  # folders whose pages carry their notebook
KATEX_SCRIPT = """
const katex = require("katex"), options = {throwOnError: true, strict: "error"};
const typeset = ([tex, displayMode]) => {
  try { return {html: katex.renderToString(tex, {...options, displayMode})}; } catch (e) { return {error: e.message}; }
};
console.log(JSON.stringify(JSON.parse(require("fs").readFileSync(0)).map(typeset)));
"""
COLUMN = 100  # characters of output that fit beside the table of contents
WIDE = 640  # pixels: on a phone, the text in a picture wider than this would be too small
SCROLL_SCRIPT = """<script>
for (const box of document.querySelectorAll("main :is(pre, .cell-output-display, .math.display, .sd-table)")) {
  const mark = () => {
    const hidden = box.scrollWidth - box.clientWidth;
    box.classList.toggle("more-left", box.scrollLeft > 1);
    box.classList.toggle("more-right", hidden - box.scrollLeft > 1);
    if (hidden > 1) box.tabIndex = 0;
  };
  box.addEventListener("scroll", mark, {passive: true});
  new ResizeObserver(mark).observe(box);
  document.fonts.ready.then(mark);
}
</script>
"""


def smaller(png):
    "A picture in at most 256 colours, as bytes of a PNG file, if that is smaller"
    image = Image.open(io.BytesIO(png))
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    method = Image.Quantize.FASTOCTREE if image.mode == "RGBA" else Image.Quantize.MEDIANCUT
    out = io.BytesIO()
    image.quantize(256, method, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return min(out.getvalue(), png, key=len)


def with_smaller_pictures(text):
    "A notebook, as text, whose saved pictures are as from `smaller`"
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture:
                png = smaller(base64.b64decode("".join(picture)))
                output["data"]["image/png"] = base64.b64encode(png).decode()
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def get_index():
    "Documented names of each module, as nbdev has them"
    return importlib.import_module("asymcl._modidx").d["syms"]


def process_notebooks():
    "Let nbdev turn nbs/ into the Quarto project _proc/; returns its path"
    if "asymcl" not in entry_points(group="nbdev").names:
        raise SystemExit(
            "asymcl is not installed here, so no name could be linked: pip install -e '.[dev]'"
        )
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__()
    os.environ["PYTHONWARNINGS"] = (
        "ignore"  # for its processes: else a page shows what a library warns of where it is first imported
    )
    project = proc_nbs(force=True)
    for path in project.rglob(
        "*.ipynb"
    ):  # smalldocs reads the underscores of `### Name.__repr__` as bold print
        escaped = re.sub(r"(### [\w.]+\.)__(\w+)__", r"\1\\\\_\\\\_\2\\\\_\\\\_", path.read_text())
        path.write_text(with_smaller_pictures(escaped))
    return project


def listed(contents, project):
    "The entries of a sidebar whose notebook exists, and without the sections that this leaves empty"
    kept = []
    for entry in contents:
        if isinstance(entry, dict):
            entry = {**entry, "contents": listed(entry["contents"], project)}
        if entry["contents"] if isinstance(entry, dict) else (project / entry).exists():
            kept.append(entry)
    return kept


def write_sidebar(project):
    "Leave what is not written yet out of the project's sidebar; returns a problem for each notebook missing from it"
    path = project / "sidebar.yml"
    sidebar = yaml.safe_load(path.read_text())
    sections = listed(sidebar["website"]["sidebar"]["contents"], project)
    sidebar["website"]["sidebar"]["contents"] = sections
    path.write_text(yaml.safe_dump(sidebar, sort_keys=False))
    known = {page for section in sections for page in section["contents"]}
    notebooks = sorted(p.relative_to(project).as_posix() for p in project.rglob("*.ipynb"))
    return [f"nbs/{n}: not listed in nbs/sidebar.yml" for n in notebooks if n not in known]


def install_katex():
    "Install the pinned KaTeX below tools/, unless it is there; returns its folder of files to ship"
    package = TOOLS / "node_modules/katex/package.json"
    pinned = json.loads((TOOLS / "package.json").read_text())["dependencies"]["katex"]
    if not package.exists() or json.loads(package.read_text())["version"] != pinned:
        subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=TOOLS, check=True)
    return package.parent / "dist"


def typeset(texts, sources):
    "Replace the formulas of all pages (path -> HTML) by KaTeX's HTML, in one call; returns the problems"
    span = re.compile(
        r'(<span class="math (inline|display)">)\\[(\[](.*?)\\[)\]](</span>)', re.DOTALL
    )

    def key(match):
        return html.unescape(match[3]), match[2] == "display"

    where = {}  # formula -> page it is first used on
    for path, text in texts.items():
        for match in span.finditer(text):
            where.setdefault(key(match), path)
    done = subprocess.check_output(
        ["node", "-e", KATEX_SCRIPT], cwd=TOOLS, input=json.dumps(list(where)), text=True
    )
    result = dict(zip(where, json.loads(done), strict=True))
    for path, text in texts.items():
        texts[path] = span.sub(lambda m: m[1] + result[key(m)].get("html", "") + m[4], text)
    print(f"{len(result)} different formulas")
    return [
        f"nbs/{sources[where[f]]}: {f[0]!r}: {r['error']}"
        for f, r in result.items()
        if "error" in r
    ]


def ship_katex(dist, out):
    "Copy KaTeX's stylesheet and its woff2 fonts into the site"
    shutil.copytree(dist / "fonts", out / "fonts", ignore=shutil.ignore_patterns("*.woff", "*.ttf"))
    css = (dist / "katex.min.css").read_text()
    (out / "katex.min.css").write_text(
        re.sub(r',url\([^)]*\.(?:woff|ttf)\) format\("\w+"\)', "", css)
    )


def wrap_lines(match):
    "Printed text, each line in an element that wraps, where one is longer than the column; a table, which has a rule, stays"
    lines = match[2].splitlines(keepends=True)
    if max(map(len, lines), default=0) <= COLUMN or any(
        re.fullmatch(r"[- ]*---[- ]*\n?", line) for line in lines
    ):
        return match[0]
    return match[1] + "".join(f'<span class="line">{line}</span>' for line in lines) + match[3]


def localise(text, page, out, base):
    """Point a page's HTML to local files: KaTeX, pages of this site, pictures; and give it what smalldocs leaves out.

    That is the formulas of the table of contents, printed sentences that wrap, boxes that scroll within reach of the keyboard and with a
    sign that they do, a class for pictures to keep large on a phone, a button to download a notebook."""
    up = "../" * (len(page.out.parts) - 1)
    text = re.sub(rf'\s*<script src="{re.escape(layout.KATEX)}[^>]*></script>', "", text)
    text = text.replace(layout.KATEX, f"{up}site_libs/katex").replace(
        f'href="{base}', f'href="{up or "./"}'
    )
    for picture in (out / page.out.parent).glob(f"{page.src.stem}_files/*.png"):
        png, name = picture.read_bytes(), f"{picture.parent.name}/{picture.name}"
        text = text.replace(f"data:image/png;base64,{base64.b64encode(png).decode()}", name)
        if int.from_bytes(png[16:20]) > WIDE:  # a PNG file has its width there
            text = text.replace(f'src="{name}" class="', f'src="{name}" class="wide ')
    for ident, heading in re.findall(r'<h\d[^>]* data-anchor-id="([^"]+)"[^>]*>(.*?)</h\d>', text):
        if 'class="math' in heading:  # the table of contents has its TeX as plain text
            text = re.sub(
                rf'( data-scroll-target="#{re.escape(ident)}">)[^<]*',
                lambda m, heading=heading: m[1] + heading,
                text,
            )
    text = re.sub(
        r'(<div class="cell-output cell-output-stdout">\s*<pre><code>)(.*?)(</code>)',
        wrap_lines,
        text,
        flags=re.DOTALL,
    )
    text = text.replace("<pre", '<pre tabindex="0"').replace("</body>", f"{SCROLL_SCRIPT}</body>")
    if page.src.parts[0] in DOWNLOADS:
        button = f'<a class="btn btn-sm btn-outline-primary" href="{page.src.name}" download>Download this notebook</a>'
        text = text.replace(
            '<div class="quarto-title-meta"></div></header>', f"{button}</header>", 1
        )
    if page.out.name == "404.html":  # a host shows it in place of a page at any depth
        text = text.replace("<head>", f'<head>\n<base href="{urlsplit(base).path}">', 1)
    return text


def finish_site(built, base):
    "Typeset a smalldocs site and take out what points to other hosts or to the time of the build; returns the problems"
    out = built.out
    pages = {out / page.out: page for page in built.pages.values()}
    texts = {path: localise(path.read_text(), page, out, base) for path, page in pages.items()}
    dist = install_katex()
    problems = typeset(texts, {path: page.src for path, page in pages.items()})
    for path, text in texts.items():
        path.write_text(text)
    for path, page in pages.items():
        if page.src.parts[0] in DOWNLOADS:
            notebook = with_smaller_pictures((ROOT / "nbs" / page.src).read_text())
            path.with_suffix(".ipynb").write_text(notebook)
    ship_katex(dist, out / "site_libs/katex")
    for css in (out / "site_libs/themes").glob("*.css"):
        css.write_text(
            re.sub(r'@import\s*(?:url\([^)]*\)|"[^"]*"|\'[^\']*\')[^;]*;', "", css.read_text())
        )
    sitemap = out / "sitemap.xml"
    no_entry = r"\s*<lastmod>.*?</lastmod>|\s*<url>\s*<loc>[^<]*/404\.html</loc>.*?</url>"
    sitemap.write_text(re.sub(no_entry, "", sitemap.read_text(), flags=re.DOTALL))
    return problems


SIGNS = dict(
    cdot="·",
    le="≤",
    ge="≥",
    ne="≠",
    sum="Σ",
    partial="∂",
    sqrt="√",
    times="×",
    pm="±",
    approx="≈",
    propto="∝",
    to="→",
)
SIGNS |= {
    "in": "∈",
    "dots": "…",
    "lfloor": "⌊",
    "rfloor": "⌋",
    "top": "ᵀ",
    "mid": "|",
    "lvert": "|",
    "rvert": "|",
}
SIGNS |= {
    name: chr(0x3B1 + i)
    for i, name in enumerate(
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu".split()
    )
}
SIGNS |= {name: chr(0x3C0 + i) for i, name in enumerate("pi rho".split())} | dict(
    sigma="σ", tau="τ", varphi="φ", Phi="Φ", Sigma="Σ"
)
SIGNS |= dict.fromkeys(
    "mathrm mathbf mathcal mathbb text left right bar hat tilde tfrac displaystyle".split(), ""
)
SIGNS |= {name: name for name in "log exp max min ln cos".split()}
FOUND = "fuse.search(q, { limit }).map((h) => h.item)"  # in smalldocs.js
EXACT_FIRST = """fuse.search(q, { limit: 10 * limit }).map((h) => h.item)
          .sort((a, b) => (b.title.toLowerCase() === q.toLowerCase()) - (a.title.toLowerCase() === q.toLowerCase()))
          .slice(0, limit)"""
LONGEST_ENTRY = 1500  # characters of a section that the search looks at


def readable(text):
    "A text with its TeX as plain signs"
    text = re.sub(r"([_^])\{([^{}]*)\}", r"\1\2", text)
    part = r"\s*(?:\{([^{}]*)\}|(\w))"
    text = re.sub(rf"\\t?frac{part}{part}", r"\1\2/\3\4", text)
    return re.sub(r"\\([a-zA-Z]+)", lambda m: SIGNS.get(m[1], m[0]), text)


def entry(href, title, section, text):
    "An entry of the search"
    return dict(objectID=f"{href} {title}", href=href, title=title, section=section, text=text)


def symbols(pages):
    "Entries of the public names, with the first line of their docstrings; `pages`: page -> its HTML"
    found = []
    for module_name, names in get_index().items():
        module = importlib.import_module(module_name)
        page = next((href.partition("#")[0] for href, _ in names.values()), None)
        public = {name: page for name in getattr(module, "__all__", ())}
        public |= {full[len(module_name) + 1 :]: href for full, (href, _) in names.items()}
        for name, href in public.items():
            if page not in pages or any(part.startswith("_") for part in name.split(".")):
                continue
            thing = attrgetter(name)(module)
            anchor = (href.partition("#")[2] or getattr(thing, "__name__", "")).lower()
            known = f'data-anchor-id="{anchor}"' in pages[page]
            text = (inspect.getdoc(thing) or "").partition("\n")[0] if callable(thing) else ""
            found.append(entry(f"{page}#{anchor}" if known else page, name, module_name, text))
    return found


def glossary_entries():
    "Entries of the terms of the glossary"
    page = "explanations/glossary"
    cells = json.loads((ROOT / f"nbs/{page}.ipynb").read_text())["cells"]
    lines = "".join("".join(cell["source"]) + "\n" for cell in cells)
    terms = re.findall(r"^- \*\*(.+?)\*\*: (.+?)(?: \[[^\]]*\]\([^)]*\))*$", lines, re.MULTILINE)
    return [
        entry(f"{page}.html#{term[0].lower()}", term, "Glossary", text.replace("`", ""))
        for term, text in terms
    ]


def improve_search(out):
    "Add names and terms to the search, show those that are the query first, and make texts readable"
    script = out / "site_libs/smalldocs.js"
    text = script.read_text()
    if FOUND not in text:
        raise SystemExit("smalldocs.js has another search: adapt FOUND in tools/docs.py")
    script.write_text(text.replace(FOUND, EXACT_FIRST))
    path = out / "search.json"
    pages = {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*.html")}
    sections = json.loads(path.read_text())
    for section in sections:
        section["text"] = readable(section["text"])[:LONGEST_ENTRY]
        section["section"] = readable(section["section"])
    entries = symbols(pages) + glossary_entries() + sections
    path.write_text(json.dumps(entries, ensure_ascii=False, separators=(",", ":")))


class Page(HTMLParser):
    "What the checks need to know of one page"

    def __init__(self, text):
        super().__init__()
        self.ids, self.last_id, self.open = {""}, "", []
        self.links, self.resources, self.problems = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        "Note the ids, links, sub-resources and missing alternative texts of a tag"
        attrs = dict(attrs)
        if tag in ("pre", "code", "script", "style"):
            self.open.append(tag)
        if "id" in attrs:
            self.ids.add(attrs["id"])
            self.last_id = attrs["id"]
        if tag == "a":
            self.links.append(attrs.get("href"))
        if tag == "link" and attrs.get("rel") not in ("canonical", "alternate"):
            self.resources.append(attrs["href"])
        self.resources += [attrs[a] for a in ("src", "data", "poster") if attrs.get(a)]
        self.resources += [
            part.split()[0] for part in (attrs.get("srcset") or "").split(",") if part.strip()
        ]
        self.resources += css_resources(attrs.get("style") or "")
        if "cell-output-stderr" in (attrs.get("class") or ""):
            self.problems.append(f"output to stderr, after #{self.last_id}")
        if tag == "img" and not attrs.get("alt"):
            self.problems.append(f"image without alternative text, after #{self.last_id}")

    def handle_endtag(self, tag):
        "Leave a stretch of code"
        if self.open and tag == self.open[-1]:
            self.open.pop()

    def handle_data(self, data):
        "Look for formulas and links left as text, and for what a style element fetches"
        if self.open[-1:] == ["style"]:
            self.resources += css_resources(data)
        if self.open:
            return
        if re.match(r"\]\(\S+\)", data):
            self.problems.append(f"link around a name that nbdev links by itself: {data[:80]!r}")
        if "$" in data:
            self.problems.append(
                f"formula not recognised, or a dollar sign to put in backticks: {data.strip()[:80]!r}"
            )


def css_resources(css):
    "Addresses that a stylesheet fetches"
    return re.findall(r"""(?:url\(\s*|@import\s+)["']?([^"')\s]+)""", css)


def leads_nowhere(href, path, out, pages):
    "Whether a link on the page or stylesheet `path` has no file, or no anchor, in the site `out`"
    parts = urlsplit(href)
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file() or out not in target.parents:
        return True
    return target in pages and unquote(parts.fragment) not in pages[target].ids


def check_site(out):
    "Problems of the finished site: see the top of this file"
    pages = {path: Page(path.read_text()) for path in sorted(out.rglob("*.html"))}
    problems, fetched = [], []
    for path, page in pages.items():
        name = path.relative_to(out)
        problems += [f"{name}: {p}" for p in page.problems]
        inside = {h for h in page.links if h and not urlsplit(h).scheme and not h.startswith("//")}
        problems += [
            f"{name}: broken link {h}" for h in sorted(inside) if leads_nowhere(h, path, out, pages)
        ]
        fetched += [(path, r) for r in page.resources]
    fetched += [
        (path, r) for path in sorted(out.rglob("*.css")) for r in css_resources(path.read_text())
    ]
    for path, resource in fetched:
        if resource.startswith(("data:", "#")):
            continue
        outside = urlsplit(resource).scheme or resource.startswith("/")
        if outside:
            problems.append(f"{path.relative_to(out)}: fetches {resource}")
        elif leads_nowhere(resource.partition("#")[0], path, out, {}):
            problems.append(f"{path.relative_to(out)}: no file {resource}")
    return problems


def write_readme(built, base):
    """Write README.md from index.ipynb.

    Its links and pictures point into the published site, so that a code host and a package index can both show them."""
    page = built.pages[PurePosixPath("index.ipynb")]

    def link(href):
        return (
            href
            if urlsplit(href).scheme or href.startswith("#")
            else base + built.resolve(href, page)
        )

    prose = llms.Prose(link, page.env)
    text, pictures = llms.notebook(
        (built.root / page.src).read_text(), {}, page.src.stem, prose, lambda cell: cell
    )
    for name in pictures:
        text = text.replace(f"]({name})", f"]({base}{name})")
    (ROOT / "README.md").write_text(
        llms.page_markdown(page.title, page.front.get("description", ""), text)
    )


def main():
    "Build everything, or say what is wrong and leave docs/ and README.md as they were"
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # document this checkout, whatever is installed
    base = get_config().doc_url
    project = process_notebooks()
    problems = write_sidebar(project)
    built = site.Site(config.load(project), quiet=True)
    built.build()
    problems += [w for w in built.warnings if not any(e in w for e in EXPECTED_WARNINGS)]
    problems += finish_site(built, base)
    improve_search(built.out)
    problems += check_site(built.out)
    if problems:
        raise SystemExit(
            "\n".join(
                [*problems, f"{len(problems)} problems, docs/ and README.md are left as they were"]
            )
        )
    docs = get_config().doc_path
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(built.out, docs)
    write_readme(built, base)
    print(f"{len(built.pages)} pages in {docs.name}/")


if __name__ == "__main__":
    main()
