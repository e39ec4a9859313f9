//! Where jobs are kept over a restart.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, params};
use tokio::task::spawn_blocking;

use crate::Millis;
use crate::config::DelayedLeaves;
use crate::job::Params;
use crate::resp::Place;
use crate::valkey::Valkey;

/// Jobs, each with the time at which its homeserver began to wait.
#[derive(Clone, Debug)]
pub(crate) enum Store {
    /// Nowhere.
    Nowhere,
    /// In a file of `SQLite`.
    File(Arc<Mutex<Connection>>),
    /// In Valkey, which other processes use as well.
    Valkey(Arc<Valkey>),
}

/// Jobs cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened.
    #[error("delayed_leaves.store: cannot use `{}`: {error}; name a file that this user may write, in a directory that exists", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: rusqlite::Error,
    },
    /// Valkey does not answer.
    #[error(
        "delayed_leaves.valkey: {error}; name a Valkey or Redis that can be reached, and its password's file if it has one"
    )]
    Connect {
        /// Why not.
        error: std::io::Error,
    },
    /// The password of Valkey cannot be read.
    #[error("delayed_leaves.valkey_password_file: {0}")]
    Password(#[from] config::secrets::SecretError),
    /// A query failed.
    #[error("the stored delayed leaves: {0}")]
    Query(#[from] rusqlite::Error),
    /// A command failed.
    #[error("the stored delayed leaves: {0}")]
    Command(#[from] std::io::Error),
}

impl Store {
    /// The store that a configuration names.
    pub(crate) async fn of(settings: &DelayedLeaves) -> Result<Self, StoreError> {
        let Some(url) = &settings.valkey else { return Self::open(settings.store.as_deref()) };
        let password = settings.valkey_password_file.as_deref().map(config::secrets::read).transpose()?;
        // Nobody has to guess it.
        let mut own = [0; 8];
        let _ = getrandom::fill(&mut own);
        let own = format!("{}-{}", std::process::id(), hex::encode(own));
        let failed = |error| StoreError::Connect { error };
        let mut place = Place::parse(url).ok_or_else(|| {
            failed(std::io::Error::other(
                "it is not written as `redis://HOST:PORT/DATABASE` or `redis+unix:///PATH`",
            ))
        })?;
        if let Some(password) = password {
            place.password = Some(password.expose().to_owned());
        }
        Ok(Self::Valkey(Arc::new(Valkey::connect(place, own).await.map_err(failed)?)))
    }

    /// What several processes share, if they do.
    pub(crate) fn shared(&self) -> Option<&Valkey> {
        if let Self::Valkey(valkey) = self { Some(valkey) } else { None }
    }

    /// Opens a file, and makes it if need be.
    fn open(path: Option<&Path>) -> Result<Self, StoreError> {
        let Some(path) = path else { return Ok(Self::Nowhere) };
        let open = || {
            let connection = Connection::open(path)?;
            connection.busy_timeout(std::time::Duration::from_secs(5))?;
            // A leave that is lost with the power is sent by the homeserver when its time is over.
            connection.execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
                 CREATE TABLE IF NOT EXISTS jobs (
                     room TEXT NOT NULL, identity TEXT NOT NULL, params TEXT NOT NULL, restarted INTEGER NOT NULL,
                     PRIMARY KEY (room, identity)) STRICT;",
            )?;
            Ok(connection)
        };
        let connection = open().map_err(|error| StoreError::Open { path: path.to_owned(), error })?;
        Ok(Self::File(Arc::new(Mutex::new(connection))))
    }

    /// All jobs that are not `running` here and that nobody else looks after. What cannot be read is left out.
    pub(crate) async fn all(
        &self,
        running: impl Fn(&Params) -> bool,
    ) -> Result<Vec<(Params, Millis)>, StoreError> {
        if let Self::Valkey(valkey) = self {
            return Ok(valkey.claim(running).await?);
        }
        self.with(|connection| {
            let mut query = connection.prepare("SELECT params, restarted FROM jobs")?;
            let rows = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
            let mut jobs = Vec::new();
            for row in rows {
                let (text, restarted) = row?;
                if let (Ok(job), Ok(restarted)) = (serde_json::from_str(&text), restarted.try_into()) {
                    jobs.push((job, restarted));
                }
            }
            Ok(jobs)
        })
        .await
    }

    /// Keeps a new job, in place of another of the same member.
    pub(crate) async fn add(&self, job: &Params, restarted: Millis) -> Result<(), StoreError> {
        match self {
            Self::Valkey(valkey) => Ok(valkey.add(job, restarted).await?),
            _ => self.save(job, restarted).await,
        }
    }

    /// Keeps what has changed of a job.
    pub(crate) async fn save(&self, job: &Params, restarted: Millis) -> Result<(), StoreError> {
        if let Self::Valkey(valkey) = self {
            return Ok(valkey.save(job, restarted).await?);
        }
        let job = job.clone();
        self.with(move |connection| {
            let text = serde_json::to_string(&job).unwrap_or_default();
            let restarted = i64::try_from(restarted).unwrap_or(i64::MAX);
            connection.execute(
                "INSERT OR REPLACE INTO jobs (room, identity, params, restarted) VALUES (?1, ?2, ?3, ?4)",
                params![job.room, job.identity, text, restarted],
            )?;
            Ok(())
        })
        .await
    }

    /// Forgets a job.
    pub(crate) async fn remove(&self, job: &Params) -> Result<(), StoreError> {
        if let Self::Valkey(valkey) = self {
            return Ok(valkey.release(job, true).await?);
        }
        let (room, identity) = (job.room.clone(), job.identity.clone());
        self.with(move |connection| {
            connection
                .execute("DELETE FROM jobs WHERE room = ?1 AND identity = ?2", params![room, identity])?;
            Ok(())
        })
        .await
    }

    async fn with<T: Send + Default + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let Self::File(connection) = self else { return Ok(T::default()) };
        let connection = connection.clone();
        let done =
            spawn_blocking(move || query(&connection.lock().unwrap_or_else(PoisonError::into_inner))).await;
        // It does not panic, and is not aborted.
        Ok(done.unwrap_or_else(|_| Ok(T::default()))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(identity: &str, delay_id: &str) -> Params {
        Params {
            room: "r".into(),
            identity: identity.into(),
            server: "a".into(),
            delay_id: delay_id.into(),
            timeout: 8000,
            sfu: "http://x".into(),
        }
    }

    #[tokio::test]
    async fn jobs_are_there_again_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jobs.sqlite");
        let store = Store::open(Some(&path)).unwrap();
        store.save(&job("i", "d1"), 5).await.unwrap();
        store.save(&job("i", "d2"), 6).await.unwrap();
        store.save(&job("j", "d3"), 7).await.unwrap();
        store.save(&job("k", "d4"), 8).await.unwrap();
        store.remove(&job("k", "d4")).await.unwrap();
        drop(store);
        let mut jobs = Store::open(Some(&path)).unwrap().all(|_| false).await.unwrap();
        jobs.sort_by_key(|(_, restarted)| *restarted);
        assert_eq!(jobs, [(job("i", "d2"), 6), (job("j", "d3"), 7)]);

        let nowhere = Store::open(None).unwrap();
        nowhere.save(&job("i", "d"), 5).await.unwrap();
        assert_eq!(nowhere.all(|_| false).await.unwrap(), []);
        let error = Store::open(Some(&directory.path().join("no/such"))).unwrap_err().to_string();
        assert!(error.contains("in a directory that exists"), "{error}");
    }
}
