"""Read the command line of `python -m data_prep`, and report its errors."""

import signal
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor

from data_prep.arguments import make_parser
from data_prep.pool import open_pool
from gpt_dist.errors import GptDistError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Under an MPI launcher, the first rank runs it and the others work for it.

    Returns:
        The exit status: 0 for success, 2 for damage or an error of the user, 130 if interrupted.
    """
    options = make_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with open_pool(getattr(options, "workers", 1)) as pool:
            if pool:
                from data_prep.commands import run  # slow to import

                run(options, pool)
    except GptDistError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenExecutor:
        print(
            "error: a worker process was killed, perhaps because memory ran out; run the command "
            "again to continue, with fewer --workers",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        more = "; run the same command again to continue" if options.command == "build" else ""
        print(f"error: interrupted{more}", file=sys.stderr)
        return 130
    return 0
