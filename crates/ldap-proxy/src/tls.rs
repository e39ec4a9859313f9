//! TLS on both sides.

use std::sync::Arc;

use service::tls::{TlsError, mismatch, pair, roots};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::settings::{Listen, Upstream};

/// What clients see. None where TLS is not offered.
pub(crate) fn acceptor(listen: &Listen) -> Result<Option<TlsAcceptor>, TlsError> {
    const AT: &str = "listen.tls";
    let Some(files) = &listen.tls else { return Ok(None) };
    let provider = Arc::new(ring::default_provider());
    let key = pair(AT, files, &provider)?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|source| mismatch(AT, files, source))?;
    let builder = if let Some(ca) = &listen.client_ca {
        let roots = Arc::new(roots("listen", "client_ca", ca)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
        let verifier = verifier.map_err(|error| TlsError::Read {
            at: "listen",
            field: "client_ca",
            path: ca.clone(),
            reason: error.to_string(),
        })?;
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    Ok(Some(Arc::new(config).into()))
}

/// What servers see, who have to have a certificate for their host's name. None where no server has TLS.
pub(crate) fn connector(upstream: &Upstream, needed: bool) -> Result<Option<TlsConnector>, TlsError> {
    const AT: &str = "upstream";
    if !needed {
        return Ok(None);
    }
    let provider = Arc::new(ring::default_provider());
    let failed = |reason| TlsError::Read { at: AT, field: "ca", path: upstream.ca.clone(), reason };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?
        .with_root_certificates(roots(AT, "ca", &upstream.ca)?);
    let config = if let Some(files) = &upstream.tls {
        let key = pair("upstream.tls", files, &provider)?;
        builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
    } else {
        builder.with_no_client_auth()
    };
    Ok(Some(Arc::new(config).into()))
}
