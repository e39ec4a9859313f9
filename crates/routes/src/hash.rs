//! A hash that never changes: the same key goes to the same instance, from every router, for ever.

use percent_encoding::percent_decode_str;

/// Stable 64-bit hash of a key, such as a user ID or the name of an origin.
pub fn hash_key(bytes: &[u8]) -> u64 {
    hash(bytes.iter().copied())
}

/// Stable 64-bit hash of a path's segment after percent-decoding: `%21a%3Ab` and `!a:b` give the same.
pub fn hash_room(segment: &str) -> u64 {
    hash(percent_decode_str(segment))
}

/// FNV-1a, and murmur3's finalizer, because FNV's high bits hardly depend on the last bytes.
fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    let mut h =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_and_plain_room_ids_hash_alike() {
        for (plain, encoded) in [
            ("!abc:example.org", "%21abc%3Aexample.org"),
            ("!abc:example.org", "!abc%3aexample.org"),
            (
                "!0k6bmEoPvSBnMcHfNuuhQaFBVJDtlEQDkyNkMfSeJb4",
                "%210k6bmEoPvSBnMcHfNuuhQaFBVJDtlEQDkyNkMfSeJb4",
            ),
            ("!a/b:c", "!a%2Fb:c"),
        ] {
            assert_eq!(hash_room(plain), hash_room(encoded), "{plain}");
            assert_eq!(hash_room(plain), hash_key(plain.as_bytes()), "{plain}");
        }
    }

    #[test]
    fn the_hash_never_changes() {
        // Routers of different versions must agree while one replaces the other.
        assert_eq!(hash_key(b""), 0xefd0_1f60_ba99_2926);
        assert_eq!(hash_key(b"!abc:example.org"), hash_room("!abc:example.org"));
    }
}
