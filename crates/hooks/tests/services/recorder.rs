//! An outbox that keeps what it was given, and what asks a service.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hooks::{Accepted, Delivery, Outbox, Refused};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

/// What was taken, or why nothing is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) taken: Arc<Mutex<Vec<Delivery>>>,
    pub(crate) refuses: Arc<Mutex<Option<Refused>>>,
}

impl Outbox for Recorder {
    async fn accept(&self, deliveries: Vec<Delivery>) -> Result<Vec<Accepted>, Refused> {
        if let Some(refused) = self.refuses.lock().expect("no test panics with it").clone() {
            return Err(refused);
        }
        let mut taken = self.taken.lock().expect("no test panics with it");
        let accepted = deliveries
            .into_iter()
            .map(|delivery| {
                let same = |known: &Delivery| known.room == delivery.room && known.dedup == delivery.dedup;
                let duplicate = delivery.dedup.is_some() && taken.iter().any(same);
                if !duplicate {
                    taken.push(delivery);
                }
                Accepted { id: i64::try_from(taken.len()).expect("they are few"), duplicate }
            })
            .collect();
        Ok(accepted)
    }
}

impl Recorder {
    /// What came since the last time.
    pub(crate) fn take(&self) -> Vec<Delivery> {
        std::mem::take(&mut *self.taken.lock().expect("no test panics with it"))
    }

    /// The one message that came since the last time.
    pub(crate) fn one(&self) -> Delivery {
        let mut all = self.take();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }
}

/// Asks a service: the status, the body and the wait that it asks for.
pub(crate) async fn ask(
    app: &Router,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> (u16, String) {
    let mut request = Request::post(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = app
        .clone()
        .oneshot(request.body(body.into()).expect("it is a request"))
        .await
        .expect("it never fails");
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.expect("it is all there").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// A file with a secret.
pub(crate) fn secret(dir: &std::path::Path, name: &str, text: &str) -> std::path::PathBuf {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = dir.join(name);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).expect("it is new");
    file.write_all(text.as_bytes()).expect("it is written");
    path
}

/// The HMAC-SHA256 of a body, in hexadecimal.
pub(crate) fn sign(key: &str, body: &str) -> String {
    use hmac::{KeyInit as _, Mac as _};
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(key.as_bytes()).expect("any length will do");
    mac.update(body.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}
