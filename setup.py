# SPDX-License-Identifier: Apache-2.0
# Everything is in setup.cfg but the one thing that can't be said there.
from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "kprobe_modules.rings._drain",
            ["rings/_drain.c"],
            depends=glob("rings/*.h"),  # noqa: PTH207  (relative, as setuptools wants them)
            define_macros=[("Py_LIMITED_API", "0x030b0000")],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            # Without a C compiler the pure-Python twin serves.
            optional=True,
        ),
        Extension(
            "kprobe_modules.rows._rows",
            ["src/kprobe_modules/rows/_rows.c"],
            define_macros=[("Py_LIMITED_API", "0x030b0000")],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            # Without it records are made in Python.
            optional=True,
        ),
        Extension(
            "kprobe_modules.kernelbtf._index",
            ["src/kprobe_modules/kernelbtf/_index.c"],
            define_macros=[("Py_LIMITED_API", "0x030b0000")],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            # Without it types are found by their bytes.
            optional=True,
        ),
        Extension(
            "kprobe_modules.libbpf._print",
            ["src/kprobe_modules/libbpf/_print.c"],
            define_macros=[("Py_LIMITED_API", "0x030b0000")],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            # Without it Python drops what nobody reads.
            optional=True,
        ),
    ]
)
