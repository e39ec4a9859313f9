//! What clients may not do.

use crate::lab::{ALICE, MARK, Raw, SERVICE, Slapd, installed, metric, proxy, settings, tool, until};
use ldap_proxy::Settings;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_what_is_allowed() {
    if !installed() {
        return;
    }
    let one = Slapd::start("one").await;
    let policy = "policy:\n  read_only: true\n  anonymous: false\n  bases: [\"ou=people,dc=example,dc=org\"]\n  \
                  attributes: [uid, mail, objectClass]\nlimits: {search_entries: 1}\n";
    let (proxy, address) = proxy(settings(&[&one], policy)).await;
    let alice = ["-D", ALICE, "-w", "alice-secret"];
    let with = |more: &[&'static str]| [&alice[..], more].concat();

    // Who has not bound may look at the root entry.
    let root = ["-b", "", "-s", "base", "(objectClass=*)", "supportedLDAPVersion"];
    let mut raw = Raw::connect(address).await;
    assert_eq!(raw.search().await, Err(8));
    assert_eq!(raw.bind("", "").await, 8);
    let (code, said) = tool("ldapsearch", address, &with(&root)).await;
    assert!(code == 0 && said.contains("supportedLDAPVersion: 3"), "{said}");

    let people = "ou=people,dc=example,dc=org";
    let (code, said) = tool("ldapsearch", address, &with(&["-LLL", "-b", people, "(uid=alice)"])).await;
    assert!(code == 0 && said.contains("mail: alice@") && !said.contains("telephone"), "{said}");
    let asked =
        with(&["-LLL", "-b", people, "(uid=alice)", "mail", "telephoneNumber", "@inetOrgPerson", "+"]);
    let (code, said) = tool("ldapsearch", address, &asked).await;
    let leaks = ["telephone", "entryUUID", "sn:"].iter().any(|name| said.contains(name));
    assert!(code == 0 && said.contains("mail: alice@") && !leaks, "{said}");
    let (code, said) = tool("ldapsearch", address, &with(&["-LLL", "-b", people, "(uid=alice)", "sn"])).await;
    assert!(code == 0 && said.contains("dn: uid=alice") && !said.contains("sn:"), "{said}");
    for filter in ["(telephoneNumber=1*)", "(&(uid=alice)(!(sn=x)))", "(:caseExactMatch:=alice)"] {
        let (code, said) = tool("ldapsearch", address, &[&alice[..], &["-b", people, filter]].concat()).await;
        assert_eq!(code, 50, "{filter}: {said}");
    }
    let (code, _) = tool("ldapsearch", address, &with(&["-b", "dc=example,dc=org", "(uid=alice)"])).await;
    assert_eq!(code, 50, "above what is allowed");
    let (code, _) = tool("ldapsearch", address, &with(&["-b", people, "(uid=*)", "uid"])).await;
    assert_eq!(code, 4, "one entry, and that there are more");
    let (code, _) =
        tool("ldapsearch", address, &with(&["-b", people, "-E", "!sss=telephoneNumber", "(uid=*)"])).await;
    assert_eq!(code, 12, "sorting shows an order");

    let (code, said) = tool("ldappasswd", address, &with(&["-s", "x"])).await;
    assert!(code != 0 && said.contains("(53)"), "{said}");
    let (code, _) = tool("ldapdelete", address, &with(&[MARK])).await;
    assert_eq!(code, 53);
    let (code, _) = tool("ldapmodrdn", address, &with(&[MARK, "cn=x"])).await;
    assert_eq!(code, 53);
    let (code, _) = tool("ldapcompare", address, &with(&[ALICE, "telephoneNumber:123"])).await;
    assert_eq!(code, 50);
    let (code, _) = tool("ldapwhoami", address, &alice).await;
    assert_eq!(code, 0);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_stay_below_their_base() {
    if !installed() {
        return;
    }
    let one = Slapd::start("one").await;
    let (proxy, address) =
        proxy(settings(&[&one], "policy: {bases: [\"ou=people,dc=example,dc=org\"]}\n")).await;
    let admin = ["-D", "cn=admin,dc=example,dc=org", "-w", "admin"];
    let with = |more: &[&'static str]| [&admin[..], more].concat();
    let (code, said) = tool("ldappasswd", address, &with(&["-s", "x", SERVICE])).await;
    assert!(code != 0 && said.contains("(50)"), "{said}");
    let (code, said) = tool("ldappasswd", address, &with(&["-s", "x", ALICE])).await;
    assert_eq!(code, 0, "{said}");
    let (code, _) =
        tool("ldapmodrdn", address, &with(&["-s", "dc=example,dc=org", ALICE, "uid=alice"])).await;
    assert_eq!(code, 50, "out of it");
    let (code, said) = tool("ldapmodrdn", address, &with(&["-r", ALICE, "uid=carol"])).await;
    assert_eq!(code, 0, "{said}");
    let (code, _) = tool("ldapdelete", address, &with(&[MARK])).await;
    assert_eq!(code, 50);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_ends_soon_and_disturbs_nobody_else() {
    if !installed() {
        return;
    }
    let one = Slapd::start("one").await;
    let limits = "limits:\n  binds_per_dn: {burst: 3, per_minute: 1}\n";
    let (proxy, address) = proxy(settings(&[&one], limits)).await;
    let mut raw = Raw::connect(address).await;
    for _ in 0..10 {
        assert_eq!(raw.bind(ALICE, "alice-secret").await, 0);
    }
    for name in [ALICE, &ALICE.to_uppercase(), "userid=\\61lice, ou=people,dc=example,dc=org"] {
        assert_eq!(raw.bind(name, "guess").await, 49, "{name}");
    }
    assert_eq!(raw.bind(ALICE, "guess").await, 51);
    assert_eq!(raw.search().await.as_deref(), Ok("one"), "as nobody");
    assert_eq!(raw.bind("uid=bob,ou=people,dc=example,dc=org", "bob-secret").await, 0);
    assert!(metric(&proxy, r#"refused_total{reason="rate"}"#) >= 1.0);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_breaks_the_protocol_or_takes_too_much_is_told_so() {
    if !installed() {
        return;
    }
    let one = Slapd::start("one").await;
    let limits = "limits: {request_bytes: 2048, io_seconds: 1, idle_seconds: 1, connections_per_client: 2}\n";
    let (proxy, address) = proxy(settings(&[&one], limits)).await;
    for (bytes, code) in [
        (b"GET / HTTP/1.1\r\n\r\n".as_slice(), 2),
        (&[0x30, 0x84, 0x7f, 0xff, 0xff, 0xff], 2),
        (&[0x30, 0x80, 0, 0], 2),
        // A message ID of 0, an operation that is none, and a bind that ends too soon.
        (&[0x30, 5, 2, 1, 0, 0x42, 0], 0),
        (&[0x30, 5, 2, 1, 1, 0x61, 0], 2),
        (&[0x30, 8, 2, 1, 1, 0x60, 3, 2, 1, 3], 2),
        // A part of a message.
        (&[0x30, 0x20, 2, 1], 11),
    ] {
        let mut raw = Raw::connect(address).await;
        raw.write(bytes).await;
        // Unbind is the one that is no mistake.
        if code == 0 { assert!(raw.next().await.is_none()) } else { raw.expect_notice(code).await }
    }
    let mut idle = Raw::connect(address).await;
    idle.expect_notice(11).await;
    until("all are gone", async || metric(&proxy, "connections") < 0.5).await;
    let (mut first, mut second) = (Raw::connect(address).await, Raw::connect(address).await);
    assert_eq!(first.search().await.as_deref(), Ok("one"));
    assert_eq!(second.search().await.as_deref(), Ok("one"));
    assert!(Raw::connect(address).await.next().await.is_none(), "one too many");
    assert_eq!(first.extended("1.3.6.1.4.1.1466.20037").await, 2, "no StartTLS without a certificate");
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_cut_and_costs_little() {
    if !installed() {
        return;
    }
    let one = Slapd::start("one").await;
    let (proxy, address) = proxy(settings(&[&one], "limits: {io_seconds: 1, pending: 10000}\n")).await;
    let mut raw = Raw::connect(address).await;
    // Until nothing more is taken, for the answers are not.
    while raw.floods().await {}
    let slow = r#"connections_closed_total{reason="slow"}"#;
    until("it is cut", async || metric(&proxy, slow) > 0.5).await;
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_balancer_says_whose_a_connection_is() {
    if !installed() {
        return;
    }
    let one = Slapd::start("one").await;
    let mut wanted: Settings = settings(&[&one], "limits: {binds_per_client: {burst: 1, per_minute: 1}}\n");
    wanted.listen.proxy_protocol = Some(model::ProxyProtocol::default());
    let (proxy, address) = proxy(wanted).await;
    let from = async |client: &str| {
        let mut raw = Raw::connect(address).await;
        raw.write(format!("PROXY TCP4 {client} 192.0.2.1 1000 389\r\n").as_bytes()).await;
        raw
    };
    assert_eq!(from("192.0.2.7").await.bind(ALICE, "guess").await, 49);
    assert_eq!(from("192.0.2.7").await.bind(ALICE, "guess").await, 51);
    assert_eq!(from("192.0.2.8").await.bind(ALICE, "alice-secret").await, 0);
    let mut without = Raw::connect(address).await;
    without.send_search().await;
    assert!(without.next().await.is_none());
    proxy.stop().await;
}
