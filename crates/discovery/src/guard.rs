//! Which addresses may be connected to on the word of a stranger.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::Sources;

/// Whether an address may be connected to: one of the public internet, or of a network that the configuration allows.
pub(crate) fn allows(networks: &[Sources], address: IpAddr) -> bool {
    let plain = address.to_canonical();
    is_public(plain) || networks.iter().any(|network| network.contains(plain) || network.contains(address))
}

/// Whether an address is of the public internet: by the special-purpose registries of IANA (RFC 6890), none of those that are not
/// globally reachable; and none of which an address of another kind is a part that is not.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = matches!(
        (a, b, c),
        // This network; private; loopback; multicast, reserved and broadcast.
        (0 | 10 | 127 | 224.., _, _)
            // Shared by carriers, link-local, private.
            | (100, 64..=127, _) | (169, 254, _) | (172, 16..=31, _) | (192, 168, _)
            // Protocol assignments, documentation, the relays of 6to4, benchmarks.
            | (192, 0, 0 | 2) | (192, 88, 99) | (198, 18 | 19, _) | (198, 51, 100) | (203, 0, 113)
    );
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let [.., w, x, y, z] = address.octets();
    match (parts[0], parts[1]) {
        // NAT64: the address behind it.
        (0x64, 0xff9b) => parts[2..6] == [0; 4] && is_public_v4(Ipv4Addr::new(w, x, y, z)),
        // Protocol assignments (Teredo among them), documentation, 6to4.
        (0x2001, 0..0x200 | 0xdb8) | (0x2002, _) | (0x3fff, 0..0x1000) => false,
        _ => parts[0] & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_internet_is_open() {
        for public in [
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "223.255.255.1",
            "2606:4700::1",
            "2a01::1",
            "64:ff9b::101:101",
            "::ffff:1.1.1.1",
        ] {
            assert!(allows(&[], public.parse().unwrap()), "{public}");
        }
        for special in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "3fff::1",
            "fc00::1",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "5f00::1",
        ] {
            assert!(!allows(&[], special.parse().unwrap()), "{special}");
        }
    }

    #[test]
    fn networks_can_be_opened() {
        let networks =
            ["10.0.0.0/8".to_owned(), "::1".to_owned()].map(|text| Sources::try_from(text).unwrap());
        for (address, allowed) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("::1", true),
            ("127.0.0.1", false),
            ("192.168.0.1", false),
        ] {
            assert_eq!(allows(&networks, address.parse().unwrap()), allowed, "{address}");
        }
    }
}
