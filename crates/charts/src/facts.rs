//! What the templates know of the model.

use model::{Kind, Preset, ROLES, Role, Share, preset_groups, share};
use serde_json::{Map, Value, json};

/// `files/facts.json` of the chart: the presets' groups, and of each role what decides which objects its groups become.
pub fn facts() -> Value {
    let roles: Map<String, Value> = ROLES
        .iter()
        .filter(|spec| spec.kind != Kind::Main)
        .map(|spec| {
            let fact = json!({
                // The number of its processes may change at run time, ...
                "elastic": spec.elastic,
                // ... unless one of these is carried by nobody, for then its processes do that work, by name.
                "elastic_beside": stood_in_for(spec.role),
                "scalable": spec.scalable,
                "http": spec.serves_http,
                "media": spec.role.needs_media_process(),
            });
            (spec.name.to_owned(), fact)
        })
        .collect();
    let presets: Map<String, Value> = [Preset::Custom, Preset::Small, Preset::Medium, Preset::Full]
        .into_iter()
        .map(|preset| {
            let groups: Vec<Value> = preset_groups(preset)
                .into_iter()
                .map(|(name, roles, count)| {
                    json!({ "name": name, "roles": roles.iter().map(|role| role.name()).collect::<Vec<_>>(), "count": count })
                })
                .collect();
            (preset.name().to_owned(), groups.into())
        })
        .collect();
    json!({
        "resources": { "main": resources(share(true)), "worker": resources(share(false)) },
        "presets": presets,
        "roles": roles,
    })
}

/// The media roles whose work an elastic role does first where nobody carries them.
fn stood_in_for(role: Role) -> Vec<&'static str> {
    ROLES
        .iter()
        .filter(|spec| {
            role.spec().elastic && spec.role.needs_media_process() && spec.fallback.first() == Some(&role)
        })
        .map(|spec| spec.name)
        .collect()
}

fn resources(share: Share) -> Value {
    json!({
        "requests": { "cpu": format!("{}m", share.millicores), "memory": format!("{}Mi", share.memory_mib) },
        "limits": { "memory": format!("{}Mi", share.memory_limit_mib) },
    })
}
