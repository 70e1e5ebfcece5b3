"""The numbers of a certificate: what a bound rests on."""

import pytest

from retune import Assumption
from retune.certificate import Number
from retune.records.certificates import Basis

CHECKED = Assumption("A is linear", True, "tested")
LIKELY = Assumption("‖A‖² is not above its estimate", True, "Lanczos", probability=1 - 1e-6)
BELIEVED = Assumption("the map says so", False, "stated")


@pytest.mark.parametrize(
    ("basis", "assumptions", "unconditional", "kind"),
    [
        (Basis.PROVED, (), True, "proved"),
        (Basis.PROVED, (CHECKED,), True, "proved"),
        (Basis.PROVED, (CHECKED, LIKELY), False, "proved with probability 1 − 1e-06"),
        (Basis.PROVED, (BELIEVED, CHECKED), False, "proved if its unchecked assumptions hold"),
        (Basis.ESTIMATED, (), False, "estimated"),
    ],
)
def test_a_bound_is_unconditional_if_all_that_it_rests_on_is_certain(basis, assumptions, unconditional, kind):
    number = Number(0.5, basis, "a test", assumptions)
    assert (number.is_unconditional, number.kind) == (unconditional, kind)
