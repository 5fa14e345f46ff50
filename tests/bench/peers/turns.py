"""What the peers' scripts share: a turn for every line that comes in."""

import json
import os
import sys
import time
from collections.abc import Callable

answers = os.fdopen(os.dup(1), "w")  # whatever a library prints goes elsewhere
os.dup2(2, 1)


def serve(turn: Callable[[], float]) -> None:
    """For each line, do a stretch of work, and answer how many units it was and how many seconds it took."""
    for _ in sys.stdin:
        start = time.perf_counter()
        units = turn()
        print(json.dumps([units, time.perf_counter() - start]), file=answers, flush=True)
