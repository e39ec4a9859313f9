//! The reference in the manual is made from the types.

#[test]
fn the_reference_is_committed() {
    let schema = schemars::schema_for!(livekit_jwt::Config).to_value();
    committed::part("docs/livekit.md", "livekit-jwt", &config::fields_markdown(&schema));
}
