//! What a person sees for files that are wrong: the whole report, one snapshot a file.

use std::path::Path;

use model::Preset;

/// The report for a text, from reading it or, if it can be read, from planning it.
fn report(text: &str) -> String {
    let report = match config::parse("stack.yaml", text) {
        Err(report) => report,
        Ok(loaded) => loaded.plan(Path::new("/run/stack"), Preset::Small).expect_err("the file is wrong"),
    };
    report.to_string()
}

macro_rules! bad {
    ($($name:ident: $text:expr;)*) => {
        $(
            #[test]
            fn $name() {
                insta::with_settings!({ description => $text, omit_expression => true }, {
                    insta::assert_snapshot!(report($text));
                });
            }
        )*
    };
}

bad! {
    empty_file: "";
    only_comments: "# nothing here\n";
    not_a_mapping: "- server_name: example.org\n";
    missing_server_name: "preset: small\n";
    bad_server_name: "server_name: https://example.org/\n";
    server_name_in_upper_case: "server_name: Example.org\n";
    server_name_without_value: "server_name:\npreset: small\n";
    several_problems: "\
server_name: example.org
preset: full
listen:
  adress: 0.0.0.0:8008
  admin_api: yes
workers:
  sync:
    count: three
    rolls: [sync]
  typing:
    count: 2
caches:
  global_factor: 1000
";
    preset_with_a_typo: "server_name: example.org\npreset: smal\nworkers:\n  typing:\n    count: 2\n";
    unknown_key_with_suggestion: "server_name: example.org\nworker:\n  sync:\n    count: 3\n";
    unknown_key_of_another_section: "server_name: example.org\nmax_upload_size: 10M\naddress: 127.0.0.1:1\n";
    unknown_key_of_synapse: "server_name: example.org\npublic_baseurl: https://example.org\nallow_guest_access: true\n";
    unknown_nested_key: "server_name: example.org\ndatabase:\n  external:\n    host: db\n    pasword: x\n";
    missing_nested_key: "server_name: example.org\ndatabase:\n  external:\n    user: synapse\n";
    text_for_number: "server_name: example.org\nworkers:\n  sync:\n    count: many\n";
    quoted_number: "server_name: example.org\nworkers:\n  sync:\n    count: \"2\"\n";
    fraction_for_whole_number: "server_name: example.org\nworkers:\n  sync:\n    count: 2.5\n";
    out_of_range: "server_name: example.org\nworkers:\n  sync:\n    count: 65\n  room:\n    count: -1\n    cache_factor: 0\n";
    number_for_text: "server_name: example.org\nmedia:\n  max_upload_size: 50\n";
    text_for_list: "server_name: example.org\nworkers:\n  fast:\n    roles: typing\n";
    list_for_mapping: "server_name: example.org\nworkers:\n  - sync\n  - room\n";
    text_for_mapping: "server_name: example.org\nlisten: 0.0.0.0:8008\n";
    section_without_value: "server_name: example.org\nlisten:\nmedia:\n  max_upload_size: 1M\n";
    unknown_role: "server_name: example.org\nworkers:\n  fast:\n    roles:\n      - typing\n      - reciepts\n      - 7\n";
    words_for_booleans: "server_name: example.org\nregistration:\n  open: yes\nfederation:\n  enabled: \"true\"\n";
    pattern_mismatch: "server_name: example.org\npublic_base_url: matrix.example.org\nlisten:\n  metrics: localhost:9090\n";
    network_that_is_not_one: "server_name: example.org\nnetwork: tpc\n";
    network_without_its_fields: "server_name: example.org\nnetwork: tcp\n";
    network_with_fields_it_lacks: "server_name: example.org\nnetwork:\n  unix:\n    path: /run\n";
    network_twice: "server_name: example.org\nnetwork:\n  tcp: {}\n  hosts: {}\n";
    network_with_a_bad_host: "server_name: example.org\nnetwork:\n  tcp:\n    host: localhost\n    base_port: 80\n";
    enumeration_of_words: "server_name: example.org\ndatabase:\n  external:\n    host: db\n    sslmode: verify_full\n";
    home_in_a_path: "server_name: example.org\ndata_dir: ~/matrix\nsecrets:\n  form_secret:\n    file: ''\n";
    // Syntax.
    tab_indentation: "server_name: example.org\nlisten:\n\taddress: 0.0.0.0:8008\n";
    bad_indentation: "server_name: example.org\nlisten:\n    address: 0.0.0.0:8008\n  admin_api: true\n";
    child_without_its_section: "server_name: example.org\n  address: 0.0.0.0:8008\n";
    unclosed_quotes: "server_name: \"example.org\npreset: small\n";
    unclosed_bracket: "server_name: example.org\nworkers:\n  fast:\n    roles: [typing, receipts\n    count: 1\n";
    missing_space_after_colon: "server_name: example.org\npreset:small\n";
    missing_space_in_the_middle: "server_name: example.org\npreset:small\nlisten:\n  admin_api: true\n";
    bad_escape: "server_name: example.org\ndata_dir: \"C:\\matrix\"\n";
    reserved_character: "server_name: @example.org\n";
    duplicate_keys: "server_name: example.org\npreset: small\nlisten:\n  admin_api: true\n  admin_api: false\npreset: full\n";
    anchors_and_aliases: "server_name: example.org\nworkers:\n  sync: &many\n    count: 2\n  room: *many\n  client_reader:\n    <<: *many\n";
    tags: "server_name: !!str example.org\n";
    several_documents: "server_name: example.org\n---\nserver_name: example.com\n";
    nested_too_deeply: &format!("server_name: example.org\nsynapse:\n  extra:\n    a: {}{}\n", "[".repeat(40), "]".repeat(40));
    crlf_and_letters_beyond_ascii: "# é – ü\r\nserver_name: example.org\r\nsynapse:\r\n  extra:\r\n    é: {ü: no}\r\nbüro: 1\r\n";
    // Values for Synapse that mean something else in YAML 1.1.
    ambiguous_values_for_synapse: "\
server_name: example.org
synapse:
  extra:
    allow_guest_access: no
    some_mode: 0644
    list: [on, 'off', .inf]
";
    // What the planner refuses.
    planner_two_typing_writers: "\
server_name: example.org
preset: full
workers:
  sync:
    count: 3
  typing:
    count: 2 # too many
";
    planner_owned_options: "\
server_name: example.org
synapse:
  extra:
    allow_guest_access: true
    \"instance_map\": {}
    listeners: []
workers:
  sync:
    extra: {worker_app: x}
";
    planner_group_names: "server_name: example.org\nworkers:\n  main: {}\n  Fast.One:\n    roles: [sync]\n  quick: {}\n";
    planner_media: "server_name: example.org\npreset: custom\nworkers:\n  m:\n    roles: [media_repository, sync]\n  n:\n    roles: [typing, typing]\n";
    planner_absent_field: "server_name: example.org\ndatabase:\n  external: {host: db}\n  pool: {min: 9, max: 90}\n";
    planner_nowhere: "server_name: example.org\npreset: small\nnetwork: {hosts: {}}\nworkers:\n  media_repository: {count: 2}\n";
    planner_addresses: "server_name: example.org\nlisten:\n  address: 127.0.0.1:99999\n  metrics: 1.2.3.4:1\nmedia:\n  max_upload_size: 0M\n";
}

#[test]
fn a_long_report_is_cut() {
    let text: String = (0..200).map(|number| format!("key{number}: 1")).collect::<Vec<_>>().join("\n");
    let report = config::parse("stack.yaml", &text).unwrap_err();
    assert_eq!(report.findings().len(), 201);
    let shown = report.to_string();
    assert_eq!(shown.matches("error: ").count(), 50);
    assert!(shown.ends_with("stack.yaml: 201 problems, the first 50 shown"), "{shown}");
}

#[test]
fn colour_changes_no_word() {
    let report = config::parse("stack.yaml", "server_name: example.org\nworker: 1\n").unwrap_err();
    let coloured = report.coloured();
    assert!(coloured.contains("\u{1b}["));
    let mut plain = String::new();
    let mut rest = coloured.as_str();
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    plain.push_str(rest);
    assert_eq!(plain, report.to_string());
}

#[test]
fn findings_say_where_they_are() {
    let report = config::parse("stack.yaml", "server_name: example.org\nlisten:\n  adress: x\n").unwrap_err();
    let [finding] = report.findings() else { panic!("{report}") };
    assert_eq!(finding.path, "listen.adress");
    let place = finding.place.as_ref().unwrap();
    assert_eq!((place.line, place.column), (3, 3));
}

#[test]
fn a_file_too_large_is_refused() {
    let report = config::parse("stack.yaml", &"#".repeat((1 << 20) + 1)).unwrap_err();
    assert!(report.to_string().contains("larger than 1024 KiB"), "{report}");
}

#[test]
fn hostile_files_end_soon() {
    let size = 1 << 18;
    let repeated = |text: &str| text.repeat(size / text.len());
    let numbered: String = (0..20_000).map(|n| format!("k{n}: 1")).collect::<Vec<_>>().join("\n");
    let start = std::time::Instant::now();
    for text in [
        numbered,
        repeated("a: 1\n"),
        repeated("["),
        repeated("[],"),
        repeated("- "),
        repeated("? "),
        repeated("{a: "),
        repeated("é: no\n"),
        repeated("- &a [*a]\n"),
        repeated("!!str a\n"),
        repeated("---\n"),
        repeated("\n"),
        repeated("\t"),
        repeated("'"),
        repeated("9"),
        format!("server_name: {}", "a".repeat(size)),
        format!("server_name: a\nworkers:\n  {}:\n    count: 1\n", "A".repeat(size)),
        format!("synapse:\n  extra:\n{}", "    - no\n".repeat(20_000)),
    ] {
        let report = config::parse("stack.yaml", &text).expect_err("the file is wrong");
        let shown = report.to_string();
        assert!(shown.len() < 100_000, "{}: {} bytes", &text[..20], shown.len());
    }
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
