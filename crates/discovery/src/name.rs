//! Names of servers, taken apart.

use std::net::IpAddr;

use model::ServerName;

/// A server name's parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    /// The whole, in lower case: what stands in a `Host` header.
    pub text: String,
    pub host: Host,
    pub port: Option<u16>,
}

/// What stands before the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Ip(IpAddr),
    Dns(String),
}

impl Name {
    /// Parses a server name by the grammar of the specification ("Server Name" in the appendices).
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let name = ServerName::try_from(text.to_ascii_lowercase()).map_err(|error| error.to_string())?;
        let text = name.as_str();
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (text, None),
        };
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse();
        let host = ip.map_or_else(|_| Host::Dns(host.to_owned()), Host::Ip);
        if let Host::Dns(host) = &host
            && !is_dns_name(host)
        {
            return Err(format!("`{text}` is neither an address nor a name that the DNS can have"));
        }
        let port = port.map(|port| port.parse().map_err(|_| format!("`{text}` has no port after its colon")));
        Ok(Self { text: text.to_owned(), host, port: port.transpose()? })
    }

    /// The host as text: what a certificate names.
    pub(crate) fn host(&self) -> String {
        match &self.host {
            Host::Ip(ip) => ip.to_string(),
            Host::Dns(host) => host.clone(),
        }
    }
}

/// Labels of 1 to 63 letters, digits and hyphens, of which the last is no number: `127.1` is an address to some and a name to others.
fn is_dns_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let good =
        |label: &str| (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-');
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= 253
        && host.split('.').all(good)
        && !last.bytes().all(|b| b.is_ascii_digit())
        && !last.starts_with("0x")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_host_and_perhaps_a_port() {
        let parts = |text: &str| Name::parse(text).map(|name| (name.host(), name.port)).map_err(drop);
        assert_eq!(parts("example.org"), Ok(("example.org".into(), None)));
        assert_eq!(parts("Example.org:8448"), Ok(("example.org".into(), Some(8448))));
        assert_eq!(parts("1.2.3.4"), Ok(("1.2.3.4".into(), None)));
        assert_eq!(parts("[::1]:80"), Ok(("::1".into(), Some(80))));
        assert_eq!(parts("[2001:db8::1]"), Ok(("2001:db8::1".into(), None)));
        for bad in [
            "",
            ":",
            "a b",
            "a..b",
            "-a.org",
            "example.org:",
            "example.org:99999",
            "127.1",
            "0x7f000001",
            "a/b",
            "a@b",
            "2130706433",
        ] {
            assert_eq!(parts(bad), Err(()), "{bad}");
        }
        assert_eq!(parts(&"a".repeat(64)), Err(()));
    }
}
