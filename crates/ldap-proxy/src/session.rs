//! One client's session: what becomes of each of its requests and of each answer, without any I/O.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::secrets::Secret;
use subtle::ConstantTimeEq as _;

use crate::ber::Malformed;
use crate::cache::{self, Cache};
use crate::dn::Dn;
use crate::limiter::{Limiter, Taken};
use crate::message::{self, Auth, Message, code, oid, op};
use crate::policy::{Allowed, Policy, Refusal};
use crate::settings::AccessLog;

/// What sessions go by.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) policy: Policy,
    pub(crate) pending: usize,
    /// How often a request is tried in all.
    pub(crate) attempts: usize,
    pub(crate) tls_offered: bool,
    pub(crate) service: Option<(Dn, Secret)>,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) cache: Option<Cache>,
    pub(crate) access_log: AccessLog,
}

/// Who a client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Nobody,
    /// Bound at the server whose connection is its own, with its name as it wrote it.
    User(Arc<str>),
    /// Bound as the service that the proxy knows.
    Service,
}

/// What is to be done about a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Todo {
    Nothing,
    /// Send this to the server whose connection is the client's own.
    Own(Vec<u8>),
    /// Send the pending request with this ID over a shared connection.
    Shared(i32),
    /// Send this to the client.
    Say(Vec<u8>),
    /// Agree to StartTLS with this, then begin TLS.
    StartTls(Vec<u8>),
    /// Give up a request that went over a shared connection.
    Forget(i32),
    /// The client is done.
    Unbind,
    /// Say why, and close.
    End(Refusal),
}

/// What is done with an answer from a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// It goes to the client.
    On,
    /// Nobody waits for it.
    Dropped,
    /// The server ends the connection.
    Ends,
}

/// What becomes of a session whose server is gone.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Requests to send again, elsewhere.
    pub(crate) again: Vec<Vec<u8>>,
    /// What the client is told of the others.
    pub(crate) say: Vec<u8>,
    /// The client was bound, and has to bind anew.
    pub(crate) end: bool,
}

/// An operation that is over, for those who watch.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) op: &'static str,
    /// The name that was bound, or the entry or base that was asked about. Where it is written to the log alone.
    pub(crate) target: Option<String>,
    pub(crate) code: i32,
    pub(crate) entries: u32,
    pub(crate) took: Duration,
    /// Answered by the proxy itself, for this reason.
    pub(crate) own: Option<&'static str>,
}

#[derive(Debug)]
struct Pending {
    id: i32,
    op: u8,
    shared: bool,
    /// The request, where it can be sent to another server.
    request: Option<Vec<u8>>,
    attempts: usize,
    started: Instant,
    entries: u32,
    target: Option<String>,
    bind: Option<Binding>,
    cached: Option<Remembered>,
}

/// An answer on its way into the cache: for what, its messages so far, and their bytes.
type Remembered = (cache::Key, Vec<Box<[u8]>>, usize);

#[derive(Debug)]
struct Binding {
    /// Who it will be. SASL's names are the server's affair.
    who: Who,
    taken: Option<Taken>,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Session {
    client: IpAddr,
    tls: bool,
    who: Who,
    /// A server has a part in a SASL exchange.
    exchange: bool,
    /// The service has used a connection of its own, which its later requests have to see the effects of.
    sticky: bool,
    /// The server still takes the client's own connection for somebody's who is bound no more.
    outdated: bool,
    pending: Vec<Pending>,
    pub(crate) records: Vec<Record>,
}

/// What is said where no server can be reached, or one is lost.
pub(crate) const NO_SERVER: Refusal = (code::UNAVAILABLE, "no LDAP server can be reached");

impl Session {
    pub(crate) fn new(client: IpAddr, tls: bool) -> Self {
        Self {
            client,
            tls,
            who: Who::Nobody,
            exchange: false,
            sticky: false,
            outdated: false,
            pending: Vec::new(),
            records: Vec::new(),
        }
    }

    pub(crate) fn who(&self) -> &Who {
        &self.who
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether the client's own connection is of no use any more, told once.
    pub(crate) fn is_outdated(&mut self) -> bool {
        std::mem::take(&mut self.outdated)
    }

    /// Whether the next request has to wait: until a bind is over, nobody knows for whom it would be.
    pub(crate) fn holds(&self) -> bool {
        self.pending.iter().any(|pending| pending.op == op::BIND)
    }

    /// When the oldest request of those that went to the client's own server was made.
    pub(crate) fn waits_since(&self) -> Option<Instant> {
        self.pending.iter().filter(|pending| !pending.shared).map(|pending| pending.started).min()
    }

    /// TLS has begun.
    pub(crate) fn encrypted(&mut self) {
        self.tls = true;
    }

    /// What becomes of a request.
    pub(crate) fn request(&mut self, rules: &Rules, bytes: &[u8], now: Instant) -> Todo {
        match message::parse(bytes).and_then(|request| self.take(rules, &request, bytes, now)) {
            Ok(todo) => todo,
            Err(Malformed::Encoding) => {
                Todo::End((code::PROTOCOL_ERROR, "the message breaks LDAP's encoding"))
            }
            Err(Malformed::TooLarge) => Todo::End((code::PROTOCOL_ERROR, "the message nests too deeply")),
        }
    }

    fn take(
        &mut self,
        rules: &Rules,
        request: &Message<'_>,
        bytes: &[u8],
        now: Instant,
    ) -> Result<Todo, Malformed> {
        match request.op {
            op::UNBIND => return Ok(Todo::Unbind),
            op::ABANDON => return self.abandon(request, bytes),
            op::BIND | op::SEARCH | op::COMPARE | op::EXTENDED => {}
            op if op::writes(op) => {}
            _ => return Ok(Todo::End((code::PROTOCOL_ERROR, "this is no request of LDAP's"))),
        }
        if request.id == 0 || self.pending.iter().any(|pending| pending.id == request.id) {
            return Ok(Todo::End((code::PROTOCOL_ERROR, "the message ID is 0 or in use")));
        }
        if self.pending.len() >= rules.pending {
            return Ok(self.refuse(
                rules,
                request,
                (code::BUSY, "too many operations are under way"),
                "pending",
            ));
        }
        if request.op == op::BIND {
            return self.bind(rules, request, bytes, now);
        }
        if request.op == op::EXTENDED && message::extended(request.body)? == oid::START_TLS {
            return Ok(self.start_tls(rules, request));
        }
        if self.exchange {
            // RFC 4511, section 4.2.1: anything else ends the exchange.
            let refusal = (code::OPERATIONS_ERROR, "a SASL bind is under way");
            return Ok(self.refuse(rules, request, refusal, "order"));
        }
        let changed = match rules.policy.request(request, self.who != Who::Nobody)? {
            Err(refusal) => return Ok(self.refuse(rules, request, refusal, "policy")),
            Ok(Allowed::AsIs) => None,
            Ok(Allowed::Changed(body)) => Some(body),
        };
        let body = changed.as_deref().unwrap_or(request.body);
        let cached = match &rules.cache {
            Some(cache) if request.op == op::SEARCH && request.controls.is_none() => {
                let who = match &self.who {
                    Who::Nobody => "".into(),
                    Who::User(name) => name.clone(),
                    Who::Service => "\0service".into(),
                };
                let key = cache::Key { who, request: body.into() };
                if let Some(answer) = cache.get(&key, now) {
                    let entries = answer.len().saturating_sub(1).try_into().unwrap_or(u32::MAX);
                    let target = target(rules, request);
                    self.record(request.op, target, code::SUCCESS, entries, Duration::ZERO, Some("cache"));
                    let messages = answer.iter().flat_map(|rest| message::with_id(request.id, rest));
                    return Ok(Todo::Say(messages.collect()));
                }
                Some((key, Vec::new(), 0))
            }
            _ => None,
        };
        let bytes = changed.as_ref().map_or_else(|| bytes.to_vec(), |body| message::with_body(request, body));
        let reads = matches!(request.op, op::SEARCH | op::COMPARE);
        let shared = self.who == Who::Service && reads && !self.sticky && request.controls.is_none();
        self.sticky |= self.who == Who::Service && !reads;
        let again = reads && !matches!(self.who, Who::User(_));
        self.pending.push(Pending {
            id: request.id,
            op: request.op,
            shared,
            request: again.then(|| bytes.clone()),
            attempts: 1,
            started: now,
            entries: 0,
            target: target(rules, request),
            bind: None,
            cached,
        });
        Ok(if shared { Todo::Shared(request.id) } else { Todo::Own(bytes) })
    }

    fn bind(
        &mut self,
        rules: &Rules,
        request: &Message<'_>,
        bytes: &[u8],
        now: Instant,
    ) -> Result<Todo, Malformed> {
        let bind = message::bind(request.body)?;
        if !self.pending.is_empty() {
            let refusal = (code::OPERATIONS_ERROR, "operations are under way; finish or abandon them first");
            return Ok(self.refuse(rules, request, refusal, "order"));
        }
        // Whatever comes of it, who was bound is so no more (RFC 4511, section 4.2.1).
        let exchange = std::mem::take(&mut self.exchange);
        let known = std::mem::replace(&mut self.who, Who::Nobody) != Who::Nobody || exchange;
        self.outdated = known;
        self.sticky = false;
        if let Err(refusal) = rules.policy.bind(&bind, self.tls) {
            return Ok(self.refuse(rules, request, refusal, "policy"));
        }
        let name = String::from_utf8_lossy(bind.dn);
        let dn = Dn::parse(&name);
        // A name that is none is one to Active Directory (`alice@example.org`).
        let key = dn.as_ref().map_or_else(|| name.to_lowercase(), Dn::values);
        // Neither who binds as nobody nor a further step of SASL's guesses anything.
        let guesses = match bind.auth {
            Auth::Simple(password) => !password.is_empty(),
            Auth::Sasl(_) => !exchange,
        };
        let taken = if guesses {
            let Some(taken) = rules.limiter.take(self.client, key, now) else {
                let refusal = (code::BUSY, "too many binds have failed; try again later");
                return Ok(self.refuse(rules, request, refusal, "rate"));
            };
            Some(taken)
        } else {
            None
        };
        let target = target(rules, request);
        if let (Some((service, secret)), Auth::Simple(password), Some(dn)) = (&rules.service, bind.auth, &dn)
            && dn == service
            && bool::from(secret.expose().as_bytes().ct_eq(password))
        {
            if let Some(taken) = &taken {
                rules.limiter.excuse(taken);
            }
            self.who = Who::Service;
            self.outdated = true;
            self.record(op::BIND, target, code::SUCCESS, 0, Duration::ZERO, Some("service"));
            return Ok(Todo::Say(message::answer(request.id, op::BIND, code::SUCCESS, "")));
        }
        self.outdated = false;
        let (who, simple) = match bind.auth {
            Auth::Simple(b"") => (Who::Nobody, true),
            Auth::Simple(_) => (Who::User(name.as_ref().into()), true),
            Auth::Sasl(_) => (Who::User("SASL".into()), false),
        };
        self.pending.push(Pending {
            id: request.id,
            op: op::BIND,
            shared: false,
            request: simple.then(|| bytes.to_vec()),
            attempts: 1,
            started: now,
            entries: 0,
            target,
            bind: Some(Binding { who, taken }),
            cached: None,
        });
        Ok(Todo::Own(bytes.to_vec()))
    }

    fn start_tls(&mut self, rules: &Rules, request: &Message<'_>) -> Todo {
        let refusal = if self.tls {
            (code::OPERATIONS_ERROR, "TLS is there already")
        } else if !rules.tls_offered {
            (code::PROTOCOL_ERROR, "StartTLS is not offered here")
        } else if !self.pending.is_empty() || self.exchange {
            (code::OPERATIONS_ERROR, "operations are under way; finish or abandon them first")
        } else {
            return Todo::StartTls(message::answer(request.id, op::EXTENDED, code::SUCCESS, ""));
        };
        self.refuse(rules, request, refusal, "tls")
    }

    fn abandon(&mut self, request: &Message<'_>, bytes: &[u8]) -> Result<Todo, Malformed> {
        let id = message::abandoned(request)?;
        let found = self.pending.iter().position(|pending| pending.id == id && pending.op != op::BIND);
        let Some(found) = found else { return Ok(Todo::Nothing) };
        let pending = self.pending.swap_remove(found);
        Ok(if pending.shared { Todo::Forget(id) } else { Todo::Own(bytes.to_vec()) })
    }

    fn refuse(
        &mut self,
        rules: &Rules,
        request: &Message<'_>,
        (code, text): Refusal,
        why: &'static str,
    ) -> Todo {
        self.record(request.op, target(rules, request), code, 0, Duration::ZERO, Some(why));
        Todo::Say(message::answer(request.id, request.op, code, text))
    }

    fn record(
        &mut self,
        op: u8,
        target: Option<String>,
        code: i32,
        entries: u32,
        took: Duration,
        own: Option<&'static str>,
    ) {
        self.records.push(Record { op: op::name(op), target, code, entries, took, own });
    }

    /// What becomes of a server's message; `shared` where it came over a shared connection.
    pub(crate) fn response(
        &mut self,
        rules: &Rules,
        response: &Message<'_>,
        shared: bool,
        now: Instant,
    ) -> Result<Passed, Malformed> {
        if response.id == 0 {
            return Ok(Passed::Ends);
        }
        let found =
            self.pending.iter().position(|pending| pending.id == response.id && pending.shared == shared);
        let Some(found) = found else { return Ok(Passed::Dropped) };
        let pending = &mut self.pending[found];
        if let Some((_, answer, bytes)) = &mut pending.cached {
            *bytes += response.rest.len();
            if *bytes <= cache::LARGEST && response.controls.is_none() {
                answer.push(response.rest.into());
            } else {
                pending.cached = None;
            }
        }
        if Some(response.op) != op::done(pending.op) {
            if !matches!(response.op, op::ENTRY | op::REFERENCE | op::INTERMEDIATE) {
                return Err(Malformed::Encoding);
            }
            // The client has a part of the answer: another server's would not fit to it.
            pending.request = None;
            pending.entries += u32::from(response.op == op::ENTRY);
            return Ok(Passed::On);
        }
        let code = message::result_code(response.body)?;
        let Pending { op, entries, target, bind, cached, started, .. } = self.pending.swap_remove(found);
        if let Some(Binding { who, taken }) = bind {
            if let Some(taken) = taken.filter(|_| code != code::INVALID_CREDENTIALS) {
                rules.limiter.excuse(&taken);
            }
            match code {
                code::SUCCESS => self.who = who,
                code::SASL_BIND_IN_PROGRESS => self.exchange = true,
                _ => {}
            }
        }
        if let Some(cache) = rules.cache.as_ref().filter(|_| op::writes(op) || op == op::EXTENDED) {
            cache.clear(now);
        }
        if let (Some(cache), Some((key, answer, _)), code::SUCCESS) = (&rules.cache, cached, code) {
            cache.put(key, started, answer);
        }
        self.record(op, target, code, entries, now.saturating_duration_since(started), None);
        Ok(Passed::On)
    }

    /// The client's own server is gone, or none could be had.
    pub(crate) fn lost(&mut self, rules: &Rules, reachable: bool, now: Instant) -> Lost {
        // A password is not kept to bind with it again.
        let end = matches!(self.who, Who::User(_)) || self.exchange;
        let mut lost = Lost { end, ..Lost::default() };
        self.sticky = false;
        let mut kept = Vec::new();
        for mut pending in std::mem::take(&mut self.pending) {
            if pending.shared {
                kept.push(pending);
            } else if let Some(request) = pending
                .request
                .as_ref()
                .filter(|_| reachable && !lost.end && pending.attempts < rules.attempts)
            {
                pending.attempts += 1;
                lost.again.push(request.clone());
                kept.push(pending);
            } else {
                self.give_up(rules, pending, now, &mut lost.say);
            }
        }
        self.pending = kept;
        lost
    }

    fn give_up(&mut self, rules: &Rules, pending: Pending, now: Instant, say: &mut Vec<u8>) {
        if let Some(taken) = pending.bind.and_then(|bind| bind.taken) {
            rules.limiter.excuse(&taken);
        }
        let (code, text) = NO_SERVER;
        say.extend_from_slice(&message::answer(pending.id, pending.op, code, text));
        let took = now.saturating_duration_since(pending.started);
        self.record(pending.op, pending.target, code, pending.entries, took, Some("unavailable"));
    }

    /// The request to send over a shared connection.
    pub(crate) fn shared_request(&self, id: i32) -> Option<&[u8]> {
        let pending = self.pending.iter().find(|pending| pending.shared && pending.id == id)?;
        pending.request.as_deref()
    }

    /// A shared connection is gone with the request with this ID on it, or none could be had. Whether to try another; if not,
    /// what the client is told.
    pub(crate) fn shared_lost(
        &mut self,
        rules: &Rules,
        id: i32,
        code: Refusal,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let found = self.pending.iter().position(|pending| pending.shared && pending.id == id)?;
        let pending = &mut self.pending[found];
        if code == NO_SERVER && pending.request.is_some() && pending.attempts < rules.attempts {
            pending.attempts += 1;
            return None;
        }
        let pending = self.pending.swap_remove(found);
        let took = now.saturating_duration_since(pending.started);
        self.record(pending.op, pending.target, code.0, pending.entries, took, Some("unavailable"));
        Some(message::answer(id, pending.op, code.0, code.1))
    }

    /// Requests over shared connections that are under way.
    pub(crate) fn shared(&self) -> impl Iterator<Item = i32> {
        self.pending.iter().filter(|pending| pending.shared).map(|pending| pending.id)
    }
}

/// What is written to the log of a request.
fn target(rules: &Rules, request: &Message<'_>) -> Option<String> {
    /// Longer names are cut.
    const LONGEST: usize = 512;
    let wanted = match rules.access_log {
        AccessLog::Off => false,
        AccessLog::Binds => request.op == op::BIND || op::writes(request.op),
        AccessLog::All => true,
    };
    if !wanted {
        return None;
    }
    let name = match request.op {
        op::BIND => message::bind(request.body).map(|bind| bind.dn),
        // An operation's name, never its value: that may be a password.
        op::EXTENDED => message::extended(request.body),
        _ => request.entry(),
    };
    let name = name.unwrap_or_default();
    Some(String::from_utf8_lossy(&name[..name.len().min(LONGEST)]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Limits, Settings};

    fn rules(more: &str) -> Rules {
        let text = format!("servers: [{{url: \"ldap://a\"}}, {{url: \"ldap://b\"}}]\n{more}");
        let settings: Settings = config::document("ldap.yaml", &text).unwrap();
        settings.check().unwrap();
        Rules {
            policy: Policy::new(&settings),
            pending: 2,
            attempts: 3,
            tls_offered: false,
            service: None,
            limiter: Arc::new(Limiter::new(&Limits::default())),
            cache: None,
            access_log: AccessLog::All,
        }
    }

    fn session() -> Session {
        Session::new(IpAddr::from([192, 0, 2, 1]), false)
    }

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        crate::ber::write(&mut out, tag, content);
        out
    }

    fn bind(id: i32, dn: &str, password: &str) -> Vec<u8> {
        let body = [vec![2, 1, 3], element(4, dn.as_bytes()), element(0x80, password.as_bytes())].concat();
        message::with_id(id, &element(op::BIND, &body))
    }

    fn search(id: i32) -> Vec<u8> {
        let search = message::Search {
            base: b"dc=a",
            scope: 2,
            deref: 0,
            size: 0,
            time: 0,
            types_only: &[0],
            filter: &[0x87, 1, b'a'],
            attributes: Vec::new(),
        };
        message::with_id(id, &element(op::SEARCH, &search.write()))
    }

    fn answered(session: &mut Session, rules: &Rules, id: i32, request: u8, code: i32) -> Passed {
        let answer = message::answer(id, request, code, "");
        session.response(rules, &message::parse(&answer).unwrap(), false, Instant::now()).unwrap()
    }

    /// The result code of what is said.
    fn said(todo: &Todo) -> i32 {
        let Todo::Say(bytes) = todo else { panic!("{todo:?}") };
        message::result_code(message::parse(bytes).unwrap().body).unwrap()
    }

    #[test]
    fn a_request_waits_until_it_is_known_for_whom_it_is() {
        let (rules, mut session) = (rules(""), session());
        let now = Instant::now();
        assert!(matches!(session.request(&rules, &bind(1, "cn=a", "x"), now), Todo::Own(_)));
        assert!(session.holds());
        assert_eq!(answered(&mut session, &rules, 1, op::BIND, code::SUCCESS), Passed::On);
        assert!(!session.holds());
        assert_eq!(session.who(), &Who::User("cn=a".into()));
        // A bind that is refused leaves nobody bound, and the connection that was is of no use.
        assert_eq!(said(&session.request(&rules, &bind(2, "cn=a", ""), now)), code::UNWILLING);
        assert_eq!(session.who(), &Who::Nobody);
        assert!(session.is_outdated() && !session.is_outdated());
    }

    #[test]
    fn what_was_not_answered_in_part_is_tried_as_often_as_there_are_servers() {
        let (rules, mut session) = (rules(""), session());
        let now = Instant::now();
        session.request(&rules, &search(1), now);
        session.request(&rules, &search(2), now);
        assert_eq!(said(&session.request(&rules, &search(3), now)), code::BUSY);
        let entry = message::with_id(2, &element(op::ENTRY, &element(4, b"dc=a")));
        let entry = message::parse(&entry).unwrap();
        assert_eq!(session.response(&rules, &entry, false, now), Ok(Passed::On));
        for _ in 0..2 {
            let lost = session.lost(&rules, true, now);
            assert_eq!((lost.again, lost.end), (vec![search(1)], false));
        }
        let lost = session.lost(&rules, true, now);
        assert_eq!(message::parse(&lost.say).unwrap().id, 1);
        assert!(lost.again.is_empty() && session.is_idle());
        assert_eq!(answered(&mut session, &rules, 1, op::SEARCH, code::SUCCESS), Passed::Dropped);
    }

    #[test]
    fn nobody_is_bound_again_without_his_own_doing() {
        let (rules, mut session) = (rules(""), session());
        let now = Instant::now();
        session.request(&rules, &bind(1, "cn=a", "x"), now);
        // The bind itself can be tried elsewhere.
        assert_eq!(session.lost(&rules, true, now).again, [bind(1, "cn=a", "x")]);
        answered(&mut session, &rules, 1, op::BIND, code::SUCCESS);
        session.request(&rules, &search(2), now);
        let lost = session.lost(&rules, true, now);
        assert!(lost.end && lost.again.is_empty() && !lost.say.is_empty());
    }

    #[test]
    fn sasl_that_would_not_survive_a_proxy_is_refused() {
        let (rules, mut session) = (rules(""), session());
        for (mechanism, good) in [("EXTERNAL", false), ("GSSAPI", false), ("SCRAM-SHA-256", true)] {
            let sasl = element(0xa3, &element(4, mechanism.as_bytes()));
            let body = [vec![2, 1, 3], element(4, b""), sasl].concat();
            let todo =
                session.request(&rules, &message::with_id(1, &element(op::BIND, &body)), Instant::now());
            assert_eq!(matches!(todo, Todo::Own(_)), good, "{mechanism}");
        }
        answered(&mut session, &rules, 1, op::BIND, code::SASL_BIND_IN_PROGRESS);
        assert_eq!(said(&session.request(&rules, &search(2), Instant::now())), code::OPERATIONS_ERROR);
    }

    #[test]
    fn no_password_is_in_what_is_told_of_an_operation() {
        let (rules, mut session) = (rules(""), session());
        session.request(&rules, &bind(1, "cn=a", "s3cret"), Instant::now());
        answered(&mut session, &rules, 1, op::BIND, code::INVALID_CREDENTIALS);
        assert_eq!(session.records[0].target.as_deref(), Some("cn=a"));
        assert!(!format!("{:?}", session.records).contains("s3cret"));
        let bytes = bind(1, "cn=a", "s3cret");
        let bind = message::bind(message::parse(&bytes).unwrap().body).unwrap();
        assert!(!format!("{bind:?}").contains("115"), "a password's bytes are shown");
    }
}
