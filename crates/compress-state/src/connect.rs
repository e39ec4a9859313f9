//! Connections to PostgreSQL.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use service::tls::Anybody;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::Error;

/// What PostgreSQL's own views call this program's connections.
pub const APPLICATION: &str = "matrix-stack compress-state";

/// A database, and how to reach it.
#[derive(Clone, Debug)]
pub struct Database {
    config: Config,
    /// Whether the server must show a certificate that the system trusts, for its name.
    verify: bool,
}

/// The parts of an address, as a stack has them.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// A host, an address or the directory of a unix socket.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The user.
    pub user: String,
    /// The database.
    pub database: String,
    /// The password, if there is one.
    pub password: Option<String>,
    /// libpq's `sslmode`.
    pub sslmode: Option<String>,
}

impl Database {
    /// From a URL or a connection string as libpq's (<https://www.postgresql.org/docs/current/libpq-connect.html>).
    pub fn from_text(text: &str) -> Result<Self, Error> {
        // What this library does not know: its `require` with a certificate that is checked.
        let mut verify = false;
        let mut text = text.to_owned();
        for mode in ["verify-full", "verify-ca"] {
            if text.contains(&format!("sslmode={mode}")) {
                verify = true;
                text = text.replace(&format!("sslmode={mode}"), "sslmode=require");
            }
        }
        // The text holds a password: the error of the library does not.
        let config = Config::from_str(&text).map_err(|error| Error::Address { reason: error.to_string() })?;
        Ok(Self { config, verify }.named())
    }

    /// From parts.
    pub fn from_parts(parts: &Parts) -> Result<Self, Error> {
        let mut config = Config::new();
        if parts.host.starts_with('/') {
            config.host_path(&parts.host);
        } else {
            config.host(&parts.host);
        }
        config.port(parts.port).user(&parts.user).dbname(&parts.database);
        if let Some(password) = &parts.password {
            config.password(password);
        }
        let (mode, verify) = match parts.sslmode.as_deref() {
            None | Some("prefer" | "allow") => (SslMode::Prefer, false),
            Some("disable") => (SslMode::Disable, false),
            Some("require") => (SslMode::Require, false),
            Some("verify-ca" | "verify-full") => (SslMode::Require, true),
            Some(other) => {
                return Err(Error::Address { reason: format!("there is no sslmode `{other}`") });
            }
        };
        config.ssl_mode(mode);
        Ok(Self { config, verify }.named())
    }

    /// From libpq's environment variables: `PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD`, `PGDATABASE` and `PGSSLMODE`.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let port = variable("PGPORT").unwrap_or_else(|| "5432".to_owned());
        let user = variable("PGUSER").unwrap_or_else(|| "synapse".to_owned());
        Self::from_parts(&Parts {
            host: variable("PGHOST").unwrap_or_else(|| "/var/run/postgresql".to_owned()),
            port: port.parse().map_err(|_| Error::Address { reason: format!("PGPORT is `{port}`") })?,
            database: variable("PGDATABASE").unwrap_or_else(|| user.clone()),
            user,
            password: variable("PGPASSWORD"),
            sslmode: variable("PGSSLMODE"),
        })
    }

    fn named(mut self) -> Self {
        self.config.application_name(APPLICATION).connect_timeout(Duration::from_secs(10));
        self.config.keepalives_idle(Duration::from_secs(60));
        self
    }

    /// With a password, if it has none.
    #[must_use]
    pub fn with_password(mut self, password: Option<String>) -> Self {
        if let (None, Some(password)) = (self.config.get_password(), password) {
            self.config.password(password);
        }
        self
    }

    /// Where it is, for people: no password.
    pub fn place(&self) -> String {
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => "localhost".to_owned(),
        };
        format!("`{}` at {host}", self.config.get_dbname().unwrap_or("postgres"))
    }

    /// Opens a connection. It ends when the client is dropped.
    pub async fn connect(&self) -> Result<Client, Error> {
        let tls = MakeRustlsConnect::new(tls(self.verify)?);
        let failed = |error: tokio_postgres::Error| Error::Connect {
            place: self.place(),
            reason: crate::reason(&error),
        };
        let (client, connection) = self.config.connect(tls).await.map_err(failed)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to PostgreSQL ended");
            }
        });
        Ok(client)
    }
}

fn tls(verify: bool) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Address { reason: error.to_string() })?;
    // libpq's `prefer` and `require`.
    if !verify {
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood() {
        let database = Database::from_text("postgresql://u:p@db.example.org/synapse?sslmode=verify-full")
            .expect("a URL");
        assert!(database.verify && database.config.get_ssl_mode() == SslMode::Require);
        assert_eq!(database.place(), "`synapse` at db.example.org");
        let database = Database::from_environment(|name| (name == "PGHOST").then(|| "/run/pg".to_owned()));
        assert_eq!(database.expect("variables").place(), "`synapse` at /run/pg");
        let wrong = Database::from_text("postgresql://u:secret@h:x/").expect_err("no port").to_string();
        assert!(!wrong.contains("secret"), "{wrong}");
    }
}
