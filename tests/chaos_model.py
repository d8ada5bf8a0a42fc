"""The protocol of an output under chaos: drivers and workers of `raymask.protocol` over a store in memory.

Every request to the store is a step of its own. Between any two a scheduler may let another process go on, kill one
before or after its request took effect, deliver a dead process's last request late, lose an answer (the request is
then repeated), start a second driver beside a living one, or add images to the source. Meanwhile `World` checks what
is promised to readers, after each change of what they can see.

    python tests/chaos_model.py --schedules 100000
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from raymask.protocol import (
    Commit,
    Copy,
    Create,
    Done,
    PartName,
    Put,
    ShardPlan,
    Write,
    by_precedence,
    files_of_shard,
    goes_on,
    next_step,
    plan_shards,
    rows_that_count,
    work_to_do,
)

IMAGES_PER_FILE = 3
INDEX = "raymask.json"
TABLES = ("images", "instances")
OK_CHANCE = 0.7


class BrokenPromiseError(AssertionError):
    """Something promised did not hold."""


# ------------------------------------------------------------------------------------------------------------- store


@dataclass(frozen=True)
class Swap:
    """Put `data` if the object still holds `old`; the answer is whether it holds `data` now."""

    name: str
    old: Any
    data: Any


@dataclass(frozen=True)
class Get:
    """The answer is the object, None if there is none."""

    name: str


@dataclass(frozen=True)
class List:
    """The answer is name -> object of all whose names begin with `prefix`."""

    prefix: str


@dataclass(frozen=True)
class Delete:
    """Delete the object if there is one."""

    name: str


@dataclass(frozen=True)
class Wait:
    """The answer, once that process is no more, is whether it came to its end."""

    process: Process


Request = Put[Any] | Create[Any] | Swap | Get | List | Delete
Body = Generator[Request | Wait, Any, Any]


@dataclass(eq=False)
class Process:
    """A driver or worker: the request that it waits to be answered, and what became of it."""

    body: Body
    is_driver: bool
    request: Request | Wait | None = None
    ended: bool = False
    killed: bool = False
    result: Any = None

    def go_on(self, answer: Any) -> None:
        try:
            self.request = self.body.send(answer)
        except StopIteration as end:
            self.ended, self.result = True, end.value

    @property
    def lives(self) -> bool:
        return not (self.ended or self.killed)


# ----------------------------------------------------------------------------------------------------- what is stored


@dataclass(frozen=True)
class Row:
    """An image as a part has it. stamp: another in each row ever made, so that none passes for another."""

    ordinal: int
    ok: bool
    stamp: int


Rows = tuple[Row, ...]


@dataclass(frozen=True)
class Shard:
    """A shard in an index, with the contents of its files in place of their checksums."""

    rows: int
    source: str
    files: tuple[tuple[str, Rows], ...]
    is_aside: bool
    is_copied: bool = False

    def copied(self) -> Shard:
        return replace(self, is_copied=True)


def plain_name(table: str, number: int) -> str:
    return f"{table}/{number}"


@dataclass
class World:
    """The store, the source, all processes, and the promises.

    rivals: whether drivers run beside one another, as they should not; then readers that go by names are promised
    less. Dead drivers leave workers behind in either case.
    """

    chance: random.Random
    driver: Callable[[World, bool], Body]
    rivals: bool
    source: int = 1
    objects: dict[str, Any] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    late: list[Request] = field(default_factory=list)
    ever_ok: set[int] = field(default_factory=set)
    published_ok: set[int] = field(default_factory=set)
    published_rows: int = 0
    stamps: int = 0

    def start(self, body: Body, is_driver: bool = False) -> Process:
        process = Process(body, is_driver)
        process.go_on(None)
        if process.lives:
            self.processes.append(process)
        return process

    def start_driver(self, retry_failed: bool = False) -> Process:
        return self.start(self.driver(self, retry_failed), is_driver=True)

    def living(self) -> list[Process]:
        self.processes = [p for p in self.processes if p.lives]
        return self.processes

    # ---------------------------------------------------------------------------------------------------- one step

    def carry_out(self, request: Request) -> Any:
        objects = self.objects
        match request:
            case Get(name):
                return objects.get(name)
            case List(prefix):
                return {name: value for name, value in objects.items() if name.startswith(prefix)}
            case Create(name, data):
                if name in objects:
                    return objects[name] == data
                objects[name] = data
            case Swap(name, old, data):
                if objects.get(name) != old:
                    return objects.get(name) == data
                objects[name] = data
            case Put(name, data):
                objects[name] = data
            case Delete(name):
                objects.pop(name, None)
        self.look_at(request.name)
        return True

    def advance(self, process: Process) -> None:
        """Answer the process's request; nothing happens while it waits for another process that lives."""
        request = process.request
        if isinstance(request, Wait):
            if not request.process.lives:
                process.go_on(request.process.ended)
        elif request is not None:
            process.go_on(self.carry_out(request))

    def lose_answer(self, process: Process) -> None:
        """The request takes effect, but its process will ask again."""
        if not isinstance(process.request, Wait | None):
            self.carry_out(process.request)

    def kill(self, process: Process, how: str) -> None:
        """Kill a process, its request having had no effect, its whole effect, or having it "late"."""
        request, process.killed = process.request, True
        if isinstance(request, Wait | None) or how == "before":
            return
        if how == "late":
            self.late.append(request)
        else:
            self.carry_out(request)

    # ------------------------------------------------------------------------------------------------ the promises

    def look_at(self, name: str) -> None:
        """Check what readers see, after `name` has changed."""
        if name.startswith("parts/"):
            self.ever_ok.update(row.ordinal for row in self.objects[name] if row.ok)
        elif name == INDEX or name.startswith((*TABLES, "aside/")):
            self.check_index()
            if not self.rivals:
                self.check_names()

    def check_index(self) -> None:
        """Whoever reads the index now finds every file it names, and in them each image once and what belongs to it."""
        index: tuple[Shard, ...] = self.objects.get(INDEX, ())
        next_ordinal = 0
        for shard in index:
            for name, content in shard.files:
                if self.objects.get(name) != content:
                    raise BrokenPromiseError(f"the index names {name}, which is not there or another")
            images, instances = (content for _, content in shard.files)
            if [row.ordinal for row in images] != list(range(next_ordinal, next_ordinal + shard.rows)):
                raise BrokenPromiseError("images are missing from a published table or are in it twice")
            if tuple(row for row in images if row.ok) != instances:
                raise BrokenPromiseError("objects of other images than those of the table")
            next_ordinal += shard.rows
        ok = {row.ordinal for shard in index for row in shard.files[0][1] if row.ok}
        if next_ordinal < self.published_rows or not ok >= self.published_ok:
            raise BrokenPromiseError("what was published is so no more")
        self.published_rows, self.published_ok = next_ordinal, ok

    def check_names(self) -> None:
        """Whoever reads all files by their plain names finds no image twice."""
        for table in TABLES:
            found = [r.ordinal for n, rows in self.objects.items() if n.startswith(f"{table}/") for r in rows]
            if len(found) != len(set(found)):
                raise BrokenPromiseError(f"an image twice in {table}, for readers that go by names")

    def check_end(self, result: Any) -> None:
        """After an undisturbed run that says it is done: everything listed is in the tables, and as good as ever."""
        if result != "done":
            raise BrokenPromiseError(f"an undisturbed run ends {result!r}")
        self.check_index()
        if self.published_rows != self.source:
            raise BrokenPromiseError(f"{self.published_rows} images in the tables, {self.source} in the source")
        listed = [uri for listing in listings_in(self.objects) for uri in listing]
        if sorted(listed) != list(range(self.source)):
            raise BrokenPromiseError("the manifest lacks images or has them twice")
        if not self.published_ok >= self.ever_ok:
            raise BrokenPromiseError("an image that was done is lost")
        for number, shard in enumerate(self.objects[INDEX]):
            for table, (_, content) in zip(TABLES, shard.files, strict=True):
                if not self.rivals and self.objects.get(plain_name(table, number)) != content:
                    raise BrokenPromiseError("readers that go by names find other tables")


def listings_in(objects: dict[str, Any]) -> Iterator[tuple[int, ...]]:
    number = 0
    while (listing := objects.get(f"listing/{number}")) is not None:
        yield objects[listing]
        number += 1


# --------------------------------------------------------------------------------------------------------- processes


class Protocol:
    """What drivers and workers do; the variants in `tests/test_protocol.py` do some of it wrong."""

    def driver(self, world: World, retry_failed: bool) -> Body:
        """`pipeline.segment`: list, do what is to do, publish."""
        listings = yield from self.read_listings()
        listed = [uri for listing in listings for uri in listing]
        parts = yield List("parts/")
        done, attempt, failed = self.state_of(parts, len(listed))
        if not goes_on(bool(listings), done):
            new = tuple(uri for uri in range(world.source) if uri not in set(listed))
            if new:
                committed = yield from self.append(len(listings), new)
                if not committed:
                    return "another run added images at the same time"
                listed += new
            parts = yield List("parts/")
            done, attempt, failed = self.state_of(parts, len(listed))
        work = work_to_do(done, attempt, failed if retry_failed else None)
        yield from self.process(world, np.flatnonzero(work.wanted).tolist(), work.attempt)
        for _ in range(10):
            if (yield from self.publish(world, len(listed))):
                return "done"
        return "other runs publish all the time"

    def read_listings(self) -> Generator[Request, Any, list[tuple[int, ...]]]:
        listings: list[tuple[int, ...]] = []
        while (name := (yield Get(f"listing/{len(listings)}"))) is not None:
            listings.append((yield Get(name)))
        return listings

    def append(self, number: int, new: tuple[int, ...]) -> Generator[Request, Any, bool]:
        file = f"files/{number}-{hash(new)}"
        yield Put(file, new)
        created: bool = yield Create(f"listing/{number}", file)
        return created

    def state_of(self, parts: dict[str, Rows], total: int) -> tuple[Any, int, Any]:
        """Flags of what is done, the latest attempt, flags of what failed."""
        names = by_precedence(name_of(part) for part in parts)
        part_of, row_of = rows_that_count(0, total, (arrays_of(parts[f"parts/{name}"]) for name in names))
        failed = [p >= 0 and not parts[f"parts/{names[p]}"][r].ok for p, r in zip(part_of, row_of, strict=True)]
        return part_of >= 0, max((name.attempt for name in names), default=0), np.array(failed, bool)

    def process(self, world: World, wanted: list[int], attempt: int) -> Body:
        """Workers at once, over groups of any kind; what a dead one leaves is grouped anew."""
        chance = world.chance
        while wanted:
            chance.shuffle(wanted)
            cuts = sorted({0, len(wanted), *(chance.randrange(len(wanted)) for _ in range(2))})
            groups = [wanted[first:stop] for first, stop in pairwise(cuts)]
            workers = [(world.start(self.worker(world, sorted(group), attempt)), group) for group in groups]
            wanted = []
            for worker, group in workers:
                if not (yield Wait(worker)):
                    wanted += group

    def worker(self, world: World, ordinals: list[int], attempt: int) -> Body:
        """`journal.write_part`, of rows that may come out well or not."""
        rows = []
        for ordinal in ordinals:
            world.stamps += 1
            rows.append(Row(ordinal, world.chance.random() < OK_CHANCE, world.stamps))
        name = PartName.of(np.array(ordinals), attempt)
        yield from self.write_part(f"parts/{name}", tuple(rows))

    def write_part(self, name: str, rows: Rows) -> Generator[Request, Any, None]:
        yield Create(name, rows)

    def publish(self, world: World, total: int) -> Generator[Request, Any, bool]:
        """`publishing._publish_unless_overtaken`: False if another run was faster."""
        there = yield Get(INDEX)
        index: tuple[Shard, ...] = there or ()
        parts = yield List("parts/")
        done, _, _ = self.state_of(parts, total)
        if not done.all():
            raise BrokenPromiseError("the journal lacks images that were done")
        plans = plan_shards(total, IMAGES_PER_FILE, [(name_of(n), rows[-1].ordinal) for n, rows in parts.items()])
        written: dict[int, Shard] = {}
        copied: set[int] = set()
        while True:
            match next_step(plans, index, written, copied):
                case Write(left):
                    for plan in world.chance.sample(left, len(left)):
                        before = index[plan.number] if plan.number < len(index) else None
                        written[plan.number] = yield from self.write_shard(plan, parts, before)
                case Commit(shards):
                    if not (yield from self.commit(there, shards)):
                        return False
                    there = index = shards
                case Copy(numbers):
                    for number in numbers:
                        for table, (_, content) in zip(TABLES, index[number].files, strict=True):
                            yield Put(plain_name(table, number), content)
                        copied.add(number)
                case Done():
                    return True

    def commit(self, there: Any, shards: tuple[Shard, ...]) -> Generator[Request, Any, bool]:
        swapped: bool = yield Swap(INDEX, there, shards)
        return swapped

    def write_shard(
        self, plan: ShardPlan, parts: dict[str, Rows], before: Shard | None
    ) -> Generator[Request, Any, Shard]:
        """`publishing.publish_shard`."""
        data = tables_of(plan, parts)
        if before is not None and tuple(data.values()) == tuple(content for _, content in before.files):
            return replace(before, source=plan.source)
        plain = {table: plain_name(table, plan.number) for table in TABLES}
        aside = {table: f"aside/{table}-{plan.number}-{hash(data[table])}" for table in TABLES}
        names = yield from files_of_shard(plain, aside, data, before is not None)
        files = tuple((names[table], data[table]) for table in TABLES)
        return Shard(plan.stop - plan.first, plan.source, files, is_aside=names is aside)


def tables_of(plan: ShardPlan, parts: dict[str, Rows]) -> dict[str, Rows]:
    rows = [parts[f"parts/{name}"] for name in plan.parts]
    part_of, row_of = rows_that_count(plan.first, plan.stop, map(arrays_of, rows))
    images = tuple(rows[p][r] for p, r in zip(part_of, row_of, strict=True) if p >= 0)
    return {"images": images, "instances": tuple(row for row in images if row.ok)}


def name_of(part: str) -> PartName:
    name = PartName.parse(part.removeprefix("parts/"))
    assert name is not None
    return name


def arrays_of(rows: Rows) -> tuple[Any, Any]:
    return np.array([row.ordinal for row in rows]), np.array([row.ok for row in rows])


# --------------------------------------------------------------------------------------------------------- scheduler


def run_schedule(seed: int, protocol: Protocol) -> Counter[str]:
    """One schedule, all of it by `seed`; returns what happened, by kind. BrokenPromiseError if a promise was broken."""
    chance = random.Random(seed)
    world = World(chance, protocol.driver, rivals=chance.random() < 0.7, source=chance.randint(1, 7))
    happened: Counter[str] = Counter()
    trouble = chance.choice((0.0, 0.03, 0.1, 0.3))  # of a step; some schedules are calm, so that others get far
    for _ in range(chance.randint(10, 150)):
        disturb_or_advance(world, trouble, happened)
    while world.late:  # what is under way arrives in the end
        world.carry_out(world.late.pop())
    let_run(world)
    if not world.rivals:
        happened["kills only"] += 1
    for _ in range(2):  # the first may finish an older listing only
        last = world.start_driver()
        let_run(world)
    world.check_end(last.result)
    return happened


def disturb_or_advance(world: World, trouble: float, happened: Counter[str]) -> None:
    chance, living = world.chance, world.living()
    drivers = sum(p.is_driver for p in living)
    if not drivers or (world.rivals and drivers < 3 and chance.random() < trouble / 2):
        retry = chance.random() < 0.3
        world.start_driver(retry)
        happened["second driver" if drivers else "driver"] += 1
    elif chance.random() < trouble / 3:
        world.source += chance.randint(1, 2)
        happened["new images"] += 1
    elif world.late and chance.random() < 0.2:
        world.carry_out(world.late.pop(chance.randrange(len(world.late))))
        happened["late request"] += 1
    else:
        process = chance.choice(living)
        if chance.random() >= trouble:
            world.advance(process)
        elif chance.random() < 0.4:
            world.lose_answer(process)
            happened["lost answer"] += 1
        else:
            # What a dead driver had sent arrives late only where rivals are: it is one.
            late = world.rivals or not process.is_driver
            how = chance.choice(("before", "after", "late") if late else ("before", "after"))
            world.kill(process, how)
            happened[f"{'driver' if process.is_driver else 'worker'} killed"] += 1


def let_run(world: World) -> None:
    """All processes to their ends, without trouble, in any order."""
    while living := world.living():
        world.advance(world.chance.choice(living))


def run_schedules(count: int, first_seed: int, protocol: Protocol) -> tuple[list[tuple[int, str]], Counter[str]]:
    """(seed, violation) of every schedule that broke a promise, and what happened in all of them."""
    violations, happened = [], Counter[str]()
    for seed in range(first_seed, first_seed + count):
        try:
            happened += run_schedule(seed, protocol)
        except BrokenPromiseError as violation:
            violations.append((seed, str(violation)))
    return violations, happened


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the protocol of an output through random schedules of trouble.")
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule; the others count up from it")
    options = parser.parse_args()
    started_s = time.monotonic()
    violations, happened = run_schedules(options.schedules, options.seed, Protocol())
    elapsed_s = time.monotonic() - started_s
    print(f"{options.schedules:,} schedules in {elapsed_s:.0f} s ({options.schedules / elapsed_s:.0f} a second)")
    print(", ".join(f"{count:,} x {kind}" for kind, count in happened.most_common()))
    print(f"violations: {len(violations)}")
    for seed, text in violations[:10]:
        print(f"  --seed {seed} --schedules 1: {text}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
