//! The proxy between real clients and real servers.

mod encrypted;
mod lab;
mod limits;
mod service;
mod synapse;

use ldap3_proto::proto::LdapOp;

use lab::{ALICE, LONG, MARK, Raw, Slapd, installed, metric, proxy, settings, tool, until};

const QUICK: &str = "upstream: {health: {interval_seconds: 1, rise: 1, fall: 1}}\n";

#[tokio::test(flavor = "multi_thread")]
async fn clients_use_it_as_a_server() {
    if !installed() {
        return;
    }
    let one = Slapd::start("one").await;
    let (proxy, address) = proxy(settings(&[&one], "access_log: all\n")).await;
    let alice = ["-D", ALICE, "-w", "alice-secret"];
    let with = |more: &[&'static str]| [&alice[..], more].concat();

    let (code, said) = tool("ldapwhoami", address, &alice).await;
    assert_eq!((code, said.trim()), (0, format!("dn:{ALICE}").as_str()));
    let (code, said) =
        tool("ldapsearch", address, &with(&["-b", "dc=example,dc=org", "(mail=b*)", "mail"])).await;
    assert!(code == 0 && said.contains("mail: bob@example.org") && said.contains("numEntries: 1"), "{said}");
    // Paged, which goes by a control.
    let pages = with(&["-b", "dc=example,dc=org", "-E", "pr=2/noprompt", "(objectClass=*)", "dn"]);
    let (code, said) = tool("ldapsearch", address, &pages).await;
    assert!(code == 0 && said.contains("numEntries: 6"), "{said}");
    let (code, _) = tool("ldapcompare", address, &with(&[MARK, "description:one"])).await;
    assert_eq!(code, 6, "compareTrue");
    let (code, said) = tool("ldappasswd", address, &with(&["-s", "another-secret"])).await;
    assert_eq!(code, 0, "{said}");
    let (code, _) = tool("ldapwhoami", address, &alice).await;
    assert_eq!(code, 49, "the old password");
    let (code, _) = tool("ldapwhoami", address, &["-D", ALICE, "-w", "another-secret"]).await;
    assert_eq!(code, 0);
    let admin = ["-D", "cn=admin,dc=example,dc=org", "-w", "admin"];
    let (code, said) =
        tool("ldapdelete", address, &[&admin[..], &["uid=bob,ou=people,dc=example,dc=org"]].concat()).await;
    assert_eq!(code, 0, "{said}");
    assert!(metric(&proxy, r#"operations_total{operation="bind",code="49"}"#) >= 1.0);

    // Many at once, each answered.
    let mut raw = Raw::connect(address).await;
    for _ in 0..50 {
        raw.send_search().await;
    }
    // The server may answer in any order.
    let mut open: Vec<_> = (1..=50).flat_map(|id| [(id, true), (id, false)]).collect();
    while !open.is_empty() {
        let message = raw.next().await.expect("an answer");
        let what = (message.msgid, matches!(message.op, LdapOp::SearchResultEntry(_)));
        open.remove(open.iter().position(|one| *one == what).expect("an answer that is waited for"));
    }
    assert_eq!(raw.bind(ALICE, "").await, 53, "a name without a password");
    assert_eq!(raw.bind("", "").await, 0);
    assert_eq!(raw.search().await.as_deref(), Ok("one"));
    drop(raw);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_go_to_who_is_up_and_come_back() {
    if !installed() {
        return;
    }
    let (mut one, two) = (Slapd::start("one").await, Slapd::start("two").await);
    let (proxy, address) = proxy(settings(&[&one, &two], QUICK)).await;
    let seen = async || {
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(Raw::connect(address).await.search().await.expect("an answer"));
        }
        seen.sort();
        seen
    };
    assert_eq!(seen().await, ["one", "one", "two", "two"]);
    one.kill();
    // From the first on, each is answered.
    assert_eq!(seen().await, ["two"; 4]);
    let up = format!("server_up{{server=\"{}\"}}", one.url());
    until("it is out", async || metric(&proxy, &up) < 0.5).await;
    one.up().await;
    until("it is back", async || metric(&proxy, &up) > 0.5).await;
    assert_eq!(seen().await, ["one", "one", "two", "two"]);
    one.kill();
    drop(two);
    assert_eq!(Raw::connect(address).await.search().await, Err(52));
    assert_eq!(Raw::connect(address).await.bind(ALICE, "alice-secret").await, 52);
    until("it is not ready", async || proxy.observed().ready().is_err()).await;
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_is_asked_again_elsewhere_but_nobody_is_bound_again() {
    if !installed() {
        return;
    }
    let (mut one, two) = (Slapd::start("one").await, Slapd::start("two").await);
    let first = "upstream: {balance: first_available, health: {interval_seconds: 3600}}\n";
    let (proxy, address) = proxy(settings(&[&one, &two], first)).await;
    let mut searching = Raw::connect(address).await;
    assert_eq!(searching.search().await.as_deref(), Ok("one"));
    let mut binding = Raw::connect(address).await;
    assert_eq!(binding.search().await.as_deref(), Ok("one"));
    let mut bound = Raw::connect(address).await;
    assert_eq!(bound.bind(ALICE, "alice-secret").await, 0);
    // It takes what comes, and answers nothing.
    one.signal("STOP");
    searching.send_search().await;
    let bind = async {
        let code = binding.bind(ALICE, "alice-secret").await;
        (code, binding.search().await)
    };
    let kill = async {
        // Both are there when it dies: their connections to it have them in their queues, or will have.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        one.kill();
    };
    let ((code, mark), ()) = tokio::join!(bind, kill);
    assert_eq!((code, mark.as_deref()), (0, Ok("two")));
    assert_eq!(searching.mark().await.as_deref(), Ok("two"));
    assert!(metric(&proxy, "retries_total") >= 2.0);
    bound.expect_notice(52).await;
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_is_left() {
    if !installed() {
        return;
    }
    let (one, two) = (Slapd::start("one").await, Slapd::start("two").await);
    let first =
        "upstream: {balance: first_available, response_seconds: 1, health: {interval_seconds: 3600}}\n";
    let (proxy, address) = proxy(settings(&[&one, &two], first)).await;
    let mut raw = Raw::connect(address).await;
    assert_eq!(raw.search().await.as_deref(), Ok("one"));
    one.signal("STOP");
    assert_eq!(raw.search().await.as_deref(), Ok("two"));
    one.signal("CONT");
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_to_go_when_it_stops() {
    if !installed() {
        return;
    }
    let one = Slapd::start("one").await;
    let (proxy, address) = proxy(settings(&[&one], "")).await;
    let mut idle = Raw::connect(address).await;
    assert_eq!(idle.bind(ALICE, "alice-secret").await, 0);
    let mut busy = Raw::connect(address).await;
    assert_eq!(busy.search().await.as_deref(), Ok("one"));
    one.signal("STOP");
    busy.send_search().await;
    until("the search is there", async || metric(&proxy, "connections") >= 2.0).await;
    let stopping = tokio::spawn(proxy.stop());
    idle.expect_notice(52).await;
    one.signal("CONT");
    assert_eq!(busy.mark().await.as_deref(), Ok("one"));
    busy.expect_notice(52).await;
    tokio::time::timeout(LONG, stopping).await.expect("it ends").expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_change_while_it_runs() {
    if !installed() {
        return;
    }
    let (one, two) = (Slapd::start("one").await, Slapd::start("two").await);
    let (proxy, address) = proxy(settings(&[&one], "")).await;
    let mut before = Raw::connect(address).await;
    assert_eq!(before.search().await.as_deref(), Ok(one.mark()));
    proxy.reload(settings(&[&two], "policy: {read_only: true}\n")).expect("good settings");
    let mut after = Raw::connect(address).await;
    assert_eq!(after.search().await.as_deref(), Ok(two.mark()));
    assert_eq!(before.search().await.as_deref(), Ok(one.mark()));
    assert!(proxy.reload(settings(&[&two], "policy: {attributes: [mail]}\n")).is_err());
    assert_eq!(Raw::connect(address).await.search().await.as_deref(), Ok(two.mark()));
    proxy.stop().await;
}
