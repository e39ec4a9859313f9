//! The pages about what Synapse's admin API manages, as data: which answer is shown how, and what can be done.
//!
//! Paths of the API hold `{id}` for what a page is about, `{sub}` for a row on it, `{server}` for the server's name and
//! `{name}` for what is written into a form. The API is documented at
//! <https://element-hq.github.io/synapse/latest/usage/administration/admin_api/>.

use crate::value::Kind::{self, Bytes, Flag, Id, Json, Millis, Number, Seconds, Text};

/// A column, or a line of facts.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    /// Where its value stands in an item; empty for the item itself.
    pub(crate) field: &'static str,
    pub(crate) kind: Kind,
    /// What the API's `order_by` calls it, if it can be sorted by.
    pub(crate) sort: Option<&'static str>,
}

const fn column(title: &'static str, field: &'static str, kind: Kind) -> Column {
    Column { title, field, kind, sort: None }
}

const fn sorted(title: &'static str, field: &'static str, kind: Kind, sort: &'static str) -> Column {
    Column { title, field, kind, sort: Some(sort) }
}

/// A parameter of the API's that narrows a list.
#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) name: &'static str,
    pub(crate) label: &'static str,
    /// Values and their names; none for a text to search for.
    pub(crate) choices: &'static [(&'static str, &'static str)],
}

const fn search(name: &'static str, label: &'static str) -> Filter {
    Filter { name, label, choices: &[] }
}

const BOTH: &[(&str, &str)] = &[("", "any"), ("true", "yes"), ("false", "no")];

/// A table of items.
#[derive(Debug)]
pub(crate) struct Table {
    /// The path that is asked, with what is always in its query.
    pub(crate) api: &'static str,
    /// Where the items stand in the answer; see [`crate::value::items`].
    pub(crate) items: &'static str,
    /// Where the number of all items stands.
    pub(crate) total: Option<&'static str>,
    /// Whether `from` and `limit` ask for a part.
    pub(crate) paged: bool,
    pub(crate) columns: &'static [Column],
    pub(crate) filters: &'static [Filter],
    /// The field of an item that its actions take as `{sub}`, and those.
    pub(crate) row: Option<(&'static str, &'static [&'static str])>,
}

/// A list with a page of its own.
#[derive(Debug)]
pub(crate) struct List {
    pub(crate) path: &'static str,
    pub(crate) title: &'static str,
    /// What one of it is called.
    pub(crate) one: &'static str,
    /// What is to be known before reading it; empty for nothing.
    pub(crate) note: &'static str,
    pub(crate) table: Table,
    /// What can be done without choosing one.
    pub(crate) actions: &'static [&'static str],
    /// The page of one.
    pub(crate) detail: Option<Detail>,
}

/// The page of one item.
#[derive(Debug)]
pub(crate) struct Detail {
    pub(crate) api: &'static str,
    pub(crate) facts: &'static [Column],
    pub(crate) sections: &'static [Section],
    pub(crate) actions: &'static [&'static str],
}

/// A table about one item.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) path: &'static str,
    pub(crate) title: &'static str,
    pub(crate) table: Table,
}

/// What a form asks for.
#[derive(Debug)]
pub(crate) enum Input {
    Line,
    /// It is not written into the audit log.
    Password,
    Number,
    Flag,
    Choice(&'static [(&'static str, &'static str)]),
    /// A number of hours from now, which becomes that moment in milliseconds since 1970.
    Hours,
}

/// A field of a form, which becomes a field of the request's body.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) label: &'static str,
    pub(crate) input: Input,
    pub(crate) required: bool,
    /// It is part of the path, and not of the body.
    pub(crate) in_path: bool,
}

const fn field(name: &'static str, label: &'static str, input: Input) -> Field {
    Field { name, label, input, required: false, in_path: false }
}

const fn needed(name: &'static str, label: &'static str, input: Input) -> Field {
    Field { name, label, input, required: true, in_path: false }
}

/// Something that changes something.
#[derive(Debug)]
pub(crate) struct Action {
    pub(crate) name: &'static str,
    /// What its button says.
    pub(crate) title: &'static str,
    /// What it does, for who is about to do it.
    pub(crate) what: &'static str,
    pub(crate) method: &'static str,
    pub(crate) api: &'static str,
    /// A path that has to be answered with success first.
    pub(crate) first: Option<&'static str>,
    pub(crate) fields: &'static [Field],
    /// What the body holds besides, as JSON.
    pub(crate) body: &'static str,
    /// The field of the answer that is shown once it is done.
    pub(crate) shows: Option<&'static str>,
    /// The page that is shown then.
    pub(crate) then: &'static str,
}

const fn action(
    name: &'static str,
    title: &'static str,
    what: &'static str,
    method: &'static str,
    api: &'static str,
) -> Action {
    Action { name, title, what, method, api, first: None, fields: &[], body: "{}", shows: None, then: "" }
}

impl Action {
    const fn with(self, fields: &'static [Field]) -> Self {
        Self { fields, ..self }
    }

    const fn body(self, body: &'static str) -> Self {
        Self { body, ..self }
    }

    const fn shows(self, field: &'static str) -> Self {
        Self { shows: Some(field), ..self }
    }

    const fn first(self, api: &'static str) -> Self {
        Self { first: Some(api), ..self }
    }

    const fn then(self, page: &'static str) -> Self {
        Self { then: page, ..self }
    }
}

/// Every list, in the order of the menu.
pub(crate) static LISTS: &[List] = &[
    List {
        path: "users",
        title: "Users",
        one: "user",
        note: "",
        table: Table {
            // Those that are locked are left out unless they are asked for.
            api: "/_synapse/admin/v3/users?guests=false&locked=true",
            items: "users",
            total: Some("total"),
            paged: true,
            columns: &[
                sorted("User", "name", Id("users"), "name"),
                sorted("Display name", "displayname", Text, "displayname"),
                sorted("Admin", "admin", Flag, "admin"),
                sorted("Deactivated", "deactivated", Flag, "deactivated"),
                sorted("Locked", "locked", Flag, "locked"),
                sorted("Shadow-banned", "shadow_banned", Flag, "shadow_banned"),
                sorted("Created", "creation_ts", Millis, "creation_ts"),
                sorted("Last seen", "last_seen_ts", Millis, "last_seen_ts"),
            ],
            filters: &[
                search("name", "Name or ID"),
                Filter { name: "deactivated", label: "Deactivated", choices: BOTH },
                Filter { name: "admins", label: "Admin", choices: BOTH },
            ],
            row: None,
        },
        actions: &["create-user"],
        detail: Some(Detail {
            api: "/_synapse/admin/v2/users/{id}",
            facts: &[
                column("Display name", "displayname", Text),
                column("Admin", "admin", Flag),
                column("Deactivated", "deactivated", Flag),
                column("Erased", "erased", Flag),
                column("Locked", "locked", Flag),
                column("Suspended", "suspended", Flag),
                column("Shadow-banned", "shadow_banned", Flag),
                column("Created", "creation_ts", Seconds),
                column("Last seen", "last_seen_ts", Millis),
                column("Kind", "user_type", Text),
                column("E-mail and telephone", "threepids", Json),
                column("Single sign-on", "external_ids", Json),
            ],
            sections: &[
                Section {
                    path: "devices",
                    title: "Devices",
                    table: Table {
                        api: "/_synapse/admin/v2/users/{id}/devices",
                        items: "devices",
                        total: Some("total"),
                        paged: false,
                        columns: &[
                            column("Device", "device_id", Text),
                            column("Name", "display_name", Text),
                            column("Address", "last_seen_ip", Text),
                            column("Client", "last_seen_user_agent", Text),
                            column("Last seen", "last_seen_ts", Millis),
                        ],
                        filters: &[],
                        row: Some(("device_id", &["delete-device"])),
                    },
                },
                Section {
                    path: "sessions",
                    title: "Sessions",
                    table: Table {
                        api: "/_synapse/admin/v1/whois/{id}",
                        items: "devices.*.sessions.*.connections.*",
                        total: None,
                        paged: false,
                        columns: &[
                            column("Address", "ip", Text),
                            column("Client", "user_agent", Text),
                            column("Last seen", "last_seen", Millis),
                        ],
                        filters: &[],
                        row: None,
                    },
                },
                Section {
                    path: "memberships",
                    title: "Memberships",
                    table: Table {
                        api: "/_synapse/admin/v1/users/{id}/memberships",
                        items: "memberships.*",
                        total: None,
                        paged: false,
                        columns: &[column("Room", "key", Id("rooms")), column("Membership", "value", Text)],
                        filters: &[],
                        row: None,
                    },
                },
                Section {
                    path: "media",
                    title: "Media",
                    table: Table {
                        api: "/_synapse/admin/v1/users/{id}/media",
                        items: "media",
                        total: Some("total"),
                        paged: true,
                        columns: &[
                            sorted("Media", "media_id", Text, "media_id"),
                            sorted("File name", "upload_name", Text, "upload_name"),
                            sorted("Type", "media_type", Text, "media_type"),
                            sorted("Size", "media_length", Bytes, "media_length"),
                            sorted("Uploaded", "created_ts", Millis, "created_ts"),
                            sorted("Last used", "last_access_ts", Millis, "last_access_ts"),
                            sorted("Quarantined by", "quarantined_by", Text, "quarantined_by"),
                        ],
                        filters: &[],
                        row: Some(("media_id", &["quarantine-media", "release-media", "delete-media"])),
                    },
                },
                Section {
                    path: "pushers",
                    title: "Pushers",
                    table: Table {
                        api: "/_synapse/admin/v1/users/{id}/pushers",
                        items: "pushers",
                        total: Some("total"),
                        paged: false,
                        columns: &[
                            column("App", "app_display_name", Text),
                            column("Device", "device_display_name", Text),
                            column("Kind", "kind", Text),
                            column("To", "data.url", Text),
                        ],
                        filters: &[],
                        row: None,
                    },
                },
                Section {
                    path: "limits",
                    title: "Rate limits",
                    table: Table {
                        api: "/_synapse/admin/v1/users/{id}/override_ratelimit",
                        items: "",
                        total: None,
                        paged: false,
                        columns: &[
                            column("Messages a second", "messages_per_second", Number),
                            column("Burst", "burst_count", Number),
                        ],
                        filters: &[],
                        row: None,
                    },
                },
            ],
            actions: &[
                "rename-user",
                "reset-password",
                "grant-admin",
                "revoke-admin",
                "lock-user",
                "unlock-user",
                "suspend-user",
                "resume-user",
                "shadow-ban",
                "lift-shadow-ban",
                "limit-user",
                "unlimit-user",
                "redact-user",
                "login-as",
                "deactivate-user",
                "erase-user",
                "reactivate-user",
            ],
        }),
    },
    List {
        path: "rooms",
        title: "Rooms",
        one: "room",
        note: "",
        table: Table {
            api: "/_synapse/admin/v1/rooms",
            items: "rooms",
            total: Some("total_rooms"),
            paged: true,
            columns: &[
                sorted("Room", "room_id", Id("rooms"), "name"),
                column("Name", "name", Text),
                sorted("Alias", "canonical_alias", Text, "canonical_alias"),
                sorted("Members", "joined_members", Number, "joined_members"),
                sorted("Of this server", "joined_local_members", Number, "joined_local_members"),
                sorted("State events", "state_events", Number, "state_events"),
                sorted("Version", "version", Text, "version"),
                sorted("Creator", "creator", Text, "creator"),
                sorted("Join rule", "join_rules", Text, "join_rules"),
            ],
            filters: &[
                search("search_term", "Name, alias or ID"),
                Filter { name: "public_rooms", label: "In the directory", choices: BOTH },
                Filter { name: "empty_rooms", label: "Without members", choices: BOTH },
            ],
            row: None,
        },
        actions: &["block-room"],
        detail: Some(Detail {
            api: "/_synapse/admin/v1/rooms/{id}",
            facts: &[
                column("Name", "name", Text),
                column("Topic", "topic", Text),
                column("Alias", "canonical_alias", Text),
                column("Members", "joined_members", Number),
                column("Members of this server", "joined_local_members", Number),
                column("Creator", "creator", Text),
                column("Version", "version", Text),
                column("Encryption", "encryption", Text),
                column("Federates", "federatable", Flag),
                column("In the directory", "public", Flag),
                column("Join rule", "join_rules", Text),
                column("History", "history_visibility", Text),
                column("Kind", "room_type", Text),
            ],
            sections: &[
                Section {
                    path: "members",
                    title: "Members",
                    table: Table {
                        api: "/_synapse/admin/v1/rooms/{id}/members",
                        items: "members",
                        total: Some("total"),
                        paged: false,
                        columns: &[column("Member", "", Id("users"))],
                        filters: &[],
                        row: None,
                    },
                },
                Section {
                    path: "state",
                    title: "State",
                    table: Table {
                        api: "/_synapse/admin/v1/rooms/{id}/state",
                        items: "state",
                        total: None,
                        paged: false,
                        columns: &[
                            column("Type", "type", Text),
                            column("Key", "state_key", Text),
                            column("Sender", "sender", Text),
                            column("Content", "content", Json),
                        ],
                        filters: &[],
                        row: None,
                    },
                },
                Section {
                    path: "media",
                    title: "Media",
                    table: Table {
                        api: "/_synapse/admin/v1/room/{id}/media",
                        items: "*.*",
                        total: None,
                        paged: false,
                        columns: &[column("Media", "", Text)],
                        filters: &[],
                        row: None,
                    },
                },
                Section {
                    path: "block",
                    title: "Block",
                    table: Table {
                        api: "/_synapse/admin/v1/rooms/{id}/block",
                        items: "",
                        total: None,
                        paged: false,
                        columns: &[column("Blocked", "block", Flag), column("By", "user_id", Text)],
                        filters: &[],
                        row: None,
                    },
                },
                Section {
                    path: "deletions",
                    title: "Deletions",
                    table: Table {
                        api: "/_synapse/admin/v2/rooms/{id}/delete_status",
                        items: "results",
                        total: None,
                        paged: false,
                        columns: &[
                            column("Deletion", "delete_id", Text),
                            column("Status", "status", Text),
                            column("Error", "error", Text),
                            column("What was done", "shutdown_room", Json),
                        ],
                        filters: &[],
                        row: None,
                    },
                },
            ],
            actions: &["make-room-admin", "join-room", "block-this-room", "unblock-room", "delete-room"],
        }),
    },
    List {
        path: "event-reports",
        title: "Event reports",
        one: "event report",
        note: "",
        table: Table {
            api: "/_synapse/admin/v1/event_reports",
            items: "event_reports",
            total: Some("total"),
            paged: true,
            columns: &[
                column("Report", "id", Id("event-reports")),
                column("Received", "received_ts", Millis),
                column("By", "user_id", Id("users")),
                column("About", "sender", Text),
                column("Room", "room_id", Id("rooms")),
                column("Room's name", "name", Text),
                column("Reason", "reason", Text),
            ],
            filters: &[search("user_id", "By"), search("room_id", "Room")],
            row: None,
        },
        actions: &[],
        detail: Some(Detail {
            api: "/_synapse/admin/v1/event_reports/{id}",
            facts: &[
                column("Received", "received_ts", Millis),
                column("By", "user_id", Id("users")),
                column("About", "sender", Id("users")),
                column("Room", "room_id", Id("rooms")),
                column("Reason", "reason", Text),
                column("Score", "score", Number),
                column("Event", "event_json", Json),
            ],
            sections: &[],
            actions: &["close-event-report"],
        }),
    },
    List {
        path: "user-reports",
        title: "User reports",
        one: "user report",
        note: "",
        table: Table {
            api: "/_synapse/admin/v1/user_reports",
            items: "user_reports",
            total: Some("total"),
            paged: true,
            columns: &[
                column("Report", "id", Text),
                column("Received", "received_ts", Millis),
                column("By", "user_id", Id("users")),
                column("About", "target_user_id", Id("users")),
                column("Reason", "reason", Text),
            ],
            filters: &[search("user_id", "By"), search("target_user_id", "About")],
            row: Some(("id", &["close-user-report"])),
        },
        actions: &[],
        detail: None,
    },
    List {
        path: "registration-tokens",
        title: "Registration tokens",
        one: "registration token",
        note: "",
        table: Table {
            api: "/_synapse/admin/v1/registration_tokens",
            items: "registration_tokens",
            total: None,
            paged: false,
            columns: &[
                column("Token", "token", Text),
                column("Uses allowed", "uses_allowed", Number),
                column("Pending", "pending", Number),
                column("Completed", "completed", Number),
                column("Expires", "expiry_time", Millis),
            ],
            filters: &[Filter { name: "valid", label: "Valid", choices: BOTH }],
            row: Some(("token", &["delete-token"])),
        },
        actions: &["create-token"],
        detail: None,
    },
    List {
        path: "destinations",
        title: "Federation",
        one: "destination",
        note: "",
        table: Table {
            api: "/_synapse/admin/v1/federation/destinations",
            items: "destinations",
            total: Some("total"),
            paged: true,
            columns: &[
                sorted("Server", "destination", Id("destinations"), "destination"),
                sorted("Failing since", "failure_ts", Millis, "failure_ts"),
                sorted("Last try", "retry_last_ts", Millis, "retry_last_ts"),
                sorted("Interval of tries, ms", "retry_interval", Number, "retry_interval"),
            ],
            filters: &[search("destination", "Server")],
            row: None,
        },
        actions: &[],
        detail: Some(Detail {
            api: "/_synapse/admin/v1/federation/destinations/{id}",
            facts: &[
                column("Failing since", "failure_ts", Millis),
                column("Last try", "retry_last_ts", Millis),
                column("Interval of tries, ms", "retry_interval", Number),
                column("Last success, by stream", "last_successful_stream_ordering", Number),
            ],
            sections: &[Section {
                path: "rooms",
                title: "Rooms",
                table: Table {
                    api: "/_synapse/admin/v1/federation/destinations/{id}/rooms",
                    items: "rooms",
                    total: Some("total"),
                    paged: true,
                    columns: &[
                        column("Room", "room_id", Id("rooms")),
                        column("Stream", "stream_ordering", Number),
                    ],
                    filters: &[],
                    row: None,
                },
            }],
            actions: &["reset-connection"],
        }),
    },
    List {
        path: "background-updates",
        title: "Background updates",
        one: "background update",
        note: "",
        table: Table {
            api: "/_synapse/admin/v1/background_updates/status",
            items: "current_updates.*",
            total: None,
            paged: false,
            columns: &[
                column("Update", "name", Text),
                column("Items done", "total_item_count", Number),
                column("Time taken, ms", "total_duration_ms", Number),
                column("Items a millisecond", "average_items_per_ms", Number),
            ],
            filters: &[],
            row: None,
        },
        actions: &["start-update", "pause-updates", "resume-updates"],
        detail: None,
    },
    List {
        path: "tasks",
        title: "Scheduled tasks",
        one: "task",
        note: "",
        table: Table {
            api: "/_synapse/admin/v1/scheduled_tasks",
            items: "scheduled_tasks",
            total: None,
            paged: false,
            columns: &[
                column("Task", "id", Text),
                column("What", "action", Text),
                column("Status", "status", Text),
                column("When", "timestamp_ms", Millis),
                column("About", "resource_id", Text),
                column("Result", "result", Json),
                column("Error", "error", Text),
            ],
            filters: &[
                Filter {
                    name: "job_status",
                    label: "Status",
                    choices: &[
                        ("", "any"),
                        ("scheduled", "scheduled"),
                        ("active", "active"),
                        ("complete", "complete"),
                        ("cancelled", "cancelled"),
                        ("failed", "failed"),
                    ],
                },
                search("resource_id", "About"),
            ],
            row: None,
        },
        actions: &[],
        detail: None,
    },
    List {
        path: "media-statistics",
        title: "Media by user",
        one: "user",
        note: "",
        table: Table {
            api: "/_synapse/admin/v1/statistics/users/media",
            items: "users",
            total: Some("total"),
            paged: true,
            columns: &[
                sorted("User", "user_id", Id("users"), "user_id"),
                sorted("Display name", "displayname", Text, "displayname"),
                sorted("Files", "media_count", Number, "media_count"),
                sorted("Size", "media_length", Bytes, "media_length"),
            ],
            filters: &[search("search_term", "Name or ID")],
            row: None,
        },
        actions: &[],
        detail: None,
    },
    List {
        path: "room-statistics",
        title: "Largest rooms",
        one: "room",
        note: "Synapse reckons this from the statistics of PostgreSQL, and fails while these know too little: on a server that is new or empty.",
        table: Table {
            api: "/_synapse/admin/v1/statistics/database/rooms",
            items: "rooms",
            total: None,
            paged: false,
            columns: &[
                column("Room", "room_id", Id("rooms")),
                column("Size in the database, about", "estimated_size", Bytes),
            ],
            filters: &[],
            row: None,
        },
        actions: &[],
        detail: None,
    },
];

const USER: &str = "/_synapse/admin/v2/users/{id}";
const JOBS: &[(&str, &str)] = &[
    ("populate_stats_process_rooms", "count what is in each room anew"),
    ("regenerate_directory", "build the user directory anew"),
];

/// Every action.
pub(crate) static ACTIONS: &[Action] = &[
    action(
        "create-user",
        "Create a user",
        "Creates an account on this server.",
        "PUT",
        "/_synapse/admin/v2/users/%40{name}%3A{server}",
    )
    .first("/_synapse/admin/v1/username_available?username={name}")
    .with(&[
        Field {
            name: "name",
            label: "Name, as in @name:server",
            input: Input::Line,
            required: true,
            in_path: true,
        },
        needed("password", "Password", Input::Password),
        field("displayname", "Display name", Input::Line),
        field("admin", "Server administrator", Input::Flag),
    ])
    .then("/users/%40{name}%3A{server}"),
    action("rename-user", "Rename", "Sets the display name of {id}.", "PUT", USER).with(&[needed(
        "displayname",
        "Display name",
        Input::Line,
    )]),
    action(
        "reset-password",
        "Reset password",
        "Gives {id} a new password.",
        "POST",
        "/_synapse/admin/v1/reset_password/{id}",
    )
    .with(&[
        needed("new_password", "New password", Input::Password),
        field(
            "logout_devices",
            "Sign out all devices, which loses encryption keys that are not backed up",
            Input::Flag,
        ),
    ]),
    action(
        "grant-admin",
        "Make administrator",
        "Lets {id} use the admin API and this console.",
        "PUT",
        "/_synapse/admin/v1/users/{id}/admin",
    )
    .body(r#"{"admin":true}"#),
    action(
        "revoke-admin",
        "Revoke administrator",
        "Takes the admin API and this console from {id}.",
        "PUT",
        "/_synapse/admin/v1/users/{id}/admin",
    )
    .body(r#"{"admin":false}"#),
    action(
        "lock-user",
        "Lock",
        "Locks {id} out of the account. Its sessions stay, and nothing is lost.",
        "PUT",
        USER,
    )
    .body(r#"{"locked":true}"#),
    action("unlock-user", "Unlock", "Lets {id} use the account again.", "PUT", USER)
        .body(r#"{"locked":false}"#),
    action(
        "suspend-user",
        "Suspend",
        "Lets {id} read, and leave rooms, but do nothing else.",
        "PUT",
        "/_synapse/admin/v1/suspend/{id}",
    )
    .body(r#"{"suspend":true}"#),
    action(
        "resume-user",
        "Lift suspension",
        "Lets {id} do everything again.",
        "PUT",
        "/_synapse/admin/v1/suspend/{id}",
    )
    .body(r#"{"suspend":false}"#),
    action(
        "shadow-ban",
        "Shadow-ban",
        "Has {id} believe that messages are sent, while nobody gets them.",
        "POST",
        "/_synapse/admin/v1/users/{id}/shadow_ban",
    ),
    action(
        "lift-shadow-ban",
        "Lift shadow-ban",
        "Lets messages of {id} through again.",
        "DELETE",
        "/_synapse/admin/v1/users/{id}/shadow_ban",
    ),
    action(
        "limit-user",
        "Set rate limit",
        "Sets how many messages {id} may send; 0 is without limit.",
        "POST",
        "/_synapse/admin/v1/users/{id}/override_ratelimit",
    )
    .with(&[
        needed("messages_per_second", "Messages a second", Input::Number),
        needed("burst_count", "Burst", Input::Number),
    ])
    .then("/users/{id}/limits"),
    action(
        "unlimit-user",
        "Remove rate limit",
        "Gives {id} the limits that everybody has.",
        "DELETE",
        "/_synapse/admin/v1/users/{id}/override_ratelimit",
    )
    .then("/users/{id}/limits"),
    action(
        "redact-user",
        "Redact all messages",
        "Redacts the messages of {id} in all rooms. This cannot be undone.",
        "POST",
        "/_synapse/admin/v1/user/{id}/redact",
    )
    .with(&[field("reason", "Reason, which everybody sees", Input::Line)])
    .body(r#"{"rooms":[]}"#)
    .shows("redact_id"),
    action(
        "login-as",
        "Sign in as",
        "Makes an access token with which one acts as {id}. It is shown once.",
        "POST",
        "/_synapse/admin/v1/users/{id}/login",
    )
    .with(&[needed("valid_until_ms", "For how many hours", Input::Hours)])
    .shows("access_token"),
    action(
        "deactivate-user",
        "Deactivate",
        "Signs {id} out everywhere, removes it from all rooms, and closes the account. The name stays taken.",
        "POST",
        "/_synapse/admin/v1/deactivate/{id}",
    )
    .body(r#"{"erase":false}"#),
    action(
        "erase-user",
        "Deactivate and erase",
        "Closes the account of {id}, and marks what it sent to be hidden from who joins later (GDPR).",
        "POST",
        "/_synapse/admin/v1/deactivate/{id}",
    )
    .body(r#"{"erase":true}"#),
    action(
        "reactivate-user",
        "Reactivate",
        "Opens the account of {id} again, with a new password.",
        "PUT",
        USER,
    )
    .with(&[needed("password", "Password", Input::Password)])
    .body(r#"{"deactivated":false}"#),
    action(
        "delete-device",
        "Delete",
        "Signs {id} out of the device {sub}.",
        "DELETE",
        "/_synapse/admin/v2/users/{id}/devices/{sub}",
    )
    .then("/users/{id}/devices"),
    action(
        "quarantine-media",
        "Quarantine",
        "Has nobody get the file {sub} any more, until it is released.",
        "POST",
        "/_synapse/admin/v1/media/quarantine/{server}/{sub}",
    )
    .then("/users/{id}/media"),
    action(
        "release-media",
        "Release",
        "Takes the file {sub} out of quarantine.",
        "POST",
        "/_synapse/admin/v1/media/unquarantine/{server}/{sub}",
    )
    .then("/users/{id}/media"),
    action(
        "delete-media",
        "Delete",
        "Deletes the file {sub} from this server. This cannot be undone.",
        "DELETE",
        "/_synapse/admin/v1/media/{server}/{sub}",
    )
    .then("/users/{id}/media"),
    action(
        "make-room-admin",
        "Make room admin",
        "Gives a user of this server the highest power in {id} that anybody of this server can give.",
        "POST",
        "/_synapse/admin/v1/rooms/{id}/make_room_admin",
    )
    .with(&[needed("user_id", "User ID", Input::Line)])
    .then("/rooms/{id}/members"),
    action(
        "join-room",
        "Have a user join",
        "Has a user of this server join {id}. You have to be in it, and allowed to invite.",
        "POST",
        "/_synapse/admin/v1/join/{id}",
    )
    .with(&[needed("user_id", "User ID", Input::Line)])
    .then("/rooms/{id}/members"),
    action(
        "block-room",
        "Block a room",
        "Has nobody of this server join a room, whether it is known here or not.",
        "PUT",
        "/_synapse/admin/v1/rooms/{room}/block",
    )
    .with(&[Field { name: "room", label: "Room ID", input: Input::Line, required: true, in_path: true }])
    .body(r#"{"block":true}"#)
    .then("/rooms/{room}/block"),
    action(
        "block-this-room",
        "Block",
        "Has nobody of this server join {id}. Who is in it stays in it.",
        "PUT",
        "/_synapse/admin/v1/rooms/{id}/block",
    )
    .body(r#"{"block":true}"#)
    .then("/rooms/{id}/block"),
    action(
        "unblock-room",
        "Unblock",
        "Lets users of this server join {id} again.",
        "PUT",
        "/_synapse/admin/v1/rooms/{id}/block",
    )
    .body(r#"{"block":false}"#)
    .then("/rooms/{id}/block"),
    action(
        "delete-room",
        "Delete",
        "Removes everybody of this server from {id}, and then the room itself. This cannot be undone.",
        "DELETE",
        "/_synapse/admin/v2/rooms/{id}",
    )
    .with(&[
        field("block", "Block it too, so that nobody joins again", Input::Flag),
        field("force_purge", "Remove it even where somebody could not be removed", Input::Flag),
    ])
    .body(r#"{"purge":true}"#)
    .shows("delete_id")
    .then("/rooms/{id}/deletions"),
    action(
        "close-event-report",
        "Close",
        "Deletes the report {id}. The event stays.",
        "DELETE",
        "/_synapse/admin/v1/event_reports/{id}",
    )
    .then("/event-reports"),
    action(
        "close-user-report",
        "Close",
        "Deletes the report {sub}. The user stays.",
        "DELETE",
        "/_synapse/admin/v1/user_reports/{sub}",
    )
    .then("/user-reports"),
    action(
        "create-token",
        "Create a token",
        "Creates a token with which somebody can register.",
        "POST",
        "/_synapse/admin/v1/registration_tokens/new",
    )
    .with(&[
        field("token", "Token; without one, it is made up", Input::Line),
        field("uses_allowed", "Uses allowed; without a number, any", Input::Number),
        field("expiry_time", "For how many hours; without a number, always", Input::Hours),
    ])
    .shows("token")
    .then("/registration-tokens"),
    action(
        "delete-token",
        "Delete",
        "Deletes the token {sub}.",
        "DELETE",
        "/_synapse/admin/v1/registration_tokens/{sub}",
    )
    .then("/registration-tokens"),
    action(
        "reset-connection",
        "Try again now",
        "Forgets that {id} could not be reached, and tries at once.",
        "POST",
        "/_synapse/admin/v1/federation/destinations/{id}/reset_connection",
    )
    .then("/destinations/{id}"),
    action(
        "start-update",
        "Start an update",
        "Starts a background update.",
        "POST",
        "/_synapse/admin/v1/background_updates/start_job",
    )
    .with(&[needed("job_name", "Which", Input::Choice(JOBS))])
    .then("/background-updates"),
    action(
        "pause-updates",
        "Pause",
        "Pauses all background updates.",
        "POST",
        "/_synapse/admin/v1/background_updates/enabled",
    )
    .body(r#"{"enabled":false}"#)
    .then("/background-updates"),
    action(
        "resume-updates",
        "Resume",
        "Lets background updates go on.",
        "POST",
        "/_synapse/admin/v1/background_updates/enabled",
    )
    .body(r#"{"enabled":true}"#)
    .then("/background-updates"),
];

/// The list at this path.
pub(crate) fn list(path: &str) -> Option<&'static List> {
    LISTS.iter().find(|list| list.path == path)
}

/// The action that is called so.
pub(crate) fn find(name: &str) -> Option<&'static Action> {
    ACTIONS.iter().find(|action| action.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use routes::Table as Endpoints;

    use super::*;

    fn tables() -> impl Iterator<Item = &'static Table> {
        LISTS.iter().flat_map(|list| {
            let sections =
                list.detail.iter().flat_map(|detail| detail.sections).map(|section| &section.table);
            std::iter::once(&list.table).chain(sections)
        })
    }

    #[test]
    fn every_action_exists_and_can_be_reached() {
        let rows = tables().filter_map(|table| table.row).flat_map(|(_, actions)| actions);
        let named: BTreeSet<&str> = LISTS
            .iter()
            .flat_map(|list| list.actions.iter().chain(list.detail.iter().flat_map(|detail| detail.actions)))
            .chain(rows)
            .copied()
            .collect();
        let known: BTreeSet<&str> = ACTIONS.iter().map(|action| action.name).collect();
        assert_eq!(named, known);
        assert_eq!(known.len(), ACTIONS.len(), "an action is there twice");
        for action in ACTIONS {
            assert!(
                serde_json::from_str::<serde_json::Value>(action.body).unwrap().is_object(),
                "{}",
                action.name
            );
        }
    }

    /// The paths that are asked are ones that the newest Synapse registers.
    #[test]
    fn every_path_is_one_of_synapses() {
        let stack = model::Stack::new("x".to_owned().try_into().unwrap());
        let topology = model::plan(&stack, std::path::Path::new("/run/x"), model::Preset::Full).unwrap();
        let options = routes::Options { admin_open: true, features: routes::Features::default() };
        let newest = Endpoints::all().last().unwrap();
        let matcher = routes::Matcher::compile(newest, &topology, &options).unwrap();
        let gets = tables().map(|table| ("GET", table.api));
        let details = LISTS.iter().filter_map(|list| Some(("GET", list.detail.as_ref()?.api)));
        for (method, path) in
            gets.chain(details).chain(ACTIONS.iter().map(|action| (action.method, action.api)))
        {
            let path = path.replace("{id}", "%40a%3Ax").replace(['{', '}'], "");
            let explanation = matcher.explain(method, &path);
            assert!(explanation.template.is_some(), "{method} {path}: {}", explanation.reason);
        }
    }
}
