"""The type and the colours of the report, for gradio."""

from __future__ import annotations

from importlib import resources

from gradio.themes import Base, Font

from retune.report.templates import templates

__all__ = ["css", "theme"]

#: Colours by name: light, dark. They are those of the report.
COLOURS = {
    "ink": ("#1d2733", "#e4e9ee"),
    "muted": ("#55616d", "#a3afbb"),
    "paper": ("#ffffff", "#14191f"),
    "soft": ("#f4f6f8", "#1d242c"),
    "line": ("#dfe4e9", "#333d48"),
    "accent": ("#0072b2", "#62b5ea"),
    "good": ("#00694d", "#5fd0a8"),
    "good-soft": ("#e6f4ef", "#14302a"),
    "bad": ("#a83a00", "#ff9d6b"),
    "bad-soft": ("#fdeee6", "#3d2216"),
    "edge": ("#7b8794", "#77838f"),
}
_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Liberation Sans", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "Liberation Mono", "monospace")


def theme() -> Base:
    """A theme without fonts of other machines."""
    sans, mono = [Font(n) for n in _SANS], [Font(n) for n in _MONO]
    made = Base(font=sans, font_mono=mono, radius_size="sm", text_size="lg", spacing_size="md")
    told = {}
    for name, colour in {
        "body_background_fill": "paper",
        "background_fill_primary": "paper",
        "background_fill_secondary": "soft",
        "block_background_fill": "paper",
        "block_label_background_fill": "paper",
        "block_label_text_color": "ink",
        "block_title_text_color": "ink",
        "block_info_text_color": "muted",
        "body_text_color": "ink",
        "body_text_color_subdued": "muted",
        "border_color_primary": "line",
        "block_border_color": "line",
        "input_background_fill": "paper",
        "input_border_color": "edge",
        "input_placeholder_color": "muted",
        "input_border_color_focus": "accent",
        "checkbox_background_color_selected": "accent",
        "checkbox_border_color": "edge",
        "checkbox_border_color_selected": "accent",
        "checkbox_label_background_fill": "soft",
        "checkbox_label_background_fill_selected": "soft",
        "checkbox_label_text_color": "ink",
        "checkbox_label_text_color_selected": "ink",
        "button_secondary_background_fill": "soft",
        "button_secondary_background_fill_hover": "line",
        "button_secondary_text_color": "ink",
        "button_secondary_border_color": "line",
        "button_cancel_background_fill": "bad-soft",
        "button_cancel_background_fill_hover": "bad-soft",
        "button_cancel_text_color": "bad",
        "slider_color": "accent",
        "link_text_color": "accent",
        "panel_background_fill": "paper",
        "panel_border_color": "line",
    }.items():
        told[name], told[f"{name}_dark"] = COLOURS[colour]
    told |= {"button_primary_background_fill": "#0072b2", "button_primary_background_fill_dark": "#0072b2"}
    told |= {"button_primary_background_fill_hover": "#005a8d", "button_primary_background_fill_hover_dark": "#005a8d"}
    told |= {"input_border_width": "1px", "input_border_width_dark": "1px"}
    told |= {"button_primary_text_color": "#ffffff", "button_primary_text_color_dark": "#ffffff"}
    return made.set(**told)


def css() -> str:
    """The styles: those of the comparison in the report, and those of the page."""
    light = "; ".join(f"--{name}: {pair[0]}" for name, pair in COLOURS.items())
    dark = "; ".join(f"--{name}: {pair[1]}" for name, pair in COLOURS.items())
    compare = templates().get_template("compare.css.jinja").render()
    own = resources.files("retune.app").joinpath("app.css").read_text("utf-8")
    return f":root {{ {light}; color-scheme: light }}\n.dark {{ {dark}; color-scheme: dark }}\n{compare}\n{own}"
