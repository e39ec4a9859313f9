//! What a service counts of its requests.

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::middleware::{Next, from_fn};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Requests by the path of their route and the status of their answer.
#[derive(Clone, Debug, Default)]
pub struct Requests(Family<[(&'static str, String); 2], Counter>);

impl Requests {
    /// Shows them in a registry, as `…_requests_total{path,status}`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("requests", "Requests, by path and status", self.0.clone());
    }

    /// Counts the requests that a router answers.
    pub fn count(&self, router: Router) -> Router {
        let counts = self.0.clone();
        router.layer(from_fn(move |request: Request, next: Next| {
            let counts = counts.clone();
            async move {
                let path = request.extensions().get::<MatchedPath>();
                // What has no route of its own is one: senders choose those paths.
                let path = path.map_or("*", MatchedPath::as_str).to_owned();
                let response = next.run(request).await;
                let status = response.status().as_u16().to_string();
                counts.get_or_create(&[("path", path), ("status", status)]).inc();
                response
            }
        }))
    }
}
