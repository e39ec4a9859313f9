//! The PROXY protocol, versions 1 and 2: with what a load balancer says, at the start of a connection, whose it is.
//!
//! What is read is what the specification allows ("The PROXY protocol", Willy Tarreau, sections 2.1 and 2.2), and nothing
//! else: whoever got here without a load balancer must not be able to speak for one by accident.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// The longest header that is taken, with all that follows its addresses, in bytes.
const LONGEST: usize = 4096;

/// The longest header of version 1, in bytes (section 2.1).
const LONGEST_V1: usize = 107;

const V1: &[u8] = b"PROXY ";

/// What a header of version 2 begins with.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The length of what every header of version 2 has.
const FIXED: usize = 16;

/// The bytes are no header, or a longer one than is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Malformed;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// A part of a header, all of them.
    Part,
    /// A header of this length, and whose the connection is; none where it is the sender's own.
    Whole(usize, Option<IpAddr>),
}

/// Why a connection does not say whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It does not begin with a header.
    Malformed,
    /// It ended before that.
    Gone,
}

/// Takes the header from a connection, and nothing that follows it. Whose the connection is: `peer`'s, unless it says
/// somebody else's.
pub async fn take(socket: &impl Introduces, peer: Option<IpAddr>) -> Result<Option<IpAddr>, Refused> {
    let mut buf = vec![0; LONGEST];
    let mut taken = 0;
    loop {
        // What is not known to be the header's is looked at only.
        let length = socket.receive(&mut buf[taken..], RecvFlags::PEEK).await.map_err(|_| Refused::Gone)?;
        let seen = match parse(&buf[..taken + length]) {
            _ if length == 0 && taken == 0 => return Err(Refused::Gone),
            _ if length == 0 => return Err(Refused::Malformed),
            Ok(seen) => seen,
            Err(Malformed) => return Err(Refused::Malformed),
        };
        let end = if let Seen::Whole(end, _) = seen { end } else { taken + length };
        while taken < end {
            match socket.receive(&mut buf[taken..end], RecvFlags::empty()).await {
                Ok(length) if length > 0 => taken += length,
                _ => return Err(Refused::Gone),
            }
        }
        if let Seen::Whole(_, source) = seen {
            return Ok(source.or(peer));
        }
    }
}

/// A connection that a header may be taken from.
pub trait Introduces {
    /// Receives what is there, once something is.
    fn receive(&self, buf: &mut [u8], flags: RecvFlags) -> impl Future<Output = io::Result<usize>> + Send;
}

impl Introduces for TcpStream {
    async fn receive(&self, buf: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        self.async_io(Interest::READABLE, || receive(self, buf, flags)).await
    }
}

impl Introduces for UnixStream {
    async fn receive(&self, buf: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        self.async_io(Interest::READABLE, || receive(self, buf, flags)).await
    }
}

fn receive(socket: &impl AsFd, buf: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
    Ok(recv(socket.as_fd(), buf, flags)?.0)
}

/// Reads the first bytes of a connection.
fn parse(bytes: &[u8]) -> Result<Seen, Malformed> {
    let begins = |whole: &[u8]| bytes.iter().zip(whole).all(|(a, b)| a == b);
    if begins(V2) {
        parse_v2(bytes)
    } else if begins(V1) {
        parse_v1(bytes)
    } else {
        Err(Malformed)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Seen, Malformed> {
    let Some(end) = bytes.iter().take(LONGEST_V1).position(|byte| *byte == b'\n') else {
        return if bytes.len() < LONGEST_V1 { Ok(Seen::Part) } else { Err(Malformed) };
    };
    let line = bytes[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok());
    let mut words = line.ok_or(Malformed)?.split(' ').skip(1);
    let mut word = || words.next().ok_or(Malformed);
    let source = match word()? {
        // Whatever follows is of no account.
        "UNKNOWN" => None,
        "TCP4" => Some(addresses::<Ipv4Addr>(word()?, word()?)?),
        "TCP6" => Some(addresses::<Ipv6Addr>(word()?, word()?)?),
        _ => return Err(Malformed),
    };
    if source.is_some() {
        port(word()?)?;
        port(word()?)?;
        if words.next().is_some() {
            return Err(Malformed);
        }
    }
    Ok(Seen::Whole(end + 1, source))
}

/// The first of two addresses, of which both must be right.
fn addresses<A: std::str::FromStr + Into<IpAddr>>(
    source: &str,
    destination: &str,
) -> Result<IpAddr, Malformed> {
    destination.parse::<A>().map_err(|_| Malformed)?;
    Ok(source.parse::<A>().map_err(|_| Malformed)?.into().to_canonical())
}

fn port(text: &str) -> Result<(), Malformed> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical && text.parse::<u16>().is_ok() { Ok(()) } else { Err(Malformed) }
}

fn parse_v2(bytes: &[u8]) -> Result<Seen, Malformed> {
    // The first bytes are known to be right as far as they are there.
    let local = match bytes.get(V2.len()) {
        None => return Ok(Seen::Part),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(Malformed),
    };
    let Some((head, rest)) = bytes.split_at_checked(FIXED) else { return Ok(Seen::Part) };
    let [.., family, high, low] = *head else { return Err(Malformed) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if FIXED + length > LONGEST {
        return Err(Malformed);
    }
    // What follows the addresses (TLVs) is of no account.
    let needed = match family {
        // The load balancer's own connection, such as a health check: whatever it says of addresses.
        _ if local => 0,
        0x00 => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ => return Err(Malformed),
    };
    if length < needed {
        return Err(Malformed);
    }
    let Some(rest) = rest.get(..length) else { return Ok(Seen::Part) };
    let source = match (needed, rest) {
        (12, [a, b, c, d, ..]) => Some(IpAddr::from([*a, *b, *c, *d])),
        (36, rest) => rest.first_chunk::<16>().map(|octets| IpAddr::from(*octets).to_canonical()),
        _ => None,
    };
    Ok(Seen::Whole(FIXED + length, source))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [V2, &[command, family], &length, body].concat()
    }

    fn whole(bytes: &[u8]) -> Result<(usize, Option<String>), Malformed> {
        match parse(bytes)? {
            Seen::Whole(length, source) => Ok((length, source.map(|source| source.to_string()))),
            Seen::Part => panic!("{bytes:?} is a part"),
        }
    }

    #[test]
    fn the_examples_of_the_specification_are_read() {
        for (line, source) in [
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Some("255.255.255.255")),
            ("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", Some("192.168.0.1")),
            ("PROXY TCP6 ffff::ffff ::1 1 0\r\n", Some("ffff::ffff")),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", Some("192.0.2.1")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
        ] {
            let with_more = format!("{line}GET / HTTP/1.1\r\n");
            assert_eq!(whole(with_more.as_bytes()), Ok((line.len(), source.map(str::to_owned))), "{line}");
        }
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 1, 2, 1, 187];
        let six = [[0x20, 1, 0xd, 0xb8].as_slice(), &[0; 27], &[1], &[0, 1, 0, 2]].concat();
        let tlvs = [4, 0, 3, 0, 0, 0];
        for (bytes, source) in [
            (v2(0x21, 0x11, &four), Some("192.0.2.7")),
            (v2(0x21, 0x11, &[four.as_slice(), &tlvs].concat()), Some("192.0.2.7")),
            (v2(0x21, 0x21, &six), Some("2001:db8::")),
            (v2(0x21, 0x31, &[0; 216]), None),
            (v2(0x21, 0x00, &tlvs), None),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &four), None),
            (v2(0x20, 0xff, &[]), None),
        ] {
            assert_eq!(whole(&bytes), Ok((bytes.len(), source.map(str::to_owned))), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_not_exactly_a_header_is_refused() {
        for line in [
            "GET / HTTP/1.1\r\n",
            "PROXY\r\n",
            "proxy UNKNOWN\r\n",
            "PROXY  UNKNOWN\r\n",
            "PROXY UNKNOWN\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            "PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "\r\n\r\n\0\r\nQUIX",
        ] {
            assert_eq!(parse(line.as_bytes()), Err(Malformed), "{line:?}");
        }
        assert_eq!(parse(&[V1, &[b'x'; LONGEST_V1]].concat()), Err(Malformed));
        for bytes in [
            v2(0x11, 0x11, &[0; 12]),
            v2(0x22, 0x11, &[0; 12]),
            v2(0x21, 0x11, &[0; 11]),
            v2(0x21, 0x21, &[0; 35]),
            v2(0x21, 0x31, &[0; 215]),
            v2(0x21, 0x41, &[0; 216]),
            v2(0x21, 0x13, &[0; 216]),
            v2(0x21, 0x11, &[0; LONGEST]),
        ] {
            assert_eq!(parse(&bytes), Err(Malformed), "{bytes:?}");
        }
    }

    fn headers() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            (any::<Ipv4Addr>(), any::<Ipv4Addr>(), any::<u16>(), any::<u16>())
                .prop_map(|(a, b, c, d)| format!("PROXY TCP4 {a} {b} {c} {d}\r\n").into_bytes()),
            (any::<Ipv6Addr>(), any::<Ipv6Addr>(), any::<u16>(), any::<u16>())
                .prop_map(|(a, b, c, d)| format!("PROXY TCP6 {a} {b} {c} {d}\r\n").into_bytes()),
            (0x20..=0x21_u8, prop::collection::vec(any::<u8>(), 36..300))
                .prop_map(|(command, body)| v2(command, 0x21, &body)),
        ]
    }

    proptest! {
        #[test]
        fn every_part_of_a_header_is_a_part_and_the_rest_is_not_touched(
            header in headers(), more in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            for end in 0..header.len() {
                prop_assert_eq!(parse(&header[..end]), Ok(Seen::Part));
            }
            let Ok(Seen::Whole(length, source)) = parse(&header) else { panic!("not whole") };
            prop_assert_eq!(length, header.len());
            prop_assert_eq!(parse(&[header, more].concat()), Ok(Seen::Whole(length, source)));
        }

        #[test]
        fn nothing_is_read_beyond_what_is_there(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0..3) {
            let bytes = match kind { 0 => bytes, 1 => [V1, &bytes].concat(), _ => [V2, &bytes].concat() };
            match parse(&bytes) {
                Ok(Seen::Whole(length, _)) => prop_assert!(length <= bytes.len()),
                Ok(Seen::Part) => prop_assert!(bytes.len() < LONGEST),
                Err(Malformed) => {}
            }
        }
    }
}
