//! Where jobs are kept over a restart.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, params};
use tokio::task::spawn_blocking;

use crate::Millis;
use crate::job::Params;

/// Jobs, each with the time at which its homeserver began to wait.
#[derive(Clone, Debug)]
pub(crate) enum Store {
    /// Nowhere.
    Nowhere,
    /// In a file of `SQLite`.
    File(Arc<Mutex<Connection>>),
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
    /// A query failed.
    #[error("the stored delayed leaves: {0}")]
    Query(#[from] rusqlite::Error),
}

impl Store {
    /// Opens a file, and makes it if need be.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, StoreError> {
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

    /// All jobs. What cannot be read is left out.
    pub(crate) async fn all(&self) -> Result<Vec<(Params, Millis)>, StoreError> {
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

    /// Keeps a job, in place of another of the same member.
    pub(crate) async fn save(&self, job: &Params, restarted: Millis) -> Result<(), StoreError> {
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
        let mut jobs = Store::open(Some(&path)).unwrap().all().await.unwrap();
        jobs.sort_by_key(|(_, restarted)| *restarted);
        assert_eq!(jobs, [(job("i", "d2"), 6), (job("j", "d3"), 7)]);

        let nowhere = Store::open(None).unwrap();
        nowhere.save(&job("i", "d"), 5).await.unwrap();
        assert_eq!(nowhere.all().await.unwrap(), []);
        let error = Store::open(Some(&directory.path().join("no/such"))).unwrap_err().to_string();
        assert!(error.contains("in a directory that exists"), "{error}");
    }
}
