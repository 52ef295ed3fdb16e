"""``python -m benchmarks.coherence --runtime process --rounds 100``; ``--baselines`` judges those instead."""

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.coherence import campaign
from benchmarks.coherence.baselines import BASELINES


def main() -> None:
    parser = argparse.ArgumentParser(description="Back up at full write load, restore, judge.")
    parser.add_argument("--runtime", choices=["process", "docker"], default="process")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--results", type=Path, default=Path("data/results/coherence.ndjson"))
    parser.add_argument("--baselines", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stack goes, too
    if options.baselines:
        with campaign.opened(options.runtime) as stack:
            for number, name in enumerate(BASELINES, 1):
                verdict = campaign.baseline(stack, number, name)
                print(f"{name}: {len(verdict.violations)} violations, skew {verdict.skew_operations} operations,"
                      f" {verdict.skew_ms:.0f} ms")  # fmt: skip
                for violation in verdict.violations:
                    print(f"  {violation}")
        return
    for name, value in campaign.figures(campaign.campaign(options.runtime, options.rounds, options.results)).items():
        print(f"{name:30} {value}")


if __name__ == "__main__":
    main()
