"""Pages of the API reference: what the code says of each public name, in Markdown, for the processed notebooks of the site.

nbs/reference/ has a notebook for each import path, with a heading and an example for each public name. Below each heading
`entry` puts the signature, the parameters, what is returned and raised, and a link to the derivation, as read from the code.
"""

import importlib
import inspect
import re
import textwrap
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path

from fastcore.docments import docments

WIDTH = 88  # columns of a signature
HEADING = re.compile(r"^## ([\w.]+)\n*(.*)", re.DOTALL)
SHOWN = re.compile(r"^show_doc\(([\w.]+)\)", re.MULTILINE)


def import_path(page):
    "Import path of a page, such as `asymcl.losses` of reference/losses.ipynb"
    return f"asymcl.{Path(page).stem}"


def find(path, name):
    "Module-level object, perhaps of a submodule: `asymcl.infer`, `explain.grad_cam`"
    module, _, last = f"{path}.{name}".rpartition(".")
    return getattr(importlib.import_module(module), last)


def is_documented(thing):
    "Whether a public name has a signature: it is a class or function, perhaps with other defaults"
    return inspect.isclass(thing) or inspect.isfunction(thing) or isinstance(thing, partial)


def public_names(path):
    "Names that a page must have: those that its package or module lists as public"
    return importlib.import_module(path).__all__


def type_text(annotation):
    "An annotation as a reader writes it"
    if annotation in (inspect.Parameter.empty, type(None)):
        return ""
    if annotation is callable or getattr(annotation, "__name__", "") in ("function", "Callable"):
        return "callable"
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    # without modules, as in torch.Tensor
    name = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", name)
    name = re.sub(r"\bModule\b", "nn.Module", name)
    return name.replace(" | ", " or ").replace("NoneType", "None")


def default_text(default):
    "A default as it is written in code"
    if is_dataclass(default):
        return f"{type(default).__name__}()"
    if repr(default) == "<factory>":  # of a dataclass; the package has dicts only
        return "{}"
    if isinstance(default, float):
        default = float(f"{default:.4g}")
    text = getattr(default, "__name__", None) or repr(default)
    return text.replace("'", '"')


def owner_of_init(cls):
    "Class from which a class has its `__init__`"
    return next(base for base in cls.__mro__ if "__init__" in vars(base))


def comments_on_fields(cls):
    "Comments on the fields of a dataclass with its bases, or of a NamedTuple: name -> text"
    if is_dataclass(cls):
        bases = [docments(base) for base in reversed(cls.__mro__) if is_dataclass(base)]
        return {name: text for base in bases for name, text in base.items() if text}
    fields = r"^    (\w+): [^#\n]*#\s*(.+)$"
    return dict(re.findall(fields, inspect.getsource(cls), re.MULTILINE))


def meanings(thing):
    "Comments on the parameters of a callable: name -> text"
    if isinstance(thing, partial):
        return meanings(thing.func)
    if is_dataclass(thing) or hasattr(thing, "_fields"):
        return comments_on_fields(thing)
    if inspect.isclass(thing):
        owner = owner_of_init(thing)
        if not owner.__module__.startswith("asymcl"):
            text = f"as in `{owner.__module__.partition('.')[0]}`'s `{owner.__name__}`"
            return dict.fromkeys(inspect.signature(owner).parameters, text)
    function = thing.__init__ if inspect.isclass(thing) else thing
    is_python = hasattr(function, "__code__")
    starred = re.findall(r"\*(\w+),\s*# (.+)", inspect.getsource(function)) if is_python else []
    return docments(thing) | dict(starred)  # docments has no comments on * and **


def shown_parameters(thing):
    "Parameters of the signature, without those that fastai gives every callback"
    from fastai.callback.core import Callback

    if inspect.isclass(thing) and owner_of_init(thing) is Callback:
        return []
    return [p for p in inspect.signature(thing).parameters.values() if p.name != "self"]


def written(parameter):
    "Name of a parameter as a signature has it, and its default, empty without one"
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    given = parameter.default is not parameter.empty
    return stars + parameter.name, default_text(parameter.default) if given else ""


def parameters(thing):
    "Documented parameters of a callable: list of (name as written, type, default, meaning)"
    # here, since tools/docs.py puts this checkout on the path first
    from asymcl.core.settings import CHOICES, DataSettings

    rows = []
    found = docments(thing.func if isinstance(thing, partial) else thing, full=True)
    comments = meanings(thing)
    choices = CHOICES if is_dataclass(thing) and issubclass(thing, DataSettings) else {}
    for parameter in shown_parameters(thing):
        name = parameter.name
        facts = found.get(name) or {}
        annotation = parameter.annotation
        if annotation is parameter.empty:
            annotation = facts.get("anno", parameter.empty)
        shown, default = written(parameter)
        meaning = " ".join((comments.get(name) or "").split())
        if name in choices:
            meaning += f"; one of {', '.join(map(str, choices[name]))}"
        rows.append((shown, type_text(annotation), default, meaning))
    return rows


def signature(thing, name):
    "Signature without annotations, in lines of at most WIDTH columns"
    prefix = "class " if inspect.isclass(thing) else ""
    parts = []
    star = False
    for parameter in shown_parameters(thing):
        star |= parameter.kind is parameter.VAR_POSITIONAL
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        parts.append("=".join(filter(None, written(parameter))))
    text = f"{prefix}{name}({', '.join(parts)})"
    indent = " " * (len(prefix) + len(name) + 1)
    lines = textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(["```python", *lines, "```"])


def cell_text(text):
    "A text for a cell of a Markdown table"
    return text.replace("|", r"\|").replace("\n", " ")


def linked(text, entries):
    "A text whose names in backticks are links, as they are in the notebooks"

    def with_link(match):
        page, _, anchor = entries.get(match[1].removeprefix("asymcl."), "").partition(".html#")
        return f"[{match[0]}]({page}.ipynb#{anchor})" if page else match[0]

    return re.sub(r"`([\w.]+)(?:\(\))?`", with_link, text)


def code(text):
    "A text as code, if there is any"
    return f"`{text}`" if text else ""


def table(rows, entries):
    "Parameters as a Markdown table"
    lines = ["| parameter | type | default | meaning |", "|---|---|---|---|"]
    for name, kind, default, meaning in rows:
        cells = [code(name), kind, code(default), linked(meaning, entries)]
        lines.append("| " + " | ".join(map(cell_text, cells)) + " |")
    return "\n".join(lines)


def description(thing):
    "Docstring of a name in two parts: what it is, and what it raises"
    text = inspect.getdoc(thing) or ""
    raised = " ".join(re.findall(r"\bRaises\b.*?\.(?=\s|$)", text, re.DOTALL))
    text = re.sub(r"\s*\bRaises\b.*?\.(?=\s|$)", "", text, flags=re.DOTALL).strip()
    if text and text[-1] not in ".:|":
        text += "."
    return text, re.sub(r"\bRaises\s+", "", " ".join(raised.split()))


def methods(cls):
    "Public methods and properties that the package adds to a class, in the order of their definition"
    # here, since nbdev forks before torch is needed
    from fastai.callback.core import Callback, event

    is_callback = issubclass(cls, Callback)
    hooks = set(dir(Callback)) | set(vars(event)) if is_callback else set()  # called by fastai
    found = {}
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith("asymcl"):
            continue
        for name, member in vars(base).items():
            function = getattr(member, "fget", member)
            function = getattr(function, "__func__", function)
            public = not name.startswith("_") and name not in hooks
            if public and inspect.isfunction(function) and function.__doc__:
                found[name] = function, isinstance(member, property)
    return found


def listed_methods(thing, name):
    "The methods that the entry `name` lists: those of a class, unless `name` is a short name of it"
    is_own_name = inspect.isclass(thing) and thing.__name__ == name.rpartition(".")[2]
    return methods(thing) if is_own_name else {}


def returned(thing):
    "What a function returns"
    if inspect.isclass(thing):
        return ""
    facts = docments(thing, full=True).get("return") or {}
    kind = type_text(facts.get("anno", inspect.Parameter.empty))
    meaning = " ".join((facts.get("docment") or "").split())
    return f"{kind}: {meaning}" if kind and meaning else meaning or kind


def body(thing, name, entries, is_called=True):
    "Signature, description, parameters, returns and raises of a callable; no signature if only others call it"
    text, raised = description(thing)
    parts = [signature(thing, name)] if is_called else []
    parts.append(linked(text, entries))
    rows = parameters(thing) if is_called else []
    if rows:
        parts.append(table(rows, entries))
    result = returned(thing)
    if result:
        parts.append(f"**Returns:** {linked(result, entries)}.")
    if raised:
        parts.append(f"**Raises:** {linked(raised, entries)}")
    return [part for part in parts if part]


def address(thing, index):
    "Page and anchor of the derivation of a name, from nbdev's index; None for one without"
    if isinstance(thing, partial):
        return None
    full = f"{thing.__module__}.{thing.__qualname__}"
    href, _ = index.get(thing.__module__, {}).get(full, (None, None))
    return href


def to_notebook(href):
    "Address of a page, with its anchor, as that of its notebook"
    page, _, anchor = href.partition("#")
    return f"{page.removesuffix('.html')}.ipynb#{anchor.lower()}"


def entry(path, name, index, entries):
    "Markdown of a public name, without its heading"
    thing = find(path, name)
    if not is_documented(thing):
        return f"Value of type {type(thing).__name__}."
    short = name.rpartition(".")[2]
    if isinstance(thing, partial):
        return "\n\n".join(
            [
                signature(thing, name),
                linked(f"`{thing.func.__name__}` with other defaults.", entries),
                table(parameters(thing), entries),
            ]
        )
    if thing.__name__ != short:
        return signature(thing, name) + linked(f"\n\nShort name of `{thing.__name__}`.", entries)
    is_error = inspect.isclass(thing) and issubclass(thing, Exception)
    parts = body(thing, short, entries, not is_error)
    href = address(thing, index)
    if href:
        parts.append(f"[Derivation, source and tests](../{to_notebook(href)})")
    return "\n\n".join(parts)


def method_entries(path, name, entries):
    "Markdown of the methods and properties of a public class; empty for another name and for a short name"
    thing = find(path, name)
    parts = []
    for method, (function, is_property) in listed_methods(thing, name).items():
        heading = f"### {thing.__name__}.{method}"
        parts += [heading, *body(function, method, entries, not is_property)]
    return "\n\n".join(parts)


def headings(notebook):
    "Cells of a page of the reference that begin an entry: list of (cell, name, further text)"
    found = []
    for cell in notebook["cells"]:
        heading = HEADING.match("".join(cell["source"]))
        if heading and cell["cell_type"] == "markdown":
            found.append((cell, *heading.groups()))
    return found


def find_entries(pages):
    "Pages and anchors of all entries, by name, also by the name of a method with its class"
    entries = {}
    for page, notebook in pages.items():
        for _, name, _ in headings(notebook):
            thing = find(import_path(page), name)
            names = [name, *(f"{name}.{method}" for method in listed_methods(thing, name))]
            entries |= {each: f"{Path(page).stem}.html#{each.lower()}" for each in names}
    return entries


def find_derivations(pages, index):
    "Entries by the anchor of their derivation: api/losses.html#ntxentloss -> reference/losses.html#ntxentloss"
    found = {}
    for page, notebook in pages.items():
        for _, name, _ in headings(notebook):
            thing = find(import_path(page), name)
            href = is_documented(thing) and address(thing, index)
            if href and name.rpartition(".")[2] == thing.__name__:
                place = f"{page.removesuffix('.ipynb')}.html#{name.lower()}"
                found[href.lower()] = place
                for method in listed_methods(thing, name):
                    found[f"{href}.{method}".lower()] = f"{place}.{method.lower()}"
    return found


def markdown_cell(text):
    return dict(cell_type="markdown", metadata={}, source=text)


def add_entries(notebook, page, index, entries):
    "Add what the code says of each name of a page: before its example, and after it the methods; returns problems"
    path = import_path(page)
    names = {id(cell): (name, rest) for cell, name, rest in headings(notebook)}
    cells, after = [], ""
    for cell in notebook["cells"]:
        if id(cell) in names:
            name, rest = names[id(cell)]
            cells += [markdown_cell(after)] if after else []
            after = method_entries(path, name, entries)
            parts = [f"## {name}", entry(path, name, index, entries), rest.strip(), "Example:"]
            cell["source"] = "\n\n".join(part for part in parts if part)
        cells.append(cell)
    notebook["cells"] = cells + ([markdown_cell(after)] if after else [])
    missing = set(public_names(path)) - {name for name, _ in names.values()}
    return [f"nbs/{page}: no heading `## {name}`" for name in sorted(missing)]


def anchor_cell(names, page, derivations):
    "Markdown cell with an anchor for each name, which links to the entry of the name if there is one"
    spans = []
    for name in names:
        entry_at = derivations.get(f"{page.removesuffix('.ipynb')}.html#{name.lower()}")
        up = "../" * page.count("/")
        text = f"[`{name}` in the reference]({up}{to_notebook(entry_at)})" if entry_at else ""
        spans.append(f'<span id="{name.lower()}" class="in-reference">{text}</span>')
    return markdown_cell(" ".join(spans))


def replace_signatures(notebook, page, derivations):
    "Replace the signatures that nbdev puts under the source of names by anchors before the source"
    groups = []
    for cell in notebook["cells"]:
        shown = SHOWN.search("".join(cell["source"])) if cell["cell_type"] == "code" else None
        if shown:
            groups[-1][1].append(shown[1])
        else:
            groups.append((cell, []))
    notebook["cells"] = [
        part
        for cell, names in groups
        for part in ([anchor_cell(names, page, derivations), cell] if names else [cell])
    ]
