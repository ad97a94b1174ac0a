"""A daemon's end: its own code, everything printed, exit handlers run, and no teardown that could crash."""

import subprocess
import sys

PROGRAM = """
import asyncio, atexit, sys
import grpc.aio
from fleet.process_end import end_without_teardown, keep_grpc_up

class Late:
    def __del__(self):
        print("torn down", flush=True)

late = Late()
late.itself = late  # lives until the interpreter is taken apart
atexit.register(lambda: print("handler"))

async def main():
    keep_grpc_up()
    server = grpc.aio.server()
    await server.start()
    await server.stop(0)

asyncio.run(main())
end_without_teardown(CODE)
print("last word")
"""


def ended(code: int) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.replace("CODE", str(code))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)


def test_it_ends_with_its_code_after_its_handlers_and_without_teardown() -> None:
    for code in (0, 3):
        done = ended(code)
        assert (done.returncode, done.stdout.split("\n")) == (code, ["last word", "handler", ""]), done.stderr


HUNG = """
import threading
from concurrent.futures import ThreadPoolExecutor
from fleet.process_end import end_within

end_within(0.1, 7)
ThreadPoolExecutor().submit(threading.Event().wait)  # the interpreter waits for it at its end
"""


def test_a_thread_that_never_comes_back_does_not_keep_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", HUNG], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 7
