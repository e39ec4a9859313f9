//! Instances that are reached by names, with a real DNS server whose records change.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use model::{Address, Hosts, Lookup, Network, Pools, Postgres, RedisServer, Role, Stack};
use router::InstanceState;
use tokio::sync::Semaphore;

use crate::lab::{Behaviour, Client, Lab, answer, get, quick, stack, with_token};

const SYNC: &str = "/_matrix/client/v3/sync?since=s";

/// Knot DNS on a port of the loopback interface, with one zone: `test`. All records live for a second.
struct Dns {
    dir: tempfile::TempDir,
    address: SocketAddr,
    server: Option<Child>,
    serial: AtomicU32,
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where Debian puts what is for administrators is not in everybody's path.
fn program(name: &str) -> Command {
    let path = Path::new("/usr/sbin").join(name);
    Command::new(if path.exists() { path } else { name.into() })
}

impl Dns {
    /// The server with these records (`NAME TYPE DATA`), or nothing where it is not installed.
    fn start(test: &str, records: &[&str]) -> Option<Self> {
        if program("knotd").arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("SKIPPED {test}: knotd (Debian's package `knot`) is not installed");
            return None;
        }
        // Another program may take the port before the server has it.
        for _ in 0..5 {
            // It listens for both.
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = tcp.local_addr().unwrap();
            if UdpSocket::bind(address).is_err() {
                continue;
            }
            drop(tcp);
            let dir = tempfile::tempdir().unwrap();
            let mut dns = Self { dir, address, server: None, serial: AtomicU32::new(0) };
            dns.write(records);
            if dns.run() {
                return Some(dns);
            }
        }
        panic!("knotd does not start; see what it says above");
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, records: &[&str]) {
        let serial = self.serial.fetch_add(1, Ordering::SeqCst) + 1;
        let mut zone =
            format!("$ORIGIN test.\n$TTL 1\n@ SOA ns admin {serial} 60 60 60 1\n@ NS ns\nns A 127.0.0.1\n");
        for record in records {
            zone = zone + record + "\n";
        }
        std::fs::write(self.path("zone"), zone).unwrap();
    }

    fn run(&mut self) -> bool {
        let dir = self.path("");
        let configuration = format!(
            "server:\n    rundir: {dir}\n    listen: 127.0.0.1@{port}\n    udp-workers: 1\n    tcp-workers: 1\n    \
             background-workers: 1\ncontrol:\n    listen: {dir}/control\ndatabase:\n    storage: {dir}\nlog:\n  - \
             target: stderr\n    any: error\nzone:\n  - domain: test\n    storage: {dir}\n    file: zone\n    \
             journal-content: none\n    zonefile-sync: -1\n",
            port = self.address.port()
        );
        std::fs::write(self.path("conf"), configuration).unwrap();
        self.server = Some(program("knotd").args(["-c", &self.path("conf")]).spawn().unwrap());
        for _ in 0..500 {
            std::thread::sleep(Duration::from_millis(10));
            if self.server.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            if self.control("zone-status") {
                return true;
            }
        }
        false
    }

    fn control(&self, command: &str) -> bool {
        let mut knotc = program("knotc");
        knotc.args(["-s", &self.path("control"), "-b", command, "test"]);
        knotc.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }

    /// Puts these records in place of those that are there.
    fn set(&self, records: &[&str]) {
        self.write(records);
        assert!(self.control("zone-reload"), "the zone is reloaded");
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }
}

/// Main, and a pool that syncs, on hosts of their own: `synapse-main.test` and `synapse-sync.test`.
fn on_hosts(port: u16, lookup: Lookup) -> Stack {
    let mut stack = stack(&[("sync", &[Role::Sync], 2)]);
    let suffix = || ".test".to_owned();
    let pools = Some(Pools { suffix: suffix(), lookup });
    let hosts = Hosts { suffix: suffix(), http_port: port, pools, ..Hosts::default() };
    stack.network = Network::Hosts(hosts);
    let host = || "db".to_owned();
    let database = Postgres { host: host(), port: 1, user: host(), database: host(), sslmode: None };
    stack.database.external = Some(database);
    stack.redis.external = Some(RedisServer { host: host(), port: 1, dbid: 0 });
    stack
}

fn at(last: u8, port: u16) -> SocketAddr {
    (Ipv4Addr::new(127, 0, 53, last), port).into()
}

fn name(last: u8) -> String {
    format!("sync@127.0.53.{last}")
}

/// A port that is free on all of the addresses that a test uses, as far as anybody can tell.
fn free_port() -> u16 {
    let free = |port: &u16| (1..=9).all(|last| TcpListener::bind(at(last, *port)).is_ok());
    let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::iter::repeat_with(port).take(100).find(free).expect("a free port")
}

impl Lab {
    async fn on_hosts(dns: &Dns, port: u16, lookup: Lookup) -> Self {
        let lab = Self::with_dns(on_hosts(port, lookup), quick(), Some(dns.address)).await;
        assert!(lab.router.resolved(Duration::from_secs(10)).await, "the names are looked up");
        lab
    }

    /// The processes of the pool.
    fn members(&self) -> Vec<String> {
        let instances = self.router.stats().instances;
        instances.into_iter().map(|instance| instance.name).filter(|name| name.contains('@')).collect()
    }

    /// Waits until the pool has just these processes, and all of them take requests.
    async fn until_members(&self, expected: &[String]) {
        until_late("the pool's processes are known, and well", || {
            let up = |name: &String| self.state(name) == InstanceState::Up;
            self.members() == expected && expected.iter().all(up)
        })
        .await;
    }

    /// Which process each of many users' syncs would go to now.
    fn owners(&self) -> Vec<String> {
        let owner = |user: u32| {
            let token = token(user);
            let head = format!("GET {SYNC} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\r\n");
            let head = self.router.read_head(&Bytes::from(head)).unwrap();
            self.router.decide(&head).unwrap().2.to_string()
        };
        (0..KEYS).map(owner).collect()
    }

    fn lookups(&self, host: &str, result: &str) -> f64 {
        let labels = format!("{{name=\"{host}\",result=\"{result}\"}}");
        self.metric(&format!("matrix_stack_router_dns_lookups_total{labels}"))
    }
}

const KEYS: u32 = 5000;

/// A token of a user's, of Synapse's own kind.
fn token(user: u32) -> String {
    format!("syt_{}_x_y", STANDARD_NO_PAD.encode(user.to_string()))
}

/// Waits for what the DNS takes a few seconds for.
async fn until_late(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came true that {what}");
}

/// Clients that sync without a pause until they are told to stop; then how many requests they made.
struct Crowd {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<u32>>,
}

impl Crowd {
    fn gather(lab: &Lab) -> Self {
        let (address, stop) = (lab.address, Arc::new(AtomicBool::new(false)));
        let clients = (0..4)
            .map(|n| {
                let stop = stop.clone();
                tokio::spawn(async move {
                    let (mut client, mut count) = (Client::connect(address).await, 0);
                    while !stop.load(Ordering::Relaxed) {
                        let token = token(n * 1_000_000 + count);
                        let reply = client.send(with_token(SYNC, &token)).await;
                        assert!(reply.instance().starts_with("sync@"), "{reply:?}");
                        count += 1;
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    count
                })
            })
            .collect();
        Self { stop, clients }
    }

    async fn disperse(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            assert!(client.await.unwrap() > 0);
        }
    }
}

#[tokio::test]
async fn a_pool_grows_and_shrinks_without_a_failed_request() {
    let main = "synapse-main A 127.0.53.1";
    let [two, three, four] = [2, 3, 4].map(|last| format!("synapse-sync A 127.0.53.{last}"));
    let Some(dns) = Dns::start("a_pool_grows_and_shrinks", &[main, &three, &two]) else { return };
    let port = free_port();
    let lab = Lab::on_hosts(&dns, port, Lookup::Address).await;
    lab.run_at("main", at(1, port), Behaviour::Echo).await;
    for last in [2, 3] {
        lab.run_at(&name(last), at(last, port), Behaviour::Echo).await;
    }
    lab.until_members(&[name(2), name(3)]).await;
    until_late("all can be served", || lab.router.ready() == Ok(())).await;
    assert!(lab.metric("matrix_stack_router_pool_members{pool=\"sync\"}") >= 2.0);
    // A user stays with one process, another goes to the other.
    let before = lab.owners();
    assert!(before.contains(&name(2)) && before.contains(&name(3)));
    let crowd = Crowd::gather(&lab);

    // The third one can be held up, to see its requests end after it was taken out of the DNS.
    let (gate, held) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (opened, counted) = (gate.clone(), held.clone());
    let third = answer(move |request| {
        let (opened, counted) = (opened.clone(), counted.clone());
        async move {
            if request.uri().query().is_some_and(|query| query.contains("hold")) {
                counted.fetch_add(1, Ordering::SeqCst);
                opened.acquire().await.unwrap().forget();
            }
            Response::new(Full::from(r#"{"instance": "sync@127.0.53.4"}"#))
        }
    });
    lab.run_at(&name(4), at(4, port), third).await;
    dns.set(&[main, &two, &three, &four]);
    lab.until_members(&[name(2), name(3), name(4)]).await;
    let after = lab.owners();
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
    assert!(moved.clone().all(|(_, after)| *after == name(4)), "a key moved between processes that stayed");
    let (moved, keys) = (u32::try_from(moved.count()).unwrap(), KEYS);
    assert!(moved > 0 && moved * 10 <= keys / 3 * 12, "{moved} of {keys} keys moved");
    until_late("the third takes its share", || lab.seen(&name(4)) > 20).await;

    let user = (0..KEYS).find(|user| after[*user as usize] == name(4)).unwrap();
    let address = lab.address;
    let poll = with_token(&format!("{SYNC}&hold=1"), &token(user));
    let poll = tokio::spawn(async move { Client::connect(address).await.send(poll).await });
    until_late("the poll is held", || held.load(Ordering::SeqCst) == 1).await;
    dns.set(&[main, &two, &three]);
    lab.until_members(&[name(2), name(3)]).await;
    assert_eq!(lab.owners(), before);
    let seen = lab.seen(&name(4));
    for user in 0..50 {
        assert_ne!(lab.send(with_token(SYNC, &token(user))).await.instance(), name(4));
    }
    assert!(lab.seen(&name(4)) <= seen + 4, "no more than what was on its way");
    assert!(!poll.is_finished());
    gate.add_permits(1);
    assert_eq!(poll.await.unwrap().status, StatusCode::OK);
    lab.stop_at(&name(4));
    crowd.disperse().await;
}

#[tokio::test]
async fn srv_records_have_ports_and_priorities() {
    let port = free_port();
    let srv = |priority: u8, port: u16, target: &str| {
        format!("_http._tcp.synapse-sync SRV {priority} 10 {port} {target}")
    };
    let hosts = ["synapse-main A 127.0.53.1", "pod-a A 127.0.53.2", "pod-b A 127.0.53.3", "pod-b AAAA ::1"];
    let ports = [port, free_port()];
    let records = [srv(0, ports[0], "pod-a"), srv(0, ports[1], "Pod-B"), srv(5, 1, "pod-c.test.")];
    let all = || hosts.iter().copied().chain(records.iter().map(String::as_str)).collect::<Vec<_>>();
    let Some(dns) = Dns::start("srv_records_have_ports_and_priorities", &all()) else { return };
    let lab = Lab::on_hosts(&dns, port, Lookup::Srv).await;
    let names = [format!("sync@pod-a.test:{}", ports[0]), format!("sync@pod-b.test:{}", ports[1])];
    lab.run_at(&names[0], at(2, ports[0]), Behaviour::Echo).await;
    lab.run_at(&names[1], at(3, ports[1]), Behaviour::Echo).await;
    lab.until_members(&names).await;
    let mut seen = std::collections::BTreeSet::new();
    for user in 0..40 {
        seen.insert(lab.send(with_token(SYNC, &token(user))).await.instance());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), names);

    // A target that gets another address is the same process.
    let before = lab.owners();
    lab.run_at("moved", at(5, ports[0]), Behaviour::Echo).await;
    let mut moved = all();
    moved[1] = "pod-a A 127.0.53.5";
    dns.set(&moved);
    let user = (0..KEYS).find(|user| before[*user as usize] == names[0]).unwrap();
    for _ in 0..500 {
        let at = lab.send(with_token(SYNC, &token(user))).await.instance();
        if at == "moved" {
            break;
        }
        assert_eq!(at, names[0]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(lab.send(with_token(SYNC, &token(user))).await.instance(), "moved");
    assert_eq!(lab.owners(), before);
}

#[tokio::test]
async fn what_is_known_stays_while_no_server_answers() {
    let two = ["synapse-main A 127.0.53.1", "synapse-sync A 127.0.53.2"];
    let Some(mut dns) = Dns::start("what_is_known_stays", &two) else { return };
    let port = free_port();
    let lab = Lab::on_hosts(&dns, port, Lookup::Address).await;
    for last in [2, 3] {
        lab.run_at(&name(last), at(last, port), Behaviour::Echo).await;
    }
    lab.until_members(&[name(2)]).await;
    dns.stop();
    until_late("it was tried in vain", || lab.lookups("synapse-sync.test", "failed") >= 1.0).await;
    assert_eq!(lab.members(), [name(2)]);
    assert_eq!(lab.get(SYNC).await.instance(), name(2));
    dns.write(&["synapse-sync A 127.0.53.3"]);
    assert!(dns.run(), "it starts again");
    lab.until_members(&[name(3)]).await;
    assert_eq!(lab.get(SYNC).await.instance(), name(3));
}

#[tokio::test]
async fn nobody_is_believed_when_seen_twice_and_others_stand_in() {
    let main = "synapse-main A 127.0.53.1";
    let Some(dns) = Dns::start("nobody_is_believed", &[main, "synapse-sync A 127.0.53.2"]) else { return };
    let port = free_port();
    let lab = Lab::on_hosts(&dns, port, Lookup::Address).await;
    lab.run_at("main", at(1, port), Behaviour::Echo).await;
    lab.run_at(&name(2), at(2, port), Behaviour::Echo).await;
    lab.until_members(&[name(2)]).await;
    dns.set(&[main]);
    let empty = || lab.lookups("synapse-sync.test", "empty");
    until_late("it was seen once", || empty() >= 1.0).await;
    assert!(empty() > 1.0 || lab.members() == [name(2)], "once is not enough");
    lab.until_members(&[]).await;
    assert!(empty() >= 2.0);
    assert_eq!(lab.get(SYNC).await.instance(), "main");
    until_late("all can be served", || lab.router.ready() == Ok(())).await;
    dns.set(&[main, "synapse-sync A 127.0.53.2"]);
    lab.until_members(&[name(2)]).await;
    assert_eq!(lab.get(SYNC).await.instance(), name(2));
}

#[tokio::test]
async fn a_host_moves_and_may_have_several_addresses() {
    let Some(dns) = Dns::start("a_host_moves", &["synapse-main A 127.0.53.1"]) else { return };
    let port = free_port();
    let lab = Lab::on_hosts(&dns, port, Lookup::Address).await;
    let ask = || get("/_matrix/client/v3/unheard/of");
    lab.run_at("old", at(1, port), Behaviour::Echo).await;
    let mut client = lab.connect().await;
    assert_eq!(client.send(ask()).await.instance(), "old");
    // At the first there is nobody.
    lab.run_at("new", at(8, port), Behaviour::Echo).await;
    dns.set(&["synapse-main A 127.0.53.7", "synapse-main A 127.0.53.8", "synapse-main AAAA 2001:db8::1"]);
    let mut at = String::new();
    for _ in 0..500 {
        // The old one runs on, so none fails meanwhile.
        at = client.send(ask()).await.instance();
        if at == "new" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(at, "new");
    let stats = lab.router.stats().instances;
    let host = "synapse-main.test".to_owned();
    assert_eq!((&*stats[0].name, &stats[0].address), ("main", &Address::Tcp { host, port }));
}

#[tokio::test]
async fn a_process_with_addresses_of_both_families_is_one() {
    let both = ["synapse-sync A 127.0.53.2", "synapse-sync AAAA ::1", "synapse-main A 127.0.53.1"];
    let Some(dns) = Dns::start("both_families", &both) else { return };
    let lab = Lab::on_hosts(&dns, free_port(), Lookup::Address).await;
    assert_eq!(lab.members(), [name(2)]);
    dns.set(&both[1..]);
    until_late("it is known by its other address", || lab.members() == ["sync@::1"]).await;
}

#[tokio::test]
async fn a_pool_may_be_larger_than_a_datagram() {
    // An address takes 16 bytes, and no answer over UDP more than 1232.
    let records: Vec<_> = (1..=100).map(|last| format!("synapse-sync A 127.0.54.{last}")).collect();
    let records: Vec<_> = records.iter().map(String::as_str).collect();
    let Some(dns) = Dns::start("a_pool_may_be_larger_than_a_datagram", &records) else { return };
    let lab = Lab::on_hosts(&dns, free_port(), Lookup::Address).await;
    assert_eq!(lab.members().len(), 100);
}

#[tokio::test]
async fn a_reload_keeps_what_is_known_of_names() {
    let records = ["synapse-main A 127.0.53.1", "synapse-sync A 127.0.53.2", "synapse-sync A 127.0.53.3"];
    let Some(dns) = Dns::start("a_reload_keeps", &records) else { return };
    let port = free_port();
    let lab = Lab::on_hosts(&dns, port, Lookup::Address).await;
    for last in [2, 3] {
        lab.run_at(&name(last), at(last, port), Behaviour::Echo).await;
    }
    for user in 0..20 {
        assert_eq!(lab.send(with_token(SYNC, &token(user))).await.status, StatusCode::OK);
    }
    let requests = || lab.router.stats().instances.iter().map(|instance| instance.requests).sum::<u64>();
    assert!(requests() >= 20);
    let snapshot = router::Snapshot::new(&lab.topology, quick()).unwrap();
    lab.router.reload(snapshot);
    assert_eq!(lab.members(), [name(2), name(3)]);
    assert!(requests() >= 20, "they are the same as before");
}
