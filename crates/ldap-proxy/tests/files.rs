//! The manual has the settings as they are, and its example is a good one.

#[test]
fn the_reference_is_fresh() {
    let schema = schemars::schema_for!(ldap_proxy::Settings).to_value();
    committed::part("docs/ldap.md", "ldap", &config::fields_markdown(&schema));
}

#[test]
fn the_example_is_read() {
    let page = std::fs::read_to_string(committed::root().join("docs/ldap.md")).expect("the page");
    let (_, rest) = page.split_once("```yaml\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    let settings: ldap_proxy::Settings =
        config::document("ldap.yaml", example).unwrap_or_else(|error| panic!("{error}"));
    settings.check().expect("a good example");
}

#[test]
fn contradictions_are_told() {
    for (more, part) in [
        ("listen: {ldap: null}", "neither `ldap` nor `ldaps`"),
        ("listen: {ldaps: \"127.0.0.1:636\"}", "listen.tls"),
        ("policy: {require_tls: true}", "nobody could bind"),
        ("policy: {attributes: [mail]}", "policy.read_only"),
        ("policy: {bases: [people]}", "policy.bases[0]"),
        ("policy: {sasl_mechanisms: [GSSAPI]}", "cannot pass a proxy"),
    ] {
        let text = format!("servers: [{{url: \"ldap://a\"}}]\n{more}\n");
        let settings: ldap_proxy::Settings =
            config::document("ldap.yaml", &text).unwrap_or_else(|error| panic!("{error}"));
        let error = settings.check().expect_err(more);
        assert!(error.contains(part), "{error}");
    }
    for url in ["ipa1", "http://ipa1", "ldap://", "ldap://a:b", "ldap://a/dc=x", "ldap://me@a"] {
        let text = format!("servers: [{{url: \"{url}\"}}]\n");
        let settings: ldap_proxy::Settings =
            config::document("ldap.yaml", &text).unwrap_or_else(|error| panic!("{error}"));
        assert!(settings.check().is_err(), "{url}");
    }
}
