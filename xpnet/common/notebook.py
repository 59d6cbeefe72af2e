"""HTML tables for notebooks, in the page's own colours, light or dark."""

from collections.abc import Sequence


class Markup(str):
    """HTML that is inserted as it stands; all other text is escaped."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, left: int = 1) -> str:
    """An HTML table, its first `left` columns to the left and the others to the right."""
    from html import escape

    def line(tag: str, cells: Sequence[str]) -> str:
        texts = (cell if isinstance(cell, Markup) else escape(cell) for cell in cells)
        sides = ("left" if i < left else "right; white-space: nowrap" for i in range(len(cells)))
        made = (f'<{tag} style="text-align: {side}">{text}</{tag}>' for side, text in zip(sides, texts, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return (
        f'<table><caption style="caption-side: bottom; text-align: left">{escape(caption)}</caption>'
        f"<thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"
    )
