"""What a notebook shows: plain tables in the page's own colours, light or dark."""

from collections.abc import Sequence
from html import escape


class figure(str):  # noqa: N801  # a kind of text
    """HTML that is safe as it stands; all other text is escaped."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """An HTML table, its first column to the left and the others to the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        made = []
        for i, cell in enumerate(cells):
            text = cell if isinstance(cell, figure) else escape(cell)
            made.append(f'<{tag} style="text-align: {"right" if i else "left"}">{text}</{tag}>')
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return (
        f'<table><caption style="caption-side: bottom; text-align: left">{escape(caption)}</caption>'
        f"<thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"
    )
