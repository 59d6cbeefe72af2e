"""HTML tables for notebooks, in the page's own colours, light or dark."""

from collections.abc import Sequence


class Markup(str):
    """HTML that `table` inserts unchanged; other text is escaped."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, left: int = 1) -> str:
    """Return an HTML table, with the first `left` columns aligned to the left and the others to the right."""
    from html import escape

    def line(tag: str, cells: Sequence[str]) -> str:
        texts = (cell if isinstance(cell, Markup) else escape(cell) for cell in cells)
        sides = ("left" if i < left else "right; white-space: nowrap" for i in range(len(cells)))
        columns = (f'<{tag} style="text-align: {side}">{text}</{tag}>' for side, text in zip(sides, texts, strict=True))
        return f"<tr>{''.join(columns)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return (
        f'<table><caption style="caption-side: bottom; text-align: left">{escape(caption)}</caption>'
        f"<thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"
    )
