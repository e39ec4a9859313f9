//! Where the files of a stack lie: one data directory, one place for each kind of file.

use std::path::{Path, PathBuf};

use crate::{SecretSource, Stack};

/// The files of a stack, below its data directory. Pure: nothing here looks at a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    data_dir: PathBuf,
}

impl Layout {
    /// The layout below this data directory, which should be an absolute path.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into() }
    }

    /// The data directory itself.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Rendered configuration: `shared.yaml`, and `NAME.yaml` for each process.
    pub fn config(&self) -> PathBuf {
        self.data_dir.join("config")
    }

    /// Unix sockets: the processes', PostgreSQL's, Valkey's and the control socket. Mode 0711 at most.
    pub fn sockets(&self) -> PathBuf {
        self.data_dir.join("run")
    }

    /// The socket on which `status`, `logs`, `restart` and `down` reach the running stack. Mode 0600.
    pub fn control_socket(&self) -> PathBuf {
        self.sockets().join("control.sock")
    }

    /// One log file a process, `NAME.log`.
    pub fn logs(&self) -> PathBuf {
        self.data_dir.join("logs")
    }

    /// The log file of a process.
    pub fn log(&self, process: &str) -> PathBuf {
        self.logs().join(format!("{process}.log"))
    }

    /// Generated secrets, one a file. Mode 0700, the files 0600.
    pub fn secrets(&self) -> PathBuf {
        self.data_dir.join("secrets")
    }

    /// What companions have to keep.
    pub fn companions(&self) -> PathBuf {
        self.data_dir.join("companions")
    }

    /// PostgreSQL's data directory (`PGDATA`).
    pub fn postgres(&self) -> PathBuf {
        self.data_dir.join("postgres")
    }

    /// The directory of PostgreSQL's unix socket, owned by the user that it runs as.
    pub fn postgres_socket_dir(&self) -> PathBuf {
        self.sockets().join("postgres")
    }

    /// The directory of Valkey's unix socket, owned by the user that it runs as.
    pub fn valkey_socket_dir(&self) -> PathBuf {
        self.sockets().join("valkey")
    }

    /// Valkey's unix socket.
    pub fn valkey_socket(&self) -> PathBuf {
        self.valkey_socket_dir().join("valkey.sock")
    }

    /// The media store: where the stack says, else below the data directory.
    pub fn media(&self, stack: &Stack) -> PathBuf {
        stack.media.store_path.clone().unwrap_or_else(|| self.data_dir.join("media"))
    }

    /// Where every secret of the stack lies.
    pub fn secret_paths(&self, stack: &Stack) -> SecretPaths {
        let secrets = &stack.secrets;
        let place = |own: &Option<SecretSource>, name: &str| match own {
            Some(source) => SecretPath { path: source.file.clone(), generated: false },
            None => SecretPath { path: self.secrets().join(name), generated: true },
        };
        SecretPaths {
            signing_key: place(&secrets.signing_key, "signing.key"),
            macaroon_secret_key: place(&secrets.macaroon_secret_key, "macaroon_secret_key"),
            form_secret: place(&secrets.form_secret, "form_secret"),
            registration_shared_secret: place(
                &secrets.registration_shared_secret,
                "registration_shared_secret",
            ),
            worker_replication_secret: place(&secrets.worker_replication_secret, "worker_replication_secret"),
            database_password: place(&secrets.database_password, "database_password"),
            redis_password: secrets.redis_password.as_ref().map(|source| source.file.clone()),
            pgpass: self.secrets().join("pgpass"),
            mas: stack.auth.mas.is_some().then(|| MasSecretPaths {
                shared_secret: place(&secrets.mas_shared_secret, "mas_shared_secret"),
                encryption: place(&secrets.mas_encryption, "mas_encryption"),
                rsa_key: place(&secrets.mas_rsa_key, "mas_rsa_key.pem"),
                ec_key: place(&secrets.mas_ec_key, "mas_ec_key.pem"),
                database_password: match &secrets.mas_database_password {
                    own @ Some(_) => place(own, ""),
                    None => place(&secrets.database_password, "database_password"),
                },
            }),
        }
    }
}

/// Where a secret lies, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretPath {
    /// The file.
    pub path: PathBuf,
    /// Whether matrix-stack generates it; else the user brought it, and nothing ever writes to it.
    pub generated: bool,
}

/// Where every secret of a stack lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretPaths {
    /// Synapse's `signing_key_path`.
    pub signing_key: SecretPath,
    /// Synapse's `macaroon_secret_key_path`.
    pub macaroon_secret_key: SecretPath,
    /// Synapse's `form_secret_path`.
    pub form_secret: SecretPath,
    /// Synapse's `registration_shared_secret_path`.
    pub registration_shared_secret: SecretPath,
    /// Synapse's `worker_replication_secret_path`.
    pub worker_replication_secret: SecretPath,
    /// The database user's password.
    pub database_password: SecretPath,
    /// The password of a Valkey or Redis of the user's own (Synapse's `redis.password_path`), if there is one.
    pub redis_password: Option<PathBuf>,
    /// libpq's `passfile`, made from the database password, through which Synapse gets it.
    pub pgpass: PathBuf,
    /// Those of the Matrix Authentication Service, where the stack has it.
    pub mas: Option<MasSecretPaths>,
}

/// Where the secrets of the Matrix Authentication Service lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasSecretPaths {
    /// What Synapse and MAS know each other by.
    pub shared_secret: SecretPath,
    /// MAS's `secrets.encryption_file`.
    pub encryption: SecretPath,
    /// Its RSA key.
    pub rsa_key: SecretPath,
    /// Its elliptic-curve key.
    pub ec_key: SecretPath,
    /// The password of its database user.
    pub database_password: SecretPath,
}
