//! Synapse's configuration: what all processes share, and what each has for itself.
//!
//! The option names and their meaning are those of Synapse 1.163 (`synapse/config`). A process reads `shared.yaml`
//! and then its own `NAME.yaml`, whose top-level options replace the shared ones whole; nothing is merged deeper.

use std::path::Path;

use model::{Address, App, Instance, Layout, Network, Pool, Role, Stack, Stream, Topology};
use serde_json::{Map, Value, json};

use crate::RenderedFile;
use crate::yaml::{Section, document};

const SHARED: &str = "shared.yaml";

/// The header by which the router names a request. Synapse puts its value into its log lines, so that a line of the
/// router's access log leads to them.
const REQUEST_ID_HEADER: &str = "X-Request-ID";

/// Mode 0600 of unix sockets, in decimal: YAML 1.1 and 1.2 write octal numbers differently.
const SOCKET_MODE: u32 = 0o600;

/// Addresses that URL previews never fetch from: what the IANA special-purpose address registries list as not globally
/// reachable, multicast, and what was once site-local. Synapse adds the IPv6 forms of the IPv4 networks itself.
const PRIVATE_NETWORKS: [&str; 27] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

/// The configuration files of every Synapse process that has a name: `shared.yaml`, then `NAME.yaml` of each, in the order
/// of [`Topology::instances`]. The processes of pools are not among them: see [`synapse_instance()`].
pub fn synapse(topology: &Topology, layout: &Layout) -> Vec<RenderedFile> {
    let renderer = Renderer { topology, stack: topology.stack(), layout };
    let named = topology.instances().iter().filter(|instance| !instance.is_pool());
    std::iter::once(renderer.shared())
        .chain(named.map(|instance| renderer.instance(instance, &instance.name)))
        .collect()
}

/// The configuration files of one Synapse process: `shared.yaml` and `INSTANCE.yaml`, byte for byte those that [`synapse()`]
/// makes. A process of a pool reads the files of the pool, in which stands its own `name`.
pub fn synapse_instance(
    topology: &Topology,
    layout: &Layout,
    instance: &str,
    name: Option<&str>,
) -> Result<Vec<RenderedFile>, InstanceError> {
    let found = topology.instance(instance).ok_or_else(|| InstanceError::Unknown {
        instance: instance.to_owned(),
        known: topology.instances().iter().map(|i| i.name.clone()).collect(),
    })?;
    let name = match (found.is_pool(), name) {
        (false, None) => &found.name,
        (false, Some(_)) => return Err(InstanceError::Named { instance: instance.to_owned() }),
        (true, None) => return Err(InstanceError::Nameless { instance: instance.to_owned() }),
        (true, Some(name)) if !is_process_name(name) => {
            return Err(InstanceError::BadName { name: name.to_owned() });
        }
        (true, Some(name)) if name == "master" || topology.instance(name).is_some() => {
            return Err(InstanceError::NameTaken { name: name.to_owned() });
        }
        (true, Some(name)) => name,
    };
    let renderer = Renderer { topology, stack: topology.stack(), layout };
    Ok(vec![renderer.shared(), renderer.instance(found, name)])
}

/// The longest name of a pod on Kubernetes, in bytes.
const MAX_PROCESS_NAME: usize = 253;

/// Whether a process of a pool may be called so: like a pod, or like a process with `_`.
fn is_process_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= MAX_PROCESS_NAME
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|b| plain(b) || matches!(b, b'-' | b'_' | b'.'))
}

/// A process cannot be configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstanceError {
    /// The topology has no such process or pool.
    #[error("there is no process `{instance}`; this stack has {}", .known.join(", "))]
    Unknown {
        /// What was asked for.
        instance: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A process of a pool, and no name for it.
    #[error(
        "`{instance}` is a pool, and each of its processes needs a name that no other has; give one with `--name`, such as \
         its pod's or its host's"
    )]
    Nameless {
        /// The pool.
        instance: String,
    },
    /// A name for a process that has one.
    #[error(
        "the process `{instance}` has its name from the stack, by which the others know it; leave `--name` away"
    )]
    Named {
        /// The process.
        instance: String,
    },
    /// A name that no process can have.
    #[error(
        "`{name}` cannot be a process's name; use lower-case letters, digits, `-`, `_` and `.`, a letter or digit first, at \
         most {MAX_PROCESS_NAME} characters"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// A name that means another process.
    #[error(
        "`{name}` is what the stack calls another process or pool; give this one a name of its own with `--name`"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
}

/// The options that a process has in the end: those of `shared.yaml`, with its own in their place. For each process of a
/// pool they are these, but for its name.
pub fn synapse_options(topology: &Topology, layout: &Layout, instance: &Instance) -> Map<String, Value> {
    let renderer = Renderer { topology, stack: topology.stack(), layout };
    renderer
        .shared_sections()
        .into_iter()
        .chain(renderer.own_sections(instance, &instance.name))
        .flat_map(|section| section.entries)
        .collect()
}

/// The command line of a Synapse process, behind `python -m MODULE` with the module of [`App::module`]: its
/// configuration files, the later ones overriding the earlier.
pub fn config_args(layout: &Layout, instance: &Instance) -> Vec<String> {
    [SHARED.to_owned(), format!("{}.yaml", instance.name)]
        .into_iter()
        .flat_map(|file| ["-c".to_owned(), text(&layout.config().join(file))])
        .collect()
}

/// Everything that the files are made from.
struct Renderer<'a> {
    topology: &'a Topology,
    stack: &'a Stack,
    layout: &'a Layout,
}

impl Renderer<'_> {
    fn shared(&self) -> RenderedFile {
        let comment = format!(
            "Synapse's options for all processes of {}.\n\
             Generated by matrix-stack from stack.yaml: changes made here are lost, make them there.\n\
             Each process reads this file and then its own NAME.yaml, whose top-level options replace those here.",
            self.stack.server_name
        );
        RenderedFile { path: SHARED.into(), contents: document(&comment, &self.shared_sections()) }
    }

    fn shared_sections(&self) -> Vec<Section> {
        let mut sections = vec![
            self.server(),
            self.federation(),
            self.secrets(),
            section(
                "The database. Each process names itself to it in its own file.",
                self.database(self.stack.database.pool, None),
            ),
            section(
                "Valkey or Redis, through which the processes tell each other what changed.",
                self.redis(),
            ),
            self.instance_map(),
            self.stream_writers(),
            self.duties(),
            self.media(),
            self.registration(),
            section("Factors on the size of each cache.", json!({ "caches": self.caches() })),
        ];
        sections.extend(crate::mas::synapse_side(self.topology, self.layout));
        if let Some(features) = self.experimental_features() {
            sections.push(section(
                "Features that are not in the specification yet.",
                json!({ "experimental_features": features }),
            ));
        }
        self.pass_through(&mut sections, "Passed through from `synapse.extra`.", &self.stack.synapse.extra);
        sections
    }

    /// The file of a process that is called so: like the instance, unless that is a pool.
    fn instance(&self, instance: &Instance, name: &str) -> RenderedFile {
        let roles: Vec<&str> = instance.roles.iter().map(|role| role.spec().name).collect();
        let heading = format!(
            "Synapse's options for the process `{name}`{}. Its roles: {}.\n\
             Generated by matrix-stack from stack.yaml: changes made here are lost, make them there.",
            if instance.is_pool() { format!(" of the pool `{}`", instance.name) } else { String::new() },
            roles.join(", ")
        );
        RenderedFile {
            path: format!("{}.yaml", instance.name).into(),
            contents: document(&heading, &self.own_sections(instance, name)),
        }
    }

    fn server(&self) -> Section {
        section(
            "The server.",
            json!({
                "server_name": self.stack.server_name.as_str(),
                "public_baseurl": format!("{}/", self.stack.base_url()),
                "report_stats": false,
                "enable_metrics": true,
            }),
        )
    }

    fn federation(&self) -> Section {
        if self.stack.federation.enabled {
            // The key server is Synapse's own default; said here, the warning about relying on the default is moot.
            section(
                "Where the signing keys of other servers are looked up.",
                json!({
                    "trusted_key_servers": [{ "server_name": "matrix.org" }],
                    "suppress_key_server_warning": true,
                }),
            )
        } else {
            section(
                "No traffic with other servers: none is on the list of those allowed.",
                json!({
                    "federation_domain_whitelist": [],
                    "trusted_key_servers": [],
                    "suppress_key_server_warning": true,
                }),
            )
        }
    }

    fn secrets(&self) -> Section {
        let paths = self.layout.secret_paths(self.stack);
        section(
            "Secrets, each in a file of its own.",
            json!({
                "signing_key_path": text(&paths.signing_key.path),
                "macaroon_secret_key_path": text(&paths.macaroon_secret_key.path),
                "form_secret_path": text(&paths.form_secret.path),
                "registration_shared_secret_path": text(&paths.registration_shared_secret.path),
                "worker_replication_secret_path": text(&paths.worker_replication_secret.path),
            }),
        )
    }

    fn database(&self, pool: Pool, process: Option<&str>) -> Value {
        let mut args = Map::new();
        let mut set = |name: &str, value: Value| args.insert(name.to_owned(), value);
        match &self.stack.database.external {
            None => {
                set("host", text(&self.layout.postgres_socket_dir()).into());
                // The port names the socket's file; said here so that no PGPORT in the environment changes it.
                set("port", 5432.into());
                set("user", "synapse".into());
                set("dbname", "synapse".into());
            }
            Some(server) => {
                set("host", server.host.as_str().into());
                set("port", server.port.into());
                set("user", server.user.as_str().into());
                set("dbname", server.database.as_str().into());
                if let Some(sslmode) = &server.sslmode {
                    set("sslmode", sslmode.as_str().into());
                }
                if !server.host.starts_with('/') {
                    // A server that vanished without a word is noticed after 40 s instead of the system's two hours.
                    set("keepalives_idle", 10.into());
                    set("keepalives_interval", 10.into());
                    set("keepalives_count", 3.into());
                }
            }
        }
        set("passfile", text(&self.layout.secret_paths(self.stack).pgpass).into());
        if let Some(process) = process {
            set("application_name", format!("synapse {process}").into());
        }
        set("cp_min", pool.min.into());
        set("cp_max", pool.max.into());
        json!({ "database": { "name": "psycopg2", "args": args } })
    }

    fn redis(&self) -> Value {
        let Some(server) = &self.stack.redis.external else {
            return json!({ "redis": { "enabled": true, "path": text(&self.layout.valkey_socket()) } });
        };
        let mut redis =
            json!({ "enabled": true, "host": server.host, "port": server.port, "dbid": server.dbid });
        if let Some(path) = self.layout.secret_paths(self.stack).redis_password {
            redis["password_path"] = text(&path).into();
        }
        json!({ "redis": redis })
    }

    fn instance_map(&self) -> Section {
        let map: Map<String, Value> = self
            .topology
            .instances()
            .iter()
            .filter(|instance| instance.replication)
            .map(|instance| {
                let place = match &instance.private {
                    Address::Unix { path } => json!({ "path": text(path) }),
                    Address::Tcp { host, port } => json!({ "host": host, "port": port }),
                };
                (instance.name.clone(), place)
            })
            .collect();
        section("Where the processes reach main and the stream writers.", json!({ "instance_map": map }))
    }

    fn stream_writers(&self) -> Section {
        let writers: Map<String, Value> = Stream::ALL
            .into_iter()
            .map(|stream| (stream.name().to_owned(), names(self.topology.writers(stream))))
            .collect();
        section("Which processes write each stream. `master` is main.", json!({ "stream_writers": writers }))
    }

    /// What Synapse's processes do unasked. Each option is always set, to main where nobody carries the role, so that
    /// none falls back to a default that depends on which other options are set.
    fn duties(&self) -> Section {
        let one =
            |role: Role| self.topology.with_role(role).next().unwrap_or(self.topology.main()).writer_name();
        let all = |role: Role| {
            let mut carriers = self.topology.with_role(role).peekable();
            if carriers.peek().is_some() { names(carriers) } else { names([self.topology.main()]) }
        };
        // A media process must do this one wherever there is one: main then has no media repository.
        let (_, media) = self.topology.serving(Role::MediaBackground);
        let media = media.first().copied().unwrap_or(self.topology.main());
        section(
            "Which process does what nobody asks for over HTTP.",
            json!({
                "run_background_tasks_on": one(Role::Background),
                "notify_appservices_from_worker": one(Role::Background),
                "update_user_directory_from_worker": one(Role::UserDir),
                "media_instance_running_background_jobs": media.writer_name(),
                "pusher_instances": all(Role::Pusher),
                "federation_sender_instances": all(Role::FederationSender),
            }),
        )
    }

    fn media(&self) -> Section {
        let media = &self.stack.media;
        let mut options = json!({
            "enable_media_repo": false,
            "media_store_path": text(&self.layout.media(self.stack)),
            "max_upload_size": media.max_upload_size,
            "url_preview_enabled": media.url_previews,
        });
        if media.url_previews {
            options["url_preview_ip_range_blacklist"] = json!(PRIVATE_NETWORKS);
        }
        section("Media. The processes that serve it enable it in their own files.", options)
    }

    fn registration(&self) -> Section {
        let open = self.stack.registration.open;
        let mut options = json!({ "enable_registration": open });
        if open {
            options["enable_registration_without_verification"] = true.into();
        }
        section("Who may create an account.", options)
    }

    /// The stack's caches, with what `synapse.extra.caches` says on top.
    fn caches(&self) -> Value {
        let own = json!({ "global_factor": self.stack.caches.global_factor });
        merged(own, self.stack.synapse.extra.get("caches"))
    }

    /// The experimental features that the roles need, with those of `synapse.extra` on top.
    fn experimental_features(&self) -> Option<Value> {
        let extra = self.stack.synapse.extra.get("experimental_features");
        if self.topology.with_role(Role::ThreadSubscriptions).next().is_some() {
            // Without it, Synapse has no thread subscriptions to write.
            Some(merged(json!({ "msc4306_enabled": true }), extra))
        } else {
            extra.cloned()
        }
    }

    fn own_sections(&self, instance: &Instance, name: &str) -> Vec<Section> {
        let mut process = Map::new();
        // No `log_config`: Synapse then logs at INFO to stderr, which the runtime leads to the process's log file and a
        // container's engine collects, and each process is some MiB smaller.
        let listeners = if instance.is_main() {
            "listeners"
        } else {
            process.insert("worker_app".to_owned(), instance.app.module().into());
            process.insert("worker_name".to_owned(), name.into());
            "worker_listeners"
        };
        if instance.enable_media_repo {
            process.insert("enable_media_repo".to_owned(), true.into());
        }
        let mut sections = vec![
            section("The process.", Value::Object(process)),
            section(listener_title(&self.stack.network), json!({ listeners: self.listeners(instance) })),
            section("The database.", self.database(instance.pool, Some(name))),
        ];
        // Synapse replaces these options whole, so what is shared has to be said again.
        let extra_caches = instance.extra.get("caches");
        if instance.cache_factor.is_some() || extra_caches.is_some() {
            let own = instance.cache_factor.map(|factor| json!({ "global_factor": factor }));
            let caches = merged(merged(self.caches(), own.as_ref()), extra_caches);
            sections.push(section(
                "Factors on the size of each cache of this process.",
                json!({ "caches": caches }),
            ));
        }
        if let Some(extra) = instance.extra.get("experimental_features") {
            let features = merged(self.experimental_features().unwrap_or_else(|| json!({})), Some(extra));
            let title = "Features that are not in the specification yet, for this process.";
            sections.push(section(title, json!({ "experimental_features": features })));
        }
        let title = format!("Passed through from `workers.{}.extra`.", instance.group);
        self.pass_through(&mut sections, &title, &instance.extra);
        sections
    }

    fn listeners(&self, instance: &Instance) -> Vec<Value> {
        let mut private = vec!["health", "metrics"];
        if instance.replication {
            private.push("replication");
        }
        let is_media = instance.app == App::Media;
        if is_media && instance.client.is_none() {
            // Only a process that serves media loads the repository, and only then do its background jobs run.
            private.push("media");
        }
        let client = instance.client.as_ref().map(|address| {
            let resources: &[&str] = match (is_media, self.stack.federation.enabled) {
                // Media of clients and of other servers, and the admin API's media endpoints.
                (true, _) => &["media"],
                (false, true) => &["client", "federation"],
                // Nor `openid`: Synapse answers no such request from outside while it allows no other server.
                (false, false) => &["client"],
            };
            let mut listener = self.listener(address, resources);
            listener["x_forwarded"] = true.into();
            listener["request_id_header"] = REQUEST_ID_HEADER.into();
            listener
        });
        client.into_iter().chain([self.listener(&instance.private, &private)]).collect()
    }

    fn listener(&self, address: &Address, resources: &[&str]) -> Value {
        let resources = json!([{ "names": resources }]);
        match (address, &self.stack.network) {
            (Address::Unix { path }, _) => {
                json!({ "type": "http", "path": text(path), "mode": SOCKET_MODE, "resources": resources })
            }
            // The address is how others reach the host; the process itself listens on all of its addresses.
            (Address::Tcp { port, .. }, Network::Hosts(_)) => {
                json!({ "type": "http", "port": port, "resources": resources })
            }
            (Address::Tcp { host, port }, _) => {
                json!({ "type": "http", "port": port, "bind_addresses": [host], "resources": resources })
            }
        }
    }

    /// Puts the options of a person's own last, in place of ours of the same name. The two that are merged instead
    /// are there already.
    fn pass_through(&self, sections: &mut Vec<Section>, title: &str, extra: &Map<String, Value>) {
        // Federation that is off stays off, whatever list of servers stands in `extra`.
        let fixed = |option: &str| option == "federation_domain_whitelist" && !self.stack.federation.enabled;
        let mut passed = Map::new();
        for (option, value) in extra {
            if option == "caches" || option == "experimental_features" || fixed(option) {
                continue;
            }
            for section in &mut *sections {
                section.entries.shift_remove(option);
            }
            passed.insert(option.clone(), value.clone());
        }
        sections.push(Section { title: title.to_owned(), entries: passed });
    }
}

fn listener_title(network: &Network) -> &'static str {
    match network {
        Network::Unix => "Where it listens. A mode of 384 is 0600: only the owner can connect.",
        Network::Tcp(_) | Network::Hosts(_) => "Where it listens.",
    }
}

pub(crate) fn section(title: &str, entries: Value) -> Section {
    let entries = if let Value::Object(entries) = entries { entries } else { Map::new() };
    Section { title: title.to_owned(), entries }
}

fn names<'a>(instances: impl IntoIterator<Item = &'a Instance>) -> Value {
    instances.into_iter().map(|instance| Value::from(instance.writer_name())).collect()
}

/// `base` with `over` on top: mappings are merged, anything else is replaced.
pub(crate) fn merged(base: Value, over: Option<&Value>) -> Value {
    match (base, over) {
        (base, None) => base,
        (Value::Object(mut base), Some(Value::Object(over))) => {
            for (key, value) in over {
                let below = base.get(key).cloned().unwrap_or(Value::Null);
                base.insert(key.clone(), merged(below, Some(value)));
            }
            Value::Object(base)
        }
        (_, Some(over)) => over.clone(),
    }
}

/// A path as YAML can hold it. Paths come from `stack.yaml`, which is Unicode, so nothing is lost but in a data
/// directory below a home whose name is not.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
