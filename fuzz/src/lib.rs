//! What must hold for whatever bytes reach the router and the LDAP proxy, as functions that panic where it does not. The programs in
//! `targets` hand them inputs that a fuzzer makes up; `tests/fuzz.rs` runs those.
//!
//! The modules under test are their own source files, borrowed by path: so their crates show nothing for
//! this, and the targets build without the network half of them.
// The borrowed modules' own tests are run where they belong.
#![cfg(not(test))]

// Pure modules of the router. What of them is for its other half is unused here.
#[expect(dead_code, unreachable_pub, reason = "used by the router, and shown by it")]
#[path = "../../crates/router/src/failure.rs"]
mod failure;
#[path = "../../crates/router/src/headers.rs"]
mod headers;
#[path = "../../crates/router/src/http1.rs"]
mod http1;
#[expect(dead_code, reason = "used by the router")]
#[path = "../../crates/router/src/key.rs"]
mod key;

// Of the LDAP proxy.
#[expect(unreachable_pub, reason = "shown by the LDAP proxy")]
#[path = "../../crates/ldap-proxy/src/ber.rs"]
mod ber;
#[path = "../../crates/ldap-proxy/src/dn.rs"]
mod dn;
#[expect(dead_code, unreachable_pub, reason = "used by the LDAP proxy")]
#[path = "../../crates/ldap-proxy/src/message.rs"]
mod message;

mod ldap;
mod matcher;
mod request;
mod response;
mod strict;

pub use ldap::ldap;
pub use matcher::matcher;
pub use request::request;
pub use response::response;

use bytes::Bytes;

use http1::Body;

/// What came of a head.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    Refused,
    /// More has to come.
    Partly,
    /// It was taken, from so many bytes.
    Taken(usize),
}

/// It makes no difference in which pieces the bytes of a head come. `parse` takes it off their front.
fn check_pieces<E>(text: &[u8], parse: impl Fn(&mut Bytes) -> Result<bool, E>) {
    let came = |size: usize| {
        let (mut buffer, mut came) = (Bytes::new(), 0);
        for piece in text.chunks(size) {
            came += piece.len();
            buffer = [&buffer[..], piece].concat().into();
            match parse(&mut buffer) {
                Ok(false) => {}
                Ok(true) => return Came::Taken(came - buffer.len()),
                Err(_) => return Came::Refused,
            }
        }
        Came::Partly
    };
    assert_eq!(came(61), came(text.len().max(1)), "pieces make a difference");
}

/// How a body ended: its content, and how much of what came it took.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    /// It came to its end.
    Whole(Vec<u8>, usize),
    /// More has to come.
    Partial,
    /// It breaks HTTP.
    Bad,
}

/// Reads a body with the router's reader, from pieces of this size.
fn read_body(mut body: Body, text: &[u8], size: usize) -> Read {
    let (mut content, mut left) = (Vec::new(), Bytes::new());
    let mut read = 0;
    let mut pieces = text.chunks(size);
    loop {
        match body.take(&mut left) {
            Err(_) => return Read::Bad,
            Ok(piece) if !piece.is_empty() => content.extend_from_slice(&piece),
            Ok(_) if body.is_over() => return Read::Whole(content, read - left.len()),
            Ok(_) => {
                assert!(left.is_empty(), "the reader left something without need");
                let Some(piece) = pieces.next() else { return Read::Partial };
                read += piece.len();
                left = Bytes::copy_from_slice(piece);
            }
        }
    }
}
