# SPDX-License-Identifier: Apache-2.0
"""
Configuration: who wins, and what an error says.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kprobe_modules import config
from kprobe_modules.errors import ConfigError

NOWHERE = Path("/nonexistent/kprobe_modules.toml")

#: Weakest first, as in the documentation read backwards.
LAYERS = ("environment", "file", "command_line", "arguments")


def load(**given: object) -> config.Options:
    """
    Load without this machine's own file or environment.
    """
    return config.load(**{"environ": {}, "default_path": NOWHERE} | given)  # type: ignore[arg-type]


def write(folder: Path, text: str) -> Path:
    path = folder / "kprobe_modules.toml"
    path.write_text(text)
    return path


def test_defaults_ask_for_every_module_over_perf_rings_in_order() -> None:
    options = load()

    assert options == config.Options()
    assert options.enable is None
    assert options.transport == "perf"
    assert config.select(options, ["b", "a"]) == ("a", "b")


@given(present=st.sets(st.sampled_from(LAYERS)))
def test_the_strongest_layer_that_speaks_wins(
    tmp_path_factory: pytest.TempPathFactory, present: set[str]
) -> None:
    pages = dict(zip(LAYERS, (1, 2, 4, 8), strict=True))
    folder = tmp_path_factory.mktemp("config")
    text = "interval = 7\n" + (f"pages = {pages['file']}\n" if "file" in present else "")

    options = load(
        environ={"KPROBE_MODULES_PAGES": "1"} if "environment" in present else {},
        path=write(folder, text),
        command_line={"pages": pages["command_line"] if "command_line" in present else None},
        arguments={"pages": pages["arguments"]} if "arguments" in present else None,
    )

    strongest = max(present, key=LAYERS.index, default=None)
    assert options.pages == (pages[strongest] if strongest else None)
    assert options.interval == 7


NAMES = st.lists(st.sampled_from("abc"), unique=True)
CHOICE = st.fixed_dictionaries({}, optional={"enable": NAMES, "disable": NAMES})


@given(weak=CHOICE, strong=CHOICE)
def test_the_strongest_voice_on_enabling_is_heard(
    weak: dict[str, list[str]], strong: dict[str, list[str]]
) -> None:
    options = load(command_line=weak, arguments=strong)

    def verdict(name: str) -> bool:
        for layer in (strong, weak):
            if name in layer.get("disable", ()):
                return False
            if "enable" in layer:
                return name in layer["enable"]
            if "disable" in layer:
                # It names what it does not want; who is wanted is said below.
                return name in weak.get("enable", "abc")
        return True

    assert set(config.select(options, "abc")) == {name for name in "abc" if verdict(name)}


def test_tables_merge_entry_by_entry(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[modules.doors]\nlimit = 5\nverbose = true\n[hooks]\n"doors.start" = "a"\n'
        '[hooks.gates]\nend = "c"\n',
    )

    options = load(
        path=path,
        command_line={"modules": {"doors": {"limit": 7}}, "hooks": {"doors.start": "b"}},
    )

    assert options.tunables == {"doors": {"limit": 7, "verbose": True}}
    assert options.hooks == {"doors.start": "b", "gates.end": "c"}
    assert options.origins["modules.doors.limit"] == "command line"
    assert options.origins["modules.doors.verbose"] == str(path)
    assert options.origins["hooks.gates.end"] == str(path)


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'transport = "ringbuf"\n')

    assert load(environ={"KPROBE_MODULES_CONFIG": str(path)}).transport == "ringbuf"
    assert load(default_path=path).transport == "ringbuf"


def test_environment_values_are_text() -> None:
    options = load(
        environ={
            "KPROBE_MODULES_ENABLE": "a, b",
            "KPROBE_MODULES_DISABLE": "",
            "KPROBE_MODULES_TRANSPORT": "ringbuf",
            "KPROBE_MODULES_PAGES": "64",
            "KPROBE_MODULES_WATERMARK": "4096",
            "KPROBE_MODULES_INTERVAL": "0.25",
            "KPROBE_MODULES_DATA_PAGES": "2",
        }
    )

    assert options == config.Options(
        enable=("a", "b"),
        transport="ringbuf",
        pages=64,
        data_pages=2,
        watermark=4096,
        interval=0.25,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pages = 3", "pages: expected a power of two from 1 to 65536, found 3"),
        ("pages = 0", "pages: expected a power of two from 1 to 65536, found 0"),
        ("pages = true", "pages: expected a power of two from 1 to 65536, found True"),
        ('transport = "tcp"', "transport: expected perf or ringbuf, found 'tcp'"),
        ("transport = []", "transport: expected perf or ringbuf, found []"),
        ("interval = 0", "interval: expected seconds from 0.001 to 3600, found 0"),
        ("interval = nan", "interval: expected seconds from 0.001 to 3600, found nan"),
        ("interval = 1979-05-27", "interval: expected seconds from 0.001 to 3600, found datetime"),
        ("watermark = -1", "watermark: expected a number of bytes from 1 to 4294967295, found -1"),
        ("enable = 5", "enable: expected a list of module names, found 5"),
        ('enable = ["a-b"]', "enable: expected a list of module names, found 'a-b'"),
        ("modules = 5", "modules: expected a table, found 5"),
        ("modules.doors = 5", "modules.doors: expected a table, found 5"),
        (
            "modules.doors.limit = 1.5",
            "modules.doors.limit: expected an integer or a boolean, found 1.5",
        ),
        ("hooks.doors = 5", "hooks.doors: expected a table, found 5"),
        ('hooks."doors.end" = "a b"', "hooks.doors.end: expected a program, or a kind such as"),
        (
            "pagse = 8",
            "pagse: unknown key (did you mean 'pages'?); known: data_pages, disable, enable,",
        ),
    ],
)
def test_a_bad_value_names_file_key_expected_and_found(
    tmp_path: Path, text: str, said: str
) -> None:
    path = write(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load(path=path)

    assert str(caught.value).startswith(f"{path}: {said}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"pages = \n", "not valid TOML: Invalid value (at line 1, column 9)"),
        (b"pages = 8\npages = 8\n", "not valid TOML: Cannot overwrite a value"),
        (b"\xff\xfe", "not valid TOML: 'utf-8' codec"),
        (b"a = " + b"[" * 100_000, "not valid TOML"),
        (b"#" * (config.MAX_FILE_BYTES + 1), "expected at most 1048576 bytes, found more"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        load(path=path)

    assert str(caught.value).startswith(f"{path}: {said}")


def test_a_file_that_was_named_must_be_readable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: no such configuration file"):
        load(path=tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(path=tmp_path)


def test_the_error_names_the_variable_or_the_flag() -> None:
    with pytest.raises(ConfigError, match=r"^KPROBE_MODULES_PAGES: expected a power of two"):
        load(environ={"KPROBE_MODULES_PAGES": "12"})
    with pytest.raises(ConfigError, match=r"^--pages: expected a power of two"):
        load(command_line={"pages": "12"})
    with pytest.raises(ConfigError, match=r"^argument transport: expected perf or ringbuf"):
        load(arguments={"transport": "smoke"})


def test_a_watermark_that_a_ring_never_reaches_is_refused() -> None:
    size = 2 * os.sysconf("SC_PAGE_SIZE")

    assert load(command_line={"pages": 2, "watermark": size - 1}).watermark == size - 1
    with pytest.raises(ConfigError, match=f"less than the ring's {size} bytes"):
        load(command_line={"pages": 2, "watermark": size})


def test_a_module_that_is_not_registered_is_named() -> None:
    options = load(environ={"KPROBE_MODULES_ENABLE": "dors"})

    with pytest.raises(ConfigError) as caught:
        config.select(options, ["doors", "gates"])

    assert str(caught.value) == (
        "environment: no module is named 'dors' (did you mean 'doors'?); registered: doors, gates"
    )


@given(
    raw=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    key=st.sampled_from(
        [
            "enable",
            "disable",
            "transport",
            "pages",
            "watermark",
            "interval",
            "data_pages",
            "modules",
            "hooks",
            "other",
        ]
    ),
)
def test_any_value_is_taken_or_refused_but_never_crashes(raw: object, key: str) -> None:
    outcome: config.Options | ConfigError
    try:
        outcome = load(arguments={key: raw})
    except ConfigError as error:
        outcome = error
    if isinstance(outcome, ConfigError):
        assert str(outcome).startswith(f"argument {key}")
    else:
        options = outcome
        assert options.pages is None or options.pages.bit_count() == 1
        assert options.interval is None or 0.001 <= options.interval <= 3600
