//! Searches of a service, one by one, and the cache.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use ldap3_proto::proto::LdapOp;

use crate::lab::{ALICE, MARK, Raw, SERVICE, Slapd, installed, metric, proxy, settings, tool};

fn password(dir: &Path) -> String {
    let file = dir.join("password");
    std::fs::write(&file, "service-secret\n").expect("own file");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("own file");
    format!(
        "service: {{dn: \"{SERVICE}\", password_file: {}}}\n\
         upstream: {{health: {{interval_seconds: 3600, fall: 1}}}}\n",
        file.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_searches_are_spread_and_survive_a_server() {
    if !installed() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (mut one, two) = (Slapd::start("one").await, Slapd::start("two").await);
    let (proxy, address) = proxy(settings(&[&one, &two], &password(dir.path()))).await;
    let mut service = Raw::connect(address).await;
    assert_eq!(service.bind(SERVICE, "wrong").await, 49);
    assert_eq!(service.bind(&SERVICE.to_uppercase(), "service-secret").await, 0);
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(service.search().await.expect("an answer"));
    }
    seen.sort();
    assert_eq!(seen, ["one", "one", "two", "two"], "on one connection");
    // Those that go over the shared connection to it.
    one.signal("STOP");
    for _ in 0..8 {
        service.send_search().await;
    }
    one.kill();
    // In whatever order, each of them is answered, and by the one that is left.
    let (mut marks, mut done) = (0, 0);
    while done < 8 {
        match service.next().await.expect("an answer").op {
            LdapOp::SearchResultEntry(entry) => {
                assert_eq!(entry.attributes[0].vals[0], b"two");
                marks += 1;
            }
            LdapOp::SearchResultDone(_) => done += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(marks, 8);
    // Who binds as somebody else is that from then on.
    assert_eq!(service.bind(ALICE, "alice-secret").await, 0);
    assert_eq!(service.search().await.as_deref(), Ok("two"));
    // What is not a plain search is done as the service too.
    let (code, said) = tool("ldapwhoami", address, &["-D", SERVICE, "-w", "service-secret"]).await;
    assert_eq!((code, said.trim()), (0, format!("dn:{SERVICE}").as_str()));
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_remembered_until_something_is_changed() {
    if !installed() {
        return;
    }
    let one = Slapd::start("one").await;
    let (proxy, address) = proxy(settings(&[&one], "cache: {seconds: 3600}\n")).await;
    let mut raw = Raw::connect(address).await;
    assert_eq!(raw.search().await.as_deref(), Ok("one"));
    assert_eq!(raw.search().await.as_deref(), Ok("one"));
    assert!((0.5..1.5).contains(&metric(&proxy, "cache_hits_total")));
    // Changed without the proxy's knowledge, it stays; through the proxy, it does not.
    let dir = tempfile::tempdir().expect("a directory");
    let change = |value: &str| {
        let file = dir.path().join("change");
        let text = format!("dn: {MARK}\nchangetype: modify\nreplace: description\ndescription: {value}\n");
        std::fs::write(&file, text).expect("own file");
        file.display().to_string()
    };
    let admin = ["-D", "cn=admin,dc=example,dc=org", "-w", "admin", "-f"];
    let direct = std::net::SocketAddr::from(([127, 0, 0, 1], one.port));
    let (code, said) = tool("ldapmodify", direct, &[&admin[..], &[&change("new")]].concat()).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(raw.search().await.as_deref(), Ok("one"));
    let (code, said) = tool("ldapmodify", address, &[&admin[..], &[&change("newer")]].concat()).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(raw.search().await.as_deref(), Ok("newer"));
    // Somebody else's answers are others.
    assert_eq!(raw.bind(ALICE, "alice-secret").await, 0);
    let hits = metric(&proxy, "cache_hits_total");
    assert_eq!(raw.search().await.as_deref(), Ok("newer"));
    assert!(metric(&proxy, "cache_hits_total") <= hits);
    proxy.stop().await;
}
