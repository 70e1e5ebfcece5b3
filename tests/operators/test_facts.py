"""‖A‖² is never underestimated, the fast normal operators are exact, and what is remembered is never stale."""

import gc
import itertools
import weakref

import numpy as np
import pytest
import torch
from deepinv.physics import Blur, BlurFFT, Denoising, Downsampling, Inpainting, LinearPhysics

from retune import DataTerm, problems
from retune.errors import InvalidParameterError, PhysicsError, ShapeError
from retune.operators.blur import BlurNormal, fast_length
from retune.operators.norm import SAFETY, lanczos_sqnorm
from small_parts import as_matrix, dense, rand

PADDINGS = ["valid", "circular", "replicate", "reflect", "constant"]
KERNELS = [(3, 3), (4, 4), (5, 4), (3, 6), (7, 5)]


def kernel(size, channels=1, seed=0):
    """Positive, sums to one in every channel, not symmetric."""
    k = rand(1, channels, *size, seed=seed).abs()
    return k / k.sum((-2, -1), keepdim=True)


def exact_sqnorm(physics, shape):
    return float(torch.linalg.matrix_norm(as_matrix(lambda x: physics.A_adjoint(physics.A(x)), shape), 2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", KERNELS, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("padding", PADDINGS)
def test_blur_norm_is_not_underestimated(padding, size, channels, float64):
    shape = (channels, 9, 11)
    physics = Blur(kernel(size, channels), padding=padding)
    true = exact_sqnorm(physics, shape)
    problem = DataTerm(physics.A(rand(1, *shape)), physics)
    found = float(problem.sqnorm)
    if padding == "circular":
        assert problem.sqnorm_kind == "exact"
        assert found == pytest.approx(true, rel=1e-10)
    else:
        assert problem.sqnorm_kind == "estimated"
        assert true <= found <= true * SAFETY * (1 + 1e-12)


def test_deepinv_adjoint_of_a_flat_kernel_is_caught():
    """deepinv 0.5's adjoint of a replicate-padded 1×6 kernel is wrong; nobody may iterate with it unawares."""
    physics = Blur(kernel((1, 6)), padding="replicate")
    with pytest.raises(PhysicsError, match="not the adjoint"):
        DataTerm(rand(1, 1, 9, 11), physics)


def gap(n, kind):
    """Spectra that are hard for a power iteration."""
    return {
        "flat": torch.ones(n),
        "clustered": torch.cat([torch.linspace(0.999, 1.0, n // 2), torch.rand(n - n // 2) * 0.1]),
        "lonely": torch.cat([torch.ones(1), torch.full((n - 1,), 0.99)]),
        "decaying": 0.7 ** torch.arange(float(n)),
        "rank-one": torch.eye(1, n)[0],
        "random": torch.rand(n),
    }[kind]


@pytest.mark.parametrize("kind", ["flat", "clustered", "lonely", "decaying", "rank-one", "random"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lanczos_on_hard_spectra(kind, dtype):
    n = 144
    for seed in range(5):
        torch.manual_seed(seed)
        q, _ = torch.linalg.qr(rand(n, n, seed=seed, dtype=torch.float64))
        matrix = (q * gap(n, kind).double() @ q.T).to(dtype)
        top = float(torch.linalg.matrix_norm(matrix.double(), 2))
        found = lanczos_sqnorm(
            lambda x, m=matrix: (x.flatten(1) @ m).view_as(x), rand(3, 1, 12, 12, seed=seed, dtype=dtype)
        )
        assert found.shape == (3,)
        assert bool((found <= top * (1 + 1e-5)).all())
        assert bool((found * SAFETY >= top).all())


@pytest.mark.parametrize("seed", range(5))
def test_dense_norm_is_not_underestimated(seed, float64):
    matrix = rand(30, 48, seed=seed) @ torch.diag(10 ** rand(48, seed=seed + 10))
    physics = dense(matrix, (3, 4, 4))
    true = float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    found = DataTerm(rand(2, 1, 1, 30), physics).sqnorm
    assert bool((found >= true).all())
    assert bool((found <= true * SAFETY * (1 + 1e-12)).all())


def test_tiny_image_is_exact_up_to_the_factor(float64):
    physics = dense(torch.diag(torch.tensor([3.0, 1.0])), (1, 1, 2))
    assert float(DataTerm(rand(1, 1, 1, 2), physics).sqnorm) == pytest.approx(9 * SAFETY)


def test_downsampling_norm():
    physics = Downsampling(img_size=(1, 12, 12), factor=2, filter="gaussian", padding="circular")
    problem = DataTerm(physics.A(rand(1, 1, 12, 12)), physics)
    true = exact_sqnorm(physics, (1, 12, 12))
    assert true <= float(problem.sqnorm) <= true * SAFETY * (1 + 1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Denoising(),
        lambda: Inpainting((2, 7, 9), mask=0.5),
        lambda: Inpainting((2, 7, 9), mask=torch.rand(1, 2, 7, 9) * 1.7),
        lambda: BlurFFT((2, 7, 9), kernel((3, 5))),
    ],
    ids=["denoise", "mask", "weights", "blur"],
)
def test_decomposable_physics_are_exact(make, float64):
    physics = make()
    problem = DataTerm(physics.A(rand(1, 2, 7, 9)), physics)
    assert problem.sqnorm_kind == "exact"
    assert float(problem.sqnorm) == pytest.approx(exact_sqnorm(physics, (2, 7, 9)), rel=1e-9)
    x = rand(1, 2, 7, 9, seed=4)
    torch.testing.assert_close(problem.normal(x), physics.A_adjoint(physics.A(x)), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", [(15, 23), (16, 16), (31, 18)], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("k", [*KERNELS, (8, 8), (9, 9)], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("padding", PADDINGS)
def test_fast_blur_normal_is_exact(padding, k, size):
    for channels, filters in ((1, 1), (3, 1), (3, 3)):
        physics = Blur(kernel(k, filters), padding=padding)
        x = rand(2, channels, *size)
        expected = physics.A_adjoint(physics.A(x))
        found = BlurNormal(physics, x.shape)(x)
        assert float((found - expected).abs().max()) < 1e-5


def test_grids_have_lengths_that_an_fft_is_fast_at():
    assert [fast_length(n) for n in (1, 7, 16, 23, 333, 493, 524, 1031)] == [2, 8, 16, 24, 336, 500, 528, 1050]


@pytest.mark.parametrize("padding", ["valid", "reflect"])
def test_the_norm_is_sought_in_one_image_and_channel_of_each_kernel(padding):
    """A channel more and an image more change nothing; a channel with a kernel of its own does."""
    one = kernel((4, 5))
    grey, x = Blur(one, padding=padding), rand(2, 3, 12, 14)
    alone = DataTerm(grey.A(x[:1, :1]), grey).sqnorm
    colour = Blur(one, padding=padding)
    torch.testing.assert_close(DataTerm(colour.A(x), colour).sqnorm, alone)
    stronger = Blur(torch.cat([one, 2 * one, one], 1), padding=padding)
    torch.testing.assert_close(DataTerm(stronger.A(x), stronger).sqnorm, 4 * alone, rtol=1e-3, atol=0)


@pytest.mark.parametrize("padding", PADDINGS)
def test_fast_blur_is_what_the_problem_uses(padding):
    """And one kernel per image of the batch has a norm per image, never below the true one."""
    physics = Blur(torch.cat([kernel((3, 4)), 2 * kernel((3, 4), seed=1)]), padding=padding)
    x = rand(2, 1, 12, 10)
    problem = DataTerm(physics.A(x), physics)
    assert isinstance(problem.normal, BlurNormal)
    torch.testing.assert_close(problem.normal(x), physics.A_adjoint(physics.A(x)), rtol=0, atol=1e-5)
    for i in range(2):
        alone = Blur(physics.filter[i : i + 1], padding=padding)
        assert float(problem.sqnorm[i]) >= exact_sqnorm(alone, (1, 12, 10)) * (1 - 1e-5)


NAMED = [
    ("denoise", {}),
    ("inpaint", {"keep": 0.4}),
    ("inpaint", {"mask": "given"}),
    ("deblur", {"kernel": "three-motions"}),
    *[("deblur", {"kernel": k, "boundary": b}) for k in KERNELS for b in ("reflect", "circular", "valid")],
    ("deblur", {"kernel": "three-motions", "boundary": "valid"}),
    ("deblur", {"kernel": "motion:9@30", "boundary": "circular"}),
    *[("superres", {"factor": f, "boundary": b}) for f in (2, 3, 4) for b in ("reflect", "circular")],
    ("superres", {"factor": 2, "kernel": None}),
    ("superres", {"factor": 3, "kernel": "gaussian:1.2"}),
    ("superres", {"factor": 2, "kernel": (5, 4)}),
]


def test_every_named_problem_is_covered():
    assert {name for name, _ in NAMED} == set(problems.names())


def relative_gap(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [(26, 36), (25, 31)], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize(
    ("name", "options"), NAMED, ids=lambda o: o if isinstance(o, str) else "-".join(map(str, o.values()))
)
def test_the_route_of_every_named_problem_is_exact(name, options, size, dtype):
    """Grey, colour, a kernel for each channel, batches: against the physics' own ``A_adjoint(A(x))``."""
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    for channels in (1, 3):
        given = dict(options)
        if isinstance(given.get("kernel"), tuple):
            given["kernel"] = kernel(options["kernel"], channels)
        elif given.get("kernel") == "three-motions" and channels == 1:
            continue
        if "mask" in given:
            given["mask"] = (rand(channels, *size) > 0).to(dtype)
        x = rand(2, channels, *size, dtype=dtype)
        y, physics = problems.get(name, sigma=0.01, **given).measure(x)
        problem = DataTerm(y, physics)
        assert problem.normal != physics.A_adjoint_A  # not its own route, which would agree by itself
        found = problem.normal(x)
        assert found.dtype == dtype
        assert relative_gap(found, physics.A_adjoint(physics.A(x))) < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [(16, 24), (15, 23), (16, 17)], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("padding", PADDINGS)
def test_fast_route_of_every_padding(padding, factor, size, dtype):
    """Spatial blur (1) and subsampled blur, odd and even kernels, shared, per channel, and per image."""
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    for k, images, filters in (((3, 3), 1, 1), ((5, 4), 1, 3), ((4, 4), 2, 1)):
        taps = torch.cat([kernel(k, filters, seed=i) for i in range(images)]).to(dtype)
        if factor == 1:
            physics = Blur(taps, padding=padding)
        else:
            physics = Downsampling((3, *size), filter=taps, factor=factor, padding=padding)
        x = rand(2, 3, *size, dtype=dtype)
        problem = DataTerm(physics.A(x), physics)
        assert isinstance(problem.normal, BlurNormal)
        assert relative_gap(problem.normal(x), physics.A_adjoint(physics.A(x))) < bound


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", [(12, 8), (12, 9)], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("factor", [2, 4])
def test_norm_of_a_subsampled_blur(padding, size, factor, float64):
    physics = Downsampling((1, *size), filter=kernel((3, 4)), factor=factor, padding=padding)
    problem = DataTerm(physics.A(rand(1, 1, *size)), physics)
    true, found = exact_sqnorm(physics, (1, *size)), float(problem.sqnorm)
    if padding == "circular" and size[1] % factor == 0:
        assert problem.sqnorm_kind == "exact"
        assert found == pytest.approx(true, rel=1e-10)
    else:
        assert problem.sqnorm_kind == "estimated"
        assert true <= found <= true * SAFETY * (1 + 1e-12)


def test_bare_subsampling_is_exact():
    physics = Downsampling((1, 9, 8), filter=None, factor=3)
    x = rand(2, 1, 9, 8)
    problem = DataTerm(physics.A(x), physics)
    assert (problem.sqnorm_kind, float(problem.sqnorm)) == ("exact", 1.0)
    assert torch.equal(problem.normal(x), physics.A_adjoint(physics.A(x)))


def test_kernel_larger_than_the_image():
    physics = Blur(kernel((9, 9)), padding="constant")
    x = rand(1, 1, 6, 7)
    problem = DataTerm(physics.A(x), physics)
    torch.testing.assert_close(problem.normal(x), physics.A_adjoint(physics.A(x)), rtol=0, atol=1e-5)


def test_norm_per_image_when_the_mask_has_a_batch(float64):
    mask = torch.stack([torch.full((1, 4, 4), 1.0), torch.full((1, 4, 4), 0.5)])
    problem = DataTerm(rand(2, 1, 4, 4), Inpainting((1, 4, 4), mask=mask))
    torch.testing.assert_close(problem.sqnorm, torch.tensor([1.0, 0.25]))


class Counting(LinearPhysics):
    """A diagonal operator that counts its evaluations."""

    def __init__(self, gain):
        super().__init__()
        self.register_buffer("gain", gain)
        self.counter = itertools.count()  # not plain data: a number would be an attribute that changes

    @property
    def calls(self):
        return self.counter.__reduce__()[1][0]

    def A(self, x, **kwargs):
        next(self.counter)
        return x * self.gain

    def A_adjoint(self, y, **kwargs):
        return y * self.gain


def test_facts_are_computed_once_per_physics_and_size():
    physics = Counting(torch.rand(1, 1, 4, 4) + 0.5)
    for _ in range(3):
        DataTerm(rand(1, 1, 4, 4), physics)
    first = physics.calls
    DataTerm(rand(1, 1, 4, 4, seed=5), physics)
    assert physics.calls == first
    DataTerm(rand(2, 1, 4, 4), physics)  # another batch
    assert physics.calls > first


def double(physics):
    physics.gain.mul_(2)


def replace(physics):
    physics.gain = physics.gain * 2


def update(physics):
    physics.update(gain=physics.gain * 2)


@pytest.mark.parametrize("change", [double, replace, update], ids=["in-place", "replaced", "update"])
def test_facts_follow_a_changed_physics(change):
    physics = Counting(torch.rand(1, 1, 4, 4) + 0.5)
    y, x = rand(1, 1, 4, 4), rand(1, 1, 4, 4, seed=1)
    before = DataTerm(y, physics)
    kept = before.sqnorm.clone()
    change(physics)
    after = DataTerm(y, physics)
    torch.testing.assert_close(after.sqnorm, 4 * kept, rtol=1e-4, atol=0)
    torch.testing.assert_close(after.normal(x), physics.gain**2 * x)


class Plain(LinearPhysics):
    """A multiple of the identity whose factor is held in plain data."""

    def __init__(self, held, look):
        super().__init__()
        self.held, self.look = held, look

    def A(self, x, **kwargs):
        return x * float(self.look(self.held))

    A_adjoint = A


@pytest.mark.parametrize(
    ("held", "look"),
    [
        (np.array([1.0, 2.0]), lambda h: h[1]),
        ([1.0, [2.0]], lambda h: h[1][0]),
        ({"gains": [1.0, torch.tensor(2.0)]}, lambda h: h["gains"][1]),
    ],
    ids=["array", "list", "dict"],
)
def test_facts_follow_changed_plain_data(held, look):
    physics = Plain(held, look)
    y = rand(1, 1, 4, 4)
    assert float(DataTerm(y, physics).sqnorm) == pytest.approx(4 * SAFETY, rel=1e-4)
    assert float(DataTerm(y, physics).sqnorm) == pytest.approx(4 * SAFETY, rel=1e-4)
    if isinstance(held, np.ndarray):
        held[1] = 3.0
    elif isinstance(held, list):
        held[1][0] = 3.0
    else:
        held["gains"][1].add_(1)
    assert float(DataTerm(y, physics).sqnorm) == pytest.approx(9 * SAFETY, rel=1e-4)


def test_blur_follows_a_changed_kernel():
    physics = Blur(kernel((3, 3)), padding="circular")
    x = rand(1, 1, 8, 8)
    DataTerm(x, physics)
    physics.update(filter=kernel((3, 3), seed=3) * 2)
    torch.testing.assert_close(DataTerm(x, physics).normal(x), physics.A_adjoint(physics.A(x)), rtol=0, atol=1e-5)
    physics.padding = "reflect"
    torch.testing.assert_close(DataTerm(x, physics).normal(x), physics.A_adjoint(physics.A(x)), rtol=0, atol=1e-5)


def test_inpainting_follows_a_changed_mask():
    physics = Inpainting((1, 4, 4), mask=0.5)
    y = rand(1, 1, 4, 4)
    DataTerm(y, physics)
    physics.update(mask=torch.full((1, 1, 4, 4), 0.5))
    assert float(DataTerm(y, physics).sqnorm) == pytest.approx(0.25)
    torch.testing.assert_close(DataTerm(y, physics).normal(y), 0.25 * y)


def test_physics_made_under_inference_mode():
    with torch.inference_mode():
        physics = Blur(kernel((3, 3)), padding="reflect")
    x = rand(1, 1, 8, 8)
    torch.testing.assert_close(DataTerm(x, physics).normal(x), physics.A_adjoint(physics.A(x)), rtol=0, atol=1e-5)


def test_the_callers_random_stream_is_left_alone():
    physics = dense(rand(4, 4), (1, 2, 2))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    DataTerm(rand(1, 1, 1, 4), physics)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("given", [3.0, torch.tensor([3.0, 5.0])])
def test_given_norm_is_used(given):
    problem = DataTerm(rand(2, 1, 4, 4), Denoising(), sqnorm=given)
    assert problem.sqnorm_kind == "given"
    torch.testing.assert_close(problem.lipschitz, torch.as_tensor(given).reshape(-1))


@pytest.mark.parametrize("given", [0.0, -1.0, float("nan"), float("inf"), torch.ones(3)])
def test_bad_given_norm(given):
    with pytest.raises(InvalidParameterError, match=r"sqnorm.*positive and finite"):
        DataTerm(rand(2, 1, 4, 4), Denoising(), sqnorm=given)


def test_gradients_reach_the_parameters_of_a_diagonalised_physics(float64):
    """A physics that is not one of the known classes is cached, but its mask must not be frozen in the cache."""
    mask = (0.5 + torch.rand(1, 2, 8, 8)).requires_grad_()

    class Mine(Inpainting):
        pass

    x = torch.rand(1, 2, 8, 8)

    def loss(m):
        physics = Mine((2, 8, 8), mask=m)
        problem = DataTerm(x, physics)
        return problem.normal(x).square().sum()

    loss(mask).backward()
    assert mask.grad is not None
    torch.testing.assert_close(mask.grad, 4 * mask.detach() ** 3 * x**2, rtol=1e-10, atol=1e-12)


def test_the_cache_does_not_keep_a_physics_alive():
    class Mine(Inpainting):
        pass

    made = [
        Mine((1, 8, 8), mask=torch.ones(1, 1, 8, 8)),
        Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding="reflect"),
    ]
    references = [weakref.ref(p) for p in made]
    for physics in made:
        DataTerm(physics.A(torch.rand(1, 1, 8, 8)), physics)
    del made, physics
    gc.collect()
    assert [r() for r in references] == [None, None]


@pytest.mark.parametrize("make", [Denoising, lambda: Inpainting((1, 8, 8), mask=0.5)], ids=["denoise", "mask"])
def test_a_replaced_method_counts_and_not_the_class(make):
    """The class would tell ‖A‖² = 1 and AᵀA = the mask; the object does something else."""
    physics = make()
    own, back = physics.A, physics.A_adjoint
    physics.A = lambda x, **_: 3 * own(x.flip(-1))
    physics.A_adjoint = lambda y, **_: 3 * back(y).flip(-1)
    x = rand(1, 1, 8, 8)
    problem = DataTerm(physics.A(x), physics)
    torch.testing.assert_close(problem.normal(x), physics.A_adjoint(physics.A(x)))
    assert 9 <= float(problem.sqnorm) <= 9 * 1.1 * SAFETY


def test_an_adjoint_that_raises_anything_is_named():
    physics = LinearPhysics(A=lambda x, **_: x, A_adjoint=lambda y, **_: {}["missing"])
    with pytest.raises(ShapeError, match=r"Aᵀy failed with .*missing"):
        DataTerm(rand(1, 1, 8, 8), physics)
