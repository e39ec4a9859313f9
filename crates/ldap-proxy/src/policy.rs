//! What clients may do, as a pure function of what they ask.

use crate::ber::Malformed;
use crate::dn::Dn;
use crate::message::{self, Auth, Bind, Message, code, oid, op};
use crate::settings::Settings;

/// The settings that decide about requests, made ready.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    read_only: bool,
    anonymous: bool,
    require_tls: bool,
    sasl_mechanisms: Vec<String>,
    bind_dns: Vec<Dn>,
    bases: Vec<Dn>,
    attributes: Vec<String>,
    entries: i32,
    seconds: i32,
}

/// A refusal: the result code and what is said to the client.
pub(crate) type Refusal = (i32, &'static str);

/// What becomes of a request that is allowed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// It goes as it came.
    AsIs,
    /// Its content has to be this.
    Changed(Vec<u8>),
}

impl Policy {
    /// From settings that were checked.
    pub(crate) fn new(settings: &Settings) -> Self {
        let names = |names: &[String]| names.iter().filter_map(|name| Dn::parse(name)).collect();
        let policy = &settings.policy;
        Self {
            read_only: policy.read_only,
            anonymous: policy.anonymous,
            require_tls: policy.require_tls,
            sasl_mechanisms: policy.sasl_mechanisms.clone(),
            bind_dns: names(&policy.bind_dns),
            bases: names(&policy.bases),
            attributes: policy.attributes.iter().map(|name| name.to_ascii_lowercase()).collect(),
            entries: settings.limits.search_entries.try_into().unwrap_or(i32::MAX),
            seconds: settings.limits.search_seconds.try_into().unwrap_or(i32::MAX),
        }
    }

    /// Whether a bind may be tried.
    pub(crate) fn bind(&self, bind: &Bind<'_>, tls: bool) -> Result<(), Refusal> {
        let secret = match bind.auth {
            Auth::Simple(b"") if bind.dn.is_empty() => {
                return if self.anonymous {
                    Ok(())
                } else {
                    Err((code::STRONGER_AUTH_REQUIRED, "anonymous binds are refused here"))
                };
            }
            Auth::Simple(b"") => return Err((code::UNWILLING, "a bind with an empty password is refused")),
            Auth::Simple(_) => true,
            Auth::Sasl(mechanism) => {
                let known = |name: &String| name.as_bytes() == mechanism;
                if !self.sasl_mechanisms.iter().any(known) {
                    return Err((code::AUTH_METHOD_NOT_SUPPORTED, "this SASL mechanism is refused here"));
                }
                mechanism == b"PLAIN"
            }
        };
        if self.require_tls && secret && !tls {
            return Err((code::CONFIDENTIALITY_REQUIRED, "use TLS before a password is sent"));
        }
        if !self.bind_dns.is_empty() {
            if matches!(bind.auth, Auth::Sasl(_)) {
                return Err((code::AUTH_METHOD_NOT_SUPPORTED, "names are bound by password alone here"));
            }
            if !within(bind.dn, &self.bind_dns) {
                return Err((code::INVALID_CREDENTIALS, "this name may not bind here"));
            }
        }
        Ok(())
    }

    /// Whether an operation other than a bind may be done, and how.
    pub(crate) fn request(
        &self,
        request: &Message<'_>,
        bound: bool,
    ) -> Result<Result<Allowed, Refusal>, Malformed> {
        if request.op == op::SEARCH {
            // Nothing to look into: the common case.
            let free = self.bases.is_empty() && self.attributes.is_empty() && (bound || self.anonymous);
            if free && self.entries == 0 && self.seconds == 0 {
                return Ok(Ok(Allowed::AsIs));
            }
            return self.search(request, bound);
        }
        if !bound && !self.anonymous {
            return Ok(Err(UNBOUND));
        }
        if request.op == op::EXTENDED {
            return self.extended(request);
        }
        if op::writes(request.op) && self.read_only {
            return Ok(Err(READ_ONLY));
        }
        let named = op::writes(request.op) || request.op == op::COMPARE;
        if named && !self.bases.is_empty() {
            let target = message::new_superior(request)?;
            let within = |name| within(name, &self.bases);
            if !within(request.entry()?) || !target.is_none_or(within) {
                return Ok(Err(ELSEWHERE));
            }
        }
        if request.op == op::COMPARE && !self.attributes.is_empty() {
            if let Some(refusal) = control(request)? {
                return Ok(Err(refusal));
            }
            let mut reader = crate::ber::Reader(request.body);
            reader.next()?;
            let mut pair = crate::ber::Reader(reader.expect(crate::ber::SEQUENCE)?);
            if !self.shows(pair.expect(crate::ber::OCTETS)?) {
                return Ok(Err(ATTRIBUTE));
            }
        }
        Ok(Ok(Allowed::AsIs))
    }

    /// What an operation does that is not known cannot be bounded.
    fn extended(&self, request: &Message<'_>) -> Result<Result<Allowed, Refusal>, Malformed> {
        let name = message::extended(request.body)?;
        if [oid::WHOAMI, oid::CANCEL].contains(&name) {
            return Ok(Ok(Allowed::AsIs));
        }
        if self.read_only {
            return Ok(Err(READ_ONLY));
        }
        if self.bases.is_empty() {
            return Ok(Ok(Allowed::AsIs));
        }
        // Without a name it is about who is bound.
        let good = name == oid::PASSWORD_MODIFY
            && message::password_of(request.body)?.is_none_or(|name| within(name, &self.bases));
        Ok(if good { Ok(Allowed::AsIs) } else { Err(ELSEWHERE) })
    }

    fn search(&self, request: &Message<'_>, bound: bool) -> Result<Result<Allowed, Refusal>, Malformed> {
        let mut search = message::search(request.body)?;
        if search.is_root() {
            return Ok(Ok(Allowed::AsIs));
        }
        if !bound && !self.anonymous {
            return Ok(Err(UNBOUND));
        }
        if !self.bases.is_empty() && !within(search.base, &self.bases) {
            return Ok(Err(ELSEWHERE));
        }
        let mut changed = false;
        let mut shorten = |asked: &mut i32, most: i32| {
            if most > 0 && (*asked == 0 || *asked > most) {
                *asked = most;
                changed = true;
            }
        };
        shorten(&mut search.size, self.entries);
        shorten(&mut search.time, self.seconds);
        if !self.attributes.is_empty() {
            if let Some(refusal) = control(request)? {
                return Ok(Err(refusal));
            }
            let mut looked_at = Vec::new();
            message::filter_attributes(search.filter, 0, &mut looked_at)?;
            if !looked_at.into_iter().all(|name| self.shows(name)) {
                return Ok(Err(ATTRIBUTE));
            }
            let all = search.attributes.is_empty() || search.attributes.contains(&&b"*"[..]);
            search.attributes.retain(|name| self.shows(name));
            if all {
                search.attributes.extend(self.attributes.iter().map(String::as_bytes));
            }
            if search.attributes.is_empty() {
                // No attributes (RFC 4511, section 4.5.1.8).
                search.attributes.push(b"1.1");
            }
            changed = true;
        }
        Ok(Ok(if changed { Allowed::Changed(search.write()) } else { Allowed::AsIs }))
    }

    /// Whether an attribute is on the list. Its options (`;lang-en`) make no difference.
    fn shows(&self, attribute: &[u8]) -> bool {
        let name = attribute.split(|byte| *byte == b';').next().unwrap_or_default();
        self.attributes.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name))
    }
}

/// Controls can show more than attributes that are asked for: what is not known not to do so is refused.
fn control(request: &Message<'_>) -> Result<Option<Refusal>, Malformed> {
    let known = |name: &&[u8]| [oid::PAGED_RESULTS, oid::MANAGE_DSA_IT].contains(name);
    let refused = !request.control_names()?.iter().all(known);
    Ok(refused.then_some((code::UNAVAILABLE_CRITICAL_EXTENSION, "this control is refused here")))
}

const READ_ONLY: Refusal = (code::UNWILLING, "nothing is changed through this proxy");
const UNBOUND: Refusal = (code::STRONGER_AUTH_REQUIRED, "bind first");
const ELSEWHERE: Refusal = (code::INSUFFICIENT_ACCESS, "this part of the directory is not served here");
const ATTRIBUTE: Refusal = (code::INSUFFICIENT_ACCESS, "an attribute in the request is not served here");

fn within(name: &[u8], bases: &[Dn]) -> bool {
    let name = std::str::from_utf8(name).ok().and_then(Dn::parse);
    name.is_some_and(|name| bases.iter().any(|base| name.is_within(base)))
}
