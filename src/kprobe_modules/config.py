# SPDX-License-Identifier: Apache-2.0
"""
What a run is asked to do, and who asked.

Five layers are merged, the first that says something wins::

    API argument  >  command line  >  TOML file  >  environment  >  default

The file is the one named by ``--config``, else by ``KPROBE_MODULES_CONFIG``,
else ``/etc/kprobe_modules.toml`` if it exists::

    enable = ["NAME"]               # default: every registered module
    disable = []
    transport = "perf"              # or "ringbuf"
    pages = 512                     # of each CPU's ring, a power of two
data_pages = 256                # the same for the data channel
    watermark = 65536               # bytes in a ring that wake the reader
    interval = 0.1                  # seconds between drains of quiet rings

    [modules.NAME]                  # tunables of one module
    some_tunable = 1

    [hooks]                         # choose a program for a hook
    "NAME.start" = "program"

Every value is checked in the layer that gave it, so that the error names the
file, variable or flag, the key, what was expected and what was found.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import attrs

from kprobe_modules.byfields import ByFields
from kprobe_modules.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["DEFAULT_PATH", "Layer", "Options", "Tunables", "load", "select"]

Tunables: TypeAlias = "Mapping[str, Mapping[str, int | bool]]"

DEFAULT_PATH: Final = Path("/etc/kprobe_modules.toml")
PATH_VARIABLE: Final = "KPROBE_MODULES_CONFIG"

TRANSPORTS: Final = ("perf", "ringbuf")
MAX_PAGES: Final = 1 << 16
MIN_INTERVAL: Final = 0.001
MAX_INTERVAL: Final = 3600.0
MAX_FILE_BYTES: Final = 1 << 20
MAX_SHOWN: Final = 80

#: Environment variable of each key that has one.
VARIABLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "enable": "KPROBE_MODULES_ENABLE",
        "disable": "KPROBE_MODULES_DISABLE",
        "transport": "KPROBE_MODULES_TRANSPORT",
        "pages": "KPROBE_MODULES_PAGES",
        "watermark": "KPROBE_MODULES_WATERMARK",
        "interval": "KPROBE_MODULES_INTERVAL",
        "data_pages": "KPROBE_MODULES_DATA_PAGES",
    }
)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Options(ByFields):
    """
    What a collector is asked to do.

    Attributes:
        enable: names of modules, or None for every registered one.
        disable: names to leave out of them.
        transport: ``perf`` (a perf ring per CPU) or ``ringbuf`` (one BPF ring).
        pages: size of each CPU's ring in memory pages, a power of two; None
            leaves it to the collector.
        data_pages: the same for the rings of the data channel.
        watermark: bytes waiting in a ring that wake the reader; None as above.
        interval: seconds between drains of rings that do not reach the
            watermark; None as above.
        tunables: per module, values for its tunables.
        hooks: ``module.hook`` to the program that shall serve it.
        origins: key to the layer that decided it, for people.
    """

    enable: tuple[str, ...] | None = None
    disable: tuple[str, ...] = ()
    transport: str = "perf"
    pages: int | None = None
    data_pages: int | None = None
    watermark: int | None = None
    interval: float | None = None
    tunables: Tunables = attrs.field(factory=dict)
    hooks: Mapping[str, str] = attrs.field(factory=dict)
    origins: Mapping[str, str] = attrs.field(factory=dict, eq=False, repr=False)


@attrs.frozen(eq=False, repr=False)
class Layer:
    """
    Checked values from one place.

    Attributes:
        source: what to call the place: a path, ``environment``, ...
        values: key to value; keys are those of the TOML file.
    """

    source: str
    values: Mapping[str, object]


def load(
    *,
    arguments: Mapping[str, object] | None = None,
    command_line: Mapping[str, object] | None = None,
    path: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    default_path: Path = DEFAULT_PATH,
) -> Options:
    """
    Merge the layers into options.

    Args:
        arguments: values given by a program, by the file's keys; None values
            count as absent.
        command_line: values given as flags, the same way.
        path: the configuration file; None looks at the environment, then at
            *default_path*.
        environ: the environment, ``os.environ`` unless given.
        default_path: the file that is read if none was named and it exists.

    Raises:
        ConfigError: a key is unknown or its value is bad, or a file that was
            named cannot be read.
    """
    env = os.environ if environ is None else environ
    layers = [from_environment(env)]
    file = from_file(path or env.get(PATH_VARIABLE) or None, default_path)
    if file is not None:
        layers.append(file)
    layers.append(from_mapping(command_line or {}, "command line", _flag))
    layers.append(from_mapping(arguments or {}, "argument", lambda key: f"argument {key}"))
    return merge(layers)


def merge(layers: Iterable[Layer]) -> Options:
    """
    Merge layers, the weakest first.

    A layer that enables modules also sets aside what weaker layers disabled:
    to be named by a stronger voice is to be wanted.  Tables (tunables, hooks)
    merge entry by entry, everything else as a whole.
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    tunables: dict[str, dict[str, int | bool]] = {}
    hooks: dict[str, str] = {}
    for layer in layers:
        given = dict(layer.values)
        for module, chosen in _table(given.pop("modules", {})):
            tunables.setdefault(module, {}).update(chosen)
            origins.update({f"modules.{module}.{name}": layer.source for name in chosen})
        for hook, program in _table(given.pop("hooks", {})):
            hooks[hook] = program
            origins[f"hooks.{hook}"] = layer.source
        if "enable" in given:
            values.pop("disable", None)
            origins.pop("disable", None)
        values.update(given)
        origins.update(dict.fromkeys(given, layer.source))
    return Options(**values, tunables=tunables, hooks=hooks, origins=origins)  # type: ignore[arg-type]


def select(options: Options, registered: Iterable[str]) -> tuple[str, ...]:
    """
    Return the names of the modules that are wanted, in the order they were asked for.

    Raises:
        ConfigError: a module that was asked for, left out, or has a tunable or a hook set,
            is not registered.
    """
    known = sorted(registered)
    wanted = known if options.enable is None else list(dict.fromkeys(options.enable))
    for name in wanted:
        _registered(name, known, options.origins.get("enable", "enable"))
    for name in options.disable:
        _registered(name, known, options.origins.get("disable", "disable"))
    for key, source in options.origins.items():
        kind, _, rest = key.partition(".")
        if kind in {"modules", "hooks"}:
            _registered(rest.partition(".")[0], known, f"{source}: {key}")
    return tuple(name for name in wanted if name not in options.disable)


def _registered(name: str, known: list[str], where: str) -> None:
    if name not in known:
        msg = (
            f"{where}: no module is named {name!r}{_suggestion(name, known)}; "
            f"registered: {', '.join(known) or 'none'}"
        )
        raise ConfigError(msg)


def from_environment(environ: Mapping[str, str]) -> Layer:
    """
    Read the variables of `VARIABLES`; empty ones count as absent.
    """
    raw = {key: environ[name] for key, name in VARIABLES.items() if environ.get(name, "").strip()}
    return from_mapping(raw, "environment", VARIABLES.__getitem__)


def from_file(path: str | os.PathLike[str] | None, default: Path = DEFAULT_PATH) -> Layer | None:
    """
    Read a TOML file; None if none was named and *default* does not exist.
    """
    file = Path(path) if path else default
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        if path is None:
            return None
        msg = f"{file}: no such configuration file"
        raise ConfigError(msg) from None
    except OSError as error:
        msg = f"{file}: cannot be read: {error.strerror}"
        raise ConfigError(msg) from error
    if len(data) > MAX_FILE_BYTES:
        msg = f"{file}: expected at most {MAX_FILE_BYTES} bytes, found more"
        raise ConfigError(msg)
    import tomllib  # most hosts have no file

    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # bad TOML or bad UTF-8
        msg = f"{file}: not valid TOML: {error}"
        raise ConfigError(msg) from error
    return from_mapping(document, str(file), lambda key: f"{file}: {key}")


def from_mapping(raw: Mapping[str, object], source: str, where: Callable[[str], str]) -> Layer:
    """
    Check one layer's raw values; *where* turns a key into words for errors.
    """
    values: dict[str, object] = {}
    for key, value in raw.items():
        check = _CHECKS.get(key)
        if check is None:
            msg = (
                f"{where(key)}: unknown key{_suggestion(key, _CHECKS)}; "
                f"known: {', '.join(sorted(_CHECKS))}"
            )
            raise ConfigError(msg)
        if value is not None:
            values[key] = check(value, where(key))
    pages, watermark = values.get("pages"), values.get("watermark")
    if isinstance(pages, int) and isinstance(watermark, int):
        size = pages * os.sysconf("SC_PAGE_SIZE")
        if watermark >= size:
            _bad(where("watermark"), f"less than the ring's {size} bytes", watermark)
    return Layer(source, values)


# -- checks: raw value and the words for where it stands, to the value ------------------


def _names(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part for part in value.replace(",", " ").split() if part]
    if not isinstance(value, (list, tuple)):
        _bad(where, "a list of module names", value)
    for name in value:
        if not (isinstance(name, str) and name.isidentifier()):
            _bad(where, "a list of module names", name)
    return tuple(dict.fromkeys(value))


def _transport(value: object, where: str) -> str:
    if not isinstance(value, str) or value not in TRANSPORTS:
        _bad(where, " or ".join(TRANSPORTS), value)
    return value


def _pages(value: object, where: str) -> int:
    number = _integer(value)
    if number is None or not 0 < number <= MAX_PAGES or number & (number - 1):
        _bad(where, f"a power of two from 1 to {MAX_PAGES}", value)
    return number


def _watermark(value: object, where: str) -> int:
    number = _integer(value)
    if number is None or not 0 < number < 1 << 32:
        _bad(where, "a number of bytes from 1 to 4294967295", value)
    return number


def _interval(value: object, where: str) -> float:
    number: float = -1.0
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = -1.0
    if not MIN_INTERVAL <= number <= MAX_INTERVAL:  # false for NaN too
        _bad(where, f"seconds from {MIN_INTERVAL} to {MAX_INTERVAL:g}", value)
    return number


def _tunables(value: object, where: str) -> dict[str, dict[str, int | bool]]:
    found: dict[str, dict[str, int | bool]] = {}
    for module, table in _items(value, where):
        found[module] = {}
        for name, scalar in _items(table, f"{where}.{module}"):
            if not isinstance(scalar, int):
                _bad(f"{where}.{module}.{name}", "an integer or a boolean", scalar)
            found[module][name] = scalar
    return found


def _hooks(value: object, where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for hook, program in _items(value, where):
        if "." not in hook:
            # [hooks.NAME] start = "..." is the same file, spelled with a table.
            for inner, chosen in _items(program, f"{where}.{hook}"):
                found[f"{hook}.{inner}"] = _program(chosen, f"{where}.{hook}.{inner}")
        else:
            found[hook] = _program(program, f"{where}.{hook}")
    return found


def _program(value: object, where: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\w./:-]+", value):
        _bad(where, "a program, or a kind such as fentry or fentry/function", value)
    return value


_CHECKS: Final[Mapping[str, Callable[[object, str], object]]] = MappingProxyType(
    {
        "enable": _names,
        "disable": _names,
        "transport": _transport,
        "pages": _pages,
        "watermark": _watermark,
        "interval": _interval,
        "data_pages": _pages,
        "modules": _tunables,
        "hooks": _hooks,
    }
)


def _integer(value: object) -> int | None:
    """
    Return an int, also from the text of one; None for anything else.
    """
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*[0-9]{1,18}\s*", value) else None
    return value if type(value) is int else None


def _items(value: object, where: str) -> list[tuple[str, object]]:
    if not isinstance(value, dict):
        _bad(where, "a table", value)
    return list(value.items())


def _table(value: object) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _bad(where: str, expected: str, found: object) -> NoReturn:
    shown = repr(found)
    if len(shown) > MAX_SHOWN:
        shown = shown[: MAX_SHOWN - 3] + "..."
    msg = f"{where}: expected {expected}, found {shown}"
    raise ConfigError(msg)


def _suggestion(name: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _flag(key: str) -> str:
    flags = {"enable": "-m/--modules", "modules": "--set", "hooks": "--hook"}
    return flags.get(key, "--" + key.replace("_", "-"))
