# SPDX-License-Identifier: Apache-2.0
"""
What the verifier's logs are cut to.  The logs are of real kernels, shortened.
"""

from __future__ import annotations

import pytest

from kprobe_modules.errors import VerifierError

OLDER = """\
; __u64 *value = bpf_map_lookup_elem(&table, &key); @ refused.c:26
6: (85) call bpf_map_lookup_elem#1    ; R0=map_value_or_null(id=1,map=table,ks=4,vs=8)
; return *value; /* may be NULL */ @ refused.c:28
7: (79) r0 = *(u64 *)(r0 +0)
R0 invalid mem access 'map_value_or_null'
"""
STATISTICS = "processed 7 insns (limit 1000000) max_states_per_insn 0 total_states 0\n"
NEWER = """\

Verification failed: Register Type Safety: Invalid dereference

Reason:
  R0 may be NULL here (a nullable map value pointer).

Suggestion:
  Add a NULL check before the access and dereference the pointer only on the non-NULL path.

"""


@pytest.mark.parametrize(
    ("log", "last"),
    [
        (OLDER + STATISTICS, "R0 invalid mem access 'map_value_or_null'"),
        (
            OLDER + NEWER + STATISTICS,
            "Verification failed: Register Type Safety: Invalid dereference",
        ),
    ],
)
def test_the_reason_is_shown(log: str, last: str) -> None:
    error = VerifierError("unchecked_pointer", log)
    assert error.tail().splitlines()[-1] == last
    assert "R0 invalid mem access 'map_value_or_null'" in error.tail()
    assert "7: (79) r0 = *(u64 *)(r0 +0)" in error.tail()
    assert error.log == log


def test_no_log() -> None:
    assert "no log was returned" in str(VerifierError("program", ""))
