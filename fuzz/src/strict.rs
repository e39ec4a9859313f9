//! A second reader of HTTP/1.1, written from RFC 9112 alone, slow and strict: what the router takes, and what it passes on,
//! has to mean the same to it.

/// A message's head.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    /// The three parts of the first line.
    pub(crate) start: [&'a [u8]; 3],
    /// Names and values, in order.
    pub(crate) headers: Vec<Field<'a>>,
    /// How long it is, the empty line included.
    pub(crate) length: usize,
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// After so many bytes.
    Length(u64),
    /// After the last chunk and its trailers.
    Chunked,
    /// Nobody says.
    Open,
}

/// The first line, without its end, and what follows it. None if there is no line that ends in CRLF and has no other
/// control characters than tabs.
fn line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.windows(2).position(|pair| pair == b"\r\n")?;
    let line = &text[..end];
    let clean = line.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control());
    clean.then_some((line, &text[end + 2..]))
}

/// `token` of RFC 9110, section 5.6.2.
fn is_token(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

fn field(line: &[u8]) -> Option<Field<'_>> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    is_token(name).then(|| (name, blank_trimmed(value)))
}

fn blank_trimmed(text: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = text.iter().position(|byte| !blank(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !blank(byte)).map_or(start, |at| at + 1);
    &text[start..end]
}

/// A header's name and value.
type Field<'a> = (&'a [u8], &'a [u8]);

/// Header lines up to the empty one, and what follows it.
fn fields(mut text: &[u8]) -> Option<(Vec<Field<'_>>, &[u8])> {
    let mut fields = Vec::new();
    loop {
        let (line, rest) = line(text)?;
        text = rest;
        if line.is_empty() {
            return Some((fields, text));
        }
        fields.push(field(line)?);
    }
}

fn head<'a>(text: &'a [u8], parts: impl Fn(&'a [u8]) -> Option<[&'a [u8]; 3]>) -> Option<Head<'a>> {
    let (first, rest) = line(text)?;
    let (headers, rest) = fields(rest)?;
    Some(Head { start: parts(first)?, headers, length: text.len() - rest.len() })
}

/// A request's head: method, target and version, then headers.
pub(crate) fn request(text: &[u8]) -> Option<Head<'_>> {
    head(text, |line| {
        let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let [method, target, version] = parts[..] else { return None };
        let good = is_token(method)
            && !target.is_empty()
            && !target.contains(&b'\t')
            && matches!(version, b"HTTP/1.1" | b"HTTP/1.0");
        good.then_some([method, target, version])
    })
}

/// A response's head: version, status and reason, then headers.
pub(crate) fn response(text: &[u8]) -> Option<Head<'_>> {
    head(text, |line| {
        let (version, rest) = (line.get(..8)?, line.get(8..)?);
        let status = rest.get(1..4)?;
        let reason = rest.get(4..)?;
        let good = matches!(version, b"HTTP/1.1" | b"HTTP/1.0")
            && rest[0] == b' '
            && status.iter().all(u8::is_ascii_digit)
            && (reason.is_empty() || reason[0] == b' ');
        good.then(|| [version, status, reason.get(1..).unwrap_or_default()])
    })
}

impl<'a> Head<'a> {
    pub(crate) fn values(&self, name: &str) -> Vec<&'a [u8]> {
        self.headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, v)| *v)
            .collect()
    }

    /// What the head says of its body's end (RFC 9112, section 6.3). None where readers may differ.
    pub(crate) fn end(&self) -> Option<End> {
        match (&self.values("content-length")[..], &self.values("transfer-encoding")[..]) {
            ([], []) => Some(End::Open),
            ([length], []) => {
                let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
                let number = std::str::from_utf8(length).ok()?.parse().ok()?;
                digits.then_some(End::Length(number))
            }
            // Commas without anything between them are nothing (RFC 9110, section 5.6.1).
            ([], [coding]) => {
                let names: Vec<&[u8]> =
                    coding.split(|byte| *byte == b',').map(blank_trimmed).filter(|n| !n.is_empty()).collect();
                (names.len() == 1 && names[0].eq_ignore_ascii_case(b"chunked")).then_some(End::Chunked)
            }
            _ => None,
        }
    }
}

/// The content of a body, and how much of the text it takes; none if it is not well-formed, or not whole.
pub(crate) fn body(end: End, text: &[u8]) -> Option<(Vec<u8>, usize)> {
    match end {
        End::Length(length) => {
            let length = usize::try_from(length).ok()?;
            Some((text.get(..length)?.to_vec(), length))
        }
        End::Chunked => chunks(text),
        End::Open => None,
    }
}

/// RFC 9112, section 7.1.
fn chunks(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut content, mut rest) = (Vec::new(), text);
    loop {
        let (line, after) = line(rest)?;
        let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
        let extension = blank_trimmed(&line[digits..]);
        if !extension.is_empty() && extension[0] != b';' {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()?;
        if size == 0 {
            let (_, after) = fields(after)?;
            return Some((content, text.len() - after.len()));
        }
        content.extend_from_slice(after.get(..size)?);
        rest = after[size..].strip_prefix(b"\r\n")?;
    }
}
