//! Whatever is in the file, reading it ends in a stack or a report; and what is written is what is read.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use model::{Network, Preset, Role, SecretSource, ServerName, Stack, Tcp, WorkerGroup};
use proptest::prelude::*;

/// Text made of what YAML and stacks are made of.
fn yamlish() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("server_name"),
        Just("workers"),
        Just("listen"),
        Just("network"),
        Just("extra"),
        Just("synapse"),
        Just("count"),
        Just("roles"),
        Just("tcp"),
        Just("typing"),
        Just("example.org"),
        Just("null"),
        Just("yes"),
        Just(": "),
        Just(":"),
        Just("- "),
        Just("? "),
        Just("\n"),
        Just("\n  "),
        Just("\n    "),
        Just("\r\n"),
        Just("\t"),
        Just("["),
        Just("]"),
        Just("{"),
        Just("}"),
        Just(", "),
        Just("'"),
        Just("\""),
        Just("\\"),
        Just("&a "),
        Just("*a"),
        Just("<<"),
        Just("!!str "),
        Just("|\n"),
        Just(">-\n"),
        Just("---\n"),
        Just("...\n"),
        Just("#"),
        Just("%YAML 1.2\n"),
        Just("é"),
        Just("\u{feff}"),
        Just("\u{1F600}"),
        Just("0x1F"),
        Just("1e999"),
        Just("-.inf"),
        Just("007"),
    ];
    proptest::collection::vec(word, 0..60).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        if let Err(report) = config::parse("stack.yaml", &text) {
            prop_assert!(!report.findings().is_empty());
            prop_assert!(!report.to_string().is_empty());
        }
    }

    #[test]
    fn text_like_yaml_never_panics(text in yamlish()) {
        if let Err(report) = config::parse("stack.yaml", &text) {
            let shown = report.to_string();
            prop_assert!(shown.lines().count() >= 2, "{shown}");
            report.coloured();
        }
    }

    #[test]
    fn a_text_cut_anywhere_never_panics(at in 0usize..12_000) {
        let text = config::init_yaml(&ServerName::try_from("example.org".to_owned()).unwrap(), None).replace('#', " ");
        let _ = config::parse("stack.yaml", text.get(..at).unwrap_or(&text)).map_err(|report| report.to_string());
    }

    #[test]
    fn what_is_written_is_what_is_read(stack in stacks()) {
        // JSON is YAML.
        for text in [serde_json::to_string(&stack).unwrap(), serde_json::to_string_pretty(&stack).unwrap()] {
            let loaded = config::parse("stack.yaml", &text).map_err(|report| TestCaseError::fail(report.to_string()))?;
            prop_assert_eq!(&loaded.stack, &stack);
        }
    }
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        (-1e9..1e9f64).prop_map(Into::into),
        "[a-z0-9 :#'\"\\\\{}\\[\\],&*!|>%@`~\u{e9}-]{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            proptest::collection::hash_map("[a-z_.]{1,8}", inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

fn extra() -> impl Strategy<Value = serde_json::Map<String, serde_json::Value>> {
    proptest::collection::hash_map("[a-z_]{1,12}", json(), 0..4).prop_map(|map| map.into_iter().collect())
}

fn groups() -> impl Strategy<Value = WorkerGroup> {
    (
        proptest::option::of(proptest::collection::vec(
            proptest::sample::select(vec![Role::Sync, Role::Room, Role::Typing, Role::Receipts]),
            0..3,
        )),
        proptest::option::of(0u16..=64),
        proptest::option::of(1u16..=64),
        proptest::option::of(0.01..100.0f64),
        extra(),
    )
        .prop_map(|(roles, count, max_count, cache_factor, extra)| WorkerGroup {
            roles,
            count,
            max_count,
            pool: None,
            cache_factor,
            extra,
        })
}

fn stacks() -> impl Strategy<Value = Stack> {
    (
        "[a-z0-9.-]{1,20}(:[0-9]{1,4})?",
        proptest::option::of(proptest::sample::select(vec![Preset::Small, Preset::Custom, Preset::Full])),
        proptest::collection::hash_map("[a-z][a-z_]{0,8}", groups(), 0..4),
        proptest::option::of(1024u16..),
        proptest::option::of("[ -~\u{e9}]{1,10}"),
        extra(),
        any::<bool>(),
    )
        .prop_map(|(name, preset, workers, port, dir, extra, open)| {
            let mut stack = Stack::new(ServerName::try_from(name).unwrap());
            stack.preset = preset;
            stack.workers = workers.into_iter().collect();
            if let Some(base_port) = port {
                stack.network = Network::Tcp(Tcp { base_port, ..Tcp::default() });
            }
            stack.data_dir = dir.map(|dir| format!("/{dir}").into());
            stack.secrets.form_secret = Some(SecretSource { file: "x y".into() });
            stack.synapse.extra = extra;
            stack.registration.open = open;
            stack
        })
}
