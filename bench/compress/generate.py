#!/usr/bin/env python3
"""Rows of state groups as Synapse would have stored them, for rooms of the shapes that real ones have.

Prints a script for psql: `generate.py --rows 1000000 --rooms 1 | psql ...`. The same arguments give the same rows. Needs the
tables of Synapse's schema, which `run.py` makes.

Each room's history is a mixture of
* slow churn: members who join, leave and change their names, one at a time;
* join storms: hundreds of members in a row;
* forks: groups that lie upon an older one, as after a join from elsewhere with an old view of the room;
* resets: state resolution that gives a large part of the room another state at once, and often back.
Every group is a delta upon its predecessor until that has 100 hops, and then whole (`MAX_STATE_DELTA_HOPS`).
"""

import argparse
import random
import string
import sys

HOPS = 100
LETTERS = string.ascii_letters + string.digits + "-_"


def event(rng):
    return "$" + "".join(rng.choices(LETTERS, k=43))


class Room:
    def __init__(self, rng, name, rows):
        self.rng, self.name, self.left = rng, name, rows
        # The whole state is as large as gives a plausible number of groups.
        self.members = max(5, min(20_000, int(rows ** 0.5 * rng.uniform(0.5, 4))))
        self.state = {("m.room.create", ""): event(rng), ("m.room.power_levels", ""): event(rng)}
        self.servers = [f"s{n}.example.org" for n in range(1 + self.members // 20)]
        self.depth = {}
        self.deltas = {}
        self.recent = []
        self.states = {}
        for _ in range(self.members // 2):
            self.state[self.member()] = event(rng)

    def member(self):
        # A few are active, most are not.
        number = int(self.members * self.rng.random() ** 3)
        return ("m.room.member", f"@user{number}:{self.servers[number % len(self.servers)]}")

    def change(self):
        if self.rng.random() < 0.03:
            return {(self.rng.choice(["m.room.topic", "m.room.power_levels", "m.room.server_acl"]), ""): event(self.rng)}
        return {self.member(): event(self.rng)}

    def store(self, group, prev, state, delta):
        """What Synapse writes: rows, and the edge if there is one."""
        if prev is not None and self.depth[prev] + 1 < HOPS:
            self.depth[group] = self.depth[prev] + 1
            rows, edge = delta, prev
        else:
            self.depth[group] = 0
            rows, edge = state, None
        self.recent.append(group)
        self.states[group] = state
        if len(self.recent) > 40:
            del self.states[self.recent.pop(0)]
        self.left -= len(rows)
        return rows, edge

    def steps(self):
        """Yields (predecessor, state, delta) without end."""
        rng = self.rng
        storm = 0
        yield None, dict(self.state), None
        while True:
            last = self.recent[-1]
            kind = rng.random()
            if storm or kind < 0.001:
                storm = storm - 1 if storm else rng.randrange(100, 600)
                number = rng.randrange(self.members, self.members + 1 + self.members // 4)
                delta = {("m.room.member", f"@user{number}:{rng.choice(self.servers)}"): event(rng)}
            elif kind < 0.02 and len(self.recent) > 20:
                # A fork: upon an older group.
                last = rng.choice(self.recent[-20:])
                delta = self.change()
                state = {**self.states[last], **delta}
                yield last, state, delta
                continue
            elif kind < 0.0215:
                # A reset: a good part of the members as they were, some gone; and back, more often than not.
                before = dict(self.state)
                keys = list(before)
                gone = set(rng.sample(keys, len(keys) // 10))
                state = {key: value for key, value in before.items() if key not in gone}
                for key in rng.sample(list(state), len(state) // 20):
                    state[key] = event(rng)
                yield None, state, None
                if rng.random() < 0.7:
                    yield None, before, None
                    state = before
                self.state = dict(state)
                continue
            else:
                delta = self.change()
            self.state = {**self.states[last], **delta}
            yield last, self.state, delta


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rooms", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    weights = [1 / (n + 1) ** 0.8 for n in range(arguments.rooms)]
    rooms = [
        Room(rng, f"!room{n}:example.org", max(50, int(arguments.rows * weight / sum(weights))))
        for n, weight in enumerate(weights)
    ]
    out = sys.stdout
    out.write("COPY state_groups_state (state_group, room_id, type, state_key, event_id) FROM STDIN;\n")
    groups, edges = [], []
    # Rooms take turns, so that their groups lie between each other's as on a real server.
    turns = [(room, room.steps()) for room in rooms]
    group = 0
    while turns:
        still = []
        for room, steps in turns:
            for _ in range(rng.randrange(1, 20)):
                group += 1
                prev, state, delta = next(steps)
                rows, edge = room.store(group, prev, state, delta)
                groups.append((group, room.name))
                if edge is not None:
                    edges.append((group, edge))
                head = f"{group}\t{room.name}\t"
                out.write("".join(f"{head}{kind}\t{key}\t{value}\n" for (kind, key), value in rows.items()))
                if room.left <= 0:
                    break
            if room.left > 0:
                still.append((room, steps))
        turns = still
    out.write("\\.\nCOPY state_groups (id, room_id, event_id) FROM STDIN;\n")
    out.write("".join(f"{group}\t{name}\t$e{group}\n" for group, name in groups))
    out.write("\\.\nCOPY state_group_edges (state_group, prev_state_group) FROM STDIN;\n")
    out.write("".join(f"{group}\t{prev}\n" for group, prev in edges))
    out.write(f"\\.\nSELECT setval('state_group_id_seq', {group});\nVACUUM ANALYZE;\n")


if __name__ == "__main__":
    main()
