"""The full client flow: every feature that a client uses, each as a step with its own verdict.

The steps know nothing of processes and roles. They hold against any Matrix homeserver that has the
features on; what only the router in front of a stack does is marked by `context.router`.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import struct
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import nio
from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa
from nio.api import ReceiptType
from nio.crypto import ENCRYPTION_ENABLED

from harness import (
    CLIENT,
    UNSTABLE,
    Entry,
    Http,
    Plan,
    Refused,
    Skip,
    StepFailed,
    User,
    check,
    ok,
    q,
)

# Five users send ten messages each into each of four rooms: two hundred.
MESSAGES_PER_USER_AND_ROOM = 10
# Enough to cross every buffer on the way many times, little enough for a small machine.
LARGE_BYTES = 20 * 1024 * 1024
CHUNK_BYTES = 64 * 1024

plan = Plan()
step = plan.step


@dataclasses.dataclass
class Context:
    """What the steps share."""

    http: Http
    users: list[User]
    # Makes everything that has a name new in each run.
    run: str
    # Whether the router is in front, with what it adds and closes.
    router: bool
    # Whether the server may call back to this machine, so that push can be tried.
    push: bool
    # Whether the users may be registered by the flow.
    register: bool
    rooms: dict[str, str] = dataclasses.field(default_factory=dict)
    versions: dict[str, Any] = dataclasses.field(default_factory=dict)
    sent: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def server(self) -> str:
        return self.users[0].id.partition(":")[2]

    def feature(self, name: str) -> None:
        """Skips the step unless the server announces the unstable feature."""
        if not self.versions.get("unstable_features", {}).get(name):
            raise Skip(f"the server does not announce {name}")


async def second_device(user: User, name: str, **extra: Any) -> tuple[Http, dict[str, Any]]:
    """One more device of the user, driven by plain HTTP."""
    answer = await user.http.bearing(None).post(
        f"{CLIENT}/login",
        {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": user.name},
            "password": user.password,
            "initial_device_display_name": name,
            **extra,
        },
    )
    return user.http.bearing(answer["access_token"]), answer


async def with_password(
    user: User, method: str, path: str, body: dict[str, Any], password: str | None = None
) -> Any:
    """A request that the server lets pass only after the password was given once more."""
    try:
        return await user.http.call(method, path, body)
    except Refused as refusal:
        if refusal.status != 401 or "flows" not in refusal.body:
            raise
        session = refusal.body["session"]
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user.name},
        "password": password or user.password,
        "session": session,
    }
    return await user.http.call(method, path, {**body, "auth": auth})


async def make_room(owner: User, members: list[User], **options: Any) -> str:
    """A room that all members have joined and see as joined."""
    options.setdefault("preset", nio.RoomPreset.private_chat)
    room = ok(await owner.client.room_create(invite=[member.id for member in members], **options)).room_id

    async def enter(member: User) -> None:
        await member.inbox.until(f"the invitation to {room}", lambda: room in member.client.invited_rooms)
        ok(await member.client.join(room))
        await member.joined(room)

    await asyncio.gather(owner.joined(room), *map(enter, members))
    return room


def room_path(room: str) -> str:
    return f"{CLIENT}/rooms/{q(room)}"


# --- before anybody has logged in -------------------------------------------------------------


@step(served=[("GET", "/_matrix/client/versions", "client_reader")])
async def versions(c: Context) -> str:
    c.versions = await c.http.get("/_matrix/client/versions")
    check("v1.11" in c.versions["versions"], f"v1.11 is not among {c.versions['versions']}")
    return f"up to {c.versions['versions'][-1]}"


@step(served=[("GET", "/login", "client_reader")])
async def login_flows(c: Context) -> None:
    flows = ok(await c.users[0].client.login_info()).flows
    check("m.login.password" in flows, f"no login by password among {flows}")


@step()
async def refusals(c: Context) -> None:
    """What a server must refuse, it refuses in Matrix's own words."""
    http = c.http
    await http.get(f"{CLIENT}/account/whoami", expect=401, errcode="M_MISSING_TOKEN")
    await http.bearing("syt_bm9ib2R5_nothing_000000").get(
        f"{CLIENT}/account/whoami", expect=401, errcode="M_UNKNOWN_TOKEN"
    )
    await http.get(f"{CLIENT}/sync", expect=401, errcode="M_MISSING_TOKEN")
    await http.get("/_matrix/client/v3/nothing/here", expect=404, errcode="M_UNRECOGNIZED")
    await http.call("POST", f"{CLIENT}/login", data=b"{no json", expect=400, errcode="M_NOT_JSON")
    await http.call("PATCH", f"{CLIENT}/login", {}, expect=405, errcode="M_UNRECOGNIZED")


@step(
    served=[
        ("GET", "/_matrix/federation/v1/version", "federation_reader"),
        ("GET", "/_matrix/key/v2/server", "federation_reader"),
    ],
)
async def federation_public(c: Context) -> str:
    """What other servers may ask without a signature, and that they need one for the rest."""
    version = (await c.http.get("/_matrix/federation/v1/version"))["server"]
    keys = await c.http.get("/_matrix/key/v2/server")
    for name, key in keys["verify_keys"].items():
        verify_signed(keys, keys["server_name"], name, key["key"])
    await c.http.get("/_matrix/federation/v1/event/$nothing", expect=401, errcode="M_UNAUTHORIZED")
    return f"{version['name']} {version['version']}"


@step()
async def router_front(c: Context) -> None:
    """What the router itself answers, and what it keeps closed."""
    if not c.router:
        raise Skip("no router in front")
    well_known = await c.http.get("/.well-known/matrix/client")
    check("base_url" in well_known["m.homeserver"], f"no base_url in {well_known}")
    server = await c.http.get("/.well-known/matrix/server")
    check("m.server" in server, f"no m.server in {server}")
    status, headers, _ = await c.http.raw(
        "OPTIONS",
        f"{CLIENT}/sync",
        headers={"Origin": "https://app.example", "Access-Control-Request-Method": "GET"},
    )
    check(status in (200, 204), f"a CORS preflight got {status}")
    check(headers.get("Access-Control-Allow-Origin") == "*", "a preflight without its headers")
    for path in ("/_synapse/admin/v1/server_version", "/_synapse/replication/x", "/_synapse/metrics"):
        status, _, body = await c.http.raw("GET", path)
        check(status in (403, 404), f"GET {path} is open to the public: {status} {body[:100]!r}")


# --- accounts ---------------------------------------------------------------------------------


@step()
async def register(c: Context) -> str:
    """The five accounts: registered here if the server allows it, else they must exist."""
    made = 0

    async def one(user: User) -> None:
        nonlocal made
        client = nio.AsyncClient(c.http.url)
        try:
            answer = await client.register(user.name, user.password, "registration")
            if isinstance(answer, nio.RegisterResponse):
                made += 1
                ok(await client.logout())
            else:
                check(answer.status_code == "M_USER_IN_USE", f"{user.name}: {answer}")
        finally:
            await client.close()

    if not c.register:
        await c.http.post(
            f"{CLIENT}/register",
            {"username": f"stranger{c.run}", "password": c.run},
            expect=403,
            errcode="M_FORBIDDEN",
        )
        return "closed to strangers, as it should be"
    await asyncio.gather(*map(one, c.users))
    await c.http.get(
        f"{CLIENT}/register/available",
        params={"username": c.users[0].name},
        expect=400,
        errcode="M_USER_IN_USE",
    )
    return f"{made} new"


@step("register", served=[("POST", "/login", "client_reader")])
async def login(c: Context) -> None:
    await asyncio.gather(*(user.login() for user in c.users))
    await c.http.post(
        f"{CLIENT}/login",
        {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": c.users[0].name},
            "password": "not the password",
        },
        expect=403,
        errcode="M_FORBIDDEN",
    )


@step("login", served=[("GET", "/account/whoami", "client_reader")])
async def whoami(c: Context) -> None:
    async def one(user: User) -> None:
        answer = ok(await user.client.whoami())
        check(
            (answer.user_id, answer.device_id) == (user.id, user.device),
            f"{user.id} on {user.device} is told to be {answer.user_id} on {answer.device_id}",
        )

    await asyncio.gather(*map(one, c.users))


@step("login", served=[("GET", "/capabilities", "client_reader")])
async def capabilities(c: Context) -> str:
    answer = (await c.users[0].http.get(f"{CLIENT}/capabilities"))["capabilities"]
    versions = answer["m.room_versions"]["available"]
    for version in ("10", "11", "12"):
        check(version in versions, f"room version {version} is not among {sorted(versions)}")
    return f"rooms of version {answer['m.room_versions']['default']} by default"


@step(
    "login",
    served=[
        ("POST", "/filter", "client_reader"),
        ("GET", "/filter/", "client_reader"),
    ],
)
async def filters(c: Context) -> None:
    user = c.users[0]
    room = {"timeline": {"limit": 3}}
    made = ok(await user.client.upload_filter(room=room)).filter_id
    got = await user.http.get(f"{user.path}/filter/{made}")
    check(got["room"] == room, f"the filter came back as {got}")


@step(
    "login",
    served=[
        ("GET", "/account/3pid", "client_reader"),
        ("POST", "/openid/request_token", "main"),
        ("GET", "/_matrix/federation/v1/openid/userinfo", "main"),
        ("GET", "/voip/turnServer", "client_reader"),
    ],
)
async def account_endpoints(c: Context) -> None:
    user = c.users[1]
    check((await user.http.get(f"{CLIENT}/account/3pid"))["threepids"] == [], "3pids from nowhere")
    openid = ok(await user.client.get_openid_token(user.id))
    told = await c.http.get(
        "/_matrix/federation/v1/openid/userinfo", params={"access_token": openid.access_token}
    )
    check(told["sub"] == user.id, f"the OpenID token is of {told}")
    await user.http.get(f"{CLIENT}/voip/turnServer")
    await user.http.get(f"{CLIENT}/thirdparty/protocols")


@step(
    "login",
    served=[
        ("PUT", "/pushrules/", "push_rules"),
        ("DELETE", "/pushrules/", "push_rules"),
        ("GET", "/pushrules/", "push_rules"),
    ],
)
async def push_rules(c: Context) -> None:
    user = c.users[2]
    base = f"{CLIENT}/pushrules"
    rule = f"{base}/global/content/word{c.run}"
    await user.http.put(rule, {"actions": ["notify"], "pattern": c.run})
    check((await user.http.get(rule))["pattern"] == c.run, "the rule lost its pattern")
    await user.http.put(f"{rule}/actions", {"actions": ["notify", {"set_tweak": "highlight"}]})
    await user.http.put(f"{rule}/enabled", {"enabled": False})
    kept = {r["rule_id"]: r for r in (await user.http.get(f"{base}/"))["global"]["content"]}
    check(kept[f"word{c.run}"]["enabled"] is False, "the rule is still enabled")
    check(len(kept[f"word{c.run}"]["actions"]) == 2, "the rule's actions were not kept")
    await user.http.delete(rule)
    await user.http.get(rule, expect=404, errcode="M_NOT_FOUND")
    ok(
        await user.client.set_pushrule(
            "global", nio.PushRuleKind.override, f"nio{c.run}", conditions=[nio.PushEventMatch("type", "x")]
        )
    )
    ok(await user.client.delete_pushrule("global", nio.PushRuleKind.override, f"nio{c.run}"))


@step(
    "login",
    served=[
        ("POST", "/refresh", "main"),
        ("GET", "timeout=5000", "one sync"),
        ("POST", "/logout", "main"),
    ],
)
async def token_refresh(c: Context) -> None:
    """A device whose token is renewed goes on where it was."""
    user = c.users[4]
    http, session = await second_device(user, "refreshing", refresh_token=True)
    check("refresh_token" in session and "expires_in_ms" in session, f"no refresh in {session}")
    since = (await http.get(f"{CLIENT}/sync", params={"timeout": "0"}))["next_batch"]
    token = session["refresh_token"]
    for turn in range(2):
        renewed = await http.bearing(None).post(f"{CLIENT}/refresh", {"refresh_token": token})
        http = http.bearing(renewed["access_token"])
        token = renewed["refresh_token"]
        event = {"turn": f"{c.run}{turn}"}
        await user.http.put(f"{user.path}/account_data/test.refresh", event)

        async def arrives() -> bool:
            nonlocal since
            answer = await http.get(f"{CLIENT}/sync", params={"timeout": "5000", "since": since})
            since = answer["next_batch"]
            return any(e["content"] == event for e in answer.get("account_data", {}).get("events", ()))

        await user.eventually("the change after a refresh", arrives)

    # One that was renewed long ago is worth nothing.
    await c.http.post(f"{CLIENT}/refresh", {"refresh_token": session["refresh_token"]}, expect=(401, 403))
    await http.post(f"{CLIENT}/logout")


# --- syncing and rooms ------------------------------------------------------------------------


@step("login")
async def sync_starts(c: Context) -> None:
    """Everybody's sync runs from here on, held open as a client's is."""

    async def one(user: User) -> None:
        made = ok(
            await user.client.upload_filter(
                room={"timeline": {"limit": 100}, "state": {"lazy_load_members": False}}
            )
        )
        await user.start_sync(made.filter_id)

    await asyncio.gather(*map(one, c.users))


@step(
    "sync_starts",
    served=[
        ("POST", "/createRoom", "room"),
        ("POST", "/join/", "room"),
        ("GET", "timeout=10000", "sync"),
    ],
)
async def rooms(c: Context) -> str:
    """Rooms of several versions, entered by alias, by invitation and by ID."""
    owner, *others = c.users

    async def public() -> str:
        alias = f"lobby{c.run}"
        room = ok(
            await owner.client.room_create(
                nio.RoomVisibility.public, alias=alias, name=f"Lobby {c.run}", room_version="10"
            )
        ).room_id

        async def enter(member: User) -> None:
            ok(await member.client.join(f"#{alias}:{c.server}"))
            await member.joined(room)

        await asyncio.gather(owner.joined(room), *map(enter, others))
        return room

    async def twelve() -> str:
        room = await make_room(owner, others, room_version="12", name=f"Twelve {c.run}")
        check(":" not in room, f"a room of version 12 is called {room}")
        return room

    c.rooms["public"], c.rooms["eleven"], c.rooms["twelve"], c.rooms["default"] = await asyncio.gather(
        public(),
        make_room(owner, others, room_version="11", name=f"Eleven {c.run}"),
        twelve(),
        make_room(others[0], [owner, *others[1:]], name=f"Default {c.run}"),
    )
    return f"{len(c.rooms)} rooms with {len(c.users)} members each"


@step("sync_starts")
async def side_room(c: Context) -> None:
    """A quiet room of three for the steps that count notifications and read state."""
    a, b, d, *_ = c.users
    c.rooms["side"] = await make_room(a, [b, d], name=f"Side {c.run}", topic="Aside")


@step("rooms", served=[("PUT", "/send/m.room.message/", "room")])
async def messages_sent(c: Context) -> str:
    """Two hundred messages by five users, in four rooms at once."""

    async def talk(user: User, room: str) -> None:
        ids = c.sent.setdefault(room, {}).setdefault(user.id, [])
        for number in range(MESSAGES_PER_USER_AND_ROOM):
            ids.append(await user.text(room, f"{c.run} {user.name} {number}"))

    started = time.monotonic()
    rooms = [c.rooms[name] for name in ("public", "eleven", "twelve", "default")]
    await asyncio.gather(*(talk(user, room) for user in c.users for room in rooms))
    count = sum(len(ids) for senders in c.sent.values() for ids in senders.values())
    return f"{count} acknowledged, {count / (time.monotonic() - started):.1f} a second"


def compare(what: str, room: str, senders: dict[str, list[str]], got: list[str]) -> None:
    """All that was sent is there, once, and each sender's in the order of sending."""
    wanted = {event for ids in senders.values() for event in ids}
    ours = [event for event in got if event in wanted]
    doubled = [event for event, times in Counter(ours).items() if times > 1]
    check(not doubled, f"{what} in {room}: {len(doubled)} doubled, {doubled[0] if doubled else ''}")
    lost = wanted - set(ours)
    check(not lost, f"{what} in {room}: {len(lost)} of {len(wanted)} lost, {sorted(lost)[:1]}")
    for sender, ids in senders.items():
        mine = set(ids)
        check(
            [event for event in ours if event in mine] == ids,
            f"{what} in {room}: the messages of {sender} are out of order",
        )


@step("messages_sent", served=[("GET", "timeout=10000", "sync")])
async def messages_by_sync(c: Context) -> str:
    """Everybody was told every message by /sync, without gaps."""

    async def one(user: User, room: str, senders: dict[str, list[str]]) -> None:
        for ids in senders.values():
            await user.inbox.event(room, ids[-1])
        # The last message of each sender is in, so whatever is missing now will not come.
        compare(f"{user.name}'s sync", room, senders, [e["event_id"] for e in user.inbox.timeline(room)])

    await asyncio.gather(*(one(u, room, s) for u in c.users for room, s in c.sent.items()))
    return f"{len(c.users)} users read {sum(map(len, (i for s in c.sent.values() for i in s.values())))}"


async def read_room(http: Http, room: str, direction: str, limit: int) -> list[dict[str, Any]]:
    """The whole room by /messages, page by page."""
    events: list[dict[str, Any]] = []
    params = {"dir": direction, "limit": str(limit)}
    for _ in range(1000):
        page = await http.get(f"{room_path(room)}/messages", params=params)
        events += page["chunk"]
        if "end" not in page or not page["chunk"]:
            return events
        params["from"] = page["end"]
    raise StepFailed(f"/messages of {room} does not come to an end")


@step("messages_sent", served=[("GET", "/messages?", "room")])
async def messages_by_pages(c: Context) -> None:
    """Everybody reads the same by /messages, in both directions."""

    async def one(user: User, room: str) -> list[str]:
        back = [e["event_id"] for e in await read_room(user.http, room, "b", 33)]
        back.reverse()
        compare(f"{user.name}'s /messages", room, c.sent[room], back)
        return back

    for room in c.sent:
        pages = await asyncio.gather(*(one(user, room) for user in c.users))
        # Other steps may add to the end meanwhile, which some see and others do not.
        ends = [page[-1] for page in pages if all(page[-1] in other for other in pages)]
        check(ends, f"nobody's end of {room} is seen by all")
        pages = [page[: page.index(ends[0]) + 1] for page in pages]
        shortest = min(map(len, pages))
        # Who joined later sees less of the beginning, never another order.
        for user, page in zip(c.users, pages, strict=True):
            check(
                page[-shortest:] == pages[0][-shortest:],
                f"{user.name} reads {room} in another order than {c.users[0].name}",
            )
        forth = [e["event_id"] for e in await read_room(c.users[0].http, room, "f", 50)]
        check(forth[: len(pages[0])] == pages[0], f"/messages of {room} forwards differs from backwards")


@step("side_room", served=[("PUT", "/send/m.room.message/txn", "room")])
async def transactions(c: Context) -> None:
    """The same transaction twice, at once and again, is one event."""
    user = c.users[0]
    path = f"{room_path(c.rooms['side'])}/send/m.room.message/txn{c.run}"
    body = {"msgtype": "m.text", "body": "once"}
    answers = await asyncio.gather(*(user.http.put(path, body) for _ in range(4)))
    answers.append(await user.http.put(path, body))
    check(len({a["event_id"] for a in answers}) == 1, f"one transaction made {answers}")
    # The room ID in the path as it is, too: clients differ in what they encode.
    bare = path.replace(q(c.rooms["side"]), c.rooms["side"])
    check(await user.http.put(bare, body) == answers[0], "the unencoded path made another event")


@step(
    "side_room",
    served=[
        ("PUT", "/send/m.reaction/", "room"),
        ("PUT", "/redact/", "room"),
        ("GET", "/relations/", "room"),
        ("GET", "/threads", "room"),
        ("GET", "/event/", "room"),
    ],
)
async def edits_and_relations(c: Context) -> None:
    """Edits, reactions, threads and redactions, seen by another."""
    a, b, *_ = c.users
    room = c.rooms["side"]
    first = await a.text(room, "teh first")
    edit = await a.text(
        room,
        "* the first",
        **{
            "m.new_content": {"msgtype": "m.text", "body": "the first"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": first},
        },
    )
    reaction = ok(
        await b.client.room_send(
            room,
            "m.reaction",
            {"m.relates_to": {"rel_type": "m.annotation", "event_id": first, "key": "👍"}},
        )
    ).event_id
    reply = await b.text(room, "in a thread", **{"m.relates_to": {"rel_type": "m.thread", "event_id": first}})
    for event in (edit, reaction, reply):
        await a.inbox.event(room, event)
        await b.inbox.event(room, event)
    related = await b.http.get(f"/_matrix/client/v1/rooms/{q(room)}/relations/{q(first)}")
    found = {e["event_id"] for e in related["chunk"]}
    check({edit, reaction, reply} <= found, f"relations of {first} are only {found}")
    threads = await b.http.get(f"/_matrix/client/v1/rooms/{q(room)}/threads")
    check([e["event_id"] for e in threads["chunk"]] == [first], "the thread is not listed")
    bundled = (await b.http.get(f"{room_path(room)}/event/{q(first)}"))["unsigned"]["m.relations"]
    check(bundled["m.thread"]["count"] == 1, f"bundled relations: {bundled}")
    mark = b.inbox.mark()
    ok(await a.client.room_redact(room, first, reason="gone"))
    await b.inbox.wait(
        "the redaction",
        lambda e: e.kind == "timeline" and e.type == "m.room.redaction" and e.room == room,
        since=mark,
    )
    gone = await b.http.get(f"{room_path(room)}/event/{q(first)}")
    check(gone["content"] == {}, f"the redacted event still says {gone['content']}")


@step("side_room", served=[("PUT", "/typing/", "typing")])
async def typing(c: Context) -> None:
    a, b, d, *_ = c.users
    room = c.rooms["side"]

    async def sees(user: User, who: list[str], since: int) -> None:
        await user.inbox.wait(
            f"{who or 'nobody'} typing",
            lambda e: e.type == "m.typing" and e.room == room and sorted(e.content["user_ids"]) == who,
            since=since,
        )

    for who, state in ((a, True), (b, True), (a, False), (b, False)):
        marks = [user.inbox.mark() for user in (a, b, d)]
        ok(await who.client.room_typing(room, state, timeout=30_000))
        expected = {(a, True): [a.id], (b, True): sorted([a.id, b.id]), (a, False): [b.id]}
        await asyncio.gather(
            *(sees(u, expected.get((who, state), []), m) for u, m in zip((a, b, d), marks, strict=True))
        )


@step(
    "sync_starts",
    served=[
        ("POST", "/receipt/", "receipts"),
        ("POST", "/read_markers", "receipts"),
    ],
)
async def receipts(c: Context) -> None:
    """Notification counts rise, receipts are seen by others, private ones are not."""
    a, b, d, *_ = c.users
    room = await make_room(a, [b, d], name=f"Read {c.run}")
    for number in range(3):
        last = await a.text(room, f"please read {number}")

    def unread() -> int:
        return b.inbox.unread.get(room, {}).get("notification_count", 0)

    # The invitation counts as well once Synapse has summed up its counts, which it does every half a minute.
    await b.inbox.until("three unread messages", lambda: unread() in (3, 4))

    def receipt(kind: str) -> Any:
        return lambda e: (
            e.type == "m.receipt" and e.room == room and b.id in e.content.get(last, {}).get(kind, {})
        )

    # Both in the same thread: of one event's receipts in and out of a thread Synapse may tell
    # others only one, which here would be the private one that they are not told.
    ok(await b.client.update_receipt_marker(room, last, ReceiptType.read_private))
    await b.inbox.wait("its own private receipt", receipt("m.read.private"))
    await b.inbox.until("its unread count fall to none", lambda: unread() == 0)
    ok(await b.client.update_receipt_marker(room, last))
    await asyncio.gather(
        *(user.inbox.wait(f"the receipt of {b.name}", receipt("m.read")) for user in (a, b, d))
    )
    leaked = [e for e in a.inbox.entries + d.inbox.entries if receipt("m.read.private")(e)]
    check(not leaked, "others were told of a private receipt")
    ok(await b.client.room_read_markers(room, last, last))
    await b.inbox.wait(
        "its own read marker",
        lambda e: e.type == "m.fully_read" and e.room == room and e.content["event_id"] == last,
    )


@step(
    "rooms",
    served=[
        ("PUT", "/presence/", "presence"),
        ("GET", "/presence/", "presence"),
    ],
)
async def presence(c: Context) -> None:
    a, b, *_ = c.users
    status = f"writing {c.run}"
    ok(await a.client.set_presence("online", status))
    await b.inbox.wait(
        f"the status of {a.name}",
        lambda e: e.kind == "presence" and e.body["sender"] == a.id and e.content.get("status_msg") == status,
    )
    told = ok(await b.client.get_presence(a.id))
    check(
        (told.presence, told.status_msg) == ("online", status),
        f"{a.name} is {told.presence} and {told.status_msg!r}",
    )


@step(
    "side_room",
    served=[
        ("PUT", "/account_data/", "account_data"),
        ("GET", "/account_data/", "account_data"),
        ("PUT", "/tags/", "account_data"),
        ("DELETE", "/tags/", "account_data"),
        ("GET", "/tags", "account_data"),
    ],
)
async def account_data(c: Context) -> None:
    """Global and room account data and tags come back by GET and by the user's own sync."""
    a, b, *_ = c.users
    room = c.rooms["side"]
    content = {"run": c.run}
    inside = f"{a.path}/rooms/{q(room)}"
    marks = (a.inbox.mark(), b.inbox.mark())
    await a.http.put(f"{a.path}/account_data/test.global", content)
    await a.http.put(f"{inside}/account_data/test.room", content)
    await a.http.put(f"{inside}/tags/u.work{c.run}", {"order": 0.25})
    check(await a.http.get(f"{a.path}/account_data/test.global") == content, "not kept")
    check(await a.http.get(f"{inside}/account_data/test.room") == content, "not kept")
    tags = (await a.http.get(f"{inside}/tags"))["tags"]
    check(tags.get(f"u.work{c.run}") == {"order": 0.25}, f"the tags are {tags}")
    for kind in ("test.global", "test.room", "m.tag"):
        await a.inbox.wait(
            f"its own {kind}",
            lambda e, kind=kind: e.kind.endswith("account_data") and e.type == kind,
            since=marks[0],
        )
    await a.http.delete(f"{inside}/tags/u.work{c.run}")
    tags = (await a.http.get(f"{inside}/tags"))["tags"]
    check(f"u.work{c.run}" not in tags, "the tag is still there")
    await b.http.put(f"{a.path}/account_data/test.global", {}, expect=403, errcode="M_FORBIDDEN")
    check(
        not any(
            e.kind.endswith("account_data") and e.type.startswith("test.")
            for e in b.inbox.entries[marks[1] :]
        ),
        "another user was told of account data",
    )


@step("sync_starts", served=[("PUT", "/sendToDevice/test.direct/", "to_device")])
async def to_device(c: Context) -> None:
    """A message to one device reaches that device, once, and no other."""
    a, b, *_ = c.users
    http, session = await second_device(b, "second")
    since = (await http.get(f"{CLIENT}/sync", params={"timeout": "0"}))["next_batch"]
    content = {"run": c.run}
    body = {"messages": {b.id: {session["device_id"]: content}}}
    path = f"{CLIENT}/sendToDevice/test.direct/txn{c.run}"
    mark = b.inbox.mark()
    await a.http.put(path, body)
    await a.http.put(path, body)
    # One to the first device as well, by the library, so that there is something to wait for.
    ok(
        await a.client.to_device(
            nio.ToDeviceMessage("test.direct", b.id, b.device, {"run": f"other {c.run}"})
        )
    )
    got: list[Any] = []

    async def drain() -> bool:
        nonlocal since
        answer = await http.get(f"{CLIENT}/sync", params={"timeout": "2000", "since": since})
        since = answer["next_batch"]
        fresh = answer.get("to_device", {}).get("events", [])
        got.extend(fresh)
        return bool(got) and not fresh

    await b.eventually("the message to the device", drain)
    check([e["content"] for e in got] == [content], f"the second device got {got}")
    await b.inbox.wait("its message", lambda e: e.kind == "to_device" and e.type == "test.direct", since=mark)
    mine = [e.content for e in b.inbox.entries[mark:] if e.type == "test.direct"]
    check(mine == [{"run": f"other {c.run}"}], f"the first device got {mine}")
    await http.post(f"{CLIENT}/logout")


# --- keys -------------------------------------------------------------------------------------


def canonical(value: dict[str, Any]) -> bytes:
    """The bytes that Matrix signs."""
    bare = {k: v for k, v in value.items() if k not in ("signatures", "unsigned")}
    return json.dumps(bare, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def unbase64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def verify_signed(value: dict[str, Any], who: str, key_name: str, public: str) -> None:
    """Fails the step unless `who` has signed the object with the key."""
    key = eddsa.import_public_key(unbase64(public))
    signature = unbase64(value["signatures"][who][key_name])
    try:
        eddsa.new(key, "rfc8032").verify(canonical(value), signature)
    except ValueError as error:
        raise StepFailed(f"the signature of {who} with {key_name} is wrong") from error


class Keys:
    """An Ed25519 key that signs as Matrix wants it: a new one, unless there is a seed."""

    def __init__(self, seed: bytes | None = None) -> None:
        self.private = ECC.construct(curve="Ed25519", seed=seed) if seed else ECC.generate(curve="Ed25519")
        self.public = base64_of(self.private.public_key().export_key(format="raw"))

    def sign(self, value: dict[str, Any], who: str, key_name: str) -> dict[str, Any]:
        signature = eddsa.new(self.private, "rfc8032").sign(canonical(value))
        signatures = value.setdefault("signatures", {}).setdefault(who, {})
        signatures[key_name] = base64_of(signature)
        return value


def new_device(user: str, device: str, keys: Keys, count: int) -> dict[str, Any]:
    """What a new device uploads: its own keys, and so many one-time keys, signed by them."""
    name = f"ed25519:{device}"
    device_keys = {
        "user_id": user,
        "device_id": device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {name: keys.public, f"curve25519:{device}": Keys().public},
    }
    one_time = {
        f"signed_curve25519:AAAA{n}": keys.sign({"key": Keys().public}, user, name) for n in range(count)
    }
    return {"device_keys": keys.sign(device_keys, user, name), "one_time_keys": one_time}


@step(
    "sync_starts",
    served=[
        ("POST", "/keys/upload", "device_lists"),
        ("POST", "/keys/query", "client_reader"),
        ("POST", "/keys/claim", "client_reader"),
    ],
)
async def one_time_keys(c: Context) -> str:
    """Keys are uploaded, queried and claimed; no one-time key is given out twice."""
    a, b, *_ = c.users
    count = 8
    http, session = await second_device(b, "keys")
    device, keys = session["device_id"], Keys()
    name = f"ed25519:{device}"
    body = new_device(b.id, device, keys, count)
    one_time = body["one_time_keys"]
    fallback = {"signed_curve25519:FALL": keys.sign({"key": Keys().public, "fallback": True}, b.id, name)}
    uploaded = await http.post(f"{CLIENT}/keys/upload", {**body, "fallback_keys": fallback})
    counts = uploaded["one_time_key_counts"]
    check(counts.get("signed_curve25519") == count, f"the server counts {counts}")

    async def listed() -> Any:
        answer = await a.http.post(f"{CLIENT}/keys/query", {"device_keys": {b.id: []}})
        return answer["device_keys"][b.id].get(device)

    seen = await a.eventually("the new device's keys", listed, 10)
    verify_signed(seen, b.id, name, keys.public)
    ask = {"one_time_keys": {b.id: {device: "signed_curve25519"}}}
    given: list[str] = []

    async def claim(by: User) -> str:
        answer = await by.http.post(f"{CLIENT}/keys/claim", ask)
        ((key_name, key),) = answer["one_time_keys"][b.id][device].items()
        verify_signed(key, b.id, name, keys.public)
        given.append(key_name)
        return key_name

    # At once, Synapse may give out the fallback key where other claims have their hands on the last others.
    await asyncio.gather(*(claim(c.users[n % len(c.users)]) for n in range(count)))
    while len(given) < 3 * count and (await claim(a)) != "signed_curve25519:FALL":
        pass
    fresh = sorted(key for key in given if key != "signed_curve25519:FALL")
    check(fresh == sorted(one_time), f"{count} keys were given out as {sorted(given)}")
    state = await http.get(f"{CLIENT}/sync", params={"timeout": "0"})
    left = state["device_one_time_keys_count"].get("signed_curve25519", 0)
    check(left == 0, f"{left} one-time keys are said to be left")
    unused = state.get("device_unused_fallback_key_types")
    check(unused == [], f"unused fallback keys: {unused}")
    await http.post(f"{CLIENT}/logout")
    return f"{count} claimed at once, none twice, then the fallback key"


@step(
    "rooms",
    served=[
        ("POST", "/keys/upload", "device_lists"),
        ("GET", "/keys/changes", "client_reader"),
    ],
)
async def device_lists(c: Context) -> None:
    """Who shares a room is told of a new device and of one that goes."""
    a, b, *_ = c.users
    before = (await a.http.get(f"{CLIENT}/sync", params={"timeout": "0"}))["next_batch"]
    for turn in ("comes", "goes"):
        mark = a.inbox.mark()
        if turn == "comes":
            http, session = await second_device(b, "device list")
            keys, device = Keys(), session["device_id"]
            name = f"ed25519:{device}"
            body = {"user_id": b.id, "device_id": device, "algorithms": [], "keys": {name: keys.public}}
            await http.post(f"{CLIENT}/keys/upload", {"device_keys": keys.sign(body, b.id, name)})
        else:
            await http.post(f"{CLIENT}/logout")
        await a.inbox.wait(
            f"a device of {b.name} that {turn}",
            lambda e: e.kind == "device_list" and e.body["user_id"] == b.id,
            since=mark,
        )
    after = (await a.http.get(f"{CLIENT}/sync", params={"timeout": "0"}))["next_batch"]
    changes = await a.http.get(f"{CLIENT}/keys/changes", params={"from": before, "to": after})
    check(b.id in changes["changed"], f"/keys/changes says {changes}")


@step(
    "sync_starts",
    served=[
        ("POST", "/keys/device_signing/upload", "device_lists"),
        ("POST", "/room_keys/version", "client_reader"),
        ("PUT", "/room_keys/keys/", "client_reader"),
        ("GET", "/room_keys/keys/", "client_reader"),
    ],
)
async def cross_signing(c: Context) -> None:
    """Cross-signing keys and the server-side key backup."""
    a, b = c.users[3], c.users[4]
    owners = {kind: Keys() for kind in ("master", "self_signing", "user_signing")}
    body: dict[str, Any] = {}
    for kind, keys in owners.items():
        value = {"user_id": a.id, "usage": [kind], "keys": {f"ed25519:{keys.public}": keys.public}}
        if kind != "master":
            master = owners["master"]
            value = master.sign(value, a.id, f"ed25519:{master.public}")
        body[f"{kind}_key"] = value
    await with_password(a, "POST", f"{CLIENT}/keys/device_signing/upload", body)

    async def seen() -> bool:
        answer = await b.http.post(f"{CLIENT}/keys/query", {"device_keys": {a.id: []}})
        got = answer.get("master_keys", {}).get(a.id, {}).get("keys", {})
        return owners["master"].public in got.values()

    await b.eventually("the new master key", seen, 10)
    made = await a.http.post(
        f"{CLIENT}/room_keys/version",
        {"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {}},
    )
    version = {"version": made["version"]}
    session = {
        "first_message_index": 0,
        "forwarded_count": 0,
        "is_verified": True,
        "session_data": {"run": c.run},
    }
    path = f"{CLIENT}/room_keys/keys/{q('!backup:example.org')}/session"
    await a.http.put(path, session, params=version)
    kept = await a.http.get(path, params=version)
    check(kept["session_data"] == {"run": c.run}, f"the backup holds {kept}")
    await a.http.delete(f"{CLIENT}/room_keys/version/{made['version']}")


@step(
    "side_room",
    served=[
        ("PUT", "/send/m.room.encrypted/", "room"),
        ("PUT", "/sendToDevice/m.room.encrypted/", "to_device"),
        ("POST", "/keys/claim", "client_reader"),
    ],
)
async def encrypted_room(c: Context) -> str:
    """matrix-nio's own encryption: the keys of three people's devices find each other."""
    if not ENCRYPTION_ENABLED:
        raise Skip("matrix-nio has no encryption here")
    a, b, d, *_ = c.users
    state = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
    room = await make_room(a, [b, d], initial_state=[state], name=f"Secret {c.run}")
    for user in (a, b, d):
        await user.inbox.until(
            "its own keys uploaded", lambda user=user: user.inbox.one_time_keys.get("signed_curve25519")
        )
    texts = {user.name: f"secret of {user.name} {c.run}" for user in (a, b, d)}
    for user in (a, b, d):
        event = await user.text(room, texts[user.name])
        for reader in (a, b, d):
            if reader is not user:
                got = await reader.inbox.wait(
                    f"the secret of {user.name}",
                    lambda e: e.kind == "decrypted" and e.room == room and e.body.event_id == event,
                )
                check(got.body.body == texts[user.name], f"{reader.name} decrypted {got.body.body!r}")
        raw = await a.http.get(f"{room_path(room)}/event/{q(event)}")
        check(raw["type"] == "m.room.encrypted", f"the server holds a {raw['type']}")
    return "3 messages, each read by 2 devices"


# --- people -----------------------------------------------------------------------------------


@step(
    "rooms",
    served=[
        ("PUT", "/profile/", "client_reader"),
        ("GET", "/profile/", "client_reader"),
    ],
)
async def profile(c: Context) -> None:
    a, b, *_ = c.users
    name = f"Ada {c.run}"
    mark = b.inbox.mark()
    ok(await a.client.set_displayname(name))
    ok(await a.client.set_avatar(f"mxc://{c.server}/avatar{c.run}"))
    got = ok(await b.client.get_profile(a.id))
    check(
        (got.displayname, got.avatar_url) == (name, f"mxc://{c.server}/avatar{c.run}"),
        f"the profile is {got.displayname!r}, {got.avatar_url!r}",
    )
    await b.inbox.wait(
        "the new name in a room",
        lambda e: (
            e.kind == "timeline"
            and e.type == "m.room.member"
            and e.body["state_key"] == a.id
            and e.content.get("displayname") == name
        ),
        since=mark,
    )


@step("profile", served=[("POST", "/user_directory/search", "user_dir")])
async def user_directory(c: Context) -> None:
    a, b, *_ = c.users

    async def found() -> bool:
        answer = await b.http.post(
            f"{CLIENT}/user_directory/search", {"search_term": f"Ada {c.run}", "limit": 5}
        )
        return a.id in [user["user_id"] for user in answer["results"]]

    await b.eventually(f"{a.name} in the user directory", found)


# --- media ------------------------------------------------------------------------------------


def picture(width: int, height: int) -> bytes:
    """A real PNG: a colour gradient."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(
        b"\0" + bytes(v for x in range(width) for v in (x * 255 // width, y * 255 // height, 128))
        for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def picture_size(png: bytes) -> tuple[int, int]:
    """Width and height that a PNG states of itself."""
    check(png[:8] == b"\x89PNG\r\n\x1a\n", f"not a PNG but {png[:16]!r}")
    return struct.unpack(">II", png[16:24])


def media_path(uri: str, what: str = "download") -> str:
    return f"/_matrix/client/v1/media/{what}/{uri.removeprefix('mxc://')}"


@step(
    "login",
    served=[
        ("POST", "/_matrix/media/v3/upload", "media_repository"),
        ("GET", "/_matrix/client/v1/media/download/", "media_repository"),
        ("GET", "/_matrix/client/v1/media/thumbnail/", "media_repository"),
        ("GET", "/_matrix/client/v1/media/config", "media_repository"),
    ],
)
async def media(c: Context) -> None:
    """A picture goes up, comes down as it was, and shrinks; strangers get nothing."""
    a, b, *_ = c.users
    png = picture(320, 240)
    sent, _ = await a.client.upload(
        lambda *_: _chunks(png), content_type="image/png", filename="gradient.png", filesize=len(png)
    )
    uri = ok(sent).content_uri
    got = ok(await b.client.download(uri))
    check(got.body == png and got.content_type == "image/png", "the picture came back changed")
    check(got.filename == "gradient.png", f"the picture came back as {got.filename!r}")
    server, _, media_id = uri.removeprefix("mxc://").partition("/")
    for method, want in ((nio.ResizingMethod.crop, (32, 32)), (nio.ResizingMethod.scale, (320, 240))):
        small = ok(await b.client.thumbnail(server, media_id, *want, method))
        size = picture_size(small.body)
        check(size == want, f"a thumbnail of {want} came as {size}")
    await c.http.get(media_path(uri), expect=401, errcode="M_MISSING_TOKEN")
    legacy, _, _ = await c.http.raw("GET", f"/_matrix/media/v3/download/{server}/{media_id}")
    check(legacy in (401, 403, 404), f"the old unauthenticated download says {legacy}")
    await b.http.get(media_path(f"mxc://{server}/absent{c.run}"), expect=404, errcode="M_NOT_FOUND")
    limits = await b.http.get("/_matrix/client/v1/media/config")
    check(limits["m.upload.size"] > 0, f"the media configuration is {limits}")


@step(
    "login",
    served=[
        ("POST", "/_matrix/media/v1/create", "media_repository"),
        ("PUT", "/_matrix/media/v3/upload/", "media_repository"),
    ],
)
async def media_created_first(c: Context) -> None:
    """A media ID first, its content later."""
    a, b, *_ = c.users
    uri = (await a.http.post("/_matrix/media/v1/create"))["content_uri"]
    path = f"/_matrix/media/v3/upload/{uri.removeprefix('mxc://')}"
    content = c.run.encode()
    await a.http.call("PUT", path, data=content, headers={"Content-Type": "text/plain"})
    await a.http.call("PUT", path, data=content, expect=409, errcode="M_CANNOT_OVERWRITE_MEDIA")
    _, _, got = await b.http.raw("GET", media_path(uri))
    check(got == content, f"{got!r} came back")


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


@step("login", served=[("POST", "/_matrix/media/v3/upload", "media_repository")])
async def media_chunked(c: Context) -> None:
    """An upload whose length is not told beforehand."""
    if not c.router:
        raise Skip("Synapse alone refuses uploads without Content-Length")
    a, *_ = c.users
    data = picture(64, 64) + b"\0" * 300_000
    answer = await a.http.call(
        "POST", "/_matrix/media/v3/upload", data=_chunks(data), headers={"Content-Type": "image/png"}
    )
    _, _, got = await a.http.raw("GET", media_path(answer["content_uri"]))
    check(got == data, f"{len(got)} of {len(data)} bytes came back")


@step(
    "login",
    served=[
        ("POST", "/_matrix/media/v3/upload", "media_repository"),
        ("GET", "/_matrix/client/v1/media/download/", "media_repository"),
    ],
)
async def media_large(c: Context) -> str:
    """Twenty megabytes, streamed up and down."""
    a, b, *_ = c.users
    block = hashlib.sha512(c.run.encode()).digest() * (CHUNK_BYTES // 64)
    up, down = hashlib.sha256(), hashlib.sha256()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(LARGE_BYTES // CHUNK_BYTES):
            up.update(block)
            yield block

    started = time.monotonic()
    answer = await a.http.call(
        "POST",
        "/_matrix/media/v3/upload",
        data=body(),
        headers={"Content-Type": "application/octet-stream", "Content-Length": str(LARGE_BYTES)},
    )
    between = time.monotonic()
    async with b.http.session.get(
        b.http.url + media_path(answer["content_uri"]),
        headers={"Authorization": f"Bearer {b.http.token}"},
    ) as download:
        check(download.status == 200, f"the download says {download.status}")
        async for chunk in download.content.iter_chunked(CHUNK_BYTES):
            down.update(chunk)
    check(up.digest() == down.digest(), "what came down is not what went up")
    megabytes = LARGE_BYTES / 1e6
    return (
        f"up {megabytes / (between - started):.0f} MB/s, "
        f"down {megabytes / (time.monotonic() - between):.0f} MB/s"
    )


# --- reading rooms in every way ---------------------------------------------------------------


@step(
    "messages_sent",
    served=[
        ("GET", "/messages?", "room"),
        ("GET", "full_state=true", "initial_sync"),
    ],
)
async def sync_with_filter(c: Context) -> None:
    """Old sync: a short timeline with a way to the rest, full state, lazily loaded members."""
    user = c.users[1]
    room = c.rooms["eleven"]
    short = {
        "presence": {"types": []},
        "room": {
            "rooms": [room],
            "timeline": {"limit": 5, "types": ["m.room.message"]},
            "state": {"lazy_load_members": True},
        },
    }
    params = {"timeout": "0", "filter": json.dumps(short)}
    first = await user.http.get(f"{CLIENT}/sync", params=params)
    # Synapse lists other rooms all the same, with lazily loaded members but no events.
    others = {r for r, u in first["rooms"]["join"].items() if r != room and u["timeline"]["events"]}
    check(not others, f"the filter's rooms were not minded: {others}")
    part = first["rooms"]["join"][room]
    check(len(part["timeline"]["events"]) == 5 and part["timeline"]["limited"], "not limited to 5")
    page = await user.http.get(
        f"{room_path(room)}/messages",
        params={
            "dir": "b",
            "from": part["timeline"]["prev_batch"],
            "limit": "5",
            "filter": json.dumps({"types": ["m.room.message"]}),
        },
    )
    both = [e["event_id"] for e in page["chunk"][::-1] + part["timeline"]["events"]]
    await user.inbox.event(room, both[-1])
    seen = [e["event_id"] for e in user.inbox.timeline(room) if e["type"] == "m.room.message"]
    end = seen.index(both[-1]) + 1
    check(both == seen[end - 10 : end], "the timeline and the page before it do not fit together")
    senders = {e["sender"] for e in part["timeline"]["events"]} | {user.id}
    members = {e["state_key"] for e in part["state"]["events"] if e["type"] == "m.room.member"}
    check(members <= senders, f"lazy loading brought {members - senders} too")
    full = await user.http.get(
        f"{CLIENT}/sync",
        params={
            "timeout": "0",
            "since": first["next_batch"],
            "full_state": "true",
            "filter": json.dumps({"room": {"rooms": [room]}}),
        },
    )
    joined = full["rooms"]["join"][room]
    # Who has changed a name lately has the newest state in the timeline.
    state = joined["state"]["events"] + joined["timeline"]["events"]
    members = {e["state_key"] for e in state if e["type"] == "m.room.member"}
    check(members == {u.id for u in c.users}, f"full state has the members {members}")


@step("messages_by_sync", served=[("POST", "/org.matrix.simplified_msc3575/sync", "sync")])
async def sliding_sync(c: Context) -> str:
    """Sliding sync: the window first, then only what is new, with its extensions."""
    c.feature("org.matrix.simplified_msc3575")
    writer = c.users[2]
    # A device of its own, whose to-device messages no other sync takes away.
    http, _ = await second_device(c.users[1], "sliding")
    path = f"{UNSTABLE}/org.matrix.simplified_msc3575/sync"
    extensions = {
        name: {"enabled": True} for name in ("to_device", "e2ee", "account_data", "receipts", "typing")
    }
    body: dict[str, Any] = {
        "conn_id": f"flow{c.run}",
        "lists": {"all": {"ranges": [[0, 99]], "timeline_limit": 3, "required_state": [["m.room.name", ""]]}},
        "room_subscriptions": {
            c.rooms["twelve"]: {"timeline_limit": 20, "required_state": [["m.room.create", ""]]}
        },
        "extensions": extensions,
    }
    first = await http.post(path, body, params={"timeout": "0"})
    check(first["lists"]["all"]["count"] >= 4, f"the list counts {first['lists']}")
    for name in ("public", "eleven", "twelve", "default"):
        check(c.rooms[name] in first["rooms"], f"the room {name} is not in the window")
    timeline = first["rooms"][c.rooms["twelve"]]["timeline"]
    check(len(timeline) == 20, f"the subscription brought {len(timeline)} events")
    check("device_one_time_keys_count" in first["extensions"]["e2ee"], "no key counts")
    extensions["to_device"]["since"] = first["extensions"]["to_device"]["next_batch"]
    position = first["pos"]

    async def brings(what: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Syncs on until an answer is the wanted one."""
        nonlocal position
        for _ in range(20):
            answer = await http.post(path, body, params={"timeout": "10000", "pos": position})
            position = answer["pos"]
            if wanted(answer):
                return
        raise StepFailed(f"sliding sync has not brought {what}")

    async def message_into(room: str) -> float:
        """Seconds from sending a message until it was brought, which must be once."""
        got: list[str] = []

        def wanted(answer: dict[str, Any]) -> bool:
            got.extend(e["event_id"] for e in answer["rooms"].get(room, {}).get("timeline", ()))
            return event in got

        started = time.monotonic()
        event = await writer.text(room, f"sliding {c.run}")
        await brings(f"the event {event}", wanted)
        check(got.count(event) == 1, f"{event} came {got.count(event)} times")
        return time.monotonic() - started

    slowest = max([await message_into(c.rooms[name]) for name in ("public", "twelve", "eleven")])

    def typing(answer: dict[str, Any]) -> bool:
        rooms = answer["extensions"].get("typing", {}).get("rooms", {})
        return writer.id in rooms.get(c.rooms["twelve"], {}).get("content", {}).get("user_ids", ())

    ok(await writer.client.room_typing(c.rooms["twelve"], True, timeout=20_000))
    await brings(f"the typing of {writer.name}", typing)
    ok(await writer.client.room_typing(c.rooms["twelve"], False))
    unknown = {"timeout": "0", "pos": "999999/s1_1_1_1_1_1_1_1_1_1_1"}
    await http.post(path, body, params=unknown, expect=400)
    await http.post(f"{CLIENT}/logout")
    return f"slowest from send to sync {slowest:.2f} s"


@step("messages_sent", served=[("POST", "/_matrix/client/v3/search", "client_reader")])
async def search(c: Context) -> None:
    user = c.users[3]
    room = c.rooms["default"]
    word = f"needle{c.run}"
    event = await c.users[0].text(room, f"a {word} in the hay")

    async def found() -> bool:
        answer = await user.http.post(
            f"{CLIENT}/search",
            {
                "search_categories": {
                    "room_events": {
                        "search_term": word,
                        "filter": {"rooms": [room]},
                        "event_context": {"before_limit": 2, "after_limit": 0},
                    }
                }
            },
        )
        results = answer["search_categories"]["room_events"]["results"]
        return [result["result"]["event_id"] for result in results] == [event]

    await user.eventually("the message in the search", found)


@step(
    "messages_sent",
    served=[
        ("GET", "/event/", "room"),
        ("GET", "/context/", "room"),
        ("GET", "/state", "room"),
        ("GET", "/members", "room"),
        ("GET", "/timestamp_to_event", "room"),
        ("GET", "/joined_rooms", "client_reader"),
        ("GET", "/initialSync", "initial_sync"),
        ("GET", "/notifications", "client_reader"),
    ],
)
async def room_reading(c: Context) -> None:
    """One event, its surroundings, the state, the members, a moment in time."""
    user = c.users[2]
    room = c.rooms["public"]
    base = room_path(room)
    ids = c.sent[room][user.id]
    event = await user.http.get(f"{base}/event/{q(ids[4])}")
    check(event["content"]["body"] == f"{c.run} {user.name} 4", f"the event says {event['content']}")
    around = ok(await user.client.room_context(room, ids[4], limit=10))
    check(around.event.event_id == ids[4], "the context is of another event")
    check(len(around.events_before) + len(around.events_after) == 10, "the context is not of ten")
    state = ok(await user.client.room_get_state(room)).events
    kinds = {e["type"] for e in state}
    check({"m.room.create", "m.room.power_levels", "m.room.name"} <= kinds, f"state has {kinds}")
    name = ok(await user.client.room_get_state_event(room, "m.room.name")).content["name"]
    check(name == f"Lobby {c.run}", f"the room is called {name!r}")
    everybody = {u.id for u in c.users}
    joined = {m.user_id for m in ok(await user.client.joined_members(room)).members}
    check(joined == everybody, f"joined are {joined}")
    members = await user.http.get(f"{base}/members", params={"membership": "join"})
    check({e["state_key"] for e in members["chunk"]} == everybody, "members differ")
    moment = await user.http.get(
        f"/_matrix/client/v1/rooms/{q(room)}/timestamp_to_event",
        params={"ts": str(event["origin_server_ts"]), "dir": "f"},
    )
    check("event_id" in moment, f"no event at that moment: {moment}")
    mine = ok(await user.client.joined_rooms()).rooms
    check(
        {c.rooms[name] for name in ("public", "eleven", "twelve", "default")} <= set(mine),
        "a joined room is missing",
    )
    initial = await user.http.get(f"{base}/initialSync", params={"limit": "3"})
    check(initial["room_id"] == room and len(initial["messages"]["chunk"]) == 3, "initialSync differs")
    await user.http.get(f"{CLIENT}/notifications", params={"limit": "5"})


@step(
    "rooms",
    served=[
        ("PUT", "/directory/room/", "client_reader"),
        ("DELETE", "/directory/room/", "client_reader"),
        ("GET", "/aliases", "room"),
        ("POST", "/publicRooms", "client_reader"),
    ],
)
async def directory(c: Context) -> None:
    """Aliases and the public room list."""
    a, b, *_ = c.users
    room = c.rooms["public"]
    alias = f"#second{c.run}:{c.server}"
    ok(await a.client.room_put_alias(alias, room))
    check(ok(await b.client.room_resolve_alias(alias)).room_id == room, "the alias leads elsewhere")
    listed = (await b.http.get(f"{room_path(room)}/aliases"))["aliases"]
    check(alias in listed, f"the room's aliases are {listed}")
    check(ok(await b.client.room_get_visibility(room)).visibility == "public", "not public")

    async def public() -> bool:
        answer = await b.http.post(
            f"{CLIENT}/publicRooms", {"limit": 10, "filter": {"generic_search_term": f"Lobby {c.run}"}}
        )
        return [r["room_id"] for r in answer["chunk"]] == [room]

    await b.eventually("the room in the public list", public)
    ok(await b.client.list_public_rooms(limit=5))
    await b.http.delete(f"{CLIENT}/directory/room/{q(alias)}", expect=403, errcode="M_FORBIDDEN")
    ok(await a.client.room_delete_alias(alias))
    await b.http.get(f"{CLIENT}/directory/room/{q(alias)}", expect=404, errcode="M_NOT_FOUND")


@step(
    "rooms",
    served=[
        ("POST", "/kick", "room"),
        ("POST", "/ban", "room"),
        ("POST", "/unban", "room"),
        ("POST", "/invite", "room"),
        ("POST", "/knock/", "room"),
        ("POST", "/leave", "room"),
        ("POST", "/forget", "main"),
    ],
)
async def membership(c: Context) -> None:
    """Kicks, bans, knocks, leaving and forgetting."""
    a, b, d, *_ = c.users
    room = await make_room(a, [b, d], name=f"Door {c.run}")

    async def gone(user: User) -> None:
        await user.inbox.wait(f"it has left {room}", lambda e: e.kind == "leave" and e.room == room)

    ok(await a.client.room_kick(room, b.id, "out"))
    await gone(b)
    await b.http.put(
        f"{room_path(room)}/send/m.room.message/kicked", {"body": "?"}, expect=403, errcode="M_FORBIDDEN"
    )
    await b.http.post(f"{CLIENT}/join/{q(room)}", expect=403, errcode="M_FORBIDDEN")
    ok(await a.client.room_ban(room, b.id))
    await a.http.post(f"{room_path(room)}/invite", {"user_id": b.id}, expect=403)
    ok(await a.client.room_unban(room, b.id))
    ok(await a.client.room_put_state(room, "m.room.join_rules", {"join_rule": "knock"}))
    mark = a.inbox.mark()
    ok(await b.client.room_knock(room, "may I?"))
    await a.inbox.wait(
        "the knock",
        lambda e: e.kind == "timeline" and e.room == room and e.content.get("membership") == "knock",
        since=mark,
    )
    ok(await a.client.room_invite(room, b.id))
    ok(await b.client.join(room))
    ok(await d.client.room_leave(room))
    await gone(d)
    await d.http.post(f"{room_path(room)}/forget")
    await d.http.get(f"{room_path(room)}/messages", params={"dir": "b"}, expect=403)


@step(
    "rooms",
    served=[
        ("POST", "/knock/", "room"),
        ("POST", "/join/", "room"),
        ("PUT", "/state/m.room.join_rules", "room"),
    ],
)
async def doors(c: Context) -> str:
    """Knocks that are turned away and taken back, and rooms for the members of another room."""
    a, b, d, *_ = c.users

    async def becomes(user: User, room: str, membership: str, since: int) -> None:
        await a.inbox.wait(
            f"that {user.name} has become {membership}",
            lambda e: (
                e.kind == "timeline"
                and e.room == room
                and e.type == "m.room.member"
                and e.body["state_key"] == user.id
                and e.content["membership"] == membership
            ),
            since=since,
        )

    room = await make_room(a, [], name=f"Closed {c.run}")
    ok(await a.client.room_put_state(room, "m.room.join_rules", {"join_rule": "knock"}))
    for turned_away_by in (a, b):
        mark, other = a.inbox.mark(), b.inbox.mark()
        ok(await b.client.room_knock(room, "may I?"))
        await becomes(b, room, "knock", mark)
        if turned_away_by is a:
            ok(await a.client.room_kick(room, b.id, "no"))
        else:
            ok(await b.client.room_leave(room))
        await becomes(b, room, "leave", mark)
        await b.inbox.wait("that", lambda e: e.kind == "leave" and e.room == room, since=other)
        await b.http.post(f"{CLIENT}/join/{q(room)}", expect=403, errcode="M_FORBIDDEN")

    club = await make_room(a, [b], name=f"Club {c.run}")
    allow = [{"type": "m.room_membership", "room_id": club}]
    for rule, version in (("restricted", "10"), ("restricted", "12"), ("knock_restricted", "11")):
        room = await make_room(a, [], name=f"Members only {c.run}", room_version=version)
        ok(await a.client.room_put_state(room, "m.room.join_rules", {"join_rule": rule, "allow": allow}))
        await d.http.post(f"{CLIENT}/join/{q(room)}", expect=403, errcode="M_FORBIDDEN")
        ok(await b.client.join(room))
        await b.joined(room)
        mark = a.inbox.mark()
        if rule == "knock_restricted":
            ok(await d.client.room_knock(room, "may I?"))
            await becomes(d, room, "knock", mark)
        else:
            await d.http.post(f"{CLIENT}/knock/{q(room)}", expect=403, errcode="M_FORBIDDEN")
    return "2 knocks in vain, 3 rooms for members"


@step(
    "rooms",
    served=[
        ("PUT", "/state/m.space.child/", "room"),
        ("GET", "/hierarchy", "room"),
    ],
)
async def spaces(c: Context) -> None:
    a, b, *_ = c.users
    space = ok(
        await a.client.room_create(nio.RoomVisibility.public, name=f"Space {c.run}", space=True)
    ).room_id
    ok(await a.client.room_put_state(space, "m.space.child", {"via": [c.server]}, c.rooms["public"]))
    tree = ok(await b.client.space_get_hierarchy(space)).rooms
    check(
        {room["room_id"] for room in tree} == {space, c.rooms["public"]},
        f"the hierarchy has {[room.get('name') for room in tree]}",
    )


@step(
    "sync_starts",
    served=[
        ("POST", "/upgrade", "main"),
        ("POST", "/createRoom", "room"),
        ("GET", "/state/m.room.create", "room"),
    ],
)
async def room_upgrade(c: Context) -> None:
    """An old room becomes one of version 12; both know of each other."""
    a, b, *_ = c.users
    old = await make_room(a, [b], room_version="10", name=f"Old {c.run}")
    new = (await a.http.post(f"{room_path(old)}/upgrade", {"new_version": "12"}))["replacement_room"]
    check(":" not in new, f"the upgraded room is called {new}")
    tomb = await b.inbox.wait(
        "the tombstone", lambda e: e.type == "m.room.tombstone" and e.room == old and e.kind == "timeline"
    )
    check(tomb.content["replacement_room"] == new, f"the tombstone points at {tomb.content}")
    create = await a.http.get(f"{room_path(new)}/state/m.room.create")
    check(create["room_version"] == "12" and create["predecessor"]["room_id"] == old, f"{create}")


@step("side_room", served=[("POST", "/report", "main")])
async def reports(c: Context) -> None:
    a, b, *_ = c.users
    room = c.rooms["side"]
    event = await a.text(room, "something rude")
    await b.inbox.event(room, event)
    await b.http.post(f"{room_path(room)}/report/{q(event)}", {"reason": "rude"})
    await b.http.post(f"{room_path(room)}/report", {"reason": "rude"})


# --- what has to be switched on ---------------------------------------------------------------


@step(
    "side_room",
    served=[
        ("PUT", "org.matrix.msc4140.delay=", "room"),
        ("GET", "/org.matrix.msc4140/delayed_events", "client_reader"),
        ("POST", "/restart", "client_reader"),
        ("POST", "/cancel", "main"),
    ],
)
async def delayed_events(c: Context) -> None:
    """Events sent later: by themselves, at once on demand, or not at all."""
    c.feature("org.matrix.msc4140")
    a, b, *_ = c.users
    room = c.rooms["side"]
    manage = f"{UNSTABLE}/org.matrix.msc4140/delayed_events"
    mark = b.inbox.mark()

    async def later(text: str, delay: int) -> str:
        answer = await a.http.put(
            f"{room_path(room)}/send/m.room.message/{text}{c.run}",
            {"msgtype": "m.text", "body": f"{text} {c.run}"},
            params={"org.matrix.msc4140.delay": str(delay)},
        )
        return answer["delay_id"]

    async def arrives(text: str) -> None:
        await b.inbox.wait(
            f"the delayed {text}",
            lambda e: e.kind == "timeline" and e.room == room and e.content.get("body") == f"{text} {c.run}",
            since=mark,
        )

    _, sent, cancelled = await asyncio.gather(
        later("alone", 2_000), later("sent", 600_000), later("cancelled", 600_000)
    )
    waiting = {e["delay_id"] for e in (await a.http.get(manage))["delayed_events"]}
    check({sent, cancelled} <= waiting, f"waiting are {waiting}")
    await a.http.post(f"{manage}/{q(sent)}/restart")
    await a.http.post(f"{manage}/{q(sent)}/send")
    await a.http.post(f"{manage}/{q(cancelled)}/cancel")
    await asyncio.gather(arrives("alone"), arrives("sent"))
    texts = [e.content.get("body") for e in b.inbox.entries[mark:] if e.kind == "timeline"]
    check(f"cancelled {c.run}" not in texts, f"{cancelled} was sent all the same")


@step(
    "side_room",
    served=[
        ("PUT", "/subscription", "thread_subscriptions"),
        ("GET", "/subscription", "thread_subscriptions"),
        ("DELETE", "/subscription", "thread_subscriptions"),
    ],
)
async def thread_subscriptions(c: Context) -> None:
    c.feature("org.matrix.msc4306")
    a, *_ = c.users
    room = c.rooms["side"]
    root = await a.text(room, "root of a thread")
    path = f"{UNSTABLE}/io.element.msc4306/rooms/{q(room)}/thread/{q(root)}/subscription"
    await a.http.get(path, expect=404, errcode="M_NOT_FOUND")
    await a.http.put(path)
    await a.http.settles(path, where=lambda answer: answer == {"automatic": False})
    await a.http.delete(path)
    await a.http.settles(path, expect=404, errcode="M_NOT_FOUND")


@step(
    "side_room",
    served=[
        ("POST", "/pushers/set", "main"),
        ("GET", "/pushers", "main"),
    ],
)
async def pushers(c: Context) -> str:
    """A pusher is kept, pushes for a message, and goes."""
    a, b = c.users[0], c.users[1]
    arrived: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def gateway(request: aiohttp.web.Request) -> aiohttp.web.Response:
        arrived.put_nowait((await request.json())["notification"])
        return aiohttp.web.json_response({"rejected": []})

    app = aiohttp.web.Application()
    app.router.add_post("/_matrix/push/v1/notify", gateway)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    try:
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        pusher = {
            "app_id": f"test.{c.run}",
            "app_display_name": "end to end",
            "device_display_name": "none",
            "pushkey": f"key{c.run}",
            "lang": "en",
            "kind": "http",
            "data": {"url": f"http://127.0.0.1:{port}/_matrix/push/v1/notify", "format": "event_id_only"},
        }
        await b.http.post(f"{CLIENT}/pushers/set", pusher)
        kept = (await b.http.get(f"{CLIENT}/pushers"))["pushers"]
        check(pusher["pushkey"] in [p["pushkey"] for p in kept], f"the pushers are {kept}")
        detail = "kept only, for the server may not call this machine"
        if c.push:
            started = time.monotonic()
            event = await a.text(c.rooms["side"], f"{b.name}, a push for you")
            deadline = started + 30
            while True:
                left = deadline - time.monotonic()
                check(left > 0, "no push arrived within 30 s")
                try:
                    pushed = await asyncio.wait_for(arrived.get(), left)
                except (TimeoutError, asyncio.TimeoutError):
                    continue
                if pushed.get("event_id") == event:
                    break
            detail = f"pushed after {time.monotonic() - started:.2f} s"
        await b.http.post(f"{CLIENT}/pushers/set", {**pusher, "kind": None})
        kept = (await b.http.get(f"{CLIENT}/pushers"))["pushers"]
        check(pusher["pushkey"] not in [p["pushkey"] for p in kept], "the pusher is still there")
        return detail
    finally:
        await runner.cleanup()


# --- the end ----------------------------------------------------------------------------------


@step("login", after=["token_refresh"], served=[("POST", "/account/password", "main")])
async def password(c: Context) -> None:
    """The password changes and changes back; the old one is refused meanwhile."""
    user = c.users[4]
    path = f"{CLIENT}/account/password"
    other = f"other-{c.run}-password"
    await with_password(user, "POST", path, {"new_password": other, "logout_devices": False})
    old = user.password
    try:
        await c.http.post(
            f"{CLIENT}/login",
            {
                "type": "m.login.password",
                "identifier": {"type": "m.id.user", "user": user.name},
                "password": old,
            },
            expect=403,
            errcode="M_FORBIDDEN",
        )
    finally:
        await with_password(user, "POST", path, {"new_password": old, "logout_devices": False}, other)


# The two that follow have the server to themselves: when one of its processes invalidates several cache entries at the same
# time, the others may never hear of some (docs/running.md, "What Synapse may forget").
@step(
    "login",
    after=list(plan.steps),
    served=[
        ("PUT", "/devices/", "device_lists"),
        ("DELETE", "/devices/", "device_lists"),
        ("POST", "/delete_devices", "device_lists"),
    ],
)
async def devices(c: Context) -> None:
    """A second device comes, gets a name, and goes with the password only."""
    user = c.users[3]
    other, session = await second_device(user, "to be removed")
    mine = session["device_id"]
    path = f"{CLIENT}/devices/{q(mine)}"
    await user.http.put(path, {"display_name": "renamed"})
    await user.http.settles(path, where=lambda device: device["display_name"] == "renamed")
    listed = {device.id for device in ok(await user.client.devices()).devices}
    check({mine, user.device} <= listed, f"{mine} or {user.device} is not among {listed}")
    await user.http.delete(path, expect=401)
    await with_password(user, "DELETE", path, {})
    await user.http.settles(path, expect=404, errcode="M_NOT_FOUND")
    await other.settles(f"{CLIENT}/account/whoami", expect=401, errcode="M_UNKNOWN_TOKEN")
    _, session = await second_device(user, "to be removed too")
    await with_password(user, "POST", f"{CLIENT}/delete_devices", {"devices": [session["device_id"]]})


@step("login", after=list(plan.steps), served=[("POST", "/logout", "main")])
async def logout(c: Context) -> None:
    """Everybody goes, one after the other, and nobody takes their tokens from then on."""
    await asyncio.gather(*(user.stop_sync() for user in c.users))
    for user in c.users:
        token = user.http.token
        ok(await user.client.logout())
        await c.http.bearing(token).settles(f"{CLIENT}/account/whoami", expect=401, errcode="M_UNKNOWN_TOKEN")


async def run(context: Context, only: set[str] | None) -> list[Any]:
    """Runs the flow (or the named steps and their needs) and closes every client."""
    try:
        return await plan.run(context, plan.closure(only) if only else None)
    finally:
        await asyncio.gather(*(user.close() for user in context.users), return_exceptions=True)


def users_in(directory: Path, http: Http, accounts: list[dict[str, str]]) -> list[User]:
    """The people of the flow, each with a key store of its own under `directory`."""
    return [User(http, a["name"], a["password"], directory / a["name"]) for a in accounts]


__all__ = ["Context", "Entry", "plan", "run", "users_in"]
