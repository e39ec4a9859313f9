//! Keys and signatures. Every comparison takes the same time whatever is compared.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// A key that a sender has to show, or to sign with.
#[derive(Clone)]
pub(crate) struct Key {
    text: String,
    digest: [u8; 32],
}

impl Key {
    /// The key with this text; `None` if there is none.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self { text: text.to_owned(), digest: Sha256::digest(text).into() })
    }

    /// Whether this is what a sender shows. It compares digests, so that not even the length can be measured.
    pub(crate) fn is(&self, shown: &str) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown).into();
        self.digest.ct_eq(&shown).into()
    }

    /// Whether a signature, in hexadecimal, is the HMAC-SHA256 of a body with this key.
    pub(crate) fn signed(&self, body: &[u8], signature: &str) -> bool {
        let Ok(signature) = hex::decode(signature.trim()) else { return false };
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.text.as_bytes()) else { return false };
        mac.update(body);
        mac.verify_slice(&signature).is_ok()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.digest.ct_eq(&other.digest).into()
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_signatures_are_told_apart() {
        assert!(Key::new(" \n").is_none());
        let key = Key::new("It's a Secret to Everybody\n").unwrap();
        assert!(key.is("It's a Secret to Everybody"));
        assert!(!key.is("") && !key.is("It's a Secret to Everybod"));
        // The example of GitHub's documentation.
        let signature = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert!(key.signed(b"Hello, World!", signature));
        assert!(key.signed(b"Hello, World!", &signature.to_uppercase()));
        for (body, signature) in [
            (&b"Hello, World"[..], signature),
            (b"Hello, World!", ""),
            (b"Hello, World!", &signature[..62]),
            (b"Hello, World!", "no hexadecimal"),
        ] {
            assert!(!key.signed(body, signature));
        }
        assert_eq!(format!("{key:?}"), "Key(..)");
    }
}
