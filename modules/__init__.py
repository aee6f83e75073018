"""The modules that ship with kprobe_modules, one package per kind of entity.

Importable as `kprobe_modules.modules.<entity>` only: from the root of a checkout the same files
could also be imported as `modules.<entity>`, and every class would then exist twice.
"""

if __name__ != "kprobe_modules.modules":
    raise ImportError(
        f"imported as {__name__!r}: use kprobe_modules.modules, and not the checkout's root folder",
        name=__name__,
    )
