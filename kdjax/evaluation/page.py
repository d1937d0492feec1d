"""The frame of a report: one HTML file that needs nothing but itself, light or dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --soft: #5b5b66; --paper: #ffffff;
  --panel: #f6f7f9; --line: #d9dbe1; --accent: #0072b2;
  --blue: #0072b2; --vermillion: #d55e00; --green: #009e73; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ec; --soft: #a5a6b0; --paper: #16171b; --panel: #1f2127; --line: #3a3c45;
    --accent: #56b4e9; --blue: #4da6df; --vermillion: #f08a4b; --green: #35bf97; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 84rem; margin: 0 auto; padding: 1.5rem clamp(0.9rem, 3vw, 2.5rem) 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 0.6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 0.5rem; padding-top: 0.9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 0.4rem; overflow-wrap: anywhere; }
p { margin: 0.4rem 0; max-width: 46rem; }
.note { color: var(--soft); font-size: 0.92rem; }
dl { display: flex; flex-wrap: wrap; gap: 0.3rem 2rem; margin: 0; }
dl div { display: flex; flex-direction: column; }
dt { color: var(--soft); font-size: 0.82rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.95rem; }
th, td { padding: 0.4rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: 0.85rem; vertical-align: bottom; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.panels { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; padding: 0.6rem; background: var(--panel); border-radius: 8px;
  display: flex; justify-content: center; align-items: flex-start; }
svg { width: 100%; max-width: 27rem; height: auto; }
.beside { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; }
.beside figure { flex: 0 1 24rem; margin-top: 0.8rem; }
.beside .scroll { flex: 1 1 30rem; min-width: 0; }
@media (max-width: 36rem) { table { font-size: 0.88rem; } th { font-size: 0.78rem; }
  th, td { padding: 0.35rem; } td:first-child { white-space: normal; } }
details { margin: 0.8rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre { background: var(--panel); border-radius: 8px; padding: 0.8rem; overflow-x: auto;
  font: 0.85rem/1.45 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media print { main { max-width: none; } figure { break-inside: avoid; } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document. `title` is plain text, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A short list of names and values, both plain text."""
    items = (f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in pairs)
    return f"<dl>{''.join(items)}</dl>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text, which scrolls sideways where the screen is narrow."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def paragraph(text: str, note: bool = False) -> str:
    """Plain text as a paragraph."""
    kind = ' class="note"' if note else ""
    return f"<p{kind}>{escape(text)}</p>"


def panels(figures: Iterable[str]) -> str:
    """`<svg>` elements beside each other, below each other on a narrow screen."""
    return f'<div class="panels">{"".join(f"<figure>{x}</figure>" for x in figures)}</div>'


def details(summary: str, body: str) -> str:
    """A block that is closed at first; `summary` is plain text, `body` is HTML."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
