//! The companions' charts.

use crate::CompanionChart;

/// The charts of the services beside Synapse.
pub fn companion_charts() -> impl Iterator<Item = CompanionChart> {
    std::iter::empty()
}
