//! The values of the Helm charts as types, and all that is made from them: the JSON Schema that Helm holds values against,
//! `values.yaml` with its comments, and the reference. What the templates need to know of the model, such as the groups
//! of each preset, is made here too, so that no template knows Synapse's rules.

mod companion;
mod companions;
mod facts;
mod schema;
mod values;
mod yaml;

pub use companion::{COMMON, CompanionChart, Port, Setting, Workload};
pub use companions::companion_charts;
pub use facts::facts;
pub use schema::{reference, synapse_schema};
pub use values::Values;
pub use yaml::values_yaml;
