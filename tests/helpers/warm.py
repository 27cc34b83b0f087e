"""Python processes that do not import TensorFlow: they are forked from one that has done so.

    python -IS tests/helpers/warm.py SOCKET -c CODE ...

does what `python -c CODE ...` does, in its own working directory, environment and standard
streams, and likewise with `-m MODULE` or the path of a program. Importing TensorFlow and Keras
takes five seconds of processor time, a fork a few milliseconds. Where the start of a process is
what is tested, the interpreter is started itself.

    python -P tests/helpers/warm.py SOCKET

serves such processes, until its standard input ends. It has computed nothing when it forks, so
that there are no threads whose locks a fork could tear apart.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def ask(path: str, arguments: list[str]) -> int:
    """Has a process run, passes signals on to it, and returns its status; it dies with this one."""
    passed_on = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        request = json.dumps([arguments, str(Path.cwd()), dict(os.environ)]).encode()
        socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(request)
        answers = server.makefile()
        child = int(answers.readline())
        for number in passed_on:
            signal.signal(number, lambda number, _: os.kill(child, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
        return int(answers.readline())


def serve(path: str) -> tuple[list[str], str, dict[str, str]]:
    """Forks a process for each request; in that process, returns what it is asked to do."""
    import selectors

    selector = selectors.DefaultSelector()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()  # requests wait while this imports
        _warm_up()
        selector.register(sys.stdin, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        children: dict[socket.socket, int] = {}
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    for child in children.values():
                        os.kill(child, signal.SIGKILL)
                        os.waitpid(child, 0)
                    sys.exit()
                elif key.fileobj is listener:
                    client, _ = listener.accept()
                    header, streams, _, _ = socket.recv_fds(client, 4, 3)
                    request = client.makefile("rb").read(int.from_bytes(header, "big"))
                    child = os.fork()
                    if child == 0:
                        selector.close()
                        for other in children:
                            other.close()
                        client.close()
                        for number, stream in enumerate(streams):
                            os.dup2(stream, number)
                            os.close(stream)
                        return json.loads(request)
                    for stream in streams:
                        os.close(stream)
                    with contextlib.suppress(OSError):
                        client.sendall(b"%d\n" % child)
                    children[client] = child
                    selector.register(client, selectors.EVENT_READ)
                    selector.register(os.pidfd_open(child), selectors.EVENT_READ, client)
                elif key.data is None:  # the client is gone, be it that it was killed
                    if key.fileobj in children:
                        selector.unregister(key.fileobj)
                        os.kill(children[key.fileobj], signal.SIGKILL)
                else:  # the process has ended
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    client = key.data
                    _, status = os.waitpid(children.pop(client), 0)
                    with contextlib.suppress(KeyError):
                        selector.unregister(client)
                    with contextlib.suppress(OSError):
                        client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                    client.close()


def _warm_up() -> None:
    import gc
    import runpy

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras  # noqa: F401
    import pandas  # noqa: F401

    runpy.run_path(str(Path(__file__).with_name("cheap_keras.py")))["install"]()
    gc.collect()
    gc.freeze()  # what is imported is not garbage, and stays shared between processes


def become(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Makes this process the one that was asked for, and runs its program."""
    import runpy
    import types

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if "MPLBACKEND" in environment:  # which matplotlib, imported by Keras, reads but once
        import matplotlib

        matplotlib.rcParams["backend"] = environment["MPLBACKEND"]
    sys.path[:0] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    main = types.ModuleType("__main__")
    option, *rest = arguments
    if option == "-c":
        sys.argv, sys.modules["__main__"] = ["-c", *rest[1:]], main
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif option == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(option).resolve().parent)
        runpy.run_path(option, run_name="__main__")


def end(program: Callable[[], None]) -> NoReturn:
    """Runs a program and ends as Python does, but without taking all modules apart for a second."""
    import atexit
    import threading
    import traceback

    status: object = 0
    try:
        program()
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)  # noqa: T201
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        request = serve(sys.argv[1])
        end(lambda: become(*request))
    else:
        status = ask(sys.argv[1], sys.argv[2:])
        if status < 0:
            with contextlib.suppress(OSError):  # nothing is to be set for SIGKILL
                signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        sys.exit(status)
