# SPDX-License-Identifier: Apache-2.0
"""
The arithmetic of ``kprobe-modules top``, and what it says without rich.
"""

from __future__ import annotations

import subprocess
import sys

from kprobe_modules.commands.top import Snapshot, tables
from kprobe_modules.metrics import MapMetrics, ProgramMetrics
from kprobe_modules.records import Metrics

S = 1_000_000_000


def metrics(scale: int, module: str = "doors") -> Metrics:
    return Metrics(
        0,
        module,
        emitted=100 * scale,
        received=90 * scale,
        lost=10 * scale,
        missed=2,
        suppressed=3,
        late=0,
        errors=1,
        stalls=0,
        handler_time=S // 4 * scale,
        run_count=50 * scale,
        run_time=S // 10 * scale,
        memory=3 << 20,
        programs=(ProgramMetrics("on_open", 50 * scale, S // 10 * scale, 2, 77, 1536),),
        maps=(MapMetrics("open_doors", 25, 100, 4096), MapMetrics("totals", None, 4, 100)),
    )


def test_rates_are_those_between_two_snapshots() -> None:
    modules, programs, maps = tables(Snapshot(10.0, [metrics(1)]), Snapshot(12.0, [metrics(3)]))
    assert dict(zip(modules.columns, modules.rows[0], strict=True)) == {
        "module": "doors",
        "msg/s": "100",
        "rec/s": "90",
        "lost": "30",
        "suppr": "3",
        "errors": "1",
        "bpf cpu": "10.00%",
        "py cpu": "25.00%",
        "memory": "3.0 MiB",
    }
    assert programs.rows == (("doors", "on_open", "50", "2000000", "10.00%", "2", "77", "1.5 KiB"),)
    assert maps.rows == (
        ("doors", "open_doors", "25", "100", "25%", "4.0 KiB"),
        ("doors", "totals", "-", "4", "-", "100 B"),
    )


def test_a_module_that_came_in_between_counts_from_its_beginning() -> None:
    modules, programs, _ = tables(Snapshot(0.0, []), Snapshot(1.0, [metrics(1)]))
    assert modules.rows[0][1] == "100"
    assert programs.rows[0][2] == "50"


def test_a_program_that_did_not_run_has_no_mean() -> None:
    same = metrics(1)
    _, programs, _ = tables(Snapshot(0.0, [same]), Snapshot(1.0, [same]))
    assert programs.rows[0][2:5] == ("0", "-", "0.00%")


def test_without_rich_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "from kprobe_modules.cli import main; sys.exit(main(['top']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "top needs the Python package rich" in done.stderr
    assert "pip install 'kprobe_modules[cli]'" in done.stderr
