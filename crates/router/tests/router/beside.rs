//! Services beside Synapse, by the paths that the stack gives them.

use std::time::Duration;

use http::Method;
use http_body_util::Full;
use model::Companion;
use router::Settings;

use crate::lab::{Behaviour, Lab, Raw, post, quick, request, stack};

/// A router in front of main and of a service at `/hooks`.
async fn lab(settings: Settings) -> Lab {
    let mut stack = stack(&[]);
    stack.companions.webhook = Some(Companion { path: Some("/hooks".to_owned()), ..Companion::default() });
    let lab = Lab::without_upstreams(stack, settings).await;
    lab.run("main", Behaviour::Echo);
    lab
}

#[tokio::test]
async fn a_service_beside_synapse_has_its_path_and_no_other() {
    let lab = lab(quick()).await;
    lab.run("webhook", Behaviour::Echo);
    for (path, there) in
        [("/hooks", "/"), ("/hooks?a=b", "/?a=b"), ("/hooks/x%2fy/..z?q", "/x%2fy/..z?q"), ("/hooks//", "//")]
    {
        let reply = lab.get(path).await;
        assert_eq!((reply.instance().as_str(), reply.json()["target"].as_str()), ("webhook", Some(there)));
    }
    for path in ["/hook", "/hooksy/x", "/Hooks/x", "/%68ooks/x"] {
        assert_eq!(lab.get(path).await.error(), (404, "M_UNRECOGNIZED".to_owned()), "{path}");
    }
    assert_eq!(lab.get("/_matrix/client/v3/sync").await.instance(), "main");
    let length = lab.send(post("/hooks/x", "text")).await.json()["length"].clone();
    assert_eq!(length, 4);
    // The service speaks for itself.
    let preflight = request(&Method::OPTIONS, "/hooks/x").body(Full::default()).unwrap();
    assert_eq!(lab.send(preflight).await.instance(), "webhook");
    assert!(lab.metric("matrix_stack_router_requests_total{class=\"companion\"") > 0.0);
}

#[tokio::test]
async fn while_it_restarts_requests_wait_and_none_is_sent_twice() {
    let lab = lab(Settings { patience: Duration::from_secs(2), ..quick() }).await;
    let waiting = lab.send(post("/hooks/x", "text"));
    let start = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        lab.run("webhook", Behaviour::Echo);
    };
    let (reply, ()) = tokio::join!(waiting, start);
    assert_eq!(reply.instance(), "webhook");
    lab.run("webhook", Behaviour::Raw(Raw::Reset));
    assert_eq!(lab.send(post("/hooks/x", "text")).await.status, 502);
    assert_eq!(lab.seen("webhook"), 1);
    lab.stop("webhook");
    assert_eq!(lab.get("/hooks/x").await.status, 502);
}
