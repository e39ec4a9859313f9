//! Whatever stack the planner accepts keeps every rule, and what it refuses it explains.

use std::collections::BTreeSet;
use std::path::Path;

use model::{
    Action, Address, App, Hosts, Network, Pool, Pools, Postgres, Preset, ROLES, RedisServer, Role,
    ServerName, Stack, Stream, Tcp, WorkerGroup, compare, plan,
};
use proptest::prelude::*;

fn any_role() -> impl Strategy<Value = Role> {
    (0..ROLES.len()).prop_map(|index| ROLES[index].role)
}

fn any_group() -> impl Strategy<Value = WorkerGroup> {
    (
        proptest::option::of(proptest::collection::vec(any_role(), 0..4)),
        proptest::option::of(0u16..5),
        proptest::option::weighted(0.2, 0u16..6),
        proptest::option::of((1u16..8, 1u16..12).prop_map(|(min, max)| Pool { min, max })),
    )
        .prop_map(|(roles, count, max_count, pool)| WorkerGroup {
            roles,
            count,
            max_count,
            pool,
            ..WorkerGroup::default()
        })
}

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => any_role().prop_map(|role| role.name().to_owned()),
        2 => "[a-z][a-z_0-9]{0,6}",
        1 => prop_oneof![Just("reader".to_owned()), Just("writer".to_owned()), Just("media".to_owned())],
        1 => "[A-Z_/.]{0,3}",
    ]
}

fn any_network() -> impl Strategy<Value = Network> {
    prop_oneof![
        Just(Network::Unix),
        (1024u16..=65535).prop_map(|base_port| Network::Tcp(Tcp { base_port, ..Tcp::default() })),
        Just(Network::Hosts(Hosts::default())),
        Just(Network::Hosts(Hosts { pools: Some(Pools::default()), ..Hosts::default() })),
    ]
}

fn any_stack() -> impl Strategy<Value = Stack> {
    (
        prop_oneof![Just(Preset::Custom), Just(Preset::Small), Just(Preset::Medium), Just(Preset::Full)],
        proptest::collection::vec((any_name(), any_group()), 0..5),
        any_network(),
        any::<bool>(),
        proptest::option::of(10u32..400),
    )
        .prop_map(|(preset, workers, network, shared, max_connections)| {
            let mut stack =
                Stack::new(ServerName::try_from("example.org".to_owned()).expect("a server name"));
            stack.preset = Some(preset);
            stack.workers = workers.into_iter().collect();
            if let Network::Hosts(_) = network {
                let host = || "db".to_owned();
                let external =
                    Postgres { host: host(), port: 5432, user: host(), database: host(), sslmode: None };
                stack.database.external = Some(external);
                stack.redis.external = Some(RedisServer { host: host(), port: 6379, dbid: 0 });
            }
            stack.network = network;
            stack.media.shared_storage = shared;
            stack.database.max_connections = max_connections;
            stack
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// The rules once more, in other words than the planner's.
    #[test]
    fn accepted_stacks_keep_every_rule(stack in any_stack()) {
        let Ok(topology) = plan(&stack, Path::new("/d/run"), Preset::Small) else { return Ok(()) };
        let all = topology.instances();
        prop_assert_eq!(topology.violations(), vec![]);
        prop_assert_eq!(all.iter().filter(|i| i.is_main()).count(), 1);
        prop_assert!(all[0].is_main() && all[0].name == "main");
        prop_assert_eq!(all.iter().map(|i| &i.name).collect::<BTreeSet<_>>().len(), all.len());

        for stream in Stream::ALL {
            let writers: Vec<_> = topology.writers(stream).collect();
            prop_assert!(!writers.is_empty());
            prop_assert!(stream.role().spec().scalable || writers.len() == 1);
            for writer in writers {
                prop_assert!(writer.replication);
                if stream == Stream::QuarantinedMediaChanges {
                    prop_assert!(writer.enable_media_repo && writer.client.is_some());
                }
            }
        }
        let media_exists = all.iter().any(|i| i.app == App::Media);
        for i in all {
            prop_assert_eq!(i.enable_media_repo, if media_exists { i.app == App::Media } else { i.is_main() });
            if i.app == App::Media {
                prop_assert!(i.roles.iter().all(|r| r.needs_media_process()));
                prop_assert!(i.writes.iter().all(|s| *s == Stream::QuarantinedMediaChanges));
            }
            // What has no name of its own is in no list by which processes find or tell each other.
            if i.is_pool() {
                prop_assert!(i.writes.is_empty() && !i.replication && i.client.is_some());
                for role in [Role::Background, Role::UserDir, Role::Pusher, Role::FederationSender, Role::MediaBackground] {
                    prop_assert!(!i.has(role) && topology.serving(role).1[0] != i || role == Role::UserDir);
                }
            }
            let idle = [Role::Background, Role::Pusher, Role::FederationSender, Role::MediaBackground];
            if i.roles.iter().all(|r| idle.contains(r)) {
                prop_assert!(i.client.is_none());
            }
        }
        if media_exists {
            prop_assert!(all.iter().any(|i| i.app == App::Media && i.client.is_some()));
        }
        let media: u32 = all.iter().filter(|i| i.app == App::Media).map(model::Instance::processes).sum();
        prop_assert!(media <= 1 || stack.media.shared_storage || !matches!(stack.network, Network::Hosts(_)));

        let addresses: Vec<&Address> = all.iter().flat_map(|i| i.client.iter().chain([&i.private])).collect();
        prop_assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len());
        let pools: u32 = all.iter().map(|i| u32::from(i.pool.max) * i.processes()).sum();
        prop_assert!(pools < topology.max_connections());
        for spec in &ROLES {
            let (_, serving) = topology.serving(spec.role);
            prop_assert!(!serving.is_empty());
            // Whoever stands in for a role that serves requests takes requests.
            prop_assert!(!spec.serves_http || serving.iter().all(|i| i.client.is_some()));
        }
    }

    #[test]
    fn refused_stacks_are_explained(stack in any_stack()) {
        if let Err(problems) = plan(&stack, Path::new("/d/run"), Preset::Small) {
            prop_assert!(!problems.0.is_empty());
            for problem in &problems.0 {
                prop_assert!(!problem.field().is_empty() && !problem.mend().is_empty());
                prop_assert!(!matches!(problem, model::Problem::Broken(_)), "caught too late: {}", problem);
            }
        }
    }

    #[test]
    fn comparing_a_stack_with_itself_changes_nothing(stack in any_stack()) {
        if let Ok(topology) = plan(&stack, Path::new("/d/run"), Preset::Small) {
            prop_assert!(compare(&topology, &topology).is_empty());
        }
    }

    /// Every process is spoken of once, and those whose lists of writers differ never merely roll.
    #[test]
    fn comparisons_are_complete(old in any_stack(), new in any_stack()) {
        let (Ok(old), Ok(new)) =
            (plan(&old, Path::new("/d/run"), Preset::Small), plan(&new, Path::new("/d/run"), Preset::Small))
        else {
            return Ok(());
        };
        let comparison = compare(&old, &new);
        let told: Vec<_> = comparison.changes.iter().map(|c| c.instance.as_str()).collect();
        let expected: BTreeSet<_> = old.instances().iter().chain(new.instances()).map(|i| i.name.as_str()).collect();
        prop_assert_eq!(told.len(), expected.len());
        prop_assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), expected);
        for change in &comparison.changes {
            let (before, after) = (old.instance(&change.instance), new.instance(&change.instance));
            match (before, after) {
                (None, _) => prop_assert_eq!(change.action, Action::Start),
                (_, None) => prop_assert_eq!(change.action, Action::Stop),
                (Some(before), Some(after)) if before.writes != after.writes => {
                    prop_assert_eq!(change.action, Action::StopTogether);
                }
                _ => {}
            }
            if change.action != Action::Keep {
                prop_assert!(!change.because.is_empty(), "{:?} has no cause", change);
            }
        }
    }
}
