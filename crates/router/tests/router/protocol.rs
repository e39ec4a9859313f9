//! What clients, browsers and attackers may rely on.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use model::Role;
use router::{Options, Router, Settings, Snapshot};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};

use crate::lab::{
    Client, Lab, Pieces, answer, checksum, get, post, quick, read_all, request, stack, topology,
};

#[tokio::test]
async fn what_was_decided_on_is_what_the_instance_sees() {
    let lab = Lab::new(&[]).await;
    for target in [
        "/_matrix/client/v3/rooms/%21a%2Fb:c%20d/state/m.room.name/?x=%2f&y=a+b",
        "/_matrix/client/v3/directory/room/%23a:b",
        "/_matrix/client/v3/profile/@a%C3%A9:b",
        "/_matrix/media/v3/download/a.b/../x",
    ] {
        let echoed = lab.get(target).await.json();
        assert_eq!(echoed["target"], target);
        assert_eq!(echoed["headers"]["host"], "matrix.test.example");
    }
    // In absolute form the authority is the host.
    let answer = lab
        .raw(b"GET http://other.example/_matrix/client/versions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await;
    assert!(answer.contains(r#""target":"/_matrix/client/versions""#), "{answer}");
    assert!(answer.contains(r#""host":"other.example""#), "{answer}");
    // Without a path it is the root.
    let answer = lab.raw(b"GET http://other.example HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("text/html"), "{answer}");
}

#[tokio::test]
async fn forwarding_headers_are_ours_unless_the_proxy_in_front_is_trusted() {
    let send = |lab: &Lab| {
        let request = request(&Method::GET, "/_matrix/client/versions")
            .header("x-forwarded-for", "198.51.100.7")
            .header("x-forwarded-proto", "https")
            .body(Full::<Bytes>::default())
            .unwrap();
        let address = lab.address;
        async move { Client::connect(address).await.send(request).await.json() }
    };
    let open = Lab::new(&[]).await;
    let seen = send(&open).await;
    assert_eq!(seen["headers"]["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen["headers"]["x-forwarded-proto"], "http");
    let behind = Lab::with(&[], Settings { trust_forwarded_for: true, ..quick() }).await;
    let seen = send(&behind).await;
    assert_eq!(seen["headers"]["x-forwarded-for"], "198.51.100.7, 127.0.0.1");
    assert_eq!(seen["headers"]["x-forwarded-proto"], "https");
    assert_eq!(behind.log(1).await[0]["client"], "198.51.100.7");

    // What a client wrote stands before what the proxy added to it.
    let spoofed = "GET /_matrix/client/versions HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 203.0.113.66, 10.0.0.66\r\n\
                   x-forwarded-for: 198.51.100.7\r\nconnection: close\r\n\r\n";
    let answer = behind.raw(spoofed.as_bytes()).await;
    assert!(answer.contains(r#""x-forwarded-for":"198.51.100.7, 127.0.0.1""#), "{answer}");
    assert_eq!(behind.log(2).await[1]["client"], "198.51.100.7");
    let two = Settings { trust_forwarded_for: true, trusted_proxies: 2, ..quick() };
    behind.router.reload(Snapshot::new(&behind.topology, two).unwrap());
    let answer = behind.raw(spoofed.as_bytes()).await;
    assert!(answer.contains(r#""x-forwarded-for":"10.0.0.66, 198.51.100.7, 127.0.0.1""#), "{answer}");
    assert_eq!(behind.log(3).await[2]["client"], "10.0.0.66");
}

#[tokio::test]
async fn traces_go_through_and_are_named_in_the_log() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let lab = Lab::new(&[]).await;
    let context = [
        ("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01")),
        ("tracestate", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7".to_owned()),
        ("baggage", "userId=am%C3%A9lie;x=1, serverNode = DF%2028".to_owned()),
    ];
    let mut traced = request(&Method::GET, "/_matrix/client/versions");
    for (name, value) in &context {
        traced = traced.header(*name, value);
    }
    let seen = lab.send(traced.body(Full::default()).unwrap()).await.json();
    for (name, value) in &context {
        assert_eq!(seen["headers"][name], **value);
    }
    // Whoever sends nonsense gets it through, but into no log.
    let nonsense = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
    let odd = request(&Method::GET, "/_matrix/client/versions").header("traceparent", nonsense);
    let seen = lab.send(odd.body(Full::default()).unwrap()).await.json();
    assert_eq!(seen["headers"]["traceparent"], nonsense);
    lab.get("/_matrix/client/versions").await;
    let lines = lab.log(3).await;
    assert_eq!((&lines[0]["trace_id"], &lines[1]["trace_id"]), (&TRACE.into(), &serde_json::Value::Null));
    assert!(lines[2].as_object().unwrap().contains_key("trace_id") && lines[2]["trace_id"].is_null());
}

#[tokio::test]
async fn browsers_are_answered_without_asking_synapse() {
    let lab = Lab::new(&[]).await;
    let preflight = request(&Method::OPTIONS, "/_matrix/client/v3/login").body(Full::default()).unwrap();
    let reply = lab.send(preflight).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    assert_eq!(reply.headers["access-control-allow-origin"], "*");
    assert_eq!(reply.headers["access-control-allow-methods"], "GET, HEAD, POST, PUT, DELETE, OPTIONS");
    let allowed = reply.headers["access-control-allow-headers"].to_str().unwrap();
    for header in ["X-Requested-With", "Content-Type", "Authorization"] {
        assert!(allowed.contains(header));
    }
    assert_eq!(lab.seen("main"), 0);

    let landing = lab.get("/").await;
    assert_eq!(
        (landing.status, landing.headers["content-type"].as_bytes()),
        (StatusCode::OK, &b"text/html; charset=utf-8"[..])
    );
    let nowhere = lab.get("/favicon.ico").await;
    assert_eq!(nowhere.error(), (404, "M_UNRECOGNIZED".into()));
    assert_eq!(nowhere.headers["access-control-allow-origin"], "*");
    assert_eq!(lab.seen("main"), 0);
}

#[tokio::test]
async fn well_known_documents_follow_the_stack() {
    let mut described = stack(&[]);
    described.public_base_url = Some("https://matrix.test.example".into());
    let lab = Lab::without_upstreams(described, quick()).await;
    let client = lab.get("/.well-known/matrix/client").await;
    assert_eq!(client.json()["m.homeserver"]["base_url"], "https://matrix.test.example");
    assert_eq!(client.headers["access-control-allow-origin"], "*");
    assert_eq!(client.headers["content-type"], "application/json");
    assert_eq!(lab.get("/.well-known/matrix/server").await.json()["m.server"], "matrix.test.example:443");
}

#[tokio::test]
async fn closed_endpoints_cannot_be_reached_by_any_spelling() {
    let lab = Lab::new(&[]).await;
    for path in [
        "/_synapse/admin/v2/users",
        "/_synapse/admin",
        "/_synapse/replication/x/y",
        "/_synapse/metrics",
        "/_synapse%2Fadmin/v2/users",
        "/%5fsynapse/admin/v2/users",
        "/_synapse/%61dmin/v2/users",
        "//_synapse/admin/v2/users",
        "/_synapse//admin/v2/users",
        "/_matrix/../_synapse/admin/v2/users",
        "/_matrix/%2e%2e/_synapse/admin/v2/users",
        "/_synapse/client/../admin/v2/users",
        "/_matrix///../health",
        "/_matrix/a%2fb/../../_synapse/admin/v2/users",
        "/_synapse/./admin/v2/users",
        "/_SYNAPSE/admin/v2/users",
        "/health",
        "/_synapse/admin/v2/users?x=/_matrix/client/versions",
    ] {
        let reply = lab.get(path).await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(reply.error(), (404, "M_UNRECOGNIZED".into()));
    }
    assert_eq!(lab.seen("main"), 0);
    assert!(lab.metric("matrix_stack_router_closed_total{kind=\"admin\"}") >= 2.0);

    let open = Lab::with(&[], Settings { admin_api: true, ..quick() }).await;
    assert_eq!(open.get("/_synapse/admin/v2/users").await.instance(), "main");
    assert_eq!(open.get("/_synapse/replication/x").await.status, StatusCode::NOT_FOUND);
    assert_eq!(open.get("/_synapse/metrics").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn bodies_without_a_length_get_one() {
    let lab = Lab::with(&[], Settings { buffer_bytes: 10_000, ..quick() }).await;
    for (count, size) in [(3, 10), (50, 1000), (1, 0)] {
        let body = Pieces::new(count, size);
        let whole = body.concat();
        let mut client = Client::<Pieces>::connect(lab.address).await;
        let reply = client.send(request(&Method::POST, "/_matrix/media/v3/upload").body(body).unwrap()).await;
        // Whoever stands in front may have read its framing otherwise.
        assert_eq!(reply.headers["connection"], "close");
        let echoed = reply.json();
        assert_eq!(echoed["headers"]["content-length"], whole.len().to_string());
        assert!(echoed["headers"]["transfer-encoding"].is_null());
        assert_eq!(echoed["sum"], checksum(&whole));
    }
    // A POST without any body keeps none.
    let echoed = lab.raw(b"POST /_matrix/client/v3/logout HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    assert!(echoed.contains(r#""length":0"#) && echoed.contains(r#""content-length":"0""#), "{echoed}");
}

#[tokio::test]
async fn bodies_have_a_limit() {
    let settings = Settings { max_body_bytes: 1000, max_upload_bytes: 5000, buffer_bytes: 100, ..quick() };
    let lab = Lab::with(&[], settings).await;
    let path = "/_matrix/client/v3/keys/query";
    assert_eq!(lab.send(post(path, vec![b'x'; 1000])).await.json()["length"], 1000);
    let reply = lab.send(post(path, vec![b'x'; 1001])).await;
    assert_eq!(reply.error(), (413, "M_TOO_LARGE".into()));
    assert_eq!(lab.send(post("/_matrix/media/v3/upload", vec![b'x'; 5000])).await.json()["length"], 5000);
    // The answer arrives although megabytes are still on their way.
    let reply = lab.send(post("/_matrix/media/v3/upload", vec![b'x'; 8 << 20])).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    let mut client = Client::<Pieces>::connect(lab.address).await;
    let reply = client.send(request(&Method::POST, path).body(Pieces::new(100, 100)).unwrap()).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(lab.seen("main"), 2);
}

#[tokio::test]
async fn large_media_streams_both_ways() {
    let lab = Lab::new(&[("media_repository", &[Role::MediaRepository], 1)]).await;
    let upload: Vec<u8> = (0..20_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let sum = checksum(&upload);
    let echoed = lab.send(post("/_matrix/media/v3/upload", upload.clone())).await.json();
    assert_eq!(echoed["instance"], "media_repository_1");
    assert_eq!((echoed["length"].as_u64(), echoed["sum"].as_u64()), (Some(20_000_000), Some(sum)));

    let media = Bytes::from(upload);
    lab.run(
        "media_repository_1",
        answer(move |_| {
            let media = media.clone();
            async move { Response::new(Full::new(media)) }
        }),
    );
    let reply = lab.get("/_matrix/client/v1/media/download/test.example/abc").await;
    assert!(reply.whole);
    assert_eq!((reply.body.len(), checksum(&reply.body)), (20_000_000, sum));
    assert_eq!(lab.log(2).await[1]["bytes_out"], 20_000_000);
    assert_eq!(lab.log(2).await[0]["bytes_in"], 20_000_000);
}

#[tokio::test]
async fn requests_that_two_programs_might_read_in_two_ways_are_refused() {
    let lab = Lab::new(&[]).await;
    let head = "POST /_matrix/client/v3/keys/query HTTP/1.1\r\n";
    let endless_extension = format!(
        "host: a\r\ntransfer-encoding: chunked\r\n\r\n5;{}\r\nhello\r\n0\r\n\r\n",
        "x".repeat(10_000)
    );
    for (what, rest, status) in [
        ("no host", "content-length: 0\r\n\r\n", "400"),
        ("two hosts", "host: a\r\nhost: b\r\ncontent-length: 0\r\n\r\n", "400"),
        ("two lengths", "host: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!", "400"),
        ("a signed length", "host: a\r\ncontent-length: +5\r\n\r\nhello", "400"),
        ("a listed length", "host: a\r\ncontent-length: 5, 5\r\n\r\nhello", "400"),
        ("a folded header", "host: a\r\nx: y\r\n z\r\ncontent-length: 0\r\n\r\n", "400"),
        ("a blank before the colon", "host: a\r\ncontent-length : 5\r\n\r\nhello", "400"),
        ("an unknown coding", "host: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501"),
        ("chunked not last", "host: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n", "400"),
        ("a bare newline in the head", "host: a\ncontent-length: 0\r\n\r\n", "400"),
        ("a bare newline at its end", "host: a\r\ncontent-length: 0\r\n\n", "400"),
        ("a NUL in a value", "host: a\r\nx: \0\r\ncontent-length: 0\r\n\r\n", "400"),
        (
            "a bare newline behind a chunk",
            "host: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
            "400",
        ),
        (
            "a chunk longer than it says",
            "host: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
            "400",
        ),
        ("a negative chunk", "host: a\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n", "400"),
        ("an endless chunk extension", &endless_extension, "400"),
        ("a bad chunk size", "host: a\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", "400"),
    ] {
        let answer = lab.raw(format!("{head}{rest}").as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
    }
    assert_eq!(lab.seen("main"), 0);

    // Who says a length and chunks may mean either, and what follows is never read as a request.
    for (first, second) in [
        ("content-length: 4", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked", "content-length: 4"),
    ] {
        let smuggled = format!(
            "host: a\r\n{first}\r\n{second}\r\n\r\n5\r\nhello\r\n0\r\n\r\n\
             GET /_matrix/client/smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        let answer = lab.raw(format!("{head}{smuggled}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("<closed>"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
    assert_eq!(lab.seen("main"), 0);
}

#[tokio::test]
async fn methods_beyond_matrix_are_refused() {
    let lab = Lab::new(&[]).await;
    for request in [
        "TRACE /_matrix/client/versions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        "CONNECT a.example:443 HTTP/1.1\r\nhost: a.example:443\r\nconnection: close\r\n\r\n",
        "FROB /_matrix/client/versions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    ] {
        let answer = lab.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
    }
    assert_eq!(lab.seen("main"), 0);
}

#[tokio::test]
async fn heads_are_limited_in_size_number_and_time() {
    let settings = Settings {
        max_head_bytes: 8192,
        max_headers: 20,
        head_timeout: Duration::from_millis(100),
        idle_timeout: Duration::from_millis(400),
        ..quick()
    };
    let lab = Lab::with(&[], settings).await;
    let large = format!("GET /_matrix/x HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    assert!(lab.raw(large.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET /_matrix/x HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(30));
    assert!(lab.raw(many.as_bytes()).await.starts_with("HTTP/1.1 431 "));

    let mut slow = TcpStream::connect(lab.address).await.unwrap();
    slow.write_all(b"GET /_matrix").await.unwrap();
    let started = std::time::Instant::now();
    assert!(read_all(&mut slow).await.ends_with("<closed>"));
    assert!(
        started.elapsed() < Duration::from_millis(350),
        "the head's own limit counts, not that of idle connections"
    );

    let mut idle = TcpStream::connect(lab.address).await.unwrap();
    idle.write_all(b"GET /_matrix/client/versions HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut first = [0; 4096];
    assert!(idle.read(&mut first).await.unwrap() > 0);
    let started = std::time::Instant::now();
    assert!(read_all(&mut idle).await.ends_with("<closed>"));
    assert!(started.elapsed() >= Duration::from_millis(300), "an idle connection may stay that long");
}

#[tokio::test]
async fn slow_bodies_are_given_up() {
    let lab = Lab::with(&[], Settings { body_stall: Duration::from_millis(100), ..quick() }).await;
    let answer = lab
        .raw(b"POST /_matrix/client/v3/keys/query HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhello")
        .await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(lab.log(1).await[0]["failure"], "client_slow");
    // The same while it is streamed.
    let answer = lab
        .raw(b"POST /_matrix/media/v3/upload HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nhello")
        .await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test]
async fn old_and_unusual_clients_are_served() {
    let lab = Lab::new(&[]).await;
    let answer = lab.raw(b"GET /_matrix/client/versions HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("<closed>"), "{answer}");

    let answer =
        lab.raw(b"HEAD /_matrix/client/versions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ")
            && answer.contains("content-length: ")
            && answer.ends_with("\r\n\r\n<closed>"),
        "{answer}"
    );

    let pipelined = "GET /_matrix/client/versions HTTP/1.1\r\nhost: a\r\n\r\n".repeat(3);
    assert_eq!(lab.raw(pipelined.as_bytes()).await.matches("HTTP/1.1 200 ").count(), 3);

    let upgrade = b"GET /_matrix/client/versions HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let answer = lab.raw(upgrade).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("\"upgrade\""), "{answer}");

    let mut stream = TcpStream::connect(lab.address).await.unwrap();
    let head = b"POST /_matrix/client/v3/keys/query HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut leave = [0; 100];
    let n = stream.read(&mut leave).await.unwrap();
    assert!(leave[..n].starts_with(b"HTTP/1.1 100 "));
    stream.write_all(b"hello").await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.contains(r#""length":5"#) && !answer.contains("100-continue"), "{answer}");
}

#[tokio::test]
async fn a_client_that_waits_for_leave_is_answered_before_it_sends() {
    let lab = Lab::with(&[], Settings { max_body_bytes: 1000, ..quick() }).await;
    let query = "POST /_matrix/client/v3/keys/query HTTP/1.";
    for (rest, status) in [
        // What is refused is refused without leave.
        ("1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1001\r\n\r\n", "HTTP/1.1 413 "),
        ("1\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n", "HTTP/1.1 400 "),
        // Without a body there is nothing to wait for.
        ("1\r\nhost: a\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n", "HTTP/1.1 200 "),
        // Clients of HTTP/1.0 do not know the answer (RFC 9110, section 10.1.1).
        ("0\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\nhello", "HTTP/1.0 200 "),
    ] {
        let answer = lab.raw(format!("{query}{rest}").as_bytes()).await;
        assert!(answer.starts_with(status) && answer.ends_with("<closed>"), "{rest}: {answer}");
        assert!(!answer.contains(" 100 "), "{rest}: {answer}");
    }
}

#[tokio::test]
async fn requests_in_a_row_are_answered_in_turn_and_none_behind_chunks() {
    let lab = Lab::new(&[]).await;
    let post = |n: usize| {
        format!(
            "POST /_matrix/client/v3/keys/query?n={n} HTTP/1.1\r\nhost: a\r\ncontent-length: {n}\r\n\r\n{}",
            "x".repeat(n)
        )
    };
    let chunked = "POST /_matrix/client/v3/keys/query?n=chunked HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\
        trailer: x-t\r\n\r\n5;e=1\r\nhello\r\n0\r\nx-t: 1\r\n\r\n";
    let head = "HEAD /_matrix/client/versions HTTP/1.1\r\nhost: a\r\n\r\n";
    let row = [post(3), head.to_owned(), post(4), chunked.to_owned(), post(5)].concat();
    let answer = lab.raw(row.as_bytes()).await;
    assert!(answer.ends_with("<closed>"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 4, "{answer}");
    let at = |part: &str| answer.find(part).unwrap_or_else(|| panic!("no {part} in {answer}"));
    assert!(at("?n=3\"") < at("?n=4\"") && at("?n=4\"") < at("?n=chunked\""), "{answer}");
    // Extensions and trailers are about the chunks, and those go no further.
    assert!(answer.contains(r#""content-length":"5""#) && !answer.contains("x-t"), "{answer}");
    assert_eq!(lab.seen("main"), 4);

    // The answers that the router gives itself have no body either, if none is asked for.
    let answer = lab.raw(b"HEAD /nowhere HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.ends_with("\r\n\r\n<closed>"), "{answer}");
}

#[tokio::test]
async fn unix_sockets_and_the_private_listener() {
    let dir = tempfile::tempdir().unwrap();
    let topology = topology(&stack(&[]), dir.path());
    let router = Router::start(Snapshot::new(&topology, quick()).unwrap(), Options::default()).unwrap();
    let (public, private) = (dir.path().join("public"), dir.path().join("private"));
    tokio::spawn(router.serve(UnixListener::bind(&public).unwrap()));
    tokio::spawn(router.serve_private(UnixListener::bind(&private).unwrap()));
    let ask = |socket: std::path::PathBuf, path: &'static str| async move {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(ask(public.clone(), "/.well-known/matrix/client").await.contains("m.homeserver"));
    assert!(ask(private.clone(), "/health").await.starts_with("HTTP/1.1 200 "));
    // Nobody runs yet.
    while !ask(private.clone(), "/ready").await.contains(r#""unserved":["main""#) {}
    let metrics = ask(private.clone(), "/metrics").await;
    for name in [
        "requests_total{class=\"router\"",
        "request_duration_seconds_bucket",
        "instance_state{instance=\"main\",state=\"down\"} 1",
        "connections ",
        "whoami_entries 0",
        "unknown_paths_total 0",
        "waiting{role=\"main\"} 0",
    ] {
        assert!(metrics.contains(&format!("matrix_stack_router_{name}")), "{name} is missing in {metrics}");
    }
    assert!(ask(private, "/_matrix/client/versions").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn durations_are_told_by_who_answered_and_how() {
    let lab = Lab::new(&[("client_reader", &[Role::ClientReader], 1)]).await;
    for _ in 0..2 {
        assert_eq!(lab.send(get("/_matrix/client/v3/publicRooms")).await.instance(), "client_reader_1");
    }
    assert_eq!(lab.send(get("/health")).await.status, StatusCode::NOT_FOUND);
    lab.log(3).await;
    let text = lab.router.metrics();
    let lines = |name: &str| -> Vec<_> {
        text.lines().filter_map(|line| line.strip_prefix(&format!("matrix_stack_router_{name}"))).collect()
    };
    // Nothing is told of what did not happen.
    assert_eq!(
        lines("upstream_duration_seconds_count"),
        [r#"{class="client",role="client_reader",instance="client_reader_1"} 2"#]
    );
    let mut requests = lines("request_duration_seconds_count");
    requests.sort_unstable();
    assert_eq!(requests, [r#"{class="client",outcome="2xx"} 2"#, r#"{class="router",outcome="router"} 1"#]);
    let roles = lines("instance_role");
    assert!(roles.contains(&r#"{instance="client_reader_1",role="client_reader"} 1"#), "{roles:?}");
}

#[tokio::test]
async fn unknown_paths_go_to_main_and_are_counted() {
    let lab = Lab::new(&[("client_reader", &[Role::ClientReader], 1)]).await;
    assert_eq!(lab.send(get("/_matrix/client/unstable/org.example.new/thing")).await.instance(), "main");
    assert!((lab.metric("matrix_stack_router_unknown_paths_total") - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn instances_on_tcp_are_reached_too() {
    let mut described = stack(&[]);
    // A port that is free now; the topology counts two up from it.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().min(65_000);
    described.network = model::Network::Tcp(model::Tcp { base_port: free, ..model::Tcp::default() });
    let lab = Lab::without_upstreams(described, quick()).await;
    let Some(model::Address::Tcp { host, port }) = lab.topology.main().client.clone() else {
        panic!("the stack uses TCP");
    };
    let upstream = tokio::net::TcpListener::bind((host, port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = upstream.accept().await {
            let service = hyper::service::service_fn(|request| crate::lab::echo("main", request));
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    assert_eq!(lab.get("/_matrix/client/versions").await.instance(), "main");
}
