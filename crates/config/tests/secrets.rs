//! Secrets on a real file system.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use config::secrets::{GENERATED, Secret, ensure, generate, read, write_pgpass};
use model::{Layout, Postgres, SecretSource, ServerName, Stack};

fn stack() -> Stack {
    Stack::new(ServerName::try_from("example.org".to_owned()).unwrap())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn source(path: &Path) -> SecretSource {
    SecretSource { file: path.to_owned() }
}

#[test]
fn secrets_are_generated_once_and_privately() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path().join("deep/data"));
    let paths = ensure(&stack(), &layout).unwrap();
    assert_eq!(mode(&layout.secrets()), 0o700);

    let files = |layout: &Layout| -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(layout.secrets())
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                assert_eq!(mode(&path), 0o600, "{}", path.display());
                (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
            })
            .collect();
        files.sort();
        files
    };
    let first = files(&layout);
    let names: Vec<_> = first.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "database_password",
            "form_secret",
            "macaroon_secret_key",
            "pgpass",
            "registration_shared_secret",
            "signing.key",
            "worker_replication_secret"
        ]
    );
    let key = read(&paths.signing_key.path).unwrap();
    let words: Vec<_> = key.expose().split(' ').collect();
    assert_eq!((words[0], words[2].len()), ("ed25519", 43));
    assert!(words[1].starts_with("a_") && words[1].len() == 6, "{}", words[1]);
    let password = read(&paths.database_password.path).unwrap();
    assert_eq!(password.expose().len(), 43);
    assert_eq!(fs::read_to_string(&paths.pgpass).unwrap(), format!("*:*:*:*:{}\n", password.expose()));

    assert_eq!(ensure(&stack(), &layout).unwrap(), paths);
    assert_eq!(files(&layout), first);
}

#[test]
fn starts_at_the_same_time_agree() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let read_all = || {
        let paths = ensure(&stack(), &layout).unwrap();
        (
            read(&paths.signing_key.path).unwrap(),
            read(&paths.form_secret.path).unwrap(),
            read(&paths.database_password.path).unwrap(),
            fs::read_to_string(&paths.pgpass).unwrap(),
        )
    };
    let all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(read_all)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(all.iter().all(|secrets| *secrets == all[0]));
}

#[test]
fn a_users_own_files_are_used_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path().join("data"));
    let own = dir.path().join("own");
    let mut stack = stack();
    stack.secrets.database_password = Some(source(&own));
    let error = |stack: &Stack| {
        ensure(stack, &layout).unwrap_err().to_string().replace(dir.path().to_str().unwrap(), "DIR")
    };

    insta::assert_snapshot!(error(&stack), @"`DIR/own` of `secrets.database_password` does not exist: create it, or remove the field from stack.yaml to have one generated");
    write(&own, "  pass:wo\\rd \n", 0o640);
    insta::assert_snapshot!(error(&stack), @"`DIR/own` has mode 0640, so others than its owner have access to a secret: run `chmod 600 DIR/own`");
    write(&own, "  pass:wo\\rd \n", 0o400);
    let paths = ensure(&stack, &layout).unwrap();
    assert_eq!(fs::read_to_string(&paths.pgpass).unwrap(), "*:*:*:*:pass\\:wo\\\\rd\n");
    assert_eq!(mode(&paths.pgpass), 0o600);
    assert!(!layout.secrets().join("database_password").exists());

    // A new password reaches libpq.
    fs::remove_file(&own).unwrap();
    write(&own, "new", 0o600);
    ensure(&stack, &layout).unwrap();
    assert_eq!(fs::read_to_string(&paths.pgpass).unwrap(), "*:*:*:*:new\n");

    write(&own, "two\nlines", 0o600);
    insta::assert_snapshot!(error(&stack), @"`DIR/own` holds several lines: give a file that holds the secret alone, in one line");
    write(&own, " \n", 0o600);
    insta::assert_snapshot!(error(&stack), @"`DIR/own` is empty: write the secret into it, or, if matrix-stack made it, remove it to have a new one generated");
    write(&own, &"x".repeat(70_000), 0o600);
    insta::assert_snapshot!(error(&stack), @"`DIR/own` is larger than 64 KiB: give a file that holds the secret alone");
    stack.secrets.database_password = Some(source(dir.path()));
    insta::assert_snapshot!(error(&stack), @"`DIR` is not a file: give the path of a file that holds the secret alone");
}

#[test]
fn a_signing_key_must_be_one() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path().join("data"));
    let own = dir.path().join("own");
    let mut stack = stack();
    stack.secrets.signing_key = Some(source(&own));
    let seed = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    for good in [format!("ed25519 a_abcd {seed}\n"), format!("ed25519 0 {seed}\ned25519 1 {seed}\n")] {
        write(&own, &good, 0o600);
        ensure(&stack, &layout).unwrap();
    }
    for bad in [
        seed.to_owned(),
        format!("rsa a {seed}"),
        "ed25519 a short".to_owned(),
        format!("ed25519 a {seed} x"),
    ] {
        write(&own, &bad, 0o600);
        let error = ensure(&stack, &layout).unwrap_err().to_string();
        assert!(error.contains("is no signing key in Synapse's format"), "{error}");
        assert!(!error.contains(seed));
    }
}

#[test]
fn what_was_generated_must_stay_private() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let paths = ensure(&stack(), &layout).unwrap();
    fs::set_permissions(&paths.form_secret.path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(ensure(&stack(), &layout).unwrap_err().to_string().contains("run `chmod 600 "));
    fs::set_permissions(&paths.form_secret.path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(layout.secrets(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(ensure(&stack(), &layout).unwrap_err().to_string().contains("run `chmod 700 "));
}

#[test]
fn no_password_is_made_up_for_a_database_of_the_users_own() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let mut stack = stack();
    stack.database.external = Some(Postgres {
        host: "/run/postgresql".to_owned(),
        port: 5432,
        user: "synapse".to_owned(),
        database: "synapse".to_owned(),
        sslmode: None,
    });
    let paths = ensure(&stack, &layout).unwrap();
    assert!(!paths.database_password.path.exists());
    assert_eq!((fs::read_to_string(&paths.pgpass).unwrap().as_str(), mode(&paths.pgpass)), ("", 0o600));
}

#[test]
fn secrets_are_not_shown() {
    let secret = Secret::generate().unwrap();
    assert_eq!(format!("{secret:?}"), "Secret(..)");
    assert_ne!(secret, Secret::generate().unwrap());
}

#[test]
fn a_container_gets_its_password_file_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    write(&password, "pass:word", 0o400);
    let mut stack = stack();
    let layout = Layout::new(dir.path().join("data"));
    write_pgpass(&stack, &layout).unwrap();
    assert!(!layout.secrets().exists());
    stack.secrets.database_password = Some(source(&password));
    write_pgpass(&stack, &layout).unwrap();
    let pgpass = layout.secret_paths(&stack).pgpass;
    assert_eq!(
        (fs::read_to_string(&pgpass).unwrap().as_str(), mode(&pgpass)),
        ("*:*:*:*:pass\\:word\n", 0o600)
    );
    assert_eq!(fs::read_dir(layout.secrets()).unwrap().count(), 1);
    fs::remove_file(&password).unwrap();
    let error = write_pgpass(&stack, &layout).unwrap_err().to_string();
    assert!(error.contains("`secrets.database_password` does not exist"), "{error}");
}

/// Kubernetes mounts a Secret as root's, readable for the pod's group.
#[test]
fn a_group_may_read_a_file_of_another_user() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can give a file away");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    write(&file, "mounted", 0o440);
    std::os::unix::fs::chown(&file, Some(4242), None).unwrap();
    assert_eq!(read(&file).unwrap().expose(), "mounted");
    for exposed in [0o444, 0o460] {
        fs::set_permissions(&file, fs::Permissions::from_mode(exposed)).unwrap();
        assert!(read(&file).is_err(), "{exposed:o}");
    }
}

#[test]
fn every_secret_that_can_be_generated_is_one_that_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for field in GENERATED {
        let secret = generate(field).unwrap();
        assert!(seen.insert(secret.expose().to_owned()), "{field}");
        write(&dir.path().join(field), secret.expose(), 0o400);
    }
    let mut stack = stack();
    stack.secrets.signing_key = Some(source(&dir.path().join("signing_key")));
    stack.secrets.form_secret = Some(source(&dir.path().join("form_secret")));
    ensure(&stack, &Layout::new(dir.path().join("data"))).unwrap();
}
