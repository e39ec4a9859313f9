#!/usr/bin/env python3
"""Two homeservers that federate, used from both sides by a client library that knows nothing of them.

    federation.py --a URL --b URL --users users.json --admin NAME [--report out.json]

`users.json` is a list of at least two {"name": …, "password": …}: the first is registered on server `a`, the second on
server `b`. The administrator of `a`, who is in the file too, must exist. Each step says which process of which
server has to answer: what `b` asks of `a` is in the access log of `a`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import nio
from nio.api import ReceiptType

from flow import finish, quiet
from harness import CLIENT, Http, Plan, StepFailed, User, check, ok, q
from steps import (
    Keys,
    media_path,
    new_device,
    picture,
    picture_size,
    read_room,
    room_path,
    second_device,
    unbase64,
    verify_signed,
)

# Said before anybody of the other server comes in, who is sent none of it with the join.
EARLIER_MESSAGES = 40

plan = Plan()


def step(*needs: str, **more: Any) -> Any:
    """One step after the other: of what several joins at once change, a process may never hear (docs/running.md, "What
    Synapse may forget"), and then somebody's sync misses a room."""
    return plan.step(*needs, after=list(plan.steps), **more)


@dataclasses.dataclass
class Context:
    """What the steps share: one person on each server."""

    a: User
    b: User
    admin: User
    # Makes everything that has a name new in each run.
    run: str
    rooms: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def server_a(self) -> str:
        return self.a.id.partition(":")[2]

    @property
    def server_b(self) -> str:
        return self.b.id.partition(":")[2]


async def join(user: User, room: str, *via: str) -> str:
    """Joins by ID or alias, with the servers to ask."""
    servers = "&".join(f"via={q(server)}&server_name={q(server)}" for server in via)
    answer = await user.http.post(f"{CLIENT}/join/{q(room)}?{servers}")
    await user.joined(answer["room_id"])
    return answer["room_id"]


async def invite(owner: User, guest: User, room: str) -> None:
    """Invites somebody and lets them come in."""
    ok(await owner.client.room_invite(room, guest.id))
    await guest.inbox.until(f"the invitation to {room}", lambda: room in guest.client.invited_rooms)
    ok(await guest.client.join(room))
    await guest.joined(room)


async def hears(reader: User, room: str, event: str) -> None:
    """Waits until the event has come over federation."""
    await reader.inbox.event(room, event)


@step()
async def login(c: Context) -> None:
    for user in (c.a, c.b):
        client = nio.AsyncClient(user.http.url)
        try:
            answer = await client.register(user.name, user.password, "registration")
            if isinstance(answer, nio.RegisterResponse):
                ok(await client.logout())
            else:
                check(answer.status_code == "M_USER_IN_USE", f"{user.name}: {answer}")
        finally:
            await client.close()
    for user in (c.a, c.b, c.admin):
        await user.login()
    for user in (c.a, c.b):
        made = ok(await user.client.upload_filter(room={"timeline": {"limit": 100}}))
        await user.start_sync(made.filter_id)


# --- rooms --------------------------------------------------------------------------------------


@step(
    "login",
    served=[
        ("GET", "/_matrix/federation/v1/query/directory", "federation_reader", "a"),
        ("GET", "/_matrix/federation/v1/make_join/", "federation_reader", "a"),
        ("PUT", "/_matrix/federation/v2/send_join/", "federation_reader", "a"),
        ("POST", "/_matrix/client/v3/join/", "room", "b"),
    ],
)
async def join_by_alias(c: Context) -> str:
    """Somebody on `b` finds a room of `a` by its alias and comes in, after much was said."""
    alias = f"town{c.run}"
    room = ok(
        await c.a.client.room_create(
            nio.RoomVisibility.public,
            alias=alias,
            name=f"Town {c.run}",
            preset=nio.RoomPreset.public_chat,
        )
    ).room_id
    await c.a.joined(room)
    # One after the other: what is said at once makes a room of many branches.
    for number in range(EARLIER_MESSAGES):
        await c.a.text(room, f"before {number}")
    joined = await join(c.b, f"#{alias}:{c.server_a}")
    check(joined == room, f"the alias led to {joined}")
    c.rooms["town"] = room
    members = {m.user_id for m in ok(await c.b.client.joined_members(room)).members}
    check(members == {c.a.id, c.b.id}, f"members over there are {members}")
    return f"after {EARLIER_MESSAGES} messages"


@step(
    "join_by_alias",
    served=[("GET", "/_matrix/federation/v1/timestamp_to_event/", "federation_reader", "a")],
)
async def moment_before_the_join(c: Context) -> None:
    """The event at a time that only the other server knows about."""
    path = f"/_matrix/client/v1/rooms/{q(c.rooms['town'])}/timestamp_to_event"
    found = await c.b.http.get(path, params={"ts": "0", "dir": "f"})
    check("event_id" in found, f"no event at that moment: {found}")


@step(
    "join_by_alias",
    served=[
        ("PUT", "/_matrix/federation/v1/send/", "federation_inbound", "a"),
        ("PUT", "/_matrix/federation/v1/send/", "federation_inbound", "b"),
        ("PUT", "/send/m.room.message/", "room", "a"),
        ("PUT", "/send/m.room.message/", "room", "b"),
    ],
)
async def messages_both_ways(c: Context) -> None:
    room = c.rooms["town"]
    for number in range(5):
        for writer, reader in ((c.a, c.b), (c.b, c.a)):
            await hears(reader, room, await writer.text(room, f"{writer.name} {number}"))


@step(
    "messages_both_ways",
    served=[
        ("GET", "/_matrix/federation/v1/backfill/", "federation_reader", "a"),
        ("GET", "/messages", "room", "b"),
    ],
)
async def backfill(c: Context) -> str:
    """What was said before the join is fetched when somebody looks back, all of it and in order."""
    room = c.rooms["town"]

    async def before(user: User) -> list[str]:
        events = await read_room(user.http, room, "b", 100)
        return [e["event_id"] for e in events if e["content"].get("body", "").startswith("before ")]

    told = await before(c.a)
    check(len(told) == EARLIER_MESSAGES, f"{len(told)} messages over here")

    async def complete() -> bool:
        # Synapse promises what it has not fetched yet for later.
        got = await before(c.b)
        check(len(got) == len(set(got)), "messages came twice")
        return got == told

    await c.b.eventually("the whole history", complete)
    return f"{EARLIER_MESSAGES} messages from before the join"


@step(
    "join_by_alias",
    served=[
        ("POST", "/_matrix/federation/v1/publicRooms", "federation_reader", "a"),
        ("POST", "/_matrix/client/v3/publicRooms", "client_reader", "b"),
    ],
)
async def room_directory(c: Context) -> None:
    async def listed() -> bool:
        answer = await c.b.http.post(
            f"{CLIENT}/publicRooms",
            {"limit": 10, "filter": {"generic_search_term": f"Town {c.run}"}},
            params={"server": c.server_a},
        )
        return [r["room_id"] for r in answer["chunk"]] == [c.rooms["town"]]

    await c.b.eventually("the room in the other server's directory", listed)


@step(
    "login",
    served=[
        ("PUT", "/_matrix/federation/v2/invite/", "federation_reader", "a"),
        ("PUT", "/_matrix/federation/v2/invite/", "federation_reader", "b"),
    ],
)
async def invitations(c: Context) -> None:
    """Private rooms on both servers, and one in which the invitation is declined."""
    for owner, guest in ((c.a, c.b), (c.b, c.a)):
        room = ok(await owner.client.room_create(name=f"{owner.name} {c.run}")).room_id
        await owner.joined(room)
        await invite(owner, guest, room)
        await hears(guest, room, await owner.text(room, "welcome"))
        await hears(owner, room, await guest.text(room, "thank you"))
        c.rooms[owner.name] = room


@step(
    "login",
    served=[
        ("GET", "/_matrix/federation/v1/make_leave/", "federation_reader", "a"),
        ("PUT", "/_matrix/federation/v2/send_leave/", "federation_reader", "a"),
    ],
)
async def invitation_declined(c: Context) -> None:
    room = ok(await c.a.client.room_create(name=f"Dull {c.run}")).room_id
    await c.a.joined(room)
    ok(await c.a.client.room_invite(room, c.b.id))
    await c.b.inbox.until("the invitation", lambda: room in c.b.client.invited_rooms)
    mark = c.a.inbox.mark()
    ok(await c.b.client.room_leave(room))
    await c.a.inbox.wait(
        "that the invitation was declined",
        lambda e: e.room == room and e.type == "m.room.member" and e.content.get("membership") == "leave",
        since=mark,
    )


@step(
    "login",
    served=[
        ("GET", "/_matrix/federation/v1/make_knock/", "federation_reader", "a"),
        ("PUT", "/_matrix/federation/v1/send_knock/", "federation_reader", "a"),
        ("POST", "/_matrix/client/v3/knock/", "room", "b"),
    ],
)
async def knock(c: Context) -> None:
    """A knock at the other server's room is heard, and who knocked comes in."""
    room = ok(await c.a.client.room_create(name=f"Closed {c.run}")).room_id
    await c.a.joined(room)
    ok(await c.a.client.room_put_state(room, "m.room.join_rules", {"join_rule": "knock"}))
    mark = c.a.inbox.mark()
    await c.b.http.post(f"{CLIENT}/knock/{q(room)}?via={q(c.server_a)}", {"reason": "please"})
    await c.a.inbox.wait(
        "the knock",
        lambda e: e.kind == "timeline" and e.room == room and e.content.get("membership") == "knock",
        since=mark,
    )
    await invite(c.a, c.b, room)


@step(
    "login",
    served=[
        ("GET", "/_matrix/federation/v1/make_join/", "federation_reader", "a"),
        ("PUT", "/_matrix/federation/v2/send_join/", "federation_reader", "a"),
        ("GET", "/_matrix/federation/v1/hierarchy/", "federation_reader", "a"),
    ],
)
async def restricted(c: Context) -> None:
    """A room for the members of a space: closed before the space was joined, open after."""
    space = ok(
        await c.a.client.room_create(
            nio.RoomVisibility.public, name=f"Space {c.run}", space=True, preset=nio.RoomPreset.public_chat
        )
    ).room_id
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": space}]}
    room = ok(
        await c.a.client.room_create(
            name=f"Members only {c.run}",
            initial_state=[{"type": "m.room.join_rules", "state_key": "", "content": rule}],
        )
    ).room_id
    await c.a.joined(room)
    ok(await c.a.client.room_put_state(space, "m.space.child", {"via": [c.server_a]}, room))
    via = f"via={q(c.server_a)}&server_name={q(c.server_a)}"
    await c.b.http.post(f"{CLIENT}/join/{q(room)}?{via}", expect=403, errcode="M_FORBIDDEN")
    await join(c.b, space, c.server_a)
    tree = ok(await c.b.client.space_get_hierarchy(space)).rooms
    check({r["room_id"] for r in tree} == {space, room}, f"the hierarchy has {tree}")
    await join(c.b, room, c.server_a)
    await hears(c.a, room, await c.b.text(room, "a member"))


# --- people -------------------------------------------------------------------------------------


@step(
    "login",
    served=[("GET", "/_matrix/federation/v1/query/profile", "federation_reader", "a")],
)
async def profile(c: Context) -> None:
    name = f"Ada {c.run}"
    ok(await c.admin.client.set_displayname(name))
    # Somebody with whom no room is shared, so that nothing is known yet.
    told = await c.b.http.get(f"{CLIENT}/profile/{q(c.admin.id)}")
    check(told["displayname"] == name, f"the profile over there is {told}")


@step(
    "messages_both_ways",
    served=[
        ("PUT", "/_matrix/federation/v1/send/", "federation_inbound", "a"),
        ("PUT", "/_matrix/federation/v1/send/", "federation_inbound", "b"),
        ("PUT", "/typing/", "typing", "a"),
        ("PUT", "/typing/", "typing", "b"),
        ("POST", "/receipt/", "receipts", "a"),
        ("POST", "/receipt/", "receipts", "b"),
        ("PUT", "/presence/", "presence", "a"),
        ("PUT", "/presence/", "presence", "b"),
    ],
)
async def ephemeral(c: Context) -> None:
    """Typing, receipts and presence are seen by the other server's people."""
    room = c.rooms["town"]
    for doer, watcher in ((c.a, c.b), (c.b, c.a)):
        mark = watcher.inbox.mark()
        ok(await doer.client.room_typing(room, True, timeout=30_000))
        await watcher.inbox.wait(
            f"{doer.name} typing",
            lambda e: e.type == "m.typing" and e.room == room and doer.id in e.content["user_ids"],
            since=mark,
        )
        ok(await doer.client.room_typing(room, False))
        event = await watcher.text(room, "read this")
        await hears(doer, room, event)
        ok(await doer.client.update_receipt_marker(room, event, ReceiptType.read))
        await watcher.inbox.wait(
            f"the receipt of {doer.name}",
            lambda e: (
                e.type == "m.receipt"
                and e.room == room
                and doer.id in e.content.get(event, {}).get("m.read", {})
            ),
            since=mark,
        )
        status = f"abroad {c.run}"
        ok(await doer.client.set_presence("online", status))
        await watcher.inbox.wait(
            f"the status of {doer.name}",
            lambda e: (
                e.kind == "presence"
                and e.body["sender"] == doer.id
                and e.content.get("status_msg") == status
            ),
            since=mark,
        )


@step(
    "messages_both_ways",
    served=[
        ("PUT", "/sendToDevice/", "to_device", "a"),
        ("PUT", "/sendToDevice/", "to_device", "b"),
        ("PUT", "/_matrix/federation/v1/send/", "federation_inbound", "a"),
        ("PUT", "/_matrix/federation/v1/send/", "federation_inbound", "b"),
    ],
)
async def to_device(c: Context) -> None:
    for sender, reader in ((c.a, c.b), (c.b, c.a)):
        mark, content = reader.inbox.mark(), {"run": f"{sender.name} {c.run}"}
        ok(await sender.client.to_device(nio.ToDeviceMessage("test.abroad", reader.id, reader.device, content)))
        got = await reader.inbox.wait(
            "its message", lambda e: e.kind == "to_device" and e.type == "test.abroad", since=mark
        )
        check(got.content == content, f"{reader.name} got {got.content}")


# --- keys ---------------------------------------------------------------------------------------


@step(
    "login",
    served=[
        ("POST", "/_matrix/federation/v1/user/keys/query", "federation_reader", "a"),
        ("POST", "/_matrix/federation/v1/user/keys/claim", "federation_reader", "a"),
        ("POST", "/_matrix/client/v3/keys/query", "client_reader", "b"),
        ("POST", "/_matrix/client/v3/keys/claim", "client_reader", "b"),
    ],
)
async def keys(c: Context) -> None:
    """Device keys and one-time keys of somebody with whom no room is shared."""
    http, session = await second_device(c.admin, "keys abroad")
    device, own = session["device_id"], Keys()
    name = f"ed25519:{device}"
    body = new_device(c.admin.id, device, own, 2)
    await http.post(f"{CLIENT}/keys/upload", body)
    one_time = body["one_time_keys"]
    queried = await c.b.http.post(f"{CLIENT}/keys/query", {"device_keys": {c.admin.id: []}})
    check(not queried["failures"], f"failures: {queried['failures']}")
    verify_signed(queried["device_keys"][c.admin.id][device], c.admin.id, name, own.public)
    given = set()
    for _ in one_time:
        answer = await c.b.http.post(
            f"{CLIENT}/keys/claim", {"one_time_keys": {c.admin.id: {device: "signed_curve25519"}}}
        )
        ((key_name, key),) = answer["one_time_keys"][c.admin.id][device].items()
        verify_signed(key, c.admin.id, name, own.public)
        check(len(unbase64(key["key"])) == 32, f"{key_name} is no key")
        given.add(key_name)
    check(given == set(one_time), f"{sorted(one_time)} were given out as {sorted(given)}")
    await http.post(f"{CLIENT}/logout")


@step(
    "invitations",
    served=[
        ("POST", "/_matrix/federation/v1/user/keys/claim", "federation_reader", "a"),
        ("PUT", "/_matrix/federation/v1/send/", "federation_inbound", "a"),
        ("PUT", "/_matrix/federation/v1/send/", "federation_inbound", "b"),
    ],
)
async def encrypted_room(c: Context) -> None:
    """matrix-nio's own encryption across the two servers."""
    state = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
    room = ok(await c.a.client.room_create(name=f"Secret {c.run}", initial_state=[state])).room_id
    await c.a.joined(room)
    await invite(c.a, c.b, room)
    for user, other in ((c.a, c.b), (c.b, c.a)):
        await user.inbox.until(
            "its own keys uploaded", lambda user=user: user.inbox.one_time_keys.get("signed_curve25519")
        )
        # The library asks for devices by itself once a sync says that they have changed.
        await user.inbox.until(
            f"the devices of {other.name}",
            lambda user=user, other=other: list(user.client.device_store.active_user_devices(other.id)),
        )
        await user.inbox.until(
            f"{other.name} in the room",
            lambda user=user, other=other: other.id in user.client.rooms[room].users,
        )
    for writer, reader in ((c.b, c.a), (c.a, c.b)):
        text = f"secret of {writer.name} {c.run}"
        event = await writer.text(room, text)
        got = await reader.inbox.wait(
            f"the secret of {writer.name}",
            lambda e: e.kind == "decrypted" and e.room == room and e.body.event_id == event,
        )
        check(got.body.body == text, f"{reader.name} decrypted {got.body.body!r}")


# --- media --------------------------------------------------------------------------------------


@step(
    "login",
    served=[
        ("GET", "/_matrix/federation/v1/media/download/", "media_repository", "a"),
        ("GET", "/_matrix/federation/v1/media/download/", "media_repository", "b"),
        ("GET", "/_matrix/client/v1/media/download/", "media_repository", "a"),
        ("GET", "/_matrix/client/v1/media/download/", "media_repository", "b"),
        ("GET", "/_matrix/client/v1/media/thumbnail/", "media_repository", "a"),
        ("GET", "/_matrix/client/v1/media/thumbnail/", "media_repository", "b"),
    ],
)
async def remote_media(c: Context) -> None:
    """A picture of each server is fetched through the other, whole and small."""
    png = picture(320, 240) + c.run.encode()
    for owner, reader in ((c.a, c.b), (c.b, c.a)):
        uri = await upload(owner, png)
        got = ok(await reader.client.download(uri))
        check(got.body == png and got.content_type == "image/png", "the picture came back changed")
        server, _, media_id = uri.removeprefix("mxc://").partition("/")
        small = ok(await reader.client.thumbnail(server, media_id, 32, 32, nio.ResizingMethod.crop))
        size = picture_size(small.body)
        check(size == (32, 32), f"the thumbnail is of {size}")


async def upload(user: User, data: bytes) -> str:
    """The URI of an uploaded picture."""
    answer = await user.http.call(
        "POST", "/_matrix/media/v3/upload", data=data, headers={"Content-Type": "image/png"}
    )
    return answer["content_uri"]


@step(
    "login",
    served=[
        ("POST", "/_synapse/admin/v1/media/quarantine/", "quarantined_media_changes", "a"),
        ("POST", "/_synapse/admin/v1/media/unquarantine/", "quarantined_media_changes", "a"),
        ("GET", "/_matrix/client/v1/media/download/", "media_repository", "a"),
    ],
)
async def quarantine(c: Context) -> None:
    """Quarantined media is gone for everybody, here and abroad, and comes back."""
    # Unlike any other, for its likes are quarantined with it.
    png = picture(48, 48) + f"quarantine {c.run}".encode()
    uri = await upload(c.a, png)
    place = uri.removeprefix("mxc://")

    async def says(user: User, status: int) -> None:
        async def told() -> bool:
            got, _, body = await user.http.raw("GET", media_path(uri))
            return got == status and (status != 200 or body == png)

        await user.eventually(f"{status} for {user.name}", told)

    await says(c.a, 200)
    await c.admin.http.post(f"/_synapse/admin/v1/media/quarantine/{place}")
    await says(c.a, 404)
    await says(c.b, 404)
    await c.admin.http.post(f"/_synapse/admin/v1/media/unquarantine/{place}")
    await says(c.a, 200)
    await says(c.b, 200)


# --- the end ------------------------------------------------------------------------------------


@step(
    "join_by_alias",
    served=[("PUT", "/_matrix/federation/v1/send/", "federation_inbound", "a")],
)
async def leave(c: Context) -> None:
    """Who leaves is gone for the other server too, and is told nothing more."""
    room = c.rooms["town"]
    mark = c.a.inbox.mark()
    ok(await c.b.client.room_leave(room))
    await c.a.inbox.wait(
        "the leaving",
        lambda e: (
            e.kind == "timeline"
            and e.room == room
            and e.type == "m.room.member"
            and e.content.get("membership") == "leave"
        ),
        since=mark,
    )
    event = await c.a.text(room, "gone?")
    await c.b.http.get(f"{room_path(room)}/event/{q(event)}", expect=404, errcode="M_NOT_FOUND")
    await join(c.b, room, c.server_a)


async def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--a", required=True, help="where clients find the one server")
    parser.add_argument("--b", required=True, help="where clients find the other")
    parser.add_argument("--users", type=Path, required=True, help="JSON list of name and password")
    parser.add_argument("--admin", required=True, help="the administrator of the one server")
    parser.add_argument("--only", nargs="+", choices=list(plan.steps), metavar="STEP")
    parser.add_argument("--report", type=Path, help="write the outcomes as JSON")
    args = parser.parse_args()
    quiet()
    people: list[dict[str, Any]] = json.loads(args.users.read_text(encoding="utf-8"))
    passwords = {person["name"]: person["password"] for person in people}
    if len(people) < 2 or args.admin not in passwords:
        sys.exit(f"{args.users} must name two people and {args.admin}")
    async with aiohttp.ClientSession() as session:
        with tempfile.TemporaryDirectory(prefix="federation-") as stores:
            a, b = (Http(url.rstrip("/"), session) for url in (args.a, args.b))

            def user(http: Http, name: str) -> User:
                return User(http, name, passwords[name], Path(stores) / name)

            context = Context(
                a=user(a, people[0]["name"]),
                b=user(b, people[1]["name"]),
                admin=user(a, args.admin),
                run=secrets.token_hex(4),
            )
            try:
                outcomes = await plan.run(context, plan.closure(args.only) if args.only else None)
            finally:
                users = (context.a, context.b, context.admin)
                await asyncio.gather(*(person.close() for person in users), return_exceptions=True)
    return finish(outcomes, args.report)


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except StepFailed as reason:
        sys.exit(f"FAIL {reason}")
