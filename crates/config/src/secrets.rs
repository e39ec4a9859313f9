//! Secrets: generated once into files of mode 0600, or brought by the user as files.
//!
//! No secret is ever printed, logged or written into a configuration file.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use model::{Layout, MasSecretPaths, SecretPath, SecretPaths, Stack};
use rsa::pkcs8::EncodePrivateKey as _;

/// The largest file that holds a secret, in bytes.
const MAX_BYTES: u64 = 64 << 10;

/// A secret's text. `Debug` shows nothing of it, and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself. Do not log it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// A new secret of 256 random bits from the operating system: 43 letters, digits, `-` and `_`.
    ///
    /// # Errors
    /// The operating system gave no randomness.
    pub fn generate() -> Result<Self, SecretError> {
        Ok(Self(URL_SAFE_NO_PAD.encode(random::<32>()?)))
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A secret cannot be had: which file, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The file of a secret that the user brings is not there.
    #[error("`{}` of {what} does not exist: create it, or remove the field from stack.yaml to have one generated", .path.display())]
    Missing {
        /// What the secret is.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Something cannot be read or written.
    #[error("cannot {action} `{}`: {error}; check that the user running matrix-stack may do so, and that the disk is not full", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        error: io::Error,
    },
    /// Not a file.
    #[error("`{}` is not a file: give the path of a file that holds the secret alone", .path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// Others may read the file.
    #[error("`{}` has mode {mode:04o}, so others than its owner have access to a secret: run `chmod {mend:o} {}`", .path.display(), .path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode that it should have.
        mend: u32,
    },
    /// The file holds nothing.
    #[error("`{}` is empty: write the secret into it, or, if matrix-stack made it, remove it to have a new one generated", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file is too large.
    #[error("`{}` is larger than 64 KiB: give a file that holds the secret alone", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file holds something else than the secret.
    #[error("`{}` {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: &'static str,
    },
    /// A key could not be made.
    #[error("no key could be made: try again, or make one yourself and name its file under `secrets`")]
    KeyGeneration,
    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness ({0}): try again when it has started fully")]
    Randomness(getrandom::Error),
}

/// Makes sure that every secret of the stack is there, and says where.
///
/// Creates [`Layout::secrets`] with mode 0700 and each generated secret that is missing with mode 0600; never
/// overwrites one, and several calls at once agree on the same secrets. Checks every file, the user's own too, and
/// writes libpq's password file from the database password. For a database of the user's own without
/// `secrets.database_password` no password is generated, and the password file is empty.
///
/// # Errors
/// The first secret that cannot be had.
pub fn ensure(stack: &Stack, layout: &Layout) -> Result<SecretPaths, SecretError> {
    let directory = layout.secrets();
    create_directory(&directory)?;
    let paths = layout.secret_paths(stack);

    let key = |path: &Path| check_signing_key(path);
    provide(&paths.signing_key, "`secrets.signing_key`", &directory, signing_key, key)?;
    for (secret, what) in [
        (&paths.macaroon_secret_key, "`secrets.macaroon_secret_key`"),
        (&paths.form_secret, "`secrets.form_secret`"),
        (&paths.registration_shared_secret, "`secrets.registration_shared_secret`"),
        (&paths.worker_replication_secret, "`secrets.worker_replication_secret`"),
    ] {
        provide(secret, what, &directory, Secret::generate, |path| read_line(path).map(drop))?;
    }
    if let Some(path) = &paths.redis_password {
        read_line(path).map_err(|error| named(error, "`secrets.redis_password`"))?;
    }

    if let Some(mas) = &paths.mas {
        ensure_mas(mas, &directory)?;
    }

    let password = &paths.database_password;
    let pgpass = if stack.database.external.is_some() && password.generated {
        String::new()
    } else {
        provide(password, "`secrets.database_password`", &directory, Secret::generate, |path| {
            read_line(path).map(drop)
        })?;
        pgpass_line(&read_line(&password.path)?)
    };
    write_derived(&paths.pgpass, &directory, &pgpass)?;
    Ok(paths)
}

/// The same for the secrets of the Matrix Authentication Service.
fn ensure_mas(mas: &MasSecretPaths, directory: &Path) -> Result<(), SecretError> {
    let line = |path: &Path| read_line(path).map(drop);
    provide(&mas.shared_secret, "`secrets.mas_shared_secret`", directory, Secret::generate, line)?;
    provide(&mas.encryption, "`secrets.mas_encryption`", directory, encryption_key, check_encryption_key)?;
    provide(&mas.rsa_key, "`secrets.mas_rsa_key`", directory, rsa_key, check_pem)?;
    provide(&mas.ec_key, "`secrets.mas_ec_key`", directory, ec_key, check_pem)?;
    if !mas.database_password.generated {
        line(&mas.database_password.path).map_err(|error| named(error, "`secrets.mas_database_password`"))?;
    }
    Ok(())
}

/// Writes libpq's password file from the database password that the stack names, if it names one, and nothing else: for
/// a container, whose secrets are files that are mounted.
///
/// # Errors
/// The password cannot be read, or the file not written.
pub fn write_pgpass(stack: &Stack, layout: &Layout) -> Result<(), SecretError> {
    let Some(password) = &stack.secrets.database_password else { return Ok(()) };
    let password = read_line(&password.file).map_err(|error| named(error, "`secrets.database_password`"))?;
    create_directory(&layout.secrets())?;
    write_derived(&layout.secret_paths(stack).pgpass, &layout.secrets(), &pgpass_line(&password))
}

/// The secrets that [`generate`] knows, by their fields in the stack.
pub const GENERATED: [&str; 11] = [
    "signing_key",
    "macaroon_secret_key",
    "form_secret",
    "registration_shared_secret",
    "worker_replication_secret",
    "database_password",
    "redis_password",
    "mas_shared_secret",
    "mas_encryption",
    "mas_rsa_key",
    "mas_ec_key",
];

/// A new secret for this field of the stack, one of [`GENERATED`].
///
/// # Errors
/// The operating system gave no randomness.
pub fn generate(field: &str) -> Result<Secret, SecretError> {
    match field {
        "signing_key" => signing_key(),
        "mas_encryption" => encryption_key(),
        "mas_rsa_key" => rsa_key(),
        "mas_ec_key" => ec_key(),
        _ => Secret::generate(),
    }
}

/// Reads a secret: a file that only its owner may read, with at most 64 KiB of text, of which white space at both
/// ends is not part. Where the file is another's, who may read it as one of its group may do so; that is how Kubernetes
/// mounts a Secret.
///
/// # Errors
/// The file is missing, exposed, empty, too large or not text.
pub fn read(path: &Path) -> Result<Secret, SecretError> {
    // Asked before opening, as opening a pipe would wait for its other end.
    let metadata = fs::metadata(path).map_err(io_error("read", path))?;
    if !metadata.is_file() {
        return Err(SecretError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io_error("read", path))?;
    let metadata = file.metadata().map_err(io_error("read", path))?;
    if is_exposed(&metadata) {
        return Err(exposed(path, &metadata, 0o600));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(SecretError::TooLarge { path: path.to_owned() });
    }
    let text = String::from_utf8(bytes).map_err(|_| SecretError::Malformed {
        path: path.to_owned(),
        reason: "is not UTF-8 text: write the secret as text",
    })?;
    let text = text.trim();
    if text.is_empty() {
        return Err(SecretError::Empty { path: path.to_owned() });
    }
    Ok(Secret(text.to_owned()))
}

/// Reads a secret that is one line.
fn read_line(path: &Path) -> Result<Secret, SecretError> {
    let secret = read(path)?;
    if secret.0.contains(['\n', '\r', '\0']) {
        let reason = "holds several lines: give a file that holds the secret alone, in one line";
        return Err(SecretError::Malformed { path: path.to_owned(), reason });
    }
    Ok(secret)
}

/// Checks a file of signing keys: one `ed25519 ID KEY` a line, as the signedjson library writes them.
fn check_signing_key(path: &Path) -> Result<(), SecretError> {
    let secret = read(path)?;
    let good = secret.0.lines().map(str::trim).filter(|line| !line.is_empty()).all(|line| {
        let mut words = line.split_ascii_whitespace();
        let key = (words.next(), words.next(), words.next(), words.next());
        let (Some("ed25519"), Some(id), Some(seed), None) = key else { return false };
        id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && STANDARD_NO_PAD.decode(seed.trim_end_matches('=')).is_ok_and(|seed| seed.len() == 32)
    });
    if good {
        return Ok(());
    }
    let reason = "is no signing key in Synapse's format: each line must be `ed25519 ID KEY`, with 32 bytes of KEY in Base64";
    Err(SecretError::Malformed { path: path.to_owned(), reason })
}

/// A new signing key: an ID that starts with `a_`, as Synapse's own keys do, and the seed in Base64 without padding.
fn signing_key() -> Result<Secret, SecretError> {
    // The alphabet has 32 letters, so that each is as likely as any other.
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyzABCDEFGH";
    let id: String = random::<4>()?.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect();
    Ok(Secret(format!("ed25519 a_{id} {}", STANDARD_NO_PAD.encode(random::<32>()?))))
}

/// A new key for what MAS encrypts: 32 bytes in hexadecimal digits.
fn encryption_key() -> Result<Secret, SecretError> {
    let bytes = random::<32>()?;
    Ok(Secret(bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))))
}

/// MAS takes the whole file for digits, and so not even a line's end may follow them.
fn check_encryption_key(path: &Path) -> Result<(), SecretError> {
    read_line(path)?;
    let text = fs::read(path).map_err(io_error("read", path))?;
    if text.len() == 64 && text.iter().all(u8::is_ascii_hexdigit) {
        return Ok(());
    }
    let reason = "is no key of MAS's: it must be 64 hexadecimal digits, with nothing behind them, not even a line's end";
    Err(SecretError::Malformed { path: path.to_owned(), reason })
}

/// A new RSA key of 2048 bits, which OpenID Connect asks of every provider (RS256).
fn rsa_key() -> Result<Secret, SecretError> {
    // Said as an error here, as the generator below could but panic.
    random::<1>()?;
    let mut generator = rsa::rand_core::UnwrapErr(getrandom::SysRng);
    let key = rsa::PrivateKey::new(&mut generator, 2048);
    let der = key.ok().and_then(|key| key.to_pkcs8_der().ok()).ok_or(SecretError::KeyGeneration)?;
    Ok(pem(der.as_bytes()))
}

/// A new elliptic-curve key (P-256).
fn ec_key() -> Result<Secret, SecretError> {
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
    let random = ring::rand::SystemRandom::new();
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random);
    Ok(pem(key.map_err(|_| SecretError::KeyGeneration)?.as_ref()))
}

/// A private key in PKCS#8, as PEM (RFC 7468).
fn pem(der: &[u8]) -> Secret {
    let mut text = "-----BEGIN PRIVATE KEY-----\n".to_owned();
    let base64 = STANDARD.encode(der);
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text += line;
        text.push('\n');
        rest = after;
    }
    text += "-----END PRIVATE KEY-----";
    Secret(text)
}

fn check_pem(path: &Path) -> Result<(), SecretError> {
    let text = read(path)?.0;
    if text.starts_with("-----BEGIN ") && text.contains("PRIVATE KEY-----") {
        return Ok(());
    }
    let reason = "is no private key in PEM: it must begin with `-----BEGIN PRIVATE KEY-----`";
    Err(SecretError::Malformed { path: path.to_owned(), reason })
}

/// A line of libpq's password file that fits every server, database and user.
fn pgpass_line(password: &Secret) -> String {
    format!("*:*:*:*:{}\n", password.0.replace('\\', "\\\\").replace(':', "\\:"))
}

fn random<const N: usize>() -> Result<[u8; N], SecretError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(SecretError::Randomness)?;
    Ok(bytes)
}

/// Generates the secret if it is ours and missing, then checks it.
fn provide(
    secret: &SecretPath,
    what: &'static str,
    directory: &Path,
    generate: impl FnOnce() -> Result<Secret, SecretError>,
    check: impl FnOnce(&Path) -> Result<(), SecretError>,
) -> Result<(), SecretError> {
    if secret.generated
        && matches!(fs::symlink_metadata(&secret.path), Err(error) if error.kind() == io::ErrorKind::NotFound)
    {
        let text = generate()?.0;
        // A key of so many hexadecimal digits is MAS's alone.
        let end = if text.len() == 64 { "" } else { "\n" };
        let file = write_temporary(directory, &format!("{text}{end}"))?;
        match file.persist_noclobber(&secret.path) {
            // Somebody else was faster: theirs counts.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_error("create", &secret.path)(error.error)),
            Ok(_) => sync_directory(directory)?,
        }
    }
    check(&secret.path).map_err(|error| named(error, what))
}

/// Says which field of the stack a missing file belongs to.
fn named(error: SecretError, what: &'static str) -> SecretError {
    match error {
        SecretError::Io { path, error, .. } if error.kind() == io::ErrorKind::NotFound => {
            SecretError::Missing { what, path }
        }
        other => other,
    }
}

/// Writes a file that is made from a secret, unless it is the same already.
fn write_derived(path: &Path, directory: &Path, text: &str) -> Result<(), SecretError> {
    let private = fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && !is_exposed(&m));
    if private && fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    let file = write_temporary(directory, text)?;
    file.persist(path).map_err(|error| io_error("replace", path)(error.error))?;
    sync_directory(directory)
}

/// Writes a new file of mode 0600 to the disk, under a name that nobody else uses.
fn write_temporary(directory: &Path, text: &str) -> Result<tempfile::NamedTempFile, SecretError> {
    let write = || {
        let mut file = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(directory)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        Ok(file)
    };
    write().map_err(io_error("write into", directory))
}

fn sync_directory(directory: &Path) -> Result<(), SecretError> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(io_error("write to disk", directory))
}

/// Creates the directory of the secrets with mode 0700. Its parents, where missing, get the usual mode: other
/// users, such as PostgreSQL's, must be able to pass through them.
fn create_directory(directory: &Path) -> Result<(), SecretError> {
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io_error("create", directory)(error));
        }
        _ => {}
    }
    let metadata = fs::metadata(directory).map_err(io_error("read", directory))?;
    if !metadata.is_dir() {
        return Err(io_error("create", directory)(io::ErrorKind::NotADirectory.into()));
    }
    if is_exposed(&metadata) {
        return Err(exposed(directory, &metadata, 0o700));
    }
    Ok(())
}

/// Whether others than this process's user may do anything with the file. A group that may read a file of another user's
/// is how this process comes to it.
fn is_exposed(metadata: &fs::Metadata) -> bool {
    let of_another = metadata.is_file() && metadata.uid() != nix::unistd::geteuid().as_raw();
    metadata.permissions().mode() & if of_another { 0o037 } else { 0o077 } != 0
}

fn exposed(path: &Path, metadata: &fs::Metadata, mend: u32) -> SecretError {
    SecretError::Exposed { path: path.to_owned(), mode: metadata.permissions().mode() & 0o7777, mend }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SecretError {
    move |error| SecretError::Io { action, path: path.to_owned(), error }
}
