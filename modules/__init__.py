# SPDX-License-Identifier: Apache-2.0
"""
The modules that ship with kprobe_modules, one package for each kind of entity.
"""

if __name__ != "kprobe_modules.modules":
    _message = (
        f"import kprobe_modules.modules, not {__name__}: two names would make two of each class"
    )
    raise ImportError(_message)
