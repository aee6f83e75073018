# SPDX-License-Identifier: Apache-2.0
"""
Fixtures of the tests that use BPF on the machine they run on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kprobe_modules.features import Features
from kprobe_modules.libbpf import find
from tests.support.bpfcc import compile_bpf
from tests.support.libbpfs import OBJECTS, library_of
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kprobe_modules.libbpf import Library


@pytest.fixture(params=["system", "pylibbpf"])
def library(request: pytest.FixtureRequest) -> Library:
    """
    Run the test once with each libbpf there is.
    """
    return library_of(request.param)


@pytest.fixture
def selftest() -> bytes:
    """
    Ask for root, and compile the object with one program of each kind.
    """
    needs.root()
    return compile_bpf(OBJECTS / "selftest.c")


@pytest.fixture
def refused() -> bytes:
    """
    Ask for root, and compile the object that the verifier refuses.
    """
    needs.root()
    return compile_bpf(OBJECTS / "refused.c")


@pytest.fixture(scope="module")
def features() -> Iterator[Features]:
    """
    Ask for root, and give what is known of the running kernel.
    """
    needs.root()
    found = Features(find())
    yield found
    found.close()
