//! Jobs in Valkey or Redis, shared by several processes: each job is looked after by the one that has its lease.
//!
//! The hash `lk-jwt:jobs` is the one that lk-jwt-service keeps, in its format. Leases are keys of their own that run out, so that the
//! jobs of a process that is gone are taken over by another. Should two look after one for a while, no harm is done: restarting
//! twice is restarting, and sending twice is sending.

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::Millis;
use crate::job::Params;
use crate::resp::{Connection, Place, Reply};

const JOBS: &str = "lk-jwt:jobs";
/// Before a job's field in [`JOBS`]: who looks after it.
const LEASE: &str = "matrix-stack:livekit-jwt:lease:";
/// Where processes tell each other what SFUs have told them.
const CHANNEL: &str = "matrix-stack:livekit-jwt:events";
/// How long a lease lasts, and how often it is renewed.
const LEASED: Duration = Duration::from_secs(15);
pub(crate) const RENEWED: Duration = Duration::from_secs(3);

/// Valkey, with a connection that is made anew after an error.
pub(crate) struct Valkey {
    place: Place,
    connection: Mutex<Option<Connection>>,
    /// What tells this process from others.
    own: String,
}

impl std::fmt::Debug for Valkey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Valkey({})", self.own)
    }
}

/// A job as lk-jwt-service stores it.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Stored {
    params: StoredParams,
    /// By RFC 3339.
    restarted_at: String,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct StoredParams {
    delay_id: String,
    /// In nanoseconds.
    delay_timeout: u64,
    server_name: String,
    live_kit_room: String,
    live_kit_identity: String,
    /// Ours; others pass it over, and lose it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    sfu: String,
}

fn written(job: &Params, restarted: Millis) -> Option<String> {
    let stored = Stored {
        params: StoredParams {
            delay_id: job.delay_id.clone(),
            delay_timeout: job.timeout.saturating_mul(1_000_000),
            server_name: job.server.clone(),
            live_kit_room: job.room.clone(),
            live_kit_identity: job.identity.clone(),
            sfu: job.sfu.clone(),
        },
        restarted_at: Timestamp::from_millisecond(i64::try_from(restarted).ok()?).ok()?.to_string(),
    };
    serde_json::to_string(&stored).ok()
}

fn read(text: &str) -> Option<(Params, Millis)> {
    let Stored { params, restarted_at } = serde_json::from_str(text).ok()?;
    let job = Params {
        room: params.live_kit_room,
        identity: params.live_kit_identity,
        server: params.server_name,
        delay_id: params.delay_id,
        timeout: params.delay_timeout / 1_000_000,
        sfu: params.sfu,
    };
    Some((job, restarted_at.parse::<Timestamp>().ok()?.as_millisecond().try_into().ok()?))
}

/// A job's field.
fn field(job: &Params) -> String {
    serde_json::Value::from([job.room.as_str(), job.identity.as_str()].as_slice()).to_string()
}

fn lease(job: &Params) -> String {
    format!("{LEASE}{}", field(job))
}

impl Valkey {
    /// Connects. `own` tells this process from others.
    pub(crate) async fn connect(place: Place, own: String) -> io::Result<Self> {
        let connection = Connection::open(&place).await?;
        Ok(Self { place, connection: Mutex::new(Some(connection)), own })
    }

    async fn ask(&self, words: &[&str]) -> io::Result<Reply> {
        let mut kept = self.connection.lock().await;
        // One that is dropped in the middle of an answer is not used again.
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => Connection::open(&self.place).await?,
        };
        let reply = connection.ask(words).await?;
        *kept = Some(connection);
        Ok(reply)
    }

    /// All jobs that others do not look after, which are looked after here from now on.
    pub(crate) async fn claim(&self, running: impl Fn(&Params) -> bool) -> io::Result<Vec<(Params, Millis)>> {
        let all = self.ask(&["HGETALL", JOBS]).await?.texts();
        let mut claimed = Vec::new();
        for pair in all.chunks_exact(2) {
            let Some((job, restarted)) = read(&pair[1]).filter(|(job, _)| field(job) == pair[0]) else {
                continue;
            };
            if !running(&job) && self.lease(&job, true).await? {
                claimed.push((job, restarted));
            }
        }
        Ok(claimed)
    }

    /// Takes a job's lease; only if it is free, or from whomever.
    async fn lease(&self, job: &Params, free: bool) -> io::Result<bool> {
        let (key, time) = (lease(job), milliseconds(LEASED));
        let words = ["SET", &key, &self.own, "PX", &time, "NX"];
        let words = if free { &words[..] } else { &words[..5] };
        Ok(self.ask(words).await? != Reply::Nil)
    }

    /// Keeps a new job, which is looked after here from now on whoever did before.
    pub(crate) async fn add(&self, job: &Params, restarted: Millis) -> io::Result<()> {
        self.lease(job, false).await?;
        self.save(job, restarted).await
    }

    /// Keeps a job, unless another process looks after it by now.
    pub(crate) async fn save(&self, job: &Params, restarted: Millis) -> io::Result<()> {
        const SAVE: &str = "local has = redis.call('GET', KEYS[1])
            if has and has ~= ARGV[1] then return 0 end
            return redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])";
        let Some(text) = written(job, restarted) else { return Ok(()) };
        self.ask(&["EVAL", SAVE, "2", &lease(job), JOBS, &self.own, &field(job), &text]).await.map(drop)
    }

    /// Goes on to look after a job. False if another does by now.
    pub(crate) async fn renew(&self, job: &Params) -> io::Result<bool> {
        const RENEW: &str = "local has = redis.call('GET', KEYS[1])
            if has and has ~= ARGV[1] then return 0 end
            redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1";
        let reply = self.ask(&["EVAL", RENEW, "1", &lease(job), &self.own, &milliseconds(LEASED)]).await?;
        Ok(reply == Reply::Number(1))
    }

    /// Looks after a job no more; and forgets it, if it is over. What another looks after is left alone.
    pub(crate) async fn release(&self, job: &Params, over: bool) -> io::Result<()> {
        const RELEASE: &str = "local has = redis.call('GET', KEYS[1])
            if has and has ~= ARGV[1] then return 0 end
            if ARGV[2] == '1' then redis.call('HDEL', KEYS[2], ARGV[3]) end
            return redis.call('DEL', KEYS[1])";
        let over = if over { "1" } else { "0" };
        self.ask(&["EVAL", RELEASE, "2", &lease(job), JOBS, &self.own, over, &field(job)]).await.map(drop)
    }

    /// Tells the other processes something.
    pub(crate) async fn publish(&self, text: &str) -> io::Result<()> {
        self.ask(&["PUBLISH", CHANNEL, text]).await.map(drop)
    }

    /// Listens to what processes tell, this one too, until the connection ends.
    pub(crate) async fn listen(&self, mut hear: impl FnMut(&str)) -> io::Result<()> {
        let mut connection = Connection::open(&self.place).await?;
        connection.ask(&["SUBSCRIBE", CHANNEL]).await?;
        loop {
            if let [_, _, text] = &connection.read().await?.texts()[..] {
                hear(text);
            }
        }
    }
}

fn milliseconds(time: Duration) -> String {
    time.as_millis().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_stored_as_by_others() {
        let text = r#"{"Params":{"DelayId":"d","DelayTimeout":8000000000,"ServerName":"a.org","LiveKitRoom":"r","LiveKitIdentity":"i"},"RestartedAt":"2026-01-02T03:04:05.678901234+01:00"}"#;
        let (mut job, restarted) = read(text).unwrap();
        assert_eq!((job.timeout, restarted, field(&job).as_str()), (8000, 1_767_319_445_678, r#"["r","i"]"#));
        assert!(written(&job, restarted).unwrap().contains(r#""RestartedAt":"2026-01-02T02:04:05.678Z""#));
        job.sfu = "http://x".into();
        assert_eq!(read(&written(&job, restarted).unwrap()), Some((job, restarted)));
        assert_eq!(read("{}"), None);
    }
}
