"""Certificates in the report: from plain data, with their kinds, and refused if they are not in the expected form."""

import pytest

from retune.errors import InvalidParameterError
from retune.records import Certified, Results
from retune.report import certificate_table, write_report
from small_parts import rand


def number(value, kind="estimated", how="10 iterations"):
    return {"value": value, "kind": kind, "how": how, "assumptions": []}


def certificate():
    return {
        "depth": 7,
        "gradient": "Truncated()",
        "images": [
            {
                "verdict": "Proved: within 3e-05 <of it>.",
                "row": "convex prior with exact prox",
                "claims": {
                    "rmse": [number(3e-5, "proved", "a bound"), number(1e-5)],
                    "rate": [number(0.9)],
                    "residual": [number(None, "measured", "")],
                    "gradient_error": [],
                },
                "assumptions": [
                    {"statement": "A is linear", "checked": True, "how": "tried", "probability": 1.0},
                    {"statement": "g is convex", "checked": False, "how": "given by the user", "probability": 1.0},
                ],
            }
        ],
    }


def results(content):
    return {"format": 1, "problems": {"p": {"methods": {"retune": {"psnr": 30.0, "certificate": content}}}}}


def test_rows():
    (table,) = certificate_table(Certified(**certificate()), ["astronaut"])
    assert table.title == "astronaut"
    rows = {r.name: r for r in table.rows}
    assert list(rows) == [
        "asymptotic factor per layer",
        "relative change in 7 layers",
        "distance to the equilibrium, RMSE",
    ]
    row = rows["distance to the equilibrium, RMSE"]
    assert (row.bound, row.bound_kind, row.other, row.other_kind) == ("≤ 3.0·10⁻⁵", "proved", "1.0·10⁻⁵", "estimated")
    assert row.how == "a bound; 10 iterations"
    assert (rows["asymptotic factor per layer"].bound, rows["relative change in 7 layers"].other) == ("–", "–")
    assert table.assumptions == ["A is linear (checked: tried)", "g is convex (not checked: given by the user)"]
    assert certificate_table(None) == []


@pytest.mark.parametrize(
    ("value", "text"), [(0.99998, "1 − 2.0·10⁻⁵"), (1.0003, "1 + 3.0·10⁻⁴"), (1.0, "1"), (0.9, "0.9")]
)
def test_a_factor_near_one_is_told_by_its_distance_from_it(value, text):
    content = certificate()
    content["images"][0]["claims"]["rate"] = [number(value)]
    content["images"][0]["rounding"] = "8 ε a layer"
    (table,) = certificate_table(Certified(**content))
    assert {r.name: r.other for r in table.rows}["asymptotic factor per layer"] == text
    assert table.assumptions[-1] == "Bounds of distances allow for rounding: 8 ε a layer"


def test_page_shows_it(tmp_path):
    page = write_report(Results.checked(results(certificate())), tmp_path, {}).read_text(encoding="utf-8")
    for text in (
        "Certificate: retune, image 0",
        "within 3e-05 &lt;of it&gt;.",
        "≤ 3.0·10⁻⁵",
        "not checked: given by the user",
    ):
        assert text in page


def test_a_real_certificate_is_in_that_form():
    from deepinv.optim.prior import L1Prior
    from deepinv.physics import Denoising

    from retune import ForwardBackward, Restarted, certify

    net = Restarted(ForwardBackward(L1Prior(), reg=0.1, step_size=0.4), 2, 2)
    content = certify(net, rand(2, 1, 4, 4), Denoising(), iterations=2, starts=1).to_dict()
    Results.checked(results(content))
    tables = certificate_table(Certified(**content))
    assert len(tables) == 2
    assert tables[0].rows[0].bound_kind == "proved"
    assert tables[0].verdict.startswith("Proved: the image is within")


@pytest.mark.parametrize(
    "content", [[], {"images": {}}, {"images": [3]}, {"images": [{"claims": {"rmse": [{"value": 1.0}]}}]}]
)
def test_another_form_is_refused(content):
    bad = results(content or [1])
    with pytest.raises(InvalidParameterError, match=r"problems\.p\.methods\.retune\.certificate"):
        Results.checked(bad)
