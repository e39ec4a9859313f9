//! TLS on both sides.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use ldap_proxy::Settings;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use crate::lab::{ALICE, Raw, Slapd, installed, metric, proxy, settings, tool_at, until};

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// An issuer, whose certificate is `ca.pem`, and a certificate for 127.0.0.1 with its key.
fn certificates(dir: &Path) {
    let key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let made = ca.self_signed(&key).expect("a certificate");
    fs::write(dir.join("ca.pem"), pem("CERTIFICATE", made.der())).expect("own file");
    let issuer = Issuer::new(ca, key);
    let key = KeyPair::generate().expect("a key");
    let mut params =
        CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("parameters");
    params.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let made = params.signed_by(&key, &issuer).expect("a certificate");
    fs::write(dir.join("certificate.pem"), pem("CERTIFICATE", made.der())).expect("own file");
    fs::write(dir.join("key.pem"), pem("PRIVATE KEY", &key.serialize_der())).expect("own file");
}

fn files(dir: &Path) -> model::Tls {
    model::Tls { certificate: dir.join("certificate.pem"), private_key: dir.join("key.pem") }
}

fn lines(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "TLSCertificateFile {dir}/certificate.pem\nTLSCertificateKeyFile {dir}/key.pem\nTLSCACertificateFile {dir}/ca.pem"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_are_encrypted_and_checked() {
    if !installed() {
        return;
    }
    let (dir, foreign) =
        (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    certificates(dir.path());
    certificates(foreign.path());
    // One needs StartTLS, and takes nothing before; the other begins with TLS.
    let upgraded = Slapd::with("one", "ldap", &format!("{}\nsecurity ssf=128", lines(dir.path()))).await;
    let direct = Slapd::with("two", "ldaps", &lines(dir.path())).await;
    let wanted = |listen: &Path, ca: &Path| -> Settings {
        let mut wanted = settings(&[&upgraded, &direct], "policy: {require_tls: true}\n");
        wanted.servers[0].start_tls = true;
        wanted.upstream.ca = ca.join("ca.pem");
        wanted.upstream.health.interval_seconds = 1;
        wanted.upstream.health.fall = 1;
        wanted.listen.ldaps = Some("127.0.0.1:0".parse().expect("an address"));
        wanted.listen.tls = Some(files(listen));
        wanted
    };
    let (proxy, plain) = proxy(wanted(dir.path(), dir.path())).await;
    let ldaps = proxy.addresses()[1].expect("it listens");
    let ca = dir.path().join("ca.pem").display().to_string();
    let good = [("LDAPTLS_CACERT", ca.as_str())];
    let alice = ["-D", ALICE, "-w", "alice-secret"];

    let mut raw = Raw::connect(plain).await;
    assert_eq!(raw.bind(ALICE, "alice-secret").await, 13, "a password in the clear");
    for _ in 0..2 {
        let with = [&["-ZZ"], &alice[..]].concat();
        let (code, said) = tool_at("ldapwhoami", &format!("ldap://{plain}"), &good, &with).await;
        assert_eq!((code, said.trim()), (0, format!("dn:{ALICE}").as_str()));
        let (code, said) = tool_at("ldapwhoami", &format!("ldaps://{ldaps}"), &good, &alice).await;
        assert_eq!((code, said.trim()), (0, format!("dn:{ALICE}").as_str()));
    }
    let other = foreign.path().join("ca.pem").display().to_string();
    let (code, _) =
        tool_at("ldapwhoami", &format!("ldaps://{ldaps}"), &[("LDAPTLS_CACERT", &other)], &alice).await;
    assert_ne!(code, 0, "the client believes another issuer");

    // What follows StartTLS in the clear is not taken for what comes within TLS.
    let mut raw = Raw::connect(plain).await;
    let request = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037";
    raw.write(&[request.as_slice(), &[0x30, 5, 2, 1, 2, 0x42, 0]].concat()).await;
    raw.expect_notice(2).await;

    // A renewed certificate counts from the reload on; clients then need one too.
    let mut renewed = wanted(foreign.path(), dir.path());
    renewed.listen.client_ca = Some(foreign.path().join("ca.pem"));
    proxy.reload(renewed).expect("good settings");
    let theirs = [("LDAPTLS_CACERT", other.as_str())];
    let (code, _) = tool_at("ldapwhoami", &format!("ldaps://{ldaps}"), &theirs, &alice).await;
    assert_ne!(code, 0, "without a certificate");
    let (certificate, key) = (files(foreign.path()).certificate, files(foreign.path()).private_key);
    let with = [
        theirs[0],
        ("LDAPTLS_CERT", certificate.to_str().expect("text")),
        ("LDAPTLS_KEY", key.to_str().expect("text")),
    ];
    let (code, said) = tool_at("ldapwhoami", &format!("ldaps://{ldaps}"), &with, &alice).await;
    assert_eq!(code, 0, "{said}");

    // Servers with certificates of another issuer are not talked to.
    proxy.reload(wanted(dir.path(), foreign.path())).expect("good settings");
    let (code, _) = tool_at("ldapwhoami", &format!("ldaps://{ldaps}"), &good, &alice).await;
    assert_eq!(code, 52);
    let up = format!("server_up{{server=\"{}\"}}", direct.url());
    until("they are out", async || metric(&proxy, &up) < 0.5).await;
    proxy.stop().await;
}
