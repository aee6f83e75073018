# SPDX-License-Identifier: Apache-2.0
"""
The command line: arguments, and what an exception means to the shell.

Each subcommand lives in `kprobe_modules.commands` and is imported when it runs, so
that ``--version`` and ``--help`` stay quick.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["FAILURE", "OK", "UNPRIVILEGED", "USAGE", "main", "started"]

OK: Final = 0
FAILURE: Final = 1
USAGE: Final = 2
UNPRIVILEGED: Final = 3

_EPILOG = """\
Data goes to standard output, everything else to standard error.

exit status:
  0  success, also after SIGINT, SIGTERM and when the reader closes the pipe
  1  failure
  2  wrong usage or configuration
  3  a privilege or a feature of the kernel is missing

Options are taken from the command line, else from the TOML file (--config,
KPROBE_MODULES_CONFIG, /etc/kprobe_modules.toml), else from the environment
(KPROBE_MODULES_ENABLE, _DISABLE, _TRANSPORT, _PAGES, _DATA_PAGES, _WATERMARK,
_INTERVAL).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run ``kprobe-modules`` and return its exit status.

    Args:
        arguments: the command line without the program's name.
    """
    with _few_collections():
        return _main(arguments)


@contextmanager
def _few_collections() -> Iterator[None]:
    """
    Keep the garbage collector from looking through all that is being imported.

    Most commands end before it could find anything; one that goes on lets it
    begin once it has started (`started`).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def started() -> None:
    """
    Let the garbage collector begin, and spare it what is here to stay.
    """
    gc.freeze()
    gc.enable()


def _main(arguments: Sequence[str] | None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    # No option before the command has a value.
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    parser = build_parser(asked)
    parsed = parser.parse_args(arguments)
    if parsed.version:
        return _guarded("kprobe_modules.commands.version", parsed)
    if parsed.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    return _guarded(f"kprobe_modules.commands.{parsed.command}", parsed)


def _guarded(module: str, parsed: argparse.Namespace) -> int:
    """
    Run a subcommand's ``run``, turning what it raises into an exit status.
    """
    try:
        status: int = import_module(module).run(parsed)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough.  Python flushes stdout once more on its way
        # out, which must not complain.
        _silence_stdout()
        return OK
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from kprobe_modules.errors import KprobeModulesError

        if parsed.verbose or not isinstance(error, KprobeModulesError | OSError):
            raise
        _complain(error)
        return status_of(error)
    return status


def status_of(error: BaseException) -> int:
    """
    Return the exit status that an exception stands for.
    """
    from kprobe_modules import errors

    if isinstance(error, errors.ConfigError):
        return USAGE
    missing = (errors.PrivilegeError, errors.NotSupportedError, errors.LibbpfNotFoundError)
    return UNPRIVILEGED if isinstance(error, missing) else FAILURE


def _complain(error: BaseException) -> None:
    with suppress(OSError, ValueError, AttributeError):  # nobody listens: the status speaks
        sys.stderr.write(f"kprobe-modules: {error}\n")
        sys.stderr.flush()


def _silence_stdout() -> None:
    with suppress(OSError, ValueError):  # no file, or closed: nothing will complain
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class _Help(argparse.RawDescriptionHelpFormatter):
    """
    As wide as the terminal, without ``shutil``.

    argparse makes one for every option that is added, and takes the width from shutil,
    which loads four libraries of compression.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    """
    Return the terminal's width as `shutil.get_terminal_size` does.
    """
    with suppress(ValueError):
        chosen = int(os.environ.get("COLUMNS", ""))
        if chosen > 0:
            return chosen
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return 80


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """
    Build the parser; importing this module imports no framework.

    Args:
        only: the one command whose options are wanted; all of them take milliseconds.
    """
    parser = argparse.ArgumentParser(
        prog="kprobe-modules",
        description="Watch this host from inside the kernel.",
        epilog=_EPILOG,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-V", "--version", action="store_true", help="print versions, also libbpf's, and exit"
    )
    parser.set_defaults(verbose=False)
    commands = parser.add_subparsers(prog=parser.prog, dest="command", metavar="COMMAND")
    for name, (summary, add) in _COMMANDS.items():
        command = _command(commands, name, summary)
        if only in {None, name}:
            add(command)
    return parser


# argparse has no public names for what add_subparsers and add_argument_group return.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001
Group: TypeAlias = "argparse._ArgumentGroup"  # noqa: SLF001


def _command(commands: Commands, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[:1].upper() + summary[1:] + ".",
        epilog=_EPILOG,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="log what happens, and show tracebacks"
    )
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    """
    Add the flags that become `kprobe_modules.config.Options`.
    """
    group = parser.add_argument_group("collector")
    group.add_argument(
        "-m", "--modules", action="append", metavar="LIST", help="modules to attach, with commas"
    )
    group.add_argument("--disable", action="append", metavar="LIST", help="modules to leave out")
    group.add_argument("--transport", choices=("perf", "ringbuf"), help="kind of ring")
    group.add_argument("--pages", metavar="N", help="pages per CPU's ring, a power of two")
    group.add_argument("--data-pages", metavar="N", help="the same for the data channel")
    group.add_argument("--watermark", metavar="BYTES", help="wake up when a ring holds so much")
    group.add_argument("--interval", metavar="S", help="drain at least this often")
    group.add_argument(
        "--hook",
        action="append",
        default=[],
        metavar="MODULE.HOOK=PROGRAM",
        help="choose the program (or kind, as fentry) that serves a hook",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="MODULE.TUNABLE=VALUE",
        help="set a module's tunable",
    )
    group.add_argument("--config", metavar="FILE", help="configuration file, TOML")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="MODULE", help="modules; the same as -m")
    _add_options(parser)
    _add_output(parser)
    _add_selection(parser)
    group = parser.add_argument_group("capture")
    group.add_argument("--capture", metavar="FILE", help="also write what replay can read")
    _add_rotation(group)
    _add_end(parser)


def _add_capture(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("capture", metavar="FILE", help="where to; what was there is lost")
    parser.set_defaults(names=[])
    _add_options(parser)
    _add_output(parser, default="none")
    _add_selection(parser)
    _add_rotation(parser.add_argument_group("size"))
    _add_end(parser)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the newest file of a capture")
    parser.add_argument(
        "-m", "--modules", action="append", metavar="LIST", help="these modules only, with commas"
    )
    _add_output(parser)
    _add_selection(parser)
    group = parser.add_argument_group("end of the replay")
    _add_limit(group)


def _add_output(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o", "--output", choices=("columns", "json", "jsonpretty", "none"), default=None
    )
    group.add_argument("-j", dest="json", action="store_true", help="the same as -o json")
    parser.set_defaults(default_output=default or "columns")
    group.add_argument("--fields", metavar="LIST", help="these fields only, in this order")
    when = group.add_mutually_exclusive_group()
    when.add_argument("-T", "--time", action="store_true", help="times as HH:MM:SS")
    when.add_argument(
        "-t", "--timestamp", action="store_true", help="times as seconds since the first record"
    )
    group.add_argument("-U", "--print-uid", action="store_true", help="a column for the uid")
    group.add_argument("-w", "--wide", action="store_true", help="all fields, never cut")
    group.add_argument(
        "--stats", action="store_true", help="end with a record of totals per module"
    )
    group.add_argument(
        "--metrics",
        type=_long_enough,
        metavar="S",
        help="a record of each module's work and cost every S seconds, 1 or more",
    )


def _add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("selection of what is printed")
    group.add_argument("-p", "--pid", metavar="PID[,PID]", help="records with these pids")
    group.add_argument("-u", "--uid", metavar="UID[,UID]", help="records with these uids")
    group.add_argument("-n", "--comm", metavar="REGEX", help="records of commands like this")
    group.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="EXPR",
        help="FIELD OP VALUE with == != >= > <= < ~ !~; all of them must hold",
    )


def _add_rotation(group: Group) -> None:
    group.add_argument(
        "--max-size",
        type=_size,
        default=64 << 20,
        metavar="BYTES",
        help="begin the next file at this size, as 64M; default 64M",
    )
    group.add_argument(
        "--rotate",
        type=_files,
        default=4,
        metavar="N",
        help="keep N older files, as FILE.1 and so on; default 4",
    )


def _add_end(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("end of the run")
    group.add_argument("--timeout", type=_seconds, metavar="S", help="stop after S seconds")
    _add_limit(group)


def _add_limit(group: Group) -> None:
    group.add_argument(
        "--max-records", type=_count, metavar="N", help="stop after N records on the output"
    )


def _add_top(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="MODULE", help="modules; the same as -m")
    _add_options(parser)
    group = parser.add_argument_group("display")
    group.add_argument(
        "-d", "--delay", type=_delay, default=1.0, metavar="S", help="seconds between two looks"
    )
    group.add_argument("--timeout", type=_seconds, metavar="S", help="stop after S seconds")


def _add_list(parser: argparse.ArgumentParser) -> None:
    _add_options(parser)
    parser.add_argument("-j", dest="json", action="store_true", help="one JSON object per line")


def _add_describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("module", metavar="MODULE")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("-j", dest="json", action="store_true", help="the same as -o json")


def _add_fields(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("module", metavar="MODULE")
    parser.add_argument("-j", dest="json", action="store_true", help="one JSON object per line")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    _add_options(parser)
    parser.add_argument("-j", dest="json", action="store_true", help="one JSON object per line")
    parser.add_argument("--attach", action="store_true", help="really attach each module")
    parser.add_argument("--quiet", action="store_true", help="print only what fails")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("check",))
    _add_options(parser)


_COMMANDS: Final[Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]]] = {
    "run": ("attach modules and print their records", _add_run),
    "top": ("show what each module, program and map costs, live", _add_top),
    "capture": ("write what the rings deliver to a file, for replay", _add_capture),
    "replay": ("print the records of a capture, without privileges", _add_replay),
    "list": ("list modules, and the hooks they have on this kernel", _add_list),
    "describe": ("show what is in a module, without the kernel", _add_describe),
    "fields": ("show the records of a module and their fields", _add_fields),
    "doctor": ("check this host, and say what to do about it", _add_doctor),
    "config": ("check the configuration and show where it comes from", _add_config),
}


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:  # noqa: PLR2004 - some thirty years; also refuses NaN
        raise ValueError
    return value


def _long_enough(text: str) -> float:
    value = _seconds(text)
    if value < 1:
        raise ValueError
    return value


def _delay(text: str) -> float:
    value = _seconds(text)
    if value < 0.1:  # noqa: PLR2004 - measuring itself takes some milliseconds
        raise ValueError
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _files(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 1000:  # noqa: PLR2004 - each is looked for when a file is full
        raise ValueError
    return value


def _size(text: str) -> int:
    unit = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper(), 0)
    value = int(text[:-1] if unit else text) << unit
    if value < 4096:  # noqa: PLR2004 - room for the heading and layouts of a file
        raise ValueError
    return value


# argparse names the converter in its message: "invalid seconds value: 'x'".
_seconds.__name__ = "seconds"
_count.__name__ = "count"
_long_enough.__name__ = "seconds, 1 or more,"
_delay.__name__ = "seconds, 0.1 or more,"
_files.__name__ = "number of files"
_size.__name__ = "size (from 4K)"
