use super::*;
/// x
pub fn envoy(topology: &Topology, matcher: &Matcher) -> String { let _ = Routing::new(topology, matcher); String::new() }
