//! TLS in front: the certificate, and looking for a new one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};

/// The certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds nothing of the kind.
    #[error("listen.tls.{field}: cannot read `{path}`: {reason}; name a PEM file that this user may read")]
    Read {
        /// The field that names it.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The key is not the certificate's, or of a kind that is not known.
    #[error("listen.tls: `{certificate}` and `{private_key}` do not go together: {source}")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        private_key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

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
        let current = ArcSwap::from_pointee((read(files, &provider)?, times(files)));
        let certificate = Arc::new(Certificate { files: files.clone(), current });
        let versions = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| pair(files, source))?;
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
        let renewed = read(files, self.config.crypto_provider());
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

fn pair(files: &model::Tls, source: rustls::Error) -> TlsError {
    let model::Tls { certificate, private_key } = files.clone();
    TlsError::Pair { certificate, private_key, source }
}

fn read(files: &model::Tls, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let failed = |field: &'static str, path: &Path, reason: String| TlsError::Read {
        field,
        path: path.into(),
        reason,
    };
    let text = |field, path: &Path| {
        fs::read(path).map_err(|error: io::Error| failed(field, path, error.to_string()))
    };
    let told = |error: pem::Error| match error {
        pem::Error::NoItemsFound => "there is none in it".to_owned(),
        error => error.to_string(),
    };
    let (field, path) = ("certificate", files.certificate.as_path());
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text(field, path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| failed(field, path, told(error)))?;
    if chain.is_empty() {
        return Err(failed(field, path, told(pem::Error::NoItemsFound)));
    }
    let (field, path) = ("private_key", files.private_key.as_path());
    let key = PrivateKeyDer::from_pem_slice(&text(field, path)?)
        .map_err(|error| failed(field, path, told(error)))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|source| pair(files, source))
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
