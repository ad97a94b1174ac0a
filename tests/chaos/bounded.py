"""A program that does not stay: `python -m tests.chaos.bounded SECONDS MODULE ARGUMENT…`.

It ends with whoever started it, and after its time whatever happens. A frozen one is not spared.
"""

import ctypes
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    seconds, module, *_ = sys.argv[1:]
    signal.alarm(int(seconds))
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
