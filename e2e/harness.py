"""What every step of the end-to-end flows stands on: requests, users, inboxes and the report.

Requests are made once. A step that needs a retry to pass has found a fault, so nothing here retries
except `User.eventually`, which is for what Matrix itself promises only "soon" (search indexes,
the user directory, presence), and `Http.settles`, for what one process may still have in a cache.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import nio
import yarl

CLIENT = "/_matrix/client/v3"
UNSTABLE = "/_matrix/client/unstable"

# Longer than any answer of a healthy server, the router's own longest wait included.
REQUEST_SECONDS = 60
# How long one long poll is held. Short enough that a lost wake-up is told apart from a slow one.
POLL_MILLISECONDS = 10_000
# How long one process may not know what another has changed.
SETTLING_SECONDS = 10
# How long after an answer its line is in the access log.
LOG_SECONDS = 1
# How long a step waits for something to show up in another user's sync.
ARRIVAL_SECONDS = 30


class StepFailed(Exception):
    """The server did something that it should not have done."""


class Skip(Exception):
    """The server says that it does not offer what the step is about."""


class Refused(StepFailed):
    """An answer with a status other than the one that was asked for."""

    def __init__(self, what: str, expected: Iterable[int], status: int, body: Any) -> None:
        self.status = status
        self.body = body if isinstance(body, dict) else {}
        self.errcode = self.body.get("errcode", "")
        wanted = " or ".join(str(code) for code in expected)
        super().__init__(f"{what}: wanted {wanted}, got {status} {str(body)[:300]}")


def check(condition: object, reason: str) -> None:
    """Fails the running step with `reason` unless `condition` holds."""
    if not condition:
        raise StepFailed(reason)


def ok(response: Any) -> Any:
    """The answer of a matrix-nio call, or a failed step with what the server said."""
    if isinstance(response, nio.ErrorResponse):
        raise StepFailed(f"{type(response).__name__}: {response}")
    return response


def q(part: str) -> str:
    """One path segment, with everything encoded that could be mistaken for the path's own."""
    return quote(part, safe="")


class Http:
    """Plain JSON over HTTP, for what matrix-nio does not speak."""

    def __init__(self, url: str, session: aiohttp.ClientSession, token: str | None = None) -> None:
        self.url = url
        self.session = session
        self.token = token

    def bearing(self, token: str | None) -> Http:
        """The same server with another access token."""
        return Http(self.url, self.session, token)

    async def raw(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        data: Any = None,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        seconds: float = REQUEST_SECONDS,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of one request, whatever they are."""
        sent = dict(headers or {})
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        async with self.session.request(
            method,
            # `encoded` keeps the path's percent-encoding as the step wrote it.
            yarl.URL(self.url + path, encoded=True).update_query(params or {}),
            json=body,
            data=data,
            headers=sent,
            timeout=aiohttp.ClientTimeout(total=seconds),
        ) as answer:
            return answer.status, answer.headers, await answer.read()

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        expect: int | tuple[int, ...] = 200,
        errcode: str | None = None,
        **rest: Any,
    ) -> Any:
        """The JSON answer of one request, which must have the status `expect`."""
        if body is None and method in ("POST", "PUT") and "data" not in rest:
            body = {}
        status, _, text = await self.raw(method, path, body=body, **rest)
        expected = (expect,) if isinstance(expect, int) else expect
        try:
            answer = json.loads(text) if text else {}
        except ValueError:
            answer = text[:300]
        what = f"{method} {path}"
        if status not in expected:
            raise Refused(what, expected, status, answer)
        if errcode is not None:
            got = answer.get("errcode") if isinstance(answer, dict) else answer
            check(got == errcode, f"{what}: wanted {errcode}, got {got}")
        return answer

    async def settles(
        self,
        path: str,
        *,
        expect: int = 200,
        errcode: str | None = None,
        where: Callable[[Any], bool] = lambda _: True,
    ) -> Any:
        """The first answer to GET that is as wanted, which the server may take a moment to give.

        For what one process has changed and another may have in a cache: the news of it travels.
        """
        deadline = time.monotonic() + SETTLING_SECONDS
        while True:
            try:
                answer = await self.call("GET", path, expect=expect, errcode=errcode)
                check(where(answer), f"GET {path} still says {answer}")
                return answer
            except StepFailed:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)

    async def get(self, path: str, **rest: Any) -> Any:
        return await self.call("GET", path, **rest)

    async def post(self, path: str, body: Any = None, **rest: Any) -> Any:
        return await self.call("POST", path, body, **rest)

    async def put(self, path: str, body: Any = None, **rest: Any) -> Any:
        return await self.call("PUT", path, body, **rest)

    async def delete(self, path: str, body: Any = None, **rest: Any) -> Any:
        return await self.call("DELETE", path, body, **rest)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One thing that a sync answer brought."""

    # timeline, ephemeral, room_account_data, invite, join, leave, knock, presence, account_data,
    # to_device, device_list, decrypted
    kind: str
    # The room it belongs to; empty for what belongs to the user.
    room: str
    body: Any

    @property
    def type(self) -> str:
        return self.body.get("type", "") if isinstance(self.body, dict) else ""

    @property
    def content(self) -> dict[str, Any]:
        return self.body.get("content", {}) if isinstance(self.body, dict) else {}


class Inbox:
    """Everything that one device has been told by /sync, in the order of its telling."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.entries: list[Entry] = []
        self.syncs = 0
        self.errors: list[str] = []
        # Rooms of which the server has said that it left events out.
        self.gaps: set[str] = set()
        self.one_time_keys: dict[str, int] = {}
        self.unread: dict[str, dict[str, int]] = {}
        self._changed = asyncio.Event()

    def feed(self, body: dict[str, Any]) -> None:
        """Takes one answer of /sync apart."""
        add = self._add
        rooms = body.get("rooms", {})
        for room, update in rooms.get("join", {}).items():
            timeline = update.get("timeline", {})
            if timeline.get("limited"):
                self.gaps.add(room)
            if "unread_notifications" in update:
                self.unread[room] = update["unread_notifications"]
            add("join", room, update)
            for event in timeline.get("events", ()):
                add("timeline", room, event)
            for event in update.get("ephemeral", {}).get("events", ()):
                add("ephemeral", room, event)
            for event in update.get("account_data", {}).get("events", ()):
                add("room_account_data", room, event)
        for membership in ("invite", "leave", "knock"):
            for room, update in rooms.get(membership, {}).items():
                add(membership, room, update)
        for kind in ("presence", "account_data", "to_device"):
            for event in body.get(kind, {}).get("events", ()):
                add(kind, "", event)
        for user in body.get("device_lists", {}).get("changed", ()):
            add("device_list", "", {"user_id": user})
        self.one_time_keys = body.get("device_one_time_keys_count", self.one_time_keys)
        self.syncs += 1
        self.wake()

    def _add(self, kind: str, room: str, body: Any) -> None:
        self.entries.append(Entry(kind, room, body))

    def add(self, kind: str, room: str, body: Any) -> None:
        """Takes one thing in that did not come from a sync answer itself."""
        self._add(kind, room, body)
        self.wake()

    def wake(self) -> None:
        """Lets everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def mark(self) -> int:
        """A place from which `wait` may look for what comes later."""
        return len(self.entries)

    async def until(self, what: str, condition: Callable[[], Any], seconds: float = ARRIVAL_SECONDS) -> Any:
        """The first true answer of `condition`, asked again after each sync."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            left = deadline - time.monotonic()
            if left <= 0:
                errors = f"; its last sync errors: {self.errors[-2:]}" if self.errors else ""
                raise StepFailed(f"{self.owner} has not seen {what} within {seconds:g} s{errors}")
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except (TimeoutError, asyncio.TimeoutError):
                continue
        return found

    async def wait(
        self,
        what: str,
        predicate: Callable[[Entry], Any],
        *,
        since: int = 0,
        seconds: float = ARRIVAL_SECONDS,
    ) -> Entry:
        """The first entry from `since` on that `predicate` likes."""
        position = since

        def look() -> Entry | None:
            nonlocal position
            while position < len(self.entries):
                entry = self.entries[position]
                position += 1
                if predicate(entry):
                    return entry
            return None

        return await self.until(what, look, seconds)

    async def event(self, room: str, event_id: str, **rest: Any) -> Entry:
        """The event as it arrived in the room's timeline."""
        return await self.wait(
            f"the event {event_id} in {room}",
            lambda e: e.kind == "timeline" and e.room == room and e.body["event_id"] == event_id,
            **rest,
        )

    def timeline(self, room: str) -> list[dict[str, Any]]:
        """All timeline events of the room so far."""
        return [e.body for e in self.entries if e.kind == "timeline" and e.room == room]


class User:
    """One person with one device: a matrix-nio client that syncs all the time, and plain HTTP."""

    def __init__(self, http: Http, name: str, password: str, store: Path) -> None:
        self.name = name
        self.password = password
        self.inbox = Inbox(name)
        self.http = http
        store.mkdir(parents=True, exist_ok=True)
        self.client = nio.AsyncClient(
            http.url,
            name,
            store_path=str(store),
            # A request is made once: see the head of this file.
            config=nio.AsyncClientConfig(
                max_limit_exceeded=0, max_timeouts=0, request_timeout=REQUEST_SECONDS
            ),
        )
        self._loop: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.client.user_id

    @property
    def device(self) -> str:
        return self.client.device_id or ""

    @property
    def path(self) -> str:
        """Where the user's own things live."""
        return f"{CLIENT}/user/{q(self.id)}"

    async def login(self) -> None:
        ok(await self.client.login(self.password, device_name=f"{self.name} end to end"))
        self.http = self.http.bearing(self.client.access_token)

    async def start_sync(self, filter_id: str) -> None:
        """Syncs until `close`, as a client left open does; returns after the first answer."""

        async def answered(response: Any) -> None:
            if isinstance(response, nio.SyncError):
                self.inbox.errors.append(str(response))
                self.inbox.wake()
                # matrix-nio asks again at once; a broken server must not become a busy loop.
                await asyncio.sleep(0.5)
            else:
                self.inbox.feed(await response.transport_response.json())

        async def decrypted(room: nio.MatrixRoom, event: nio.RoomMessageText) -> None:
            if event.decrypted:
                self.inbox.add("decrypted", room.room_id, event)

        async def forever() -> None:
            while True:
                try:
                    await self.client.sync_forever(timeout=POLL_MILLISECONDS, sync_filter=filter_id)
                except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                    self.inbox.errors.append(repr(error))
                    self.inbox.wake()
                    await asyncio.sleep(0.5)

        self.client.add_response_callback(answered, (nio.SyncResponse, nio.SyncError))
        self.client.add_event_callback(decrypted, nio.RoomMessageText)
        self._loop = asyncio.create_task(forever())
        await self.inbox.until("its first sync", lambda: self.inbox.syncs)

    async def text(self, room: str, text: str, **content: Any) -> str:
        """Sends a text message and returns its event ID."""
        sent = await self.client.room_send(
            room,
            "m.room.message",
            {"msgtype": "m.text", "body": text, **content},
            ignore_unverified_devices=True,
        )
        return ok(sent).event_id

    async def joined(self, room: str) -> None:
        """Waits until the user's own sync shows the room as joined."""
        try:
            await self.inbox.until(f"its own join of {room}", lambda: room in self.client.rooms)
        except StepFailed as reason:
            listed = room in (await self.http.get(f"{CLIENT}/joined_rooms"))["joined_rooms"]
            told = sorted({entry.kind for entry in self.inbox.entries if entry.room == room})
            raise StepFailed(
                f"{reason}; the server {'lists' if listed else 'does not list'} it as joined, "
                f"and has told of it by sync as {told or 'nothing'}"
            ) from reason

    async def eventually(
        self,
        what: str,
        attempt: Callable[[], Awaitable[Any]],
        seconds: float = ARRIVAL_SECONDS,
    ) -> Any:
        """Asks again until the answer is true: for what the server promises only soon."""
        deadline = time.monotonic() + seconds
        while True:
            if found := await attempt():
                return found
            check(time.monotonic() < deadline, f"{what}: not within {seconds:g} s")
            await asyncio.sleep(0.25)

    async def stop_sync(self) -> None:
        if self._loop:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
            self._loop = None

    async def close(self) -> None:
        await self.stop_sync()
        await self.client.close()


# Method, a part of the path, the role whose process has to answer; with two servers, which of them.
Served = tuple[str, str, str] | tuple[str, str, str, str]


@dataclasses.dataclass
class Outcome:
    """How one step went."""

    name: str
    outcome: str
    seconds: float
    detail: str
    # When, as the router's access log writes it. A request's line may come a moment after its answer.
    started: str
    ended: str
    # Who must have answered what meanwhile: for whoever has the access logs.
    served: tuple[Served, ...]


StepFunction = Callable[[Any], Awaitable[str | None]]


@dataclasses.dataclass(frozen=True)
class Step:
    name: str
    run: StepFunction
    needs: tuple[str, ...]
    # Steps that must be over first, whatever came of them.
    after: tuple[str, ...]
    seconds: float
    served: tuple[Served, ...]


class Plan:
    """Steps, and which of them must have passed before which."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}

    def step(
        self,
        *needs: str,
        after: Iterable[str] = (),
        seconds: float = 90,
        served: Iterable[Served] = (),
    ) -> Callable[[StepFunction], StepFunction]:
        """Adds the function as a step that may take `seconds` once the steps it `needs` passed.

        It also waits for the steps that it comes `after`, whether they pass or not. `served` goes into the report: while
        the step ran, each of these requests was made and answered, and by no other role.
        """
        later = tuple(after)

        def add(run: StepFunction) -> StepFunction:
            name = run.__name__
            unknown = [need for need in (*needs, *later) if need not in self.steps]
            assert not unknown and name not in self.steps, (name, unknown)
            self.steps[name] = Step(name, run, needs, later, seconds, tuple(served))
            return run

        return add

    async def run(self, context: Any, only: set[str] | None = None) -> list[Outcome]:
        """Runs every step as early as its needs allow and prints a line for each."""
        tasks: dict[str, asyncio.Task[Outcome]] = {}
        for step in self.steps.values():
            if only is None or step.name in only:
                tasks[step.name] = asyncio.create_task(self._one(step, tasks, context))
        return list(await asyncio.gather(*tasks.values()))

    def closure(self, names: Iterable[str]) -> set[str]:
        """The named steps and everything they need."""
        wanted: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in wanted:
                wanted.add(name)
                todo.extend(self.steps[name].needs)
        return wanted

    @staticmethod
    async def _one(step: Step, tasks: dict[str, asyncio.Task[Outcome]], context: Any) -> Outcome:
        needed = [await tasks[need] for need in step.needs]
        await asyncio.gather(*(tasks[name] for name in step.after if name in tasks))
        missing = [need.name for need in needed if need.outcome not in ("pass", "skip")]
        started, clock = time.monotonic(), _timestamp()
        if missing:
            outcome, detail = "fail", f"not run, for it needs {', '.join(missing)}"
        else:
            try:
                detail = await asyncio.wait_for(step.run(context), step.seconds) or ""
                outcome = "pass"
            except Skip as reason:
                outcome, detail = "skip", str(reason)
            except StepFailed as reason:
                outcome, detail = "fail", str(reason)
            except (TimeoutError, asyncio.TimeoutError):
                outcome, detail = "fail", f"not done within {step.seconds:g} s"
            except Exception as error:  # One step's surprise must not hide the others' outcomes.
                outcome, detail = "fail", f"{type(error).__name__}: {error}{_where(error)}"
        seconds = time.monotonic() - started
        later = _timestamp(LOG_SECONDS)
        result = Outcome(step.name, outcome, seconds, detail, clock, later, step.served)
        print(
            f"{outcome.upper()} {step.name:<24} {result.seconds:6.2f} s  {detail}",
            flush=True,
        )
        return result


def _timestamp(later: float = 0) -> str:
    """The time so many seconds from now, as the access log writes it."""
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=later)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"


def _where(error: BaseException) -> str:
    """The last place in these files that an unforeseen error came through."""
    here = Path(__file__).parent
    place = ""
    trace = error.__traceback__
    while trace:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.parent == here:
            place = f" (at {file.name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place
