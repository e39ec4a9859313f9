//! The loop: look, do, wait, until there is nothing left to do or for ever.

use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::{Cluster, ClusterError, News, Seen};
use crate::lease::{self, Held};
use crate::next::{Next, Step, next};
use crate::status::Status;

/// How a rollout goes about it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who this is, for the lease: another name for each process that runs at the same time.
    pub identity: String,
    /// How many workloads may restart at the same time.
    pub at_once: usize,
    /// How long to wait between two looks while pods come and go.
    pub poll: Duration,
}

/// How long to wait at most between two looks while nothing happens; the lease is renewed as often.
const IDLE: Duration = Duration::from_secs(10);

/// How long a round may take. A round begins at most [`lease::RENEW`] after the lease was renewed and so ends before
/// somebody else may act.
const ROUND: Duration = Duration::from_secs((lease::DURATION_SECONDS as u64) - lease::RENEW.as_secs());

/// The longest wait after failures.
const BACKOFF: Duration = Duration::from_secs(30);

/// A rollout did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// The desired stack cannot be rolled out; nothing was changed for it.
    #[error("the desired stack is refused, and what was applied before goes on: {0}")]
    Refused(String),
    /// It took too long.
    #[error(
        "not all is applied and ready after {seconds} s: {}; a rollout that is started again goes on from there",
        .waiting.join("; ")
    )]
    Timeout {
        /// After so long.
        seconds: u64,
        /// What it waits for.
        waiting: Vec<String>,
    },
}

/// Rolls the desired stack out, once: until all is applied and ready.
///
/// # Errors
/// The stack is refused, or it takes longer than `timeout`. Requests that fail are made again until then.
pub async fn once(
    cluster: &Cluster,
    options: &Options,
    status: Status,
    timeout: Duration,
) -> Result<(), RolloutError> {
    let mut rollout = Rollout::new(cluster, options, status);
    let end = Instant::now() + timeout;
    loop {
        match tokio::time::timeout_at(end, rollout.round()).await {
            Ok(Round::Done) => {
                rollout.lease.release().await;
                return Ok(());
            }
            Ok(Round::Refused(reason)) => {
                rollout.lease.release().await;
                return Err(RolloutError::Refused(reason));
            }
            Ok(Round::Again(pause)) => {
                let _ = tokio::time::timeout_at(end, tokio::time::sleep(pause)).await;
            }
            Err(_) => {
                rollout.lease.release().await;
                return Err(RolloutError::Timeout { seconds: timeout.as_secs(), waiting: rollout.told });
            }
        }
    }
}

/// Rolls out whatever stack is desired, until `end`.
pub async fn control(cluster: &Cluster, options: &Options, status: Status, end: impl Future<Output = ()>) {
    let mut rollout = Rollout::new(cluster, options, status);
    let rounds = async {
        loop {
            match rollout.round().await {
                Round::Again(pause) => tokio::time::sleep(pause).await,
                Round::Done | Round::Refused(_) => rollout.idle().await,
            }
        }
    };
    // It may end in the middle of a request: whoever comes next goes on from what is in the cluster.
    tokio::select! {
        () = rounds => {}
        () = end => {}
    }
    rollout.lease.release().await;
}

/// How a round ended.
enum Round {
    Done,
    Refused(String),
    /// There is more to do, after this.
    Again(Duration),
}

struct Rollout<'a> {
    cluster: &'a Cluster,
    options: &'a Options,
    status: Status,
    lease: Held,
    /// What was last said to be waited for.
    told: Vec<String>,
    /// What was last seen, while nothing was left to do.
    seen: Option<Seen>,
    failures: u32,
}

impl<'a> Rollout<'a> {
    fn new(cluster: &'a Cluster, options: &'a Options, status: Status) -> Self {
        let lease = Held::new(cluster, &options.identity);
        Self { cluster, options, status, lease, told: Vec::new(), seen: None, failures: 0 }
    }

    /// Looks, and does what can be done at once.
    async fn round(&mut self) -> Round {
        let error = match tokio::time::timeout(ROUND, self.try_round()).await {
            Ok(Ok(round)) => {
                self.failures = 0;
                return round;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the API server took more than {} s to answer", ROUND.as_secs()),
        };
        self.status.failed();
        tracing::warn!(error, "trying again");
        self.told = vec![error];
        let pause = self.options.poll * 2u32.saturating_pow(self.failures.min(10));
        self.failures += 1;
        Round::Again(pause.min(BACKOFF))
    }

    async fn try_round(&mut self) -> Result<Round, ClusterError> {
        let holds = self.lease.hold().await?;
        self.status.holds(holds);
        if !holds {
            self.say(vec!["another rollout of this release is at work".to_owned()]);
            return Ok(Round::Again(self.options.poll));
        }
        let seen = self.cluster.see().await?;
        let next = next(&seen.observed, self.options.at_once);
        self.status.saw(&next);
        if let Some(reason) = &next.refused {
            self.news(&seen, News::Refused, reason).await;
        }
        self.say(next.waiting.clone());
        for step in &next.steps {
            tracing::info!(%step, "rollout");
            self.cluster.take(step, &seen).await?;
            self.status.did(step);
            if matches!(step, Step::Apply { .. }) {
                self.news(&seen, News::Applied, "pods that start from now on have the desired stack").await;
            }
        }
        let Next { steps, waiting, refused } = next;
        if !steps.is_empty() {
            return Ok(Round::Again(Duration::ZERO));
        }
        if !waiting.is_empty() {
            return Ok(Round::Again(self.options.poll));
        }
        if refused.is_none() {
            self.news(&seen, News::Complete, "all pods run with the desired stack and are ready").await;
        }
        self.seen = Some(seen);
        Ok(refused.map_or(Round::Done, Round::Refused))
    }

    /// Says what is waited for, when that changed.
    fn say(&mut self, waiting: Vec<String>) {
        if !waiting.is_empty() && waiting != self.told {
            tracing::info!(waiting = waiting.join("; "), "rollout");
        }
        self.told = waiting;
    }

    /// Tells something to whoever looks at the log or at the cluster's events. That this fails stops nothing.
    async fn news(&self, seen: &Seen, news: News, note: &str) {
        if self.status.is_new(news, note) {
            match news {
                News::Refused => tracing::error!(reason = note, "the desired stack is refused"),
                News::Applied | News::Complete => tracing::info!("{note}"),
            }
            if let Err(error) = self.cluster.tell(seen, news, note, &self.options.identity).await {
                tracing::warn!(%error, "the event is missing");
            }
        }
    }

    async fn idle(&mut self) {
        if let Some(seen) = self.seen.take() {
            self.cluster.wait(&seen, IDLE).await;
        }
    }
}
