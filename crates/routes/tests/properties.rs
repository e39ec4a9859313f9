//! What holds for every request.

use std::path::Path;
use std::sync::LazyLock;

use model::{Preset, ServerName, Stack};
use proptest::prelude::*;
use routes::{Decision, Matcher, Options, Table, hash_room};

static MATCHER: LazyLock<Matcher> = LazyLock::new(|| {
    let name = ServerName::try_from("example.org".to_owned()).expect("a server name");
    let topology = model::plan(&Stack::new(name), Path::new("/run/x"), Preset::Full).expect("a plan");
    let options = Options { admin_open: true, ..Options::default() };
    Matcher::compile(Table::newest(), &topology, &options).expect("a matcher")
});

fn encode(text: &str, which: &[bool]) -> String {
    text.bytes()
        .enumerate()
        .map(|(index, byte)| {
            let plain = byte.is_ascii_alphanumeric() || b"!:._-~$@".contains(&byte);
            if plain && !which.get(index).copied().unwrap_or_default() {
                char::from(byte).to_string()
            } else if index % 2 == 0 {
                format!("%{byte:02X}")
            } else {
                format!("%{byte:02x}")
            }
        })
        .collect()
}

proptest! {
    #[test]
    fn deciding_never_panics(method in "\\PC*", target in any::<String>()) {
        let _ = MATCHER.decide(&method, &target);
        let _ = MATCHER.explain(&method, &target);
    }

    #[test]
    fn deciding_odd_matrix_paths_never_panics(
        method in prop::sample::select(vec!["GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "X"]),
        head in prop::sample::select(vec!["/_matrix", "/_synapse", "/_matrix/client/v3", "/_matrix/client/v3/rooms", "/%5fmatrix"]),
        tail in "[/%?&=;a-zA-Z0-9!:{}.é\u{0}-]{0,60}",
    ) {
        let target = format!("{head}/{tail}");
        if let Decision::Forward(forward) = MATCHER.decide(method, &target)
            && let Some(room) = forward.room
        {
            // The range is on character boundaries, inside the path.
            prop_assert!(target.get(room.clone()).is_some_and(|room| !room.contains(['/', '?'])));
            prop_assert!(room.end <= target.find('?').unwrap_or(target.len()));
        }
    }

    #[test]
    fn a_room_has_one_key_however_it_is_encoded(
        room in "![a-zA-Z0-9+/=éß._-]{1,43}(:[a-z.]{1,20})?",
        which in prop::collection::vec(any::<bool>(), 0..64),
        other in prop::collection::vec(any::<bool>(), 0..64),
    ) {
        let key = |room: String| {
            let target = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/1?x=1");
            match MATCHER.decide("PUT", &target) {
                Decision::Forward(forward) => forward.room.map(|range| hash_room(&target[range])),
                _ => None,
            }
        };
        let keys = [key(encode(&room, &which)), key(encode(&room, &other)), Some(routes::hash_key(room.as_bytes()))];
        prop_assert!(keys[0].is_some() && keys[0] == keys[1] && keys[1] == keys[2], "{keys:?}");
    }
}
