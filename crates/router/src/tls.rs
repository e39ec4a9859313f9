//! TLS in front: the certificate, and looking for a new one.

use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use service::tls::{TlsError, mismatch, pair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

/// The part of the stack that names the files.
const AT: &str = "listen.tls";

/// TLS with a certificate that may be renewed.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    config: Arc<ServerConfig>,
    certificate: Arc<Certificate>,
}

#[derive(Debug)]
struct Certificate {
    files: model::Tls,
    current: ArcSwap<(CertifiedKey, Times)>,
}

/// When the files were changed.
type Times = [Option<SystemTime>; 2];

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::new(self.current.load().0.clone()))
    }
}

impl Tls {
    /// Reads the certificate.
    pub(crate) fn load(files: &model::Tls) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let current = ArcSwap::from_pointee((pair(AT, files, &provider)?, times(files)));
        let certificate = Arc::new(Certificate { files: files.clone(), current });
        let versions = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| mismatch(AT, files, source))?;
        let mut config = versions.with_no_client_auth().with_cert_resolver(certificate.clone());
        config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), certificate })
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.config.clone().into()
    }

    /// Reads the certificate anew if its files have changed; goes on with the old one if the new one cannot be used.
    pub(crate) fn refresh(&self) {
        let Certificate { files, current } = &*self.certificate;
        let now = times(files);
        if current.load().1 == now {
            return;
        }
        let renewed = pair(AT, files, self.config.crypto_provider());
        let key = match renewed {
            Ok(key) => {
                tracing::info!(certificate = %files.certificate.display(), "the certificate was renewed");
                key
            }
            Err(error) => {
                tracing::error!(%error, "the certificate's files have changed and cannot be used; the old one stays");
                current.load().0.clone()
            }
        };
        current.store(Arc::new((key, now)));
    }
}

/// HTTP/2, as the client's and the server's lists of protocols name it (RFC 7301).
pub(crate) const H2: &[u8] = b"h2";

fn times(files: &model::Tls) -> Times {
    [&files.certificate, &files.private_key]
        .map(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    #[test]
    fn a_changed_file_is_noticed_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = model::Tls { certificate: dir.path().join("c"), private_key: dir.path().join("k") };
        let write = |key: &str, certificate: &str, age: u64| {
            for (path, text) in [(&files.private_key, key), (&files.certificate, certificate)] {
                fs::write(path, text).expect("own file");
                let time = SystemTime::now() - std::time::Duration::from_secs(age);
                fs::File::open(path).and_then(|file| file.set_modified(time)).expect("own file");
            }
        };
        let pem = |label: &str, der: &[u8]| {
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
        };
        let make = || rcgen::generate_simple_self_signed(["a".to_owned()]).expect("a certificate");
        let (first, second) = (make(), make());
        let key = |made: &rcgen::CertifiedKey<rcgen::KeyPair>| {
            pem("PRIVATE KEY", &made.signing_key.serialize_der())
        };
        let certificate = |made: &rcgen::CertifiedKey<rcgen::KeyPair>| pem("CERTIFICATE", made.cert.der());
        write(&key(&first), &certificate(&first), 300);
        let tls = Tls::load(&files).expect("a good pair");
        let used = || tls.certificate.current.load().0.cert[0].clone();
        tls.refresh();
        assert_eq!(used(), *first.cert.der());
        write(&key(&second), &certificate(&first), 200);
        tls.refresh();
        assert_eq!(used(), *first.cert.der(), "half a renewal");
        write(&key(&second), &certificate(&second), 100);
        tls.refresh();
        assert_eq!(used(), *second.cert.der());
    }
}
