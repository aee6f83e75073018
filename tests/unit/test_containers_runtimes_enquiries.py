# SPDX-License-Identifier: Apache-2.0
"""
Questions about containers: to daemons on real sockets that behave well, badly or not at all.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from kprobe_modules.modules.containers.runtimes import (
    Answer,
    Enquiries,
    NomadTask,
    Socket,
    endpoint,
    enquiries,
)

from tests.support.daemon import Daemon, Peer, reply
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SLACK = 10.0
"""Seconds by which a busy machine may be late."""


def container_id(number: int) -> str:
    return f"{number:064x}"


def number_in(target: str) -> int:
    return int(target.split("/")[2], 16)


def inspection(number: int, **more: Any) -> dict[str, Any]:
    return {"Id": container_id(number), "Name": f"/c{number}", **more}


def well(peer: Peer) -> None:
    peer.send(reply(inspection(number_in(peer.target))))


def unknown(peer: Peer) -> None:
    peer.send(reply({"message": "No such container"}, "404 Not Found"))


def silent(peer: Peer) -> None:
    peer.sleep(60)


def collect(asker: Enquiries, count: int, seconds: float = SLACK) -> list[Answer]:
    """
    Take answers until there are so many, as a handler's tick does.
    """
    answers: list[Answer] = []
    deadline = time.monotonic() + seconds
    while len(answers) < count:
        assert time.monotonic() < deadline, f"{len(answers)} of {count} answers: {answers}"
        answers += asker.take()
        time.sleep(0.01)
    return answers


def wait_until(condition: Callable[[], object], seconds: float = SLACK) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def threads() -> int:
    return sum(thread.name == "enquiries" for thread in threading.enumerate())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "docker.sock"


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    assert threads() == 0
    yield
    wait_until(lambda: threads() == 0)


@pytest.fixture
def ask_docker(path: Path) -> Iterator[Callable[..., Enquiries]]:
    """
    Return a function that makes enquiries at ``path``; they are closed at the end.
    """
    made: list[Enquiries] = []

    def make(*more: Socket, **options: Any) -> Enquiries:
        options.setdefault("seconds", SLACK)
        made.append(Enquiries((Socket("docker", str(path)), *more), **options))
        return made[-1]

    yield make
    for asker in made:
        asker.close()


def test_an_answer(path: Path, ask_docker: Callable[..., Enquiries]) -> None:
    asker = ask_docker()
    with Daemon(path, well) as daemon:
        assert asker.ask(container_id(7), "docker", 4711)
        (answer,) = collect(asker, 1)

    assert daemon.targets == [f"/containers/{container_id(7)}/json"]
    assert answer.metadata is not None
    assert answer.metadata.name == "c7"
    assert (answer.container_id, answer.runtime, answer.cgroup_id) == (
        container_id(7), "docker", 4711,
    )  # fmt: skip
    assert answer.source == f"docker at {path}"
    assert answer.error is None
    assert 0 < answer.seconds < SLACK
    assert asker.take() == []
    assert asker.under_way() == 0


def test_no_thread_before_the_first_question(ask_docker: Callable[..., Enquiries]) -> None:
    asker = ask_docker()

    assert asker.take() == []
    assert not asker.ask("web", "lxc", 1)
    assert threads() == 0


def test_no_thread_when_there_is_nothing_to_do(
    path: Path, ask_docker: Callable[..., Enquiries], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enquiries, "IDLE", 0.2)
    asker = ask_docker()
    with Daemon(path, well):
        for number in range(3):
            asker.ask(container_id(number), "docker", number)
            collect(asker, 1)
            wait_until(lambda: threads() == 0)


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("web", "lxc"),
        (container_id(1), "containerd"),
        (container_id(1), "cri-o"),
        ("../../etc/passwd", "docker"),
        (f"{container_id(1)}/json?x=", None),
        ("", None),
    ],
)
def test_nobody_to_ask(
    name: str, runtime: str | None, ask_docker: Callable[..., Enquiries]
) -> None:
    asker = ask_docker()

    assert not asker.ask(name, runtime, 1)
    assert asker.counts.asked == 0


def test_asking_and_taking_never_wait(path: Path, ask_docker: Callable[..., Enquiries]) -> None:
    asker = ask_docker()
    slowest = 0.0
    with Daemon(path, silent):
        for number in range(200):
            started = time.thread_time()
            asker.ask(container_id(number), "docker", number)
            asker.take()
            slowest = max(slowest, time.thread_time() - started)
        started = time.monotonic()
        asker.close()
        assert time.monotonic() - started < 1.0 + SLACK / 2
    assert slowest < 0.05
    assert threads() == 0


def test_many_at_once_are_asked_one_by_one(
    path: Path, ask_docker: Callable[..., Enquiries]
) -> None:
    alone = threading.Lock()
    together = 0

    def notice(peer: Peer) -> None:
        nonlocal together
        if alone.acquire(blocking=False):
            time.sleep(0.001)
            alone.release()
        else:
            together += 1
        well(peer)

    asker = ask_docker()
    with Daemon(path, notice):
        for number in range(211):
            assert asker.ask(container_id(number), "docker", number)
        answers = collect(asker, 211, 30)

        assert threads() <= 2
    assert together == 0
    assert sorted(answer.cgroup_id for answer in answers) == list(range(211))
    for answer in answers:
        assert answer.metadata is not None
        assert answer.metadata.name == f"c{answer.cgroup_id}"
    assert asker.counts.asked == asker.counts.answered == asker.counts.requests == 211


def test_no_more_than_there_is_room_for(
    path: Path, ask_docker: Callable[..., Enquiries], caplog: pytest.LogCaptureFixture
) -> None:
    asker = ask_docker(limit=5)
    with Daemon(path, silent):
        taken = [asker.ask(container_id(number), "docker", number) for number in range(8)]
        # The daemon goes away after this, which is said too.
        said = [line.getMessage() for line in caplog.records]
    assert taken == [True] * 5 + [False] * 3
    assert asker.counts.refused == 3
    (line,) = said
    assert line.startswith("5 containers are being asked for; others go without")


def test_answers_that_nobody_takes_count_too(
    path: Path, ask_docker: Callable[..., Enquiries]
) -> None:
    asker = ask_docker(limit=5)
    with Daemon(path, well):
        for number in range(5):
            asker.ask(container_id(number), "docker", number)
        wait_until(lambda: asker.under_way() == 0)
        assert not asker.ask(container_id(1), "docker", 1), "known, but there is no room"
        assert len(asker.take()) == 5
        assert asker.ask(container_id(9), "docker", 9)
        collect(asker, 1)


def test_the_same_container_is_asked_for_once(
    path: Path, ask_docker: Callable[..., Enquiries]
) -> None:
    def slowly(peer: Peer) -> None:
        peer.sleep(0.3)
        well(peer)

    asker = ask_docker()
    with Daemon(path, slowly) as daemon:
        for cgroup in (1, 2, 3):
            assert asker.ask(container_id(7), "docker", cgroup)
        answers = collect(asker, 3)
        assert asker.ask(container_id(7), "docker", 2)
        answers += asker.take()
        assert len(daemon.targets) == 1

        asker.ask(container_id(7), "docker", 4)
        collect(asker, 1)
        assert len(daemon.targets) == 2, "it was started again: its networks are others"
    assert [answer.cgroup_id for answer in answers] == [1, 2, 3, 2]
    assert all(answer.metadata for answer in answers)
    assert asker.counts.cached == 1


def test_what_is_remembered_is_bounded_and_gets_old(
    path: Path, ask_docker: Callable[..., Enquiries], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enquiries, "CACHED", 3)
    asker = ask_docker()
    with Daemon(path, well) as daemon:
        for number in (1, 2, 3, 4):
            asker.ask(container_id(number), "docker", number)
            collect(asker, 1)
        for number, requests in ((4, 4), (1, 5)):
            asker.ask(container_id(number), "docker", number)
            collect(asker, 1)
            assert len(daemon.targets) == requests
        monkeypatch.setattr(enquiries, "CACHED_FOR", 0.0)
        asker.ask(container_id(4), "docker", 4)
        collect(asker, 1)
        assert len(daemon.targets) == 6


def test_unknown_containers_are_given_up_soon(
    path: Path, ask_docker: Callable[..., Enquiries]
) -> None:
    asker = ask_docker()
    with Daemon(path, unknown) as daemon:
        asker.ask(container_id(7), "docker", 1)
        (answer,) = collect(asker, 1)
        assert len(daemon.targets) == enquiries.UNKNOWN_ROUNDS
    assert answer.metadata is None
    assert answer.error == f"docker at {path}: no such container"
    assert asker.counts.failed == 1
    assert asker.troubles() == {}


def test_a_container_that_is_known_a_moment_later(
    path: Path, ask_docker: Callable[..., Enquiries]
) -> None:
    def at_last(peer: Peer) -> None:
        (well if len(daemon.targets) > 2 else unknown)(peer)

    asker = ask_docker()
    with Daemon(path, at_last) as daemon:
        asker.ask(container_id(7), "docker", 1)
        (answer,) = collect(asker, 1)
    assert answer.metadata is not None


def test_who_knows_a_container_of_an_unknown_runtime(
    tmp_path: Path, ask_docker: Callable[..., Enquiries], caplog: pytest.LogCaptureFixture
) -> None:
    podman = tmp_path / "podman.sock"
    asker = ask_docker(Socket("podman", str(podman)))
    with Daemon(podman, well):
        asker.ask(container_id(7), None, 1)
        (answer,) = collect(asker, 1)
    assert answer.source == f"podman at {podman}"
    # Nobody promised that there is a Docker.
    assert not caplog.records

    started = time.monotonic()
    asker.ask(container_id(8), None, 2)
    (answer,) = collect(asker, 1)
    assert answer.metadata is None
    assert "No such file" in (answer.error or "")
    assert time.monotonic() - started < SLACK


def test_rootless_daemons_are_asked_for_their_users_containers_only(
    path: Path, tmp_path: Path, ask_docker: Callable[..., Enquiries]
) -> None:
    """
    A user may name a cgroup like somebody else's container.
    """

    def lie(peer: Peer) -> None:
        number = number_in(peer.target)
        peer.send(reply(inspection(number, Name=f"/of-a-user-{number}")))

    needs.that(os.geteuid() == 0, "needs root to be another user")
    asker = ask_docker(Socket("docker", f"{tmp_path}/{{uid}}.sock"))
    with Daemon(path, well), Daemon(tmp_path / "1000.sock", lie, uid=1000):
        asker.ask(container_id(7), "docker", 1)
        asker.ask(container_id(7), "docker", 2, uid=1000)
        asker.ask(container_id(7), "docker", 3, uid=0)
        answers = {answer.cgroup_id: answer for answer in collect(asker, 3)}

    names = {key: answer.metadata and answer.metadata.name for key, answer in answers.items()}
    assert names == {1: "c7", 2: "of-a-user-7", 3: "c7"}


def test_a_users_path_that_leads_to_somebody_elses_daemon(
    tmp_path: Path, ask_docker: Callable[..., Enquiries]
) -> None:
    """
    We may be allowed to ask a daemon that the user may not.
    """
    asker = ask_docker(Socket("docker", f"{tmp_path}/{{uid}}.sock"), patience=0.3)
    stranger = os.geteuid() + 1
    with Daemon(tmp_path / f"{stranger}.sock", well) as daemon:
        asker.ask(container_id(7), "docker", 2, uid=stranger)
        (answer,) = collect(asker, 1)
        assert daemon.targets == []
    assert answer.metadata is None
    assert f"expected user {stranger} to listen there, found {os.geteuid()}" in (answer.error or "")


def lying_id(peer: Peer) -> None:
    peer.send(reply(inspection(number_in(peer.target) + 1)))


def broken(peer: Peer) -> None:
    peer.send(reply(b"{"))


def huge(peer: Peer) -> None:
    number = number_in(peer.target)
    peer.send(reply(inspection(number, Padding="x" * endpoint.ANSWER_SIZE)))


def failing(peer: Peer) -> None:
    peer.send(reply({"message": "boom"}, "500 Internal Server Error"))


def redirecting(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (lying_id, "expected container"),
        (broken, "expected JSON"),
        (huge, "expected at most 1048576 bytes"),
        (failing, "found 500"),
        (redirecting, "found 302"),
    ],
)
def test_nonsense(
    behave: Callable[[Peer], None], words: str, path: Path, ask_docker: Callable[..., Enquiries],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """
    It is asked again while there is patience, and the log says it once.
    """
    asker = ask_docker(patience=1.0)
    with Daemon(path, behave) as daemon:
        asker.ask(container_id(7), "docker", 1)
        (answer,) = collect(asker, 1)
        assert len(daemon.targets) >= 3
    assert answer.metadata is None
    assert words in (answer.error or "")
    (line,) = caplog.records
    assert words in line.getMessage()
    assert f"docker at {path} does not answer" in line.getMessage()


def test_a_slow_daemon_holds_up_nobody_else(
    path: Path, tmp_path: Path, ask_docker: Callable[..., Enquiries]
) -> None:
    podman = tmp_path / "podman.sock"
    asker = ask_docker(Socket("podman", str(podman)), seconds=60.0)
    with Daemon(path, silent), Daemon(podman, well):
        for number in range(20):
            asker.ask(container_id(number), "docker", number)
        for number in range(20, 40):
            asker.ask(container_id(number), "podman", number)
        answers = collect(asker, 20)
        assert {answer.runtime for answer in answers} == {"podman"}
        asker.close()


def test_a_slow_daemon_is_left_alone_for_a_while(
    path: Path, ask_docker: Callable[..., Enquiries], caplog: pytest.LogCaptureFixture
) -> None:
    asker = ask_docker(seconds=0.2, patience=1.5)
    with Daemon(path, silent) as daemon:
        for number in range(30):
            asker.ask(container_id(number), "docker", number)
        answers = collect(asker, 30)
        # 0.2 s each, then pauses of 0.5 s and 1 s.
        assert len(daemon.targets) <= 4
    assert {answer.error for answer in answers} == {
        f"docker at {path}: no complete answer within 0.2 s"
    }
    assert len(caplog.records) == 1
    assert asker.troubles() == {f"docker at {path}": "no complete answer within 0.2 s"}


def test_a_daemon_that_starts_again(
    path: Path, ask_docker: Callable[..., Enquiries], caplog: pytest.LogCaptureFixture
) -> None:
    """
    What was asked meanwhile is answered when it is back, and the log has a line for each change.
    """
    caplog.set_level(logging.INFO)
    asker = ask_docker()
    daemon = Daemon(path, well)
    try:
        asker.ask(container_id(1), "docker", 1)
        collect(asker, 1)
        daemon.stop()
        for number in range(2, 9):
            asker.ask(container_id(number), "docker", number)
        wait_until(asker.troubles)
        daemon.start()
        answers = collect(asker, 7)
    finally:
        daemon.stop()
    assert sorted(answer.cgroup_id for answer in answers) == list(range(2, 9))
    assert all(answer.metadata for answer in answers)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"docker at {path} {said}"
        for said in (
            "does not answer: No such file or directory; containers go without metadata meanwhile",
            "answers again",
        )
    ]


def test_a_daemon_that_dies_in_the_middle(path: Path, ask_docker: Callable[..., Enquiries]) -> None:
    def first_cut(peer: Peer) -> None:
        if len(daemon.targets) == 1:
            peer.send(reply(inspection(7))[:-9])
        else:
            well(peer)

    asker = ask_docker()
    with Daemon(path, first_cut) as daemon:
        asker.ask(container_id(7), "docker", 1)
        (answer,) = collect(asker, 1)
    assert answer.metadata is not None


def test_a_container_that_is_gone_before_its_answer(
    path: Path, ask_docker: Callable[..., Enquiries]
) -> None:
    """
    It was asked for at the start; a runtime that still knew it is believed.
    """
    asked = threading.Event()

    def late(peer: Peer) -> None:
        asked.set()
        peer.sleep(0.3)
        well(peer)

    asker = ask_docker()
    with Daemon(path, late):
        asker.ask(container_id(7), "docker", 1)
        assert asked.wait(SLACK)
        (answer,) = collect(asker, 1)
    assert answer.metadata is not None


def test_closing_is_final_and_can_be_repeated(
    path: Path, ask_docker: Callable[..., Enquiries]
) -> None:
    asker = ask_docker()
    with Daemon(path, well):
        asker.ask(container_id(1), "docker", 1)
        wait_until(lambda: asker.under_way() == 0)
        asker.close()
        asker.close()
        assert asker.take() == []
        assert not asker.ask(container_id(2), "docker", 2)
        assert threads() == 0


def test_closing_while_questions_wait_for_later(ask_docker: Callable[..., Enquiries]) -> None:
    asker = ask_docker()
    asker.ask(container_id(1), "docker", 1)
    wait_until(asker.troubles)
    started = time.monotonic()
    asker.close()
    assert time.monotonic() - started < 1.0
    assert threads() == 0


def test_every_question_has_one_answer(path: Path, ask_docker: Callable[..., Enquiries]) -> None:
    """
    Whatever happens, ``asked = answered + failed`` in the end.
    """
    ways = [well, unknown, broken, failing, well, lying_id]

    def moody(peer: Peer) -> None:
        ways[number_in(peer.target) % len(ways)](peer)

    asker = ask_docker(patience=2.0)
    with Daemon(path, moody):
        asked = sum(asker.ask(container_id(number), "docker", number) for number in range(101))
        answers = collect(asker, asked, 30)
    assert sorted(answer.cgroup_id for answer in answers) == list(range(101))
    for answer in answers:
        good = ways[answer.cgroup_id % len(ways)] is well
        assert (answer.metadata is not None) == good == (answer.error is None), answer
    counts = asker.counts
    assert (counts.asked, counts.answered + counts.failed, counts.refused) == (101, 101, 0)


# -- Nomad -------------------------------------------------------------------

ALLOCATION = "84407c34-35e1-b0cb-4a8f-f3b6c9a8cc81"


@pytest.fixture
def task(tmp_path: Path) -> Iterator[Path]:
    """
    Return a list of processes: one that is gone, Nomad's executor, and the task.
    """
    variables = {"NOMAD_ALLOC_ID": ALLOCATION, "NOMAD_TASK_NAME": "web", "NOMAD_TOKEN": "secret"}
    with (
        subprocess.Popen(["sleep", "600"], env={"PATH": os.environ["PATH"]}) as executor,
        subprocess.Popen(["sleep", "600"], env={**os.environ, **variables}) as process,
    ):
        procs = tmp_path / "cgroup.procs"
        procs.write_text(f"4194304\n{executor.pid}\n{process.pid}\n")
        yield procs
        executor.kill()
        process.kill()


def test_a_nomad_task(task: Path, ask_docker: Callable[..., Enquiries]) -> None:
    asker = ask_docker()
    assert asker.ask(f"{ALLOCATION}.web", "nomad", 1, procs=str(task))
    (answer,) = collect(asker, 1)

    assert answer.metadata is not None
    assert answer.metadata.nomad == NomadTask(allocation=ALLOCATION, task_name="web")
    assert answer.source == str(task)


def test_a_nomad_task_that_starts_a_little_later(
    task: Path, ask_docker: Callable[..., Enquiries]
) -> None:
    """
    The cgroup is there before the first process is in it.
    """
    pids = task.read_text()
    task.write_text("")
    asker = ask_docker()
    asker.ask(f"{ALLOCATION}.web", "nomad", 1, procs=str(task))
    time.sleep(0.2)
    task.write_text(pids)
    (answer,) = collect(asker, 1)
    assert answer.metadata is not None


def test_a_nomad_task_of_another_allocation(
    task: Path, ask_docker: Callable[..., Enquiries]
) -> None:
    asker = ask_docker()
    other = ALLOCATION.replace("8", "9")
    asker.ask(f"{other}.web", "nomad", 1, procs=str(task))
    (answer,) = collect(asker, 1)
    assert answer.metadata is None
    assert answer.error == f"no process of {task} has the variables of allocation {other}"


def test_a_nomad_task_without_a_place_to_look(ask_docker: Callable[..., Enquiries]) -> None:
    assert not ask_docker().ask(f"{ALLOCATION}.web", "nomad", 1)
