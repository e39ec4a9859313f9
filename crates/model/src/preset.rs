//! Ready-made layouts: which groups of workers a preset means.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Kind, ROLES, Role};

/// A ready-made layout of processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Main and just the groups that `workers` lists.
    Custom,
    /// Main and two combined workers: one that writes, one that reads.
    Small,
    /// Main and one or two workers for each kind of work.
    Medium,
    /// Every role its own process; those that can be many run twice.
    Full,
}

impl Preset {
    /// The presets that make a layout of their own, smallest first.
    pub const LAYOUTS: [Self; 3] = [Self::Small, Self::Medium, Self::Full];

    /// The preset's name in `stack.yaml` and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Custom => "custom",
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Preset {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::Custom, Self::Small, Self::Medium, Self::Full]
            .into_iter()
            .find(|preset| preset.name() == name)
            .ok_or_else(|| format!("there is no preset `{name}`: use small, medium, full or custom"))
    }
}

/// The worker groups that a preset means: name, roles and count. Main is always there and is no group.
pub fn preset_groups(preset: Preset) -> Vec<(&'static str, Vec<Role>, u16)> {
    match preset {
        Preset::Custom => Vec::new(),
        Preset::Small => vec![
            (
                "writer",
                vec![
                    Role::Typing,
                    Role::ToDevice,
                    Role::AccountData,
                    Role::Presence,
                    Role::PushRules,
                    Role::Receipts,
                    Role::DeviceLists,
                    Role::ThreadSubscriptions,
                    Role::EventPersister,
                    Role::Background,
                    Role::Pusher,
                    Role::FederationSender,
                ],
                1,
            ),
            (
                "reader",
                vec![
                    Role::Room,
                    Role::Sync,
                    Role::InitialSync,
                    Role::FederationReader,
                    Role::FederationInbound,
                    Role::ClientReader,
                    Role::UserDir,
                ],
                1,
            ),
        ],
        Preset::Medium => vec![
            (
                "stream_writer",
                vec![
                    Role::Typing,
                    Role::ToDevice,
                    Role::AccountData,
                    Role::Presence,
                    Role::PushRules,
                    Role::Receipts,
                    Role::DeviceLists,
                    Role::ThreadSubscriptions,
                ],
                1,
            ),
            ("event_persister", vec![Role::EventPersister], 1),
            ("room", vec![Role::Room, Role::ClientReader], 1),
            ("sync", vec![Role::Sync, Role::InitialSync], 2),
            ("federation", vec![Role::FederationReader, Role::FederationInbound], 1),
            ("background", vec![Role::Background, Role::Pusher, Role::FederationSender], 1),
            ("user_dir", vec![Role::UserDir], 1),
            ("media", vec![Role::MediaRepository, Role::QuarantinedMediaChanges, Role::MediaBackground], 1),
        ],
        Preset::Full => ROLES
            .iter()
            .filter(|spec| spec.kind != Kind::Main)
            .map(|spec| (spec.name, vec![spec.role], if spec.scalable { 2 } else { 1 }))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_gives_every_role_a_process_of_its_own() {
        let groups = preset_groups(Preset::Full);
        assert_eq!(groups.len(), ROLES.len() - 1);
        assert!(groups.iter().all(|(_, roles, _)| roles.len() == 1));
        let processes: u16 = groups.iter().map(|(_, _, count)| count).sum::<u16>() + 1;
        assert_eq!(processes, 37);
    }

    #[test]
    fn names_round_trip() {
        for preset in [Preset::Custom, Preset::Small, Preset::Medium, Preset::Full] {
            assert_eq!(preset.name().parse::<Preset>(), Ok(preset));
            assert_eq!(serde_json::to_value(preset).unwrap(), preset.name());
        }
    }
}
