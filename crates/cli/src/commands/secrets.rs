//! `generate-secrets`: secrets that nobody gave, in a Secret of Kubernetes.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};

use crate::args::GenerateSecrets;

/// How often somebody else may be faster.
const ATTEMPTS: usize = 5;

pub(crate) fn generate(arguments: &GenerateSecrets) -> anyhow::Result<()> {
    super::block_on(async {
        let client = Client::try_default().await.context(
            "cannot find the cluster: this runs in a pod of it that has a service account, or where kubectl does",
        )?;
        let api: Api<Secret> = Api::default_namespaced(client);
        let name = &arguments.kubernetes_secret;
        for _ in 0..ATTEMPTS {
            let there =
                api.get_opt(name).await.with_context(|| format!("cannot read the Secret `{name}`"))?;
            let missing = missing(&arguments.fields, there.as_ref())?;
            let made: Vec<String> = missing.keys().cloned().collect();
            let done = match &there {
                Some(_) if missing.is_empty() => Ok(()),
                Some(there) => add(&api, there, missing).await,
                None => create(&api, name, missing).await,
            };
            match done {
                Ok(()) if made.is_empty() => eprintln!("`{name}` has them all already"),
                Ok(()) => eprintln!("made {} in `{name}`", made.join(", ")),
                // Somebody else made or changed it meanwhile: theirs counts.
                Err(kube::Error::Api(status)) if status.code == 409 => continue,
                Err(error) => return Err(error).with_context(|| format!("cannot write the Secret `{name}`")),
            }
            return Ok(());
        }
        bail!("the Secret `{name}` is changed by somebody else all the time; try again")
    })
}

/// Secrets for the fields that the Secret lacks.
fn missing(fields: &[String], there: Option<&Secret>) -> anyhow::Result<BTreeMap<String, ByteString>> {
    let known = there.and_then(|secret| secret.data.as_ref());
    fields
        .iter()
        .filter(|field| known.is_none_or(|known| known.get(*field).is_none_or(|value| value.0.is_empty())))
        .map(|field| {
            let secret = config::secrets::generate(field)?;
            Ok((field.clone(), ByteString(secret.expose().as_bytes().to_vec())))
        })
        .collect()
}

async fn create(api: &Api<Secret>, name: &str, data: BTreeMap<String, ByteString>) -> kube::Result<()> {
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/managed-by".to_owned(),
                "matrix-stack".to_owned(),
            )])),
            // Argo CD removes what it did not make itself, unless it is told not to.
            annotations: Some(BTreeMap::from([(
                "argocd.argoproj.io/sync-options".to_owned(),
                "Prune=false,Delete=false".to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(data),
        ..Secret::default()
    };
    api.create(&PostParams::default(), &secret).await.map(drop)
}

/// Adds secrets, unless the Secret was changed since it was read.
async fn add(api: &Api<Secret>, there: &Secret, data: BTreeMap<String, ByteString>) -> kube::Result<()> {
    let patch = Secret {
        metadata: ObjectMeta {
            resource_version: there.metadata.resource_version.clone(),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..Secret::default()
    };
    let name = there.metadata.name.as_deref().unwrap_or_default();
    api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_made() {
        let fields: Vec<String> = config::secrets::GENERATED.iter().map(ToString::to_string).collect();
        let all = missing(&fields, None).expect("randomness");
        assert_eq!(all.len(), fields.len());
        assert!(all["signing_key"].0.starts_with(b"ed25519 a_"));
        let mut some = all.clone();
        some.remove("form_secret");
        some.insert("redis_password".to_owned(), ByteString(Vec::new()));
        let there = Secret { data: Some(some), ..Secret::default() };
        let made = missing(&fields, Some(&there)).expect("randomness");
        assert_eq!(made.keys().collect::<Vec<_>>(), ["form_secret", "redis_password"]);
        let there = Secret { data: Some(all), ..Secret::default() };
        assert!(missing(&fields, Some(&there)).expect("randomness").is_empty());
    }
}
