"""Add a thousand supports in bounded memory, and find the one that was annotated wrongly.

python examples/many_supports.py [--server localhost:50051] [--supports 1000]
"""

# ruff: noqa: T201 - an example talks to whoever runs it
import argparse
import time
from collections.abc import Iterator

import numpy as np
from pictures import coins

from fewseg import Client, Support, Task

SWAPPED = 20
QUERIES = 9


def crops(count: int) -> Iterator[Support]:
    """Pieces of a photograph with their masks; in one of them, coins and ground are swapped."""
    photograph = coins()
    random = np.random.default_rng(0)
    for number in range(count):
        top, left = random.integers(0, 144), random.integers(0, 240)
        here = np.s_[top : top + 144, left : left + 144]
        mask = photograph.labels[here] == (0 if number == SWAPPED else 1)
        yield Support(photograph.pixels[here], mask, id=f"crop-{number:04d}")


def query_cost(client: Client, task: Task) -> str:
    """What a query holds and takes (the median), its photograph being known from the second on."""
    photograph = coins().pixels
    seconds = []
    for _ in range(QUERIES):
        started = time.perf_counter()
        client.segment(task, photograph)
        seconds.append(time.perf_counter() - started)
    held = client.get_task(task).guidance_bytes
    return f"{held} bytes of guidance, {np.median(seconds):.3f} s a query"


def main() -> None:
    """Every support is told how well the others predict it; a wrong one stands out."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--server", default=":embedded:", help="address of a FewSeg server")
    parser.add_argument("--supports", type=int, default=1000, help="how many to send")
    options = parser.parse_args()

    supports = crops(options.supports)
    with Client(options.server) as client:
        task = client.register(["coin"], [next(supports)], ttl=600)
        print(f"1 support: {query_cost(client, task)}")
        task = client.add_supports(
            task, supports, progress=lambda sent: print(f"\r{sent} sent", end="", flush=True)
        )
        print(f"\n{task.support_count} supports in {task.timings['total']:.2f} s")
        print(f"{task.support_count} supports: {query_cost(client, task)}")

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
