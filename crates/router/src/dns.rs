//! Names of hosts, looked up in the DNS as the system's own resolver would: `/etc/hosts` first, then the servers of
//! `/etc/resolv.conf` with its search list and `ndots`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use domain::base::iana::Rcode;
use domain::base::message::RecordSection;
use domain::base::wire::ParseError;
use domain::base::{Name, ParsedName, ParsedRecord, Rtype};
use domain::rdata::{A, Aaaa, Srv};
use domain::resolv::StubResolver;
use domain::resolv::stub::Answer;
use domain::resolv::stub::conf::{ResolvConf, ServerConf, Transport};
use tokio::time::timeout;

/// How long a question may take in all, with its search list and several servers.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long what `/etc/hosts` says is believed.
const HOSTS_TTL: Duration = Duration::from_secs(30);

/// What is asked about a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Question {
    pub host: String,
    pub port: u16,
    pub sought: Sought,
}

/// What stands behind a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Sought {
    /// One process, with all of the name's addresses.
    One,
    /// A process at each address: the IPv4 addresses, or where there is none the IPv6 addresses, so that a process that
    /// has both is not two.
    Each,
    /// A process at each target of the name's SRV records.
    Targets,
}

/// A process that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its address, or its host and port. The same for whoever asks, whenever.
    pub name: String,
    pub host: String,
    pub port: u16,
    /// In the order in which they are tried.
    pub addresses: Vec<SocketAddr>,
}

/// Processes, always in the same order, and for how long that holds. Empty where the name is not there or has no such records.
pub(crate) type Found = (Vec<Process>, Duration);

/// Asks.
#[derive(Debug)]
pub(crate) struct Resolver {
    stub: StubResolver,
    search: Vec<String>,
    ndots: usize,
}

impl Resolver {
    /// A resolver as the system is configured. If a server is named, that one is asked instead, and names are taken as they
    /// stand.
    pub(crate) fn new(server: Option<SocketAddr>) -> Self {
        let mut conf = match server {
            Some(server) => {
                let mut conf = ResolvConf::new();
                conf.servers.push(ServerConf::new(server, Transport::UdpTcp));
                conf
            }
            None => configuration(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        };
        let search = conf.options.search.as_slice().iter().map(ToString::to_string);
        // The root is what a name that stands for itself ends in.
        let search = search.filter(|suffix| !suffix.trim_matches('.').is_empty()).collect();
        conf.finalize();
        Self { ndots: conf.options.ndots, search, stub: StubResolver::from_conf(conf) }
    }

    /// Finds the processes behind a name.
    ///
    /// The names that it may stand for are tried until one has something. A server that fails for one of them does not keep
    /// the others from being tried, but then nobody knows that there is nothing.
    pub(crate) async fn ask(&self, question: &Question) -> io::Result<Found> {
        let name = match question.sought {
            Sought::Targets => format!("_http._tcp.{}", question.host),
            Sought::One | Sought::Each => question.host.clone(),
        };
        let asked = async {
            let mut failure = None;
            for candidate in candidates(&name, self.ndots, &self.search) {
                // A name that is too long with a suffix is none.
                let Ok(candidate) = candidate.parse() else { continue };
                match self.look(question, &candidate).await {
                    Ok((found, ttl)) if !found.is_empty() => return Ok((found, ttl)),
                    Ok(_) => {}
                    Err(error) => failure = Some(error),
                }
            }
            failure.map_or_else(|| Ok((Vec::new(), Duration::ZERO)), Err)
        };
        match in_hosts_file(&question.host) {
            found if found.is_empty() || question.sought == Sought::Targets => {
                timeout(TIMEOUT, asked).await?
            }
            found => Ok((processes(question, found), HOSTS_TTL)),
        }
    }

    /// Finds the processes behind a name that a question's may stand for.
    async fn look(&self, question: &Question, name: &Name<Vec<u8>>) -> io::Result<Found> {
        if question.sought == Sought::Targets {
            return self.targets(name).await;
        }
        let (addresses, ttl) = self.addresses(name, question.sought == Sought::One).await?;
        Ok((processes(question, addresses), ttl))
    }

    /// A name's addresses, sorted, those of IPv4 first; of both families only if both are wanted.
    async fn addresses(&self, name: &Name<Vec<u8>>, both: bool) -> io::Result<(Vec<IpAddr>, Duration)> {
        let (mut found, mut ttl) = self.records(name, Rtype::A).await?;
        if both || found.is_empty() {
            match self.records(name, Rtype::AAAA).await {
                Ok((six, _)) if six.is_empty() => {}
                Ok((six, six_ttl)) => {
                    ttl = if found.is_empty() { six_ttl } else { ttl.min(six_ttl) };
                    found.extend(six);
                }
                // Servers that know nothing of IPv6 shall not keep a process of IPv4 from being reached.
                Err(_) if !found.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        Ok((found, ttl))
    }

    /// A name's addresses of one family, sorted.
    async fn records(&self, name: &Name<Vec<u8>>, kind: Rtype) -> io::Result<(Vec<IpAddr>, Duration)> {
        let answer = self.query(name, kind).await?;
        let mut found = addresses_in(answer.answer().map_err(broken)?);
        found.sort_unstable_by_key(|(_, ip, _)| *ip);
        found.dedup_by_key(|(_, ip, _)| *ip);
        let ttl = found.iter().map(|(.., ttl)| *ttl).min().unwrap_or_default();
        Ok((found.into_iter().map(|(_, ip, _)| ip).collect(), ttl))
    }

    /// The targets of a name's SRV records, of those with the lowest priority.
    async fn targets(&self, name: &Name<Vec<u8>>) -> io::Result<Found> {
        let answer = self.query(name, Rtype::SRV).await?;
        let mut ttl = Duration::MAX;
        let mut services = Vec::new();
        for record in answer.answer().map_err(broken)?.limit_to_in::<Srv<ParsedName<_>>>().flatten() {
            ttl = ttl.min(record.ttl().into_duration());
            let srv = record.data();
            services.push((srv.priority(), plain(&srv.target().to_string()), srv.port()));
        }
        let lowest = services.iter().map(|(priority, ..)| *priority).min();
        // A target that is the root means that there is no such service.
        services.retain(|(priority, target, _)| Some(*priority) == lowest && !target.is_empty());
        services.sort_unstable();
        services.dedup();
        // The server usually sends the targets' addresses along.
        let sent = answer.additional().map(addresses_in).unwrap_or_default();
        let mut found = Vec::new();
        for (_, target, port) in services {
            let sent = sent.iter().filter(|(owner, ..)| *owner == target);
            let (mut addresses, mut least): (Vec<IpAddr>, _) =
                (sent.clone().map(|(_, ip, _)| *ip).collect(), sent.map(|(.., ttl)| *ttl).min());
            if addresses.is_empty()
                && let Ok(name) = format!("{target}.").parse()
            {
                let (asked, asked_ttl) = self.addresses(&name, true).await?;
                (addresses, least) = (asked, Some(asked_ttl));
            }
            if addresses.is_empty() {
                continue;
            }
            addresses.sort_unstable();
            ttl = least.map_or(ttl, |least| ttl.min(least));
            let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
            found.push(Process { name: format!("{target}:{port}"), host: target, port, addresses });
        }
        Ok((found, ttl))
    }

    async fn query(&self, name: &Name<Vec<u8>>, kind: Rtype) -> io::Result<Answer> {
        let answer = self.stub.query((name, kind)).await?;
        match answer.header().rcode() {
            Rcode::NOERROR | Rcode::NXDOMAIN => Ok(answer),
            code => Err(io::Error::other(format!("the server answers {code} for {name}"))),
        }
    }
}

fn broken(error: ParseError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server's answer is broken: {error}"))
}

/// The owners' names, addresses and times to live in some records.
fn addresses_in(section: RecordSection<'_, Bytes>) -> Vec<(String, IpAddr, Duration)> {
    let address = |record: ParsedRecord<'_, Bytes>| {
        let ip = match record.rtype() {
            Rtype::A => record.to_record::<A>().ok()??.data().addr().into(),
            Rtype::AAAA => record.to_record::<Aaaa>().ok()??.data().addr().into(),
            _ => return None,
        };
        Some((plain(&record.owner().to_string()), ip, record.ttl().into_duration()))
    };
    section.flatten().filter_map(address).collect()
}

/// A name in lower case and without the dot at its end, so that the same one is always written the same.
fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// What `resolv.conf(5)` says. A line that cannot be understood is as if it were not there.
fn configuration(text: &str) -> ResolvConf {
    let mut conf = ResolvConf::new();
    for line in text.lines() {
        let _ = conf.parse(&mut line.as_bytes());
    }
    conf
}

/// The names that a name may stand for, in the order in which they are tried.
fn candidates(name: &str, ndots: usize, search: &[String]) -> Vec<String> {
    let itself = format!("{}.", name.trim_end_matches('.'));
    if name.ends_with('.') {
        return vec![itself];
    }
    let suffixed = search.iter().map(|suffix| format!("{name}.{}.", suffix.trim_end_matches('.')));
    if name.bytes().filter(|b| *b == b'.').count() >= ndots {
        std::iter::once(itself).chain(suffixed).collect()
    } else {
        suffixed.chain([itself]).collect()
    }
}

/// The processes at a name's sorted addresses.
fn processes(question: &Question, mut addresses: Vec<IpAddr>) -> Vec<Process> {
    let Question { host, port, sought } = question;
    if *sought == Sought::Each {
        if addresses.first().is_some_and(IpAddr::is_ipv4) {
            addresses.retain(IpAddr::is_ipv4);
        }
        let process = |ip: IpAddr| Process {
            name: ip.to_string(),
            host: ip.to_string(),
            port: *port,
            addresses: vec![SocketAddr::new(ip, *port)],
        };
        return addresses.into_iter().map(process).collect();
    }
    if addresses.is_empty() {
        return Vec::new();
    }
    let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, *port)).collect();
    vec![Process { name: host.clone(), host: host.clone(), port: *port, addresses }]
}

fn in_hosts_file(name: &str) -> Vec<IpAddr> {
    in_hosts(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), name)
}

/// The addresses that `hosts(5)` has for a name, sorted.
fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let ip = words.next()?.parse().ok()?;
            words.any(|word| plain(word) == plain(name)).then_some(ip)
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_searched_for_as_the_system_does() {
        let search = ["ns.svc.cluster.local".to_owned(), "svc.cluster.local.".to_owned()];
        assert_eq!(
            candidates("synapse-sync", 5, &search),
            ["synapse-sync.ns.svc.cluster.local.", "synapse-sync.svc.cluster.local.", "synapse-sync."]
        );
        assert_eq!(candidates("a.example", 1, &search)[0], "a.example.");
        assert_eq!(candidates("a.example", 1, &search).len(), 3);
        assert_eq!(candidates("a.example.", 5, &search), ["a.example."]);
        assert_eq!(candidates("a", 5, &[]), ["a."]);
    }

    #[test]
    fn what_the_system_says_is_read_as_far_as_it_can_be() {
        let text = "# a comment\nnameserver\nnameserver 10.96.0.10\nnonsense\n\
                    search ns.svc.cluster.local svc.cluster.local cluster.local\noptions edns0 trust-ad ndots:5\n";
        let conf = configuration(text);
        let servers: Vec<_> = conf.servers.iter().map(|server| server.addr.to_string()).collect();
        assert_eq!(servers, ["10.96.0.10:53"]);
        assert_eq!(conf.options.ndots, 5);
        // The root is put behind the list.
        assert_eq!(conf.options.search.len(), 4);
    }

    #[test]
    fn hosts_have_addresses_of_either_family() {
        let text = "127.0.0.1 localhost\n::1 localhost ip6-localhost # both\n#1.2.3.4 gone\n10.0.0.2\tDB.example db\n10.0.0.1 db";
        let ips = |name: &str| in_hosts(text, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(ips("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(ips("db"), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips("db.example."), ["10.0.0.2"]);
        assert!(ips("gone").is_empty());
        let asked = |sought| {
            let question = Question { host: "localhost".to_owned(), port: 80, sought };
            let found = processes(&question, in_hosts(text, "localhost"));
            found.into_iter().map(|process| (process.name, process.addresses.len())).collect::<Vec<_>>()
        };
        assert_eq!(asked(Sought::One), [("localhost".to_owned(), 2)]);
        assert_eq!(asked(Sought::Each), [("127.0.0.1".to_owned(), 1)]);
    }
}
