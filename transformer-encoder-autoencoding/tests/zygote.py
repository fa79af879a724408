"""Runs the folder's commands for the tests, sparing each the seconds that importing PyTorch takes: this
process imports what the scripts need, then forks a child for every command that comes over the socket whose
number is its argument.

A child is a process of its own, with the arguments, folder, environment, streams and limits that it is sent,
and runs the script from its first line to its last as a fresh interpreter would. No tensor has been computed
and no text tokenized when it is forked, so that there are no threads that a fork would lose.
"""

import ctypes
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import socket
import sys
import traceback


def die_with_parent():
    """Let the end of the process that has started this one end this one."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, of Linux


for name in (
    "matplotlib.pyplot",
    "safetensors.torch",
    "tokenizers.trainers",
    "torch._dynamo",  # every optimizer imports it
    "torch.distributed",
    "tqdm",
):
    importlib.import_module(name)
die_with_parent()
gc.freeze()  # what is here stays, and shared between all children
server = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, streams, *_ = socket.recv_fds(server, 2**20, 3)
    if not message:
        sys.exit()
    if not (child := os.fork()):
        break  # the child goes on below
    for stream in streams:
        os.close(stream)
    server.send(str(child).encode())
    server.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())

die_with_parent()
server.close()
for number, stream in enumerate(streams):
    os.dup2(stream, number)
    os.close(stream)
request = json.loads(message)
os.chdir(request["cwd"])
os.environ.clear()
os.environ.update(request["environment"])
for name, most in request["limits"].items():
    resource.setrlimit(getattr(resource, name), (most, most))
sys.argv = request["line"]
sys.path[0] = os.path.dirname(sys.argv[0])  # noqa: PTH120
status = 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    status = stop.code or 0
except BaseException:
    traceback.print_exc()
    status = 1
try:
    sys.stdout.flush()
except OSError:
    status = 120  # an interpreter's status then
os._exit(status)  # at once: to take PyTorch's modules down would last half a second
