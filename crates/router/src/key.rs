//! By what requests are told apart for balancing: access tokens, users, origins. Nothing here keeps or shows a token.

use std::borrow::Cow;
use std::net::IpAddr;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use percent_encoding::percent_decode_str;
use routes::{Forward, Key};

use crate::http1::{Kind, RequestHead};

/// What kind of key a request was balanced by. Shown in the access log; the key itself never is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum KeyKind {
    /// The user named in a token of Synapse's own kind.
    Token,
    /// The user on whose behalf an application service asks.
    Masquerade,
    /// The user that Synapse said the token belongs to.
    Whoami,
    /// The token itself, hashed.
    TokenHash,
    /// The room in the path.
    Room,
    /// The server that signed the request.
    Origin,
    /// The client's address.
    Address,
}

impl KeyKind {
    /// Its name in the access log.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Token => "user_token",
            Self::Masquerade => "user_masquerade",
            Self::Whoami => "user_whoami",
            Self::TokenHash => "token_hash",
            Self::Room => "room",
            Self::Origin => "origin",
            Self::Address => "address",
        }
    }
}

/// The access token of a request: from the `Authorization` header, else from the query, which the specification
/// deprecates but old clients use.
pub(crate) fn access_token(head: &RequestHead) -> Option<Cow<'_, str>> {
    if let Some(value) = head.values(Kind::Authorization).next() {
        let value = std::str::from_utf8(value).ok()?;
        let (scheme, token) = value.split_once(' ')?;
        return (scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty())
            .then(|| Cow::Borrowed(token.trim()));
    }
    query_value(head.target(), "access_token").filter(|token| !token.is_empty())
}

/// The first value of a query parameter, decoded.
fn query_value<'a>(path_and_query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let (_, query) = path_and_query.split_once('?')?;
    routes::parameter(query, name).map(|value| percent_decode_str(value).decode_utf8_lossy())
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The hash of the user's localpart in an access token that Synapse made: `syt_<localpart in base64>_<random>_<checksum>`.
pub(crate) fn user_of_token(token: &str) -> Option<u64> {
    let rest = token.strip_prefix("syt_")?;
    let (encoded, rest) = rest.split_once('_')?;
    // Without the two parts behind it is no token of Synapse's.
    rest.split_once('_')?;
    // A user ID has at most 255 bytes.
    let mut localpart = [0; 255];
    let length = BASE64.decode_slice(encoded, &mut localpart).ok()?;
    let localpart =
        std::str::from_utf8(&localpart[..length]).ok().filter(|localpart| !localpart.is_empty())?;
    Some(routes::hash_key(localpart.as_bytes()))
}

/// What a request is balanced by, as far as it says so itself.
#[derive(Debug)]
pub(crate) enum Known<'a> {
    /// The hash of the key, and of what kind it is.
    Key(u64, KeyKind),
    /// By the user whom this token belongs to.
    Token(Cow<'a, str>),
    Nothing,
}

/// What a request is balanced by.
pub(crate) fn of<'a>(head: &'a RequestHead, forward: &Forward<'_>, client: Option<IpAddr>) -> Known<'a> {
    let key = match forward.route.class.key {
        Key::None => None,
        Key::Room => {
            let room = forward.room.clone().and_then(|room| head.target().get(room));
            room.map(|room| (routes::hash_room(room), KeyKind::Room))
        }
        Key::Origin => match origin(head) {
            Some(origin) => Some((routes::hash_key(origin.as_bytes()), KeyKind::Origin)),
            None => client.map(|client| (hash_address(client), KeyKind::Address)),
        },
        Key::User => {
            let Some(token) = access_token(head) else { return Known::Nothing };
            if let Some(user) = user_of_token(&token) {
                return Known::Key(user, KeyKind::Token);
            }
            // Only application services may say on whose behalf they ask; for others Synapse ignores it, and so little
            // is lost by believing it.
            match query_value(head.target(), "user_id").filter(|user| !user.is_empty()) {
                Some(user) => {
                    Some((routes::hash_key(localpart_of_user(&user).as_bytes()), KeyKind::Masquerade))
                }
                None => return Known::Token(token),
            }
        }
    };
    key.map_or(Known::Nothing, |(hash, kind)| Known::Key(hash, kind))
}

fn hash_address(address: IpAddr) -> u64 {
    routes::hash_key(address.to_string().as_bytes())
}

/// The localpart of a user ID, or the whole text if it is none.
pub(crate) fn localpart_of_user(user_id: &str) -> &str {
    let name = user_id.strip_prefix('@').unwrap_or(user_id);
    name.split_once(':').map_or(name, |(localpart, _)| localpart)
}

/// The origin server of a federation request: `origin` in `Authorization: X-Matrix …` (server-server API, "Request
/// Authentication"): parameters as in RFC 9110, section 11.4, except that unquoted values may hold colons.
pub(crate) fn origin(head: &RequestHead) -> Option<Cow<'_, str>> {
    head.values(Kind::Authorization).find_map(|value| origin_of(std::str::from_utf8(value).ok()?))
}

fn origin_of(value: &str) -> Option<Cow<'_, str>> {
    const BLANK: [char; 2] = [' ', '\t'];
    let (scheme, mut rest) = value.trim_matches(BLANK).split_once(BLANK)?;
    if !scheme.eq_ignore_ascii_case("x-matrix") {
        return None;
    }
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (name, after) = rest.split_once('=')?;
        let after = after.trim_start_matches(BLANK);
        let (value, next) = if let Some(quoted) = after.strip_prefix('"') {
            quoted_string(quoted)?
        } else {
            let (value, next) = after.split_once(',').unwrap_or((after, ""));
            (Cow::Borrowed(value.trim_end_matches(BLANK)), next)
        };
        if name.trim_end_matches(BLANK).eq_ignore_ascii_case("origin") {
            return (!value.is_empty()).then_some(value);
        }
        rest = next;
    }
}

/// The content of a quoted string whose opening quote was read, and what follows it.
fn quoted_string(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let end = text.find(['"', '\\'])?;
    if text.as_bytes()[end] == b'"' {
        return Some((Cow::Borrowed(&text[..end]), &text[end + 1..]));
    }
    let mut value = String::with_capacity(text.len());
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((Cow::Owned(value), &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// Query parameters whose values are secrets: access and login tokens, the tokens in mails, and what single sign-on
/// carries in its callbacks.
const SECRET_PARAMETERS: [&str; 8] =
    ["access_token", "loginToken", "login_token", "token", "client_secret", "code", "state", "session"];

/// The longest path that the access log shows, in bytes.
const MAX_LOGGED_PATH: usize = 2048;

/// Path and query as the access log may show them: without the parameters that are secrets, and not endless.
pub(crate) fn loggable(path_and_query: &str) -> String {
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    let mut out = String::with_capacity(path_and_query.len().min(MAX_LOGGED_PATH));
    out.push_str(path);
    let mut separator = '?';
    for pair in query.split(routes::SEPARATORS).filter(|pair| !pair.is_empty()) {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        let name = percent_decode_str(name).decode_utf8_lossy();
        if !SECRET_PARAMETERS.iter().any(|secret| name.eq_ignore_ascii_case(secret)) {
            out.push(separator);
            out.push_str(pair);
            separator = '&';
        }
    }
    if out.len() > MAX_LOGGED_PATH {
        let end = (0..=MAX_LOGGED_PATH).rev().find(|at| out.is_char_boundary(*at)).unwrap_or(0);
        out.truncate(end);
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::http1::HeadLimits;

    fn head(path: &str, authorization: Option<&str>) -> RequestHead {
        let line = authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
        let mut text = Bytes::from(format!("GET {path} HTTP/1.1\r\nhost: a\r\n{line}\r\n"));
        let limits = HeadLimits { bytes: 8192, headers: 100 };
        RequestHead::parse(&mut text, limits).expect("well-formed").expect("whole")
    }

    #[test]
    fn tokens_come_from_the_header_first() {
        let token = |auth: Option<&str>, path| access_token(&head(path, auth)).map(Cow::into_owned);
        assert_eq!(token(Some("Bearer abc"), "/x?access_token=q").as_deref(), Some("abc"));
        assert_eq!(token(Some("bearer  abc "), "/x").as_deref(), Some("abc"));
        assert_eq!(token(None, "/x?a=b&access_token=q%2Fr&c").as_deref(), Some("q/r"));
        assert_eq!(token(None, "/x?access%5Ftoken=q").as_deref(), Some("q"));
        // As Twisted separates.
        assert_eq!(token(None, "/x?a=1;access_token=b&user_id=c").as_deref(), Some("b"));
        assert_eq!(token(Some("Basic abc"), "/x?access_token=q"), None);
        assert_eq!(token(None, "/x?access_token="), None);
        assert_eq!(token(None, "/x"), None);
    }

    #[test]
    fn localparts_are_read_from_tokens_of_synapse() {
        let user = |localpart: &str| Some(routes::hash_key(localpart.as_bytes()));
        assert_eq!(user_of_token("syt_YWxpY2U_abcdefghijklmnopqrst_1a2b3c"), user("alice"));
        assert_eq!(user_of_token("syt_Ym9i_x_y"), user("bob"));
        for bad in
            ["syt_YWxpY2U", "syt_YWxpY2U_x", "mat_YWxpY2U_x_y", "syt__x_y", "syt_$$_x_y", "syt_/w_x_y", ""]
        {
            assert_eq!(user_of_token(bad), None, "{bad}");
        }
        assert_eq!(localpart_of_user("@alice:example.org:8448"), "alice");
        assert_eq!(localpart_of_user("alice"), "alice");
    }

    #[test]
    fn origins_are_read_as_the_specification_says() {
        let origin = |value: &str| origin(&head("/", Some(value))).map(Cow::into_owned);
        for good in [
            r#"X-Matrix origin="a.example:8448",destination="b",key="ed25519:k",sig="s""#,
            r#"X-Matrix origin=a.example:8448,key="ed25519:k",sig="s""#,
            r#"x-matrix  key="a,origin=\"evil\"" , Origin = "a.example:8448""#,
            r#"X-Matrix sig="x=",origin="a.exam\ple:8448""#,
            "X-Matrix destination=b,\torigin=a.example:8448 , sig=x",
        ] {
            assert_eq!(origin(good).as_deref(), Some("a.example:8448"), "{good}");
        }
        for bad in [
            "Bearer origin=a",
            "X-Matrix",
            "X-Matrix origin",
            r#"X-Matrix origin="a"#,
            "X-Matrix origin=",
            "X-Matrix key=a",
        ] {
            assert_eq!(origin(bad), None, "{bad}");
        }
    }

    #[test]
    fn secrets_never_reach_the_log() {
        assert_eq!(loggable("/a/b?since=s1&access_token=SECRET&x=%20"), "/a/b?since=s1&x=%20");
        assert_eq!(loggable("/a?access%5ftoken=SECRET"), "/a");
        assert_eq!(loggable("/a?x=1;access_token=SECRET;y=2"), "/a?x=1&y=2");
        assert_eq!(loggable("/a?Access_Token=SECRET&loginToken=SECRET&code=SECRET"), "/a");
        assert_eq!(loggable("/a"), "/a");
        assert!(loggable(&format!("/{}", "ä".repeat(5000))).len() <= MAX_LOGGED_PATH + 3);
    }
}
