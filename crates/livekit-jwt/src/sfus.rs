//! Which of several SFUs a call is on.

use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use std::sync::Arc;

use discovery::Discovery;

use crate::metrics::Metrics;
use crate::sfu::{Sfu, SfuError};
use crate::{Millis, now};

/// How many rooms are remembered, and for how long that is believed without asking.
const ROOMS: usize = 100_000;
const REMEMBERED: Millis = 60_000;
/// How long several SFUs are waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// The SFUs.
#[derive(Debug)]
pub(crate) struct Sfus {
    all: Vec<Arc<Sfu>>,
    rooms: Cache<String, (Millis, usize)>,
    /// Held while a room is given to one, so that two requests do not give it to two.
    choosing: Mutex<()>,
}

impl Sfus {
    pub(crate) fn new(all: Vec<Sfu>) -> Self {
        Self {
            all: all.into_iter().map(Arc::new).collect(),
            rooms: Cache::new(ROOMS),
            choosing: Mutex::default(),
        }
    }

    pub(crate) fn all(&self) -> &[Arc<Sfu>] {
        &self.all
    }

    /// The one with this API, or the first where it is not known any more.
    pub(crate) fn of(&self, api: &str) -> &Arc<Sfu> {
        self.all.iter().find(|sfu| sfu.api == api).unwrap_or(&self.all[0])
    }

    /// The one that a room is on, or else the one with the fewest participants. One that does not answer is left alone.
    pub(crate) async fn choose(
        &self,
        discovery: &Arc<Discovery>,
        metrics: &Metrics,
        room: &str,
    ) -> Result<&Arc<Sfu>, SfuError> {
        if let [only] = &self.all[..] {
            return Ok(only);
        }
        if let Some(at) = self.known(room) {
            return Ok(&self.all[at]);
        }
        let _choosing = self.choosing.lock().await;
        if let Some(at) = self.known(room) {
            return Ok(&self.all[at]);
        }
        let mut asked = JoinSet::new();
        for (at, sfu) in self.all.iter().enumerate() {
            let (sfu, discovery) = (sfu.clone(), discovery.clone());
            asked.spawn(async move {
                let rooms = tokio::time::timeout(PATIENCE, sfu.rooms(discovery.client(), &[])).await;
                (
                    at,
                    rooms.unwrap_or_else(|_| Err(SfuError::Request("it does not answer in time".to_owned()))),
                )
            });
        }
        let mut answers = Vec::new();
        while let Some(answer) = asked.join_next().await {
            // It does not panic.
            let Ok((at, answer)) = answer else { continue };
            match answer {
                Ok(rooms) => answers
                    .push((at, rooms.into_iter().map(|room| (room.name, room.num_participants)).collect())),
                Err(error) => {
                    metrics.sfu_failed(&self.all[at].api);
                    tracing::warn!(sfu = self.all[at].api, %error, "an SFU does not say which rooms it has");
                }
            }
        }
        let at = place(&answers, room).ok_or_else(|| SfuError::Request("no SFU answers".to_owned()))?;
        self.rooms.insert(room.to_owned(), (now(), at));
        Ok(&self.all[at])
    }

    fn known(&self, room: &str) -> Option<usize> {
        let (since, at) = self.rooms.get(room)?;
        (now().saturating_sub(since) < REMEMBERED).then_some(at)
    }
}

/// The number of the SFU for a room, of those that have said which rooms they have, with how many participants.
fn place(answers: &[(usize, Vec<(String, u32)>)], room: &str) -> Option<usize> {
    let having = answers.iter().filter_map(|(at, rooms)| {
        let (_, participants) = rooms.iter().find(|(name, _)| name == room)?;
        Some((*participants, std::cmp::Reverse(*at)))
    });
    // Should it be on two, most are on one.
    if let Some((_, at)) = having.max() {
        return Some(at.0);
    }
    let load =
        |rooms: &[(String, u32)]| rooms.iter().map(|(_, participants)| u64::from(*participants)).sum::<u64>();
    answers.iter().map(|(at, rooms)| (load(rooms), rooms.len(), *at)).min().map(|(.., at)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_stay_and_new_ones_go_where_there_is_least() {
        let rooms =
            |rooms: &[(&str, u32)]| rooms.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let answers = [(0, rooms(&[("a", 5)])), (1, rooms(&[("b", 1), ("c", 1)])), (2, rooms(&[("c", 2)]))];
        for (room, at) in [("a", 0), ("b", 1), ("c", 2), ("new", 2)] {
            assert_eq!(place(&answers, room), Some(at), "{room}");
        }
        assert_eq!(place(&[(1, rooms(&[])), (0, rooms(&[]))], "new"), Some(0));
        assert_eq!(place(&[], "new"), None);
    }
}
