"""A hook of MkDocs: formulas in inline code become MathML, which every browser renders without a script.

Docstrings and pages write formulas in plain Unicode (``‖Ax − y‖²/(2σ²)``), so that they can be read in a terminal, too.
Here they are translated to LaTeX, and from there to MathML.
"""

import html
import logging
import re
import unicodedata

from latex2mathml.converter import convert

_log = logging.getLogger("mkdocs.hooks.formulas")

_MATHEMATICAL = re.compile("[‖²³ᵀᴴ⁻⁺₀₁₂₃−·∇∂√½∘⟨⟩≤≥≈∈⊙↦ℓα-ωΓ-ΩŵĥũΣ]|\u0302|\u0303")
_SYMBOL = re.compile(r"[A-Za-z](?:_(?:\w|\{[^}]*\})|\*)")  # u_0, u_{r+1}, u*
_CODE = re.compile(r"""["#$&%\\]|\w\[|[A-Za-z]\w*=\S|\.\.\.|--|\w\.\w+\(""")
_INLINE = re.compile(r"(?<!<pre>)(?<!</span>)<code>([^<]*)</code>")
_LATEX = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)

_OPERATORS = {"argmin", "clip", "cos", "diag", "log", "max", "mean", "min", "prox", "sign", "sigmoid", "tr"}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁻⁺ᵀᴴ", "0123-+TH")
_SUBSCRIPTS = str.maketrans("₀₁₂₃", "0123")
_SYMBOLS = {
    "‖": r"\Vert ", "|": r"\vert ", "∣": r"\vert ", "−": "-", "·": r"\cdot ", "½": r"\tfrac{1}{2}", "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "≤": r"\le ", "≥": r"\ge ", "≈": r"\approx ", "∈": r"\in ", "∘": r"\circ ", "↦": r"\mapsto ", "←": r"\leftarrow ",
    "→": r"\to ", "…": r"\dots ", "⊙": r"\odot ", "∇": r"\nabla ", "∂": r"\partial ", "ℓ": r"\ell ", "~": r"\sim ",
    "<": r"\lt ", ">": r"\gt ",
}  # fmt: skip
_ACCENTS = {"\u0302": r"\hat{%s}", "\u0303": r"\tilde{%s}"}


def is_formula(text: str) -> bool:
    """Whether inline code is a formula, and not Python or a shell command."""
    return bool(_MATHEMATICAL.search(text) or _SYMBOL.fullmatch(text)) and not _CODE.search(text)


def to_latex(text: str) -> str:
    """LaTeX for a formula in plain Unicode."""
    text = " ".join(text.split())
    text = "".join(unicodedata.normalize("NFD", c) if c in "ŵĥũx̂" else c for c in text)
    for accent, command in _ACCENTS.items():
        text = re.sub(f"(.){accent}", lambda found, c=command: c % found[1], text)
    text = re.sub("[⁰¹²³⁻⁺ᵀᴴ]+", lambda found: "^{" + found[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub("[₀₁₂₃]+", lambda found: "_{" + found[0].translate(_SUBSCRIPTS) + "}", text)
    text = re.sub(r"(?<=[\w}])\*", "^{*}", text)
    text = re.sub(r"([_^])([^\W_]+|\|)", r"\1{\2}", text)
    text = re.sub(r"√(\w+|\([^()]*\))", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![A-Za-z\\])(?:[A-Za-z]{3,}|tr)(?![A-Za-z])", _word, text)
    text = re.sub(r"Σ(?=_|\s+[^\W\d]|\s+‖)", r"\\sum ", text)
    return "".join(_SYMBOLS.get(c, c) for c in text)


def _word(found: re.Match) -> str:
    word = found[0]
    return rf"\operatorname{{{word}}}" if word in _OPERATORS else rf"\mathrm{{{word}}}"


def _inline(found: re.Match) -> str:
    text = html.unescape(found[1])
    return _mathml(to_latex(text), text, "inline") if is_formula(text) else found[0]


def _latex(found: re.Match) -> str:
    text = html.unescape(found[2]).strip()
    rendered = _mathml(text, text, "block" if found[1] == "div" else "inline")
    return f'<div class="math">{rendered}</div>' if found[1] == "div" else rendered


def _mathml(latex: str, source: str, display: str) -> str:
    try:
        return convert(latex, display=display).replace("<mo>&#x0005E;</mo>", '<mo stretchy="false">&#x0005E;</mo>')
    except Exception as error:  # latex2mathml has many kinds; in a strict build the warning is an error
        _log.warning("the formula %r cannot be rendered (%r)", source, error)
        return f"<code>{html.escape(source)}</code>"


def on_page_content(content: str, **_) -> str:
    """Called by MkDocs for every page, after Markdown."""
    return _INLINE.sub(_inline, _LATEX.sub(_latex, content))
