//! A lease, so that one rollout acts at a time.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};

use crate::cluster::{Cluster, ClusterError, failed};

/// How long nobody else acts after the holder was last heard of, in seconds.
pub(crate) const DURATION_SECONDS: u16 = 30;

/// How often the holder is to be heard of.
pub(crate) const RENEW: Duration = Duration::from_secs(10);

/// The lease, as one contender sees it.
#[derive(Debug)]
pub(crate) struct Held {
    leases: Api<Lease>,
    name: String,
    identity: String,
    /// When we last renewed it.
    renewed: Option<Instant>,
    /// The last version of another's lease, and since when it has been that one: clocks of other machines do not count.
    other: Option<(Option<String>, Instant)>,
}

impl Held {
    pub(crate) fn new(cluster: &Cluster, identity: &str) -> Self {
        Self {
            leases: Api::namespaced(cluster.client.clone(), &cluster.namespace),
            name: cluster.names.applied.clone(),
            identity: identity.to_owned(),
            renewed: None,
            other: None,
        }
    }

    /// Takes or renews the lease, unless another has it. Says whether we have it.
    pub(crate) async fn hold(&mut self) -> Result<bool, ClusterError> {
        if self.renewed.is_some_and(|renewed| renewed.elapsed() < RENEW) {
            return Ok(true);
        }
        let found = self.leases.get_opt(&self.name).await.map_err(failed("read the lease"))?;
        if let Some(lease) = &found
            && !self.is_free(lease)
        {
            self.renewed = None;
            return Ok(false);
        }
        let asked = Instant::now();
        let written = self.write(found, &self.identity).await?;
        self.renewed = written.then_some(asked);
        Ok(written)
    }

    /// Lets go of it, so that another need not wait.
    pub(crate) async fn release(&mut self) {
        if self.renewed.take().is_none() {
            return;
        }
        let result = match self.leases.get_opt(&self.name).await.map_err(failed("read the lease")) {
            Ok(Some(lease)) if self.is_ours(&lease) => self.write(Some(lease), "").await.map(drop),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "the lease is left to run out");
        }
    }

    fn is_ours(&self, lease: &Lease) -> bool {
        holder(lease) == self.identity
    }

    fn is_free(&mut self, lease: &Lease) -> bool {
        if holder(lease).is_empty() || self.is_ours(lease) {
            return true;
        }
        let version = lease.metadata.resource_version.clone();
        match &self.other {
            Some((seen, since)) if *seen == version => {
                since.elapsed() > Duration::from_secs(DURATION_SECONDS.into())
            }
            _ => {
                self.other = Some((version, Instant::now()));
                false
            }
        }
    }

    /// Writes the lease; not if somebody else did so first.
    async fn write(&self, found: Option<Lease>, holder: &str) -> Result<bool, ClusterError> {
        let now = MicroTime(Timestamp::now());
        let new = found.is_none();
        let mut lease = found.unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: None,
        });
        let before = lease.spec.take().unwrap_or_default();
        let same = before.holder_identity.as_deref() == Some(holder);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(DURATION_SECONDS.into()),
            acquire_time: if same { before.acquire_time.clone() } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!same)),
            ..before
        });
        let parameters = PostParams::default();
        let result = if new {
            self.leases.create(&parameters, &lease).await
        } else {
            self.leases.replace(&self.name, &parameters, &lease).await
        };
        match result {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
            Err(error) => Err(failed("write the lease")(error)),
        }
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}
