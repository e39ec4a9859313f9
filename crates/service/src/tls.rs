//! Certificates and keys from PEM files, and what to hold a server's against.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// The certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds nothing of the kind.
    #[error("{at}.{field}: cannot read `{path}`: {reason}; name a PEM file that this user may read")]
    Read {
        /// The part of the settings.
        at: &'static str,
        /// The field in it that names the file.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The key is not the certificate's, or of a kind that is not known.
    #[error("{at}: `{}` and `{}` do not go together: {source}", files.certificate.display(), files.private_key.display())]
    Pair {
        /// The part of the settings.
        at: &'static str,
        /// The files of both.
        files: Box<model::Tls>,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// The certificates in a file, at least one. The file is named by this field of the settings.
pub fn certificates(
    at: &'static str,
    field: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |reason| TlsError::Read { at, field, path: path.into(), reason };
    let text = fs::read(path).map_err(|error| failed(error.to_string()))?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| failed(told(error)))?;
    if found.is_empty() { Err(failed(told(pem::Error::NoItemsFound))) } else { Ok(found) }
}

/// A certificate with its key, from the files that this part of the settings names.
pub fn pair(
    at: &'static str,
    files: &model::Tls,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(at, "certificate", &files.certificate)?;
    let path = &files.private_key;
    let failed = |reason| TlsError::Read { at, field: "private_key", path: path.clone(), reason };
    let text = fs::read(path).map_err(|error| failed(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| failed(told(error)))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|source| mismatch(at, files, source))
}

/// What two files are that do not go together.
pub fn mismatch(at: &'static str, files: &model::Tls, source: rustls::Error) -> TlsError {
    TlsError::Pair { at, files: Box::new(files.clone()), source }
}

/// Those in a file whose certificates are believed; what in it is of no use is left out.
pub fn roots(at: &'static str, field: &'static str, path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let (good, _) = roots.add_parsable_certificates(certificates(at, field, path)?);
    if good == 0 {
        let reason = "no certificate in it can be used".to_owned();
        return Err(TlsError::Read { at, field, path: path.into(), reason });
    }
    Ok(roots)
}

fn told(error: pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => "there is none in it".to_owned(),
        error => error.to_string(),
    }
}

/// Takes every certificate of a server, where that is wished: the connection is encrypted, and nobody asks to whom.
#[derive(Debug)]
pub struct Anybody(pub Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
