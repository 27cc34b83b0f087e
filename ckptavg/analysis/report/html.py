"""HTML pages in one file, whose texts are escaped by construction."""

import base64
import html
from collections.abc import Iterable

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Whatever a page holds, a browser runs no script and loads nothing from elsewhere."""

_STYLE = """
:root { color-scheme: light; --line: #d4d7dc; --soft: #f4f5f7; --quiet: #4d5560; --mark: #0072b2; }
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 76rem; color: #16191d; background: #fff;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere;
}
header { border-bottom: 2px solid var(--mark); margin-bottom: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
header p, figcaption, .quiet { color: var(--quiet); }
dl {
  display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1.25rem; margin: 0;
}
dt { color: var(--quiet); }
dd { margin: 0; }
ul { margin: .5rem 0; padding-left: 1.2rem; }
code, pre { font: .875rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
pre {
  margin: .5rem 0; padding: .6rem .8rem; background: var(--soft); border: 1px solid var(--line);
  border-radius: 4px; white-space: pre; overflow: auto; user-select: all;
}
td, th, dd, li, code, figcaption { unicode-bidi: isolate; }
.figures {
  margin-top: .75rem; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr));
}
figure { margin: 0; }
figure img { display: block; width: 100%; max-width: 36rem; height: auto; }
figcaption { font-size: .875rem; line-height: 1.4; max-width: 34rem; }
.scroll {
  overflow: auto; max-height: 36.7rem; width: fit-content; max-width: 100%; margin-top: .75rem;
  border: 1px solid var(--line); border-radius: 4px; overflow-wrap: normal;
}
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .875rem; }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; }
th {
  white-space: normal; width: min-content; max-width: 11rem; vertical-align: bottom;
  overflow-wrap: break-word;
}
th.text, td.text { text-align: left; }
thead th {
  position: sticky; top: 0; z-index: 1; background: var(--soft);
  box-shadow: inset 0 -1px var(--line);
}
tbody tr:nth-child(even) td { background: #fafbfc; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; z-index: 2; }
thead th:first-child { background: var(--soft); z-index: 3; }
@media (max-width: 40rem) {
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: .4rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  pre { white-space: pre-wrap; }
  .scroll { max-height: none; overflow: visible; border: 0; }
  thead th, th:first-child, td:first-child { position: static; }
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  figure, tr, pre { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""


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


def table(
    columns: Iterable[str], rows: Iterable[Iterable[str]], *, label: str, words: Iterable[int] = ()
) -> Html:
    """A table that scrolls by itself if it is larger than the screen.

    Args:
        columns: titles of the columns.
        rows: texts, one for each column.
        label: what the table holds, for screen readers.
        words: indices of the columns that hold words, which are left-aligned.
    """
    worded = set(words)

    def cells(kind: str, values: Iterable[str]) -> list[Html]:
        return [
            tag(kind, value, **({"class_": "text"} if number in worded else {}))
            for number, value in enumerate(values)
        ]

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
        Html(f"\n<style>{_STYLE}</style>\n"),
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
