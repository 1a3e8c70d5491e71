//! TLS of a guest's that is looked into: real clients, real servers, and certificates between them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use egress::Interception;
use egress::audit::{End, FlowOutcome, RequestOutcome};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::guest::{Guest, Policies};
use crate::namespace::within;
use crate::origin::{ask, message};
use crate::rest;

const POLICIES: Policies<'static> = Policies {
    allow: &["ok.test", "*.below.test"],
    passthrough: &[],
    intercept: false,
    hosts: &[("ok.test", "203.0.113.10"), ("a.below.test", "203.0.113.10"), ("evil.test", "203.0.113.10")],
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// An authority that servers' certificates come from.
struct World {
    issuer: Issuer<'static, KeyPair>,
    root: Vec<u8>,
}

impl World {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), root }
    }

    fn interception(&self, policies: &Policies<'_>) -> Arc<Interception> {
        Arc::new(Interception::new(&policies.policy(), [self.root.clone()]).unwrap())
    }

    /// Settings of a server with a certificate for these names, that ends after this time.
    fn server(&self, names: &[&str], end: SystemTime, protocols: &[&[u8]]) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = (SystemTime::now() - 30 * DAY).into();
        params.not_after = end.into();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// A server of HTTP/1.1 and HTTP/2 that says what it was asked, and for how manieth time.
    async fn serve(&self, names: &[&str]) -> SocketAddr {
        let acceptor = self.server(names, SystemTime::now() + DAY, &[b"h2", b"http/1.1"]);
        let listener = TcpListener::bind("203.0.113.10:443").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut number = 0;
            while let Ok((stream, _)) = listener.accept().await {
                number += 1;
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    let service = service_fn(move |request| told(number, request));
                    let io = TokioIo::new(stream);
                    if is_h2 {
                        drop(
                            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                                .serve_connection(io, service)
                                .await,
                        );
                    } else {
                        drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
                    }
                });
            }
        });
        address
    }
}

async fn told(number: u32, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let host = head.headers.get("host").map(|host| host.to_str().unwrap().to_owned());
    let host = host.or(head.uri.authority().map(ToString::to_string)).unwrap_or_default();
    let cookies = head.headers.get_all("cookie").iter().count();
    let body = body.collect().await?.to_bytes();
    let version = if head.version == Version::HTTP_2 { 2 } else { 1 };
    let text =
        format!("{number} {version} {} {host}{} {cookies} {}", head.method, head.uri.path(), body.len());
    Ok(Response::new(Full::new(text.into())))
}

/// A guest's TLS to a name, which trusts the sandbox's authority.
async fn connect(
    guest: &Guest,
    tls: &Interception,
    address: SocketAddr,
    name: &str,
    protocols: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&tls.authorities()));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, guest.connect(address).await).await
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

#[test]
fn requests_in_tls_are_judged_and_sent_on_in_tls() {
    within("tls::requests_in_tls_are_judged_and_sent_on_in_tls", async {
        let world = World::new("one");
        let address = world.serve(&["ok.test", "a.below.test"]).await;
        let tls = world.interception(&POLICIES);
        let mut guest = Guest::intercepted(&POLICIES, Some(tls.clone())).await;
        for (name, number) in [("ok.test", 1), ("ok.test", 1), ("a.below.test", 2)] {
            let mut stream = connect(&guest, &tls, address, name, &[]).await.unwrap();
            for path in ["/x", "/y?z"] {
                let got = ask(&mut stream, &format!("GET {path} HTTP/1.1\r\nHost: {name}\r\n\r\n")).await;
                // A connection to the server is used again, under the same name.
                let path = &path[..2];
                assert_eq!((got.status(), got.body), (200, format!("{number} 1 GET {name}{path} 0 0")));
                let event = guest.request_event().await;
                assert_eq!((event.host.as_str(), event.path.as_str(), event.tls), (name, path, true));
            }
            // The server's name, the request's and the address's agree.
            let other = ask(&mut stream, "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
            assert_eq!(other.status(), 403);
            assert_eq!(
                other.body,
                "Blocked by policy: the request names another host than its connection [name:same]\n"
            );
            assert_eq!(guest.request_event().await.outcome, RequestOutcome::Denied);
            // Not even another one that is allowed.
            let another = if name == "ok.test" { "a.below.test" } else { "ok.test" };
            let other = ask(&mut stream, &format!("GET / HTTP/1.1\r\nHost: {another}\r\n\r\n")).await;
            assert_eq!(other.status(), 403);
            guest.request_event().await;
            stream.shutdown().await.unwrap();
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or_default(), 0);
        }
        let denied = connect(&guest, &tls, address, "evil.test", &[]).await.unwrap_err();
        assert!(denied.to_string().contains("AccessDenied"), "{denied}");
        guest.empty().await;
    });
}

async fn h2(stream: TlsStream<TcpStream>) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    let io = TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    sender
}

#[test]
fn http2_on_both_sides() {
    within("tls::http2_on_both_sides", async {
        let world = World::new("one");
        let address = world.serve(&["ok.test"]).await;
        let tls = world.interception(&POLICIES);
        let mut guest = Guest::intercepted(&POLICIES, Some(tls.clone())).await;
        let stream = connect(&guest, &tls, address, "ok.test", &[b"h2", b"http/1.1"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let sender = h2(stream).await;
        let ask = async |uri: &str, len: usize| {
            let body = Full::new(Bytes::from(vec![7; len]));
            let request =
                Request::post(uri).header("cookie", "a=1").header("cookie", "b=2").body(body).unwrap();
            let response = sender.clone().send_request(request).await.unwrap();
            let status = response.status();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            (status, String::from_utf8(body.to_vec()).unwrap())
        };
        // All on one connection to the server, which is opened once.
        let mut asked = tokio::task::JoinSet::new();
        for number in 0..100 {
            let mut sender = sender.clone();
            asked.spawn(async move {
                let uri = format!("https://ok.test/{number}");
                let request = Request::get(uri).body(Full::new(Bytes::new())).unwrap();
                let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
                assert_eq!(body.to_bytes(), format!("1 2 GET ok.test/{number} 0 0"));
            });
        }
        asked.join_all().await;
        for _ in 0..100 {
            let event = guest.request_event().await;
            assert_eq!((event.outcome, event.http2), (RequestOutcome::Answered, true));
        }
        let len = 3 << 20;
        let (status, text) = ask("https://ok.test:443/up", len).await;
        assert_eq!((status, text), (StatusCode::OK, format!("1 2 POST ok.test:443/up 2 {len}")));
        assert_eq!(guest.request_event().await.sent, len as u64);
        for (uri, status) in
            [("https://a.below.test/", 421), ("https://evil.test/", 421), ("http://ok.test/", 400)]
        {
            assert_eq!(ask(uri, 0).await.0, status, "{uri}");
        }
    });
}

#[test]
fn http2_to_a_server_that_has_none() {
    within("tls::http2_to_a_server_that_has_none", async {
        let world = World::new("one");
        let acceptor = world.server(&["ok.test"], SystemTime::now() + DAY, &[]);
        let listener = TcpListener::bind("203.0.113.10:443").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = world.interception(&POLICIES);
        let guest = Guest::intercepted(&POLICIES, Some(tls.clone())).await;
        let mut sender = h2(connect(&guest, &tls, address, "ok.test", &[b"h2"]).await.unwrap()).await;
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            let request = message(&mut stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: x\r\nX: 1\r\n\r\n2\r\nhi\r\n0\r\n\r\n").await.unwrap();
            request
        };
        let request = Request::post("https://ok.test/x").header("cookie", "a=1").header("cookie", "b=2");
        let request = request.body(Full::new(Bytes::from_static(b"body"))).unwrap();
        let (response, request) = tokio::join!(sender.send_request(request), serve);
        let response = response.unwrap();
        assert!(response.headers().get("x").is_none());
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hi");
        assert!(request.head.starts_with("POST /x HTTP/1.1\r\n"), "{request:?}");
        assert_eq!((request.header("cookie"), request.header("host")), (vec!["a=1; b=2"], vec!["ok.test"]));
        assert_eq!(request.body, "body");
    });
}

#[test]
fn a_server_that_is_not_verified_is_not_asked() {
    within("tls::a_server_that_is_not_verified_is_not_asked", async {
        let (world, other) = (World::new("one"), World::new("other"));
        let tls = world.interception(&POLICIES);
        let mut guest = Guest::intercepted(&POLICIES, Some(tls.clone())).await;
        let later = SystemTime::now() + DAY;
        for (acceptor, fault) in [
            (other.server(&["ok.test"], later, &[]), "UnknownIssuer"),
            (world.server(&["ok.test"], SystemTime::now() - DAY, &[]), "expired"),
            (world.server(&["other.test"], later, &[]), "not valid for name"),
        ] {
            let listener = TcpListener::bind("203.0.113.10:443").await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut stream = connect(&guest, &tls, address, "ok.test", &[]).await.unwrap();
            let serve = async {
                let (stream, _) = listener.accept().await.unwrap();
                assert!(acceptor.accept(stream).await.is_err());
            };
            let (got, ()) = tokio::join!(ask(&mut stream, "GET / HTTP/1.1\r\nHost: ok.test\r\n\r\n"), serve);
            assert_eq!(got.status(), 502);
            assert!(got.body.starts_with("Failed to connect: ") && got.body.contains(fault), "{got:?}");
            assert_eq!(guest.request_event().await.outcome, RequestOutcome::Failed);
        }
        // Nobody speaks TLS there.
        let listener = TcpListener::bind("203.0.113.10:443").await.unwrap();
        let mut stream = connect(&guest, &tls, listener.local_addr().unwrap(), "ok.test", &[]).await.unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            stream
        };
        let (got, _stream) = tokio::join!(ask(&mut stream, "GET / HTTP/1.1\r\nHost: ok.test\r\n\r\n"), serve);
        assert_eq!(got.status(), 502);
    });
}

#[test]
fn a_guest_that_does_not_trust_the_authority_is_told_of() {
    within("tls::a_guest_that_does_not_trust_the_authority_is_told_of", async {
        let world = World::new("one");
        let tls = world.interception(&POLICIES);
        let mut guest = Guest::intercepted(&POLICIES, Some(tls.clone())).await;
        let address = ([203, 0, 113, 10], 443).into();
        let stranger = world.interception(&POLICIES);
        assert!(connect(&guest, &stranger, address, "ok.test", &[]).await.is_err());
        assert_eq!(guest.flow_event().await.outcome, FlowOutcome::LookedInto);
        assert_eq!(guest.end_event().await, End::Distrusted);
        // No protocol that is spoken here, and no handshake that ends.
        assert!(connect(&guest, &tls, address, "ok.test", &[b"imap"]).await.is_err());
        assert_eq!(guest.end_event().await, End::Handshake);
        let start = tokio::time::Instant::now();
        let mut stream = guest.connect(address).await;
        stream.write_all(&crate::guest::hello("ok.test")).await.unwrap();
        while guest.flow_event().await.outcome != FlowOutcome::LookedInto {}
        tokio::time::pause();
        drop(rest(&mut stream).await);
        // The host's own slowness before the pause is in it.
        assert!((10..15).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        assert_eq!(guest.end_event().await, End::Handshake);
    });
}

#[test]
fn an_authority_vouches_for_the_list_alone() {
    within("tls::an_authority_vouches_for_the_list_alone", async {
        let world = World::new("one");
        let address = world.serve(&["ok.test", "more.test", "203.0.113.10"]).await;
        let tls = world.interception(&POLICIES);
        let hosts = &[("ok.test", "203.0.113.10"), ("more.test", "203.0.113.10")];
        let wider = Policies { allow: &["ok.test", "more.test"], hosts, ..Policies::default() };
        let guest = Guest::intercepted(&wider, Some(tls.clone())).await;
        let old = tls.authorities();
        assert!(connect(&guest, &tls, address, "ok.test", &[]).await.is_ok());
        // The list was another one when the authority was made.
        assert!(connect(&guest, &tls, address, "more.test", &[]).await.is_err());
        assert_eq!(tls.cover(&POLICIES.policy()).unwrap(), None);
        let new = tls.cover(&wider.policy()).unwrap().unwrap();
        assert_eq!(tls.authorities(), [old, new].concat());
        assert_eq!(tls.cover(&Policies::default().policy()).unwrap(), None);
        // A certificate that was made before is kept.
        assert!(connect(&guest, &tls, address, "ok.test", &[]).await.is_ok());

        // Without a list all can be vouched for, addresses too.
        let open = Policies { intercept: true, hosts, ..Policies::default() };
        let tls = world.interception(&open);
        let guest = Guest::intercepted(&open, Some(tls.clone())).await;
        for host in ["more.test", "203.0.113.10"] {
            let mut stream = connect(&guest, &tls, address, host, &[]).await.unwrap();
            let got = ask(&mut stream, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            assert!(got.body.contains(&format!(" GET {host}/ ")), "{got:?}");
        }
    });
}

#[test]
fn real_clients_take_it() {
    within("tls::real_clients_take_it", async {
        let world = World::new("one");
        let address = world.serve(&["ok.test"]).await;
        let tls = world.interception(&POLICIES);
        let mut guest = Guest::intercepted(&POLICIES, Some(tls.clone())).await;
        let port = guest.port(address).await;
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("ca.pem");
        std::fs::write(&bundle, tls.authorities()).unwrap();
        let bundle = bundle.to_str().unwrap();
        let run = async |program: &str, arguments: &[&str]| match Command::new(program)
            .args(arguments)
            .output()
            .await
        {
            Ok(output) => {
                Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
            }
            Err(error) => {
                skip::skip(program, error);
                None
            }
        };
        let to = format!("::127.0.0.1:{port}");
        for version in ["--http1.1", "--http2"] {
            let curl = async |url: &str| {
                run("curl", &["-sS", version, "--cacert", bundle, "--connect-to", &to, "-d", "hello", url])
                    .await
            };
            let Some(got) = curl("https://ok.test/x").await else { break };
            assert!(got.ends_with("POST ok.test/x 0 5"), "{got}");
            let denied = curl("https://evil.test/x").await.unwrap();
            assert!(denied.contains("access denied"), "{denied}");
            let distrusted =
                run("curl", &["-sS", version, "--connect-to", &to, "https://ok.test/"]).await.unwrap();
            assert!(distrusted.contains("certificate"), "{distrusted}");
        }
        let script = format!(
            "import http.client, socket, ssl\n\
            context = ssl.create_default_context(cafile={bundle:?})\n\
            c = http.client.HTTPSConnection('ok.test', context=context)\n\
            c.sock = context.wrap_socket(socket.create_connection(('127.0.0.1', {port})), server_hostname='ok.test')\n\
            for path in ('/a', '/b'):\n c.request('GET', path); print(c.getresponse().read().decode())\n"
        );
        if let Some(got) = run("python3", &["-c", &script]).await {
            assert!(got.contains("GET ok.test/a 0 0\n") && got.contains("GET ok.test/b 0 0\n"), "{got}");
        }
        let at = format!("127.0.0.1:{port}");
        let verify = [
            "s_client",
            "-connect",
            &at,
            "-servername",
            "ok.test",
            "-verify_return_error",
            "-CAfile",
            bundle,
        ];
        if let Some(got) = run("openssl", &verify).await {
            assert!(got.contains("Verify return code: 0 (ok)") || got.contains("Verification: OK"), "{got}");
        }
        while guest.end_event().await != End::Distrusted {}
    });
}
