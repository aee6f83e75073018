# SPDX-License-Identifier: Apache-2.0
"""
Every exception this package raises, in one tree.

::

    KprobeModulesError
    ├── ObjectError            an object file cannot be understood
    │   ├── BtfError           ... its .BTF section is damaged
    │   ├── LayoutError        ... a layout lacks what is asked of it
    │   └── MissingMessageError
    ├── ManifestError          a manifest contradicts itself or its object
    ├── RegistryError          a module is unknown, or failed to import
    ├── ConfigError            an option, file or variable has a bad value
    ├── LibbpfNotFoundError    no usable libbpf on this machine
    ├── LoadError              the kernel or libbpf refused an object
    │   ├── VerifierError      ... the verifier did; carries its log
    │   ├── IncompatibleMapError  ... a common map differs from ours
    │   └── NotSupportedError  ... the kernel lacks a feature
    ├── AttachError            no alternative of a required hook attached
    ├── PrivilegeError         a capability is missing
    ├── RingError              a ring cannot be opened or is corrupt
    ├── DecodeError            bytes do not fit the layout they claim
    ├── CaptureError           a file is no capture, or cannot be replayed
    └── ModuleStateError       attach or detach in the wrong state

Factored out of the rooms that raise them so that no import is circular.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AttachError",
    "BtfError",
    "CaptureError",
    "ConfigError",
    "DecodeError",
    "IncompatibleMapError",
    "KprobeModulesError",
    "LayoutError",
    "LibbpfNotFoundError",
    "LoadError",
    "ManifestError",
    "MissingMessageError",
    "ModuleStateError",
    "NotSupportedError",
    "ObjectError",
    "PrivilegeError",
    "RegistryError",
    "RingError",
    "VerifierError",
]


class KprobeModulesError(Exception):
    """
    Root of the tree: catch this to catch everything of ours.
    """


class ObjectError(KprobeModulesError, ValueError):
    """
    An object file cannot be understood.
    """


class BtfError(ObjectError):
    """
    A BTF section is damaged or uses what this reader does not know.
    """


class LayoutError(ObjectError):
    """
    A message layout lacks fields that a handler or record asks for.
    """


class MissingMessageError(ObjectError):
    """
    A message that was asked for is not in the object.
    """


class ManifestError(KprobeModulesError, ValueError):
    """
    A manifest contradicts itself or the object it describes.
    """


class RegistryError(KprobeModulesError, LookupError):
    """
    A module is unknown, registered twice, or failed to import.
    """


class ConfigError(KprobeModulesError, ValueError):
    """
    An option, configuration file or environment variable has a bad value.
    """


class LibbpfNotFoundError(KprobeModulesError, OSError):
    """
    No usable libbpf was found; the message lists each candidate and remedy.
    """


class LoadError(KprobeModulesError, OSError):
    """
    The kernel or libbpf refused an object.
    """


_EXPLANATION = "\nVerification failed:"


class VerifierError(LoadError):
    """
    The kernel's verifier refused a program.

    Attributes:
        program: name of the refused program.
        log: the verifier's whole log.
    """

    def __init__(self, program: str, log: str, code: int = 0) -> None:
        super().__init__(program, log, code)
        self.program = program
        self.log = log
        self.errno = code or None

    def tail(self, lines: int = 4) -> str:
        """
        Return the last meaningful lines of the log.

        The verifier ends with statistics ("processed 12 insns ..."); the
        reason is in the lines before it.  Newer kernels (seen in 7.3) go on from
        there with an explanation that is longer than the lines asked for.
        """
        reason, newer, rest = self.log.partition(_EXPLANATION)
        log = reason + newer + rest.partition("\n")[0]
        meaningful = [
            line.strip()
            for line in log.splitlines()
            if line.strip()
            and not line.startswith(("processed ", "verification time", "stack depth"))
        ]
        return "\n".join(meaningful[-lines:])

    def __str__(self) -> str:
        tail = self.tail() or "no log was returned"
        omitted = max(0, len(self.log.splitlines()) - len(tail.splitlines()))
        return (
            f"program {self.program}: refused by the verifier:\n{tail}\n({omitted} line(s) omitted)"
        )


class IncompatibleMapError(LoadError):
    """
    A module's common maps differ from the collector's.

    Attributes:
        differences: one sentence per difference, all of them.
    """

    def __init__(self, module: str, differences: Sequence[str]) -> None:
        super().__init__(module, tuple(differences))
        self.module = module
        self.differences = tuple(differences)

    def __str__(self) -> str:
        return f"{self.module}: " + "; ".join(self.differences)


class NotSupportedError(LoadError):
    """
    The running kernel lacks a feature.

    Attributes:
        feature: what is missing.
    """

    def __init__(self, feature: str, reason: str = "") -> None:
        super().__init__(feature, reason)
        self.feature = feature
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.feature}: not supported by this kernel" + (
            f" ({self.reason})" if self.reason else ""
        )


class AttachError(KprobeModulesError, OSError):
    """
    A program could not be attached.

    Attributes:
        tried: every alternative that was tried, with the reason it failed.
    """

    def __init__(self, what: str, tried: Sequence[tuple[str, str]], code: int = 0) -> None:
        super().__init__(what, tuple(tried), code)
        self.what = what
        self.tried = tuple(tried)
        self.errno = code or None

    def __str__(self) -> str:
        tried = "; ".join(f"{name}: {reason}" for name, reason in self.tried)
        return f"{self.what}: could not be attached: {tried or 'there is no alternative to try'}"


class PrivilegeError(KprobeModulesError, PermissionError):
    """
    A capability is missing.

    Attributes:
        capability: the capability, or the words that name it.
        purpose: what it is needed for.
    """

    def __init__(self, capability: str, purpose: str) -> None:
        super().__init__(capability, purpose)
        self.capability = capability
        self.purpose = purpose

    def __str__(self) -> str:
        return f"{self.capability} is needed {self.purpose}; run as root or grant it"


class RingError(KprobeModulesError, OSError):
    """
    A ring cannot be opened, or its memory contradicts itself.
    """


class DecodeError(KprobeModulesError, ValueError):
    """
    Bytes do not fit the layout they claim.
    """


class CaptureError(KprobeModulesError, ValueError):
    """
    A file is no capture, is of a newer version, or does not suit the modules here.
    """


class ModuleStateError(KprobeModulesError, RuntimeError):
    """
    A module was attached twice, or detached while it was not attached.
    """
