"""Test the claims of Apriel-H1 again on the shipped teacher.

    python -m benchmarks.evidence run                   # everything, what is there is kept
    python -m benchmarks.evidence run --arm random_init --seed 1
    python -m benchmarks.evidence page                  # docs/evidence from what is there

Any number of processes may run at once: each takes what no other is at. A killed one is continued.
"""

import argparse
import multiprocessing
import time
from pathlib import Path

from benchmarks.evidence.arms import ARMS

ROOT = Path(__file__).resolve().parents[2]
RESULTS, WORK = ROOT / "docs" / "evidence" / "runs", ROOT / "build" / "evidence"
SEEDS = (1, 2, 3)


def run(given: argparse.Namespace) -> None:
    """Run what is not there yet, in several processes if asked for."""
    if given.processes == 1:
        work(given)
        return
    made = multiprocessing.get_context("spawn")
    workers = [made.Process(target=work, args=(given,)) for _ in range(given.processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a process failed; what is done is kept: run the same command again.")


def work(given: argparse.Namespace) -> None:
    """Run what is not there and no other process is at, all arms of a seed before the next."""
    from benchmarks.evidence.run import IMPORTANCE, SFT, Bench

    bench = Bench(RESULTS, WORK)
    names = given.arm or [IMPORTANCE, *ARMS, SFT]
    for seed in given.seed or SEEDS:
        for name in names:
            started = time.monotonic()
            made = bench.once(name, seed)
            if made is None:
                continue
            short = {key: round(made[key], 4) for key in ("reverse_kl", "accuracy") if key in made}
            print(name, seed, short, f"{time.monotonic() - started:.0f} s", flush=True)


def page(given: argparse.Namespace) -> None:
    """Write the page of claims."""
    from benchmarks.evidence.page import write_page

    write_page(RESULTS, RESULTS.parent)


def main() -> None:
    """Run arms, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("--arm", action="append", help="an arm, importance or sft_merge")
    one.add_argument("--seed", action="append", type=int)
    one.add_argument("--processes", type=int, default=1)
    one.set_defaults(do=run)
    other = commands.add_parser("page")
    other.set_defaults(do=page)
    given = parser.parse_args()
    given.do(given)


if __name__ == "__main__":
    main()
