"""A contest between small servers of our own: its processes, rounds, failures and end."""

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from rich.console import Console

from bench import loads, results, server
from bench.contest import Contest, Entry, Plan
from bench.process import ProcessGroup
from bench.progress import Progress
from bench.results import Results, Sample, ServerFacts
from bench.server import Server
from tests.bench.echo import echo
from tests.bench.runs import MACHINE, MODEL
from tests.fakes.wait import until

ANY = ServerFacts("", "", "")
LOADS: dict[str, loads.Load] = {
    "c1": loads.Closed("c1", "1 client", 1, 2, 10, 3),
    "c32": loads.Closed("c32", "32 clients", 4, 8, 10, 3),
}


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Plan]:
    def plan(*names: Server, **fields: Any) -> Plan:
        return Plan(
            entries=[Entry(server, list(LOADS)) for server in names],
            loads=LOADS,
            num_rounds=2,
            settle_s=0.0,
            logs=tmp_path,
            save=lambda found: results.write(found, tmp_path / "results.json"),
            machine=MACHINE,
            model=MODEL,
            **fields,
        )

    return plan


async def held(plan: Plan) -> Results:
    return await Contest(plan, Progress(Console(quiet=True))).run()


async def test_servers_are_measured_in_turn(plan: Callable[..., Plan], tmp_path: Path) -> None:
    found = await held(plan(echo("a"), echo("b")))
    assert [(s.round, s.load, s.target) for s in found.samples] == [
        (0, "c1", "a"),
        (0, "c1", "b"),
        (0, "c32", "a"),
        (0, "c32", "b"),
        (1, "c1", "b"),
        (1, "c1", "a"),
        (1, "c32", "b"),
        (1, "c32", "a"),
    ]
    assert not [s.fault for s in found.samples if s.fault]
    assert all(s.figures["output_tok_s"] > 0 for s in found.samples)
    assert all(0 <= share <= 1.5 for s in found.samples for share in s.cpu.values())
    for facts in found.servers.values():
        assert facts.ready_s is not None
        assert facts.pss_mib is not None
        assert facts.pss_mib > 1
    assert results.read(tmp_path / "results.json") == found


async def test_servers_in_turn_get_all_loads_of_a_round_at_once(plan: Callable[..., Plan]) -> None:
    before = set(psutil.Process().children(recursive=True))
    found = await held(plan(echo("a"), echo("b"), is_in_turn=True))
    assert [(s.round, s.target, s.load) for s in found.samples] == [
        (0, "a", "c1"),
        (0, "a", "c32"),
        (0, "b", "c1"),
        (0, "b", "c32"),
        (1, "b", "c1"),
        (1, "b", "c32"),
        (1, "a", "c1"),
        (1, "a", "c32"),
    ]
    assert not [s.fault for s in found.samples if s.fault]
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.slow
@pytest.mark.parametrize("is_in_turn", [False, True])
async def test_continued_run_measures_only_what_is_missing(
    plan: Callable[..., Plan], tmp_path: Path, is_in_turn: bool
) -> None:
    first = await held(replace(plan(echo("a"), is_in_turn=is_in_turn), num_rounds=1))
    kept = list(first.samples)
    first.samples[0] = replace_fault(first.samples[0])
    earlier = results.read(tmp_path / "results.json")
    earlier.samples = first.samples
    fields = {"earlier": earlier, "is_in_turn": is_in_turn}
    found = await held(plan(echo("a"), echo("b"), **fields))
    assert kept[1] in found.samples
    assert sorted((s.round, s.target, s.load) for s in found.samples) == sorted(
        (index, target, load) for index in (0, 1) for target in "ab" for load in LOADS
    )
    assert found.num_rounds == 2
    assert not [s.fault for s in found.samples if s.fault]


@pytest.mark.slow
async def test_contest_leaves_no_process_running(plan: Callable[..., Plan]) -> None:
    before = set(psutil.Process().children(recursive=True))
    await held(plan(echo("a")))
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.slow
async def test_server_that_does_not_start_is_left_out(plan: Callable[..., Plan]) -> None:
    found = await held(plan(echo("a", "dies"), echo("b")))
    assert found.servers["a"].failure == "does not start: exit code 1: no such model"
    assert {sample.target for sample in found.samples} == {"b"}


@pytest.mark.slow
async def test_server_with_wrong_token_counts_gets_faults(
    plan: Callable[..., Plan],
) -> None:
    found = await held(plan(echo("a", "short")))
    assert {sample.fault for sample in found.samples} == {
        "1 of 1 requests: 7 tokens instead of 8",
        "4 of 4 requests: 7 tokens instead of 8",
    }


@pytest.mark.slow
async def test_first_start_has_empty_caches(plan: Callable[..., Plan], tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    found = await held(plan(echo("a", "notes", str(seen)), has_first_starts=True))
    assert found.servers["a"].first_ready_s is not None
    first, warm = seen.read_text().splitlines()
    assert "chatrpc-bench-" in first
    assert not is_there(Path(first))
    assert warm == os.environ.get("XDG_CACHE_HOME", "")


@pytest.mark.slow
async def test_first_start_is_measured_once_if_servers_run_in_turn(
    plan: Callable[..., Plan], tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    fields = {"has_first_starts": True, "is_in_turn": True}
    found = await held(plan(echo("a", "notes", str(seen)), **fields))
    assert found.servers["a"].first_ready_s is not None
    starts = seen.read_text().splitlines()
    assert ["chatrpc-bench-" in start for start in starts] == [True, False, False]


@pytest.mark.slow
async def test_failed_run_ends_the_servers(plan: Callable[..., Plan]) -> None:
    def fail(found: Results) -> None:
        raise RuntimeError("disk full")

    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(RuntimeError, match="disk full"):
        await held(replace(plan(echo("a")), save=fail))
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.slow
async def test_interrupted_run_ends_the_servers(plan: Callable[..., Plan]) -> None:
    before = set(psutil.Process().children(recursive=True))
    contest = Contest(plan(echo("a", "hangs")), Progress(Console(quiet=True)))
    task = asyncio.create_task(contest.run())
    await until(lambda: contest.results.servers.get("a", ANY).ready_s is not None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(psutil.Process().children(recursive=True)) <= before


async def test_process_that_ignores_signals_is_killed_with_its_children(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "print('up', flush=True); time.sleep(1000)"
    )
    log = tmp_path / "log"
    group = await ProcessGroup.start([(sys.executable, "-c", code)], dict(os.environ), log)
    await until(lambda: "up" in log.read_text())
    tree = group.tree()
    assert len(tree) == 2
    group.freeze()
    await group.end(grace_s=0.1)
    await until(lambda: not any(is_alive(process) for process in tree))


@pytest.mark.slow
async def test_frozen_server_does_not_respond_until_it_is_thawed(tmp_path: Path) -> None:
    running = await server.start(echo("a"), tmp_path, settle_s=0.0)
    try:
        [process] = running.group.tree()
        # A signal stops a process only when the kernel next runs it.
        await until(lambda: process.status() == psutil.STATUS_STOPPED)
        async with running.awake():
            assert process.status() != psutil.STATUS_STOPPED
    finally:
        await running.end()


def replace_fault(sample: Sample) -> Sample:
    return msgspec.structs.replace(sample, fault="no response")


def is_there(path: Path) -> bool:
    return path.exists()


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
