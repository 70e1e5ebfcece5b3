"""What a report shows of a measurement."""

import torch

from retune import problems
from retune.comparison.score import visible


def test_a_small_measurement_is_shown_enlarged_and_no_other():
    x = torch.rand(1, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    y, physics = problems.superres(2, sigma=0.0).measure(x, 0)
    shown = visible((x, y, physics))
    assert shown.shape == x.shape
    torch.testing.assert_close(shown[..., ::2, ::2], y)
    torch.testing.assert_close(shown[..., 1::2, 1::2], y)
    y, physics = problems.deblur("uniform:3", boundary="valid").measure(x, 0)
    torch.testing.assert_close(visible((x, y, physics)), physics.A_adjoint(y))
