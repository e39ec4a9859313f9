//! The protocol of Valkey and Redis (RESP 2), as far as a few commands need it.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufStream,
};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// How long the server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How large one value may be, and how many an answer may have.
const MOST_BYTES: usize = 1 << 20;
const MOST_VALUES: usize = 1 << 20;

/// Where a server is, by a URL such as `redis://:PASSWORD@HOST:PORT/DATABASE` or `redis+unix:///PATH`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Place {
    at: At,
    pub password: Option<String>,
    database: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum At {
    Tcp(String, u16),
    Unix(String),
}

impl Place {
    /// Parses a URL. Nothing if it is none of these.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        if let Some(path) = url.strip_prefix("redis+unix://").or_else(|| url.strip_prefix("unix://")) {
            return path.starts_with('/').then(|| Self {
                at: At::Unix(path.to_owned()),
                password: None,
                database: 0,
            });
        }
        let rest = url.strip_prefix("redis://").or_else(|| url.strip_prefix("valkey://"))?;
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let password = user.split_once(':').map(|(_, password)| password);
        let decode =
            |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().ok().map(Into::into);
        let password = match password.filter(|password| !password.is_empty()) {
            Some(password) => Some(decode(password)?),
            None => None,
        };
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
            _ => (host, 6379),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let database = if database.is_empty() { 0 } else { database.parse().ok()? };
        (!host.is_empty()).then(|| Self { at: At::Tcp(host.to_owned(), port), password, database })
    }
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
    /// Nothing.
    Nil,
    /// Several.
    List(Vec<Reply>),
}

impl Reply {
    /// The texts of a list.
    pub(crate) fn texts(self) -> Vec<String> {
        let Self::List(list) = self else { return Vec::new() };
        list.into_iter()
            .filter_map(|reply| if let Self::Text(text) = reply { Some(text) } else { None })
            .collect()
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// One connection.
pub(crate) struct Connection(BufStream<Box<dyn Stream>>);

impl Connection {
    /// Connects, and logs in.
    pub(crate) async fn open(place: &Place) -> io::Result<Self> {
        let connect = async {
            Ok::<Box<dyn Stream>, io::Error>(match &place.at {
                At::Tcp(host, port) => Box::new(TcpStream::connect((host.as_str(), *port)).await?),
                At::Unix(path) => Box::new(UnixStream::connect(path).await?),
            })
        };
        let mut connection = Self(BufStream::new(timeout(PATIENCE, connect).await??));
        if let Some(password) = &place.password {
            connection.ask(&["AUTH", password]).await?;
        }
        if place.database != 0 {
            connection.ask(&["SELECT", &place.database.to_string()]).await?;
        }
        Ok(connection)
    }

    /// Sends a command and reads its answer. After an error of the connection it is of no use any more.
    pub(crate) async fn ask(&mut self, words: &[&str]) -> io::Result<Reply> {
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            // Writing to a string cannot fail.
            let _ = write!(text, "${}\r\n{word}\r\n", word.len());
        }
        let asked = async {
            self.0.write_all(text.as_bytes()).await?;
            self.0.flush().await?;
            self.read().await
        };
        timeout(PATIENCE, asked).await?
    }

    /// Reads what the server says, however long that takes.
    pub(crate) async fn read(&mut self) -> io::Result<Reply> {
        // Lists within lists are flattened: nothing that is asked here has any of a meaning.
        let first = self.line().await?;
        let (kind, rest) = first.split_at_checked(1).ok_or_else(|| broken("an empty line"))?;
        if kind != "*" {
            return self.value(kind, rest).await;
        }
        let Ok(count) = usize::try_from(number(rest)?) else { return Ok(Reply::Nil) };
        let mut list = Vec::new();
        if count > MOST_VALUES {
            return Err(broken("too many values"));
        }
        for _ in 0..count {
            let line = self.line().await?;
            let (kind, rest) = line.split_at_checked(1).ok_or_else(|| broken("an empty line"))?;
            list.push(self.value(kind, rest).await?);
        }
        Ok(Reply::List(list))
    }

    async fn value(&mut self, kind: &str, rest: &str) -> io::Result<Reply> {
        match kind {
            "+" => Ok(Reply::Text(rest.to_owned())),
            "-" => Err(io::Error::other(rest.to_owned())),
            ":" => Ok(Reply::Number(number(rest)?)),
            "$" => {
                let Ok(length) = usize::try_from(number(rest)?) else { return Ok(Reply::Nil) };
                if length > MOST_BYTES {
                    return Err(broken("too long a value"));
                }
                let mut bytes = vec![0; length + 2];
                self.0.read_exact(&mut bytes).await?;
                bytes.truncate(length);
                Ok(Reply::Text(String::from_utf8_lossy(&bytes).into_owned()))
            }
            _ => Err(broken("an answer of no kind that is known")),
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        (&mut self.0).take(MOST_BYTES as u64).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8(line).map_err(|_| broken("no text"))?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

fn number(text: &str) -> io::Result<i64> {
    text.parse().map_err(|_| broken("no number where one belongs"))
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it does not speak its protocol: {what}"))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn places_are_urls() {
        let tcp = |host: &str, port, password: Option<&str>, database| {
            Some(Place { at: At::Tcp(host.into(), port), password: password.map(Into::into), database })
        };
        for (url, place) in [
            ("redis://a", tcp("a", 6379, None, 0)),
            ("redis://a:1/2", tcp("a", 1, None, 2)),
            ("valkey://:p%40w@a.b:1", tcp("a.b", 1, Some("p@w"), 0)),
            ("redis://user@[::1]:1/", tcp("::1", 1, None, 0)),
            ("redis+unix:///x/y", Some(Place { at: At::Unix("/x/y".into()), password: None, database: 0 })),
            ("rediss://a", None),
            ("redis://", None),
            ("redis://a:b", None),
            ("redis://a/x", None),
            ("redis+unix://x", None),
            ("a", None),
        ] {
            assert!(Place::parse(url) == place, "{url}");
        }
    }

    #[tokio::test]
    async fn answers_are_read_and_broken_ones_refused() {
        let good = |reply| Ok::<Reply, io::ErrorKind>(reply);
        for (said, read) in [
            ("+OK\r\n", good(Reply::Text("OK".into()))),
            (":-5\r\n", good(Reply::Number(-5))),
            ("$3\r\na\r\n\r\n", good(Reply::Text("a\r\n".into()))),
            ("$-1\r\n", good(Reply::Nil)),
            ("*-1\r\n", good(Reply::Nil)),
            ("*2\r\n$1\r\na\r\n:1\r\n", good(Reply::List(vec![Reply::Text("a".into()), Reply::Number(1)]))),
            ("-ERR no\r\n", Err(io::ErrorKind::Other)),
            ("", Err(io::ErrorKind::UnexpectedEof)),
            ("$5\r\na", Err(io::ErrorKind::UnexpectedEof)),
            ("\r\n", Err(io::ErrorKind::InvalidData)),
            ("$99999999\r\n", Err(io::ErrorKind::InvalidData)),
            ("*99999999\r\n", Err(io::ErrorKind::InvalidData)),
            ("$x\r\n", Err(io::ErrorKind::InvalidData)),
            ("!\r\n", Err(io::ErrorKind::InvalidData)),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let place = format!("redis://{}", listener.local_addr().unwrap());
            let place = Place::parse(&place).unwrap();
            let mut client = Connection::open(&place).await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            server.write_all(said.as_bytes()).await.unwrap();
            server.shutdown().await.unwrap();
            assert_eq!(client.read().await.map_err(|error| error.kind()), read, "{said}");
        }
    }
}
