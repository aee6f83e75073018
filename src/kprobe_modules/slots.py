# SPDX-License-Identifier: Apache-2.0
"""
Hooks that are served through tail-call slots while other modules call them.

When a caller comes or goes, each hook that a slot may serve is chosen again.  What
becomes live is attached first, then who is between the two ways is waited for, and only
then is the former way closed: an overlap, never a gap.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from kprobe_modules.errors import AttachError
from kprobe_modules.hooks import called_slots, settle
from kprobe_modules.libbpf.rcu import wait_for_programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kprobe_modules.attached import AttachedModule
    from kprobe_modules.dispatch import Faults
    from kprobe_modules.features import Features
    from kprobe_modules.hooks import Choice
    from kprobe_modules.journal import Journal
    from kprobe_modules.records import Record

__all__ = ["Slots"]


class Slots:
    """
    Keeps slot alternatives live exactly while their slots are called.

    Args:
        attached: the modules, by name; looked at anew each time.
        features: gives what is known of the running kernel.
        faults: counts hooks that nothing serves any more.
        journal: is told what is live.
    """

    def __init__(
        self,
        attached: Mapping[str, AttachedModule],
        features: Callable[[], Features],
        faults: Faults,
        journal: Journal,
    ) -> None:
        self._attached = attached
        self._features = features
        self._faults = faults
        self._journal = journal

    def called(self) -> dict[str, str]:
        """
        Return the slots that attached modules call, each with the module.
        """
        return called_slots({name: each.loaded.choices for name, each in self._attached.items()})

    def rearrange(self, leaving: str = "") -> list[Record]:
        """
        Open and close ways as the modules that are attached now ask for.

        Raises nothing that the kernel refuses: a hook that is left without any way is
        dead, and reported.

        Args:
            leaving: a module that does not count any more, though its programs still run.
        """
        staying = {name: each for name, each in self._attached.items() if name != leaving}
        if not any(each.loaded.served for each in staying.values()):
            return []
        records: list[Record] = []
        changed: dict[str, AttachedModule] = {}
        with ExitStack() as former:
            while (move := next(self._moves(staying), None)) is not None:
                attached, choice = move
                before = _choice_for(attached, choice)
                try:
                    former.callback(attached.loaded.adopt(choice).close)
                except Exception as error:  # noqa: BLE001 - a source is the handler's
                    _strike_out(attached, choice, error)
                    continue
                changed[attached.binding.name] = attached
                records += self._noticed(attached, before, choice)
            if changed:
                # Whoever is past the place that was opened, and before the one that is
                # about to be closed.
                wait_for_programs()
        for name, attached in changed.items():
            attached.note_live()
            self._journal.note("live", name, live=dict(attached.live))
        return self._journal.told(records)

    def _moves(
        self, staying: Mapping[str, AttachedModule]
    ) -> Iterator[tuple[AttachedModule, Choice]]:
        """
        Yield each choice that is to take the place of another.
        """
        features = self._features()
        chosen = settle(
            {name: partial(each.loaded.choose, features) for name, each in staying.items()}
        )
        for name, choices in chosen.items():
            attached = staying[name]
            for choice in choices:
                if _name(_choice_for(attached, choice)) != _name(choice):
                    yield attached, choice
                else:
                    # Who calls, and what else was tried, may be others now.
                    attached.loaded.settle(choice)

    def _noticed(self, attached: AttachedModule, before: Choice, now: Choice) -> list[Record]:
        """
        Report a hook that died; have a module look again at what one missed while it was dead.
        """
        name = attached.binding.name
        if before.alternative is None:
            attached.resync_wanted = True
            attached.resynced_at = 0
        elif now.alternative is None and not now.waiting:
            error = AttachError(f"module {name}, hook {now.hook.name}", now.rejected)
            return self._faults.failed(name, now.hook.name, error)
        return []


def _choice_for(attached: AttachedModule, choice: Choice) -> Choice:
    """
    Return the choice that is in force for the hook of another.
    """
    return next(each for each in attached.loaded.choices if each.hook.name == choice.hook.name)


def _name(choice: Choice) -> str | None:
    return choice.alternative.name if choice.alternative else None


def _strike_out(attached: AttachedModule, choice: Choice, error: Exception) -> None:
    if choice.alternative is not None:
        attached.loaded.refused[choice.alternative.name] = str(error)
