"""The protocol as a model: no schedule of trouble breaks a promise, and protocols with a known flaw are caught."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import chaos_model
import numpy as np
import pytest
from chaos_model import INDEX, BrokenPromiseError, Protocol, Request, Rows, Shard, Swap, World, let_run, run_schedules
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from raymask.protocol import Create, PartName, Put, ShardPlan, by_precedence, plan_shards


def test_no_schedule_breaks_a_promise() -> None:
    violations, happened = run_schedules(1500, 1_000_000, Protocol())
    assert violations == []
    trouble = {"driver killed", "worker killed", "second driver", "lost answer", "late request", "new images"}
    assert all(happened[kind] > 100 for kind in trouble)


def test_the_command_says_so() -> None:
    command = [sys.executable, str(Path(chaos_model.__file__)), "--schedules", "50"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert "violations: 0" in outcome.stdout


@given(st.integers(0, 40), st.lists(st.tuples(st.integers(0, 1), st.sets(st.integers(0, 50), min_size=1)), max_size=8))
def test_a_shard_is_planned_of_the_parts_that_may_hold_its_images(rows: int, parts: list[tuple[int, set[int]]]) -> None:
    """Also parts of images that were listed after the manifest was read."""
    names = {PartName.of(np.array(sorted(held)), attempt): max(held) for attempt, held in parts}
    plans = plan_shards(rows, 7, names.items())
    assert [n for plan in plans for n in range(plan.first, plan.stop)] == list(range(rows))
    for number, plan in enumerate(plans):
        may = [name for name, last in names.items() if name.first_ordinal < 7 * (number + 1) and last >= 7 * number]
        assert (plan.number, plan.first, list(plan.parts)) == (number, 7 * number, by_precedence(may))


# ------------------------------------------------------------------------------------------------- with a known flaw


class CommitsBeforeTheData(Protocol):
    """The index first, then the files that it names."""

    def write_shard(
        self, plan: ShardPlan, parts: dict[str, Rows], before: Shard | None
    ) -> Generator[Request, Any, Shard]:
        writes = super().write_shard(plan, parts, before)
        try:
            next(writes)
            while True:
                writes.send(True)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        yield  # a generator, though it asks nothing

    def commit(self, there: Any, shards: tuple[Shard, ...]) -> Generator[Request, Any, bool]:
        if not (yield Swap(INDEX, there, shards)):
            return False
        for shard in shards:
            for name, content in shard.files:
                yield Put(name, content)
        return True


class RenamesTheIndex(Protocol):
    """The index under another name, then moved into place, which in a store is to delete, to copy and to delete."""

    def commit(self, there: Any, shards: tuple[Shard, ...]) -> Generator[Request, Any, bool]:
        yield Put("index.tmp", shards)
        yield chaos_model.Delete(INDEX)
        yield Put(INDEX, (yield chaos_model.Get("index.tmp")) or ())
        yield chaos_model.Delete("index.tmp")
        return True


class ReplacesFilesInPlace(Protocol):
    """Files under their plain names always, over those that the index still names."""

    def write_shard(
        self, plan: ShardPlan, parts: dict[str, Rows], before: Shard | None
    ) -> Generator[Request, Any, Shard]:
        shard = yield from super().write_shard(plan, parts, None)
        files = tuple(
            (chaos_model.plain_name(t, plan.number), file[1])
            for t, file in zip(chaos_model.TABLES, shard.files, strict=True)
        )
        for name, content in files:
            yield Put(name, content)
        return Shard(shard.rows, shard.source, files, is_aside=False)


class PutsTheIndex(Protocol):
    """The index over whatever is there, also over a newer one."""

    def commit(self, there: Any, shards: tuple[Shard, ...]) -> Generator[Request, Any, bool]:
        yield Put(INDEX, shards)
        return True


class PutsParts(Protocol):
    """A part over an older one of the same images, which a slow worker may find failed."""

    def write_part(self, name: str, rows: Rows) -> Generator[Request, Any, None]:
        yield Put(name, rows)


class TrustsAnyFile(Protocol):
    """The plain names without a look at what they hold."""

    def write_shard(
        self, plan: ShardPlan, parts: dict[str, Rows], before: Shard | None
    ) -> Generator[Request, Any, Shard]:
        writes = super().write_shard(plan, parts, before)
        try:
            request = next(writes)
            while True:
                answer = yield request
                request = writes.send(True if isinstance(request, Create) else answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "flawed",
    [
        CommitsBeforeTheData(),
        RenamesTheIndex(),
        ReplacesFilesInPlace(),
        PutsTheIndex(),
        PutsParts(),
        TrustsAnyFile(),
    ],
    ids=lambda p: type(p).__name__,
)
def test_a_flaw_is_caught(flawed: Protocol) -> None:
    violations, _ = run_schedules(400, 0, flawed)
    assert violations


# -------------------------------------------------------------------------------------------------------- hypothesis


class Chaos(RuleBasedStateMachine):
    """The same world, with Hypothesis in the place of the random scheduler: it looks for the shortest trouble."""

    world: World

    @initialize(seed=st.integers(0, 2**16), rivals=st.booleans(), source=st.integers(1, 7))
    def begin(self, seed: int, rivals: bool, source: int) -> None:
        self.world = World(random.Random(seed), Protocol().driver, rivals, source)

    @rule(retry_failed=st.booleans())
    def start(self, retry_failed: bool) -> None:
        if self.world.rivals or not any(p.is_driver for p in self.world.living()):
            self.world.start_driver(retry_failed)

    @rule(count=st.integers(1, 3))
    def add_images(self, count: int) -> None:
        self.world.source += count

    @precondition(lambda self: self.world.living())
    @rule(which=st.integers(0, 20), steps=st.integers(1, 30))
    def advance(self, which: int, steps: int) -> None:
        living = self.world.living()
        process = living[which % len(living)]
        for _ in range(steps):
            if process.lives:
                self.world.advance(process)

    @precondition(lambda self: self.world.living())
    @rule(which=st.integers(0, 20))
    def lose_answer(self, which: int) -> None:
        living = self.world.living()
        self.world.lose_answer(living[which % len(living)])

    @precondition(lambda self: self.world.living())
    @rule(which=st.integers(0, 20), how=st.sampled_from(["before", "after", "late"]))
    def kill(self, which: int, how: str) -> None:
        living = self.world.living()
        process = living[which % len(living)]
        self.world.kill(process, how if self.world.rivals or not process.is_driver else "before")

    @precondition(lambda self: self.world.late)
    @rule(which=st.integers(0, 20))
    def arrive_late(self, which: int) -> None:
        self.world.carry_out(self.world.late.pop(which % len(self.world.late)))

    def teardown(self) -> None:
        while self.world.late:
            self.world.carry_out(self.world.late.pop())
        let_run(self.world)
        for _ in range(2):
            last = self.world.start_driver()
            let_run(self.world)
        self.world.check_end(last.result)


ChaosTest = Chaos.TestCase
ChaosTest.settings = settings(max_examples=150, stateful_step_count=30)


def test_a_world_tells_when_a_file_is_missing() -> None:
    world = World(random.Random(0), Protocol().driver, rivals=False, source=3)
    world.start_driver()
    let_run(world)
    with pytest.raises(BrokenPromiseError, match="not there"):
        world.carry_out(chaos_model.Delete("images/0"))
