# SPDX-License-Identifier: Apache-2.0
"""
``python -m tests.vm``: fetch kernels and run commands in their guests.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
from pathlib import Path

from tests.vm import boot, fetch, kernels


def main(arguments: list[str] | None = None) -> int:
    """
    Return the guest command's exit status, or 70 when the guest itself failed.
    """
    options = _parser().parse_args(arguments)
    # A guest has to end with us.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        if options.verb == "list":
            for kernel in kernels.KERNELS:
                image = fetch.cached(kernel)
                print(
                    f"{kernel.name:6} {image.release if image else '(not fetched)':28} {kernel.why}"
                )
            return 0
        if options.verb == "fetch":
            for name in options.kernels or [kernel.name for kernel in kernels.KERNELS]:
                image = fetch.fetch(kernels.find(name), again=options.again)
                print(f"{name:6} {image.release}", flush=True)
            return 0
        return _run(options)
    except (LookupError, fetch.FetchError, boot.BootError) as error:
        print(error, file=sys.stderr)
        return 70


def _run(options: argparse.Namespace) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        msg = "no command for the guest: write it after --"
        raise LookupError(msg)
    image = fetch.fetch(kernels.find(options.kernel))
    with contextlib.ExitStack() as stack:
        if options.share is None:
            share = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kprobe_modules-")))
        else:
            share = options.share.resolve()
            share.mkdir(parents=True, exist_ok=True)
        outcome = boot.run(
            image,
            command[0] if len(command) == 1 else command,
            share=share,
            timeout=options.timeout,
            machine=boot.Machine(options.memory, options.cpus, options.multi_threaded),
            show=_show,
        )
    print(
        f"{image.release}: exit status {outcome.status} after {outcome.seconds:.0f} s",
        file=sys.stderr,
    )
    return outcome.status


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="the kernels, and which are fetched")
    fetching = verbs.add_parser("fetch", help="fetch kernels into the cache")
    fetching.add_argument(
        "--again", action="store_true", help="look for a newer build of what is there"
    )
    fetching.add_argument("kernels", nargs="*", metavar="KERNEL")
    running = verbs.add_parser("run", help="run one command in a guest")
    running.add_argument("--kernel", required=True)
    running.add_argument(
        "--timeout", type=float, default=1800.0, metavar="S", help="boot included (%(default)s)"
    )
    running.add_argument(
        "--share", type=Path, help="a folder that the guest may write to, and where logs stay"
    )
    running.add_argument("--memory", default="1G")
    running.add_argument("--cpus", type=int, default=2)
    running.add_argument(
        "--multi-threaded", action="store_true", help="emulate each processor in its own thread"
    )
    running.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return parser


if __name__ == "__main__":
    sys.exit(main())
