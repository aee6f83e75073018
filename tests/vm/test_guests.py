# SPDX-License-Identifier: Apache-2.0
"""
The tests that need a kernel, on every kernel of the list.

One test here is one guest, in which pytest runs ``tests/bpf`` and ``tests/kernel`` of this
checkout.  What fails in there is reported here with its text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.requirements import needs
from tests.vm import boot, fetch

if TYPE_CHECKING:
    from tests.vm.conftest import Guests

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(0)]


def test_kernel(kernel: str, guests: Guests) -> None:
    lacks = boot.missing()
    needs.that(not lacks, f"guests need {', '.join(lacks)}")
    try:
        run = guests.result(kernel)
    except fetch.FetchError as error:
        needs.unmet(f"kernel {kernel} can't be fetched: {error}")
    except boot.BootError as error:
        pytest.fail(str(error), pytrace=False)
    faults = [str(failure) for failure in run.verdict.failures]
    faults += [f"--- the guest's kernel said: {line}" for line in run.splats]
    if not run.verdict.passed:
        faults.append("--- no test passed in the guest")
    if run.outcome.status and not faults:
        tail = "\n".join(run.outcome.output.splitlines()[-60:])
        faults.append(f"--- pytest in the guest ended with {run.outcome.status}:\n{tail}")
    if faults:
        pytest.fail("\n".join([f"{run.image.release}: {run.verdict}", *faults]), pytrace=False)
