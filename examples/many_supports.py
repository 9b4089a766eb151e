"""Add hundreds of supports in bounded memory, and find the one that was annotated wrongly.

python examples/many_supports.py [--server localhost:50051] [--supports 200]
"""

# ruff: noqa: T201 - an example talks to whoever runs it
import argparse
from collections.abc import Iterator

import numpy as np
from skimage import data, filters

from fewseg import Client, Support


def crops(count: int) -> Iterator[Support]:
    """Pieces of a photograph with their masks; in one of them, coins and ground are swapped."""
    photograph = data.coins()[:288]
    coins = photograph > filters.threshold_local(photograph, 201, offset=-15)
    random = np.random.default_rng(0)
    for number in range(count):
        top, left = random.integers(0, 144), random.integers(0, 240)
        here = np.s_[top : top + 144, left : left + 144]
        mask = ~coins[here] if number == 20 else coins[here]
        yield Support(photograph[here], mask, id=f"crop-{number:04d}")


def main() -> None:
    """Every support is told how well the others predict it; a wrong one stands out."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--server", default=":embedded:", help="address of a FewSeg server")
    parser.add_argument("--supports", type=int, default=200, help="how many to send")
    options = parser.parse_args()

    supports = crops(options.supports)
    with Client(options.server) as client:
        task = client.register(["coin"], [next(supports)], ttl=600)
        task = client.add_supports(
            task, supports, progress=lambda sent: print(f"\r{sent} sent", end="", flush=True)
        )
        print(f"\n{task.support_count} supports in {task.timings['total']:.2f} s")

        # A server judges as many supports as it has time for, the first ones first.
        agreement = {s.id: s.leave_one_out["coin"] for s in task.supports if s.leave_one_out}
        typical = np.median(list(agreement.values()))
        worst = min(agreement, key=agreement.__getitem__)
        print(f"agreement of {len(agreement)} with the others: {typical:.2f} (median)")
        print(f"worst: {worst} with {agreement[worst]:.2f}; it is removed")
        task = client.remove_support(task, worst)
        print(f"{task.support_count} supports are left")


if __name__ == "__main__":
    main()
