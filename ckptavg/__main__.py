"""The program `ckptavg`, and `python -m ckptavg`."""

import os
import sys


def main() -> None:
    """Runs the command line, and ends with one line where not even that can be imported."""
    try:
        from ckptavg.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)  # silently, as later: whoever pressed Ctrl-C knows
    except MemoryError:
        sys.stderr.write(
            "error: there is not enough memory: end other programs, raise the limit (ulimit -v), "
            "or use smaller batches\n"
        )
        sys.stderr.flush()
        os._exit(1)  # ending in order would need memory, and fill the screen with more errors
    except ImportError as error:
        # Of ours none is missing: a library is, or the system cannot load it.
        sys.exit(f"error: ckptavg cannot start: {error}")


if __name__ == "__main__":
    main()
