//! What an LDAP client or server sends.

use crate::ber::{self, Malformed};
use crate::dn::Dn;
use crate::message::{self, Auth, op};

/// How large a message may be here.
const MOST: usize = 2048;

/// Bytes as a client's or a server's connection brings them.
pub fn ldap(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some(length) = frame(rest) {
        let (whole, after) = rest.split_at(length);
        if let Ok(message) = message::parse(whole) {
            read(&message);
        }
        rest = after;
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        name(text);
    }
}

/// The length of the message at the front. That must not depend on what follows or on how much has come.
fn frame(bytes: &[u8]) -> Option<usize> {
    let framed = ber::frame(bytes, MOST);
    match framed {
        Ok(Some(length)) => {
            assert!((2..=MOST.min(bytes.len())).contains(&length));
            assert_eq!(ber::frame(&bytes[..length], MOST), framed, "what follows makes a difference");
            for part in [1, length / 2, length - 1] {
                assert_eq!(ber::frame(&bytes[..part.min(length - 1)], MOST), Ok(None));
            }
        }
        Ok(None) => assert!(bytes.len() < MOST, "more is waited for than is taken"),
        Err(Malformed::Encoding | Malformed::TooLarge) => {}
    }
    framed.ok().flatten()
}

fn read(message: &message::Message<'_>) {
    let again = message::with_id(message.id, message.rest);
    let twice = message::parse(&again).expect("what was written is a message");
    assert_eq!(
        (twice.id, twice.op, twice.body, twice.rest),
        (message.id, message.op, message.body, message.rest)
    );
    let _ = (message.control_names(), message.entry(), message::result_code(message.body));
    let _ = (message::abandoned(message), message::extended(message.body));
    match message.op {
        op::SEARCH => {
            let Ok(search) = message::search(message.body) else { return };
            let written = search.write();
            assert_eq!(message::search(&written).as_ref(), Ok(&search), "it is another search");
            let changed = message::with_body(message, &written);
            let changed = message::parse(&changed).expect("what was written is a message");
            assert_eq!((changed.body, changed.controls), (&written[..], message.controls));
            let mut looked_at = Vec::new();
            let _ = message::filter_attributes(search.filter, 0, &mut looked_at);
            assert!(looked_at.len() <= search.filter.len());
        }
        op::BIND => {
            if let Ok(bind) = message::bind(message.body) {
                let (Auth::Simple(secret) | Auth::Sasl(secret)) = bind.auth;
                assert!(bind.dn.len() + secret.len() < message.body.len());
            }
        }
        _ => {}
    }
}

fn name(text: &str) {
    let Some(dn) = Dn::parse(text) else { return };
    assert!(dn.is_within(&dn));
    // A name below it is within it, and it is not within that one.
    let below = if text.trim().is_empty() { "cn=x".to_owned() } else { format!("cn=x,{text}") };
    if let Some(below) = Dn::parse(&below) {
        assert!(below.is_within(&dn) && !dn.is_within(&below));
        assert!(below.values().ends_with(&dn.values()));
    }
}
