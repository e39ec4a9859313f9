//! BER, as far as LDAP uses it (RFC 4511, section 5.1): tags of one byte, definite lengths.

/// The bytes are no BER of LDAP's, or larger than is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It breaks the encoding.
    #[error("the message breaks LDAP's encoding")]
    Encoding,
    /// It is larger than this side may send.
    #[error("the message is larger than is taken")]
    TooLarge,
}

/// The sequence tag, with which every message begins.
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const OCTETS: u8 = 0x04;
pub(crate) const ENUMERATED: u8 = 0x0a;

/// The head of an element: its tag, how long the head is, and its content. None where more has to come.
fn head(bytes: &[u8]) -> Result<Option<(u8, usize, usize)>, Malformed> {
    let Some(&tag) = bytes.first() else { return Ok(None) };
    // A tag of several bytes, which LDAP has nowhere.
    if tag & 0x1f == 0x1f {
        return Err(Malformed::Encoding);
    }
    match bytes.get(1) {
        None => Ok(None),
        Some(&short @ 0..=0x7f) => Ok(Some((tag, 2, short.into()))),
        // More than four bytes would be a message of more than 4 GiB; 0x80 is an indefinite length.
        Some(&count @ 0x81..=0x84) => {
            let count = usize::from(count & 0x7f);
            let Some(length) = bytes.get(2..2 + count) else { return Ok(None) };
            let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            Ok(Some((tag, 2 + count, length)))
        }
        Some(_) => Err(Malformed::Encoding),
    }
}

/// The length of the message that the bytes begin with, which may be up to `max`. None where more has to come: then no
/// more than `max` bytes are worth keeping.
pub fn frame(bytes: &[u8], max: usize) -> Result<Option<usize>, Malformed> {
    if bytes.first().is_some_and(|tag| *tag != SEQUENCE) {
        return Err(Malformed::Encoding);
    }
    let Some((_, head, content)) = head(bytes)? else { return Ok(None) };
    let length = head + content;
    if length > max {
        return Err(Malformed::TooLarge);
    }
    Ok((bytes.len() >= length).then_some(length))
}

/// Elements one after another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'b>(pub(crate) &'b [u8]);

impl<'b> Reader<'b> {
    /// The next element's tag and content.
    pub(crate) fn next(&mut self) -> Result<(u8, &'b [u8]), Malformed> {
        let (tag, whole) = self.whole()?;
        let (_, head, _) = head(whole)?.ok_or(Malformed::Encoding)?;
        Ok((tag, &whole[head..]))
    }

    /// The next element's tag and all of its bytes.
    pub(crate) fn whole(&mut self) -> Result<(u8, &'b [u8]), Malformed> {
        let (tag, head, content) = head(self.0)?.ok_or(Malformed::Encoding)?;
        let (whole, rest) = self.0.split_at_checked(head + content).ok_or(Malformed::Encoding)?;
        self.0 = rest;
        Ok((tag, whole))
    }

    /// The next element's content, which has to have this tag.
    pub(crate) fn expect(&mut self, tag: u8) -> Result<&'b [u8], Malformed> {
        match self.next()? {
            (found, content) if found == tag => Ok(content),
            _ => Err(Malformed::Encoding),
        }
    }

    /// The next element, which is a number from 0 to 2^31 - 1, as all of LDAP's numbers are (`maxInt`).
    pub(crate) fn number(&mut self, tag: u8) -> Result<i32, Malformed> {
        let content = self.expect(tag)?;
        if !(1..=4).contains(&content.len()) || content[0] & 0x80 != 0 {
            return Err(Malformed::Encoding);
        }
        Ok(content.iter().fold(0, |number, byte| number << 8 | i32::from(*byte)))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Writes an element.
pub(crate) fn write(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    write_head(out, tag, content.len());
    out.extend_from_slice(content);
}

/// Writes the head of an element of which so much will follow.
pub(crate) fn write_head(out: &mut Vec<u8>, tag: u8, length: usize) {
    out.push(tag);
    if length < 0x80 {
        out.push(u8::try_from(length).unwrap_or_default());
    } else {
        let bytes = length.to_be_bytes();
        let bytes = &bytes[length.leading_zeros() as usize / 8..];
        out.push(0x80 | u8::try_from(bytes.len()).unwrap_or_default());
        out.extend_from_slice(bytes);
    }
}

/// Writes a number that is not negative.
pub(crate) fn write_number(out: &mut Vec<u8>, tag: u8, number: i32) {
    let bytes = number.to_be_bytes();
    // One byte at least, and none so that the number would seem negative.
    let start = (0..3).find(|at| bytes[*at] != 0 || bytes[at + 1] & 0x80 != 0).unwrap_or(3);
    write(out, tag, &bytes[start..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_message_or_too_large_is_refused_at_its_head() {
        assert_eq!(frame(b"", 10), Ok(None));
        assert_eq!(frame(&[0x30], 10), Ok(None));
        assert_eq!(frame(&[0x30, 0x82, 1], 300), Ok(None));
        assert_eq!(frame(&[0x30, 2, 0, 0, 9], 10), Ok(Some(4)));
        assert_eq!(frame(b"GET / HTTP/1.1", 100), Err(Malformed::Encoding));
        assert_eq!(frame(&[0x30, 0x80], 100), Err(Malformed::Encoding));
        assert_eq!(frame(&[0x30, 0x85, 0, 0, 0, 0, 1], 100), Err(Malformed::Encoding));
        assert_eq!(frame(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], 1 << 20), Err(Malformed::TooLarge));
        assert_eq!(frame(&[0x30, 9], 10), Err(Malformed::TooLarge));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(number in 0..=i32::MAX, text in prop::collection::vec(any::<u8>(), 0..70_000)) {
            let mut out = Vec::new();
            write_number(&mut out, INTEGER, number);
            write(&mut out, OCTETS, &text);
            let mut reader = Reader(&out);
            prop_assert_eq!(reader.number(INTEGER), Ok(number));
            prop_assert_eq!(reader.expect(OCTETS), Ok(&text[..]));
            prop_assert!(reader.is_empty());
        }
    }
}
