"""HTML pages in one file, whose texts are escaped by construction."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Whatever a page holds, a browser runs no script and loads nothing from elsewhere."""

_STYLE = Path(__file__).with_name("report.css")


class Html(str):
    """Markup, as opposed to text, which must still be escaped."""

    __slots__ = ()


Content = str | None | Iterable["Content"]
"""Text, markup, several of these, or nothing."""


def tag(name: str, *children: Content, **attributes: str) -> Html:
    """An element; contents that are not `Html` are text, and are escaped.

    Args:
        name: name of the element.
        *children: its contents, in order.
        **attributes: its attributes; `class_` stands for `class`, `aria_label` for `aria-label`.

    Example:
        >>> tag("p", "a < b", class_="quiet")
        '<p class="quiet">a &lt; b</p>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escape(value)}"'
        for key, value in attributes.items()
    )
    inner = "".join(map(_written, children))
    return Html(f"<{name}{written}>{inner}</{name}>")


def facts(pairs: Iterable[tuple[str, Content]]) -> Html:
    """A list of facts, without the empty ones."""
    return tag("dl", [(tag("dt", name), tag("dd", value)) for name, value in pairs if value])


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, label: str) -> Html:
    """A table that scrolls by itself if it is larger than the screen.

    Args:
        columns: titles of the columns, of which the last one holds names, aligned on the left.
        rows: texts, one for each column.
        label: what the table holds, for screen readers.
    """

    def cells(kind: str, values: Sequence[str]) -> list[Html]:
        *numbers, name = values
        return [*(tag(kind, number) for number in numbers), tag(kind, name, class_="text")]

    body = tag(
        "table",
        tag("thead", tag("tr", cells("th", columns))),
        tag("tbody", [Html(f"{tag('tr', cells('td', row))}\n") for row in rows]),
    )
    return tag("div", body, class_="scroll", role="region", aria_label=label, tabindex="0")


def figure(svg: str, caption: str) -> Html:
    """A picture with its caption. As an image, it cannot run scripts or load other files."""
    data = base64.b64encode(svg.encode()).decode()
    image = Html(f'<img src="data:image/svg+xml;base64,{data}" alt="{_escape(caption)}">')
    return tag("figure", image, tag("figcaption", caption))


def page(title: str, *content: Content) -> str:
    """A whole page that needs no other files."""
    head = (
        Html('<meta charset="utf-8">\n'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_escape(_POLICY)}">\n'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">\n'),
        Html('<link rel="icon" href="data:,">\n'),
        tag("title", title),
        Html(f"\n<style>\n{_STYLE.read_text('utf-8')}</style>\n"),
    )
    body = [(each, Html("\n")) for each in content]
    whole = tag("html", Html("\n"), tag("head", head), Html("\n"), tag("body", body), lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"


def _written(content: Content) -> str:
    if content is None:
        return ""
    if isinstance(content, Html):
        return content
    if isinstance(content, str):
        return _escape(content)
    return "".join(map(_written, content))


def _escape(text: str) -> str:
    """Escaped text; characters that HTML forbids become replacement characters."""
    # File names may hold bytes that are not UTF-8, as lone surrogates.
    known = text.encode("utf-8", "replace").decode()
    printable = (c if c in "\n\t" or ord(c) >= 32 else "\ufffd" for c in known)
    return html.escape("".join(printable))
