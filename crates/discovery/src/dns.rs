//! Names, looked up.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use domain::base::iana::Rcode;
use domain::base::{Name, ParsedName, Rtype};
use domain::rdata::{A, Aaaa, Srv};
use domain::resolv::StubResolver;
use domain::resolv::stub::Answer;
use domain::resolv::stub::conf::{ResolvConf, ServerConf, Transport};
use tokio::net::lookup_host;
use tokio::time::timeout;

/// How long one question may take, with all servers that are asked.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How many targets and addresses of a name are of interest.
const MOST: usize = 16;

/// Asks. Addresses come from the system, which knows `/etc/hosts` and more; only of services does it know nothing.
#[derive(Debug)]
pub(crate) struct Resolver {
    stub: StubResolver,
    own: bool,
}

/// One target of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub priority: u16,
    pub weight: u16,
    pub target: String,
    pub port: u16,
}

impl Resolver {
    /// A resolver as the system is configured, or one that asks this server alone.
    pub(crate) fn new(server: Option<SocketAddr>) -> Self {
        let mut conf = ResolvConf::new();
        match server {
            Some(server) => conf.servers.push(ServerConf::new(server, Transport::UdpTcp)),
            None => {
                // A line that cannot be understood is as if it were not there.
                for line in std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default().lines() {
                    let _ = conf.parse(&mut line.as_bytes());
                }
            }
        }
        conf.finalize();
        Self { stub: StubResolver::from_conf(conf), own: server.is_some() }
    }

    /// The addresses of a name, at least one.
    pub(crate) async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(vec![ip]);
        }
        let asked = async {
            if !self.own {
                let found = lookup_host((host, 0)).await.map_err(|error| error.to_string())?;
                return Ok(found.map(|address| address.ip()).collect());
            }
            let (four, six) = (self.query(host, Rtype::A).await, self.query(host, Rtype::AAAA).await);
            let mut found = Vec::new();
            for answer in [&four, &six].into_iter().flatten() {
                let section = answer.answer().map_err(|error| error.to_string())?;
                found.extend(
                    section.limit_to_in::<A>().flatten().map(|record| IpAddr::from(record.data().addr())),
                );
                let section = answer.answer().map_err(|error| error.to_string())?;
                found.extend(
                    section.limit_to_in::<Aaaa>().flatten().map(|record| IpAddr::from(record.data().addr())),
                );
            }
            if found.is_empty() { four.and(six).map(|_| found) } else { Ok(found) }
        };
        let mut found: Vec<IpAddr> =
            timeout(TIMEOUT, asked).await.map_err(|_| late())?.map_err(|error| format!("{host}: {error}"))?;
        if found.is_empty() {
            return Err(format!("{host} has no address"));
        }
        let mut seen = Vec::new();
        found.retain(|ip| {
            !seen.contains(ip) && {
                seen.push(*ip);
                true
            }
        });
        found.truncate(MOST);
        Ok(found)
    }

    /// The targets of a service, in the order in which they are to be tried, and for how long that holds. Empty where there is
    /// none, and where the only target is the root, which says that there shall be none.
    pub(crate) async fn services(&self, name: &str) -> Result<(Vec<Service>, Duration), String> {
        let answer = timeout(TIMEOUT, self.query(name, Rtype::SRV)).await.map_err(|_| late())??;
        let mut ttl = Duration::MAX;
        let mut services = Vec::new();
        let section = answer.answer().map_err(|error| error.to_string())?;
        for record in section.limit_to_in::<Srv<ParsedName<_>>>().flatten() {
            ttl = ttl.min(record.ttl().into_duration());
            let srv = record.data();
            let target = srv.target().to_string().trim_end_matches('.').to_ascii_lowercase();
            services.push(Service {
                priority: srv.priority(),
                weight: srv.weight(),
                target,
                port: srv.port(),
            });
        }
        services.retain(|service| !service.target.is_empty());
        let mut services = order(services, |below| {
            let mut bytes = [0; 4];
            // Without randomness, the heaviest is first more often than it should.
            let _ = getrandom::fill(&mut bytes);
            u32::from_le_bytes(bytes) % below.max(1)
        });
        services.truncate(MOST);
        Ok((services, ttl))
    }

    async fn query(&self, name: &str, kind: Rtype) -> Result<Answer, String> {
        let name: Name<Vec<u8>> = format!("{}.", name.trim_end_matches('.'))
            .parse()
            .map_err(|_| format!("{name} is no name of the DNS"))?;
        let answer = self.stub.query((&name, kind)).await.map_err(|error| error.to_string())?;
        match answer.header().rcode() {
            Rcode::NOERROR | Rcode::NXDOMAIN => Ok(answer),
            code => Err(format!("the DNS answers {code} for {name}")),
        }
    }
}

fn late() -> String {
    format!("the DNS does not answer within {} s", TIMEOUT.as_secs())
}

/// Targets by priority, and those of the same priority at random by weight (RFC 2782).
fn order(mut services: Vec<Service>, mut random: impl FnMut(u32) -> u32) -> Vec<Service> {
    services.sort_by_key(|service| (service.priority, service.weight, service.target.clone(), service.port));
    services.dedup();
    let mut ordered = Vec::with_capacity(services.len());
    while let Some(priority) = services.first().map(|service| service.priority) {
        let same = services.iter().take_while(|service| service.priority == priority);
        let sum: u32 = same.map(|service| u32::from(service.weight)).sum();
        let mut left = random(sum + 1);
        let same = services.iter().take_while(|service| service.priority == priority);
        let chosen = same.take_while(|service| {
            let goes_on = left > u32::from(service.weight);
            left = left.saturating_sub(u32::from(service.weight));
            goes_on
        });
        let chosen = chosen.count();
        ordered.push(services.remove(chosen));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(priority: u16, weight: u16, target: &str) -> Service {
        Service { priority, weight, target: target.to_owned(), port: 1 }
    }

    #[test]
    fn targets_are_tried_by_priority_and_weight() {
        let services = vec![service(2, 0, "d"), service(1, 10, "a"), service(1, 90, "b"), service(1, 0, "c")];
        let names = |random: fn(u32) -> u32| {
            order(services.clone(), random).into_iter().map(|service| service.target).collect::<String>()
        };
        assert_eq!(names(|_| 0), "cabd");
        assert_eq!(names(|below| below - 1), "bacd");
        assert_eq!(names(|below| below.min(11) - 1), "abcd");
    }
}
