"""What a notebook shows: plain tables in the page's own colours, light or dark."""

from collections.abc import Sequence


class figure(str):  # noqa: N801  # a kind of text
    """HTML that is safe as it stands; all other text is escaped."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, left: int = 1) -> str:
    """An HTML table, its first `left` columns to the left and the others to the right."""
    from html import escape

    def line(tag: str, cells: Sequence[str]) -> str:
        made = []
        for i, cell in enumerate(cells):
            text = cell if isinstance(cell, figure) else escape(cell)
            made.append(f'<{tag} style="text-align: {"left" if i < left else "right"}">{text}</{tag}>')
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return (
        f'<table><caption style="caption-side: bottom; text-align: left">{escape(caption)}</caption>'
        f"<thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"
    )
