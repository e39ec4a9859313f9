//! One delayed leave that is looked after, without clocks and sockets: the time is passed in, what is to be done comes out.
//!
//! ```text
//! Waiting ──there──▶ Connected ──left, gone──▶ Disconnected ──sent──▶ Ended
//!    │ └──never came──────────────────────────────▲  │
//!    └──connection failed──▶ Ended ◀──event gone, too late──┘         any ──replaced──▶ Ended
//! ```
//!
//! The homeserver sends the leave by itself once nobody has restarted it for `timeout`. While the member is connected it is
//! restarted; when they have gone it is sent at once.

use serde::{Deserialize, Serialize};

use crate::Millis;

/// What is looked after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Params {
    /// The LiveKit room.
    pub room: String,
    /// The LiveKit identity.
    pub identity: String,
    /// The member's homeserver.
    pub server: String,
    /// The delayed event's ID.
    pub delay_id: String,
    /// After how long the homeserver sends it, in milliseconds.
    pub timeout: Millis,
    /// The API of the SFU that has the room. Empty: the first.
    #[serde(default)]
    pub sfu: String,
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// The member has a token and is not seen on the SFU yet.
    Waiting,
    /// The member is there.
    Connected,
    /// The member is gone, and the leave is to be sent.
    Disconnected,
    /// There is nothing left to do.
    Ended(End),
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    /// The leave was sent, or had been.
    Sent,
    /// The member's connection failed before it began; the homeserver sends the leave in time.
    ConnectionFailed,
    /// The homeserver does not know the delayed event any more.
    EventGone,
    /// The homeserver could not be reached before it sent the leave by itself.
    TooLate,
    /// The homeserver does not say where its client-server API is.
    NoApi,
    /// Another delayed leave of the same member has taken its place.
    Replaced,
}

impl End {
    /// Its name in metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::ConnectionFailed => "connection_failed",
            Self::EventGone => "event_gone",
            Self::TooLate => "too_late",
            Self::NoApi => "no_api",
            Self::Replaced => "replaced",
        }
    }
}

/// What may happen to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Event {
    /// The SFU says that the member has come.
    Connected,
    /// The SFU says that the member has left on purpose.
    Left,
    /// The SFU says that the member's connection was lost, or never came to be.
    Aborted,
    /// Another job takes this one's place.
    Replaced,
    /// The SFU was asked: is the member there? Nothing if it did not answer.
    LookedUp(Option<bool>),
    /// The homeserver was asked to restart or send.
    Answered(Answered),
    /// Time has passed.
    Tick,
}

/// What the homeserver said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Answered {
    /// It has done so.
    Done,
    /// It does not know the event.
    NotFound,
    /// Not now; perhaps after so many milliseconds.
    Later(Option<Millis>),
    /// Its client-server API cannot be found.
    NoApi,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Ask the SFU whether the member is there, and say [`Event::LookedUp`].
    LookUp,
    /// Have the homeserver begin anew to wait, and say [`Event::Answered`].
    Restart,
    /// Have the homeserver send the event, and say [`Event::Answered`].
    Send,
    /// Say [`Event::Tick`].
    Tick,
}

const SECOND: Millis = 1000;
const HOUR: Millis = 3600 * SECOND;
/// The longest pause between two attempts.
const MOST_BACKOFF: Millis = 60 * SECOND;

/// A job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    /// What it looks after.
    pub params: Params,
    state: State,
    /// When the homeserver began to wait the last time.
    restarted: Millis,
    /// When this state's time is over.
    until: Millis,
    /// When the homeserver is asked next, if it is.
    act: Option<Millis>,
    /// When the SFU is asked next, if it is.
    look: Option<Millis>,
    /// The pause after the next failure.
    backoff: Millis,
    /// How often the SFU is asked about a member that is there. 0: never.
    check_every: Millis,
}

impl Job {
    /// A job that begins now. `check_every`: how often the SFU is asked whether a connected member is still there; 0: never.
    pub(crate) fn new(params: Params, now: Millis, check_every: Millis) -> Self {
        Self::at(params, now, now, check_every)
    }

    /// A job that goes on, after another process has looked after it. Nothing if the homeserver has sent the leave by now.
    pub(crate) fn restored(
        params: Params,
        restarted: Millis,
        now: Millis,
        check_every: Millis,
    ) -> Option<Self> {
        let ends = restarted.saturating_add(params.timeout);
        (restarted <= now && now < ends).then(|| Self::at(params, restarted, now, check_every))
    }

    fn at(params: Params, restarted: Millis, now: Millis, check_every: Millis) -> Self {
        let until = restarted.saturating_add(params.timeout.min(HOUR)).max(now);
        Self {
            params,
            state: State::Waiting,
            restarted,
            until,
            act: None,
            look: Some(now),
            backoff: SECOND,
            check_every,
        }
    }

    /// Where it is.
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// When the homeserver began to wait the last time.
    pub(crate) fn restarted(&self) -> Millis {
        self.restarted
    }

    /// What is to be done next, and when. Nothing if it has ended.
    pub(crate) fn next(&self) -> Option<(Millis, Action)> {
        let look = self.look.map(|at| (at, Action::LookUp));
        let act = self
            .act
            .map(|at| (at, if self.state == State::Connected { Action::Restart } else { Action::Send }));
        match self.state {
            State::Ended(_) => None,
            // What the homeserver needs goes first.
            _ => {
                [act, look, Some((self.until, Action::Tick))].into_iter().flatten().min_by_key(|(at, _)| *at)
            }
        }
    }

    /// Takes note of what has happened. What means nothing in this state is ignored.
    pub(crate) fn on(&mut self, event: Event, now: Millis) {
        match (self.state, event) {
            (State::Ended(_), _) => {}
            (_, Event::Replaced) => self.end(End::Replaced),
            (State::Waiting, Event::Connected | Event::LookedUp(Some(true))) => self.connect(now),
            (State::Waiting, Event::Aborted) => self.end(End::ConnectionFailed),
            (State::Waiting, Event::LookedUp(_)) => self.look = Some(now + self.back_off()),
            (State::Waiting, Event::Tick) if now >= self.until => self.disconnect(now),
            (State::Connected, Event::Left | Event::Aborted | Event::LookedUp(Some(false))) => {
                self.disconnect(now);
            }
            (State::Connected, Event::LookedUp(_)) => self.look = self.check(now),
            (State::Connected, Event::Answered(answered)) => match answered {
                Answered::Done => {
                    self.restarted = now;
                    self.until = now.saturating_add(self.params.timeout);
                    self.act = Some(now.saturating_add(self.params.timeout / 5 * 4).max(now + 1));
                    self.backoff = SECOND;
                }
                Answered::NotFound => self.end(End::EventGone),
                Answered::NoApi => self.end(End::NoApi),
                Answered::Later(after) => self.retry(after, now),
            },
            (State::Disconnected, Event::Answered(answered)) => match answered {
                // The homeserver may have sent it by itself a moment ago.
                Answered::Done | Answered::NotFound => self.end(End::Sent),
                Answered::NoApi => self.end(End::NoApi),
                Answered::Later(after) => self.retry(after, now),
            },
            (State::Connected | State::Disconnected, Event::Tick) if now >= self.until => {
                self.end(End::TooLate);
            }
            _ => {}
        }
    }

    fn connect(&mut self, now: Millis) {
        self.state = State::Connected;
        self.until = self.restarted.saturating_add(self.params.timeout);
        self.act = Some(now);
        self.look = self.check(now);
        self.backoff = SECOND;
    }

    fn disconnect(&mut self, now: Millis) {
        let left = self.restarted.saturating_add(self.params.timeout).saturating_sub(now);
        self.state = State::Disconnected;
        self.until = now + left.clamp(SECOND, HOUR);
        self.act = Some(now);
        self.look = None;
        self.backoff = SECOND;
    }

    fn end(&mut self, end: End) {
        self.state = State::Ended(end);
        (self.act, self.look) = (None, None);
    }

    fn check(&self, now: Millis) -> Option<Millis> {
        (self.check_every > 0).then(|| now + self.check_every)
    }

    fn retry(&mut self, after: Option<Millis>, now: Millis) {
        let pause = self.back_off();
        // A homeserver that asks for more time than there is would keep the leave from being sent at all: the last attempt is just
        // before the end.
        let last = self.until.saturating_sub(SECOND / 2).max(now + SECOND / 2);
        self.act = Some((now + after.map_or(pause, |after| after.clamp(SECOND / 2, HOUR))).min(last));
    }

    /// The pause after a failure: a second, and half as long again each time.
    fn back_off(&mut self) -> Millis {
        let pause = self.backoff;
        self.backoff = (pause + pause / 2).min(MOST_BACKOFF);
        pause
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Millis = 1_000_000_000;

    fn params(timeout: Millis) -> Params {
        let text = |text: &str| text.to_owned();
        Params {
            room: text("r"),
            identity: text("i"),
            server: text("a"),
            delay_id: text("d"),
            timeout,
            sfu: text(""),
        }
    }

    fn job(events: &[Event]) -> Job {
        let mut job = Job::new(params(10_000), NOW, 30_000);
        for event in events {
            job.on(*event, NOW);
        }
        job
    }

    const DONE: Event = Event::Answered(Answered::Done);
    const NOT_FOUND: Event = Event::Answered(Answered::NotFound);
    const NO_API: Event = Event::Answered(Answered::NoApi);
    const LATER: Event = Event::Answered(Answered::Later(None));

    #[test]
    fn each_state_goes_where_its_events_lead() {
        use Event::{Aborted, Connected, Left, LookedUp, Replaced, Tick};
        let waiting: &[Event] = &[];
        let connected: &[Event] = &[Connected];
        let disconnected: &[Event] = &[Connected, Left];
        let ended = State::Ended;
        for (before, event, after) in [
            (waiting, Connected, State::Connected),
            (waiting, LookedUp(Some(true)), State::Connected),
            (waiting, LookedUp(Some(false)), State::Waiting),
            (waiting, LookedUp(None), State::Waiting),
            (waiting, Left, State::Waiting),
            (waiting, Aborted, ended(End::ConnectionFailed)),
            (waiting, Replaced, ended(End::Replaced)),
            (waiting, DONE, State::Waiting),
            (waiting, NOT_FOUND, State::Waiting),
            (waiting, Tick, State::Waiting),
            (connected, Connected, State::Connected),
            (connected, Left, State::Disconnected),
            (connected, Aborted, State::Disconnected),
            (connected, LookedUp(Some(false)), State::Disconnected),
            (connected, LookedUp(Some(true)), State::Connected),
            (connected, LookedUp(None), State::Connected),
            (connected, DONE, State::Connected),
            (connected, LATER, State::Connected),
            (connected, NOT_FOUND, ended(End::EventGone)),
            (connected, NO_API, ended(End::NoApi)),
            (connected, Replaced, ended(End::Replaced)),
            (connected, Tick, State::Connected),
            (disconnected, DONE, ended(End::Sent)),
            (disconnected, NOT_FOUND, ended(End::Sent)),
            (disconnected, LATER, State::Disconnected),
            (disconnected, NO_API, ended(End::NoApi)),
            (disconnected, Replaced, ended(End::Replaced)),
            (disconnected, Connected, State::Disconnected),
            (disconnected, Left, State::Disconnected),
            (disconnected, Aborted, State::Disconnected),
            (disconnected, LookedUp(Some(true)), State::Disconnected),
            (disconnected, Tick, State::Disconnected),
        ] {
            let mut job = job(before);
            job.on(event, NOW);
            assert_eq!(job.state(), after, "{before:?}, {event:?}");
            if let State::Ended(_) = after {
                job.on(Connected, NOW);
                assert_eq!((job.state(), job.next()), (after, None));
            }
        }
    }

    #[test]
    fn a_member_that_stays_is_held_and_then_let_go() {
        let mut job = job(&[]);
        assert_eq!(job.next(), Some((NOW, Action::LookUp)));
        job.on(Event::LookedUp(Some(false)), NOW);
        assert_eq!(job.next(), Some((NOW + 1000, Action::LookUp)));
        job.on(Event::Connected, NOW + 500);
        assert_eq!(job.next(), Some((NOW + 500, Action::Restart)));
        job.on(DONE, NOW + 600);
        assert_eq!((job.next(), job.restarted()), (Some((NOW + 8600, Action::Restart)), NOW + 600));
        job.on(LATER, NOW + 8700);
        assert_eq!(job.next(), Some((NOW + 9700, Action::Restart)));
        job.on(Event::Answered(Answered::Later(Some(3000))), NOW + 9800);
        // Not after the homeserver has given up.
        assert_eq!(job.next(), Some((NOW + 10_300, Action::Restart)));
        job.on(DONE, NOW + 10_300);
        job.on(Event::Left, NOW + 11_000);
        assert_eq!(job.next(), Some((NOW + 11_000, Action::Send)));
        job.on(LATER, NOW + 11_000);
        assert_eq!(job.next(), Some((NOW + 12_000, Action::Send)));
        job.on(LATER, NOW + 12_000);
        assert_eq!(job.next(), Some((NOW + 13_500, Action::Send)));
        job.on(DONE, NOW + 13_500);
        assert_eq!(job.state(), State::Ended(End::Sent));
    }

    #[test]
    fn time_runs_out() {
        let mut never = job(&[]);
        never.look = None;
        assert_eq!(never.next(), Some((NOW + 10_000, Action::Tick)));
        never.on(Event::Tick, NOW + 10_000);
        // The leave is due anyway; it is sent at once, and tried for a second.
        assert_eq!((never.state(), never.next()), (State::Disconnected, Some((NOW + 10_000, Action::Send))));
        never.on(LATER, NOW + 10_000);
        never.on(Event::Tick, NOW + 11_000);
        assert_eq!(never.state(), State::Ended(End::TooLate));

        let mut unreachable = job(&[Event::Connected]);
        unreachable.on(LATER, NOW + 9900);
        unreachable.on(Event::Tick, NOW + 10_000);
        assert_eq!(unreachable.state(), State::Ended(End::TooLate));

        // However long the homeserver would wait, nobody waits for more than an hour.
        let long = Job::new(params(100 * HOUR), NOW, 0);
        assert_eq!(long.until, NOW + HOUR);
    }

    #[test]
    fn members_that_are_there_are_looked_for_now_and_then() {
        let mut job = job(&[Event::Connected]);
        assert_eq!(job.look, Some(NOW + 30_000));
        job.on(Event::LookedUp(None), NOW + 30_000);
        assert_eq!(job.look, Some(NOW + 60_000));
        let mut never = Job::new(params(10_000), NOW, 0);
        never.on(Event::Connected, NOW);
        assert_eq!(never.look, None);
    }

    #[test]
    fn jobs_go_on_until_the_homeserver_has_sent_the_leave() {
        let restored = |restarted: Millis| Job::restored(params(10_000), restarted, NOW, 0);
        let job = restored(NOW - 4000).unwrap();
        assert_eq!((job.state(), job.until, job.restarted()), (State::Waiting, NOW + 6000, NOW - 4000));
        assert_eq!(restored(NOW - 10_000), None);
        // A clock that was wrong.
        assert_eq!(restored(NOW + 1), None);
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Connected),
            Just(Event::Left),
            Just(Event::Aborted),
            Just(Event::Tick),
            any::<Option<bool>>().prop_map(Event::LookedUp),
            Just(DONE),
            Just(NOT_FOUND),
            Just(NO_API),
            prop::option::of(0..10_000_000_u64).prop_map(|after| Event::Answered(Answered::Later(after))),
        ]
    }

    proptest! {
        /// Whatever happens and however long it takes, a job that has not ended has something to do, which is never due after the
        /// end of its state; an end is final.
        #[test]
        fn a_job_goes_on_or_ends(timeout in 1..100_000_000_u64, check in 0..100_000_u64, events in prop::collection::vec((event(), 0..100_000_u64), 0..50)) {
            let (mut now, mut job) = (NOW, Job::new(params(timeout), NOW, check));
            for (event, pause) in events {
                now += pause;
                let before = job.state();
                job.on(event, now);
                match (before, job.state()) {
                    (State::Ended(_), after) => prop_assert_eq!(before, after),
                    (_, State::Ended(_)) => prop_assert_eq!(job.next(), None),
                    _ => prop_assert!(job.next().is_some_and(|(at, _)| at <= job.until)),
                }
            }
        }

        /// A homeserver that never answers and an SFU that knows nothing: it ends, and asks neither without a pause.
        #[test]
        fn nobody_is_asked_without_end(timeout in 1..10_000_000_u64, connected: bool, after in prop::option::of(0..10_000_u64)) {
            let mut job = Job::new(params(timeout), NOW, 10_000);
            let mut now = NOW;
            if connected {
                job.on(Event::Connected, now);
            }
            let mut steps = 0;
            while let Some((at, action)) = job.next() {
                now = now.max(at);
                job.on(match action {
                    Action::LookUp => Event::LookedUp(None),
                    Action::Restart | Action::Send => Event::Answered(Answered::Later(after)),
                    Action::Tick => Event::Tick,
                }, now);
                steps += 1;
                prop_assert!(steps < 60_000, "it does not end");
            }
            prop_assert!(now <= NOW + timeout.max(1) + 2 * HOUR);
        }
    }
}
