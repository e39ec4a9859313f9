//! Distinguished names (RFC 4514), compared as far as that can be done without a schema.

/// A name, as the values and types of its parts in lower case, the leaf first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Dn(Vec<Vec<(String, String)>>);

impl Dn {
    /// Reads a name. None if it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::new();
        if text.trim().is_empty() {
            return Some(Self(parts));
        }
        for part in split(text, &[',', ';']) {
            let mut values = Vec::new();
            for pair in split(part, &['+']) {
                let (kind, text) = pair.split_once('=')?;
                values.push((kind.trim().to_lowercase(), value(text)?));
            }
            values.sort();
            parts.push(values);
        }
        Some(Self(parts))
    }

    /// Whether it is the other or stands below it.
    pub(crate) fn is_within(&self, base: &Self) -> bool {
        self.0.ends_with(&base.0)
    }

    /// What is the same in all spellings of the name, the types of its parts by their other names included.
    pub(crate) fn values(&self) -> String {
        let parts: Vec<_> = self
            .0
            .iter()
            .map(|part| part.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join("+"))
            .collect();
        parts.join(",")
    }
}

/// Splits where nothing escapes the separator.
fn split<'t>(text: &'t str, at: &[char]) -> Vec<&'t str> {
    let (mut parts, mut start, mut escaped, mut quoted) = (Vec::new(), 0, false, false);
    for (index, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            letter if !quoted && at.contains(&letter) => {
                parts.push(&text[start..index]);
                start = index + letter.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// A value without escapes, in lower case, with single blanks.
fn value(text: &str) -> Option<String> {
    let text = text.trim();
    let mut bytes = Vec::new();
    if let Some(digits) = text.strip_prefix('#') {
        // The value as a BER element, of which its content is meant.
        let element = (0..digits.len() / 2)
            .map(|at| u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok())
            .collect::<Option<Vec<_>>>()?;
        bytes = crate::ber::Reader(&element).next().ok()?.1.to_vec();
    } else {
        let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        let mut rest = text.as_bytes();
        while let [byte, more @ ..] = rest {
            rest = more;
            if *byte != b'\\' {
                bytes.push(*byte);
                continue;
            }
            let hex =
                more.get(..2).and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
            let (byte, length) = match hex {
                Some(byte) => (byte, 2),
                None => (*more.first()?, 1),
            };
            bytes.push(byte);
            rest = &more[length..];
        }
    }
    let text = String::from_utf8(bytes).ok()?.to_lowercase();
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_a_name_are_the_same() {
        let dn = |text| Dn::parse(text).unwrap();
        let alice = dn("uid=alice,ou=People,dc=example,dc=org");
        for other in [
            "UID=Alice, OU=people , dc=example,dc=org",
            r"uid=\61lice;ou=People,dc=example,dc=org",
            "uid=#0405616c696365,ou=People,dc=example,dc=org",
            "uid=\"alice\",ou=People,dc=example,dc=org",
        ] {
            assert_eq!(dn(other), alice, "{other}");
        }
        assert_ne!(dn("userid=alice,ou=People,dc=example,dc=org"), alice);
        assert_eq!(dn("userid=alice,ou=People,dc=example,dc=org").values(), alice.values());
        assert_eq!(dn("cn=a+sn=b"), dn("SN=b + cn=A"));
        assert_ne!(dn(r"cn=a\,b,c=d"), dn("cn=a,b=,c=d"));
    }

    #[test]
    fn a_name_is_within_itself_and_those_above() {
        let dn = |text| Dn::parse(text).unwrap();
        let base = dn("ou=people,dc=example,dc=org");
        assert!(dn("OU=People,DC=example,DC=org").is_within(&base));
        assert!(dn("uid=a,ou=people,dc=example,dc=org").is_within(&base));
        assert!(!dn("dc=example,dc=org").is_within(&base));
        assert!(!dn("uid=a,xou=people,dc=example,dc=org").is_within(&base));
        assert!(!dn(r"uid=a\,ou=people,dc=example,dc=org").is_within(&base));
        assert!(Dn::parse("alice").is_none() && Dn::parse("EXAMPLE\\alice").is_none());
    }
}
