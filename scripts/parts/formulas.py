"""Translation of the formulas in docstrings, plain text for `help`, to tables with MathML for the reference.

Each line of a block has a label, a formula and a shape, with two spaces or more between them. A / between spaces
becomes a fraction: the product before it over the factor after it.
"""

import re
from html import escape

RAISED, LOWERED = ("²³⁻ᵀˣᵗ", "23-Txt"), ("₀₁₂ᵢₒₙ", "012ion")
SIGNS = {"-": "−", ">=": "≥", "<=": "≤", "...": "…", "'": "′"}
OPERATORS = {*"+-=·←,;:/*", ">=", "<="}
CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}
TOKEN = re.compile(".\u0302|\\s+|[<>]=|\\.{3}|[A-Za-z]+|[0-9.]+|.")
LABEL = re.compile(r'([a-z]+(?:="\w+")?):(?: +|$)')


def is_formulas(block: str) -> bool:
    """Whether a paragraph of a docstring is a block of formulas."""
    return LABEL.match(block) is not None and re.search(" [=←] ", block) is not None


def as_table(block: str) -> str:
    """Return the block as a table: labels, formulas, shapes."""
    rows: list[list[str]] = []
    for line in block.splitlines():
        rows.append(["", "", ""])
        for cell in re.split(r"(?<![,;]) {2,}", re.sub(r" +([=←]) ", r" \1 ", line.strip())):
            if found := LABEL.match(cell):
                rows.append([found[1], "", ""])
            formula = cell[found.end() if found else 0 :]
            if re.match(r"\((\w+)?,", formula):
                rows[-1][2] = escape(formula)
            elif formula:
                rows[-1][1] += f'<math displaystyle="true">{Formula(formula).row()}</math> '
    lines = (f"<tr><th>{label}</th><td>{each}</td><td>{shape}</td></tr>" for label, each, shape in rows if each)
    return f'<table class="formulas">{"".join(lines)}</table>'


class Formula:
    """A formula's tokens, read from left to right."""

    def __init__(self, text: str):
        for mark, (marks, plain) in (("^", RAISED), ("_", LOWERED)):
            signs = str.maketrans(marks, plain)
            text = re.sub(f"[{marks}]+", lambda run: f"{mark}{{{run[0].translate(signs)}}}", text)  # noqa: B023
        self.rest = TOKEN.findall(text)

    def row(self, end: str = "") -> str:
        """Read everything up to and including a closing bracket."""
        parts: list[str] = []
        start = 0  # of the product so far
        while self.rest and self.rest[0] != end:
            token = self.rest[0]
            if self.rest[:3] == [" ", "/", " "]:
                del self.rest[:3]
                parts[start:] = [f"<mfrac>{bare(parts[start:])}{bare(self.divisor())}</mfrac>"]
            elif token.isspace():
                del self.rest[0]
                if len(token) > 1 or (start < len(parts) and self.rest[0] not in OPERATORS):
                    parts.append(f'<mspace width="{0.25 * len(token) ** 2:g}em"/>')
            elif token in OPERATORS:
                sign = token in "-*" and start == len(parts)  # not a difference or a product
                form = ' form="prefix"' if sign else ' rspace="0.4em"' if token in ",;" else ""
                parts.append(f"<mo{form}>{SIGNS.get(self.rest.pop(0), token)}</mo>")
                start = len(parts)
            else:
                parts.append(self.factor())
                start = len(parts) if token == "Σ" else start
        del self.rest[:1]
        return "".join(parts)

    def divisor(self) -> list[str]:
        """Read a factor, with the term of a sum or the brackets after a function."""
        parts = [self.factor()]
        if parts[0].startswith("<munder"):
            del self.rest[0]
            parts.append(self.factor())
        while self.rest and self.rest[0] in ("(", "["):
            parts.append(self.factor())
        return parts

    def factor(self) -> str:
        """Read a name, number, sign or bracket, with its superscripts and subscripts."""
        below = "munder" if self.rest[0] == "Σ" else "msub"
        whole = self.atom()
        while self.rest and self.rest[0] in ("_", "^"):
            tag = below if self.rest.pop(0) == "_" else "msup"
            whole = f"<{tag}>{whole}{self.atom(each_letter=True)}</{tag}>"
        return whole

    def atom(self, each_letter: bool = False) -> str:
        token = self.rest.pop(0)
        if token == "√":
            return f"<msqrt>{bare([self.factor()])}</msqrt>"
        if token in CLOSING:
            inner = self.row(CLOSING[token])
            if token == "{":
                return f"<mrow>{inner}</mrow>"
            mo = f'<mo stretchy="{str("<mfrac" in inner).lower()}">'
            return f"<mrow>{mo}{token}</mo>{inner}{mo}{CLOSING[token]}</mo></mrow>"
        if token[-1] == "\u0302":
            return f'<mover accent="true"><mi>{token[0]}</mi><mo stretchy="false">^</mo></mover>'
        if token == "Σ":
            return '<mo rspace="0.25em">∑</mo>'
        if not token.isalnum():
            return f"<mo>{escape(SIGNS.get(token, token))}</mo>"
        if len(token) == 2 and (each_letter or token[0] == "d"):
            return f"<mrow><mi>{token[0]}</mi><mi>{token[1]}</mi></mrow>"
        return f"<mi>{token}</mi>" if token[0].isalpha() else f"<mn>{token}</mn>"


def bare(parts: list[str]) -> str:
    """Return the parts as one row, without round brackets around the whole."""
    inner = re.fullmatch(r"<mrow><mo[^>]*>\(</mo>(.*)<mo[^>]*>\)</mo></mrow>", parts[0]) if len(parts) == 1 else None
    return f"<mrow>{inner[1] if inner else ''.join(parts)}</mrow>"
