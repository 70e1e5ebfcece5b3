"""The certificate of a restoration: its share of the processor time, and its estimate beside the true distance.

"an eighth" is what ``retune restore`` does: about an eighth of the layers of the solve run beyond the result, and their
movements show the rate. "as many again" is a certificate of as many layers as the solve, half of them in power
iterations from two starts. The true distance is that to the image where the same iteration settles to 1e-6. Photograph
of 96×96 in colour. Run ``python benchmarks/certificates.py``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from rich.table import Table

import retune
from _timing import CONSOLE, arguments, where, write
from retune import problems
from retune.certificate.quick import certificate_of
from retune.config import Config
from retune.data import photograph
from retune.instant import instant_network


def networks() -> dict[str, tuple[retune.Restarted, problems.Problem]]:
    """The cases: a network and its problem."""
    noise, blur = problems.denoise(0.1), problems.deblur("gaussian:1.6", sigma=0.02)

    def wavelets(reg: float, solver: retune.AbstractSolver, margin: int = 0) -> retune.Restarted:
        prior = retune.priors.WaveletL12("db4", 4, channels=3, margin=margin)
        return retune.Restarted(retune.ForwardBackward(prior, reg=reg), 10, solver=solver).eval()

    return {
        "noise, denoiser that ships": (instant_network(Config(), noise, torch.rand(1, 3, 96, 96))[0], noise),
        "noise, wavelets with a margin, plain": (wavelets(0.1, retune.Picard(), 8), noise),
        "blur, wavelets, plain": (wavelets(0.01, retune.Picard()), blur),
        "blur, wavelets, Inertial": (wavelets(0.01, retune.Inertial()), blur),
        "blur, wavelets, Anderson": (wavelets(0.01, retune.Anderson()), blur),
    }


def as_many_again(net, y, physics, found, bound) -> retune.ImageCertificate:
    """A certificate of about as many layers as the solve."""
    layers = int(found.layers[0])
    starts = 2 if layers >= 100 else 1
    return retune.certify(
        net,
        y,
        physics,
        result=found,
        bound=bound,
        iterations=max(1, min(20, layers // (10 * starts))),
        starts=starts,
        max_layers=max(net.depth, layers // 2),
        learning=False,
    )[0]


def seconds(call: Callable[[], object]) -> tuple[float, object]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def main() -> None:
    """Run it."""
    options = arguments(__doc__)
    x = photograph("chelsea")[None, :, 60:156, 120:216]
    table = Table(title=f"Certificates without graph, 1×3×96×96\n{where(options)}")
    for heading in ("", "layers", "share: as many again", "an eighth", "RMSE: as many again", "an eighth", "true"):
        table.add_column(heading, justify="left" if not heading else "right")
    records = []
    for name, (net, problem) in networks().items():
        y, physics = problem.measure(x)
        with torch.no_grad():
            bound = net.bind(y, physics)
            net.solve(y, physics, bound=bound)  # fills the caches
            solve, found = seconds(lambda net=net, y=y, p=physics, b=bound: net.solve(y, p, bound=b))
            assert isinstance(found, retune.Equilibrium)
            given = (net, y, physics, found, bound)
            times, errors = [], []
            for certificate in (as_many_again, certificate_of):
                took, image = seconds(lambda c=certificate, given=given: c(*given))
                assert isinstance(image, retune.ImageCertificate)
                assert image.rmse.estimated is not None
                times.append(took / (took + solve))
                errors.append(image.rmse.estimated.value)
            stop = retune.Stop(1e-6, 10 * int(found.layers[0]) if options.quick else 5000)
            plain = copy.copy(net)
            plain.solver = retune.Picard()  # whatever solved: the equilibrium is the same
            far = plain.solve(y, physics, bound=bound, stop=stop, init=found.image)
        true = float((far.image - found.image).square().mean().sqrt())
        table.add_row(
            name,
            str(int(found.layers[0])),
            *(f"{t:.2f}" for t in times),
            *(f"{e:.1e}" for e in errors),
            f"{true:.1e}",
        )
        CONSOLE.print(f"{name}: shares {times[0]:.2f}, {times[1]:.2f}", style="dim")
        records.append({"case": name, "layers": int(found.layers[0]), "shares": times, "rmse": errors, "true": true})
    CONSOLE.print(table)
    write(options, "certificates without graph", records)


if __name__ == "__main__":
    main()
