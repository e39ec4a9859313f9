//! LDAP's messages (RFC 4511, section 4), as far as a proxy has to understand them; the rest passes as bytes.

use crate::ber::{self, ENUMERATED, INTEGER, Malformed, OCTETS, Reader, SEQUENCE};

/// Tags of operations.
pub(crate) mod op {
    pub(crate) const BIND: u8 = 0x60;
    pub(crate) const UNBIND: u8 = 0x42;
    pub(crate) const SEARCH: u8 = 0x63;
    pub(crate) const ENTRY: u8 = 0x64;
    pub(crate) const SEARCH_DONE: u8 = 0x65;
    pub(crate) const REFERENCE: u8 = 0x73;
    pub(crate) const MODIFY: u8 = 0x66;
    pub(crate) const ADD: u8 = 0x68;
    pub(crate) const DELETE: u8 = 0x4a;
    pub(crate) const RENAME: u8 = 0x6c;
    pub(crate) const COMPARE: u8 = 0x6e;
    pub(crate) const ABANDON: u8 = 0x50;
    pub(crate) const EXTENDED: u8 = 0x77;
    pub(crate) const EXTENDED_DONE: u8 = 0x78;
    pub(crate) const INTERMEDIATE: u8 = 0x79;

    /// What an operation is called in metrics and logs.
    pub(crate) fn name(tag: u8) -> &'static str {
        match tag {
            BIND => "bind",
            SEARCH => "search",
            MODIFY => "modify",
            ADD => "add",
            DELETE => "delete",
            RENAME => "rename",
            COMPARE => "compare",
            EXTENDED => "extended",
            ABANDON => "abandon",
            UNBIND => "unbind",
            _ => "other",
        }
    }

    /// The tag of the message that ends an operation. None for those that have no answer.
    pub(crate) fn done(tag: u8) -> Option<u8> {
        match tag {
            SEARCH => Some(SEARCH_DONE),
            DELETE => Some(0x6b),
            BIND | MODIFY | ADD | RENAME | COMPARE | EXTENDED => Some(tag + 1),
            _ => None,
        }
    }

    /// Whether it changes entries.
    pub(crate) fn writes(tag: u8) -> bool {
        matches!(tag, MODIFY | ADD | DELETE | RENAME)
    }
}

/// Result codes (RFC 4511, appendix A.1).
pub(crate) mod code {
    pub(crate) const SUCCESS: i32 = 0;
    pub(crate) const OPERATIONS_ERROR: i32 = 1;
    pub(crate) const PROTOCOL_ERROR: i32 = 2;
    pub(crate) const AUTH_METHOD_NOT_SUPPORTED: i32 = 7;
    pub(crate) const STRONGER_AUTH_REQUIRED: i32 = 8;
    pub(crate) const ADMIN_LIMIT_EXCEEDED: i32 = 11;
    pub(crate) const UNAVAILABLE_CRITICAL_EXTENSION: i32 = 12;
    pub(crate) const CONFIDENTIALITY_REQUIRED: i32 = 13;
    pub(crate) const SASL_BIND_IN_PROGRESS: i32 = 14;
    pub(crate) const INVALID_CREDENTIALS: i32 = 49;
    pub(crate) const INSUFFICIENT_ACCESS: i32 = 50;
    pub(crate) const BUSY: i32 = 51;
    pub(crate) const UNAVAILABLE: i32 = 52;
    pub(crate) const UNWILLING: i32 = 53;
}

/// Names of extended operations.
pub(crate) mod oid {
    pub(crate) const START_TLS: &[u8] = b"1.3.6.1.4.1.1466.20037";
    pub(crate) const WHOAMI: &[u8] = b"1.3.6.1.4.1.4203.1.11.3";
    pub(crate) const PASSWORD_MODIFY: &[u8] = b"1.3.6.1.4.1.4203.1.11.1";
    pub(crate) const CANCEL: &[u8] = b"1.3.6.1.1.8";
    pub(crate) const NOTICE_OF_DISCONNECTION: &[u8] = b"1.3.6.1.4.1.1466.20036";
    pub(crate) const PAGED_RESULTS: &[u8] = b"1.2.840.113556.1.4.319";
    pub(crate) const MANAGE_DSA_IT: &[u8] = b"2.16.840.1.113730.3.4.2";
}

/// A message, taken apart as far as every message is alike.
#[derive(Clone, Copy, Debug)]
pub struct Message<'b> {
    /// What pairs answers with requests.
    pub id: i32,
    /// The tag of the operation.
    pub op: u8,
    /// The operation's content.
    pub body: &'b [u8],
    /// The operation as a whole, with the controls.
    pub rest: &'b [u8],
    /// The content of the controls, if there are any.
    pub controls: Option<&'b [u8]>,
}

/// Takes a whole message apart.
pub fn parse(bytes: &[u8]) -> Result<Message<'_>, Malformed> {
    let mut reader = Reader(bytes);
    let mut reader = Reader(reader.expect(SEQUENCE)?);
    let id = reader.number(INTEGER)?;
    let rest = reader.0;
    let (op, body) = reader.next()?;
    let controls = if reader.is_empty() { None } else { Some(reader.expect(0xa0)?) };
    if reader.is_empty() { Ok(Message { id, op, body, rest, controls }) } else { Err(Malformed::Encoding) }
}

impl<'b> Message<'b> {
    /// The names of the controls.
    pub(crate) fn control_names(&self) -> Result<Vec<&'b [u8]>, Malformed> {
        let mut reader = Reader(self.controls.unwrap_or_default());
        let mut names = Vec::new();
        while !reader.is_empty() {
            names.push(Reader(reader.expect(SEQUENCE)?).expect(OCTETS)?);
        }
        Ok(names)
    }

    /// The entry that an operation other than a search is about.
    pub(crate) fn entry(&self) -> Result<&'b [u8], Malformed> {
        if self.op == op::DELETE { Ok(self.body) } else { Reader(self.body).expect(OCTETS) }
    }
}

/// A bind request.
#[derive(Clone, Copy, Debug)]
pub struct Bind<'b> {
    /// Who binds.
    pub dn: &'b [u8],
    /// How.
    pub auth: Auth<'b>,
}

/// How a bind proves who it is. `Debug` shows no password.
#[derive(Clone, Copy)]
pub enum Auth<'b> {
    /// By a password.
    Simple(&'b [u8]),
    /// By a SASL mechanism, whose name this is.
    Sasl(&'b [u8]),
}

impl std::fmt::Debug for Auth<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Simple(_)) { "Simple" } else { "Sasl" })
    }
}

/// Reads a bind request's content.
pub fn bind(body: &[u8]) -> Result<Bind<'_>, Malformed> {
    let mut reader = Reader(body);
    // Anything but version 3 is refused by the server itself.
    reader.number(INTEGER)?;
    let dn = reader.expect(OCTETS)?;
    let auth = match reader.next()? {
        (0x80, password) => Auth::Simple(password),
        (0xa3, sasl) => Auth::Sasl(Reader(sasl).expect(OCTETS)?),
        _ => return Err(Malformed::Encoding),
    };
    if reader.is_empty() { Ok(Bind { dn, auth }) } else { Err(Malformed::Encoding) }
}

/// A search request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search<'b> {
    /// Where it begins.
    pub base: &'b [u8],
    /// 0 the entry itself, 1 those right below, 2 the whole subtree.
    pub scope: i32,
    /// How aliases are followed.
    pub deref: i32,
    /// How many entries at most; 0 means no limit.
    pub size: i32,
    /// How many seconds at most; 0 means no limit.
    pub time: i32,
    /// Whether values are left out.
    pub types_only: &'b [u8],
    /// The filter, as an element.
    pub filter: &'b [u8],
    /// Which attributes are asked for; none means all of the user's.
    pub attributes: Vec<&'b [u8]>,
}

/// Reads a search request's content.
pub fn search(body: &[u8]) -> Result<Search<'_>, Malformed> {
    let mut reader = Reader(body);
    let base = reader.expect(OCTETS)?;
    let scope = reader.number(ENUMERATED)?;
    let deref = reader.number(ENUMERATED)?;
    let size = reader.number(INTEGER)?;
    let time = reader.number(INTEGER)?;
    let types_only = reader.expect(0x01)?;
    let (_, filter) = reader.whole()?;
    let mut list = Reader(reader.expect(SEQUENCE)?);
    let mut attributes = Vec::new();
    while !list.is_empty() {
        attributes.push(list.expect(OCTETS)?);
    }
    if !reader.is_empty() {
        return Err(Malformed::Encoding);
    }
    Ok(Search { base, scope, deref, size, time, types_only, filter, attributes })
}

impl Search<'_> {
    /// The request's content again.
    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        ber::write(&mut out, OCTETS, self.base);
        ber::write_number(&mut out, ENUMERATED, self.scope);
        ber::write_number(&mut out, ENUMERATED, self.deref);
        ber::write_number(&mut out, INTEGER, self.size);
        ber::write_number(&mut out, INTEGER, self.time);
        ber::write(&mut out, 0x01, self.types_only);
        out.extend_from_slice(self.filter);
        let mut list = Vec::new();
        for attribute in &self.attributes {
            ber::write(&mut list, OCTETS, attribute);
        }
        ber::write(&mut out, SEQUENCE, &list);
        out
    }

    /// Whether it asks the server about itself, and not for anybody's entry.
    pub fn is_root(&self) -> bool {
        self.base.is_empty() && self.scope == 0
    }
}

/// The attributes that a filter (an element) looks at, in `found`.
pub fn filter_attributes<'b>(
    filter: &'b [u8],
    depth: usize,
    found: &mut Vec<&'b [u8]>,
) -> Result<(), Malformed> {
    // No real filter nests as deep; a server has a limit of its own.
    const DEEPEST: usize = 64;
    if depth > DEEPEST {
        return Err(Malformed::TooLarge);
    }
    let mut reader = Reader(filter);
    let (tag, content) = reader.next()?;
    let mut inner = Reader(content);
    match tag {
        // and, or, not
        0xa0..=0xa2 => {
            while !inner.is_empty() {
                filter_attributes(inner.whole()?.1, depth + 1, found)?;
            }
        }
        // equality, substrings, greater or equal, less or equal, approximate
        0xa3..=0xa6 | 0xa8 => found.push(inner.expect(OCTETS)?),
        // present
        0x87 => found.push(content),
        // extensible: one that names no attribute looks at all.
        0xa9 => {
            let mut attribute: &[u8] = b"*";
            while !inner.is_empty() {
                if let (0x82, name) = inner.next()? {
                    attribute = name;
                }
            }
            found.push(attribute);
        }
        _ => return Err(Malformed::Encoding),
    }
    Ok(())
}

/// The name of an extended request.
pub fn extended(body: &[u8]) -> Result<&[u8], Malformed> {
    Reader(body).expect(0x80)
}

/// Whose password a request to modify one (RFC 3062) names.
pub(crate) fn password_of(body: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let mut reader = Reader(body);
    reader.expect(0x80)?;
    if reader.is_empty() {
        return Ok(None);
    }
    let mut value = Reader(Reader(reader.expect(0x81)?).expect(SEQUENCE)?);
    while !value.is_empty() {
        if let (0x80, name) = value.next()? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Below which entry a request puts another.
pub(crate) fn new_superior<'b>(request: &Message<'b>) -> Result<Option<&'b [u8]>, Malformed> {
    if request.op != op::RENAME {
        return Ok(None);
    }
    let mut reader = Reader(request.body);
    for tag in [OCTETS, OCTETS, 0x01] {
        reader.expect(tag)?;
    }
    if reader.is_empty() { Ok(None) } else { reader.expect(0x80).map(Some) }
}

/// The result code of an answer's content.
pub fn result_code(body: &[u8]) -> Result<i32, Malformed> {
    Reader(body).number(ENUMERATED)
}

/// A message with this ID.
pub(crate) fn with_id(id: i32, rest: &[u8]) -> Vec<u8> {
    let mut head = Vec::with_capacity(6);
    ber::write_number(&mut head, INTEGER, id);
    let mut out = Vec::with_capacity(rest.len() + 12);
    ber::write_head(&mut out, SEQUENCE, head.len() + rest.len());
    out.extend_from_slice(&head);
    out.extend_from_slice(rest);
    out
}

/// A request with this content in place of its own.
pub(crate) fn with_body(message: &Message<'_>, body: &[u8]) -> Vec<u8> {
    let mut rest = Vec::with_capacity(body.len() + 16);
    ber::write(&mut rest, message.op, body);
    if let Some(controls) = message.controls {
        ber::write(&mut rest, 0xa0, controls);
    }
    with_id(message.id, &rest)
}

/// The operation's content where all is said by a code and a text.
fn result(code: i32, text: &str) -> Vec<u8> {
    let mut body = Vec::new();
    ber::write_number(&mut body, ENUMERATED, code);
    ber::write(&mut body, OCTETS, b"");
    ber::write(&mut body, OCTETS, text.as_bytes());
    body
}

/// The answer to an operation.
pub(crate) fn answer(id: i32, request: u8, code: i32, text: &str) -> Vec<u8> {
    let Some(tag) = op::done(request) else { return Vec::new() };
    let mut rest = Vec::new();
    ber::write(&mut rest, tag, &result(code, text));
    with_id(id, &rest)
}

/// The Notice of Disconnection (RFC 4511, section 4.4.1).
pub(crate) fn notice(code: i32, text: &str) -> Vec<u8> {
    let mut body = result(code, text);
    ber::write(&mut body, 0x8a, oid::NOTICE_OF_DISCONNECTION);
    let mut rest = Vec::new();
    ber::write(&mut rest, op::EXTENDED_DONE, &body);
    with_id(0, &rest)
}

/// A request to give up another.
pub(crate) fn abandon(id: i32, which: i32) -> Vec<u8> {
    let mut rest = Vec::new();
    ber::write_number(&mut rest, op::ABANDON, which);
    with_id(id, &rest)
}

/// Which operation a request gives up.
pub(crate) fn abandoned(message: &Message<'_>) -> Result<i32, Malformed> {
    Reader(message.rest).number(op::ABANDON)
}

/// The unbind request.
pub(crate) fn unbind(id: i32) -> Vec<u8> {
    with_id(id, &[op::UNBIND, 0])
}
