"""Messages under trouble: keep sending, note what was acknowledged, read all of it back later.

The senders do what real clients do. A message has one transaction ID for good; when the answer is
an error, or none comes, the same transaction is sent again until it is acknowledged. What the
server has acknowledged is then owed: `verify` wants every such message back, exactly once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

import aiohttp

from harness import CLIENT, Http, Refused, StepFailed, check, q
from steps import read_room, room_path

# A try gives up after this; the next one carries the same transaction ID.
TRY_SECONDS = 20
PAUSE_SECONDS = 0.25
# A message that stays unacknowledged for this long is a failure by itself. It is longer than the
# 63 s for which Synapse retries its own replication requests.
STUCK_SECONDS = 120
# The long polls only have to be there; what they bring is not read.
SYNC_FILTER = json.dumps({"room": {"timeline": {"limit": 5}, "state": {"lazy_load_members": True}}})
# How long `verify` goes on asking a server that is still coming back.
READ_SECONDS = 60


@dataclasses.dataclass
class Talk:
    """The counts of one session of sending."""

    acknowledged: int = 0
    retries: int = 0
    slowest: float = 0.0
    # What went wrong on the way, by kind: "502 M_UNKNOWN" and the like.
    troubles: Counter[str] = dataclasses.field(default_factory=Counter)

    def trouble(self, kind: str) -> None:
        self.retries += 1
        self.troubles[kind] += 1


async def patient(http: Http, method: str, path: str, talk: Talk | None = None, **rest: Any) -> Any:
    """A request that is made again, as it is, until it is answered well or time is up."""
    deadline = time.monotonic() + (STUCK_SECONDS if talk else READ_SECONDS)
    while True:
        wait = PAUSE_SECONDS
        try:
            return await http.call(method, path, seconds=TRY_SECONDS, **rest)
        except Refused as refusal:
            if refusal.status < 500 and refusal.status != 429:
                raise
            reason = f"{refusal.status} {refusal.errcode}".strip()
            wait = max(wait, refusal.body.get("retry_after_ms", 0) / 1000)
            last: Exception = refusal
        except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError, OSError) as error:
            reason, last = type(error).__name__, error
        if talk:
            talk.trouble(reason)
        if time.monotonic() + wait > deadline:
            raise StepFailed(f"{method} {path} has not been answered in time: {last!r}")
        await asyncio.sleep(wait)


async def log_in(http: Http, account: dict[str, str]) -> Http:
    """The account with a device of its own."""
    answer = await patient(
        http,
        "POST",
        f"{CLIENT}/login",
        body={
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": account["name"]},
            "password": account["password"],
            "initial_device_display_name": "ledger",
        },
    )
    return http.bearing(answer["access_token"])


async def make_rooms(people: list[Http], count: int) -> list[str]:
    """Public rooms that everybody has joined, so many that every event persister has some."""

    async def one(number: int) -> str:
        owner = people[number % len(people)]
        body = {"preset": "public_chat", "name": f"Ledger {number}", "room_version": ("11", "12")[number % 2]}
        room = (await patient(owner, "POST", f"{CLIENT}/createRoom", body=body))["room_id"]
        for person in people:
            if person is not owner:
                await patient(person, "POST", f"{CLIENT}/join/{q(room)}")
        return room

    return list(await asyncio.gather(*(one(number) for number in range(count))))


async def talk_until(
    people: list[Http],
    rooms: list[str],
    ledger: TextIO,
    stop: asyncio.Event,
    interval: float,
) -> Talk:
    """Everybody sends into the rooms in turn until told to stop; each acknowledgement is noted."""
    talk = Talk()

    async def speaker(number: int, http: Http) -> None:
        sent = 0
        while not stop.is_set():
            room = rooms[(number + sent) % len(rooms)]
            transaction = uuid.uuid4().hex
            started = time.monotonic()
            answer = await patient(
                http,
                "PUT",
                f"{room_path(room)}/send/m.room.message/{transaction}",
                talk,
                body={"msgtype": "m.text", "body": f"ledger {transaction}"},
            )
            entry = {"room": room, "event": answer["event_id"], "transaction": transaction}
            # Noted at once, and whole, so that a killed sender has still said what it knows.
            ledger.write(json.dumps(entry) + "\n")
            ledger.flush()
            sent += 1
            talk.acknowledged += 1
            talk.slowest = max(talk.slowest, time.monotonic() - started)
            try:
                await asyncio.wait_for(stop.wait(), interval)
            except (TimeoutError, asyncio.TimeoutError):
                continue

    async def listener(http: Http) -> None:
        """Keeps a long poll open, as the person's client would meanwhile."""
        since: dict[str, str] = {}
        while not stop.is_set():
            try:
                answer = await http.get(
                    f"{CLIENT}/sync",
                    params={"timeout": "5000", "filter": SYNC_FILTER, **since},
                    seconds=TRY_SECONDS,
                )
                since = {"since": answer["next_batch"]}
            except (StepFailed, aiohttp.ClientError, TimeoutError, asyncio.TimeoutError, OSError) as error:
                status = getattr(error, "status", "")
                talk.troubles[f"sync {type(error).__name__} {status}".strip()] += 1
                await asyncio.sleep(PAUSE_SECONDS)

    listeners = [asyncio.create_task(listener(http)) for http in people]
    try:
        await asyncio.gather(*(speaker(n, http) for n, http in enumerate(people)))
    finally:
        for task in listeners:
            task.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)
    return talk


def read_ledger(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


async def verify(http: Http, entries: list[dict[str, str]]) -> str:
    """Every acknowledged message is there, once, by /messages and by /event."""
    owed: dict[str, dict[str, str]] = {}
    for entry in entries:
        transactions = owed.setdefault(entry["room"], {})
        known = transactions.setdefault(entry["transaction"], entry["event"])
        check(known == entry["event"], f"the transaction {entry['transaction']} made two events")
    lost: list[str] = []
    doubled: list[str] = []
    for room, transactions in owed.items():
        # Asks until the server has come back; the reading itself is then done once.
        await patient(http, "GET", f"{room_path(room)}/state/m.room.create")
        events = await read_room(http, room, "b", 100)
        bodies = Counter(
            event["content"].get("body", "").removeprefix("ledger ")
            for event in events
            if event["type"] == "m.room.message"
        )
        ids = {event["event_id"] for event in events}
        lost += [t for t, event in transactions.items() if event not in ids]
        doubled += [t for t, times in bodies.items() if times > 1]
        gate = asyncio.Semaphore(8)

        async def one(transaction: str, event: str) -> None:
            async with gate:
                got = await patient(http, "GET", f"{room_path(room)}/event/{q(event)}")
                check(
                    got["content"].get("body") == f"ledger {transaction}",
                    f"{event} says {got['content']} instead of the transaction {transaction}",
                )

        await asyncio.gather(*(one(t, e) for t, e in transactions.items() if e in ids))
    check(not lost, f"{len(lost)} of {len(entries)} acknowledged messages are lost: {lost[:3]}")
    check(not doubled, f"{len(doubled)} messages came twice: {doubled[:3]}")
    return f"{len(entries)} acknowledged messages in {len(owed)} rooms, none lost, none doubled"
