"""The report is complete, honest about failures, self-contained, and clear about what it cannot read."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib import image as mpl_image
from rich.console import Console

from retune.errors import InvalidParameterError, RetuneError
from retune.records import ProblemResult, Results
from retune.report import terminal_table, write_all, write_figures, write_report
from retune.report.curves import apart
from retune.report.learned import learned_table
from retune.report.numbers import decimal, duration, plain, power, signed
from retune.report.pictures import interesting
from retune.report.summary import headlines, summary

METHODS = ("variational", "unrolled", "retune", "somebody-elses")
LAYERS = [10, 30, 100, 300, 1000]


def _method(key: str, psnr: float) -> dict:
    fall = 3.0 if key == "unrolled" else 0.0
    return {
        "label": f"Method {key}",
        "how": f"how {key} works",
        "psnr": psnr,
        "psnr_per_image": [psnr],
        "ssim": 0.8,
        "psnr_trained": psnr,
        "psnr_10x": psnr - fall / 2,
        "psnr_50x": psnr - fall,
        "layers_trained": 30,
        "layers_run": [100],
        "residual": 3.1e-6,
        "residual_50x": 1e-8,
        "gradient_error": None if key == "variational" else 0.07,
        "seconds": 2.5,
        "images": [f"images/{key}.png"],
        "curve": {
            "layers": LAYERS,
            "psnr": list(np.linspace(20, psnr - fall, 5)),
            "residual": [0.1, 0.01, 0, None, 1e-5],
        },
        "training": {"loss": [0.1, 0.05, 0.02]},
        "learned": {"reg": [0.05], "step_size": [0.9, 0.8], "weights": [[1, 0.5, 2]] * 3, "scale_weights": [1, 2]},
    }


@pytest.fixture
def results() -> dict:
    return {
        "format": 1,
        "retune": "0.1.0",
        "command": "retune demo",
        "seed": 0,
        "seconds": 170.2,
        "device": "cpu",
        "versions": {"torch": "2.6"},
        "settings": {"depth": 10, "test": ["cat"]},
        "problems": {
            "inpaint": {
                "title": "Inpainting",
                "description": "half of the pixels are kept",
                "problem": {"name": "inpaint", "keep": 0.5},
                "psnr_measurement": 9.1,
                "images": {"names": ["cat"], "truth": ["images/truth.png"], "measurement": ["images/measurement.png"]},
                "methods": {key: _method(key, 27.0 + i / 10) for i, key in enumerate(METHODS)},
            }
        },
        "verdicts": [
            {"claim": "the first claim", "problem": "inpaint", "holds": True, "detail": "1 against 2"},
            {"claim": "the second claim", "problem": "inpaint", "holds": False, "detail": "3 against 4"},
        ],
    }


@pytest.fixture
def folder(tmp_path, results):
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name in ("truth", "measurement", *METHODS):
        pixels = generator.integers(0, 256, (104, 120, 3), dtype=np.uint8)
        mpl_image.imsave(tmp_path / "images" / f"{name}.png", pixels)
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def bare() -> dict:
    """Everything that may be left out is."""
    return {"format": 1, "problems": {"inpaint": {"methods": {"retune": {"psnr": None}, "other": {"label": "Other"}}}}}


class _Page(HTMLParser):
    """The addresses a page refers to, its images, and whether its tags match."""

    VOID = ("meta", "img", "br", "link", "hr")

    def __init__(self, text: str):
        super().__init__()
        self.text, self.links, self.images, self.open, self.ids = text, [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.links += [
            (tag, attributes[key]) for key in ("src", "href", "srcset", "data", "action") if key in attributes
        ]
        self.ids |= {attributes["id"]} if "id" in attributes else set()
        if tag == "img":
            self.images.append(attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _page(path) -> _Page:
    page = _Page(path.read_text(encoding="utf-8"))
    assert not page.open
    return page


def _terminal(results: dict, width: int = 120, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    terminal_table(Results.checked(results), Console(file=stream, width=width))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


# The page ------------------------------------------------------------------------------------------------------------


def test_page_refers_to_nothing_outside_itself(folder):
    page = _page(write_all(Results.read(folder), folder))
    outside = [
        (tag, link) for tag, link in page.links if not link.startswith(("data:image/png;base64,", "#"))
    ]  # citations are links that a person may follow, not parts of the page
    assert outside == [("a", "https://arxiv.org/abs/2506.13239")]
    assert not re.search(r"<script|@import|url\(|<link", page.text)
    assert {link[1:] for _, link in page.links if link.startswith("#")} <= page.ids


def test_page_holds_every_method_and_figure(folder):
    results = Results.read(folder)
    page = _page(write_all(results, folder))
    for key, method in results.problems["inpaint"].methods.items():
        file = (folder / "images" / f"{key}.png").read_bytes()
        assert base64.b64encode(file).decode() in page.text
        assert f"cat: {method.label}, PSNR {decimal(method.psnr)} dB" in [i["alt"] for i in page.images]
        assert method.how
        assert method.how in page.text
    for kind in ("psnr", "residual", "training"):
        file = (folder / "figures" / f"inpaint-{kind}.png").read_bytes()
        assert base64.b64encode(file).decode() in page.text
    assert all(image["alt"] for image in page.images)
    assert all(f'<th scope="{scope}"' in page.text for scope in ("row", "col", "colgroup"))


def test_failing_claims_are_as_visible_as_the_others(folder, results):
    page = _page(write_all(Results.checked(results), folder))
    assert "✓ holds" in page.text
    assert "✗ does not hold" in page.text
    assert "the second claim" in page.text
    assert "Of 2 claims checked below, 1 holds and 1 does not." in page.text
    shown = _terminal(results)
    assert "✓ Inpainting: the first claim (1 against 2)" in shown
    assert "✗ Inpainting: the second claim (3 against 4)" in shown


def test_failed_training_and_unsettled_runs_are_said(folder, results):
    methods = results["problems"]["inpaint"]["methods"]
    methods["unrolled"]["failure"] = "the loss became nan"
    methods["retune"]["status"] = ["not settled"]
    methods["variational"]["remark"] = "the best reg of the grid search, 5, is the largest that was tried"
    page = _page(write_all(Results.checked(results), folder))
    for text in (page.text, _terminal(results)):
        assert "Method unrolled: the training failed. the loss became nan" in text
        assert "Method retune: not yet settled after 100 layers." in text
        assert "Method variational: the best reg of the grid search, 5, is the largest that was tried." in text


def test_labels_are_text_on_the_page_in_the_figures_and_in_the_terminal(folder, results):
    nasty = '<script>alert("x")</script> $\\frac{$ [red]'
    problem = results["problems"]["inpaint"]
    problem["title"] = problem["description"] = problem["images"]["names"][0] = nasty
    problem["methods"]["retune"]["label"] = problem["methods"]["retune"]["how"] = nasty
    results["verdicts"][0]["claim"] = results["settings"]["depth"] = results["command"] = nasty
    page = _page(write_all(Results.checked(results), folder))
    assert "<script" not in page.text
    assert "&lt;script&gt;" in page.text
    assert "[red]" in _terminal(results, 200)


def test_everything_optional_may_be_missing(tmp_path):
    page = _page(write_all(Results.checked(bare()), tmp_path))
    assert "Other" in page.text
    assert "None" not in page.text
    assert not page.images
    headings = page.text.split("<thead>")[1].split("</thead>")[0]
    assert headings.count("<th") == 1  # a column in which nobody has a figure is left out


def test_a_figure_that_only_one_method_has(tmp_path):
    results = bare()
    results["problems"]["inpaint"]["methods"]["retune"]["psnr_trained"] = 21.5
    body = _page(write_all(Results.checked(results), tmp_path)).text.split("<tbody>")[1].split("</tbody>")[0]
    assert body.count("21.50") == 1
    assert body.count("–") == 1
    assert _terminal(results).count("–") == 1


def test_numbers_may_be_null(folder, results):
    def emptied(value):
        if isinstance(value, dict):
            return {k: emptied(v) for k, v in value.items()}
        if isinstance(value, list):
            return [emptied(v) for v in value]
        return None if isinstance(value, int | float) and not isinstance(value, bool) else value

    nothing = emptied(results) | {"format": 1}
    page = _page(write_all(Results.checked(nothing), folder))
    assert "None" not in page.text
    assert "None" not in _terminal(nothing)


# Files ---------------------------------------------------------------------------------------------------------------


def test_a_failure_leaves_the_old_page(folder, results, monkeypatch):
    path = write_all(Results.checked(results), folder)
    before = path.read_bytes()

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_all(Results.checked(results), folder)
    assert path.read_bytes() == before
    assert not [p for p in folder.rglob(".*") if p.is_file()]


def test_figures_are_named_by_problem_and_drawn_again_on_demand(folder, results):
    written = write_figures(Results.checked(results), folder)
    assert set(written) == {f"inpaint-{kind}" for kind in ("images", "psnr", "residual", "training")}
    for path in written.values():
        assert path.read_bytes().startswith(b"\x89PNG")
        path.unlink()
    write_report(Results.checked(results), folder)
    assert all(path.is_file() for path in written.values())


def test_results_are_not_changed(folder, results):
    before = copy.deepcopy(results)
    write_all(Results.checked(results), folder, Console(file=io.StringIO()))
    assert results == before


def test_the_callers_matplotlib_stays_as_it_was(folder, results):
    before = dict(matplotlib.rcParams)
    write_figures(Results.checked(results), folder)
    assert dict(matplotlib.rcParams) == before


def test_import_needs_neither_torch_nor_pyplot():
    code = (
        "import sys, retune.report.templates; from retune.report import terminal_table; "
        "print([m for m in ('torch', 'matplotlib', 'deepinv') if m in sys.modules]); "
        "import retune.report.figures; print([m for m in ('torch', 'matplotlib.pyplot') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 1, "problems": {"inpaint": {"met', "truncated or not JSON"),
        ("", r"0 bytes.*truncated"),
        ("[1, 2]", "not a result file of ReTune"),
        ('{"name": "else"}', "not a result file of ReTune"),
        ('{"format": 2, "retune": "9.0"}', r"has format 2 \(written by ReTune 9.0\).*reads format 1"),
        ('{"format": 1}', "problems is missing, expected a value"),
        ('{"format": 1, "problems": {}}', "problems is {}, expected at least one entry"),
        ('{"format": 1, "problems": {"a/b": {}}}', "'a/b', expected letters"),
        ('{"format": 1, "problems": {"a": {"methods": []}}}', r"problems\.a\.methods is \[\]"),
        ('{"format": 1, "problems": {"a": {"methods": {"m": {"psnr": "27"}}}}}', r"m\.psnr is '27', expected a number"),
    ],
)
def test_bad_result_files_are_refused_with_a_reason(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(InvalidParameterError, match=message) as raised:
        Results.read(tmp_path)
    assert str(path) in str(raised.value)


def test_missing_results_say_how_to_get_them(tmp_path):
    for where in (tmp_path, tmp_path / "elsewhere.json"):
        with pytest.raises(RetuneError, match="retune demo --out"):
            Results.read(where)


def test_curves_images_and_verdicts_must_fit(results):
    def broken(change) -> dict:
        bad = copy.deepcopy(results)
        change(bad, bad["problems"]["inpaint"]["methods"]["retune"])
        return bad

    for change, message in (
        (lambda r, m: m["curve"]["psnr"].pop(), r"retune\.curve: the length of psnr is 4, expected 5"),
        (lambda r, m: m["curve"].update(residual=["x"] * 5), "expected a number or null"),
        (lambda r, m: m.update(images=["a", "b"]), "expected 1 entries, one per test image"),
        (lambda r, m: m.update(learned=3), "learned is 3, expected a table"),
        (lambda r, m: r["verdicts"].append({"claim": "unclear"}), r"verdicts\[2\]"),
    ):
        with pytest.raises(InvalidParameterError, match=message):
            Results.checked(broken(change))


@pytest.mark.parametrize(
    ("name", "message"),
    [("images/none.png", "is missing or is not a PNG"), ("../x.png", "outside"), ("results.json", "not a PNG")],
)
def test_images_that_cannot_be_shown_are_named(folder, results, name, message):
    results["problems"]["inpaint"]["methods"]["retune"]["images"] = [name]
    with pytest.raises(InvalidParameterError, match=message):
        write_all(Results.checked(results), folder)


# Numbers, tables, sentences ------------------------------------------------------------------------------------------


def test_numbers_are_written_for_people():
    assert [decimal(v) for v in (1.005, -0.001, -2.5, None, np.nan, np.inf)] == [
        "1.00",
        "0.00",
        "−2.50",
        "–",
        "NaN",
        "∞",
    ]
    assert [signed(v) for v in (0.0021, -0.0001, -3.21, 1.5, None)] == ["+0.002", "0.000", "−3.21", "+1.50", "–"]
    assert [power(v) for v in (3.14e-5, 0.41, 0, None)] == ["3.1·10⁻⁵", "0.41", "0", "–"]
    assert [duration(v) for v in (3.21, 170.2, 7300, None)] == ["3.2 s", "2 min 50 s", "2 h 1 min", "–"]
    assert plain({"a": [1, 0.25], "b": True, "c": None}) == "a = 1, 0.25, b = yes, c = –"


def test_terminal_table_fits_eighty_columns(results):
    shown = _terminal(results, 80)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    for cell in ("27.20", "0.800", "−3.00", "3.1·10⁻⁶", "0.07", "2.5"):
        assert cell in shown


def test_terminals_without_unicode_are_served(results):
    shown = _terminal(results, encoding="ascii")
    assert "[FAILS] Inpainting: the second claim" in shown
    assert "3.1*10^-6" in shown


def test_summary_is_computed_and_mentions_only_what_is_there(results):
    text = " ".join(summary(Results.checked(results)))
    assert (
        "On one photograph that no method used for training or tuning, the best PSNR is that of Method "
        "somebody-elses in inpainting (0.10 dB ahead of Method retune)." in text
    )
    assert (
        "The other methods differ from the best single regularisation weight λ (grid search) by +0.10 to +0.30 dB."
        in text
    )
    steady = "Method variational, Method retune and Method somebody-elses"
    assert f"the PSNR of {steady} changes by at most 0.0001 dB" in text
    assert "that of Method unrolled falls by up to 3.00 dB" in text
    assert "implicit" not in text
    assert len(summary(Results.checked(bare()))) == 1
    assert headlines(Results.checked(bare())) == []


def test_cards_show_the_best_method_whichever_it_is(results):
    (card,) = headlines(Results.checked(results))
    assert card.psnr == "27.30"
    assert card.lines == [
        "Method somebody-elses",
        "next, −0.10 dB: Method retune",
        "the measurement has 9.10 dB",
    ]
    methods = results["problems"]["inpaint"]["methods"]
    methods["variational"]["psnr"] = methods["retune"]["psnr"] = 27.4
    (card,) = headlines(Results.checked(results))
    assert card.lines[:2] == ["Method variational and Method retune", "next, −0.10 dB: Method somebody-elses"]


def test_no_method_is_spoken_of_before_the_others(results):
    """With the numbers of two methods exchanged, the words are the same and their names exchanged."""
    other = copy.deepcopy(results)
    methods = other["problems"]["inpaint"]["methods"]
    one, two = methods["retune"], methods["somebody-elses"]
    methods["retune"], methods["somebody-elses"] = two | {"label": one["label"]}, one | {"label": two["label"]}

    def words(results):
        checked = Results.checked(results)
        return " ".join([*summary(checked), *(line for card in headlines(checked) for line in card.lines)])

    places = {"Method retune": "A", "Method somebody-elses": "B"}
    before, after = words(results), words(other)
    for name, sign in places.items():
        before = before.replace(name, sign)
        after = after.replace(name, "B" if sign == "A" else "A")
    assert before.replace("A and B", "B and A") == after.replace("A and B", "B and A")


def test_learned_weights_of_either_shape(results):
    problem = results["problems"]["inpaint"]
    table = learned_table(ProblemResult(**problem))
    problem["methods"]["retune"]["learned"] |= {"weights": [[[1, 0.5, 2]]] * 3, "scale_weights": [[1, 2]]}
    assert learned_table(ProblemResult(**problem)) == table
    assert table is not None
    assert [name for name, _ in table.groups] == ["", "red", "green", "blue", "scale, fine to coarse"]
    assert [cell.text for cell in table.rows[0][2]] == [
        "0.05",
        "0.8 … 0.9",
        *["1.00", "0.50", "2.00"] * 3,
        "1.00",
        "2.00",
    ]
    assert learned_table(ProblemResult(methods={"m": {"learned": None}})) is None


def test_the_enlarged_part_is_where_the_detail_is():
    truth = np.zeros((120, 160, 3))
    truth[60:90, 100:140] = np.random.default_rng(0).random((30, 40, 1))
    window = interesting(truth)
    assert window is not None
    assert 60 <= window.top + window.height / 2 <= 90
    assert 100 <= window.left + window.width / 2 <= 140
    assert interesting(truth[:64, :64]) is None


def test_labels_keep_apart_and_near():
    places = apart([0.5, 0.5, 0.51, 0.95], [0.1] * 4)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(places))
    assert places == pytest.approx([0.4033, 0.5033, 0.6033, 0.95], abs=1e-3)
