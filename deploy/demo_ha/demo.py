"""`make demo-ha`: a rolling upgrade through a load balancer under load, with a live view; see walk.py."""

import io
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    sys.path.insert(0, str(ROOT))
    from deploy.demo_ha.walk import run

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII only is no reason to stop
    return run(ROOT)


if __name__ == "__main__":
    sys.exit(main())
